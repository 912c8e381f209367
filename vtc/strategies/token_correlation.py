"""Token correlation (inspired): outliers of deep attention, and samples whose number depends on redundancy."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtc.core.errors import ConfigError, shown
from vtc.core.selection import Selection
from vtc.core.signals import ClsAttention, Context, Encoder, EncoderKeys
from vtc.kernels.gram import cosine_matrix
from vtc.kernels.transfer import upload
from vtc.strategies import METHODS
from vtc.strategies.base import Stage

TINY = 1e-30


def high_outliers(attention: Tensor, iqr: float) -> Tensor:
    """Which of attention [B, N] exceed the third quartile by more than iqr interquartile ranges: bool [B, N]."""
    low, high = torch.quantile(attention, attention.new_tensor([0.25, 0.75]), dim=1, keepdim=True)
    return attention > high + iqr * (high - low)


def information(keys: Tensor, similarity: float, limit: int) -> Tensor:
    """How many of keys [B, N, e] are not redundant, LongTensor [B]: a redundant one has more than `limit` others
    whose cosine to it is above `similarity`."""
    alike = (cosine_matrix(keys) > similarity).sum(2) - 1
    return keys.shape[1] - (alike > min(limit, keys.shape[1])).sum(1)


@METHODS.register("token_correlation")
@dataclass(frozen=True)
class TokenCorrelation(Stage):
    """Keeps, in each tile, outliers of a deep layer's [CLS] attention and tokens ranked by a low layer's.

    Inspired by the paper: its structure is known, its constants are not, and none of its results are claimed. The first
    branch keeps every token whose attention in the deep layer is a high outlier by the interquartile range. The second
    keeps as many tokens as are not redundant, ranked by the attention of the low layer; a token is redundant if its
    keys there, all heads concatenated, are similar to those of many others. The union is kept. Of several tiles the
    first, which shows the whole image, is kept completely, as in the paper. The count is a maximum: the tokens with the
    least attention are dropped, those of the second branch first.

    Knobs:
    - iqr: interquartile ranges above the third quartile that make an outlier (all constants here are ours).
    - similarity: cosine above which keys count as similar.
    - limit: how many similar others a token may have before it is redundant.
    - deep_layer: encoder layer of the first branch (index, or relative depth as a float).
    - low_layer: encoder layer of the second branch (index, or relative depth as a float).
    - sampling: "top": the tokens with the most attention; "random": drawn without replacement with the attention as
      weights, by `seed` and the image's place in its prompt.
    - seed: of random sampling.

    Paper: Token-level Correlation-guided Compression, arXiv 2407.14439 (DocOwl-1.5), known to us from its figure,
    abstract and reviews only. No code is published.
    Departures, or choices where it leaves room: no tokens are merged into those of either branch (it mentions a
    weighted sum). The paper samples; "top" is the default so that a run can be repeated. Without [CLS] (SigLIP, Qwen),
    for which the method is not meant, the query is the mean of all queries. An image of one tile is compressed, too.
    Float32, ties to the lower index.
    """

    iqr: float = 1.5
    similarity: float = 0.9
    limit: int = 8
    deep_layer: int | float = -2
    low_layer: int | float = 0.25
    sampling: Literal["top", "random"] = "top"
    seed: int = 0

    needs_cls = True
    adaptive = True

    def __post_init__(self):
        if not 0 <= self.iqr < float("inf"):
            raise ConfigError(f"iqr={shown(self.iqr)} is out of range; possible: a number from 0")
        if not -1 <= self.similarity <= 1:
            raise ConfigError(f"similarity={shown(self.similarity)} is out of range; possible: a cosine, -1 to 1")
        if self.limit < 0:
            raise ConfigError(f"limit={shown(self.limit)} is out of range; possible: 0 or more")

    def needs(self, encoder: Encoder) -> tuple[ClsAttention, ClsAttention, EncoderKeys]:
        """Attention of the deep and of the low layer, and the latter's keys."""
        deep, low = encoder.layer(self.deep_layer, "deep_layer"), encoder.layer(self.low_layer, "low_layer")
        return ClsAttention(deep), ClsAttention(low), EncoderKeys(low, True)

    def branches(self, deep: Tensor, low: Tensor, keys: Tensor, ordinals: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The tokens that each branch keeps of one tile of each unit, both bool [B, n]; see `needs`."""
        weight = low
        if self.sampling == "random":
            seeds = [torch.Generator().manual_seed((self.seed * 1_000_003 + i) % 2**63) for i in ordinals]
            drawn = torch.stack([torch.rand(low.shape[1], generator=generator) for generator in seeds])
            gumbel = -(-drawn.clamp_min(TINY).log()).clamp_min(TINY).log()
            weight = low.clamp_min(TINY).log() + upload(gumbel, low.device)
        rank = weight.sort(dim=1, descending=True, stable=True).indices.argsort(1)
        return high_outliers(deep, self.iqr), rank < information(keys, self.similarity, self.limit).unsqueeze(1)

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `branches`; at most `count`, at least one token."""
        deep, low, keys = (context[signal].to(context.device) for signal in self.needs(encoder))
        dtype = torch.promote_types(deep.dtype, torch.float32)
        deep, low = deep.to(dtype), low.to(dtype)
        sizes = [tile.tokens for tile in context.tiles] or [context.tokens]
        worth = []
        parts = zip(*(x.split(sizes, 1) for x in (deep, low, keys)), strict=True)
        for i, (a, b, k) in enumerate(parts):
            if not a.shape[1]:
                continue
            if i == 0 and len(sizes) > 1:
                worth.append(3 + a)
                continue
            outlier, sampled = self.branches(a, b, k, tuple(len(sizes) * place + i for place in context.ordinals))
            worth.append(torch.where(outlier, 2 + a, torch.where(sampled, 1 + b, 0)))
        worth = torch.cat(worth, 1)
        rank = worth.sort(dim=1, descending=True, stable=True).indices.argsort(1)
        return Selection.marked((rank < context.count) & (worth > 0) | (rank == 0), context.count)
