"""VisionTrim: dominant tokens by attention from [CLS] and the patches, the rest merged by relevance to the text."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from vtc.core.errors import ConfigError
from vtc.core.selection import Extra, Merge, Selection
from vtc.core.signals import (
    AttentionColumns,
    ClipPatches,
    ClipWords,
    ClsAttention,
    Context,
    Encoder,
    EncoderFeatures,
    Features,
    PatchAttention,
    Signal,
    TextEmbeddings,
    Unprojected,
)
from vtc.kernels.affinity import local_importance
from vtc.kernels.complement import Complement, complement
from vtc.kernels.merge import Groups, merged_slots
from vtc.kernels.topk import topk_sorted
from vtc.strategies import METHODS
from vtc.strategies.base import Stage


def released_metric(attention: Tensor, received: Tensor) -> Tensor:
    """The mean of [CLS] attention and attention from the other patches, each [B, N] scaled to unit norm. -> [B, N]."""
    return (normalize(attention.float(), dim=1) + normalize(received.float(), dim=1)) / 2


def paper_metric(attention: Tensor, local: Tensor) -> Tensor:
    """The paper's mix [N] of the attention of [CLS] and of the local importance, [N] each: the softmax of either,
    weighted by the variance of the other's share of both."""
    c, near = attention.to(local.dtype).softmax(0), local.softmax(0)
    share = (near.var() / (c.var() + near.var())).nan_to_num(0.5)
    return share * c + (1 - share) * near


@METHODS.register("visiontrim")
@dataclass(frozen=True)
class VisionTrim(Stage):
    """Keeps dominant tokens, and anchors relevant to the question that absorb the rest.

    Dominant tokens have the largest metric, which uses attention alone. Of the others, those with the largest
    mean cosine to the words of the question are anchors. In rounds, each remaining token is assigned to the anchor
    relevant to the same words, and an anchor adds the mean of its tokens (see `vtc.kernels.complement`); there is no
    final division, so an anchor's norm may grow fourfold. The dominant tokens come first in the sequence.

    Knobs:
    - tgvc: share of the budget for anchors, round(count * tgvc), halves to even; 16 of 64.
    - iterations: rounds of merging.
    - metric: "released": the mean of [CLS] attention and attention from the other patches, each at unit norm; "paper":
      [CLS] attention and the similarity of a patch to its neighbours, mixed by their variances, which the released code
      computes and does not use.
    - relevance: "embeddings": words are the language model's input embeddings, and the projected tokens are compared
      and merged; "clip": as published, words and patches in CLIP's common space, merged before the projector; needs the
      CLIP model of the vision tower.
    - layer: the encoder layer whose attention is read (index, or relative depth as a float).

    Paper: VisionTrim, ICLR 2026, arXiv 2601.22674. Official code: hanxunyu/VisionTrim @ 22b686d (Apache-2.0), the last
    commit that has the model's code; LLaVA-1.5 with 48 + 16 tokens.
    Departures: "embeddings" is the default, so that no second model is needed; relevance="clip" on LLaVA is the
    published setting. Its third part, inside the language model, is commented out in the code and unspecified, and is
    not included. A budget too small for an anchor drops the rest. On LLaVA-NeXT, where the code would fail, each tile
    has its own tokens; SigLIP and Qwen, where the mean attention received replaces that of [CLS], are our extensions.
    The CLIP temperature is omitted, because no rank depends on it. Rounds in float64, ties to the lower index.
    """

    tgvc: float = 0.25
    iterations: int = 3
    metric: Literal["released", "paper"] = "released"
    relevance: Literal["clip", "embeddings"] = "embeddings"
    layer: int | float = -2

    grid = True
    needs_cls = True
    tile_scope = "per_tile"

    def __post_init__(self):
        if not 0 <= self.tgvc < 1:
            raise ConfigError(f"tgvc={self.tgvc} is out of range; possible: a share in [0, 1)")
        if not 1 <= self.iterations <= 100:
            raise ConfigError(f"iterations={self.iterations} is out of range; possible: 1 to 100")

    @property
    def needs_text(self) -> bool:
        """Only "clip" reads the question as text; for "embeddings" the prompt's ids are enough."""
        return self.relevance == "clip"

    def needs(self, encoder: Encoder) -> tuple[Signal, ...]:
        """The tokens and words to compare, the signals of the metric, and the projector's input if that is merged."""
        layer, clip = encoder.layer(self.layer, "layer"), self.relevance == "clip"
        attention = ClsAttention(layer) if encoder.has_cls else AttentionColumns(layer, "mean")
        second = PatchAttention(layer) if self.metric == "released" else EncoderFeatures()
        compared = (ClipPatches(), ClipWords()) if clip else (Features(), TextEmbeddings())
        return (*compared, attention, second, *([Unprojected()] if clip else []))

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `released_metric`, `paper_metric` and `complement`; exactly `count` slots."""
        tokens, words, attention, second = (context[s] for s in self.needs(encoder) if s != Unprojected())
        all_kept = context.count == context.tokens
        anchors = 0 if all_kept else round(context.count * self.tgvc)
        if self.metric == "released":
            metric = released_metric(attention, second)
        else:
            rows = context.tokens // context.columns  # raises if there is no raster
            local = [local_importance(x.clone(), (rows, context.columns)).to(attention.device) for x in second]
            metric = torch.stack([paper_metric(*pair) for pair in zip(attention, local, strict=True)])
        dominant = topk_sorted(metric.to(tokens.device), context.count - anchors)
        units = zip(tokens, words.to(tokens.device), dominant, strict=True)
        parts = [complement(t.clone(), w.clone(), d, anchors, self.iterations) for t, w, d in units] if anchors else []
        clip = self.relevance == "clip"
        return merged(dominant, parts, context.tokens, clip, clip and encoder.has_cls)


def merged(dominant: Tensor, parts: list[Complement], tokens: int, unprojected: bool, cls: bool) -> Selection:
    """The Selection of dominant tokens [B, d] and the complement of each unit; reports show a token's target in the
    last round. cls: the projector's input begins with [CLS], which is dropped."""
    group = dominant.new_full((len(dominant), tokens), -1)
    none = Groups(dominant[:, :0], group, torch.zeros(group.shape, device=group.device))
    if not parts:
        keep, order, *last = merged_slots(dominant, none)
        rounds = [last]
    else:
        anchors = torch.stack([f.anchors for f in parts])
        rounds = [[torch.stack(x) for x in zip(*pairs, strict=True)] for pairs in zip(*(f.rounds for f in parts))]
        anchor_slots = torch.arange(anchors.shape[1], device=anchors.device).expand(anchors.shape)
        group, weight = rounds.pop()
        last = Groups(anchors, group.scatter(1, anchors, anchor_slots), weight.scatter(1, anchors, 1))
        keep, order, *last = merged_slots(dominant, last)
        slots = order[:, dominant.shape[1] :]
        rounds = [(g.where(g < 0, slots.gather(1, g.clamp(min=0))), w) for g, w in rounds]
        rounds = [last, *rounds]
    if cls:
        rounds = [(pad(target, (1, 0), value=-1), pad(weight, (1, 0))) for target, weight in rounds]
    (target, weight), *more = rounds
    extra = None
    if more:
        source = torch.arange(target.shape[1], device=target.device).repeat(len(target), len(more))
        extra = Extra(source, *(torch.cat(x, 1) for x in zip(*more, strict=True)))
    return Selection(keep, merge=Merge(target, weight, unprojected, extra), order=order)
