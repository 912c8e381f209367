"""Attention masks after tokens were dropped: 2-D, 4-D and dicts by layer type, at prefill and at decode."""

import torch
from torch import Tensor

from vtc.core.errors import UnsupportedError

SPARE = 256  # spare columns of a growing mask


def padding_mask(mask: object, length: int) -> Tensor | None:
    """Which prompt tokens are real [B, length] bool, derived from the mask that the language model was given.

    In a causal 4-D mask [B, 1, q, kv], sliding or not, a column is real if a later query attends to it (the last one:
    if it attends to itself). Raises UnsupportedError for other kinds.
    """
    if mask is None:
        return None
    if isinstance(mask, dict):
        return next((padding_mask(m, length) for m in mask.values() if m is not None), None)
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise UnsupportedError(
            f"attention mask of type {type(mask).__name__} is not supported; possible: None, 2-D or 4-D"
        )
    if mask.ndim == 4:
        mask = mask[:, 0, :, :length]
        visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        real = visible.tril(-1).any(1)
        real[:, -1] |= visible[:, -1, -1]
        return real
    return mask[:, :length] != 0


def cut_prefill(mask: object, index: Tensor, valid: Tensor | None, static: bool) -> object:
    """The mask of the kept tokens. index [B, K]: kept places; valid [B, K] bool or None; static: see `_ready_made`."""
    if mask is None or _ready_made(mask, static):
        return None if valid is None else valid.long()
    if mask.ndim == 2:
        return torch.ones_like(index, dtype=mask.dtype) if valid is None else valid.to(mask.dtype)
    rows = index[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
    mask = mask.expand(index.shape[0], -1, -1, -1).gather(2, rows)
    return _columns(mask, index, valid, mask.shape[3])


class Grown:
    """A 2-D mask over a growing cache: a step writes only the columns of its own tokens, however long the prompt is."""

    def __init__(self):
        self.buffer: Tensor | None = None
        self.filled = 0

    def select(self, rows: Tensor) -> "Grown":
        """The same of the prompts `rows` [R]."""
        grown = Grown()
        if self.buffer is not None:
            grown.buffer, grown.filled = self.buffer.index_select(0, rows.to(self.buffer.device)), self.filled
        return grown

    def upto(self, start: int, valid: Tensor | None, after: Tensor, tokens: int) -> Tensor:
        """The mask [B, start + n], a view of one buffer: `valid` [B, start] or ones, then `after` [B, n], whose last
        `tokens` columns are new."""
        width, buffer = start + after.shape[1], self.buffer
        if buffer is None or self.filled != width - tokens or buffer.shape[1] < width or not _alike(buffer, after):
            self.buffer = buffer = after.new_empty(after.shape[0], width + after.shape[1] + SPARE)
            buffer[:, :start] = 1 if valid is None else valid
            tokens = after.shape[1]
        buffer[:, width - tokens : width] = after[:, after.shape[1] - tokens :]
        self.filled = width
        return buffer[:, :width]


def _alike(buffer: Tensor, after: Tensor) -> bool:
    """Whether `after` can be written into `buffer`; a tensor made in inference mode cannot be written outside it."""
    closed = buffer.is_inference() and not torch.is_inference_mode_enabled()
    return (buffer.dtype, buffer.device, len(buffer)) == (after.dtype, after.device, len(after)) and not closed


def cut_decode(
    mask: object, index: Tensor, valid: Tensor | None, prompt: int, cached: int, tokens: int, static: bool, grown: Grown
) -> object:  # fmt: skip
    """The mask over the pruned cache for a step after prefill.

    prompt: tokens of the unpruned prompt, whose columns come first in `mask`. cached: columns of the pruned cache
    including this step's `tokens` (needed when the caller passes no mask but rows have filler). grown: the mask of the
    previous steps; a 4-D mask is as long as the cache and is cut again at every step.
    """
    if mask is None or _ready_made(mask, static):
        if valid is None:
            return None
        after = torch.ones((), dtype=torch.long, device=valid.device).expand(len(valid), cached - valid.shape[1])
        return grown.upto(index.shape[1], valid, after, tokens)
    if mask.ndim == 2:
        return grown.upto(index.shape[1], valid, mask[:, prompt:], tokens)
    return _columns(mask, index, valid, prompt)


def _ready_made(mask: object, static: bool) -> bool:
    """Whether generate() made this mask for a static cache (4-D, or a dict by layer type). It mixes the cache's pruned
    length with the unpruned prompt, so it is dropped and the model makes its own; the padding was read from the
    prompt's mask before. Raises UnsupportedError for a dict without a static cache."""
    if isinstance(mask, dict) and not static:
        raise UnsupportedError(
            f"masks by layer type ({', '.join(mask)}) are supported with a static cache only; possible: a 2-D mask"
        )
    return static and (isinstance(mask, dict) or mask.ndim == 4)


def _columns(mask: Tensor, index: Tensor, valid: Tensor | None, prompt: int) -> Tensor:
    """Columns `index` [B, K] of a 4-D mask, then everything from `prompt` on; filler masked."""
    batch, heads, queries, width = mask.shape
    batch = max(batch, index.shape[0])
    generated = torch.arange(prompt, width, device=mask.device)
    columns = torch.cat([index.to(mask.device), generated.expand(index.shape[0], -1)], 1)
    out = mask.expand(batch, -1, -1, -1).gather(3, columns[:, None, None].expand(-1, heads, queries, -1))
    if valid is None:
        return out
    filler = torch.zeros(columns.shape, dtype=torch.bool, device=mask.device)
    filler[:, : index.shape[1]] = ~valid.to(mask.device)
    return out.masked_fill(filler[:, None, None], False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)
