"""OTPrune: greedy log-determinant selection on a kernel of second-order products; the question is not used."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.core.errors import ConfigError, shown
from vtc.core.selection import Selection
from vtc.core.signals import Context, Encoder, Features
from vtc.kernels.dpp.reference import greedy
from vtc.kernels.products import product
from vtc.strategies import METHODS
from vtc.strategies.base import Stage


@torch.no_grad()
def picks(features: Tensor, count: int, gamma: float = 0.01) -> Tensor:
    """The first `count` picks of features [B, N, D] in order of selection: LongTensor [B, count].

    Every channel is divided by its norm over the N tokens (one of norm 0 stays 0). With G the Gram matrix of the
    tokens, the kernel is I + gamma * G @ G, of which one row is computed for each pick. In float64, since the picks'
    gains differ by a few millionths; one unit after another, G [N, N] of each.
    """
    orders = []
    for unit in features.double():
        length = torch.linalg.vector_norm(unit, dim=0, keepdim=True)
        unit = unit / length.masked_fill(length == 0, 1)
        gram = product(unit, unit.t())

        def row(pick: Tensor, gram: Tensor = gram) -> Tensor:
            line = gram.index_select(0, pick)
            return product(line, gram).mul_(gamma).scatter_add_(1, pick[:, None], torch.ones_like(line[:, :1]))

        orders.append(greedy(gram.square().sum(1).mul_(gamma).add_(1)[None], row, count)[0])
    return torch.stack(orders)


@METHODS.register("otprune")
@dataclass(frozen=True)
class OTPrune(Stage):
    """Keeps the tokens picked greedily by the log-determinant of a second-order kernel.

    The kernel is I + gamma * G @ G, where G is the Gram matrix of the projected tokens, whose channels are first
    scaled to unit norm over the tokens of the image, so that a few large channels do not dominate. Each pick maximises
    the determinant of the selected submatrix. Neither attention nor text is used.

    Knobs:
    - gamma: weight of the products relative to the identity.

    Paper: OTPrune, CVPR 2026, arXiv 2602.20205, whose optimal-transport distance this objective bounds; its text was
    not available to us, so the description follows the code. Official code: xiwenc1/OTPrune @ 3414730 (Apache-2.0),
    LLaVA, in DivPrune's place. A fraction is rounded to nearest, halves to even, as in the code (`rounding: round`).
    Departures: kept tokens stay in raster order (the code passes them through a Python set, so that they reach the
    language model in hash order). No token is picked twice; a channel of zeros stays zero (the code: NaN). Any prompt
    is supported (the code assumes 35 tokens before the image and one prompt). On LLaVA-NeXT tokens are selected from
    base crop and tiles together, without newline tokens. Qwen is our extension. Computed in float64, ties to the
    lower index.
    """

    gamma: float = 0.01

    def __post_init__(self):
        if not 0 < self.gamma < float("inf"):
            raise ConfigError(f"gamma={shown(self.gamma)} is out of range; possible: a number above 0")

    def needs(self, encoder: Encoder) -> tuple[Features]:
        """The projected features."""
        return (Features(),)

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `picks`."""
        return Selection(picks(context[Features()], context.count, self.gamma).sort(dim=1).values)
