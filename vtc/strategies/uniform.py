"""Uniform baseline: a strided grid of tokens, independent of the image content."""

from dataclasses import dataclass

import torch

from vtc.core.selection import Selection
from vtc.core.signals import Context, Encoder
from vtc.kernels.grid import strided_grid
from vtc.kernels.transfer import upload
from vtc.strategies import METHODS
from vtc.strategies.base import Stage


@METHODS.register("uniform")
@dataclass(frozen=True)
class Uniform(Stage):
    """Keeps a strided grid of exactly `count` tokens. Our baseline; no paper, no knobs."""

    tile_scope = "per_tile"

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """The same indices for every unit of this grid."""
        rows, columns = context.grid or (1, context.tokens)
        keep = upload(torch.tensor(strided_grid(rows, columns, context.count)), context.device)
        return Selection(keep.expand(len(context.ordinals), -1).contiguous())
