"""Mistral 3: a Pixtral tower that packs all images into one sequence, 2 x 2 patch merge, dynamic resolution."""

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor, nn

from vtc.core.errors import UnsupportedError
from vtc.core.hooks import Patchwork
from vtc.core.layout import ImageLayout, View, even_view, raster
from vtc.core.signals import Encoder
from vtc.patches import FAMILIES
from vtc.patches._encoder import EncoderSite, Units
from vtc.patches._family import Family
from vtc.patches._tiny import BOS, EOS, IMAGE_TOKEN, PAD, TEXT, finish, prompts

BREAK, END = 121, 122
HELD_BACK = (
    "tokens cannot be dropped inside a Pixtral tower, whose images one mask keeps apart and whose projector merges "
    "patches by the image's size; possible: a stage at the projector or in the language model"
)


@FAMILIES.register("mistral3")
class Mistral3(Family):
    """Mistral 3 (`mistral3`). No [CLS]; a token is a square of spatial_merge_size^2 patches, its score is their mean.
    Rows end with tokens of another id, which stay. The projector's input is, for stages that merge or read it, what
    its patch merger gives: one vector for each visual token, which the MLP then maps.

    Source: `Mistral3ForConditionalGeneration` of transformers; its tower is that of "Pixtral 12B",
    arXiv 2410.07073.
    """

    name = "mistral3"
    refuses = {"encoder": "one mask keeps its images apart, and its projector merges patches by the image's size"}
    model_types = ("mistral3",)
    towers = ("pixtral",)
    sizes = "image_sizes"
    tower_path = "model.vision_tower"
    attention_path = r"transformer\.layers\.(\d+)\.attention"
    published = Encoder("mistral3", 24, False, tuple(range(24)))

    def describe_encoder(self) -> Encoder:
        """Every layer is global."""
        depth, read = len(self.attention), self.model.config.vision_feature_layer
        output = None if not isinstance(read, int) else depth + read if read < 0 else read - 1
        return Encoder(self.name, depth, False, tuple(range(depth)), output=output)

    def encoder_site(self) -> EncoderSite:
        """Always refused."""
        raise UnsupportedError(HELD_BACK)

    def units(self, images: list[ImageLayout]) -> Units:
        """Always refused."""
        raise UnsupportedError(HELD_BACK)

    def sources(self, images: list[ImageLayout], arguments: dict) -> list[list[tuple[int, Tensor | None]]]:
        """Always refused."""
        raise UnsupportedError(HELD_BACK)

    def patch_grids(self, arguments: dict) -> list[tuple[int, int]]:
        """(rows, columns) of patches of each image, from `image_sizes` [images, 2] (height, width in pixels)."""
        patch = self.tower.config.patch_size
        return [(h // patch, w // patch) for h, w in torch.as_tensor(arguments["image_sizes"]).tolist()]

    def image_layouts(self, arguments: dict) -> list[ImageLayout]:
        """One full raster of merged tokens per image."""
        merge = self.model.config.spatial_merge_size
        return [raster(i, h // merge, w // merge) for i, (h, w) in enumerate(self.patch_grids(arguments))]

    def packed_bounds(self, arguments: dict) -> list[int]:
        """One sequence of patches per image."""
        return [0, *accumulate(h * w for h, w in self.patch_grids(arguments))]

    def tile_scores(self, captured: list[Tensor], images: list[ImageLayout], arguments: dict) -> list[list[Tensor]]:
        """captured: [1, patches of all images, ...]; mean over the patches of each token."""
        grids, merge = self.patch_grids(arguments), self.model.config.spatial_merge_size
        per_image = []
        for x, (high, wide), image in zip(captured[0][0].split([h * w for h, w in grids]), grids, images, strict=True):
            rows, columns = image.tiles[0].grid
            whole = x.view(high, wide, *x.shape[1:])[: rows * merge, : columns * merge]
            tokens = whole.unflatten(1, (columns, merge)).unflatten(0, (rows, merge)).mean((1, 3))
            per_image.append([tokens.flatten(0, 1)])
        return per_image

    def pixel_scores(self, arguments: dict, images: list[ImageLayout], score: Callable) -> list[list[Tensor]]:
        """pixel_values [images, 3, H, W], with filler beside and below smaller images."""
        side, per_image = self.token_side(), []
        for pixels, image in zip(arguments["pixel_values"], images, strict=True):
            rows, columns = image.tiles[0].grid
            tokens = pixels[:, : rows * side, : columns * side].unfold(1, side, side).unfold(2, side, side)
            per_image.append([score(tokens.permute(1, 2, 0, 3, 4).reshape(rows * columns, 3, side**2))])
        return per_image

    def observe_unprojected(self, patchwork: Patchwork, record: Callable) -> None:
        """Records the input of the projector's MLP."""
        first = self.inner.multi_modal_projector.linear_1
        patchwork.pre_hook(first, lambda module, args, kwargs: record(args[0]))

    def unprojected(self, captured: list, images: list[ImageLayout], arguments: dict) -> list[list[Tensor]]:
        """One vector for each token."""
        return [[x] for x in torch.cat(captured).split([image.tokens for image in images])]

    def project(self, tokens: Tensor) -> Tensor:
        """The projector's MLP."""
        projector = self.inner.multi_modal_projector
        return projector.linear_2(projector.act(projector.linear_1(tokens)))

    def views(self, images: object, size: tuple[int, int], layout: ImageLayout) -> tuple[View, ...]:
        """The whole image, stretched to whole tokens, in one even raster."""
        (tile,) = layout.tiles
        return (even_view("picture", tile.offsets, tile.grid, size),)

    def token_side(self) -> int:
        """Side of a square of patches that are merged into one token."""
        return self.tower.config.patch_size * self.model.config.spatial_merge_size

    def random_pictures(self, visual: int, native: int | None, generator: torch.Generator) -> tuple[list[int], dict]:
        """One image of rows x columns tokens, as close to square as the number allows (at most 1 : 2)."""
        shapes = [(r, round(visual / r)) for r in range(max(1, int((visual / 2) ** 0.5)), int(visual**0.5) + 1)]
        rows, columns = min(shapes, key=lambda shape: (abs(shape[0] * shape[1] - visual), shape[1] - shape[0]))
        size = rows * self.token_side(), columns * self.token_side()
        pixels = torch.randn(1, 3, *size, generator=generator)
        return [rows * columns], {"pixel_values": pixels, "image_sizes": torch.tensor([size])}

    @classmethod
    def tiny(cls, **overrides) -> nn.Module:
        """4 encoder layers of 2 heads, 6 decoder layers with GQA."""
        from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig

        vision = PixtralVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2, image_size=128,
            patch_size=4,
        )  # fmt: skip
        text = MistralConfig(**TEXT, sliding_window=None, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
        torch.manual_seed(0)
        config = Mistral3Config(
            vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, spatial_merge_size=2, **overrides
        )
        return finish(Mistral3ForConditionalGeneration(config))

    @classmethod
    def tiny_inputs(cls, model: nn.Module, images: tuple[int, ...] = (1, 2, 1), seed: int = 0, **kwargs) -> dict:
        """Random pixels of images of four different sizes, each row of whose placeholders is followed by another id."""
        generator = torch.Generator().manual_seed(seed)
        sizes = [[(48, 64), (32, 48), (80, 32), (40, 44)][i % 4] for i in range(sum(images))]
        rows = iter([[[IMAGE_TOKEN] * (w // 8) + [BREAK] for _ in range(h // 8)] for h, w in sizes])
        runs = iter([[*sum(image, [])[:-1], END] for image in rows])
        inputs = prompts([[next(runs) for _ in range(n)] for n in images], seed, **kwargs)
        if not sizes:
            return inputs
        pixels = torch.zeros(len(sizes), 3, max(h for h, _ in sizes), max(w for _, w in sizes))
        for i, (h, w) in enumerate(sizes):
            pixels[i, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        return {**inputs, "pixel_values": pixels, "image_sizes": torch.tensor(sizes)}
