"""The tokens of one run of the vision encoder: which are left, where they are, and how many original ones each holds.

There are two orders. In the hidden states the tokens of a unit always ascend by their place in the unpruned sequence
(so that windows and images stay contiguous). A stage sees them in its own order, which is the same at first and changes
where a Selection has an `order`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.core.selection import Selection
from vtc.core.signals import EncoderKeys, Signal
from vtc.kernels.augment import augmented


@dataclass
class Group:
    """Units with the same number of tokens [B, n] and the same schedule, in the order in which a stage sees them.

    units: their indices. counts: tokens left after each step. place: each token's place in the unpruned sequence of its
    unit (of merged tokens, the place of the merge target). at: its index among the tokens of all units. into [B, N]:
    the token that each original one was merged into, -1 if it was dropped. size: original tokens in each, None before
    any merge; carry: see Selection.
    """

    units: list[int]
    counts: tuple[int, ...]
    place: Tensor
    at: Tensor
    into: Tensor
    size: Tensor | None = None
    carry: Tensor | None = None
    merged: bool = False

    @property
    def width(self) -> int:
        """Number of tokens left in each unit."""
        return self.place.shape[1]

    def sizes(self) -> Tensor:
        """Number of original tokens in each token [B, n] float32."""
        return torch.ones_like(self.place, dtype=torch.float32) if self.size is None else self.size

    def after(self, selection: Selection, rows: list[int], length: int) -> tuple["Group", Tensor]:
        """The units `rows` of this group with the first `length` slots of a selection, and the slots [b, length] in
        their order."""
        row = torch.tensor(rows, device=self.place.device)
        keep = selection.keep[row, :length].to(self.place.device)
        slots = torch.arange(length, device=keep.device).expand(len(rows), -1)
        slots = slots if selection.order is None else selection.order[row].to(keep.device)
        target = selection.targets(self.width)[row]
        target = target[:, target.shape[1] - self.width :].to(keep.device)
        target = target.masked_fill(target >= length, -1)
        rank = slots.argsort(1)
        into = self.into[row]
        slot = target.gather(1, into.clamp(min=0)).masked_fill(into < 0, -1)
        into = rank.gather(1, slot.clamp(min=0)).masked_fill(slot < 0, -1)
        size = self._sizes_after(selection, row, length, target)
        carry = None if selection.carry is None else selection.carry[row, :length].to(keep.device).gather(1, slots)
        merges = self.merged or selection.merge is not None or selection.mix is not None
        group = Group(
            [self.units[i] for i in rows], self.counts, self.place[row].gather(1, keep).gather(1, slots), keep, into,
            None if size is None else size.gather(1, slots), carry, merges,
        )  # fmt: skip
        return group, slots

    def _sizes_after(self, selection: Selection, row: Tensor, length: int, target: Tensor) -> Tensor | None:
        if selection.sizes is not None:
            return selection.sizes[row, :length].to(target.device, torch.float32)
        if selection.merge is None:
            return None if self.size is None else self.size[row].gather(1, selection.keep[row, :length])
        sizes = self.sizes()[row].masked_fill(target < 0, 0)
        return sizes.new_zeros(len(row), length).scatter_add_(1, target.clamp(min=0), sizes)


@dataclass
class Moved:
    """The mapping between two sequences. new, old [M]: the index of each remaining token among all tokens, in either;
    width, total: tokens of a crop and of all units in the old one, filler included."""

    new: Tensor
    old: Tensor
    width: int
    total: int


class Sequence:
    """totals: tokens of each unit; schedules: tokens of each left after each step. lead: [CLS] rows before those of a
    crop; packed: units are concatenated in [S, D], else stacked in [C, n, D] with filler at the end of shorter ones;
    cell: rows per token."""

    def __init__(self, totals: list[int], schedules: list[tuple[int, ...]], lead: int, packed: bool, cell: int):
        self.totals, self.lead, self.packed, self.cell = totals, lead, packed, cell
        self.lengths, self.width = list(totals), max(totals)
        self.same = len(set(totals)) == 1  # no filler
        kinds: dict[tuple, list[int]] = {}
        for unit, schedule in enumerate(schedules):
            kinds.setdefault((totals[unit], schedule), []).append(unit)
        self.groups = []
        for (n, counts), units in kinds.items():
            place = torch.arange(n).expand(len(units), -1)
            self.groups.append(Group(units, counts, place, place + self._starts()[units].unsqueeze(1), place))
        self._cached: dict[object, object] = {}

    def to(self, device: torch.device) -> None:
        """Moves the bookkeeping tensors to a device."""
        for group in self.groups:
            if group.at.device != device:
                for name in ("place", "at", "into", "size", "carry"):
                    x = getattr(group, name)
                    setattr(group, name, None if x is None else x.to(device))

    def _starts(self) -> Tensor:
        """The start of each unit among the tokens of all units."""
        lengths = self.lengths if self.packed else [self.width] * len(self.totals)
        return torch.tensor([0, *lengths[:-1]]).cumsum(0)

    def flat(self, hidden: Tensor) -> Tensor:
        """The tokens [T, D] (cells: [T, rows * D]) of hidden states, without [CLS]."""
        self.to(hidden.device)
        if self.packed:
            return hidden.reshape(-1, self.cell * hidden.shape[-1])
        return hidden[:, self.lead :].reshape(-1, hidden.shape[-1])

    def joined(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Hidden states with `rows` [T, D] as their tokens and the [CLS] of `hidden`."""
        if self.packed:
            return rows.view(-1, hidden.shape[-1])
        rows = rows.view(hidden.shape[0], -1, hidden.shape[-1])
        return torch.cat([hidden[:, : self.lead], rows], 1) if self.lead else rows

    def rows(self, parts: list[Tensor]) -> Tensor:
        """The results of `reduce` for the attention calls of one layer, as one row per token [T, ...]; a cell gets the
        mean of its patches."""
        if not self.packed:
            return torch.cat(parts).flatten(0, 1)
        values = torch.cat(parts, 1)[0]
        return values if self.cell == 1 else values.unflatten(0, (-1, self.cell)).mean(1)

    def reduce(
        self, family, signal: Signal, query: Tensor, key: Tensor, value: Tensor | None, scale: float | None, cu_seqlens,
        bias: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """`Family.reduce` with the same bias on the keys as in the attention itself; filler gets 0."""
        if bias is not None and not isinstance(signal, EncoderKeys):
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            kind = torch.promote_types(query.dtype, torch.float32)
            biased = augmented(query.to(kind), key.to(kind), bias.to(kind), scale)
        else:
            biased = query, key
        if self.packed or self.same:
            return family.reduce(signal, *biased, scale, cu_seqlens, value)
        rows = []
        for unit, n in enumerate(self.lengths):
            q, k, v = (x[unit : unit + 1, :, : self.lead + n] for x in (*biased, value))
            row = family.reduce(signal, q, k, scale, None, v)[0]
            rows.append(torch.cat([row, row.new_zeros(self.width - n, *row.shape[1:])]))
        return torch.stack(rows)

    def advance(
        self, flat: Tensor, chosen: list[tuple[Group, Selection]], lengths: list[list[int]]
    ) -> tuple[Moved, Tensor]:
        """Applies the selections of some groups (and, per unit, the number of slots used) to all tokens `flat` [T, D];
        returns the new ones [T', D], with zeros as filler."""
        groups = []
        selected = {id(group): (selection, n) for (group, selection), n in zip(chosen, lengths, strict=True)}
        before = self.width, self._tokens()
        for group in self.groups:
            if id(group) not in selected:
                groups.append((group, group.at, flat[group.at]))
                continue
            selection, counts = selected[id(group)]
            features = selection.apply_features(flat[group.at])
            for length in dict.fromkeys(counts):
                rows = [i for i, n in enumerate(counts) if n == length]
                new, slots = group.after(selection, rows, length)
                old = group.at[rows].gather(1, new.at).gather(1, slots)  # `new.at` still holds the kept indices
                kept = features[rows][:, :length]
                groups.append((new, old, kept.gather(1, slots.unsqueeze(-1).expand(-1, -1, kept.shape[2]))))
        for group, _, _ in groups:
            for unit in group.units:
                self.lengths[unit] = group.width
        self.width, self.groups, self._cached = max(self.lengths), [group for group, _, _ in groups], {}
        self.same = len(set(self.lengths)) == 1
        starts = self._starts()
        for group, _, _ in groups:
            rank = group.place.argsort(1).argsort(1)
            group.at = rank + starts[group.units].to(rank.device).unsqueeze(1)
        new, old = (
            torch.cat([group.at.flatten() for group, _, _ in groups]),
            torch.cat([o.flatten() for _, o, _ in groups]),
        )
        rows = torch.cat([x.flatten(0, 1) for _, _, x in groups])
        out = flat.new_zeros(self._tokens(), flat.shape[1]).index_copy(0, new, rows.to(flat.dtype))
        return Moved(new, old, *before), out

    def _with_lead(self, at: Tensor, width: int) -> Tensor:
        """Rows of the tokens `at` in hidden states [C * (lead + width), D] of crops."""
        return at if self.packed else at + (at // width + 1) * self.lead

    def write_back(self, hidden: Tensor, short: Tensor, moved: Moved) -> None:
        """Writes the tokens of the new sequence over the tokens they were merged from, in place."""
        wide = self.cell * hidden.shape[-1]
        rows = short.reshape(-1, wide)[self._with_lead(moved.new, self.width)]
        if self.packed:
            hidden.unflatten(0, (-1, self.cell)).index_copy_(0, moved.old, rows.unflatten(1, (self.cell, -1)))
        else:
            hidden.index_put_((moved.old // moved.width, moved.old % moved.width + self.lead), rows)

    def longer(self, short: Tensor, moved: Moved) -> Tensor:
        """Scatters the new sequence to the rows of the old one, zero elsewhere."""
        wide = self.cell * short.shape[-1]
        rows = short.reshape(-1, wide)[self._with_lead(moved.new, self.width)]
        return self.joined(short, rows.new_zeros(moved.total, wide).index_copy(0, moved.old, rows))

    def shorter(self, hidden: Tensor, moved: Moved) -> Tensor:
        """The rows of the old sequence that the new one keeps."""
        wide = self.cell * hidden.shape[-1]
        rows = hidden.reshape(-1, wide)[self._with_lead(moved.old, moved.width)]
        return self.joined(hidden, rows.new_zeros(self._tokens(), wide).index_copy(0, moved.new, rows))

    def _tokens(self) -> int:
        """Number of tokens of all units, filler included."""
        return sum(self.lengths) if self.packed else self.width * len(self.totals)

    def bias(self, proportional: bool, key: Tensor) -> Tensor | None:
        """The bias on the logits of keys like `key`: [C, lead + n], or [1, S] for a packed encoder, float32 (float64
        for float64); None if there is none."""
        sizes = proportional and any(group.size is not None for group in self.groups)
        if not sizes and (self.packed or self.same):
            return None
        if "bias" not in self._cached:
            kind, device = torch.promote_types(key.dtype, torch.float32), self.groups[0].at.device
            row = torch.full((self._tokens(),), -torch.inf, dtype=kind, device=device)
            for group in self.groups:
                size = group.sizes().to(kind) if sizes else torch.ones_like(group.place, dtype=kind)
                row.index_copy_(0, group.at.flatten(), size.log().flatten())
            if self.packed:
                row = row.repeat_interleave(self.cell).unsqueeze(0)
            else:
                row = row.view(len(self.totals), -1)
                row = torch.cat([row.new_zeros(len(row), self.lead), row], 1)
            self._cached["bias"] = row
        return self._cached["bias"].to(key.device)

    def places(self) -> tuple[Tensor, Tensor]:
        """The index of every remaining token (without filler) among those of all units, now and before any drop: two
        [M]."""
        if "places" not in self._cached:
            at = torch.cat([group.at.flatten() for group in self.groups])
            starts = torch.tensor([0, *self.totals[:-1]]).cumsum(0)
            first = [group.place + starts[group.units].to(at.device).unsqueeze(1) for group in self.groups]
            self._cached["places"] = at, torch.cat([x.flatten() for x in first])
        return self._cached["places"]

    def of_places(self, x: Tensor) -> Tensor:
        """The remaining rows [S', e] of x [S, e], which has a row for each unpruned patch of a packed encoder."""
        if ("rows", id(x)) not in self._cached:
            at, place = self.places()
            order = place.gather(0, at.argsort()).to(x.device)
            rows = x.reshape(-1, self.cell * x.shape[-1])[order].view(-1, x.shape[-1])
            self._cached["rows", id(x)] = x, rows
        return self._cached["rows", id(x)][1]

    def bounds(self, cu_seqlens: Tensor) -> Tensor:
        """Bounds of packed sequences after pruning: tokens left before each old bound; empty ones are removed."""
        if self.lengths == self.totals:
            return cu_seqlens
        if ("bounds", id(cu_seqlens)) not in self._cached:
            _, place = self.places()
            survives = torch.zeros(sum(self.totals) + 1, dtype=torch.long, device=place.device)
            survives[place + 1] = 1
            new = survives.cumsum(0)[cu_seqlens.to(place.device) // self.cell] * self.cell
            new = new.unique_consecutive().to(cu_seqlens.device, cu_seqlens.dtype)
            self._cached["bounds", id(cu_seqlens)] = cu_seqlens, new
        return self._cached["bounds", id(cu_seqlens)][1]

    def spread(self, x: Tensor) -> Tensor:
        """Scatters x, one row per remaining token (a cell: one row, or one for each of its patches), to the places of
        all tokens, zero elsewhere: [C, n, ...] -> [C, N, ...], or [T, ...] -> [all, ...] for a packed encoder."""
        return self.spreader()(x)

    def spreader(self) -> Callable[[Tensor], Tensor]:
        """`spread` with the current places, unaffected by later drops."""
        places = None if self.lengths == self.totals else (*self.places(), self._tokens())
        return functools.partial(self._spread, places)

    def _spread(self, places: tuple[Tensor, Tensor, int] | None, x: Tensor) -> Tensor:
        if places is None:
            return x
        at, place, tokens = places
        at, place = at.to(x.device), place.to(x.device)
        trailing = x.shape[1:] if self.packed else x.shape[2:]
        rows = x.reshape(tokens, -1)[at]
        out = rows.new_zeros(sum(self.totals), rows.shape[1]).index_copy(0, place, rows)
        return out.view(-1, *trailing) if self.packed else out.view(x.shape[0], -1, *trailing)
