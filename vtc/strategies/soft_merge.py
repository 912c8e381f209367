"""Soft merging: in a few layers of the vision encoder, every token is spread over similar kept tokens."""

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
    """Keeps the tokens with the most attention and merges each of the others into several of them by similarity.

    The kept tokens are those that [CLS] attends to most (without [CLS], those that receive most attention from all). c
    is the cosine of a kept token's attention key and any other's, both head means. Then, between attention and MLP,
    X' = W X with W [K, N]:

    - Spread "column": S = softmax of tau * c over the kept tokens, so that each token spreads all that it holds, its
      size s; a kept token holds s' = S s, and W = S diag(s) / s'. Sizes sum to N, and so do size-weighted features. For
      tau -> infinity each token joins the most similar kept one, with sizes as in `tome`.
    - Spread "row": W = softmax of tau * c over all tokens, sizes stay 1. For tau -> infinity it is pruning.

    Knobs:
    - layers: layers to merge in (index, or relative depth as a float); each removes an equal number of tokens.
    - tau: sharpness; a low value reduces feature norms, since it averages over dissimilar tokens.
    - spread: "column" or "row", see above.
    - proportional_attention: weight a token in attention by its size (+ log(size) on the logits).

    Our own definition, with pruning and exclusive merging as its limits; it comes from no paper, and tau and the layers
    have no published values. On LLaVA-NeXT each crop merges within itself; on Qwen a token is a 2 x 2 cell
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
        """The value of the knob."""
        return self.proportional_attention

    def steps(self, encoder: Encoder) -> tuple[Cut, ...]:
        """One in each layer; layers that coincide on a shallow encoder count once."""
        layers = sorted({encoder.layer(value, "layers") for value in self.layers})
        return tuple(Cut(layer, within=True) for layer in layers)

    def counts(self, tokens: int, target: int, encoder: Encoder) -> tuple[int, ...]:
        """Equal numbers of tokens removed in each step."""
        steps = len(self.steps(encoder))
        return tuple(tokens - (tokens - target) * (i + 1) // steps for i in range(steps))

    def needs(self, encoder: Encoder, step: int) -> tuple[Signal, ...]:
        """Attention, keys and token sizes."""
        layer = self.steps(encoder)[step].layer
        score = ClsAttention(layer) if encoder.has_cls else AttentionColumns(layer)
        return score, EncoderKeys(layer), Sizes()

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `weights`."""
        score, keys, sizes = (context[signal] for signal in self.needs(encoder, context.step))
        keep = topk_sorted(score, context.count)
        mix, kept_sizes = weights(keys, keep, sizes, self.tau, self.spread)
        return Selection(keep, mix=mix, sizes=kept_sizes)


@torch.no_grad()
def weights(keys: Tensor, keep: Tensor, size: Tensor, tau: float, spread: str) -> tuple[Tensor, Tensor]:
    """W [B, K, N] and the sizes [B, K] of the kept tokens. keys [B, N, e]; keep [B, K]; size [B, N]."""
    unit = unit_rows(keys)
    kept = unit.gather(1, keep.unsqueeze(-1).expand(-1, -1, unit.shape[2]))
    logits = kept @ unit.transpose(1, 2) * tau
    if spread == "row":
        return logits.softmax(2), torch.ones_like(keep, dtype=size.dtype)
    mass = logits.softmax(1) * size.unsqueeze(1)
    kept_sizes = mass.sum(2)
    return mass / kept_sizes.unsqueeze(2), kept_sizes
