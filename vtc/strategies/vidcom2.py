"""VidCom2: frames that stand out in their clip keep more tokens, and in each the tokens that stand out stay."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc.core.selection import Selection
from vtc.core.signals import Context, Encoder, Features
from vtc.strategies import METHODS
from vtc.strategies.base import Stage

WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)
TEMPERATURE = 0.01


class Likeness(NamedTuple):
    """How much each token [B, F, n] is like the mean of its clip, and like that of its frame."""

    clip: Tensor
    frame: Tensor


@METHODS.register("vidcom2")
@dataclass(frozen=True)
class VidCom2(Stage):
    """Keeps the tokens least like the mean of their clip and of their frame, more of them in frames that stand out.

    1. Of the D channels of the projected features, the int(D / 2) with the smallest variance over the clip count.
    2. u is a token's unit vector on these, v the mean of u over the clip, m that over the frame. G(u, c) is the sum
       of exp(-|u - c|^2 / 2a) over a = 1/8, 1/4, 1/2, 1, 2; S_v = G(u, v) and S_f = G(u, m).
    3. s is a frame's mean of -S_v and p the softmax of s / 0.01 over frames. A frame of n tokens has a quota of
       round(n * min(1, keep * (1 + p - mean p))), at least 1, halves to even. The low temperature lets one frame take
       nearly all of the extra.
    4. In each frame the tokens with the smallest S_v + S_f stay.

    Knobs:
    - counts: "exact" keeps max(F, int(N * keep)) of N tokens in F frames: of those that the quotas keep too many the
      largest S_v + S_f go, and where they are too few the smallest of the others stay, whatever their frame. "official"
      leaves the quotas as they are, whose sum may lie below or above the budget.

    Paper: Video Compression Commander, EMNLP 2025, arXiv 2505.14454. Official code: xuyang-liu16/VidCom2 @ 944a17d1
    (no "exact"); vLLM, `vllm/multimodal/video_prune/vidcom2.py` @ 0f17ee06 (Apache-2.0), has the correction to the
    exact number. There are no vectors of either; the tests compare with the definition written as loops. Departures:
    newline tokens, which the code keeps on LLaVA-Video, are not among a clip's tokens here. An image is a clip of one
    frame, and so is a clip behind a stage inside the encoder: S_v = S_f, and what stands out stays; not published.
    Float32, ties to the lower index.
    """

    counts: Literal["exact", "official"] = "exact"

    fixed_count = {"counts": "exact"}

    def least(self, frames: int, each: int) -> int:
        """One token of each frame."""
        return frames

    def needs(self, encoder: Encoder) -> tuple[Features]:
        """The projected features."""
        return (Features(),)

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `likeness` and `quotas`."""
        like = likeness(context[Features()], max(1, context.frames))
        common, quota = like.clip + like.frame, quotas(like.clip, context.share)
        rank = common.argsort(dim=2, stable=True).argsort(dim=2)
        within = (rank < quota.unsqueeze(2)).flatten(1)
        if self.counts == "official":
            return Selection.marked(within, context.tokens)
        order = common.flatten(1).argsort(dim=1, stable=True)
        order = order.gather(1, (~within).gather(1, order).to(torch.uint8).argsort(dim=1, stable=True))
        return Selection(order[:, : context.count].sort(dim=1).values)


@torch.no_grad()
def likeness(features: Tensor, frames: int) -> Likeness:
    """S_v and S_f of features [B, F * n, D]; float32 (float64 for float64 features)."""
    x = features.to(torch.promote_types(features.dtype, torch.float32))
    few = x.var(dim=1, correction=0).argsort(dim=1, stable=True)[:, : x.shape[2] // 2]
    unit = normalize(x.gather(2, few.unsqueeze(1).expand(-1, x.shape[1], -1)), dim=2).unflatten(1, (frames, -1))
    return Likeness(_alike(unit, unit.mean((1, 2), keepdim=True)), _alike(unit, unit.mean(2, keepdim=True)))


def _alike(unit: Tensor, centre: Tensor) -> Tensor:
    square = (unit - centre).square().sum(-1)
    return sum((-square / (2 * width)).exp() for width in WIDTHS)


def quotas(clip: Tensor, share: float) -> Tensor:
    """The tokens [B, F] that each frame keeps. clip: S_v [B, F, n]; share: of all tokens."""
    importance = -clip.mean(2)
    part = ((importance - importance.amax(1, keepdim=True)) / TEMPERATURE).softmax(1)
    scale = (share * (1 + part - part.mean(1, keepdim=True))).clamp(max=1)
    return (scale * clip.shape[2]).round().long().clamp(min=1)
