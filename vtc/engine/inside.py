"""Prefill inside the language model: tokens dropped between decoder layers, and what the layers after are given."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.config.allocation import Allocation
from vtc.core.errors import ConfigError
from vtc.core.report import Report, StepReport
from vtc.core.selection import Selection
from vtc.core.signals import Aim, Decoder, EncoderAttention, Importance, Signal
from vtc.engine import clock
from vtc.engine.changing import Changes
from vtc.engine.masks import cut_prefill
from vtc.engine.placement import Batch, Placement
from vtc.engine.prefill import Tokens, merged, move, pack
from vtc.engine.received import Rows
from vtc.engine.select import Kept, Unit, choose
from vtc.engine.state import PrunedPrompt, Segment
from vtc.engine.watch import Needs, Watch


class Plan:
    """What is known of the stages inside the language model before any prompt.

    site: the model's layers. steps: by layer, the numbers of the drops before it. needs: per drop, its signals.
    watched: what these ask of the layers. encoder: what they ask of the encoder. attention: the stage that changes
    attention, None without one; changed: the layers in which it does. width: of a hidden state.
    """

    def __init__(self, site, allocation: Allocation, decoder: Decoder, width: int):
        self.site, self.allocation, self.decoder = site, allocation, decoder
        stages = allocation.stages
        self.needs = [stages[step.index].stage.needs(decoder, step.number) for step in allocation.steps]
        self.steps: dict[int, list[int]] = {}
        for number, step in enumerate(allocation.steps):
            self.steps.setdefault(step.layer, []).append(number)
        self.watched = Needs(self.needs)
        self.attention = allocation.config.attention
        self.changed = () if self.attention is None else self.attention.stage.layers(decoder, width)
        self.encoder = tuple(dict.fromkeys(s for some in self.needs for s in some if isinstance(s, EncoderAttention)))
        first = allocation.config.projector
        if self.watched.scores and not (first and first.stage.gives_score):
            names = [stage.method for stage, needs in zip(stages, self.needs, strict=False) if Importance() in needs]
            raise ConfigError(
                f"{names[0] if names else stages[0].method} ranks by the scores of a stage at the projector, and there "
                "is none that gives any; possible: vflowopt_projector before it"
            )


@dataclass
class Images:
    """The images of a batch of prompts, and what is left of each, per prompt. encoded: a signal of the encoder of one
    of all images, on its run of tokens; aims: per image, see `Aim`."""

    batch: Batch
    placement: Placement
    kept: list[list[Kept]]
    encoded: Callable[[EncoderAttention, int], Tensor]
    aims: list[tuple[int, int]]


class Prefill:
    """One prefill. prompt: gets a segment for each drop; counts: per image, its tokens after each drop; tokens: where
    the tokens stand at layer 0; ends [B]: one past the column of each prompt's last one; mask: as the caller gave it
    for the unpruned prompt; embeds [B, S, D]: what enters layer 0."""

    def __init__(
        self, plan: Plan, prompt: PrunedPrompt, images: Images, counts: list[list[int]], tokens: Tokens,
        ends: list[int], mask, report: Report, embeds: Tensor,
    ):  # fmt: skip
        self.plan, self.prompt, self.images, self.tokens, self.ends = plan, prompt, images, tokens, ends
        self.counts, self.mask, self.report = counts, mask, report
        self.watch = Watch(plan.watched, plan.site, max(map(len, images.placement.requests)))
        self.masks: dict[bool, object] = {}
        self.rotary = self.width = None
        self.positions_kept = True  # since layer 0
        self.done = 0
        self.changes = Changes(plan, prompt, report)
        with torch.no_grad():
            self.watch.enter(embeds, self._rows(), self._image_columns(embeds.device))

    def before_layer(self, layer: int, args: tuple, kwargs: dict):
        """Layer pre-hook: drops where a step is due; afterwards every layer gets inputs of the new length."""
        hidden = args[0] if args else kwargs["hidden_states"]
        for number in self.plan.steps.get(layer, ()):
            start = clock.now()
            self.rotary = kwargs["position_embeddings"] if self.rotary is None else self.rotary
            hidden = self._drop(number, layer, hidden)
            self.report.spent_inside(select=clock.now() - start)
            self.done += 1
        if layer in self.plan.changed:
            self.changes.mark(layer, hidden, self._rows())
        if self.width is None:
            return None
        given = {**kwargs, "position_embeddings": self.rotary}
        if kwargs.get("position_ids") is not None:
            given["position_ids"] = None
        if kwargs.get("cache_position") is not None:
            given["cache_position"] = kwargs["cache_position"][: self.width]
        given["attention_mask"] = self._mask(layer, hidden, given)
        if args:
            return (hidden, *args[1:]), given
        return args, {**given, "hidden_states": hidden}

    def measure(self, layer: int, x: Tensor, y: Tensor) -> None:
        """Input and output of one module of a watched layer; see `Watch.measure`."""
        start = clock.now()
        self.watch.measure(layer, x, y, self.tokens.valid)
        self.report.spent_inside(observe=clock.now() - start)

    def attention(self, layer: int, query: Tensor, key: Tensor, scale: float | None, value: Tensor) -> None:
        """Queries, keys and values of an observed layer; see `Watch.attention`."""
        start = clock.now()
        turns = None
        if any(signal.layer == layer for signal in self.plan.watched.unturned):
            where = self.tokens.positions.to(query.device)
            turns = self.plan.site.turns(query, where if where.ndim == 2 else where[-3:])
        self.watch.attention(layer, query, key, scale, self._rows(), value, turns)
        self.report.spent_inside(observe=clock.now() - start)

    def _drop(self, number: int, layer: int, hidden: Tensor) -> Tensor:
        plan, images, prompt = self.plan, self.images, self.prompt
        step = plan.allocation.steps[number]
        stage = plan.allocation.stages[step.index]
        device = hidden.device
        column = _columns(prompt.segments[-1], prompt.length).to(device)
        places = [[column[b, w.to(device)] for w in row] for b, row in enumerate(images.placement.places)]
        owner = [(b, j) for b, row in enumerate(images.placement.requests) for j in range(len(row))]
        left = [Kept(images.kept[b][j].offsets.to(device)) for b, j in owner]
        units = [
            Unit(i, None, left[i].offsets, None, owner[i][1], min(self.counts[i][number], len(left[i].offsets)))
            for i in range(len(left))
            if len(left[i].offsets)
        ]
        rows = self._rows()
        with torch.no_grad():
            self.watch.look_ahead(plan.needs[number], layer, hidden, self.rotary)

        @torch.no_grad()
        def look(signal: Signal, unit: Unit) -> Tensor:
            b, j = owner[unit.image]
            if isinstance(signal, Aim):
                return torch.tensor(images.aims[unit.image], dtype=torch.float64)
            if isinstance(signal, EncoderAttention):
                return images.encoded(signal, unit.image).to(device)[unit.offsets]
            found = self.watch.look(signal, b, j, places[b][j][unit.offsets], rows)
            return found if getattr(signal, "read", False) else found.to(device)

        def merge(unit: Unit, selection: Selection) -> Tensor:
            b, j = owner[unit.image]
            return selection.apply_features(hidden[b, places[b][j][unit.offsets]].unsqueeze(0))[0]

        @torch.no_grad()
        def select(context):
            return stage.stage.select(context, plan.decoder)

        chosen = choose(select, plan.needs[number], units, look, merge, device, step.number)
        for i, (b, j) in enumerate(owner):
            kept = images.kept[b][j] = chosen.get(i, left[i])
            self.report.images[i].steps.append(
                StepReport(
                    stage.method, layer, len(left[i].offsets), len(kept.offsets), kept.offsets, kept.flows, "decoder"
                )
            )
        packing = pack(images.batch, images.placement, images.kept).to(device)
        local = column.gather(1, packing.index)
        hidden = merged(hidden, places, images.kept)
        for row in images.kept:
            for kept in row:
                kept.features = None
        hidden = hidden.gather(1, local.unsqueeze(-1).expand(-1, -1, hidden.shape[2]))
        self._advance(layer, hidden, local, packing, stage.positions)
        return hidden

    def _image_columns(self, device: torch.device) -> list[list[Tensor]]:
        """Per prompt, the columns of what is left of each of its images."""
        images, column = self.images, _columns(self.prompt.segments[-1], self.prompt.length).to(device)
        return [
            [column[b, w.to(device)][kept.offsets.to(device)] for w, kept in zip(row, images.kept[b], strict=True)]
            for b, row in enumerate(images.placement.places)
        ]

    def _advance(self, layer: int, hidden: Tensor, local: Tensor, packing, positions: str) -> None:
        """Everything that has a token axis, at the tokens `local` [B, K] of what was there."""
        self.tokens = move(self.tokens.to(local.device), local, packing.valid, positions)
        if positions == "keep":
            self.rotary = tuple(_rows_of(x, local) for x in self.rotary)
        else:
            where = self.tokens.positions
            self.rotary = self.plan.site.rotary(hidden, where if where.ndim == 2 else where[-3:])
        self.watch.gather(local)
        self.masks, self.ends, self.width = {}, packing.ends, local.shape[1]
        behind = self.prompt.next_position.to(local.device) - self.tokens.following
        same = self.positions_kept = self.positions_kept and positions == "keep"
        shift = self.prompt.segments[0].shift if same else behind
        self.prompt.segments.append(Segment(layer, packing.index, packing.valid, shift))

    def _mask(self, layer: int, hidden: Tensor, kwargs: dict):
        sliding = self.plan.site.sliding(layer)
        if sliding not in self.masks:
            segment, cache = self.prompt.segments[-1], kwargs.get("past_key_values")
            static = bool(getattr(cache, "is_compileable", False))
            flat = self.mask
            if isinstance(flat, Tensor) and flat.ndim == 2 and segment.valid is None:
                flat = None
            flat = cut_prefill(flat, segment.index, segment.valid, static)
            self.masks[sliding] = self.plan.site.mask(
                layer, hidden, flat, cache, kwargs.get("cache_position"), segment.valid is not None
            )
        return self.masks[sliding]

    def _rows(self) -> Rows:
        images, segment = self.images, self.prompt.segments[-1]
        return Rows(images.batch, images.placement, images.kept, segment, self.tokens.valid, self.ends)


def _columns(segment: Segment, length: int) -> Tensor:
    """The column [B, length] of each place of the unpruned prompt; what is not there has none that means anything."""
    batch, width = segment.index.shape
    places = segment.index if segment.valid is None else segment.index.masked_fill(~segment.valid, length)
    column = torch.zeros(batch, length + 1, dtype=torch.long, device=places.device)
    return column.scatter_(1, places, torch.arange(width, device=places.device).expand(batch, -1))[:, :length]


def _rows_of(x: Tensor, local: Tensor) -> Tensor:
    """Rotary factors x [..., B or 1, S, e] at local [B, K] -> [..., B, K, e]."""
    batch = local.shape[0]
    x = x.expand(*x.shape[:-3], batch, *x.shape[-2:])
    index = local.to(x.device).unsqueeze(-1).expand(*x.shape[:-3], batch, local.shape[1], x.shape[-1])
    return x.gather(-2, index)
