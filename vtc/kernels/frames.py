"""How far tokens of a clip are from those at the same place in an earlier frame."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


@torch.no_grad()
def distances(features: Tensor, earlier: Sequence[int | None], alone: float) -> Tensor:
    """1 - cosine of each token and the one at its place in another frame: [B, F, n], float32 (float64 for float64).

    It is computed as half the squared distance of the unit vectors, so that it is exactly 0 for equal tokens; a zero
    vector is taken as it is.

    Args:
        features: [B, F * n, D], frame after frame.
        earlier: for each of the F frames, the frame that it is compared with, or None.
        alone: what stands for a frame that is compared with none.
    """
    x = features.to(torch.promote_types(features.dtype, torch.float32)).unflatten(1, (len(earlier), -1))
    unit = normalize(x, dim=-1)
    rows = [
        unit.new_full((len(unit), unit.shape[2]), alone)
        if other is None
        else (unit[:, frame] - unit[:, other]).square().sum(-1) / 2
        for frame, other in enumerate(earlier)
    ]
    return torch.stack(rows, 1)
