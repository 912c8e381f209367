"""PruneSID: groups tokens by principal component, suppresses redundant ones and keeps a quota of each group."""

from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.core.errors import ConfigError
from vtc.core.selection import Merge, Selection
from vtc.core.signals import (
    AttentionColumns,
    ClsAttention,
    Context,
    Encoder,
    EncoderFeatures,
    Features,
    Signal,
    Unprojected,
)
from vtc.kernels.components import loadings
from vtc.kernels.cosine import units_at_once
from vtc.kernels.gram import cosine_matrix
from vtc.kernels.groups import fill, take
from vtc.kernels.merge import Groups, merged_slots
from vtc.kernels.suppression import suppress
from vtc.strategies import METHODS
from vtc.strategies.base import Stage


def threshold(similarity: Tensor, count: int, variant: str) -> Tensor:
    """The threshold (float64) of similarity [N, N] above which two tokens are redundant: a multiple of its mean."""
    n, diagonal = len(similarity), similarity.diagonal().sum(dtype=torch.float64)
    total = similarity.sum(dtype=torch.float64)
    if variant == "llava":
        return count / 32 * (total - diagonal) / max(1, n * (n - 1))
    return max(count / (n / 18), 1) * (total + diagonal) / (2 * n * n)


def quotas(sizes: Tensor, stay: Tensor, count: int, picks: int) -> Tensor:
    """How many tokens each of q groups keeps, LongTensor [q].

    sizes, stay: tokens of each group, and those that were not suppressed. count: the budget that sets the caps; picks:
    tokens to keep, at most count.
    """
    low = sizes.clamp(max=1)
    cap = torch.minimum(stay, sizes).clamp(max=5 * ceil(count / 64))
    more = torch.arange(count + 1, device=sizes.device).unsqueeze(1)
    raised = torch.maximum(cap, torch.minimum(cap + more, sizes))
    cap = raised.index_select(0, (raised.sum(1) >= count).to(torch.uint8).argmax(0, keepdim=True))[0]
    free = (picks - low.sum()).clamp_min(0)
    share = stay.cumsum(0).float() / stay.sum().clamp_min(1).float()
    quota = torch.minimum((free * share).round().long().diff(prepend=low.new_zeros(1)) + low, cap)
    order = stay.sort(descending=True, stable=True).indices
    return fill(quota, cap, order, free + low.sum() - quota.sum())


def picks_of(
    components: Tensor, similarity: Tensor, score: Tensor | None, count: int, picks: int, variant: str
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each unit its picks [picks] in their order, group by group; the quota [q] of each group, and how many of it
    were not suppressed [q]. components [B, N, q], similarity [B, N, N]; score [B, N], or None: a token's weight in its
    own component. Suppression runs for all units at once, since it waits for the device."""
    weight, group = components.max(2)
    score = weight if score is None else score
    limit = torch.stack([threshold(one, count, variant) for one in similarity])
    stays = suppress(similarity, score, group, limit)
    return [_picks(*unit, components.shape[2], count, picks) for unit in zip(group, score, stays)]


def _picks(
    group: Tensor, score: Tensor, stays: Tensor, groups: int, count: int, picks: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One unit of `picks_of`."""
    sizes = torch.zeros(groups, dtype=torch.long, device=group.device)
    alive = sizes.scatter_add(0, group, stays.long())
    sizes = sizes.scatter_add(0, group, torch.ones_like(group))
    quota = quotas(sizes, alive, count, picks)
    order = score.sort(descending=True, stable=True).indices
    order = order[(~stays)[order].to(torch.uint8).sort(stable=True).indices]
    return take(order, group, quota, picks)[0], quota, alive


@METHODS.register("prunesid")
@dataclass(frozen=True)
class PruneSID(Stage):
    """Keeps the non-redundant tokens of each group of related tokens, up to the group's quota.

    A token belongs to the principal component in which it has the largest weight; there are about a quarter as many
    components as tokens to keep. Within a group, by descending score, a token suppresses those whose cosine to it is
    above a multiple of the mean cosine. Quotas are proportional to the number of unsuppressed tokens; a group keeps
    these first, then the others, by score. The question is not used.

    Knobs:
    - variant: which of the two released codes to follow. "llava": the score is [CLS] attention, the projector's inputs
      are compared, and [CLS] itself is the first of the kept tokens (positions: the lowest free
      place). "qwen": the score is the weight in the component, the projected tokens are compared, no attention is
      used; the mean, and the multiple of it, are defined differently.
    - layer: for "llava", the encoder layer whose attention is read (index, or relative depth as a float).
    - factorisation: "exact", or "randomised" as in both codes, from `seed`.
    - seed: of the random factorisation; an image's place in its prompt is added.

    Paper: PruneSID ("Prune Redundancy, Preserve Essence"), ICLR 2026, arXiv 2603.09480. Official code:
    ZhengyaoFang/PruneSID @ 4ef17d9 (Apache-2.0 by its README), LLaVA-1.5, LLaVA-NeXT and Qwen2-VL.
    Departures: the factorisation is exact, so that groups do not change from call to call. Kept tokens are in raster
    order (the codes: group by group, Qwen's above 150 tokens as here). Small budgets have at least one group, and
    "qwen" accepts any budget (the code: at least 16). Groups with equal numbers are filled from the first on. On Qwen
    each image is pruned on its own (the code pools those of a batch). LLaVA-NeXT tile by tile as published, but
    after the model's own unpadding, so padding never competes. Without [CLS] the "llava" variant ranks by the mean
    attention received. The paper's budgets that move between crops are not in the code and not here. Components in
    float64, cosines in float32 (the codes compare in half precision), ties to the lower index.
    """

    variant: Literal["llava", "qwen"] = "llava"
    layer: int | float = -2
    factorisation: Literal["exact", "randomised"] = "exact"
    seed: int = 0

    grid = True
    needs_cls = True
    tile_scope = "per_tile"

    def __post_init__(self):
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed={self.seed} is out of range; possible: 0 to {2**32 - 1}")

    def needs(self, encoder: Encoder) -> tuple[Signal, ...]:
        """The features to compare, and for "llava" the score, with the projector's input for [CLS]."""
        if self.variant == "qwen":
            return (Features(),)
        layer = encoder.layer(self.layer, "layer")
        score = ClsAttention(layer) if encoder.has_cls else AttentionColumns(layer, "mean")
        return (EncoderFeatures(), score, *([Unprojected()] if encoder.has_cls else []))

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `picks_of`; exactly `count`, [CLS] among them."""
        features, *attention = (context[signal] for signal in self.needs(encoder) if signal != Unprojected())
        all_kept = context.count == context.tokens
        cls = self.variant == "llava" and encoder.has_cls and not all_kept
        if all_kept:
            chosen = torch.arange(context.tokens, device=features.device).repeat(len(features), 1)
        else:
            scores, size = attention[0].to(features.device) if attention else None, units_at_once(features)
            parts = [slice(start, start + size) for start in range(0, len(features), size)]
            chosen = torch.cat([self._units(features, scores, context, part, cls) for part in parts])
        if self.variant == "qwen" or not encoder.has_cls:
            return Selection(chosen)
        none = chosen.new_full((len(chosen), context.tokens), -1)
        keep, order, target, weight = merged_slots(
            chosen, Groups(chosen[:, :0], none, none.new_zeros(none.shape, dtype=torch.float32)), cls
        )
        if all_kept:
            target, weight = pad(target, (1, 0), value=-1), pad(weight, (1, 0))
        return Selection(keep, merge=Merge(target, weight, unprojected=True), order=order)

    def _units(self, features: Tensor, scores: Tensor | None, context: Context, part: slice, cls: bool) -> Tensor:
        """The picks of some units, ascending, [CLS] not among them."""
        features, scores = features[part].clone(), None if scores is None else scores[part]
        count, ordinals = context.count, context.ordinals[part]
        groups = min(max(count // 4, 4 if self.variant == "qwen" else 1), *features.shape[1:])
        drawn = self.factorisation == "randomised"
        components = [  # of copies: rounding of a product may depend on the memory alignment of its operand
            loadings(unit.clone(), groups, self.seed + ordinal if drawn else None)
            for unit, ordinal in zip(features, ordinals, strict=True)
        ]
        parts = picks_of(torch.stack(components), cosine_matrix(features), scores, count, count - cls, self.variant)
        return torch.stack([picks for picks, _, _ in parts]).sort(1).values
