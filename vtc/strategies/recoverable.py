"""Recoverable Compression: tokens by [CLS] attention, others by the question, the rest merged around centres."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.core.errors import ConfigError, shown
from vtc.core.selection import Extra, Merge, Selection
from vtc.core.signals import (
    ClsAttention,
    Context,
    Encoder,
    EncoderFeatures,
    EncoderKeys,
    Features,
    Signal,
    TextEmbeddings,
    TextRelevance,
    Unprojected,
)
from vtc.kernels.outliers import local_outliers
from vtc.kernels.products import product, unit_vectors
from vtc.strategies import METHODS
from vtc.strategies.base import Stage
from vtc.strategies.cdpruner import cosine_with_words

WIDTH = 768  # of CLIP's common space, by whose root the text's cosines are divided


class Parts(NamedTuple):
    """The roles of the tokens. vision, text: bool [B, N], chosen by attention and by the question; rank [B, N]: the
    attention rank of a token among the others, from 0; centres [B]: how many of these are centres."""

    vision: Tensor
    text: Tensor
    rank: Tensor
    centres: Tensor


def _rank(score: Tensor) -> Tensor:
    """The rank of each of score [B, n] in descending order, ties to the lower index."""
    return score.sort(dim=1, descending=True, stable=True).indices.argsort(1)


def _times(number: Tensor | int, outliers: Tensor, of: Tensor | int) -> Tensor:
    """int(number * share of outliers [B, n] among `of`), [B]; in float64, as in the code."""
    return (number * (outliers.sum(1).double() / of)).long()


@METHODS.register("recoverable")
@dataclass(frozen=True)
class Recoverable(Stage):
    """Keeps tokens in three steps, each with its own budget: the share of outliers among its scores.

    1. By [CLS] attention, computed as a single head. 2. By similarity to the question, where the tokens of step 1 count
    as the least similar. 3. Of the others, those with the most attention are centres; each absorbs the `cluster_size`
    tokens most similar to it (cosine of keys plus text_gain times the similarity to the question), weighted by their
    attention. Clusters may overlap. If there is a centre, one further token is the attention-weighted sum of all
    others. In the sequence the tokens of steps 1 and 2 come first, in their order, then the centres by attention, then
    that token. Outliers are found by the local outlier factor (see `vtc.kernels.outliers`). The count is a maximum.

    Knobs:
    - text: the similarity: "embeddings": cosine of the projected token and the mean of the question's input embeddings;
      "clip": cosine in CLIP's common space, which needs the CLIP model of the tower; "none": no step 2. Both
      are divided by sqrt(768) as in the code.
    - mode: "released" reproduces two errors of the code: the number of centres is the features' width times the share
      of outliers, and the keys compared are those of the first tokens of the image instead of the remaining ones;
      "fixed": the number of remaining tokens, and their keys.
    - lof_k_vision: neighbours of the local outlier factor in step 1.
    - lof_k_text: neighbours in step 2.
    - lof_k_center: neighbours in step 3.
    - cluster_size: tokens that a centre absorbs.
    - text_gain: weight of the similarity to the question in step 3.
    - layer: the encoder layer of attention and keys (index, or relative depth as a float); the last is published.

    Paper: Recoverable Compression, AAAI 2025, arXiv 2409.01179, of which only the abstract and the repository's text
    were available to us. Official code: banjiuyufen/Recoverable-Compression (licence not recorded by us), LLaVA-1.5,
    batch 1.
    Departures: "embeddings" is the default, so that no second model is needed; for "clip" the code uses the question's
    first line with the system turn, padded, at its last position, and patches without the final norm, where vtc uses
    the question's segments and CLIP's own embeddings. At least one token is kept. The limit of the count cuts the last
    steps first. Without [CLS] (SigLIP, Qwen) the query is the mean of all queries, and the sums are over all patches
    that the projector merges. These, and LLaVA-NeXT tile by tile, are our extensions. Scores in float32, outliers in
    float64, ties to the lower index.
    """

    text: Literal["embeddings", "clip", "none"] = "embeddings"
    mode: Literal["released", "fixed"] = "released"
    lof_k_vision: int = 20
    lof_k_text: int = 20
    lof_k_center: int = 10
    cluster_size: int = 32
    text_gain: float = 50.0
    layer: int | float = -1

    needs_cls = True
    tile_scope = "per_tile"
    adaptive = True

    def __post_init__(self):
        for name in ("lof_k_vision", "lof_k_text", "lof_k_center", "cluster_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={shown(getattr(self, name))} is out of range; possible: 1 or more")

    @property
    def needs_text(self) -> bool:
        """Only "clip" reads the question as text; for "embeddings" the prompt's ids are enough."""
        return self.text == "clip"

    def needs(self, encoder: Encoder) -> tuple[Signal, ...]:
        """Attention and keys, the features to sum, and the signals for the similarity."""
        layer = encoder.layer(self.layer, "layer")
        text = {"clip": (TextRelevance(),), "embeddings": (Features(), TextEmbeddings()), "none": ()}[self.text]
        return ClsAttention(layer, True), EncoderKeys(layer, True), EncoderFeatures(), Unprojected(), *text

    def parts(self, attention: Tensor, similarity: Tensor | None, width: int, most: int) -> Parts:
        """The three steps. attention [B, N]; similarity [B, N], None for no step 2; width: of the features."""
        tokens = attention.shape[1]
        number = _times(tokens, local_outliers(attention, self.lof_k_vision), tokens).clamp(1, most)
        vision = _rank(attention) < number[:, None]
        text = torch.zeros_like(vision)
        if similarity is not None:
            masked = torch.where(vision, similarity.amin(1, keepdim=True), similarity)
            more = _times(tokens - number, local_outliers(masked, self.lof_k_text), tokens).minimum(most - number)
            text = _rank(masked) < more[:, None]
        remaining = ~(vision | text)
        remaining_count = remaining.sum(1)
        factor = width if self.mode == "released" else remaining_count
        centres = _times(factor, local_outliers(attention, self.lof_k_center, remaining), remaining_count.clamp(min=1))
        centres = centres.minimum(remaining_count).minimum(most - (tokens - remaining_count) - 1).clamp(min=0)
        return Parts(vision, text, _rank(attention.masked_fill(~remaining, -torch.inf)), centres)

    def clusters(self, parts: Parts, keys: Tensor, similarity: Tensor | None, most: int) -> tuple[Tensor, Tensor]:
        """The first `most` of the others by attention [B, most], centres or not, and the tokens most similar to each
        [B, most, cluster_size or fewer], -1 where there are fewer."""
        others = ~(parts.vision | parts.text)
        if self.mode == "released":
            index = (others.long().cumsum(1) - 1).clamp(min=0)
            keys = keys.gather(1, index.unsqueeze(-1).expand(-1, -1, keys.shape[2]))
        first, unit = parts.rank.argsort(1)[:, :most], unit_vectors(keys)
        likeness = torch.stack([product(x[i], x.t()) for x, i in zip(unit, first, strict=True)])
        if similarity is not None:
            likeness += self.text_gain * similarity.unsqueeze(1)
        ineligible = ~others.unsqueeze(1) | (torch.arange(others.shape[1], device=first.device) == first.unsqueeze(2))
        order = likeness.masked_fill_(ineligible, -torch.inf).sort(dim=2, descending=True, stable=True)
        size = min(self.cluster_size, others.shape[1])
        return first, order.indices[:, :, :size].masked_fill(order.values[:, :, :size].isinf(), -1)

    def choose(self, attention: Tensor, keys: Tensor, similarity: Tensor | None, width: int, most: int) -> Selection:
        """The complete Selection of N tokens; most: the maximum to keep, below N."""
        parts = self.parts(attention, similarity, width, most)
        main, has_centre = parts.vision | parts.text, parts.centres > 0
        centre = ~main & (parts.rank < parts.centres[:, None])
        kept = main | centre
        sum_place = (~kept).to(torch.uint8).argmax(1, keepdim=True)  # the place of the sum of the others
        kept = kept.scatter(1, sum_place, has_centre[:, None])
        selection, slot = Selection.marked(kept, most), kept.long().cumsum(1) - 1
        last = torch.where(has_centre[:, None], slot.gather(1, sum_place), -1)
        stays = main | centre
        target, weight = torch.where(stays, slot, last), torch.where(stays, 1, attention)

        first, near = self.clusters(parts, keys, similarity, most)
        chosen = (torch.arange(most, device=first.device) < parts.centres[:, None]).unsqueeze(2) & (near >= 0)
        source = near.clamp(min=0).flatten(1)
        into = torch.where(chosen, slot.gather(1, first).unsqueeze(2), -1).flatten(1)
        extra = Extra(source, into, attention.gather(1, source))

        tokens = attention.shape[1]
        key = torch.where(main, torch.arange(tokens, device=main.device), tokens + parts.rank)
        key = key.scatter(1, sum_place, torch.where(has_centre[:, None], 2 * tokens, key.gather(1, sum_place)))
        order = key.gather(1, selection.keep).masked_fill(~selection.valid, 3 * tokens).sort(dim=1, stable=True).indices
        return Selection(selection.keep, selection.valid, Merge(target, weight, True, extra), order)

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `choose`; at most `count`, or all tokens if the budget allows."""
        cls, keys, features, _, *text = self.needs(encoder)
        attention = context[cls].to(torch.promote_types(context[cls].dtype, torch.float32))
        if context.count == context.tokens:
            every = torch.arange(context.tokens, device=attention.device)
            return Selection(every.expand(len(attention), -1).contiguous())
        similarity = None
        if text:
            values = [context[signal] for signal in text]
            similarity = values[0] if self.text == "clip" else cosine_with_words(*values)
            similarity = similarity.to(attention.device, attention.dtype) / WIDTH**0.5
        selection = self.choose(attention, context[keys], similarity, context[features].shape[2], context.count)
        merge, lead = selection.merge, int(encoder.has_cls)
        extra = merge.extra._replace(source=merge.extra.source + lead)
        target, weight = pad(merge.target, (lead, 0), value=-1), pad(merge.weight, (lead, 0))
        return Selection(selection.keep, selection.valid, Merge(target, weight, True, extra), selection.order)
