"""The attention that every column of a batch receives from chosen rows of it: the last, those after an image, its own.

Which rows these are follows from counts known on the host, so only the rows in question are computed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.engine.placement import Batch, Placement
from vtc.engine.state import Segment
from vtc.kernels.attention_reduce import attention_columns, attention_rows
from vtc.kernels.information import mutual_information
from vtc.kernels.topk import topk_sorted
from vtc.kernels.transfer import upload


@dataclass
class Rows:
    """A batch as one segment holds it. batch, placement: of the unpruned prompts; kept: what is left of each image;
    valid [B, S] bool or None: real columns of the segment; ends [B]: one past the last real column of each prompt."""

    batch: Batch
    placement: Placement
    kept: list
    segment: Segment
    valid: Tensor | None
    ends: list[int]

    @property
    def width(self) -> int:
        """Columns."""
        return self.segment.width

    def text_after(self, b: int, ordinal: int) -> int:
        """Text tokens after the last token of an image."""
        return int(self.batch.host.stays(b)[self.placement.bounds[b][ordinal][1] + 1 :].sum())

    def after(self, b: int, ordinal: int) -> int:
        """The first column after an image. Before any drop it is where the prompt has it, holes in the mask or not;
        later, padding is at the ends only, and it is counted from the end back."""
        if self.segment.whole:
            return self.placement.bounds[b][ordinal][1] + 1
        return self.ends[b] - self.text_after(b, ordinal) - sum(self.left(b, ordinal)[1:])

    def text_columns(self, b: int, ordinal: int) -> Tensor:
        """Columns [t] of the text after an image (not of other images)."""
        start, index = self.after(b, ordinal), self.segment.index[b]
        text = ~self.batch.is_image[b].to(index.device)[index]
        text = text if self.valid is None else text & self.valid[b]
        order = text[start : self.ends[b]].to(torch.uint8).sort(descending=True, stable=True).indices
        return order[: self.text_after(b, ordinal)] + start

    def visual(self, b: int) -> Tensor:
        """Which columns [S] bool of a prompt are visual tokens."""
        index = self.segment.index[b]
        visual = self.batch.is_image[b].to(index.device)[index]
        return visual if self.valid is None else visual & self.valid[b]

    def left(self, b: int, ordinal: int) -> list[int]:
        """Tokens left of an image and of each one after it in the prompt."""
        return [len(kept.offsets) for kept in self.kept[b][ordinal:]]


def received(
    query: Tensor,
    key: Tensor,
    scale: float | None,
    rows: Rows,
    queries: str,
    ordinal: int,
    raters: Tensor | None = None,
) -> Tensor:
    """Mean over heads and chosen queries of the causal attention that each column receives [B, S] float32.

    query [B, H, S, e], key [B, Hkv, S, e]. queries: see `DecoderAttention`; ordinal: the image of each prompt that is
    meant; raters [B, S] bool: its raters. A prompt without such an image gets zeros.
    """
    having = [b for b, kept in enumerate(rows.kept) if ordinal < len(kept)]
    ends, device = rows.ends, query.device
    tails = {b: rows.text_after(b, ordinal) for b in having}
    if queries == "last" or queries in ("after", "raters") and not any(tails.values()):
        last = upload(torch.tensor(ends), device).unsqueeze(1) - 1
        picked = query.gather(2, last[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3]))
        return attention_rows(picked, key, scale=scale, key_mask=rows.valid, causal_positions=last)[:, 0]
    chosen = torch.zeros(len(ends), rows.width, dtype=torch.bool, device=device)
    column = torch.arange(rows.width, device=device)
    text = ~rows.batch.is_image.to(device).gather(1, rows.segment.index.to(device))
    first, stop = rows.width, 0
    for b in having:
        after, (head, tail) = rows.after(b, ordinal), rows.placement.bounds[b][ordinal]
        if queries == "image":
            inner = tail - head + 1 - len(rows.placement.places[b][ordinal])
            start, end, wanted = after - rows.left(b, ordinal)[0] - inner, after, ~text[b]
        else:
            start, end, wanted = (after, ends[b], text[b]) if tails[b] else (ends[b] - 1, ends[b], column >= 0)
        chosen[b] = wanted & (column >= start) & (column < end)
        first, stop = min(first, start), max(stop, end)
    if queries == "raters":
        chosen &= raters.to(device)
    if rows.valid is not None:
        chosen &= rows.valid
    out = attention_columns(
        query[:, :, first:stop], key[:, :, :stop], scale=scale, query_mask=chosen[:, first:stop],
        key_mask=None if rows.valid is None else rows.valid[:, :stop], causal=True,
    )  # fmt: skip
    return torch.nn.functional.pad(out, (0, rows.width - stop))


def own_columns(rows: Rows, b: int, ordinal: int, device: torch.device) -> Tensor:
    """Columns [n] of what is left of an image."""
    (head, tail), place = rows.placement.bounds[b][ordinal], rows.segment.index[b].to(device)
    own = rows.visual(b).to(device) & (place >= head) & (place <= tail)
    return own.to(torch.uint8).sort(descending=True, stable=True).indices[: len(rows.kept[b][ordinal].offsets)]


def unturned(
    query: Tensor, key: Tensor, scale: float | None, rows: Rows, ordinal: int, raters: Tensor, turns, share: float
) -> Tensor:
    """`UnturnedAttention` of one image of each prompt, by column [B, S] float32; one head at a time.

    raters [B, S] bool; turns: cosines and sines [B, S, e] of the columns; share: of the heads.
    """
    heads, group, device = query.shape[1], query.shape[1] // key.shape[1], query.device
    out = torch.zeros(len(rows.kept), rows.width, dtype=torch.promote_types(query.dtype, torch.float32), device=device)
    for b, kept in enumerate(rows.kept):
        if ordinal >= len(kept):
            continue
        text, own = rows.text_columns(b, ordinal).to(device), own_columns(rows, b, ordinal, device)
        text = text if len(text) else text.new_full((1,), rows.ends[b] - 1)
        bias = sum(x[b, text].to(out) @ x[b, own].to(out).t() for x in turns) / query.shape[3] ** 0.5
        weight = raters[b].to(device)[text].to(out)
        mask = None if rows.valid is None else rows.valid[b : b + 1]
        found = []
        for h in range(heads):
            q, k = query[b : b + 1, h : h + 1, text], key[b : b + 1, h // group : h // group + 1]
            attention = attention_rows(q, k, scale=scale, key_mask=mask, causal_positions=text)[0][:, own]
            found.append(weight @ (attention.to(out) / bias) / weight.sum())
        each = torch.stack(found)
        most = topk_sorted(each.sum(1).unsqueeze(0), max(1, round(share * heads)))[0]
        out[b, own] = each[most].mean(0)
    return out


def information(query: Tensor, key: Tensor, scale: float | None, rows: Rows, ordinal: int) -> Tensor:
    """What the text after an image tells by its attention, as `TextInformation` has it: [B, 2] float64. One head at a
    time, so that there are never more numbers than text tokens times keys."""
    heads, group = query.shape[1], query.shape[1] // key.shape[1]
    out = torch.zeros(len(rows.kept), 2, dtype=torch.float64, device=query.device)
    for b, kept in enumerate(rows.kept):
        if ordinal >= len(kept):
            continue
        text = rows.text_columns(b, ordinal).to(query.device)
        text = text if len(text) else text.new_full((1,), rows.ends[b] - 1)
        columns = own_columns(rows, b, ordinal, query.device)
        mask = None if rows.valid is None else rows.valid[b : b + 1]
        for h in range(heads):
            q, k = query[b : b + 1, h : h + 1, text], key[b : b + 1, h // group : h // group + 1]
            found = attention_rows(q, k, scale=scale, key_mask=mask, causal_positions=text)[0]
            out[b, 0] += mutual_information(found[:, columns])
        out[b, 1] = len(text)
    return out
