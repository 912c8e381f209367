"""ToMe: merges the most similar tokens in every layer of the vision encoder, between attention and MLP."""

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.core.errors import ConfigError
from vtc.core.selection import Merge, Selection
from vtc.core.signals import Context, Encoder, EncoderKeys, Sizes
from vtc.kernels.joining import joined
from vtc.kernels.matching import best_partners
from vtc.strategies import METHODS
from vtc.strategies.base import Cut, EncoderStage


def halves(tokens: int, has_cls: bool, device: object) -> tuple[Tensor, Tensor]:
    """Indices of the tokens at even and at odd places of a sequence whose place 0 is [CLS], if there is one (it is not
    included): the merge sources and the merge targets."""
    every = torch.arange(tokens, device=device)
    return every[int(has_cls) :: 2], every[1 - int(has_cls) :: 2]


def most(tokens: int, has_cls: bool) -> int:
    """How many of `tokens` tokens may be merged in one step: half of them, and at most those at even places."""
    return min(tokens // 2, len(range(int(has_cls), tokens, 2)))


@METHODS.register("tome")
@dataclass(frozen=True)
class ToMe(EncoderStage):
    """Merges the r most similar pairs of tokens in every layer, by bipartite soft matching.

    Tokens at even places of the sequence (except [CLS] at place 0, which is never merged) are compared with those at
    odd places by the cosine of the layer's keys (head mean); the r best of them are merged into their best partner. A
    merged token is the size-weighted mean of its tokens, and attention is proportional (+ log(size) on the logits). The
    sequence then has the remaining even places, followed by the odd ones; this order determines the next pairing. For
    the language model tokens are in the order of their places; a merged token has the place of its target.

    Knobs:
    - inflection: how r changes from the first layer to the last: 0 constant (paper), -1 from 2r to 0, 1 from 0 to 2r.
    - proportional_attention: add log(size) (the authors' setting for models that were not trained with merging).

    The budget determines r: the smallest that meets it over all layers up to the one that the projector reads; the last
    layers merge fewer if there is a remainder. At most half of the tokens are merged in one layer.

    Paper: ToMe (Token Merging: Your ViT But Faster), arXiv 2210.09461, ICLR 2023; official code: facebookresearch/ToMe
    @ af95e4b1 (CC-BY-NC 4.0; written from the description here, none of it is copied). Departures: nothing official
    exists for vision-language models; merging in the layers up to the one that the projector reads, keeping [CLS] and
    the order of places are this library's interpretation. On LLaVA-NeXT each crop merges within itself. On Qwen a token
    is a 2 x 2 cell of patches, compared by the mean of its keys and merged patch by patch, and cells of different
    windows may merge. Float32, ties to the lower index.
    """

    inflection: float = 0.0
    proportional_attention: bool = True

    def __post_init__(self):
        if not -1 <= self.inflection <= 1:
            raise ConfigError(f"inflection={self.inflection} is out of range; possible: -1 to 1")

    @property
    def proportional(self) -> bool:
        """The value of the knob."""
        return self.proportional_attention

    def steps(self, encoder: Encoder) -> tuple[Cut, ...]:
        """One in every layer up to the one that the projector reads."""
        return tuple(Cut(layer, within=True) for layer in range(encoder.last + 1))

    def counts(self, tokens: int, target: int, encoder: Encoder) -> tuple[int, ...]:
        """The counts for the smallest r that reaches the target."""
        r = bisect_left(range(tokens), True, key=lambda r: self._counts(tokens, target, encoder, r)[-1] == target)
        counts = self._counts(tokens, target, encoder, r)
        if counts[-1] > target:
            raise ConfigError(
                f"{target} of {tokens} tokens are out of reach for merging in {len(counts)} layers, each of which "
                f"leaves at least half; possible: {counts[-1]} or more"
            )
        return counts

    def _counts(self, tokens: int, target: int, encoder: Encoder, r: int) -> tuple[int, ...]:
        counts, last = [tokens], max(1, encoder.last)
        for layer in range(encoder.last + 1):
            merges = int(r * (1 - self.inflection) + 2 * r * self.inflection * layer / last)
            counts.append(max(target, counts[-1] - min(merges, most(counts[-1], encoder.has_cls))))
        return tuple(counts[1:])

    def needs(self, encoder: Encoder, step: int) -> tuple[EncoderKeys, Sizes]:
        """The layer's keys, and the token sizes."""
        return EncoderKeys(step), Sizes()

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `match`."""
        keys, sizes = self.needs(encoder, context.step)
        return match(context[keys], context[sizes], context.count, encoder.has_cls)


def match(metric: Tensor, size: Tensor, count: int, has_cls: bool) -> Selection:
    """One step of bipartite soft matching that leaves `count` of N tokens. metric [B, N, e]; size [B, N]."""
    first, second = halves(metric.shape[1], has_cls, metric.device)
    units = len(metric)
    score, partner = best_partners(metric, first.expand(units, -1), second.expand(units, -1))
    ranked = score.sort(dim=1, descending=True, stable=True).indices
    r = metric.shape[1] - count
    joining, staying = ranked[:, :r], ranked[:, r:]
    if has_cls:
        staying = staying.sort(dim=1).values
    sequence = torch.cat([first[staying], second.expand(units, -1)], 1)
    merged = joined(sequence, first[joining], second[partner.gather(1, joining)], size)
    return Selection(merged.keep, merge=Merge(merged.target, merged.weight), order=merged.order)
