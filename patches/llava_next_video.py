"""LLaVA-NeXT-Video: images as in LLaVA-NeXT; the frames of a clip are pooled before the projector."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.core.errors import UnsupportedError
from vtc.core.layout import ImageLayout, View, boxes, clip, on_picture
from vtc.core.signals import Encoder
from vtc.patches import FAMILIES
from vtc.patches._preset import Preset
from vtc.patches._resizing import resizing_of
from vtc.patches.llava import VICUNA_7B, clip_config, llama_config
from vtc.patches.llava_next import LlavaNext

VIDEO = 123


def _config(**text) -> object:
    from transformers import LlavaNextVideoConfig

    tilings = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    return LlavaNextVideoConfig(
        vision_config=clip_config(), text_config=llama_config(**text), image_token_index=text["vocab"] - 64,
        video_token_index=text["vocab"] - 63, image_seq_length=576, image_grid_pinpoints=tilings,
        vision_feature_select_strategy="default", vision_feature_layer=-2, spatial_pool_mode="average",
        spatial_pool_stride=2,
    )  # fmt: skip


def _base_crops(images: Callable, frames: Sequence) -> Tensor:
    """Pixels [frames, 3, H, W] of pictures by the settings of LLaVA-NeXT's image processor, without its tiles."""
    try:
        from transformers import CLIPImageProcessorPil as Plain
    except ImportError:  # transformers before the Pillow backend got its own name
        from transformers import CLIPImageProcessor as Plain
    names = ("size", "crop_size", "resample", "image_mean", "image_std", "do_resize", "do_center_crop")
    plain = Plain(**{name: getattr(images, name) for name in names if getattr(images, name, None) is not None})
    return plain(list(frames), return_tensors="pt")["pixel_values"]


@FAMILIES.register("llava_next_video")
class LlavaNextVideo(LlavaNext):
    """LLaVA-NeXT-Video (`llava_next_video`). A token of a clip is the mean of stride x stride patches of a frame, which
    enters the projector; its scores are their mean.

    Source: `LlavaNextVideoForConditionalGeneration` of transformers; no paper, its authors' blog of April 2024.
    """

    name = "llava_next_video"
    model_types = ("llava_next_video",)
    video = {"pixel_values_videos": "pixel_values"}
    follows = "llava_next"
    published = Encoder("llava_next_video", 24, True, tuple(range(24)), tiled=True, thumbnail=576, output=22)
    presets = {
        "llava-next-video-7b": Preset(partial(_config, **VICUNA_7B), 7_063_431_168, "LLaVA-NeXT-Video Vicuna 7B")
    }

    def __init__(self, model: nn.Module):
        super().__init__(model)
        mode = model.config.spatial_pool_mode
        if mode != "average":
            raise UnsupportedError(
                f"spatial_pool_mode={mode!r}: the tokens of a clip are no means of patches; possible: average"
            )

    def clip_layouts(self, arguments: dict) -> list[ImageLayout]:
        """A raster per frame, from the size of the pixels [clips, frames, 3, H, W]."""
        clips, frames = arguments["pixel_values"].shape[:2]
        vision, stride = self.tower.config, self.model.config.spatial_pool_stride
        side = vision.image_size // vision.patch_size // stride
        return [clip(i * frames, frames, side, side, resampled="before") for i in range(clips)]

    def clip_arguments(self, images: Callable, frames: Sequence, fps: float) -> tuple[dict[str, Tensor], int]:
        """Each frame resized, cropped and normalized as the image processor does with the base crop of a picture, which
        is what the video processors of released models do."""
        pixels = _base_crops(images, frames)
        side, stride = self.tower.config.image_size, self.model.config.spatial_pool_stride
        if pixels.shape[-2:] != (side, side):
            raise UnsupportedError(
                f"the image processor gives frames of {pixels.shape[-2]} x {pixels.shape[-1]} pixels where the model "
                f"saw {side} x {side}; possible: pip install torchvision"
            )
        tokens = (side // self.tower.config.patch_size // stride) ** 2
        return {"pixel_values_videos": pixels[None]}, len(frames) * tokens

    def views(self, images: object, size: tuple[int, int], layout: ImageLayout) -> tuple[View, ...]:
        """LLaVA-NeXT's of an image; of a clip, the centre of each frame, see `resizing_of`."""
        if not layout.frames:
            return super().views(images, size, layout)
        (prepared, scale, shift), side = resizing_of(images, size), self.tower.config.image_size
        if prepared != (side, side):
            raise UnsupportedError(
                f"the video processor gives {prepared[0]} x {prepared[1]} pixels where the model saw {side} x {side}; "
                "possible: the processor that belongs to the model"
            )
        rows, columns = layout.tiles[0].grid
        every = torch.arange(rows * columns)
        shown = (
            boxes(every // columns, every % columns, (side / rows, side / columns)),
            torch.tensor([[0, 0, side, side]]),
        )
        cells, crops = (on_picture(x.double(), size, scale, shift) for x in shown)
        return tuple(View(f"frame {f}", tile.offsets, cells, crops) for f, tile in enumerate(layout.tiles))

    def by_tile(self, x: Tensor, images: list[ImageLayout], arguments: dict, lead: int = 0) -> list[list[Tensor]]:
        """Those of clips are pooled as the model pools the encoder's output."""
        if not any(image.frames for image in images):
            return super().by_tile(x, images, arguments, lead)
        side, stride = round((x.shape[1] - lead) ** 0.5), self.model.config.spatial_pool_stride
        maps = x[:, lead:].reshape(len(x), side, side, -1).permute(0, 3, 1, 2)
        pooled = F.avg_pool2d(maps, stride, stride).flatten(2).transpose(1, 2).reshape(len(x), -1, *x.shape[2:])
        frames = torch.cat([x[:, :lead], pooled], 1)
        return [[frames[tile.crop] for tile in image.tiles] for image in images]

    @classmethod
    def tiny(cls, **overrides) -> nn.Module:
        """As LLaVA-NeXT's; 3 x 3 tokens per frame."""
        from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

        options = {"image_seq_length": 36, "vision_feature_select_strategy": "default", "video_token_id": VIDEO}
        return cls.build(LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration, **{**options, **overrides})
