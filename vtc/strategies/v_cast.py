"""V-CAST: frames at which a clip turns keep more tokens, and in each the unusual and the strong ones stay."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize, pad

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import Context, Encoder, Features
from vtc.strategies import METHODS
from vtc.strategies.base import Stage

EPS = 1e-6
TEMPERATURE = 0.7


@METHODS.register("v_cast")
@dataclass(frozen=True)
class VCast(Stage):
    """Divides the budget over frames by how sharply the clip turns there, and keeps unusual and strong tokens in each.

    1. c is the mean of a frame's projected features as a unit vector. The turn at a frame is 1 - cosine of its step
       from the frame before (c - c before) and the step to the next; it is 1 at both ends.
    2. Every frame keeps `min_k` tokens. The rest R of the budget goes by w, the softmax of turn / 0.7 over frames:
       floor(w * R) each, at most the frame. What is left goes to the frame with the largest fraction of w * R until
       that is full, then to the next one.
    3. A token's score is 1 - cosine of it and c, plus its norm, scaled to 0..1 over the frame. The largest stay.

    A clip of one frame, and an image, keep all their tokens, as in the code. The budget is round(N * keep)
    (`rounding: round`), at least `min_k` for each frame.

    Knobs:
    - min_k: tokens that each frame keeps in any case (at most all of them).

    Paper: V-CAST, arXiv 2603.27650. Official code: xinyouu/V-CAST @ c235ef3c, Qwen3-VL; its wording in the paper (an
    entropy anchor) differs, and the code is followed. There are no vectors of it; the tests compare with the definition
    written as loops. Departures: float32 (the code computes in the model's type), ties to the lower index.
    """

    min_k: int = 1

    clips = True

    def __post_init__(self):
        if self.min_k < 0:
            raise ConfigError(f"min_k={self.min_k} is out of range; possible: 0 or more tokens of each frame")

    def least(self, frames: int, each: int) -> int:
        """`min_k` tokens of each frame; of one frame all."""
        return each if frames == 1 else max(1, frames * min(self.min_k, each))

    def needs(self, encoder: Encoder) -> tuple[Features]:
        """The projected features."""
        return (Features(),)

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `turns`, `divide` and `scores`."""
        x = context[Features()]
        x = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (max(1, context.frames), -1))
        centre = normalize(x.mean(2), dim=-1, eps=EPS)
        quota = divide((turns(centre) / TEMPERATURE).softmax(1), context.count, x.shape[2], self.min_k)
        rank = scores(x, centre).argsort(dim=2, descending=True, stable=True).argsort(dim=2)
        kept = (rank < quota.unsqueeze(2)).flatten(1)
        return Selection((~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, : context.count])


@torch.no_grad()
def turns(centre: Tensor) -> Tensor:
    """How sharply the clip turns at each frame [B, F], 0 to 2. centre: unit vectors [B, F, D]."""
    step = centre[:, 1:] - centre[:, :-1]
    if len(step[0]) < 2:
        return centre.new_ones(centre.shape[:2])
    return pad(1 - cosine_similarity(step[:, :-1], step[:, 1:], dim=-1, eps=EPS), (1, 1), value=1.0)


def divide(weight: Tensor, count: int, each: int, least: int) -> Tensor:
    """`count` tokens divided over frames of `each`: LongTensor [B, F]. weight [B, F]: sums to 1; least: of each frame,
    if there are enough."""
    frames = weight.shape[1]
    base = min(least, each) if count >= frames * min(least, each) else 0
    exact = weight / weight.sum(1, keepdim=True) * (count - frames * base)
    quota = base + exact.floor().long().clamp(max=each - base)
    order = (exact - exact.floor()).argsort(dim=1, descending=True, stable=True)
    room = (each - quota).gather(1, order)
    left = count - quota.sum(1, keepdim=True) - (room.cumsum(1) - room)
    return quota.scatter_add(1, order, torch.minimum(left.clamp(min=0), room))


def scores(x: Tensor, centre: Tensor) -> Tensor:
    """The score [B, F, n] of each token. x: [B, F, n, D]; centre: [B, F, D]."""
    unusual = 1 - cosine_similarity(x, centre.unsqueeze(2), dim=-1, eps=EPS)
    norm = x.norm(dim=-1)
    low, high = norm.aminmax(dim=2, keepdim=True)
    return unusual + (norm - low) / (high - low + EPS)
