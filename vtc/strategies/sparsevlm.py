"""SparseVLM: drops inside the language model by the attention of image-relevant text; some tokens are merged."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtc.core.errors import ConfigError, shown
from vtc.core.selection import Merge, Selection
from vtc.core.signals import Context, Decoder, DecoderAttention, Hidden, Signal, UnturnedAttention
from vtc.kernels.density_peaks import density_peaks
from vtc.kernels.merge import Groups, merged_slots
from vtc.kernels.topk import topk_sorted
from vtc.strategies import METHODS
from vtc.strategies.base import DecoderStage, Step, steps_at

ENTERED = 576  # the number of tokens that the released lists are for
LISTS = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}
LISTS_2 = {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)}  # of version 2.0
EPS = 1e-6


def recycled_count(pruned: int) -> int:
    """How many of the pruned tokens are merged rather than dropped: int(0.3 * pruned) + 1."""
    return min(pruned, int(0.3 * pruned) + 1)


def cluster_count(pruned: int) -> int:
    """The number of tokens they are merged into: int(recycled / 10) + 1."""
    return recycled_count(pruned) // 10 + 1 if pruned else 0


def split(tokens: int, count: int) -> tuple[int, int]:
    """Splits `count` of `tokens` into kept and merged tokens: as many kept ones as leave room for the merged ones."""
    if count >= tokens:
        return tokens, 0
    plain = next((k for k in range(count, 0, -1) if k + cluster_count(tokens - k) <= count), 1)
    return plain, count - plain


def released_shares(retain_token: int, recycle: bool, version: int = 1) -> tuple[float, ...]:
    """The tokens left after each drop, including merged ones, as shares of the 576 that entered."""
    left, shares = ENTERED, []
    for kept in (LISTS if version == 1 else LISTS_2)[retain_token]:
        left = min(kept, left - 1) + (cluster_count(left - min(kept, left - 1)) if recycle else 0)
        shares.append(left / ENTERED)
    return tuple(shares)


def recycle(
    score: Tensor, hidden: Tensor, kept: Tensor, clusters: int, ranked: bool = True, eps: float = EPS
) -> tuple[Tensor, Groups]:
    """The tokens outside `kept` [B, K] that are recycled [B, m], best first, and their clusters.

    score [B, N], hidden [B, N, D]. A cluster is the sum of its tokens, divided by their number plus eps. ranked: see
    `density_peaks`.
    """
    batch, tokens = score.shape
    group, weight = kept.new_full((batch, tokens), -1), torch.zeros_like(score)
    many = recycled_count(tokens - kept.shape[1])
    order = score.scatter(1, kept, -torch.inf).sort(dim=1, descending=True, stable=True).indices[:, :many]
    if not clusters:
        return order, Groups(kept.new_empty(batch, 0), group, weight)
    states = hidden.gather(1, order.unsqueeze(-1).expand(-1, -1, hidden.shape[2]))
    centres, cluster = density_peaks(states, clusters, ranked)
    sizes = score.new_zeros(batch, clusters).scatter_add_(1, cluster, torch.ones_like(cluster, dtype=score.dtype))
    share = (sizes + eps).reciprocal().gather(1, cluster)
    return order, Groups(order.gather(1, centres), group.scatter_(1, order, cluster), weight.scatter_(1, order, share))


@METHODS.register("sparsevlm")
@dataclass(frozen=True)
class SparseVLM(DecoderStage):
    """Keeps the tokens that the raters attend to most in the layer just run, and merges the best of the others.

    Raters are the tokens of the text after the image whose input embeddings agree with its visual tokens more than the
    mean (see `vtc.kernels.raters`). The score is their attention, averaged over heads and raters.
    Of P pruned tokens the m = int(0.3 P) + 1 best are recycled: int(m / 10) + 1 clusters of their hidden
    states (see `vtc.kernels.density_peaks`) give one token each, the mean of its members. In the sequence the merged
    tokens come after the others, in the order of the density peaks.

    Knobs:
    - layers: layers that run before each drop (a number, or relative depth as a float); the attention is that of
      the last of them. 3, 7 and 16 of 32 are published.
    - retain_token: which of the released lists for 576 tokens, 192, 128, 96 or 64 (about the mean over layers; for 192:
      300, 200 and 110 tokens and 9, 4 and 3 merged ones), as shares of the tokens that entered.
    - ratios: custom shares instead of a list, including merged tokens.
    - recycle: whether tokens are merged; in version 2 none are.
    - version: 1, or 2 for the released version 2.0 (SparseVLM+): other lists, no merging, and the raters' attention is
      divided by what their rotary positions alone give, and averaged over the heads that then attend to the image most
      (see `UnturnedAttention`). It keeps the tokens' positions: set `positions: keep` for the strategy.
    - heads: in version 2, the share of the heads that is averaged, 14 of 32.

    Paper: SparseVLM, ICML 2025, arXiv 2410.04417. Official code: Gumpest/SparseVLMs @ 26a5f488, version 1.0 (Apache-2.0
    by its README). This follows the code: fixed lists at three layers, where the paper takes lambda * (N - rank of the
    raters' attention) from every layer with a lambda unknown to us; means and Euclidean distances, where the paper sums
    and compares by cosine. Version 2.0 was written from a description of its code, without golden vectors.
    Departures: no noise in the densities (the code adds up to 1e-6, so that its selection varies); ties to the lower
    index. A budget includes merged tokens, and is met exactly. If no text token is above the mean, all text tokens are
    raters; without text after the image, the last prompt token is. Several images, batches and padding are ours, as are
    LLaVA-NeXT and Qwen, whose 2-D positions are kept where the code renumbers. Float32.
    """

    layers: tuple[int | float, ...] = (0.09375, 0.21875, 0.5)
    retain_token: Literal[192, 128, 96, 64] = 192
    ratios: tuple[float, ...] | None = None
    recycle: bool = True
    version: Literal[1, 2] = 1
    heads: float = 0.4375

    def __post_init__(self):
        if not 0 < self.heads <= 1:
            raise ConfigError(f"heads={shown(self.heads)} is out of range; possible: a share in (0, 1]")
        if self.retain_token not in LISTS:
            raise ConfigError(
                f"retain_token={shown(self.retain_token)} is unknown; possible: {', '.join(map(str, LISTS))}, or ratios"
            )

    @property
    def merges(self) -> bool:
        """Whether tokens merge."""
        return self.recycle and self.version == 1

    def steps(self, decoder: Decoder) -> tuple[Step, ...]:
        """One step per listed layer."""
        shares = self.ratios
        if shares is None:
            shares = released_shares(self.retain_token, self.merges, self.version)
        return steps_at(self.layers, shares, decoder)

    def count(self, entered: int, share: float) -> int:
        """Rounded to nearest, halves to even; at least 1."""
        return max(1, round(entered * share))

    def needs(self, decoder: Decoder, step: int) -> tuple[Signal, ...]:
        """The raters' attention in the layer just run and, for merging, its output hidden states."""
        layer = self.steps(decoder)[step].layer - 1
        if self.version == 2:
            return (UnturnedAttention(layer, self.heads),)
        score = DecoderAttention(layer, "raters", ahead=False)
        return (score, Hidden()) if self.merges else (score,)

    def select(self, context: Context, decoder: Decoder) -> Selection:
        """See `split` and `recycle`; exactly `count` slots."""
        needed, (plain, clusters) = self.needs(decoder, context.step), split(context.tokens, context.count)
        score = context[needed[0]].to(torch.promote_types(context[needed[0]].dtype, torch.float32))
        if not self.merges or not clusters:
            return Selection(topk_sorted(score, context.count))
        kept = topk_sorted(score, plain)
        _, groups = recycle(score, context[needed[1]], kept, clusters)
        keep, order, target, weight = merged_slots(kept, groups)
        return Selection(keep, merge=Merge(target, weight), order=order)
