"""Prompts of a given size: random pictures, or a random clip, of about N visual tokens between random words."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.core.errors import ConfigError

OFF = 0.25  # how far the visual tokens may be from the number asked for, as a share of it


@dataclass(frozen=True)
class Pictures:
    """The images of one prompt, or the frames of its clip. tokens: visual tokens of each; inputs: the model's
    arguments for them (their first axis is images or clips, or patches of all of them)."""

    tokens: tuple[int, ...]
    inputs: dict[str, Tensor]
    clip: bool = False

    @property
    def total(self) -> int:
        """Visual tokens of the prompt."""
        return sum(self.tokens)


def pictures(family, visual: int, native: int | None, seed: int = 0, frames: int | None = None) -> Pictures:
    """Random pictures whose layout in this model comes nearest to `visual` tokens in one prompt; the family knows how.

    native: patches along a crop of a preset's tower, whose weights are random: it gets another crop size where the
    pictures have one. frames: one clip of so many pictures instead. Raises ConfigError when nothing comes within a
    quarter of what was asked, and UnsupportedError for a clip where the family takes none.
    """
    generator = torch.Generator().manual_seed(seed)
    if frames is None:
        tokens, inputs = family.random_pictures(visual, native, generator)
    else:
        tokens, inputs = family.random_clip(frames, visual, generator)
    images = Pictures(tuple(tokens), inputs, frames is not None)
    if abs(images.total - visual) > OFF * visual:
        raise ConfigError(
            f"--visual-tokens {visual} is not possible for {family.name}: the nearest is {images.total}; possible: "
            f"such as {images.total}"
        )
    if native is not None and frames is None:
        family.fit_tower(inputs)
    return images


def inputs_of(family, shown: Pictures, length: int, batch: int, seed: int = 0) -> dict[str, Tensor]:
    """Arguments of generate() for `batch` equal prompts on the model's device: `length` tokens that are not visual
    (half before, half after the images) and the pictures. No padding.

    Equal prompts keep equal numbers of tokens whatever the method, and what they hold does not change the time.
    """
    model = family.model
    images = [family.clip_ids(list(shown.tokens))] if shown.clip else [family.image_ids(n) for n in shown.tokens]
    words = length + shown.total - sum(map(len, images))
    if words < 2:
        what = "frame(s)" if shown.clip else "image(s)"
        raise ConfigError(
            f"--prompt-lengths {length} is too short for {len(shown.tokens)} {what} of {family.name}; possible: at "
            f"least {length - words + 2}"
        )
    generator = torch.Generator().manual_seed(seed)
    known = range(min(1000, model.config.get_text_config().vocab_size))
    possible = torch.tensor(sorted({*known} - {*family.special_ids()}))
    text = possible[torch.randint(len(possible), (words,), generator=generator)].tolist()
    row = [*text[: words // 2], *[i for ids in images for i in ids], *text[words // 2 :]]
    inputs = family.prompt_inputs(torch.tensor([row]).expand(batch, -1).contiguous())
    for name, value in shown.inputs.items():
        repeated = value.repeat(batch, *[1] * (value.ndim - 1))
        inputs[name] = repeated.to(model.dtype) if repeated.is_floating_point() else repeated
    return {name: value.to(model.device) for name, value in inputs.items()}
