"""Prefill: gathers the kept tokens of every prompt into a shorter batch, with masks and positions to match."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.engine.masks import cut_prefill
from vtc.engine.placement import Batch, Placement
from vtc.engine.select import Kept
from vtc.kernels.transfer import upload


@dataclass
class Packing:
    """The kept places of a batch. index [B, K], with a repeated place as filler; valid [B, K] bool or None; lengths
    [B]: real tokens of each prompt after pruning; ends [B]: one past the column of its last one (both on the host)."""

    index: Tensor
    valid: Tensor | None
    lengths: list[int]
    ends: list[int]

    def to(self, device: torch.device) -> "Packing":
        """The same on a device (the layers of a model may lie on several)."""
        valid = None if self.valid is None else self.valid.to(device)
        return Packing(self.index.to(device), valid, self.lengths, self.ends)


def pack(batch: Batch, placement: Placement, kept: list[list[Kept]]) -> Packing:
    """Packs the text and kept visual tokens of each prompt in order and pads again: after the last token as described
    in `place`, otherwise before the first (so that the last column stays the last token). Lengths follow from counts,
    so the host never waits for the device."""
    rows, total = batch.is_image.shape
    padded, device = batch.padded, batch.is_image.device
    stays = (~batch.is_image if padded is None else ~batch.is_image & padded).contiguous()
    places = [
        [where[image.offsets.to(device)] + b * total for where, image in zip(placement.places[b], kept[b], strict=True)]
        for b in range(rows)
    ]
    flat = [where for row in places for where in row]
    stays.view(-1).index_fill_(0, torch.cat(flat) if flat else stays.new_empty(0, dtype=torch.long), True)
    lengths = [
        n + sum(len(image.offsets) for image in kept[b]) - sum(map(len, placement.places[b]))
        for b, n in enumerate(placement.lengths)
    ]
    behind = [total - end for end in placement.ends]
    if placement.fixed:
        width = max(n + after for n, after in zip(lengths, behind, strict=True))
        ends = [width - after for after in behind]
    else:
        width, ends = max(lengths) + min(behind), lengths
    index = stays.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :width]
    valid = None
    if min(lengths) < width:
        first, stop = upload(torch.tensor([[end - n, end] for n, end in zip(lengths, ends, strict=True)]), device).T
        column = torch.arange(width, device=device).expand(rows, -1)
        valid = (column >= first.unsqueeze(1)) & (column < stop.unsqueeze(1))
        index = index.gather(1, (column - first.unsqueeze(1)).clamp(min=0).masked_fill(~valid, 0))
    if any(image.ordered for row in kept for image in row):
        # An image's tokens stand in its kept places, but in their own order.
        ordered = torch.arange(rows * total, device=device)
        for where in flat:
            ordered[where.sort().values] = where
        first = torch.arange(rows, device=device).unsqueeze(1) * total
        index = ordered[index + first] - first
    return Packing(index, valid, lengths, ends)


@dataclass
class Tokens:
    """The positions of a batch's tokens. positions [B, S], or [3 or 4, B, S] with M-RoPE; valid [B, S] bool or None;
    following [B]: the position of the next token."""

    positions: Tensor
    valid: Tensor | None
    following: Tensor

    def to(self, device: torch.device) -> "Tokens":
        """The same on a device (the layers of a model may lie on several)."""
        valid = None if self.valid is None else self.valid.to(device)
        return Tokens(self.positions.to(device), valid, self.following.to(device))


def apply(kwargs: dict, packing: Packing, before: Tokens, positions: str, places, kept: list[list[Kept]]) -> Tokens:
    """Rewrites the language model's keyword arguments in place for the kept tokens. before: the unpruned positions.

    Departure from the plain gather: with positions="keep" and no cache, an explicit mask of ones is added, because
    without a mask transformers takes gaps in positions for packed sequences.
    """
    embeds, index = kwargs["inputs_embeds"], packing.index
    embeds = merged(embeds, places, kept)
    kwargs["inputs_embeds"] = embeds.gather(1, index.unsqueeze(-1).expand(-1, -1, embeds.shape[2]))
    tokens = move(before, packing.index, packing.valid, positions)
    kwargs["position_ids"] = tokens.positions
    cache = kwargs.get("past_key_values")
    static = bool(getattr(cache, "is_compileable", False))
    kwargs["attention_mask"] = cut_prefill(kwargs.get("attention_mask"), index, packing.valid, static)
    if positions == "keep" and cache is None and kwargs["attention_mask"] is None:
        kwargs["attention_mask"] = torch.ones_like(index)
    if kwargs.get("cache_position") is not None:
        kwargs["cache_position"] = kwargs["cache_position"][: index.shape[1]]
    return tokens


def merged(x: Tensor, places, kept: list[list[Kept]]) -> Tensor:
    """x [B, S, D] with merged features written over the kept visual tokens; x itself where nothing merges.

    places: per prompt and image, the columns of x that its offsets index.
    """
    changed = [
        (b, w, k) for b in range(len(kept)) for w, k in zip(places[b], kept[b], strict=True) if k.features is not None
    ]
    if not changed:
        return x
    x = x.clone()
    for b, where, image in changed:
        x[b, where.to(x.device)[image.offsets]] = image.features.to(x.dtype)
    return x


def unpruned_tokens(kwargs: dict, padded: Tensor | None, mrope: bool) -> Tokens:
    """The positions of the prompt as passed to the language model. padded [B, L] bool: its real tokens, None without
    padding."""
    batch, length = kwargs["inputs_embeds"].shape[:2]
    device = kwargs["inputs_embeds"].device
    positions = kwargs.get("position_ids")
    if positions is None:
        positions = torch.arange(length, device=device).expand(batch, -1)
    if positions.ndim == 2 and mrope:
        positions = positions.unsqueeze(0).expand(3, -1, -1)
    positions = positions.expand(*positions.shape[:-2], batch, -1).to(device)
    last = _text(positions) if padded is None else _text(positions).masked_fill(~padded, -1)
    return Tokens(positions, padded, last.amax(1) + 1)


def move(tokens: Tokens, index: Tensor, valid: Tensor | None, positions: str) -> Tokens:
    """The tokens `index` [B, K] of `tokens` with their positions kept, or renumbered starting at the first one's.

    valid [B, K] bool or None: see Packing.
    """
    axes = tokens.positions
    kept_positions = axes.gather(-1, index.expand(*axes.shape[:-2], -1, -1))
    rank = _rank(index, valid)
    if positions == "keep":
        if axes.ndim == 3 and axes.shape[0] == 4:
            # The first of four rows only separates packed sequences: it counts tokens, whatever the positions.
            kept_positions[0] = rank
        return Tokens(kept_positions, valid, tokens.following)
    first = _text(kept_positions).masked_fill(rank != 0, torch.iinfo(torch.long).max).amin(1, keepdim=True)
    new = rank + first  # filler repeats a token's position, so the largest is the last real token's
    following = new.amax(1) + 1
    if valid is not None:
        new = new.masked_fill(~valid, 0)
    return Tokens(new.expand_as(kept_positions).clone(), valid, following)


def _text(positions: Tensor) -> Tensor:
    """The largest position of each token over the rotary axes [B, S]."""
    return positions if positions.ndim == 2 else positions[-3:].amax(0)


def _rank(index: Tensor, valid: Tensor | None) -> Tensor:
    """How many kept tokens of its prompt come before each column [B, K]; 0 for filler."""
    if valid is None:
        return torch.arange(index.shape[1], device=index.device).expand(index.shape[0], -1)
    return (valid.long().cumsum(1) - 1).clamp(min=0)
