"""FlowCut: drops tokens after every second layer of the encoder, more if [CLS] attention is concentrated."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import Carried, ClsAttention, ClsValueAttention, Context, Encoder, Signal, ValueNorms
from vtc.kernels.topk import topk_sorted
from vtc.strategies import METHODS
from vtc.strategies.base import Cut, EncoderStage


@METHODS.register("flowcut")
@dataclass(frozen=True)
class FlowCut(EncoderStage):
    """Drops tokens after every second layer of the encoder, by scores accumulated over the layers so far.

    In a layer, a token's score is (a / sum a + g / sum g) * w: a is the softmax attention of [CLS] to it; g is the
    softmax of the product of [CLS]'s value with its value; both are head means over patches; w is the L1 norm of its
    head-averaged value. The accumulated score is half the previous one plus half that of the layer. After every second
    layer, n - round((n - T) / sqrt(rem) * (1 - e^2)) of n tokens are kept, at least the target T, where `rem` layers
    remain until the last cut and e is the entropy of a divided by ln n. The last cut leaves T. Encoders without [CLS]
    have no value term and use the mean query in place of [CLS]. The intermediate counts therefore depend on the image.

    Knobs:
    - merge: for Qwen2-VL. "survivors" selects patches one by one; then every four neighbours in the remaining sequence
      become one visual token, whatever parts of the image they come from, and these take the first places of the image
      with their M-RoPE positions, as released. "cells", our extension, selects whole 2 x 2 cells by the mean of their
      patches' scores and keeps true places; it is the only option on Qwen2.5-VL, whose windows reorder neighbours.

    Paper: FlowCut, arXiv 2505.19536, NeurIPS 2025; official code: TungChintao/FlowCut @ a2ecd24 (Apache-2.0), packages
    `flowcut` and `FlowCut_Qwen`. Where they differ, this follows the code, not the paper: no division by the value's
    dimension (it does not change the ranking); no value term without [CLS]; `rem` counts layers, not cuts; the
    encoder's last cut is one layer before the one that the projector reads, on Qwen after the last; on LLaVA-NeXT every
    crop keeps half of the final number K, and `flowcut_decoder` follows. Departures: on LLaVA-1.5 each image has its
    own schedule, as in the paper's batches of one (the code takes the largest cut of a batch); the crops of one image
    share one, as in the code. The code does not update the bounds of packed images after a cut; here they are updated.
    In a windowed layer of Qwen2.5-VL, a is the attention of each window's mean query within the window. Float32, ties
    to the lower index. SigLIP is an extension: the form without [CLS].
    """

    merge: Literal["survivors", "cells"] = "survivors"

    adaptive = True
    needs_cls = True

    def singly(self, encoder: Encoder) -> bool:
        """Whether survivors are merged."""
        return self.merge == "survivors"

    def _last(self, encoder: Encoder) -> int:
        """The layer after which the last cut is made."""
        return encoder.last if encoder.cell > 1 else encoder.last - 1

    def steps(self, encoder: Encoder) -> tuple[Cut, ...]:
        """One after every second layer, counted back from the last one."""
        if self.merge == "survivors" and encoder.cell > 1 and len(encoder.global_layers) < encoder.depth:
            raise ConfigError(
                f"merge='survivors' would join patches of different windows of this {encoder.family} encoder; "
                "possible: merge=cells"
            )
        last = self._last(encoder)
        if last < 0:
            raise ConfigError(
                f"flowcut needs 2 layers before the projector's, not {last + 1}; possible: a deeper encoder"
            )
        return tuple(Cut(layer) for layer in range(last % 2, last + 1, 2))

    def counts(self, tokens: int, target: int, encoder: Encoder) -> tuple[int, ...]:
        """The target, the minimum at every step."""
        return (target,) * len(self.steps(encoder))

    def _layers(self, encoder: Encoder, step: int) -> range:
        """The layers whose scores a step accumulates."""
        cut = self.steps(encoder)[step].layer
        return range(max(0, cut - 1), cut + 1)

    def _signals(self, layer: int, encoder: Encoder) -> tuple[Signal, ...]:
        value = (ClsValueAttention(layer),) if encoder.has_cls else ()
        return ClsAttention(layer), ValueNorms(layer), *value

    def needs(self, encoder: Encoder, step: int) -> tuple[Signal, ...]:
        """The accumulated score, and the signals of the layers since the last cut."""
        signals = [signal for layer in self._layers(encoder, step) for signal in self._signals(layer, encoder)]
        return Carried(), *signals

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See the class."""
        score = context[Carried()]
        for layer in self._layers(encoder, context.step):
            layer_score = flow(*(context[signal] for signal in self._signals(layer, encoder)))
            score = layer_score if layer == 0 else 0.5 * score + 0.5 * layer_score
        left = self._last(encoder) - layer
        if left == 0:
            return Selection(topk_sorted(score, context.count))
        attention = context[ClsAttention(layer)]
        drop_counts = cut_size(attention, context.count, left, floor=0.0 if encoder.has_cls else 1e-7)
        stays = (context.tokens - _shared(drop_counts, context.images)).clamp(min=context.count)
        ranked = score.sort(dim=1, descending=True, stable=True).indices
        slots = torch.arange(context.tokens, device=score.device).expand_as(ranked)
        valid = slots < stays.unsqueeze(1)
        chosen = torch.zeros_like(valid, dtype=torch.uint8).scatter_(1, ranked, valid.to(torch.uint8))
        keep = chosen.sort(dim=1, descending=True, stable=True).indices
        return Selection(keep, valid=valid, carry=score.gather(1, keep))


def flow(attention: Tensor, length: Tensor, values: Tensor | None = None) -> Tensor:
    """The score of a layer [B, N], float32: attention (plus value similarity) as shares, times the value's norm."""
    if values is None:
        return attention * length
    share = attention / attention.sum(1, keepdim=True) + values / values.sum(1, keepdim=True)
    return share * length


def cut_size(attention: Tensor, target: int, left: int, floor: float = 0.0) -> Tensor:
    """How many of n tokens to drop: (n - target) / sqrt(left) * (1 - e^2), rounded, halves to even; [B] long.

    attention [B, n]; left: layers until the last cut; floor: added inside the logarithm.
    """
    n = attention.shape[1]
    share = attention / attention.sum(1, keepdim=True)
    log = (share + floor).clamp(min=torch.finfo(share.dtype).tiny).log()
    entropy = -(share * log).sum(1) / torch.tensor(n, dtype=share.dtype).log().to(share.device)
    return ((n - target) / left**0.5 * (1 - entropy**2)).round().long()


def _shared(counts: Tensor, images: tuple[int, ...]) -> Tensor:
    """The largest count [B] among the units of the same image."""
    if len(set(images)) == len(counts):
        return counts
    numbers = torch.tensor([sorted(set(images)).index(i) for i in images], device=counts.device)
    most = counts.new_zeros(len(set(images))).scatter_reduce(0, numbers, counts, "amax")
    return most[numbers]
