"""Qwen2-VL: dynamic resolution, 2 x 2 patch merge, M-RoPE; images packed into one sequence of the encoder."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import accumulate

import torch
from torch import Tensor, nn

from vtc.core.errors import UnsupportedError
from vtc.core.hooks import Patchwork
from vtc.core.layout import ImageLayout, View, clip, even_view, raster
from vtc.core.signals import Encoder
from vtc.kernels.transfer import upload
from vtc.patches import FAMILIES
from vtc.patches._clips import clip_arguments
from vtc.patches._encoder import EncoderSite, Units
from vtc.patches._family import Family
from vtc.patches._preset import Preset
from vtc.patches._tiny import BOS, EOS, IMAGE_TOKEN, PAD, TEXT, finish
from vtc.patches._tiny_qwen import END, START, VIDEO, tiny_patches

PICTURE = 672  # pixels along a picture that a preset is served with: 24 x 24 visual tokens, as LLaVA has
ROPE = {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}

QWEN_3B = dict(hidden=2048, mlp=11008, layers=36, heads=16, kv_heads=2, vocab=151936)
QWEN_7B = dict(hidden=3584, mlp=18944, layers=28, heads=28, kv_heads=4, vocab=152064)
BY_FRAME = ("qwen2_vl", "qwen2_5_vl")  # types whose video processor resizes each frame by the rule for pictures
PUBLISHED_IDS = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652,
                 "vision_end_token_id": 151653}  # fmt: skip


def text_sizes(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vocab: int) -> dict:
    """The text model's part of a published config."""
    rope = {"type": "mrope", "rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0}
    return dict(
        hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocab, max_position_embeddings=32768, rope_parameters=rope,
        rms_norm_eps=1e-6, bos_token_id=151643, eos_token_id=151645,
    )  # fmt: skip


def _processor(kind: str, config: object, tokenizer: object) -> object:
    """The processor of class `kind` for a config and pictures of at most PICTURE x PICTURE pixels. Raises
    UnsupportedError without torchvision, which the video part of the class needs."""
    import transformers

    if find_spec("torchvision") is None:
        raise UnsupportedError(
            f"{kind} needs torchvision for its video part, and it is not installed; possible: pip install torchvision"
        )
    vision = config.vision_config
    sizes = dict(
        patch_size=vision.patch_size, merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        size={"shortest_edge": 56 * 56, "longest_edge": PICTURE * PICTURE},
    )  # fmt: skip
    return getattr(transformers, kind)(
        transformers.Qwen2VLImageProcessor(**sizes), tokenizer, transformers.Qwen2VLVideoProcessor(**sizes)
    )


def _config(**text) -> object:
    from transformers import Qwen2VLConfig

    vision = dict(depth=32, embed_dim=1280, hidden_size=text["hidden"], num_heads=16, mlp_ratio=4, patch_size=14)
    return Qwen2VLConfig(
        vision_config=vision, text_config=text_sizes(**text), tie_word_embeddings=False, **PUBLISHED_IDS
    )


def preset(kind: str, config: Callable[[], object], parameters: int, description: str) -> Preset:
    """A preset with a processor of class `kind`."""
    return Preset(config, parameters, description, partial(_processor, kind), PICTURE)


@FAMILIES.register("qwen2_vl")
class Qwen2VL(Family):
    """Qwen2-VL (`qwen2_vl`). No [CLS]; a visual token is a block of spatial_merge_size^2 patches, which the encoder
    keeps next to each other; a token's score is the mean of its patches' scores.

    Source: `Qwen2VLForConditionalGeneration` of transformers; "Qwen2-VL: Enhancing Vision-Language Model's Perception
    of the World at Any Resolution", arXiv 2409.12191.
    """

    name = "qwen2_vl"
    model_types = ("qwen2_vl",)
    mrope = True
    sizes = "image_grid_thw"
    marks = ("vision_start_token_id", "vision_end_token_id")
    video = {"pixel_values_videos": "pixel_values", "video_grid_thw": "image_grid_thw"}
    follows = "qwen2_5_vl"
    served = "vtc.vllm.qwen2_vl:VtcQwen2VLForConditionalGeneration"
    published = Encoder("qwen2_vl", 32, False, tuple(range(32)), cell=4)
    presets = {"qwen2-vl-7b": preset("Qwen2VLProcessor", partial(_config, **QWEN_7B), 8_291_375_616, "Qwen2-VL-7B")}
    tower_path = "model.visual"
    attention_path = r"blocks\.(\d+)\.attn"

    def describe_encoder(self) -> Encoder:
        """Every layer is global."""
        depth = len(self.attention)
        return Encoder(self.name, depth, False, tuple(range(depth)), cell=self.tower.config.spatial_merge_size**2)

    def encoder_site(self) -> EncoderSite:
        """The blocks of the tower."""
        return EncoderSite(self, self.blocks, self.tower.merger, ("norm2", "mlp"), packed=True)

    def units(self, images: list[ImageLayout]) -> Units:
        """Whole images, and the frames of clips."""
        tiles = [(tile.tokens, i) for i, image in enumerate(images) for tile in image.tiles]
        return Units([tokens for tokens, _ in tiles], [i for _, i in tiles])

    def sources(self, images: list[ImageLayout], arguments: dict) -> list[list[tuple[int, Tensor | None]]]:
        """The places of the raster's tokens in the encoder's sequence of their image or frame."""
        order, places, start, unit = self.token_order(arguments), [], 0, 0
        for image in images:
            places.append([])
            for tile in image.tiles:
                places[-1].append((unit, None if order is None else order[start : start + tile.tokens] - start))
                start, unit = start + tile.tokens, unit + 1
        return places

    def grids(self, arguments: dict) -> list[tuple[int, int]]:
        """(rows, columns) of merged tokens of each image; several frames are stacked vertically."""
        merge = self.tower.config.spatial_merge_size
        return [(t * h // merge, w // merge) for t, h, w in torch.as_tensor(arguments["image_grid_thw"]).tolist()]

    def clip_layouts(self, arguments: dict) -> list[ImageLayout]:
        """A raster per pair of frames (what the encoder joins to one)."""
        merge, clips, first = self.tower.config.spatial_merge_size, [], 0
        for t, h, w in torch.as_tensor(arguments["image_grid_thw"]).tolist():
            clips.append(clip(first, t, h // merge, w // merge))
            first += t
        return clips

    def clip_arguments(self, images: Callable, frames: Sequence, fps: float) -> tuple[dict[str, Tensor], int]:
        """Pairs of frames side by side in each patch, where the video processor resizes each frame by itself, too."""
        if self.model.config.model_type not in BY_FRAME:
            return super().clip_arguments(images, frames, fps)
        return clip_arguments(self.model, images, frames, fps)

    def image_layouts(self, arguments: dict) -> list[ImageLayout]:
        """One full raster of merged tokens per image, from `image_grid_thw` [images, 3] (patches)."""
        return [raster(i, *grid) for i, grid in enumerate(self.grids(arguments))]

    def views(self, images: object, size: tuple[int, int], layout: ImageLayout) -> tuple[View, ...]:
        """The whole image, or each frame of a clip, stretched to whole tokens, in one even raster."""
        if layout.frames:
            return tuple(even_view(f"frame {f}", t.offsets, t.grid, size) for f, t in enumerate(layout.tiles))
        (tile,) = layout.tiles
        return (even_view("picture", tile.offsets, tile.grid, size),)

    def random_pictures(self, visual: int, native: int | None, generator: torch.Generator) -> tuple[list[int], dict]:
        """One image of rows x columns merged tokens, as close to square as the number allows (at most 1 : 2)."""
        tokens, pixels, grid = self._random(1, visual, generator)
        return [tokens], {"pixel_values": pixels, "image_grid_thw": grid}

    def random_clip(self, frames: int, visual: int, generator: torch.Generator) -> tuple[list[int], dict]:
        """Frames of this kind, each made of `temporal_patch_size` pictures."""
        joined = -(-frames // self.tower.config.temporal_patch_size)
        tokens, pixels, grid = self._random(joined, max(1, round(visual / joined)), generator)
        return [tokens] * joined, {"pixel_values_videos": pixels, "video_grid_thw": grid}

    def _random(self, frames: int, visual: int, generator: torch.Generator) -> tuple[int, Tensor, Tensor]:
        shapes = [(r, round(visual / r)) for r in range(max(1, int((visual / 2) ** 0.5)), int(visual**0.5) + 1)]
        rows, columns = min(shapes, key=lambda shape: (abs(shape[0] * shape[1] - visual), shape[1] - shape[0]))
        vision = self.tower.config
        merge = vision.spatial_merge_size
        width = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.randn(frames * rows * columns * merge**2, width, generator=generator)
        return rows * columns, pixels, torch.tensor([[frames, rows * merge, columns * merge]])

    def token_side(self) -> int:
        """Side of a block of patches that are merged into one token."""
        return self.tower.config.patch_size * self.tower.config.spatial_merge_size

    def packed_bounds(self, arguments: dict) -> list[int]:
        """One sequence of patches per frame."""
        frames = [h * w for t, h, w in torch.as_tensor(arguments["image_grid_thw"]).tolist() for _ in range(t)]
        return [0, *accumulate(frames)]

    def token_order(self, arguments: dict) -> Tensor | None:
        """Places of the raster's tokens in the encoder's sequence; None when it is the raster itself."""
        return None

    def tile_scores(self, captured: list[Tensor], images: list[ImageLayout], arguments: dict) -> list[list[Tensor]]:
        """captured: [1, patches, ...] per call, together all patches; mean over each merge block, then raster order."""
        merge = self.tower.config.spatial_merge_size**2
        scores = merged_scores(torch.cat([c[0] for c in captured]), merge, self.token_order(arguments))
        return by_tile(scores, images)

    def pixel_scores(self, arguments: dict, images: list[ImageLayout], score: Callable) -> list[list[Tensor]]:
        """pixel_values [patches, 3 * frames * p * p], the patches of a merged token next to each other."""
        pixels, merge = arguments["pixel_values"], self.tower.config.spatial_merge_size**2
        tokens = pixels.view(-1, merge, 3, pixels.shape[1] // 3).transpose(1, 2).flatten(2)
        return [[score(part) for part in parts] for parts in by_tile(tokens, images)]

    def observe_unprojected(self, patchwork: Patchwork, record: Callable) -> None:
        """Records the input of the patch merger."""
        patchwork.pre_hook(self.tower.merger, lambda module, args, kwargs: record(args[0]))

    def unprojected(self, captured: list, images: list[ImageLayout], arguments: dict) -> list[list[Tensor]]:
        """The patches of each merged token side by side, in raster order."""
        blocks = torch.cat(captured).reshape(-1, self.tower.config.spatial_merge_size**2 * captured[0].shape[-1])
        order = self.token_order(arguments)
        blocks = blocks if order is None else blocks[upload(order, blocks.device)]
        return by_tile(blocks, images)

    def encoder_features(self, tokens: Tensor) -> Tensor:
        """The mean of each token's patches."""
        return tokens.unflatten(1, (self.tower.config.spatial_merge_size**2, -1)).mean(1)

    def project(self, tokens: Tensor) -> Tensor:
        """The patch merger."""
        return self.tower.merger(tokens.reshape(-1, tokens.shape[-1] // self.tower.config.spatial_merge_size**2))

    @staticmethod
    def vision_sizes() -> dict:
        """Sizes of the tiny encoder."""
        return {
            "depth": 4,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
            "temporal_patch_size": 2,
        }

    @staticmethod
    def text_sizes() -> dict:
        """Sizes of the tiny text model."""
        return dict(TEXT, rope_parameters=dict(ROPE), bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)

    @classmethod
    def tiny(cls, **overrides) -> nn.Module:
        """4 encoder layers of 2 heads, 3 decoder layers with GQA."""
        from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

        return cls.build(Qwen2VLConfig, Qwen2VLForConditionalGeneration, **overrides)

    @classmethod
    def build(cls, config_class: type, model_class: type, **overrides) -> nn.Module:
        """The tiny model of these classes."""
        torch.manual_seed(0)
        config = config_class(
            vision_config=cls.vision_sizes(), text_config=cls.text_sizes(), image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END, **overrides,
        )  # fmt: skip
        return finish(model_class(config))

    @classmethod
    def tiny_inputs(cls, model: nn.Module, images: tuple[int, ...] = (1, 2, 1), seed: int = 0, **kwargs) -> dict:
        """Random patches of images of four different grids, with `mm_token_type_ids` where transformers takes it."""
        return cls.tiny_clips(model, tuple("i" * n for n in images), seed, **kwargs)

    @classmethod
    def tiny_clips(cls, model: nn.Module, media: tuple[str, ...] = ("ci", "c", "icc"), seed: int = 0, **kwargs) -> dict:
        """The same with clips of 2 and 3 frames of different grids."""
        return tiny_patches(model, media, seed, cls.tiny_clip, **kwargs)

    @staticmethod
    def tiny_clip(frames: int, each: int) -> list[int]:
        """The ids of a clip of so many (pairs of) frames with `each` tokens."""
        return [START, *[VIDEO] * (frames * each), END]


def by_tile(x: Tensor, images: list[ImageLayout]) -> list[list[Tensor]]:
    """Rows [tokens of all images, ...], one tile after another, sorted to images and tiles."""
    parts = iter(x.split([tile.tokens for image in images for tile in image.tiles]))
    return [[next(parts) for _ in image.tiles] for image in images]


def merged_scores(scores: Tensor, block: int, order: Tensor | None) -> Tensor:
    """Scores of patches [block * n, ...], in the encoder's order, as scores of merged tokens [n, ...] in raster order.

    block: patches merged into a token (next to each other). order [n]: the place of each raster token, or None.
    """
    merged = scores.unflatten(0, (-1, block)).mean(1)
    return merged if order is None else merged[upload(order, merged.device)]
