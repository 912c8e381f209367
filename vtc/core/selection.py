"""A Selection: which tokens are kept and which are merged into them. It applies to any tensor with a token axis."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vtc.core.errors import PatchError


@dataclass(frozen=True)
class Merge:
    """A sparse many-to-one map of all tokens onto the kept ones.

    target [B, N]: the slot 0..K-1 that a token is merged into, -1 for a token that is dropped.
    weight [B, N] float32 or float64: its weight; the new feature of a slot is the weighted sum of its tokens.
    unprojected: the sum is taken over the projector's input, and projected afterwards. With a [CLS] encoder, [CLS] then
    comes first: target and weight are [B, 1 + N].
    extra: additional targets, for tokens that are merged into several slots.
    """

    target: Tensor
    weight: Tensor
    unprojected: bool = False
    extra: "Extra | None" = None

    def on_tokens(self, tokens: int) -> "Merge":
        """The same for what has a row for each of `tokens` tokens and none for a [CLS]."""
        lead = self.target.shape[1] - tokens
        if not lead:
            return self
        extra = self.extra
        if extra is not None:
            from_cls = extra.source < lead
            extra = Extra((extra.source - lead).clamp(min=0), extra.target.masked_fill(from_cls, -1), extra.weight)
        return Merge(self.target[:, lead:], self.weight[:, lead:], self.unprojected, extra)

    def unit(self, b: int) -> "Merge":
        """The merge of unit b alone."""
        target, weight, *extra = (x[b : b + 1] for x in (self.target, self.weight, *(self.extra or ())))
        return Merge(target, weight, self.unprojected, Extra(*extra) if extra else None)


class Extra(NamedTuple):
    """E additional flows in each unit, each [B, E]: the token, as an index into `Merge.target`; the slot 0..K-1 that it
    is merged into, -1 for none; its weight."""

    source: Tensor
    target: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Flow:
    """Where the tokens of one merging unit go. It refers to the tensors of the selection; `places` computes on demand.

    offsets [n]: places of the unit's tokens in the image's run. keep [K]: indices into them. target [n], or [1 + n]
    with [CLS] first, extra: see Merge.
    """

    offsets: Tensor
    keep: Tensor
    target: Tensor
    extra: Extra | None = None

    def places(self) -> tuple[Tensor, Tensor]:
        """The unit's places [n] in the image's run and the place [n] that each is merged into, -1 if it is
        dropped. Both are on the host, so the call waits for the device."""
        offsets, keep, target = self.offsets.cpu(), self.keep.cpu(), self.target.cpu()
        target = target[len(target) - len(offsets) :]
        return offsets, offsets[keep][target.clamp(min=0)].masked_fill(target < 0, -1)

    def more(self) -> Tensor:
        """The further flows of tokens that flow into several: places [E', 2], from and into, in the order of `extra`,
        without those of the encoder's [CLS]. On the host, as `places`."""
        if self.extra is None:
            return torch.empty(0, 2, dtype=torch.long)
        offsets, keep, source, target = (x.cpu() for x in (self.offsets, self.keep, *self.extra[:2]))
        source = source - (len(self.target) - len(offsets))
        real = (source >= 0) & (target >= 0)
        return torch.stack([offsets[source[real]], offsets[keep][target[real]]], 1)


@dataclass(frozen=True)
class Selection:
    """The result of a stage for B units of N tokens each.

    keep [B, K]: original indices, ascending. valid [B, K] bool: False marks filler at the end of a row when units
    keep different counts (adaptive methods, which may also keep none); None means that every entry counts. It may be on
    the host, so that nothing waits for the device. merge: see Merge; None = pruning.
    order [B, K]: the slots in their new sequence order, if that is not ascending; filler comes last here, too. score
    [B, K]: the importance of each slot, for stages inside the language model that need it.
    Inside the encoder only, by slot: mix [B, K, N] float32 or float64: the weights of a merge in which a token may go
    into several slots (merge is then None); sizes [B, K]: the size of each slot, if that is not the sum of the sizes
    merged into it; carry [B, K]: values passed to the next step of the stage (the signal `Carried`).
    """

    keep: Tensor
    valid: Tensor | None = None
    merge: Merge | None = None
    order: Tensor | None = None
    score: Tensor | None = None
    mix: Tensor | None = None
    sizes: Tensor | None = None
    carry: Tensor | None = None

    @classmethod
    def marked(cls, kept: Tensor, most: int) -> "Selection":
        """Keeps the tokens marked in kept [B, N] bool, at most `most` in each unit; `valid` shows how many."""
        keep = (~kept).to(torch.uint8).sort(dim=1, stable=True).indices[:, :most]
        return cls(keep, valid=kept.gather(1, keep))

    def check(self, tokens: int) -> "Selection":
        """Raises PatchError when the indices have a wrong shape or type; values are checked by the contract tests,
        because reading them here would cost a device synchronisation per forward."""
        if self.keep.ndim != 2 or self.keep.dtype != torch.long:
            raise PatchError(f"keep must be a LongTensor [B, K], got {self.keep.dtype} {tuple(self.keep.shape)}")
        if not 0 < self.keep.shape[1] <= tokens:
            raise PatchError(f"a stage kept {self.keep.shape[1]} of {tokens} tokens; possible: 1 to {tokens}")
        return self

    def row(self, b: int) -> Tensor:
        """The kept indices [K_b] of unit b, filler removed."""
        return self.keep[b] if self.valid is None else self.keep[b][self.valid[b]]

    def apply(self, x: Tensor) -> Tensor:
        """Gathers the kept entries of x [B, N, ...] -> [B, K, ...] (positions, masks, provenance, features)."""
        index = self.keep.to(x.device).reshape(*self.keep.shape, *[1] * (x.ndim - 2))
        return x.gather(1, index.expand(-1, -1, *x.shape[2:]))

    def apply_features(self, x: Tensor) -> Tensor:
        """Features x [B, N, D] -> [B, K, D]: gathered, or summed by the merge weights, in float32 (float64 for
        float64 x)."""
        if self.mix is not None:
            weight = self.mix.to(x.device, torch.promote_types(x.dtype, torch.float32))
            return (weight @ x.to(weight.dtype)).to(x.dtype)
        if self.merge is None:
            return self.apply(x)
        dtype = torch.promote_types(x.dtype, torch.float32)
        out = torch.zeros(x.shape[0], self.keep.shape[1], x.shape[2], dtype=dtype, device=x.device)
        _flow(out, x, self.merge.target, self.merge.weight)
        if self.merge.extra is not None:
            source, target, weight = self.merge.extra
            _flow(out, x.gather(1, _rows(source.to(x.device), x)), target, weight)
        return out.to(x.dtype)

    def targets(self, tokens: int) -> Tensor:
        """The slot [B, N] that each of `tokens` tokens is merged into (of several, the one with the largest weight), -1
        for a dropped token."""
        if self.merge is not None:
            return self.merge.target
        slots = torch.arange(self.keep.shape[1], device=self.keep.device).expand_as(self.keep)
        if self.mix is None:
            targets = self.keep.new_full((len(self.keep), tokens), -1)
        else:
            targets = self.mix.argmax(1).masked_fill(self.mix.amax(1) == 0, -1)
        return targets.scatter(1, self.keep, slots)


def _rows(index: Tensor, x: Tensor) -> Tensor:
    return index.unsqueeze(-1).expand(-1, -1, x.shape[2])


def _flow(out: Tensor, x: Tensor, target: Tensor, weight: Tensor) -> None:
    """Adds each row of x [B, n, D], times its weight, to its target row of out; -1 means none."""
    target = target.to(x.device)
    weight = weight.to(x.device, out.dtype).masked_fill(target < 0, 0)
    out.scatter_add_(1, _rows(target.clamp(min=0), x), x.to(out.dtype) * weight.unsqueeze(-1))
