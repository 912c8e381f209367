"""The attention that each column of a batch receives from chosen query rows: the last, those after an image, its own.

Which rows these are follows from counts known on the host, so only those rows are computed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.core.signals import DecoderAttention, Signal
from vtc.engine.placement import Batch, Placement
from vtc.engine.ranks import WHOLE, Ranks
from vtc.engine.state import Segment
from vtc.engine.turns import Past
from vtc.kernels.attention_reduce import attention_columns, attention_rows
from vtc.kernels.information import mutual_information
from vtc.kernels.topk import topk_sorted
from vtc.kernels.transfer import upload


@dataclass
class Rows:
    """A batch within one segment. batch, placement: of the unpruned prompts; kept: the remaining tokens of each image;
    valid [B, S] bool or None: real columns of the segment; ends [B]: one past the last real column of each prompt;
    past: of a later turn, what the layer holds of the earlier ones."""

    batch: Batch
    placement: Placement
    kept: list
    segment: Segment
    valid: Tensor | None
    ends: list[int]
    past: Past | None = None

    @property
    def before(self) -> int:
        """Number of columns of earlier turns, which the keys of a layer have before the segment's own."""
        return 0 if self.past is None else self.past.width

    def key_mask(self, rows: slice = slice(None), stop: int | None = None) -> Tensor | None:
        """Which columns of the keys are real [B, W + S] bool, up to column `stop` of the segment; None if all are."""
        own = None if self.valid is None else self.valid[rows, :stop]
        if self.past is None or self.past.valid is None and own is None:
            return own
        past, count = self.past.valid, self.width if stop is None else stop
        like = self.segment.index.new_ones(len(self.segment.index), 1, dtype=torch.bool)[rows]
        past = like.expand(-1, self.before) if past is None else past[rows]
        own = like.expand(-1, count) if own is None else own
        return torch.cat([past.to(own.device), own], 1)

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.segment.width

    def text_after(self, b: int, ordinal: int) -> int:
        """Number of text tokens after the last token of an image."""
        return int(self.batch.host.stays(b)[self.placement.bounds[b][ordinal][1] + 1 :].sum())

    def after(self, b: int, ordinal: int) -> int:
        """The first column after an image. Before any drop it is the same as in the prompt, even if the mask has holes;
        later, padding is only at the ends, and the column is found by counting back from the end."""
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

    def first_queries(self, needs: tuple[Signal, ...]) -> list[int]:
        """The first column of each prompt whose query any of these signals reads; its end if there is none."""
        asked = {s.queries for s in needs if isinstance(s, DecoderAttention) and s.ahead}
        firsts = list(self.ends)
        for b in (b for b, kept in enumerate(self.kept) if kept and asked):
            after = [self.ends[b] - 1, *(self.after(b, j) for j in range(len(self.kept[b])))]
            firsts[b] = 0 if "image" in asked else self.ends[b] - 1 if asked == {"last"} else min(after)
        return firsts

    def visual(self, b: int) -> Tensor:
        """Which columns [S] bool of a prompt are visual tokens."""
        index = self.segment.index[b]
        visual = self.batch.is_image[b].to(index.device)[index]
        return visual if self.valid is None else visual & self.valid[b]

    def left(self, b: int, ordinal: int) -> list[int]:
        """Number of tokens left of an image and of each later image of the prompt."""
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

    query [B, H, S, e], key [B, Hkv, W + S, e] with W columns of earlier turns. queries: see `DecoderAttention`;
    ordinal: which image of each prompt; raters [B, S] bool: its raters. A prompt without such an image gets zeros.
    """
    prompts = [b for b, kept in enumerate(rows.kept) if ordinal < len(kept)]
    ends, device = rows.ends, query.device
    tails = {b: rows.text_after(b, ordinal) for b in prompts}
    if queries == "last" or queries in ("after", "raters") and not any(tails.values()):
        last = upload(torch.tensor(ends), device).unsqueeze(1) - 1
        picked = query.gather(2, last[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3]))
        where = last + rows.before
        out = attention_rows(picked, key, scale=scale, key_mask=rows.key_mask(), causal_positions=where)
        return out[:, 0, rows.before :]
    chosen = torch.zeros(len(ends), rows.width, dtype=torch.bool, device=device)
    column = torch.arange(rows.width, device=device)
    text = ~rows.batch.is_image.to(device).gather(1, rows.segment.index.to(device))
    first, stop = rows.width, 0
    for b in prompts:
        after, (head, tail) = rows.after(b, ordinal), rows.placement.bounds[b][ordinal]
        if queries == "image":
            inner = tail - head + 1 - len(rows.placement.places[b][ordinal])
            start, end, eligible = after - rows.left(b, ordinal)[0] - inner, after, ~text[b]
        else:
            start, end, eligible = (after, ends[b], text[b]) if tails[b] else (ends[b] - 1, ends[b], column >= 0)
        chosen[b] = eligible & (column >= start) & (column < end)
        first, stop = min(first, start), max(stop, end)
    if queries == "raters":
        chosen &= raters.to(device)
    if rows.valid is not None:
        chosen &= rows.valid
    out = attention_columns(
        query[:, :, first:stop], key[:, :, : rows.before + stop], scale=scale, query_mask=chosen[:, first:stop],
        key_mask=rows.key_mask(stop=stop), causal=True,
    )  # fmt: skip
    return torch.nn.functional.pad(out[:, rows.before :], (0, rows.width - stop))


def own_columns(rows: Rows, b: int, ordinal: int, device: torch.device) -> Tensor:
    """Columns [n] of what is left of an image."""
    (head, tail), place = rows.placement.bounds[b][ordinal], rows.segment.index[b].to(device)
    own = rows.visual(b).to(device) & (place >= head) & (place <= tail)
    return own.to(torch.uint8).sort(descending=True, stable=True).indices[: len(rows.kept[b][ordinal].offsets)]


def unturned(
    query: Tensor, key: Tensor, scale: float | None, rows: Rows, ordinal: int, raters: Tensor, turns, share: float,
    ranks: Ranks = WHOLE,
) -> Tensor:  # fmt: skip
    """`UnturnedAttention` of one image of each prompt, by column [B, S] float32; one head at a time.

    raters [B, S] bool; turns: cosines and sines [B, S, e] of the columns; share: of the heads;
    ranks: that hold them.
    """
    heads, group, device = query.shape[1], query.shape[1] // key.shape[1], query.device
    out = torch.zeros(len(rows.kept), rows.width, dtype=torch.promote_types(query.dtype, torch.float32), device=device)
    for b, kept in enumerate(rows.kept):
        if ordinal >= len(kept):
            continue
        text, own = rows.text_columns(b, ordinal).to(device), own_columns(rows, b, ordinal, device)
        text = text if len(text) else text.new_full((1,), rows.ends[b] - 1)
        bias = sum(x[b, text].to(out) @ x[b, own].to(out).t() for x in turns)
        bias = (bias + query.shape[3] - turns[0].shape[2]) / query.shape[3] ** 0.5  # channels that are not turned
        weight = raters[b].to(device)[text].to(out)
        mask, where = rows.key_mask(slice(b, b + 1)), text + rows.before
        by_head = []
        for h in range(heads):
            q, k = query[b : b + 1, h : h + 1, text], key[b : b + 1, h // group : h // group + 1]
            attention = attention_rows(q, k, scale=scale, key_mask=mask, causal_positions=where)[0]
            attention = attention[:, rows.before + own]
            by_head.append(weight @ (attention.to(out) / bias) / weight.sum())
        each = ranks.joined(torch.stack(by_head))
        most = topk_sorted(each.sum(1).unsqueeze(0), max(1, round(share * len(each))))[0]
        out[b, own] = each[most].mean(0)
    return out


def information(
    query: Tensor, key: Tensor, scale: float | None, rows: Rows, ordinal: int, ranks: Ranks = WHOLE
) -> Tensor:
    """The information in the attention of the text after an image, see `TextInformation`: [B, 2] float64. Computed one
    head at a time, so that memory never exceeds text tokens times keys."""
    heads, group = query.shape[1], query.shape[1] // key.shape[1]
    out = torch.zeros(len(rows.kept), 2, dtype=torch.float64, device=query.device)
    for b, kept in enumerate(rows.kept):
        if ordinal >= len(kept):
            continue
        text = rows.text_columns(b, ordinal).to(query.device)
        text = text if len(text) else text.new_full((1,), rows.ends[b] - 1)
        columns = own_columns(rows, b, ordinal, query.device)
        mask, where = rows.key_mask(slice(b, b + 1)), text + rows.before
        for h in range(heads):
            q, k = query[b : b + 1, h : h + 1, text], key[b : b + 1, h // group : h // group + 1]
            attention = attention_rows(q, k, scale=scale, key_mask=mask, causal_positions=where)[0]
            out[b, 0] += mutual_information(attention[:, rows.before + columns])
        out[b, 1] = len(text)
    out[:, 0] = ranks.total(out[:, 0])
    return out
