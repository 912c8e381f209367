"""LLaVA-NeXT: a base crop and unpadded tiles per image, with a newline token at the end of each canvas row."""

import math
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import nn

from vtc.core.layout import ImageLayout, Tile, View, boxes, even_view, on_picture
from vtc.core.signals import Encoder
from vtc.patches import FAMILIES
from vtc.patches._preset import Preset
from vtc.patches._tiny import BOS, EOS, IMAGE_TOKEN, PAD, TEXT, finish, prompts
from vtc.patches.llava import VICUNA_7B, Llava, clip_config, llama_config

TILINGS = [[24, 48], [48, 24], [48, 48]]
TOWER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 24,
    "patch_size": 4,
}  # fmt: skip


def _config(**text) -> object:
    from transformers import LlavaNextConfig

    tilings = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    return LlavaNextConfig(
        vision_config=clip_config(), text_config=llama_config(**text), image_token_id=text["vocab"] - 64,
        image_seq_length=576, image_grid_pinpoints=tilings, vision_feature_select_strategy="default",
        vision_feature_layer=-2,
    )  # fmt: skip


def _processor(config: object, tokenizer: object) -> object:
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    side = config.vision_config.image_size
    images = LlavaNextImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side},
        image_grid_pinpoints=config.image_grid_pinpoints,
    )  # fmt: skip
    return LlavaNextProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


@lru_cache(maxsize=256)
def anyres_tiles(size: tuple[int, int], tiles: tuple[int, int], side: int, unpad: bool = True, newline: bool = True):
    """Tokens and tiles of one image: base crop first, then the tiles' tokens in raster order of the stitched canvas.

    size: (height, width) of the picture in pixels. tiles: (rows, columns) of tiles. side: patches along a crop.
    unpad: remove the rows or columns of padding as the model does; newline: a token ends each canvas row.
    Returns (tokens, tuple of Tile with crops numbered from 0); newline tokens belong to no tile.
    """
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    every = torch.arange(side * side)
    all_tiles = [Tile(0, every, every, (side, side))]
    rows, columns = tiles
    canvas = torch.arange(rows * side * columns * side).view(1, rows * side, columns * side)
    canvas = (unpad_image(canvas, size) if unpad else canvas)[0]
    height, width = canvas.shape
    places = torch.arange(height)[:, None] * (width + newline) + torch.arange(width) + side * side
    y, x = canvas // (columns * side), canvas % (columns * side)
    tile, patch = y // side * columns + x // side, y % side * side + x % side
    for t in range(rows * columns):
        inside = tile == t
        down, across = inside.any(1).nonzero().flatten().tolist(), inside.any(0).nonzero().flatten().tolist()
        corner = (down[0], across[0]) if down and across else (0, 0)
        all_tiles.append(Tile(1 + t, places[inside], patch[inside], (len(down), len(across)), corner))
    return side * side + height * (width + newline), tuple(all_tiles)


def sizes_of(arguments: dict) -> list[tuple[int, int]]:
    """The (height, width) of each picture in `image_sizes`."""
    return [tuple(size) for size in torch.as_tensor(arguments["image_sizes"]).tolist()]


@FAMILIES.register("llava_next")
class LlavaNext(Llava):
    """LLaVA-NeXT / 1.6 (`llava_next`), anyres. Newline tokens mark rows of the full canvas; these rows no
    longer exist once tokens are dropped, so newlines are dropped too (as in the official HiPrune code).

    Source: `LlavaNextForConditionalGeneration` of transformers; no paper, its authors' blog of January 2024.
    """

    name = "llava_next"
    model_types = ("llava_next",)
    sizes = "image_sizes"
    served = "vtc.vllm.llava_next:VtcLlavaNextForConditionalGeneration"
    published = Encoder("llava_next", 24, True, tuple(range(24)), tiled=True, thumbnail=576, output=22)
    presets = {
        "llava-next-7b": Preset(
            partial(_config, **VICUNA_7B), 7_063_431_168, "LLaVA-NeXT (1.6) Vicuna 7B", _processor, side=672
        )
    }
    tiled = True

    def describe_encoder(self) -> Encoder:
        """Like LLaVA's, with several crops."""
        vision = self.tower.config
        return replace(
            super().describe_encoder(), tiled=self.tiled, thumbnail=(vision.image_size // vision.patch_size) ** 2
        )

    def tokens_per_image(self, vision) -> None:
        """Depends on the picture's size."""
        return None

    def image_layouts(self, arguments: dict) -> list[ImageLayout]:
        """Base and tiles of each image from `image_sizes` [images, 2] (height, width in pixels)."""
        layouts, crops = [], 0
        for size, count in zip(sizes_of(arguments), self.tile_counts(arguments), strict=True):
            layout = self.image_layout(size, count, arguments)
            layouts.append(replace(layout, tiles=tuple(replace(t, crop=crops + t.crop) for t in layout.tiles)))
            crops += count
        return layouts

    def tile_counts(self, arguments: dict) -> list[int]:
        """Crops of each image."""
        return [1 + math.prod(self.tiling(size)) for size in sizes_of(arguments)]

    def tiling(self, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of the tiles of a picture of this size."""
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

        pinpoints, side = self.model.config.image_grid_pinpoints, self.tower.config.image_size
        return tuple(get_anyres_image_grid_shape(size, pinpoints, side))

    def image_layout(self, size: tuple[int, int], count: int, arguments: dict) -> ImageLayout:
        """The layout of one image of `count` crops, numbered from 0."""
        side = self.tower.config.image_size // self.tower.config.patch_size
        return ImageLayout(*anyres_tiles(size, self.tiling(size), side))

    def token_count(self, size: tuple[int, int]) -> tuple[int, int]:
        """Tokens and crops of one image of this size."""
        count = 1 + math.prod(self.tiling(size))
        return self.image_layout(size, count, {}).tokens, count

    def views(self, images: object, size: tuple[int, int], layout: ImageLayout) -> tuple[View, ...]:
        """The base crop, stretched over the whole image, and the tiles, on whose canvas the image is centred."""
        base, *tiles = layout.tiles
        first = even_view("base", base.offsets, base.grid, size)
        if not tiles:
            return (first,)
        side, patch = self.tower.config.image_size, self.tower.config.patch_size
        columns, (scale, shift) = self.tiling(size)[1], self.on_canvas(size)
        tile_boxes, per = [], side // patch
        for tile in tiles:
            row, column = divmod(tile.crop - base.crop - 1, columns)
            tile_boxes.append(boxes(row * per + tile.patches // per, column * per + tile.patches % per, (patch, patch)))
        # Unpadding removes whole rows of tokens, even if they show a strip of the image.
        crops = torch.stack([torch.cat([x[:, :2].amin(0), x[:, 2:].amax(0)]) for x in tile_boxes if len(x)])
        offsets = torch.cat([tile.offsets for tile in tiles])
        placed = [on_picture(x, size, scale, shift) for x in (torch.cat(tile_boxes), crops)]
        return first, View("tiles", offsets, *placed)

    def on_canvas(self, size: tuple[int, int]) -> tuple[tuple[float, float], tuple[int, int]]:
        """The scale and shift (each vertical, horizontal) by which a picture lies on the canvas of its tiles."""
        side = self.tower.config.image_size
        canvas = tuple(n * side for n in self.tiling(size))
        down, across = canvas[0] / size[0], canvas[1] / size[1]
        if across < down:
            shown = min(math.ceil(size[0] * across), canvas[0]), canvas[1]
        else:
            shown = canvas[0], min(math.ceil(size[1] * down), canvas[1])
        scale = shown[0] / size[0], shown[1] / size[1]
        return scale, ((canvas[0] - shown[0]) // 2, (canvas[1] - shown[1]) // 2)

    def random_clip(self, frames: int, visual: int, generator: torch.Generator) -> tuple[list[int], dict]:
        """Frames of the tower's size: their number decides on the tokens. What ends a clip counts with its last one."""
        if self.video is None:
            return super().random_clip(frames, visual, generator)
        side = self.tower.config.image_size
        pixels = torch.randn(1, frames, 3, side, side, generator=generator)
        (layout,) = self.clip_layouts({"pixel_values": pixels})
        counts = [tile.tokens for tile in layout.tiles]
        counts[-1] += layout.tokens - sum(counts)
        return counts, {"pixel_values_videos": pixels}

    def random_pictures(self, visual: int, native: int | None, generator: torch.Generator) -> tuple[list[int], dict]:
        """Images of a size that fills one side of a tiling and part of the other; ties go to the fewest crops."""
        size = self.tower.config.image_size
        tilings = [tuple(tiling) for tiling in self.model.config.image_grid_pinpoints]
        images = -(-visual // max(self.token_count(tiling)[0] for tiling in tilings))
        step = max(1, size // 24)
        sizes = {(h, w) for h, w in tilings}
        sizes |= {(h, part) for h, w in tilings for part in range(step, w, step)}
        sizes |= {(part, w) for h, w in tilings for part in range(step, h, step)}
        counts = {s: self.token_count(s) for s in sizes}
        best = min((abs(tokens * images - visual), crops, s) for s, (tokens, crops) in counts.items())[2]
        tokens, crops = counts[best]
        pixels = torch.randn(images, crops, 3, size, size, generator=generator)
        return [tokens] * images, {"pixel_values": pixels, "image_sizes": torch.tensor([best] * images)}

    @classmethod
    def tiny(cls, **overrides) -> nn.Module:
        """4 encoder layers, 6 x 6 patches per crop, 2 x 2 and 1 x 2 tilings."""
        from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

        options = {"image_seq_length": 36, "vision_feature_select_strategy": "default", **overrides}
        return cls.build(LlavaNextConfig, LlavaNextForConditionalGeneration, **options)

    @classmethod
    def build(cls, config_class: type, model_class: type, **options) -> nn.Module:
        """The tiny model of these classes."""
        from transformers import CLIPVisionConfig, LlamaConfig

        vision = CLIPVisionConfig(**TOWER)
        torch.manual_seed(0)
        config = config_class(
            vision_config=vision, text_config=LlamaConfig(**TEXT, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD),
            image_token_id=IMAGE_TOKEN, image_grid_pinpoints=TILINGS, **options,
        )  # fmt: skip
        return finish(model_class(config))

    @classmethod
    def tiny_inputs(cls, model: nn.Module, images: tuple[int, ...] = (1, 2, 1), seed: int = 0, **kwargs) -> dict:
        """Random crops [images, tiles, 3, 24, 24] of pictures of four different sizes."""
        return cls.tiny_clips(model, tuple("i" * n for n in images), seed, **kwargs)

    @classmethod
    def tiny_clips(
        cls, model: nn.Module, media: tuple[str, ...] = ("ci", "c", "icc"), seed: int = 0, frames: int = 5, **kwargs
    ) -> dict:
        """The same with clips [clips, frames, 3, 24, 24]."""
        generator, family, pixels = torch.Generator().manual_seed(seed), cls(model), {}
        images = tuple(prompt.count("i") for prompt in media)
        parts: dict[str, list] = {"i": [], "c": []}
        if count := sum(images):
            sizes = torch.tensor([[(40, 44), (24, 48), (50, 20), (48, 33)][i % 4] for i in range(count)])
            given = {"image_sizes": sizes, **cls.more_inputs(images)}
            counts = family.tile_counts(given)
            crops = torch.zeros(count, max(counts), 3, 24, 24)
            for i, n in enumerate(counts):
                crops[i, :n] = torch.randn(n, 3, 24, 24, generator=generator)
            parts["i"] = [layout.tokens for layout in family.image_layouts(given)]
            pixels = {"pixel_values": crops, **given}
        if clips := "".join(media).count("c"):
            pixels["pixel_values_videos"] = torch.randn(clips, frames, 3, 24, 24, generator=generator)
            layouts = family.clip_layouts({"pixel_values": pixels["pixel_values_videos"]})
            parts["c"] = [family.clip_ids([layout.tokens]) for layout in layouts]
        rest = {kind: iter(values) for kind, values in parts.items()}
        return {**prompts([[next(rest[kind]) for kind in prompt] for prompt in media], seed, **kwargs), **pixels}

    @staticmethod
    def more_inputs(images: tuple[int, ...]) -> dict:
        """What else the model is told about pictures. images: of each prompt."""
        return {}
