"""Prompts of a wanted size: random pictures that give about N visual tokens, between random words."""

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.bench.presets import resize_tower
from vtc.core.errors import ConfigError

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
    """Random pictures whose layout in this model comes nearest to `visual` tokens in one prompt; the family knows how.

    native: patches along a crop of a preset's tower, whose weights are random: it gets another crop size where the
    pictures have one. Raises ConfigError when nothing comes within a quarter of what was asked.
    """
    tokens, inputs = family.random_pictures(visual, native, torch.Generator().manual_seed(seed))
    found = Pictures(tuple(tokens), inputs)
    if abs(found.total - visual) > OFF * visual:
        raise ConfigError(
            f"--visual-tokens {visual} is not possible for {family.name}: the nearest is {found.total}; possible: "
            f"such as {found.total}"
        )
    if native is not None:
        vision = family.tower.config
        side = inputs["pixel_values"].shape[-1] // vision.patch_size
        if side != vision.image_size // vision.patch_size:
            resize_tower(family.tower, side)
    return found


def special_ids(config: object) -> list[int]:
    """Token ids that random text must not hold and random weights must not write."""
    text = config.get_text_config()
    found = [value for name, value in config.to_dict().items() if name.endswith(("_token_id", "_token_index"))]
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
    marks = [getattr(config, name) for name in family.marks]
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
