"""Average pooling to the budget: every token is merged into the nearest point of a strided grid."""

from dataclasses import dataclass

import torch

from vtc.core.selection import Merge, Selection
from vtc.core.signals import Context, Encoder
from vtc.kernels.grid import strided_grid
from vtc.kernels.transfer import upload
from vtc.strategies import METHODS
from vtc.strategies.base import Stage


@METHODS.register("pool")
@dataclass(frozen=True)
class Pool(Stage):
    """Averages the tokens around each point of a strided grid of exactly `count` tokens.

    Each token belongs to the nearest kept point (squared grid distance, ties to the lower index); the pooled token
    has the position of that point. Our baseline; no paper, no knobs.
    """

    tile_scope = "per_tile"

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """The strided grid, with a merge whose weights sum to 1 in every slot."""
        rows, columns = context.grid or (1, context.tokens)
        keep = upload(torch.tensor(strided_grid(rows, columns, context.count)), context.device)
        point = torch.arange(context.tokens, device=context.device)
        down = (point // columns).unsqueeze(1) - (keep // columns)
        across = (point % columns).unsqueeze(1) - (keep % columns)
        distance = down.square() + across.square()
        slots = torch.arange(context.count, device=context.device)
        target = (distance * context.count + slots).argmin(1)
        size = torch.zeros(context.count, device=context.device).index_add_(0, target, torch.ones_like(target).float())
        weight = 1.0 / size[target]
        units = len(context.ordinals)
        merge = Merge(target.expand(units, -1), weight.expand(units, -1))
        return Selection(keep.expand(units, -1).contiguous(), merge=merge)
