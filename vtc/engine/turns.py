"""Images of a later turn: what the cache holds of the earlier ones, seen from the new tokens.

A turn is pruned like a prompt of its own, in columns of its own. Around that, every layer's mask, positions and keys
take in the tokens that the layer holds from before: all of them attend to what is new as they did, with the positions
that they were given.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.core.errors import PatchError, UnsupportedError
from vtc.engine.noted import recall
from vtc.engine.state import PrunedPrompt, Segment


@dataclass
class Past:
    """The tokens that a layer holds from before a turn. index [B, W]: their places in the conversation; valid [B, W]
    bool or None; shift [B]: how far the positions of what follows are behind the unpruned ones, or None."""

    index: Tensor
    valid: Tensor | None
    shift: Tensor | None

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.index.shape[1]


class Prefix:
    """prompt: what was noted on the cache, or its tokens as a prompt that nothing was dropped from. mask [B, seen + S]:
    the caller's, or None."""

    def __init__(self, prompt: PrunedPrompt, mask: Tensor | None, tokens: int):
        self.prompt, self.seen = prompt, prompt.seen
        if mask is not None and mask.shape[1] != self.seen + tokens:
            raise PatchError(
                f"a mask of {mask.shape[1]} columns where this cache has seen {self.seen} tokens and {tokens} follow; "
                f"possible: {self.seen + tokens} columns, of the whole conversation"
            )
        self.firsts = [segment.first for segment in prompt.segments]
        self.pasts = [self._past(segment, mask) for segment in prompt.segments]
        self.mask = None if mask is None else mask[:, self.seen :]  # of the turn

    def _past(self, segment: Segment, mask: Tensor | None) -> Past:
        index, rows = segment.index, len(segment.index)
        decoded = torch.arange(self.prompt.length, self.seen, device=index.device).expand(rows, -1)
        index = torch.cat([index, decoded], 1)
        valid = None if mask is None else mask.to(index.device).expand(rows, -1).gather(1, index) != 0
        if segment.valid is not None:
            real = torch.cat([segment.valid, torch.ones_like(decoded, dtype=torch.bool)], 1)
            valid = real if valid is None else valid & real
        return Past(index, None if valid is None or bool(valid.all()) else valid, segment.shift)

    def number(self, layer: int) -> int:
        """Which of `pasts` a layer has."""
        return max(i for i, first in enumerate(self.firsts) if first <= layer)

    def at(self, layer: int) -> Past:
        """What a layer holds."""
        return self.pasts[self.number(layer)]

    def positions(self, tokens: int, mrope: bool) -> Tensor:
        """The unpruned positions [B, S], or [3, B, S], of a turn of S tokens, where the caller gives none."""
        following = self.prompt.next_position
        where = following.unsqueeze(1) + torch.arange(tokens, device=following.device) + self.seen - self.prompt.length
        return where.unsqueeze(0).expand(3, -1, -1) if mrope else where

    def moved(self, layer: int, positions: Tensor) -> Tensor:
        """Positions [..., B, S] of a turn as a layer has them."""
        shift = self.at(layer).shift
        return positions if shift is None else positions - shift.to(positions.device).unsqueeze(1)

    def over(self, layer: int, valid: Tensor | None, width: int, device: torch.device) -> Tensor | None:
        """The 2-D mask [B, W + K] over what a layer holds and `width` new columns, of which `valid` [B, K] are real;
        None if all are."""
        past = self.at(layer)
        if past.valid is None and valid is None:
            return None
        parts = (past.valid, past.width), (valid, width)
        return torch.cat([_real(x, (len(past.index), n), device) for x, n in parts], 1).long()

    def keys(self, cache: object, layer: int) -> Tensor:
        """The keys [B, Hkv, W, e] that a layer holds. Raises UnsupportedError for a cache that does not show them."""
        keys = getattr(cache.layers[layer], "keys", None) if hasattr(cache, "layers") else None
        width = self.at(layer).width
        if keys is None or keys.ndim != 4 or keys.shape[2] < width:
            raise UnsupportedError(
                f"{type(cache).__name__} does not show its keys, which this strategy reads in a later turn; possible: "
                "a dynamic or a static cache, or a strategy at the projector"
            )
        return keys[:, :, :width]

    def joined(self, turn: PrunedPrompt) -> PrunedPrompt:
        """The conversation up to the end of a turn, as one prompt."""
        segments = []
        for first in sorted({*self.firsts, *(segment.first for segment in turn.segments)}):
            past, own = self.at(first), max((s for s in turn.segments if s.first <= first), key=lambda s: s.first)
            index = torch.cat([past.index, own.index.to(past.index.device) + self.seen], 1)
            valid = None
            if past.valid is not None or own.valid is not None:
                sides = (past.valid, past.index), (own.valid, own.index)
                valid = torch.cat([_real(x, like.shape, index.device) for x, like in sides], 1)
            whole = own.whole and past.width == self.seen and past.shift is None
            segments.append(Segment(first, index, valid, _sum(past.shift, own.shift), whole))
        length = self.seen + turn.length
        turn.report.earlier = (*self.prompt.report.earlier, self.prompt.report) if self.prompt.report else ()
        joined = PrunedPrompt(segments, length, length, turn.next_position, turn.report, turn.patch)
        joined.counted = turn.counted
        return joined


def prefix_of(cache: object, mask: object, embeds: Tensor) -> Prefix | None:
    """What a cache holds before a turn with embeddings [B, S, D]; None for an empty one."""
    length = 0 if cache is None else int(cache.get_seq_length())
    if not length:
        return None
    prompt, tokens, rows = recall(cache, embeds.shape[1]), embeds.shape[1], len(embeds)
    if prompt is None:
        index = torch.arange(length, device=embeds.device).expand(rows, -1)
        following = torch.full((rows,), length, device=embeds.device)
        prompt = PrunedPrompt([Segment(0, index, None, None, whole=True)], length, length, following, None)
    if len(prompt.next_position) != rows:
        raise PatchError(
            f"a batch of {rows} continues a pruned cache of {len(prompt.next_position)} prompts; possible: the same "
            "prompts in the same order"
        )
    flat = mask is None or isinstance(mask, Tensor) and mask.ndim == 2
    if not flat:
        raise UnsupportedError(
            "images after a cached prefix need the caller's 2-D mask; possible: a 2-D mask over the whole conversation"
        )
    return Prefix(prompt, mask, tokens)


def _real(valid: Tensor | None, shape: tuple[int, int], device: torch.device) -> Tensor:
    return torch.ones(shape, dtype=torch.bool, device=device) if valid is None else valid.to(device)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second.to(first.device)
