"""ApET, first stage: keeps the tokens that a small basis reconstructs worst, and merges the basis and the others."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.core.errors import ConfigError, shown
from vtc.core.selection import Extra, Merge, Selection
from vtc.core.signals import Context, Encoder, EncoderFeatures, Features, Signal, Unprojected
from vtc.kernels.merge import most_similar
from vtc.kernels.products import float_type, product
from vtc.kernels.transfer import upload
from vtc.strategies import METHODS
from vtc.strategies.base import Stage

RIDGE = 1e-5


def check_knobs(stage) -> None:
    """Checks the ranges of the knobs that both stages share; raises ConfigError."""
    if stage.basis < 1:
        raise ConfigError(f"basis={shown(stage.basis)} is out of range; possible: 1 or more")
    if isinstance(stage.first, int) and stage.first < 0:
        raise ConfigError(f"first={shown(stage.first)} is no token; possible: an index from 0, mean, random")


def first_of(features: Tensor, first: int | str, seed: int, ordinals: tuple[int, ...]) -> Tensor:
    """The token [B] that each basis begins with: an index (at most the last), "mean": the token nearest to the mean, or
    "random": drawn by the seed and the unit's place in its prompt."""
    units, tokens = features.shape[:2]
    if first == "mean":
        x = features.to(float_type(features))
        return (x - x.mean(1, keepdim=True)).square().sum(2).argmin(1)
    if first == "random":
        drawn = [torch.Generator().manual_seed((seed * 1_000_003 + i) % 2**63) for i in ordinals]
        indices = [int(torch.randint(tokens, (), generator=generator)) for generator in drawn]
        return upload(torch.tensor(indices), features.device)
    return torch.full((units,), min(first, tokens - 1), device=features.device)


def farthest_points(features: Tensor, first: Tensor, count: int) -> Tensor:
    """`count` tokens of features [B, N, D] by farthest-point sampling from first [B]: each further one has the largest
    squared Euclidean distance to the nearest token chosen before. LongTensor [B, count]."""
    picks, nearest = [first], None
    for _ in range(count - 1):
        chosen = features.gather(1, picks[-1][:, None, None].expand(-1, 1, features.shape[2]))
        away = (features - chosen).square().sum(2)
        nearest = away if nearest is None else nearest.minimum(away)
        picks.append(nearest.argmax(1))
    return torch.stack(picks, 1)


def reconstruction_errors(features: Tensor, basis: Tensor) -> Tensor:
    """The norm [B, N] of each token's residual in a ridge regression of [B, N, D] on the basis tokens [B, b]."""
    errors = []
    for x, chosen in zip(features, basis, strict=True):
        s = x[chosen]
        gram = product(s, s.t()) + RIDGE * torch.eye(len(s), dtype=x.dtype, device=x.device)
        coefficients = torch.linalg.solve(gram, product(s, x.t()))
        errors.append(torch.linalg.vector_norm(x - product(coefficients.t(), s), dim=1))
    return torch.stack(errors)


@torch.no_grad()
def select_tokens(
    features: Tensor, count: int, basis_count: int, first: Tensor, own_share: float = 0.0, by_error: bool = False
) -> Selection:
    """Selects `count` tokens of features [B, N, D] and merges the others into them, see `ApETProjector`.

    first [B]: the first basis token. by_error: basis tokens take the weakest slots by descending error, else by
    ascending index.
    """
    units, tokens = features.shape[:2]
    if count == tokens:
        return Selection(torch.arange(tokens, device=features.device).expand(units, -1).contiguous())
    x = features.to(float_type(features))
    basis = farthest_points(x, first, min(basis_count, max(1, count - 1)))
    order = reconstruction_errors(x, basis).sort(dim=1, descending=True, stable=True).indices
    swaps = min(basis.shape[1], count - 1)
    keep, position = order[:, :count].sort(1)
    slot = position.argsort(1)  # of each kept token, in the order of the errors
    last = slot[:, count - swaps :]
    nearest = most_similar(x, order, torch.arange(count - swaps, device=x.device))
    into = slot.gather(1, nearest)
    into[:, :count] = slot
    joining = torch.ones_like(into, dtype=x.dtype)
    joining[:, :count] = 0
    sizes = 1 + x.new_zeros(units, count).scatter_add_(1, into, joining)
    weight = sizes.reciprocal().gather(1, into)
    weight[:, count - swaps : count] = own_share
    if not own_share:
        into[:, count - swaps : count] = -1
    target = torch.empty_like(into).scatter_(1, order, into)
    weight = torch.empty_like(weight).scatter_(1, order, weight)
    extra = Extra(
        basis[:, :swaps], last if by_error else last.sort(1).values, torch.full_like(weight[:, :swaps], 1 - own_share)
    )
    return Selection(keep, merge=Merge(target, weight, extra=extra if swaps else None))


@METHODS.register("apet_projector")
@dataclass(frozen=True)
class ApETProjector(Stage):
    """Keeps the tokens that a small basis of tokens reconstructs worst, and merges the others into them.

    The basis is found by farthest-point sampling; a token's error is the norm of its residual in a ridge regression
    (1e-5) on the basis. The `count` tokens with the largest errors are kept. The weakest of them give their slots to
    the basis tokens, whose own errors are near 0. Every dropped token is merged into the most similar of the other kept
    tokens by cosine, each of which becomes the mean of itself and its merged tokens. Neither attention nor text is
    used.

    Knobs:
    - basis: number of tokens in the basis; fewer if `count` is not larger.
    - first: the token that the basis begins with: an index, "mean" (the token nearest to the mean) or "random", drawn
      from `seed` and the image's place in its prompt.
    - seed: of a random first token.
    - projected: compare and merge the projected tokens, as on Qwen2.5-VL, instead of the projector's input.
    - own_share: weight of a weak token's own feature when a basis token takes its slot: 0; 0.5 on Qwen2.5-VL.

    Paper: ApET, CVPR 2026, arXiv 2602.19870. Official code: Maqkccx/ApET @ 70cc01b (MIT): LLaVA-1.5, LLaVA-NeXT by
    crop, Qwen2.5-VL. In the shipped strategy `apet` follows inside the language model.
    Departures: a fixed first token (the code draws one at random, which changes a good part of the kept tokens).
    Float32 (the code merges in half precision), ties to the lower index. How the code treats LLaVA-NeXT's newline
    tokens was not traced; here they are dropped. A budget of a single token leaves no slot for a basis.
    """

    basis: int = 10
    first: int | Literal["mean", "random"] = 0
    seed: int = 0
    projected: bool = False
    own_share: float = 0.0

    tile_scope = "per_tile"

    def __post_init__(self):
        check_knobs(self)
        if not 0 <= self.own_share < 1:
            raise ConfigError(f"own_share={shown(self.own_share)} is out of range; possible: a share in [0, 1)")

    def needs(self, encoder: Encoder) -> tuple[Signal, ...]:
        """The features to compare and merge."""
        return (Features(),) if self.projected else (EncoderFeatures(), Unprojected())

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `select_tokens`; exactly `count`."""
        features = context[self.needs(encoder)[0]]
        first = first_of(features, self.first, self.seed, context.ordinals)
        selection = select_tokens(features, context.count, self.basis, first, self.own_share)
        if selection.merge is None or self.projected:
            return selection
        merge, lead = selection.merge, int(encoder.has_cls)
        extra = merge.extra and merge.extra._replace(source=merge.extra.source + lead)
        target, weight = pad(merge.target, (lead, 0), value=-1), pad(merge.weight, (lead, 0))
        return Selection(selection.keep, merge=Merge(target, weight, unprojected=True, extra=extra))
