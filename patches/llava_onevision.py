"""LLaVA-OneVision: LLaVA-NeXT's crops with a SigLIP tower; large pictures and clips are resampled to fewer tokens."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.core.layout import ImageLayout, Tile, View, boxes, clip, even_view, on_picture, raster
from vtc.core.signals import Encoder
from vtc.patches import FAMILIES
from vtc.patches._preset import Preset
from vtc.patches._tiny import BOS, EOS, IMAGE_TOKEN, PAD, TEXT, finish
from vtc.patches.llava_next import TILINGS, TOWER, LlavaNext, sizes_of

VIDEO = 123


def _config() -> object:
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=26, num_attention_heads=16, image_size=384,
        patch_size=14, vision_use_head=False,
    )  # fmt: skip
    text = Qwen2Config(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        vocab_size=152064, max_position_embeddings=32768, bos_token_id=151643, eos_token_id=151645,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )  # fmt: skip
    sides = range(384, 2305, 384)
    return LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_token_index=151646, video_token_index=151647,
        image_grid_pinpoints=[[h, w] for h in sides for w in sides], vision_feature_select_strategy="full",
        vision_feature_layer=-1, vision_aspect_ratio="anyres_max_9", tie_word_embeddings=False,
    )  # fmt: skip


@FAMILIES.register("llava_onevision")
class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision (`llava_onevision`). Where the canvas of the tiles has too many tokens, and in every frame of a
    clip, the model resamples the projector's output; signals are resampled alike. Such a canvas is one tile. Methods
    that merge the projector's input merge the embeddings instead there, since these tokens have no such input. Of
    several pictures in a prompt (`batch_num_images`) each is a base crop alone.

    Source: `LlavaOnevisionForConditionalGeneration` of transformers; "LLaVA-OneVision: Easy Visual Task Transfer",
    arXiv 2408.03326.
    """

    name = "llava_onevision"
    model_types = ("llava_onevision",)
    may_have_cls = False
    towers = ("siglip_vision_model",)
    video = {"pixel_values_videos": "pixel_values"}
    clip_end = 1
    follows = "llava_next"
    published = Encoder("llava_onevision", 26, False, tuple(range(26)), tiled=True, thumbnail=729, output=25)
    presets = {"llava-onevision-7b": Preset(_config, 8_030_348_832, "LLaVA-OneVision Qwen2-7B")}

    @property
    def side(self) -> int:
        """Patches along the side of a crop."""
        return self.tower.config.image_size // self.tower.config.patch_size

    def tile_counts(self, arguments: dict) -> list[int]:
        """Several crops only for the pictures that are alone in their prompt."""
        counts, given = super().tile_counts(arguments), arguments.get("batch_num_images")
        if given is None:
            return counts
        alone = [n == 1 for n in torch.as_tensor(given).tolist() for _ in range(n)]
        return [count if single else 1 for count, single in zip(counts, alone, strict=True)]

    def canvas(self, size: tuple[int, int], arguments: dict) -> tuple[tuple[int, int], tuple[int, int]]:
        """(rows, columns) of patches on the canvas of a picture's tiles without padding, and of the tokens that are
        made of them."""
        from transformers.models.llava_onevision.modeling_llava_onevision import unpad_image

        rows, columns = (n * self.side for n in self.tiling(size))
        high, wide = unpad_image(torch.empty(1, rows, columns, device="meta"), size).shape[1:]
        most = arguments.get("vision_aspect_ratio") or self.model.config.vision_aspect_ratio
        ratio = math.sqrt(high * wide / (int(most.removeprefix("anyres_max_")) * self.side**2))
        return (high, wide), (int(high // ratio), int(wide // ratio)) if ratio > 1.1 else (high, wide)

    def image_layout(self, size: tuple[int, int], count: int, arguments: dict) -> ImageLayout:
        """A base crop and tiles, or a base crop and a resampled canvas; the base crop alone has one newline."""
        base = raster(0, self.side, self.side)
        if count == 1:
            return replace(base, tokens=base.tokens + 1)
        patches, (high, wide) = self.canvas(size, arguments)
        if (high, wide) == patches:
            return super().image_layout(size, count, arguments)
        offsets = torch.arange(high)[:, None] * (wide + 1) + torch.arange(wide) + base.tokens
        tile = Tile(1, offsets.flatten(), torch.arange(high * wide), (high, wide))
        return ImageLayout(base.tokens + high * (wide + 1), (*base.tiles, tile), resampled="after")

    def token_count(self, size: tuple[int, int]) -> tuple[int, int]:
        """Tokens and crops of one image of this size."""
        high, wide = self.canvas(size, {})[1]
        return self.side**2 + high * (wide + 1), 1 + math.prod(self.tiling(size))

    def clip_layouts(self, arguments: dict) -> list[ImageLayout]:
        """A raster per frame and one newline, from the size of the pixels [clips, frames, 3, H, W]."""
        (clips, frames), side = arguments["pixel_values"].shape[:2], -(-self.side // 2)
        layouts = [clip(i * frames, frames, side, side, resampled="after") for i in range(clips)]
        return [replace(layout, tokens=layout.tokens + self.clip_end) for layout in layouts]

    def crop_counts(self, images: list[ImageLayout], arguments: dict) -> list[int]:
        """Crops of each image, or frames of each clip."""
        clips = any(image.frames for image in images)
        return super().crop_counts(images, arguments) if clips else self.tile_counts(arguments)

    def by_tile(self, x: Tensor, images: list[ImageLayout], arguments: dict, lead: int = 0) -> list[list[Tensor]]:
        """Those of resampled tokens are resampled as the model resamples the projector's output."""
        per_image, sizes = [], None
        for i, image in enumerate(images):
            if image.frames:
                frames = [x[tile.crop].reshape(1, self.side, self.side, -1).permute(0, 3, 1, 2) for tile in image.tiles]
                per_image.append(self._resampled(torch.cat(frames), image.tiles[0].grid, x.shape[2:]))
            elif image.resampled:
                sizes = sizes_of(arguments) if sizes is None else sizes
                base, whole = image.tiles
                canvas = self._stitched(x[base.crop + 1 :], sizes[i])
                per_image.append([x[base.crop], *self._resampled(canvas, whole.grid, x.shape[2:])])
            else:
                per_image += super().by_tile(x, [image], arguments, lead)
        return per_image

    def _stitched(self, crops: Tensor, size: tuple[int, int]) -> Tensor:
        """The canvas [1, e, rows, columns], without padding, of the tiles that come first in crops [c, N, ...]."""
        from transformers.models.llava_onevision.modeling_llava_onevision import unpad_image

        rows, columns = self.tiling(size)
        maps = crops[: rows * columns].reshape(rows, columns, self.side, self.side, -1)
        return unpad_image(maps.permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3), size).unsqueeze(0)

    @staticmethod
    def _resampled(maps: Tensor, grid: tuple[int, int], trailing: tuple[int, ...]) -> list[Tensor]:
        """Maps [n, e, rows, columns] on another grid, each as rows [tokens, *trailing]."""
        new = F.interpolate(maps.contiguous(), list(grid), mode="bilinear")
        return [rows.reshape(-1, *trailing) for rows in new.flatten(2).transpose(1, 2)]

    def views(self, images: object, size: tuple[int, int], layout: ImageLayout) -> tuple[View, ...]:
        """The base crop, stretched over the whole image (alone: the image is centred in it), and the tiles' canvas; of
        a clip, each frame, stretched."""
        if layout.frames:
            return tuple(even_view(f"frame {f}", t.offsets, t.grid, size) for f, t in enumerate(layout.tiles))
        base, *tiles = layout.tiles
        patch, side, n = self.tower.config.patch_size, self.tower.config.image_size, self.side
        scale, shift = (side / size[0], side / size[1]), (0.0, 0.0)
        if not tiles:
            scale = (side / max(size),) * 2
            shift = tuple((max(size) - own) // 2 * by for own, by in zip(size, scale, strict=True))
        cells = boxes(base.patches // n, base.patches % n, (patch, patch))
        views = [self._view("base", base.offsets, [cells], size, scale, shift)]
        if not tiles:
            return tuple(views)
        (rows, columns), (scale, shift) = self.tiling(size), self.on_canvas(size)
        if layout.resampled:
            (high, wide), (tile,) = self.canvas(size, {})[0], tiles
            every, cell = torch.arange(tile.tokens), (high * side / n / tile.grid[0], wide * side / n / tile.grid[1])
            corner = ((rows * n - high) // 2 * side / n, (columns * n - wide) // 2 * side / n)
            cells = [boxes(every // tile.grid[1], every % tile.grid[1], cell) + torch.tensor(corner[::-1] * 2)]
        else:
            cells = []
            for tile in tiles:
                row, column = divmod(tile.crop - base.crop - 1, columns)
                inside = boxes(tile.patches // n, tile.patches % n, (patch, patch))
                cells.append(inside + torch.tensor([column * side, row * side] * 2))
        offsets = torch.cat([tile.offsets for tile in tiles])
        return *views, self._view("tiles", offsets, cells, size, scale, shift)

    @staticmethod
    def _view(name: str, offsets: Tensor, cells: list[Tensor], size, scale, shift) -> View:
        crops = torch.stack([torch.cat([x[:, :2].amin(0), x[:, 2:].amax(0)]) for x in cells if len(x)])
        return View(name, offsets, *(on_picture(x, size, scale, shift) for x in (torch.cat(cells), crops)))

    @classmethod
    def tiny(cls, **overrides) -> nn.Module:
        """4 encoder layers, 6 x 6 patches per crop, 3 x 3 tokens per frame; a Qwen2 text model."""
        from transformers import (
            LlavaOnevisionConfig,
            LlavaOnevisionForConditionalGeneration,
            Qwen2Config,
            SiglipVisionConfig,
        )

        torch.manual_seed(0)
        config = LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(**TOWER, vision_use_head=False),
            text_config=Qwen2Config(**TEXT, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD),
            image_token_id=IMAGE_TOKEN, video_token_id=VIDEO, image_grid_pinpoints=TILINGS, **overrides,
        )  # fmt: skip
        return finish(LlavaOnevisionForConditionalGeneration(config))

    @staticmethod
    def more_inputs(images: tuple[int, ...]) -> dict:
        """The pictures of each prompt."""
        return {"batch_num_images": torch.tensor([n for n in images if n])}
