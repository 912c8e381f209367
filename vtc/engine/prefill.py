"""Prefill: the kept tokens of every prompt gathered into a shorter batch, with masks and positions to match."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.engine.masks import cut_prefill
from vtc.engine.select import Kept
from vtc.engine.state import PrunedPrompt
from vtc.errors import PatchError


def image_runs(is_image: Tensor, totals: list[int]) -> tuple[list[list[int]], list[int], list[list[Tensor]]]:
    """Assigns the placeholders of a batch to images.

    is_image [B, L] bool (host). totals: tokens of each image of the encoder's run, in order. Returns per prompt the
    indices of its images; per image its source in the run (beams repeat a prompt's images); per prompt and image
    its places [tokens]. Raises PatchError when they do not add up.
    """
    rows = [row.nonzero().flatten() for row in is_image]
    count, available = sum(len(r) for r in rows), sum(totals)
    if not available or count % available:
        raise PatchError(
            f"the prompts hold {count} image tokens, the encoder gave {available}; possible: equal numbers"
        )
    copies = count // available
    requests, source, places, cursor = [], [], [], 0
    for b, row in enumerate(rows):
        if b % copies == 0:
            start = cursor
        cursor, mine, parts, left = start, [], [], row
        while len(left):
            if cursor >= len(totals) or totals[cursor] > len(left):
                raise PatchError(f"prompt {b} holds {len(row)} image tokens, which are not those of the next images")
            parts.append(left[: totals[cursor]])
            left = left[totals[cursor] :]
            mine.append(len(source))
            source.append(cursor)
            cursor += 1
        requests.append(mine)
        places.append(parts)
    return requests, source, places


@dataclass
class Packing:
    """The kept places of a batch. index [B, K] with filler repeated; valid [B, K] bool or None; lengths [B]: real
    tokens of each prompt after pruning (host); real [B, L] bool or None: real tokens before (host)."""

    index: Tensor
    valid: Tensor | None
    lengths: list[int]
    real: Tensor | None


def pack(is_image: Tensor, real: Tensor | None, places: list[list[Tensor]], kept: list[list[Kept]], device) -> Packing:
    """Text and kept visual tokens of each prompt in order, padding re-made: on the side where the batch had it, on the
    left if it had none (so that the last column stays the last token)."""
    rows = []
    for b in range(is_image.shape[0]):
        stays = ~is_image[b] if real is None else ~is_image[b] & real[b]
        parts = [stays.nonzero().flatten().to(device)]
        for where, image in zip(places[b], kept[b], strict=True):
            parts.append(where.to(device)[image.offsets])
        rows.append(torch.cat(parts).sort().values)
    lengths = [len(r) for r in rows]
    width = max(lengths)
    right = real is not None and not bool(real[:, -1].all())
    index = []
    for row in rows:
        filler = row[:1].expand(width - len(row))
        index.append(torch.cat([row, filler] if right else [filler, row]))
    if min(lengths) == width:
        return Packing(torch.stack(index), None, lengths, real)
    column, counts = torch.arange(width), torch.tensor(lengths).unsqueeze(1)
    valid = column < counts if right else column >= width - counts
    return Packing(torch.stack(index), valid.to(device), lengths, real)


def apply(kwargs: dict, packing: Packing, positions: str, mrope: bool, places, kept: list[list[Kept]]) -> PrunedPrompt:
    """Rewrites the language model's keyword arguments in place for the kept tokens; returns what to remember.

    Departure from the plain gather: with positions="keep" and no cache, an explicit mask of ones goes along, because
    transformers reads gaps in positions without a mask as packed sequences.
    """
    embeds, index = kwargs["inputs_embeds"], packing.index
    batch, length, width = embeds.shape
    embeds = _merged(embeds, places, kept)
    kwargs["inputs_embeds"] = embeds.gather(1, index.unsqueeze(-1).expand(-1, -1, width))
    shift, following = _positions(kwargs, packing, positions, mrope, batch, length)
    cache = kwargs.get("past_key_values")
    static = bool(getattr(cache, "is_compileable", False))
    kwargs["attention_mask"] = cut_prefill(kwargs.get("attention_mask"), index, packing.valid, static)
    if positions == "keep" and cache is None and kwargs["attention_mask"] is None:
        kwargs["attention_mask"] = torch.ones_like(index)
    if kwargs.get("cache_position") is not None:
        kwargs["cache_position"] = kwargs["cache_position"][: index.shape[1]]
    return PrunedPrompt(index, packing.valid, length, length, shift, following)


def _merged(embeds: Tensor, places, kept: list[list[Kept]]) -> Tensor:
    """Embeddings with merged features written over the kept visual tokens; the input itself where nothing merges."""
    changed = [
        (b, w, k) for b in range(len(kept)) for w, k in zip(places[b], kept[b], strict=True) if k.features is not None
    ]
    if not changed:
        return embeds
    embeds = embeds.clone()
    for b, where, image in changed:
        embeds[b, where.to(embeds.device)[image.offsets]] = image.features.to(embeds.dtype)
    return embeds


def _positions(kwargs: dict, packing: Packing, positions: str, mrope: bool, batch: int, length: int):
    """Sets kwargs["position_ids"]; returns (shift [B] or None, unpruned position after the prompt [B])."""
    index, device = packing.index, packing.index.device
    given = kwargs.get("position_ids")
    if given is None:
        given = torch.arange(length, device=device).expand(batch, -1)
    if given.ndim == 2 and mrope:
        given = given.unsqueeze(0).expand(3, -1, -1)
    axes = given.expand(*given.shape[:-2], batch, -1).to(device)
    kept = axes.gather(-1, index.expand(*axes.shape[:-2], -1, -1))
    real = torch.ones(batch, length, dtype=torch.bool) if packing.real is None else packing.real
    real = real.to(device)
    text = axes if axes.ndim == 2 else axes[-3:].amax(0)
    following = text.masked_fill(~real, -1).amax(1) + 1
    counted = real.long().cumsum(1) - 1
    rank = _rank(packing)
    if axes.ndim == 3 and axes.shape[0] == 4:
        # The first of four rows only tells packed sequences apart: it counts tokens, whatever the rotary positions.
        kept[0] = rank
    if positions == "keep":
        kwargs["position_ids"] = kept
        return None, following
    if axes.ndim == 2:
        new = kept - (counted.gather(1, index) - rank)
    else:
        first = text.gather(1, index).masked_fill(rank != 0, torch.iinfo(torch.long).max).amin(1, keepdim=True)
        new = (rank + first).expand_as(kept).clone()
        if axes.shape[0] == 4:
            new[0] = rank
    if packing.valid is not None:
        new = new.masked_fill(~packing.valid, 0)
    kwargs["position_ids"] = new
    last = new if new.ndim == 2 else new[-1]
    last = last if packing.valid is None else last.masked_fill(~packing.valid, -1)
    return following - (last.amax(1) + 1), following


def _rank(packing: Packing) -> Tensor:
    """How many kept tokens of its prompt come before each column [B, K]; 0 for filler."""
    if packing.valid is None:
        width = packing.index.shape[1]
        return torch.arange(width, device=packing.index.device).expand(packing.index.shape[0], -1)
    return (packing.valid.long().cumsum(1) - 1).clamp(min=0)
