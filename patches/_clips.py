"""Clips by an image processor: what a video processor makes of them, without torchvision, which it needs."""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


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


def clip_arguments(model: nn.Module, images: Callable, frames: Sequence, fps: float) -> tuple[dict[str, Tensor], int]:
    """See `vtc.patches._family.Family`; with the seconds of a joined frame where the model asks for them."""
    vision = model.config.vision_config
    pixels, (t, h, w) = joined_frames(images, frames, vision.temporal_patch_size)
    made = {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[t, h, w]])}
    if "second_per_grid_ts" in inspect.signature(type(model).forward).parameters:
        made["second_per_grid_ts"] = torch.tensor([vision.temporal_patch_size / fps])
    return made, t * h * w // vision.spatial_merge_size**2
