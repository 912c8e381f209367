"""Random inputs for the tiny models of the Qwen families: images and clips as patches, with their grids."""

import inspect
from collections.abc import Callable

import torch
from torch import nn

from vtc.patches._tiny import IMAGE_TOKEN, prompts

START, END, VIDEO = 121, 122, 123
TINY_IMAGES = (1, 12, 16), (1, 8, 12), (1, 20, 8), (1, 10, 10)
TINY_CLIPS = (3, 8, 8), (2, 8, 12), (2, 12, 4), (3, 4, 8)


def tiny_patches(
    model: nn.Module, media: tuple[str, ...], seed: int, one_clip: Callable[[int, int], list[int]], **kwargs
) -> dict:
    """See `Family.tiny_clips`. one_clip(frames, tokens of each): the ids of a clip."""
    generator, sizes = torch.Generator().manual_seed(seed), {"i": TINY_IMAGES, "c": TINY_CLIPS}
    grids = {kind: [sizes[kind][i % 4] for i in range("".join(media).count(kind))] for kind in sizes}
    rest = {kind: iter(sized) for kind, sized in grids.items()}
    rows = []
    for prompt in media:
        shapes = [(kind, *next(rest[kind])) for kind in prompt]
        rows.append([h * w // 4 if kind == "i" else one_clip(t, h * w // 4) for kind, t, h, w in shapes])
    inputs = prompts(rows, seed, image=([START], [END]), **kwargs)
    pixels = {"i": "pixel_values", "c": "pixel_values_videos"}
    for kind, size in (("i", "image_grid_thw"), ("c", "video_grid_thw")):
        if grids[kind]:
            patches = sum(t * h * w for t, h, w in grids[kind])
            inputs[pixels[kind]] = torch.randn(patches, 3 * 2 * 4 * 4, generator=generator)
            inputs[size] = torch.tensor(grids[kind])
    parameters, ids = inspect.signature(model.forward).parameters, inputs["input_ids"]
    if "mm_token_type_ids" in parameters and any(grids.values()):
        inputs["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int() + 2 * (ids == VIDEO).int()
    if "second_per_grid_ts" in parameters and grids["c"]:
        inputs["second_per_grid_ts"] = torch.tensor([[0.5, 1.0, 2.0, 1.0][i % 4] for i in range(len(grids["c"]))])
    return inputs
