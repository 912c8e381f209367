"""How the kept tokens of a clip are spread over its frames."""

import torch
from torch import Tensor


def per_frame(kept: Tensor, tokens: int, frames: int) -> list[int]:
    """How many of the places `kept` [k] lie in each frame of a clip of `tokens`; empty without frames. Reads from the
    device."""
    return torch.bincount(kept // (tokens // frames), minlength=frames)[:frames].tolist() if frames else []


def frames_in_words(counts: list[int]) -> str:
    """`per_frame` in a few words."""
    if len(counts) <= 8:
        return f"{' + '.join(map(str, counts))} tokens of its {len(counts)} frames"
    return f"{len(counts)} frames with {min(counts)} to {max(counts)} tokens each, {counts.count(0)} without any"
