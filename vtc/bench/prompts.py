"""Prompts of a wanted size: random pictures that give about N visual tokens, between random words."""

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.bench.presets import resize_tower
from vtc.errors import ConfigError

OFF = 0.25  # how far from what was asked the visual tokens may be, as a share of it


@dataclass(frozen=True)
class Pictures:
    """The images of one prompt. tokens: visual tokens of each; inputs: the model's arguments for them (their first
    axis is images, or patches of all images)."""

    tokens: tuple[int, ...]
    inputs: dict[str, Tensor]

    @property
    def total(self) -> int:
        """Visual tokens of the prompt."""
        return sum(self.tokens)


def pictures(family, visual: int, native: int | None, seed: int = 0) -> Pictures:
    """Random pictures whose layout in this model comes nearest to `visual` tokens in one prompt.

    LLaVA-1.5: several images; where `native` (patches along its own crop) is given, the tower's weights are random and
    it gets another crop size where that is needed. LLaVA-NeXT: picture sizes; Qwen: grids. Raises ConfigError when
    nothing comes within a quarter of what was asked.
    """
    generator = torch.Generator().manual_seed(seed)
    if family.name == "llava":
        found = _crops(family, visual, native, generator)
    elif family.name == "llava_next":
        found = _anyres(family, visual, generator)
    else:
        found = _grids(family, visual, generator)
    if abs(found.total - visual) > OFF * visual:
        raise ConfigError(
            f"--visual-tokens {visual} is not possible for {family.name}: the nearest is {found.total}; possible: "
            f"such as {found.total}"
        )
    return found


def _crops(family, visual: int, native: int | None, generator: torch.Generator) -> Pictures:
    vision = family.tower.config
    side = native or vision.image_size // vision.patch_size
    images = -(-visual // side**2)
    if native is not None:
        side = max(2, round((visual / images) ** 0.5))
        if side != vision.image_size // vision.patch_size:
            resize_tower(family.tower, side)
    elif visual % side**2:
        raise ConfigError(
            f"--visual-tokens {visual} is not possible: an image of this model has {side**2}; possible: multiples of "
            f"{side**2}, or a preset"
        )
    size = side * vision.patch_size
    pixels = torch.randn(images, 3, size, size, generator=generator)
    return Pictures((side**2,) * images, {"pixel_values": pixels})


def _anyres(family, visual: int, generator: torch.Generator) -> Pictures:
    """Sizes that fill one side of a tiling and part of the other, and those whose crops are fewest among equals."""
    size = family.tower.config.image_size

    def layout(height: int, width: int):
        return family.image_layouts({"image_sizes": [[height, width]]})[0]

    tilings = [tuple(tiling) for tiling in family.model.config.image_grid_pinpoints]
    images = -(-visual // max(layout(*tiling).tokens for tiling in tilings))
    step = max(1, size // 24)
    sizes = {(h, w) for h, w in tilings}
    sizes |= {(h, part) for h, w in tilings for part in range(step, w, step)}
    sizes |= {(part, w) for h, w in tilings for part in range(step, h, step)}
    ranked = ((abs(found.tokens * images - visual), len(found.tiles), s) for s in sizes for found in [layout(*s)])
    best = min(ranked)[2]
    found = layout(*best)
    pixels = torch.randn(images, len(found.tiles), 3, size, size, generator=generator)
    return Pictures((found.tokens,) * images, {"pixel_values": pixels, "image_sizes": torch.tensor([best] * images)})


def _grids(family, visual: int, generator: torch.Generator) -> Pictures:
    """One image of rows x columns merged tokens, as square as the number allows (at most 1 : 2)."""
    shapes = [(r, round(visual / r)) for r in range(max(1, int((visual / 2) ** 0.5)), int(visual**0.5) + 1)]
    rows, columns = min(shapes, key=lambda shape: (abs(shape[0] * shape[1] - visual), shape[1] - shape[0]))
    vision = family.tower.config
    merge = vision.spatial_merge_size
    width = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(rows * columns * merge**2, width, generator=generator)
    grid = torch.tensor([[1, rows * merge, columns * merge]])
    return Pictures((rows * columns,), {"pixel_values": pixels, "image_grid_thw": grid})


def special_ids(config: object) -> list[int]:
    """Token ids that random text must not hold and random weights must not write."""
    text = config.get_text_config()
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id")
    found = [getattr(config, name, None) for name in names]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(text, name, None)
        found += value if isinstance(value, list) else [value]
    return sorted({i for i in found if isinstance(i, int) and 0 <= i < text.vocab_size})


def inputs_of(family, shown: Pictures, length: int, batch: int, seed: int = 0) -> dict[str, Tensor]:
    """Arguments of generate() for `batch` equal prompts on the model's device: `length` tokens that are not visual
    (half before, half after the images) and the pictures. No padding.

    Equal prompts keep equal numbers of tokens whatever the method, and what they hold does not change the time.
    """
    config, model = family.model.config, family.model
    marks = [getattr(config, name) for name in ("vision_start_token_id", "vision_end_token_id")] if family.mrope else []
    words = length - len(marks) * len(shown.tokens)
    if words < 2:
        raise ConfigError(
            f"--prompt-lengths {length} is too short for {len(shown.tokens)} image(s) of {family.name}; possible: at "
            f"least {length - words + 2}"
        )
    generator = torch.Generator().manual_seed(seed)
    possible = torch.tensor(sorted(set(range(min(1000, config.get_text_config().vocab_size))) - {*special_ids(config)}))
    text = possible[torch.randint(len(possible), (words,), generator=generator)].tolist()
    row = text[: words // 2]
    for tokens in shown.tokens:
        row += [*marks[:1], *[config.image_token_id] * tokens, *marks[1:]]
    ids = torch.tensor([row + text[words // 2 :]]).expand(batch, -1).contiguous()
    inputs = with_types(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, config.image_token_id)
    for name, value in shown.inputs.items():
        repeated = value.repeat(batch, *[1] * (value.ndim - 1))
        inputs[name] = repeated.to(model.dtype) if repeated.is_floating_point() else repeated
    return {name: value.to(model.device) for name, value in inputs.items()}


def with_types(model, inputs: dict[str, Tensor], image: int) -> dict[str, Tensor]:
    """`inputs` with `mm_token_type_ids`, where this version of the model takes them."""
    if "mm_token_type_ids" not in inspect.signature(type(model).forward).parameters:
        return inputs
    return {**inputs, "mm_token_type_ids": (inputs["input_ids"] == image).int()}
