"""Features of clips from the frozen tower of the bundled demo model, cached in files, with labels of their cells."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from vtc.demo.architecture import HIDDEN, vision_core
from vtc.demo.scenes import GRID
from vtc.demo.training_data import pixel_values
from vtc.demo.video.clip_scenes import CELLS, FRAMES, ClipScene, cell_labels, clip_scene, draw_frames
from vtc.io.files import replacing

FRAME_TOKENS = CELLS * CELLS
TOKENS = FRAMES * FRAME_TOKENS
CHUNK = 250  # clips a file


class Clips(NamedTuple):
    """`layouts` (list of ClipScene), `features` bfloat16 [B, 392, D], what enters the projector, `labels` int8
    [B, 392, 3] as from `cell_labels`."""

    layouts: list[ClipScene]
    features: torch.Tensor
    labels: torch.Tensor


@torch.no_grad()
def frame_features(model, frames: np.ndarray) -> torch.Tensor:
    """Pooled layer -2 features of frames uint8 [F, 112, 112, 3], bfloat16 [F, 49, D], under bfloat16 autocast."""
    core = vision_core(model)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = core.pre_layrnorm(core.embeddings(pixel_values(frames)))
        for layer in core.encoder.layers[:-1]:
            hidden = layer(hidden, attention_mask=None)
    maps = hidden[:, 1:].float().transpose(1, 2).reshape(len(frames), HIDDEN, GRID, GRID)
    return F.avg_pool2d(maps, GRID // CELLS).flatten(2).transpose(1, 2).bfloat16()


def make_clips(model, split: str, start: int, stop: int) -> Clips:
    """The clips `start` to `stop` - 1 of a split, seen by the tower of `model` (use SDPA attention)."""
    layouts = [clip_scene(split, index) for index in range(start, stop)]
    features = torch.stack([frame_features(model, draw_frames(layout)).flatten(0, 1) for layout in layouts])
    labels = torch.stack([torch.from_numpy(cell_labels(layout)).flatten(0, 1) for layout in layouts])
    return Clips(layouts, features, labels)


def cached_clips(model, folder: Path, split: str, count: int, log: Callable[[str], None]) -> Clips:
    """The first `count` clips of a split, from files in `folder`; those that are missing are made."""
    parts = []
    for start in range(0, count, CHUNK):
        path = folder / f"{split}-{start:05d}.pt"
        stop = min(start + CHUNK, count)
        if not path.exists():
            made = make_clips(model, split, start, stop)
            with replacing(path) as file:
                torch.save({"features": made.features, "labels": made.labels}, file)
            log(f"{split}: {stop} of {count} clips")
        parts.append(torch.load(path))
    layouts = [clip_scene(split, index) for index in range(count)]
    features, labels = (torch.cat([part[name] for part in parts])[:count] for name in ("features", "labels"))
    return Clips(layouts, features, labels)
