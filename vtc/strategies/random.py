"""Random baseline: tokens kept at random, from an explicit seed."""

from dataclasses import dataclass

import torch

from vtc.core.selection import Selection
from vtc.core.signals import Context, Encoder
from vtc.kernels.transfer import upload
from vtc.strategies import METHODS
from vtc.strategies.base import Stage


@METHODS.register("random")
@dataclass(frozen=True)
class Random(Stage):
    """Keeps `count` tokens drawn uniformly without replacement.

    The draw depends on `seed`, the number of tokens and the image's (and tile's) place in its own prompt, never on
    the batch or the device, so batching does not change it. Our baseline; no paper.

    Knobs:
    - seed: of the draw.
    """

    seed: int = 0

    tile_scope = "per_tile"

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """One seeded permutation per unit, cut to `count` and sorted."""
        rows = []
        for ordinal in context.ordinals:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + ordinal) % 2**63)
            rows.append(torch.randperm(context.tokens, generator=generator)[: context.count].sort().values)
        return Selection(upload(torch.stack(rows), context.device))
