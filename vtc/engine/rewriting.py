"""Attention rows that a stage changes: recomputed in chunks, next to the model's own attention backend.

The backend's output stays in every row and head that the stage does not change.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.core.errors import UnsupportedError

ENTRIES = 1 << 22
"""Most entries of an attention matrix in memory at once (a single row of all heads may have more)."""


@dataclass
class Marks:
    """Of a prompt's tokens in one layer [B, K] bool: those that the stage marked, and the visual ones."""

    marked: Tensor
    visual: Tensor

    def over(self, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both, padded with False for the tokens decoded since the prompt [B, columns]."""
        more = columns - self.marked.shape[1]
        return F.pad(self.marked.to(device), (0, more)), F.pad(self.visual.to(device), (0, more))

    def without_last(self, tokens: int) -> "Marks":
        """Those of all tokens but the last."""
        return Marks(self.marked[:, :-tokens], self.visual[:, :-tokens])

    def select(self, rows: Tensor) -> "Marks":
        """Those of the prompts `rows` [R]."""
        return Marks(*(x.index_select(0, rows.to(x.device)) for x in (self.marked, self.visual)))


@dataclass
class Attended:
    """One attention call. query [B, H, S, e]; key, value [B, Hkv, N, e]; mask, options: as passed to the backend; ends:
    the column of the last query + 1. Raises UnsupportedError where the rows cannot be recomputed."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: object
    options: dict
    ends: int

    def __post_init__(self):
        backend, mask = str(self.options["backend"]), self.mask
        supported = backend in ("sdpa", "eager") or "flash" in backend
        if not supported or mask is not None and not (isinstance(mask, Tensor) and mask.ndim in (2, 4)):
            raise UnsupportedError(
                f"rows of attention cannot be changed beside {backend!r}; possible: sdpa, eager, or flash attention"
            )
        if self.options.get("dropout"):
            raise UnsupportedError("rows of attention cannot be changed under dropout; possible: model.eval()")
        if self.key.shape[2] < self.ends:
            raise UnsupportedError(
                "rows of attention cannot be changed once a sliding window has left tokens behind; possible: a shorter "
                "prompt, or a model without a sliding window"
            )
        self.scale = self.options.get("scaling")
        self.scale = self.query.shape[-1] ** -0.5 if self.scale is None else self.scale
        self.width = self.ends if isinstance(mask, Tensor) and mask.ndim == 2 else self.key.shape[2]
        self.key, self.value = self.key[:, :, : self.width], self.value[:, :, : self.width]

    def additive_mask(self, b: slice, rows: Tensor) -> Tensor:
        """The additive mask on the logits of rows [Q] (query numbers) of prompts `b`: [b or 1, 1 or H, Q, N]."""
        if isinstance(self.mask, Tensor) and self.mask.ndim == 4:
            mask = (self.mask if self.mask.shape[0] == 1 else self.mask[b])[:, :, rows, : self.width]
            if mask.dtype != torch.bool:
                return mask
            return torch.zeros_like(mask, dtype=self.scores).masked_fill(~mask, -torch.inf)
        column = torch.arange(self.width, device=self.query.device)
        place = (rows + self.ends - self.query.shape[2]).unsqueeze(1)
        hidden = (column > place)[None, None]
        if self.options.get("sliding_window"):
            hidden = hidden | (place - column >= self.options["sliding_window"])
        if isinstance(self.mask, Tensor):
            hidden = hidden | (self.mask[b, : self.width] == 0)[:, None, None]
        return torch.zeros(hidden.shape, dtype=self.scores, device=column.device).masked_fill(hidden, -torch.inf)

    @property
    def scores(self) -> torch.dtype:
        """The dtype of softmax and sums: at least float32."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def attention(self, b: slice, rows: Tensor) -> Tensor:
        """The softmax attention [b, H, Q, N] of some rows."""
        query, key = self.query[b][:, :, rows].to(self.scores), self.key[b].to(self.scores)
        groups = key.shape[1]
        query = query.unflatten(1, (groups, -1)).flatten(2, 3)
        logits = (query @ key.transpose(2, 3)).unflatten(2, (-1, len(rows))).flatten(1, 2)
        return (logits * self.scale + self.additive_mask(b, rows)).softmax(-1)

    def outputs(self, b: slice, attention: Tensor) -> Tensor:
        """The output [b, Q, H, e] of attention rows [b, H, Q, N]: attention times values."""
        value = self.value[b].to(attention.dtype)
        grouped = attention.unflatten(1, (value.shape[1], -1)).flatten(2, 3)
        return (grouped @ value).unflatten(2, (-1, attention.shape[2])).flatten(1, 2).transpose(1, 2)

    def rows_at_once(self, prompts: int) -> int:
        """How many rows of this many prompts may be computed together; at least 1."""
        return max(1, ENTRIES // (prompts * self.query.shape[1] * self.width))


def rewrite(stage, call: Attended, marks: Marks, rows: list[Tensor], out: tuple) -> tuple[tuple, Tensor]:
    """`out` ([B, S, H, e], weights or None) with the rows that the stage changes replaced, and their number [B].

    rows: of each prompt, the queries (indices in S) that may be changed. If all prompts share one tensor, they are
    computed together.
    """
    result, weights = out[0].clone(), None if out[1] is None else out[1].clone()
    marked, visual = marks.over(call.width, call.query.device)
    together = len(rows) > 1 and all(queries is rows[0] for queries in rows)
    prompts = [slice(None)] if together else [slice(b, b + 1) for b in range(len(rows))]
    counts = torch.zeros(len(rows), dtype=torch.long, device=call.query.device)
    for b, chosen in zip(prompts, rows, strict=False):
        for chunk in chosen.split(call.rows_at_once(len(rows) if together else 1)):
            attention, changed = stage.change(call.attention(b, chunk), marked[b], visual[b])
            new = call.outputs(b, attention).to(result.dtype)
            result[b, chunk] = torch.where(changed.transpose(1, 2).unsqueeze(-1), new, result[b, chunk])
            counts[b] += changed.sum((1, 2))
            if weights is not None:
                old = weights[b][:, :, chunk, : call.width]
                weights[b, :, chunk, : call.width] = torch.where(changed.unsqueeze(-1), attention.to(old.dtype), old)
    return (result, weights, *out[2:]), counts
