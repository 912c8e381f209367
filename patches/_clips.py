"""Clips by an image processor: what a video processor makes of them, without torchvision, which it needs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def joined_frames(images: Callable, frames: Sequence, steps: int) -> tuple[Tensor, tuple[int, int, int]]:
    """Patches [t * h * w, 3 * steps * p * p] of a clip whose encoder joins `steps` frames to one; its grid (t, h, w).

    images: an image processor that repeats a picture `steps` times in each patch [3, steps, p * p]; here each place
    gets a frame of its own. frames: pictures of one size; the last is repeated up to a multiple of `steps`.
    """
    frames = [*frames, *[frames[-1]] * (-len(frames) % steps)]
    made = images(images=frames, return_tensors="pt")
    (_, rows, columns), *_ = torch.as_tensor(made["image_grid_thw"]).tolist()
    single = made["pixel_values"].view(len(frames) // steps, steps, rows * columns, 3, steps, -1)
    own = torch.stack([single[:, step, :, :, step] for step in range(steps)], dim=3)
    return own.reshape(-1, made["pixel_values"].shape[1]), (len(frames) // steps, rows, columns)
