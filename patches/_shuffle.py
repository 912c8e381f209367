"""Families whose projector joins square blocks of a crop's patches (pixel shuffle), and whose images are several crops.

Only the prompt shows which crops form an image (`Family.groups_crops`).
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from vtc.core.errors import UnsupportedError
from vtc.core.hooks import Patchwork
from vtc.core.layout import ImageLayout, View, even_view, raster
from vtc.core.signals import Encoder
from vtc.kernels.transfer import upload
from vtc.patches._encoder import EncoderSite, Units
from vtc.patches._family import Family


@lru_cache(maxsize=64)
def block_order(rows: int, columns: int, side: int) -> Tensor:
    """The patches of a crop [rows * columns], block after block of side x side, both in raster order."""
    every = torch.arange(rows * columns).view(rows // side, side, columns // side, side)
    return every.transpose(1, 2).flatten()


def arrangement(tiles: int) -> tuple[int, int]:
    """(rows, columns) of so many tiles, as close to square as the number allows."""
    rows = max(n for n in range(1, tiles + 1) if tiles % n == 0 and n * n <= tiles)
    return rows, tiles // rows


class Shuffled(Family):
    """The common part of these families. most_crops: of an image, the one that shows all of it included."""

    tiled = True
    groups_crops = True
    most_crops = 17
    refuses = {"encoder": "its projector joins patches that are not neighbours in the encoder's sequence"}

    def sides(self) -> tuple[int, int, int]:
        """Sides of a crop in pixels and of a patch in pixels, and of a block in patches."""
        raise NotImplementedError(f"{type(self).__name__} does not state its sides")

    def crops(self, arguments: dict) -> Tensor:
        """The pixels of the crops that the encoder runs on [crops, 3, H, W]."""
        return arguments["pixel_values"]

    def describe_encoder(self) -> Encoder:
        """Every layer is global; an image has several crops of equal size."""
        depth, (size, patch, block) = len(self.attention), self.sides()
        tokens = (size // patch // block) ** 2
        return Encoder(self.name, depth, self.may_have_cls, tuple(range(depth)), tiled=True, thumbnail=tokens)

    def encoder_site(self) -> EncoderSite:
        """Refused."""
        raise UnsupportedError(
            f"tokens cannot be dropped inside the encoder of {self.name}: {self.refuses['encoder']}; possible: a stage "
            "at the projector or in the language model (`vtc list`)"
        )

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """(rows, columns) of the tokens of a crop. pixels [..., H, W]. Raises UnsupportedError for crops that are not
        square, of which the model would mix up the rows."""
        high, wide = pixels.shape[-2:]
        _, patch, block = self.sides()
        if high != wide or high // patch % block:
            raise UnsupportedError(
                f"crops of {high} x {wide} pixels cannot be joined in blocks of {block} x {block} patches; possible: "
                f"squares whose side is a multiple of {patch * block} pixels"
            )
        return high // patch // block, wide // patch // block

    def image_layouts(self, arguments: dict) -> list[ImageLayout]:
        """One full raster of tokens per crop."""
        pixels = self.crops(arguments)
        return [raster(i, *self.grid(pixels)) for i in range(len(pixels))]

    def views(self, images: object, size: tuple[int, int], layout: ImageLayout) -> tuple[View, ...]:
        """The crop that shows the whole image, and the tiles, which divide it evenly; both are stretched."""
        base, *tiles = layout.tiles
        first = even_view("base" if tiles else "picture", base.offsets, base.grid, size)
        if not tiles:
            return (first,)
        columns, (high, wide) = self.columns(images, size, layout), base.grid
        rows, wide_all = len(tiles) // columns, columns * wide
        every = torch.arange(rows * high * wide_all).view(rows, high, columns, wide).transpose(1, 2).flatten()
        cells = even_view("tiles", torch.cat([tile.offsets for tile in tiles]), (rows * high, wide_all), size)
        boxes = cells.boxes[every]
        parts = boxes.view(len(tiles), -1, 4)
        crops = torch.cat([parts[..., :2].amin(1), parts[..., 2:].amax(1)], 1)
        return first, View("tiles", cells.offsets, boxes, crops)

    def columns(self, images: object, size: tuple[int, int], layout: ImageLayout) -> int:
        """How many tiles of an image stand in a row. images, size, layout: see `views`."""
        raise NotImplementedError(f"{type(self).__name__} does not state how tiles are arranged")

    def units(self, images: list[ImageLayout]) -> Units:
        """The crops."""
        return Units([tile.tokens for image in images for tile in image.tiles], list(range(len(images))))

    def sources(self, images: list[ImageLayout], arguments: dict) -> list[list[tuple[int, Tensor | None]]]:
        """Each crop its own."""
        return [[(tile.crop, None) for tile in image.tiles] for image in images]

    def in_blocks(self, patches: Tensor, arguments: dict) -> Tensor:
        """Patches [crops, N, ...] in the encoder's order as tokens [crops, n, block * block, ...]."""
        _, _, block = self.sides()
        rows, columns = self.grid(arguments["pixel_values"])
        order = upload(block_order(rows * block, columns * block, block), patches.device)
        return patches[:, order].unflatten(1, (-1, block * block))

    def tile_scores(self, captured: list[Tensor], images: list[ImageLayout], arguments: dict) -> list[list[Tensor]]:
        """captured: [crops, N, ...] per call; the mean over the patches of each token."""
        scores = self.in_blocks(torch.cat(captured), arguments).mean(2)
        return [[scores[tile.crop] for tile in image.tiles] for image in images]

    def pixel_scores(self, arguments: dict, images: list[ImageLayout], score: Callable) -> list[list[Tensor]]:
        """All pixels of a token's patches."""
        pixels, (_, patch, _) = self.crops(arguments), self.sides()
        patches = pixels.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5)
        tokens = self.in_blocks(patches.reshape(len(pixels), -1, 3, patch**2), arguments).transpose(2, 3).flatten(3)
        return [[score(tokens[tile.crop]) for tile in image.tiles] for image in images]

    def observe_unprojected(self, patchwork: Patchwork, record: Callable) -> None:
        """Records the tower's output."""
        patchwork.post_hook(self.tower, lambda module, args, kwargs, output: record(output))

    def hidden(self, output: object, arguments: dict) -> Tensor:
        """The hidden states [crops, N, D] that the projector receives, of an output of the tower."""
        return output.last_hidden_state

    def unprojected(self, captured: list, images: list[ImageLayout], arguments: dict) -> list[list[Tensor]]:
        """The patches of each token side by side; [CLS], which has no neighbours, repeated to the same width."""
        hidden, lead = torch.cat([self.hidden(x, arguments) for x in captured]), int(self.encoder.has_cls)
        tokens = self.in_blocks(hidden[:, lead:], arguments).flatten(2)
        first = hidden[:, :lead].repeat(1, 1, tokens.shape[2] // hidden.shape[2])
        rows = torch.cat([first, tokens], 1)
        return [[rows[tile.crop] for tile in image.tiles] for image in images]

    def encoder_features(self, tokens: Tensor) -> Tensor:
        """The mean of each token's patches."""
        _, _, block = self.sides()
        return tokens[int(self.encoder.has_cls) :].unflatten(1, (block * block, -1)).mean(1)

    def random_images(self, visual: int, generator: torch.Generator) -> tuple[list[int], Tensor]:
        """Random images with about `visual` tokens: the crops of each (never two: a tile alone has no other crop beside
        it), and the pixels of all crops."""
        size, patch, block = self.sides()
        crops = max(1, round(visual / (size // patch // block) ** 2))
        images = -(-crops // self.most_crops)
        counts = [crops // images + (i < crops % images) for i in range(images)]
        counts = [n for count in counts for n in ([1, 1] if count == 2 else [count])]
        return counts, torch.randn(sum(counts), 3, size, size, generator=generator)


def same_size(model: nn.Module, sides: tuple[int, int]) -> int:
    """The side of a square, given as a pair in some configs. Raises UnsupportedError for other shapes."""
    high, wide = sides if isinstance(sides, (list, tuple)) else (sides, sides)
    if high != wide:
        raise UnsupportedError(
            f"crops or patches of {high} x {wide} pixels in {type(model).__name__} are not supported; possible: squares"
        )
    return int(high)
