"""State kept between hooks: of the call in progress (per thread), and of a pruned prompt (on its cache object)."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from vtc.core.layout import VisionRun
from vtc.core.report import Report
from vtc.engine.masks import Grown
from vtc.engine.rewriting import Marks


@dataclass
class Segment:
    """The prompt as held by the decoder layers from `first` on. B rows; K places, filler included.

    index [B, K]: places of the unpruned prompt; valid [B, K] bool or None (no filler); shift [B]: how far positions
    are behind the unpruned ones (compact) or None. whole: nothing was dropped yet, so the caller's bookkeeping holds.
    grown: the mask over it and over the tokens decoded since.
    """

    first: int
    index: Tensor
    valid: Tensor | None
    shift: Tensor | None
    whole: bool = False
    grown: Grown = field(default_factory=Grown, repr=False)

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.index.shape[1]

    def ends_with(self, length: int, tokens: int) -> bool:
        """Whether its last columns are the last `tokens` places of a prompt of `length`, in every row."""
        if self.width < tokens or self.valid is not None and not bool(self.valid[:, -tokens:].all()):
            return False
        last = torch.arange(length - tokens, length, device=self.index.device)
        return bool((self.index[:, -tokens:] == last).all())

    def without_last(self, tokens: int) -> "Segment":
        """The same without its last columns."""
        valid = None if self.valid is None else self.valid[:, :-tokens]
        return Segment(self.first, self.index[:, :-tokens], valid, self.shift, self.whole)

    def select(self, rows: Tensor) -> "Segment":
        """The same of the prompts `rows` [R]."""
        rows = rows.to(self.index.device)
        valid, shift = (None if x is None else x.index_select(0, rows.to(x.device)) for x in (self.valid, self.shift))
        return Segment(self.first, self.index.index_select(0, rows), valid, shift, self.whole, self.grown.select(rows))


@dataclass
class PrunedPrompt:
    """A prompt after pruning: its segments, ascending by first layer; the first begins at layer 0.

    length: of the unpruned prompt; seen: unpruned tokens so far, decode included; next_position [B]: the unpruned
    position that follows the prompt; report: of the prefill; patch: the number of the patch whose layer hooks its
    segments need; marks: the tokens marked at prefill, by layer whose attention is changed; counted: the layer whose
    length a cache gives as its own (the first that has keys).
    """

    segments: list[Segment]
    length: int
    seen: int
    next_position: Tensor
    report: Report
    patch: int = 0
    marks: dict[int, Marks] = field(default_factory=dict)
    counted: int = 0

    @property
    def dropped(self) -> int:
        """Number of columns dropped before the first layer."""
        return self.length - self.segments[0].width

    @property
    def cached(self) -> int:
        """The length that its cache gives, decode included."""
        segment = max((s for s in self.segments if s.first <= self.counted), key=lambda s: s.first)
        return segment.width + self.seen - self.length

    def can_forget(self, tokens: int) -> bool:
        """Whether its last `tokens` tokens are text of every prompt, so that a cache may be cropped by them."""
        over = tokens - (self.seen - self.length)
        return over <= 0 or all(segment.ends_with(self.length, over) for segment in self.segments)

    def forget(self, tokens: int) -> None:
        """Drops the last `tokens` tokens, which its cache has dropped."""
        self.seen -= tokens
        over = self.length - self.seen
        if over > 0:
            self.segments = [segment.without_last(over) for segment in self.segments]
            self.marks = {layer: marks.without_last(over) for layer, marks in self.marks.items()}
            self.length, self.next_position = self.seen, self.next_position - over

    def select(self, rows: Tensor) -> None:
        """Takes the prompts `rows` [R] instead of all, as its cache has done."""
        self.segments = [segment.select(rows) for segment in self.segments]
        self.marks = {layer: marks.select(rows) for layer, marks in self.marks.items()}
        self.next_position = self.next_position.index_select(0, rows.to(self.next_position.device))

    def cut(self, x: Tensor, filler: object) -> Tensor:
        """x [B, length] at the places that reach the last layer -> [B, K], with `filler` at padding."""
        last = self.segments[-1]
        out = x.gather(1, last.index.to(x.device))
        return out if last.valid is None else out.masked_fill(~last.valid.to(x.device), filler)


@dataclass
class Call:
    """One forward of the inner model, or of the language model alone. kinds: of the media that it was given, see
    `vtc.engine.media`; runs: of the vision encoder, by kind; placeholders: gives by kind which columns [B, L] bool
    stand for them; pruned: the prompt that was pruned in it, or whose cache it continues; ids [B, L]: of the prompt,
    None for embeddings; blocks, planes: see `vtc.engine.layer_masks`, `vtc.engine.planes`; inside: adapts the inputs of
    the decoder layers, None if they need no change; started: the encoder or the language model ran; begun: the language
    model was entered; alone: only the language model was called; recalled: its cache and the prompt noted on it;
    prefix: what its cache held before images of a later turn, see `vtc.engine.turns`."""

    kinds: list[str] = field(default_factory=list)
    runs: dict[str, VisionRun] = field(default_factory=dict)
    placeholders: Callable[[], dict[str, Tensor]] | None = None
    pruned: PrunedPrompt | None = None
    ids: Tensor | None = None
    blocks: object = None
    planes: object = None
    inside: object = None
    started: bool = False
    begun: bool = False
    alone: bool = False
    recalled: tuple = (None, None)
    prefix: object = None

    def over(self) -> None:
        """Called when its frame is freed: releases everything, unless a hook replaced its arguments before it ran."""
        if self.started:
            self.__init__(started=True, begun=True)


@dataclass
class OuterCall:
    """One forward of the whole model. images: it has image inputs; labels [B, L]: held back; from_end: its caller
    counts logits back from the last column; places: those, negative, if there is a list of them; entered: the inner
    model ran; pruned: the prompt that was pruned in it; routers, router_logits, mask: whether it is to return router
    logits, those, and its mask, see `vtc.engine.experts`."""

    images: bool = False
    labels: Tensor | None = None
    from_end: bool = False
    places: Tensor | None = None
    entered: bool = False
    pruned: PrunedPrompt | None = None
    routers: bool = False
    router_logits: tuple[Tensor, ...] | None = None
    mask: Tensor | None = None

    def over(self) -> None:
        """See `Call.over`."""
        if self.entered:
            self.__init__()


class ThreadState(threading.local):
    """Per thread: the forwards in progress, the encoder run being recorded, the last run of each kind whose features
    were not used yet, the 2-D mask [B, L] that generate() has for a static cache, and the outcome of the last call: its
    report, or why it has none (None before the first call)."""

    call: Call | None = None
    outer: OuterCall | None = None
    recording: VisionRun | None = None
    pending: Mapping[str, tuple] = MappingProxyType({})
    mask: Tensor | None = None
    outcome: Report | str | None = None
