"""DART: one drop after the first layers of the language model; tokens least like a few pivots stay."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import Context, Decoder, FinalHidden, KeyNorms, Signal, TextPivots
from vtc.kernels.anchor import least_similar
from vtc.kernels.topk import topk_sorted
from vtc.strategies import METHODS
from vtc.strategies.base import DecoderStage, Step

EPS = 1e-9  # a budget that is whole but for rounding errors must not lose a token to each pivot


def longest(norms: Tensor, count: int) -> Tensor:
    """Indices [B, count] of the largest of norms [B, N], largest first, the lower index first among equals."""
    return norms.sort(dim=1, descending=True, stable=True).indices[:, :count]


def select_tokens(norms: Tensor, hidden: Tensor, text: Tensor | None, count: int, pivots: int) -> Tensor:
    """The image's pivots and what each pivot takes: LongTensor [B, count], ascending.

    norms [B, N] of the keys, hidden [B, N, D], text [B, p, D] the pivots in the text, in their order; pivots: how many
    tokens of the image are pivots. What `count` leaves beside them is spread evenly over all pivots, a remainder over
    the first ones. A count up to `pivots` keeps the tokens with the longest keys.
    """
    if count <= pivots:
        return topk_sorted(norms, count)
    first = longest(norms, pivots)
    anchors = hidden.gather(1, first.unsqueeze(-1).expand(-1, -1, hidden.shape[2]))
    if text is not None:
        anchors = torch.cat([anchors, text.to(anchors.dtype)], 1)
    each, more = divmod(count - pivots, anchors.shape[1])
    return least_similar(hidden, anchors, [each + (i < more) for i in range(anchors.shape[1])], first)


@METHODS.register("dart")
@dataclass(frozen=True)
class Dart(DecoderStage):
    """Keeps the tokens with the longest keys as pivots and, for each pivot, those that are least like it.

    Pivots are tokens of the image and of the text after it whose keys in the K-th layer have the largest L1 norm. One
    after the other, those of the image first and each kind from the longest key on, takes the same number of tokens of
    the image with the lowest cosine to it among those that are left. The cosine is that of hidden states after K layers
    and the model's final norm. Pivots in the text cost nothing of the budget.

    Knobs:
    - K: layers that see every token (a number, or relative depth as a float; at least 1); 2 of 32 are published.
    - reduction_ratio: share of the visual tokens that is removed, see `count`; 0.7777 leaves 128 of 576 and 4 pivots
      (paper: 192, 128, 64 of 576, 320 of 2880).
    - pivot_image_token: pivots among the tokens of the image; at least 1.
    - pivot_text_token: pivots in the text after the image; 0 for none.

    Paper: DART (Duplication-Aware Reduction of Tokens), EMNLP 2025, arXiv 2502.11494. Official code: ZichenWen1/DART
    (Apache-2.0 by its README), read in the public fork xqy1111111/DART. Followed is the code, a fixed number for each
    pivot; the paper has a bound on the similarity instead, chosen so that the ratio is met.
    Departures: the order of the pivots, on which the result depends, is fixed (the code runs through a Python set).
    With less text than pivots, where the code fails, the pivots that exist take more, the first ones the remainder.
    Padding on either side; several images each choose for themselves, with the text after each. A budget set by `keep`
    is met without the pivots on top. Float32, ties to the lower index.
    """

    K: int | float = 0.0625
    reduction_ratio: float = 0.7777
    pivot_image_token: int = 4
    pivot_text_token: int = 4

    def __post_init__(self):
        if not 0 <= self.reduction_ratio < 1:
            raise ConfigError(
                f"reduction_ratio={self.reduction_ratio} is out of range; possible: a share removed in [0, 1)"
            )
        for name, least in (("pivot_image_token", 1), ("pivot_text_token", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range; possible: at least {least}")

    def steps(self, decoder: Decoder) -> tuple[Step]:
        """One step, after K layers."""
        return (Step(decoder.layer(self.K, "K"), 1 - self.reduction_ratio),)

    def count(self, entered: int, share: float) -> int:
        """For the share that reduction_ratio leaves, what the released rule keeps: a budget of entered * share rounded
        down to a multiple of all pivots, and the image's pivots on top of it; 128 of 576 are 4 + 8 * 16 = 132. For any
        other share (a budget set by `keep`) that share of the tokens, rounded to nearest. Never more than there are."""
        if share >= 1 or share != 1 - self.reduction_ratio:
            return min(entered, max(1, round(entered * share)))
        pivots = self.pivot_image_token + self.pivot_text_token
        return min(entered, self.pivot_image_token + pivots * int(entered * share / pivots + EPS))

    def needs(self, decoder: Decoder, step: int) -> tuple[Signal, ...]:
        """Key norms of the last full layer, and what leaves it, of the image and of the pivots in the text."""
        layer = decoder.layer(self.K, "K") - 1
        text = (TextPivots(layer, self.pivot_text_token),) if self.pivot_text_token else ()
        return KeyNorms(layer), FinalHidden(), *text

    def select(self, context: Context, decoder: Decoder) -> Selection:
        """See `select_tokens`; exactly `count` tokens."""
        norms, hidden, *text = (context[signal] for signal in self.needs(decoder, context.step))
        text = text[0] if text else None
        return Selection(select_tokens(norms, hidden, text, context.count, self.pivot_image_token))
