"""Batches of prompts with images and clips: built, taken apart, and how many tokens each medium has."""

import pytest
import torch

import vtc
from tests.helpers import model_of
from vtc.patches import FAMILIES, available
from vtc.patching import find_family

VIDEO = [name for name in vtc.families() if available(name) and issubclass(FAMILIES[name], FAMILIES["qwen2_vl"])]
"""The families that take clips as packed patches with grids."""
MEDIA = ("ci", "c", "icc")
"""Images and clips of each prompt of the batch, in order."""

with_clips = pytest.mark.parametrize("case", VIDEO)
SIZES = {
    "i": ("pixel_values", "image_grid_thw"),
    "c": ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts"),
}


def media_of(case: str, media: tuple[str, ...] = MEDIA) -> tuple[str, ...]:
    """Without the images where these have the clips' id: such a model takes one kind in a call."""
    alike = len(set(find_family(model_of(case)).token_ids().values())) == 1
    return tuple(prompt.replace("i", "") for prompt in media) if alike else media


def clips_of(case: str, media: tuple[str, ...] = MEDIA, **options) -> dict:
    """A padded float64 batch for `model_of(case)`, of what it takes of the media."""
    inputs = FAMILIES[case].tiny_clips(model_of(case), media_of(case, media), **options)
    return {k: v.double() if v.is_floating_point() and k.startswith("pixel") else v for k, v in inputs.items()}


def _given(inputs: dict, media: tuple[str, ...]) -> list[list[str]]:
    """The media that are among the inputs."""
    return [[kind for kind in prompt if SIZES[kind][1] in inputs] for prompt in media]


def split_media(inputs: dict, media: tuple[str, ...] = MEDIA) -> list[dict]:
    """The prompts of a batch one by one, without padding."""
    singles, first = [], {"i": 0, "c": 0}
    shape = inputs["input_ids"].shape
    for b, prompt in enumerate(_given(inputs, media)):
        real = inputs["attention_mask"][b].bool()
        one = {name: x[b : b + 1, real] for name, x in inputs.items() if x.shape[:2] == shape}
        for kind in set(prompt):
            pixels, sizes, *more = SIZES[kind]
            mine = slice(first[kind], first[kind] + prompt.count(kind))
            rows = inputs[sizes].prod(1)
            start = int(rows[: mine.start].sum())
            one[pixels] = inputs[pixels][start : start + int(rows[mine].sum())]
            one |= {name: inputs[name][mine] for name in (sizes, *more) if name in inputs}
            first[kind] = mine.stop
        singles.append(one)
    return singles


def grids_of(inputs: dict, media: tuple[str, ...] = MEDIA) -> list[list[tuple[int, int]]]:
    """Per prompt and medium, its frames (1 for an image) and the tokens of each."""
    rest = {kind: iter(inputs[names[1]].tolist()) for kind, names in SIZES.items() if names[1] in inputs}
    return [[(t, h * w // 4) for t, h, w in (next(rest[kind]) for kind in prompt)] for prompt in _given(inputs, media)]


def frame_counts(kept: torch.Tensor, frames: int, each: int) -> list[int]:
    """How many kept places each frame has."""
    return torch.bincount(kept // each, minlength=frames).tolist()
