"""DART: one drop after the first layers of the language model; keeps the tokens least similar to a few pivots."""

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

EPS = 1e-9  # without it, rounding errors of an integer budget could cost one token per pivot


def longest(norms: Tensor, count: int) -> Tensor:
    """Indices [B, count] of the largest of norms [B, N], in descending order, ties to the lower index."""
    return norms.sort(dim=1, descending=True, stable=True).indices[:, :count]


def select_tokens(norms: Tensor, hidden: Tensor, text: Tensor | None, count: int, pivots: int) -> Tensor:
    """The image's pivots and the tokens selected for each pivot: LongTensor [B, count], ascending.

    norms [B, N] of the keys, hidden [B, N, D], text [B, p, D] the pivots in the text, in their order; pivots: how many
    tokens of the image are pivots. The rest of `count` is divided evenly among all pivots, and the first ones get
    the remainder. A count up to `pivots` keeps the tokens with the longest keys.
    """
    if count <= pivots:
        return topk_sorted(norms, count)
    first = longest(norms, pivots)
    anchors = hidden.gather(1, first.unsqueeze(-1).expand(-1, -1, hidden.shape[2]))
    if text is not None:
        anchors = torch.cat([anchors, text.to(anchors.dtype)], 1)
    share, more = divmod(count - pivots, anchors.shape[1])
    return least_similar(hidden, anchors, [share + (i < more) for i in range(anchors.shape[1])], first)


@METHODS.register("dart")
@dataclass(frozen=True)
class Dart(DecoderStage):
    """Keeps the tokens with the longest keys as pivots and, for each pivot, those least similar to it.

    Pivots are tokens of the image and of the text after it whose keys in the K-th layer have the largest L1 norm.
    Image pivots come first, then text pivots, each kind in descending order of key norm; each in turn selects the same
    number of remaining image tokens with the lowest cosine to it. The cosine is that of hidden states after K layers
    and the model's final norm. Text pivots do not count towards the budget.

    Knobs:
    - K: layers that see every token (a number, or relative depth as a float; at least 1); 2 of 32 are published.
    - reduction_ratio: share of the visual tokens to remove, see `count`; 0.7777 leaves 128 of 576 and 4 pivots
      (paper: 192, 128, 64 of 576, 320 of 2880).
    - pivot_image_token: pivots among the tokens of the image; at least 1.
    - pivot_text_token: pivots in the text after the image; 0 for none.

    Paper: DART (Duplication-Aware Reduction of Tokens), EMNLP 2025, arXiv 2502.11494. Official code: ZichenWen1/DART
    (Apache-2.0 by its README), read in the public fork xqy1111111/DART. This follows the code, with a fixed number per
    pivot; the paper bounds the similarity instead, such that the ratio is met.
    Departures: the order of the pivots, on which the result depends, is fixed (the code iterates over a Python set).
    With fewer text tokens than pivots, where the code fails, the existing pivots select more, the first ones the
    remainder. Padding on either side; each of several images is pruned independently, with the text after it. A budget
    set by `keep` includes the image's pivots. Float32, ties to the lower index.
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
        """For the share that reduction_ratio leaves, the released rule: entered * share rounded down to a multiple of
        the number of pivots, plus the image's pivots; 128 of 576 become 4 + 8 * 16 = 132. For any other share (a budget
        set by `keep`) that share of the tokens, rounded to nearest. At most `entered`."""
        if share >= 1 or share != 1 - self.reduction_ratio:
            return min(entered, max(1, round(entered * share)))
        pivots = self.pivot_image_token + self.pivot_text_token
        return min(entered, self.pivot_image_token + pivots * int(entered * share / pivots + EPS))

    def needs(self, decoder: Decoder, step: int) -> tuple[Signal, ...]:
        """Key norms of the last full layer, and its output hidden states for the image and the text pivots."""
        layer = decoder.layer(self.K, "K") - 1
        text = (TextPivots(layer, self.pivot_text_token),) if self.pivot_text_token else ()
        return KeyNorms(layer), FinalHidden(), *text

    def select(self, context: Context, decoder: Decoder) -> Selection:
        """See `select_tokens`; exactly `count` tokens."""
        norms, hidden, *text = (context[signal] for signal in self.needs(decoder, context.step))
        text = text[0] if text else None
        return Selection(select_tokens(norms, hidden, text, context.count, self.pivot_image_token))
