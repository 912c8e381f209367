"""Idefics3: tiles and then a crop of the whole image, each with a tag of text before it; a token is a block of patches.

An image's tokens are interrupted by text: `<mark> <tag> tokens`, again for each tile, a line break after each row of
tiles, and for the whole image `<mark> <tag> tokens <mark>`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vtc.core.errors import PatchError, UnsupportedError
from vtc.core.layout import CropGroup, ImageLayout, raster
from vtc.core.signals import Encoder
from vtc.patches import FAMILIES
from vtc.patches._shuffle import Shuffled, arrangement, same_size
from vtc.patches._tiny import BOS, EOS, IMAGE_TOKEN, PAD, TEXT, finish

MARK, TAG, WHOLE, LINE = IMAGE_TOKEN - 1, IMAGE_TOKEN - 2, IMAGE_TOKEN - 3, IMAGE_TOKEN - 4  # ids of the tiny prompts


@FAMILIES.register("idefics3")
class Idefics3(Shuffled):
    """Idefics3 (`idefics3`). No [CLS]. Each image ends with the crop that shows all of it, and that with a mark; the
    mark that opens the next image follows. So between two crops of an image there is one mark, and between two images
    there are two or more. The mark is the token after a prompt's last placeholder; no other id has to be known.

    blank_crop: where all crops are empty the model keeps the first.

    Source: `Idefics3ForConditionalGeneration` of transformers; "Building and better understanding vision-language
    models: insights and future directions", arXiv 2408.12637.
    """

    name = "idefics3"
    model_types = ("idefics3",)
    language_path = "model.text_model"
    towers = ("idefics3_vision",)
    tower_path = "model.vision_model"
    attention_path = r"encoder\.layers\.(\d+)\.self_attn"
    published = Encoder("idefics3", 27, False, tuple(range(27)), tiled=True, thumbnail=169)
    blank_crop = False

    def sides(self) -> tuple[int, int, int]:
        """From the configs of model and tower."""
        vision = self.tower.config
        sides = same_size(self.tower, vision.image_size), same_size(self.tower, vision.patch_size)
        return *sides, self.model.config.scale_factor

    def image_layouts(self, arguments: dict) -> list[ImageLayout]:
        """One full raster of tokens per crop; empty crops fill up the batch. Raises UnsupportedError where the mask
        hides a part of a crop: scores would be those of patches that the encoder does not see."""
        pixels, mask, real = arguments["pixel_values"], arguments.get("pixel_attention_mask"), self._real(arguments)
        hidden = torch.zeros_like(real) if mask is None else (mask == 0).flatten(2).any(2).to(real.device)
        real, hidden = torch.stack([real, hidden]).cpu()
        if bool((real & hidden).any()):
            raise UnsupportedError(
                f"pixel_attention_mask hides parts of crops, which vtc does not support in {self.name}; possible: the "
                "image processor's do_image_splitting=True, or pictures of the crops' shape"
            )
        return [raster(i, *self.grid(pixels)) for i in range(int(real.sum()))]

    def crops(self, arguments: dict) -> Tensor:
        """Those that are no filler."""
        return arguments["pixel_values"][self._real(arguments)]

    def _real(self, arguments: dict) -> Tensor:
        """Which crops [B, most] hold anything."""
        real = (arguments["pixel_values"] != 0).flatten(2).any(2)
        if self.blank_crop:
            real[0, 0] |= ~real.any()
        return real

    def image_groups(self, places: list[Tensor], tokens: Callable[[], Tensor]) -> list[CropGroup]:
        """See the class. A row of tiles ends where the text to the next crop does not begin with the mark."""
        ids, groups, rows = tokens().tolist(), [], [0]
        after = [int(crop[-1]) + 1 for crop in places]
        mark = ids[after[-1]] if after[-1] < len(ids) else None
        for number, crop in enumerate(places):
            before = ids[after[number - 1] if number else 0 : int(crop[0])]
            marks = before.count(mark)
            if mark is None or not marks:
                raise PatchError(
                    f"crop {number} of a prompt has no mark before it, so which crops form an image is unknown; "
                    "possible: the prompt that the model's processor makes"
                )
            if number and marks > 1:
                groups.append(_group(rows))
                rows = [0]
            elif number and before[0] != mark:
                rows.append(0)
            rows[-1] += 1
        return [*groups, _group(rows)]

    def columns(self, images: object, size: tuple[int, int], layout: ImageLayout) -> int:
        """As the prompt tells."""
        return sum(tile.corner[0] == 0 for tile in layout.tiles[1:])

    def project(self, tokens: Tensor) -> Tensor:
        """The connector's linear map."""
        return self.inner.connector.modality_projection(tokens)

    def random_pictures(self, visual: int, native: int | None, generator: torch.Generator) -> tuple[list[int], dict]:
        """Images of up to 16 tiles and a crop of the whole, in about equal parts."""
        counts, pixels = self.random_images(visual, generator)
        return [n * self.encoder.thumbnail for n in counts], {"pixel_values": pixels[None]}

    def image_ids(self, tokens: int) -> list[int]:
        """An image between its marks, whose id is the one before the placeholder's in the published models; tags and
        line breaks are the ids before that."""
        mark, each = self.image_token_id - 1, self.encoder.thumbnail
        rows, columns = arrangement(tokens // each - 1) if tokens > each else (0, 0)
        return image_text([self.image_token_id] * each, rows, columns, mark, (mark - 1, mark - 2), mark - 3)

    def special_ids(self) -> list[int]:
        """The marks too."""
        return sorted({*super().special_ids(), self.image_token_id - 1})

    @classmethod
    def tiny(cls, **overrides) -> nn.Module:
        """4 encoder layers on an 8 x 8 grid of patches, 16 tokens a crop."""
        from transformers import Idefics3Config, Idefics3ForConditionalGeneration

        return cls.build(Idefics3Config, Idefics3ForConditionalGeneration, **overrides)

    @classmethod
    def build(cls, config_class: type, model_class: type, **overrides) -> nn.Module:
        """The tiny model of these classes."""
        from transformers import LlamaConfig

        torch.manual_seed(0)
        sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2)
        text = LlamaConfig(**TEXT, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
        config = config_class(
            vision_config=dict(sizes, image_size=32, patch_size=4), text_config=text, image_token_id=IMAGE_TOKEN,
            scale_factor=2, tie_word_embeddings=False, **overrides,
        )  # fmt: skip
        return finish(model_class(config))

    @classmethod
    def tiny_inputs(
        cls, model: nn.Module, images: tuple[int, ...] = (1, 2, 1), seed: int = 0, padding: str = "left"
    ) -> dict:
        """Random pixels [B, most crops, 3, 32, 32] of images of 1 x 2 tiles, one crop, 2 x 2 and 3 x 1 tiles."""
        generator, placeholders = torch.Generator().manual_seed(seed), [IMAGE_TOKEN] * 16
        shapes = [[(1, 2), (0, 0), (2, 2), (3, 1)][i % 4] for i in range(sum(images))]

        def text(length: int) -> list[int]:
            return torch.randint(3, 100, (length,), generator=generator).tolist()

        rows, counts, rest = [], [], iter(shapes)
        for i, number in enumerate(images):
            crops = [next(rest) for _ in range(number)]
            counts.append(sum(high * wide + 1 for high, wide in crops))
            row = [BOS, *text(3 + 2 * i)]
            for high, wide in crops:
                row += [*image_text(placeholders, high, wide, MARK, (TAG, WHOLE), LINE), *text(4 + i)]
            rows.append(row)
        length = max(map(len, rows))
        ids, mask = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.long)
        for b, row in enumerate(rows):
            where = slice(length - len(row), None) if padding == "left" else slice(len(row))
            ids[b, where], mask[b, where] = torch.tensor(row), 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        if shapes:
            inputs["pixel_values"] = torch.zeros(len(images), max(counts), 3, 32, 32)
            for b, count in enumerate(counts):
                inputs["pixel_values"][b, :count] = torch.randn(count, 3, 32, 32, generator=generator)
        return inputs


def _group(rows: list[int]) -> CropGroup:
    """rows: the crops of each row of an image; the last is the one that shows all of it."""
    even = len(rows) > 1 and rows[-1] == 1 and len({*rows[:-1]}) == 1
    return CropGroup(sum(rows), rows[0] if even else None)


def image_text(placeholders: list[int], rows: int, columns: int, mark: int, tags: tuple[int, int], line: int) -> list:
    """The ids of an image in a prompt. placeholders: of a crop; tags: before a tile, and before the whole image."""
    ids = [*([mark, tags[0], *placeholders] * columns), line] * rows
    return [*ids, *[line] * bool(rows), mark, tags[1], *placeholders, mark]
