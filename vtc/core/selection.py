"""A Selection: which tokens stay and which are merged into them. It applies to any tensor with a token axis."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.core.errors import PatchError


@dataclass(frozen=True)
class Merge:
    """A sparse many-to-one map of all tokens onto the kept ones.

    target [B, N]: the slot 0..K-1 that a token flows into, -1 for a token that is dropped.
    weight [B, N] float32 or float64: its share; the new feature of a slot is the weighted sum of what flows into it.
    unprojected: the sum is taken over what the projector receives, and projected afterwards. With a [CLS] encoder its
    [CLS] then comes first: target and weight are [B, 1 + N].
    """

    target: Tensor
    weight: Tensor
    unprojected: bool = False


@dataclass(frozen=True)
class Flow:
    """Where the tokens of one merging unit flow. It holds references to what was decided; `places` computes on demand.

    offsets [n]: places of the unit's tokens in the image's run. keep [K]: indices into them. target [n], or [1 + n]
    with [CLS] first: see Merge.
    """

    offsets: Tensor
    keep: Tensor
    target: Tensor

    def places(self) -> tuple[Tensor, Tensor]:
        """The unit's places [n] in the image's run and the place [n] that each of them flows into, -1 where it is
        dropped. Both are on the host, so the call waits for the device."""
        offsets, keep, target = self.offsets.cpu(), self.keep.cpu(), self.target.cpu()
        target = target[len(target) - len(offsets) :]
        return offsets, offsets[keep][target.clamp(min=0)].masked_fill(target < 0, -1)


@dataclass(frozen=True)
class Selection:
    """The outcome of a stage for B units of N tokens each.

    keep [B, K]: original indices, ascending. valid [B, K] bool: False marks filler at the end of a row when units
    keep different counts (adaptive methods, which may also keep none); None means that every entry counts. merge: see
    Merge; None = pruning.
    order [B, K]: slots in the order in which they stand in the sequence afterwards, where that is not ascending.
    Inside the encoder only, by slot: mix [B, K, N] float32 or float64: the weights of a merge in which a token may flow
    into several slots (merge is None then); sizes [B, K]: what the slots hold, where that is not the sum of what flows
    into them; carry [B, K]: numbers that the stage finds again at its next step (the signal `Carried`).
    """

    keep: Tensor
    valid: Tensor | None = None
    merge: Merge | None = None
    order: Tensor | None = None
    mix: Tensor | None = None
    sizes: Tensor | None = None
    carry: Tensor | None = None

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
        target = self.merge.target.to(x.device)
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight = self.merge.weight.to(x.device, dtype).masked_fill(target < 0, 0)
        out = torch.zeros(x.shape[0], self.keep.shape[1], x.shape[2], dtype=dtype, device=x.device)
        index = target.clamp(min=0).unsqueeze(-1).expand(-1, -1, x.shape[2])
        return out.scatter_add_(1, index, x.to(out.dtype) * weight.unsqueeze(-1).to(out.dtype)).to(x.dtype)

    def targets(self, tokens: int) -> Tensor:
        """The slot [B, N] that each of `tokens` tokens flows into (of several, the one with the largest share), -1 for
        one that is dropped."""
        if self.merge is not None:
            return self.merge.target
        slots = torch.arange(self.keep.shape[1], device=self.keep.device).expand_as(self.keep)
        if self.mix is None:
            found = self.keep.new_full((len(self.keep), tokens), -1)
        else:
            found = self.mix.argmax(1).masked_fill(self.mix.amax(1) == 0, -1)
        return found.scatter(1, self.keep, slots)
