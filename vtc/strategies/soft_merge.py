"""Soft merging: in a few layers of the vision encoder every token spreads over similar ones that stay."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import AttentionColumns, ClsAttention, Context, Encoder, EncoderKeys, Signal, Sizes
from vtc.kernels.matching.reference import unit_rows
from vtc.kernels.topk import topk_sorted
from vtc.strategies import METHODS
from vtc.strategies.base import Cut, EncoderStage

SHARPEST = 1e30  # products with a cosine stay finite in float32


@METHODS.register("soft_merge")
@dataclass(frozen=True)
class SoftMerge(EncoderStage):
    """Keeps the tokens with the most attention and merges all others into them, each into several by similarity.

    The kept tokens are those that [CLS] attends to most (without [CLS], those that receive most attention from all). c
    is the cosine of a kept token's attention key and any other's, both head means. Then, between attention and MLP,
    X' = W X with W [K, N]:

    - Spread "column": S = softmax of tau * c over the kept tokens, so that each token spreads all that it holds, its
      size s; a kept token holds s' = S s, and W = S diag(s) / s'. Sizes sum to N, and so do size-weighted features. For
      tau -> infinity each token joins the most similar kept one, with sizes as in `tome`.
    - Spread "row": W = softmax of tau * c over all tokens, sizes stay 1. For tau -> infinity it is pruning.

    Knobs:
    - layers: where it happens (index, or relative depth as a float), an equal number of tokens going at each.
    - tau: sharpness; a low one shortens features, since it averages over unlike tokens.
    - spread: "column" or "row", see above.
    - proportional_attention: a token attracts attention like as many as it holds (+ log(size) on the logits).

    A definition of our own that has pruning and exclusive merging as its limits; it is no paper's method, and tau and
    the layers have no published values. On LLaVA-NeXT each crop merges within itself; on Qwen a token is a 2 x 2 cell
    of patches. Needs a matrix of K x N weights for each crop. Float32, ties to the lower index.
    """

    layers: tuple[int | float, ...] = (0.25, 0.5, 0.75)
    tau: float = 20.0
    spread: Literal["column", "row"] = "column"
    proportional_attention: bool = True

    needs_cls = True

    def __post_init__(self):
        if not self.layers:
            raise ConfigError("layers=[] is empty; possible: layers of the encoder, such as [0.25, 0.5, 0.75]")
        if not 0 <= self.tau <= SHARPEST:
            raise ConfigError(f"tau={self.tau} is out of range; possible: 0 (all alike) to {SHARPEST:g}")

    @property
    def proportional(self) -> bool:
        """The knob."""
        return self.proportional_attention

    def steps(self, encoder: Encoder) -> tuple[Cut, ...]:
        """In the layers, those that fall together on a shallow encoder once."""
        layers = sorted({encoder.layer(value, "layers") for value in self.layers})
        return tuple(Cut(layer, within=True) for layer in layers)

    def counts(self, tokens: int, target: int, encoder: Encoder) -> tuple[int, ...]:
        """Equal parts."""
        steps = len(self.steps(encoder))
        return tuple(tokens - (tokens - target) * (i + 1) // steps for i in range(steps))

    def needs(self, encoder: Encoder, step: int) -> tuple[Signal, ...]:
        """Attention, keys, and what the tokens hold."""
        layer = self.steps(encoder)[step].layer
        score = ClsAttention(layer) if encoder.has_cls else AttentionColumns(layer)
        return score, EncoderKeys(layer), Sizes()

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `weights`."""
        score, keys, sizes = (context[signal] for signal in self.needs(encoder, context.step))
        keep = topk_sorted(score, context.count)
        mix, held = weights(keys, keep, sizes, self.tau, self.spread)
        return Selection(keep, mix=mix, sizes=held)


@torch.no_grad()
def weights(keys: Tensor, keep: Tensor, size: Tensor, tau: float, spread: str) -> tuple[Tensor, Tensor]:
    """W [B, K, N] and the sizes [B, K] of the kept tokens. keys [B, N, e]; keep [B, K]; size [B, N]."""
    unit = unit_rows(keys)
    kept = unit.gather(1, keep.unsqueeze(-1).expand(-1, -1, unit.shape[2]))
    logits = kept @ unit.transpose(1, 2) * tau
    if spread == "row":
        return logits.softmax(2), torch.ones_like(keep, dtype=size.dtype)
    mass = logits.softmax(1) * size.unsqueeze(1)
    held = mass.sum(2)
    return mass / held.unsqueeze(2), held
