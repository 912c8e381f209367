"""Prefill inside the language model: drops tokens between decoder layers, and adapts the inputs of later layers."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.config import hybrid
from vtc.config.allocation import Allocation
from vtc.core.errors import ConfigError
from vtc.core.image_report import StepReport
from vtc.core.report import Report
from vtc.core.selection import Selection
from vtc.core.signals import Aim, Decoder, EncoderAttention, Importance, Signal
from vtc.engine import clock
from vtc.engine.changing import Changes
from vtc.engine.masks import cut_prefill
from vtc.engine.placement import Batch, Placement
from vtc.engine.planes import Planes
from vtc.engine.prefill import Tokens, merged, move, pack
from vtc.engine.ranks import Ranks
from vtc.engine.received import Rows
from vtc.engine.select import Kept, Unit, choose
from vtc.engine.state import PrunedPrompt, Segment
from vtc.engine.static import fit
from vtc.engine.turns import Prefix
from vtc.engine.watch import Needs, Watch


class Plan:
    """What is known about the stages inside the language model before any prompt arrives.

    site: the model's layers. steps: the numbers of the drops before each layer. needs: the signals of each drop.
    sources: what each of these is read from (see `vtc.config.hybrid`). watched: what they require of the layers.
    encoder: the signals they require of the encoder. attention: the stage that changes attention, or None; changed: the
    layers in which it does. width: the hidden size. ranks: over which the heads are split.
    """

    def __init__(self, site, allocation: Allocation, decoder: Decoder, width: int, ranks: Ranks):
        self.site, self.allocation, self.decoder, self.ranks = site, allocation, decoder, ranks
        stages = allocation.stages
        self.needs = [stages[step.index].stage.needs(decoder, step.number) for step in allocation.steps]
        self.steps: dict[int, list[int]] = {}
        for number, step in enumerate(allocation.steps):
            self.steps.setdefault(step.layer, []).append(number)
        self.sources = [
            {signal: hybrid.source(decoder, signal, step.layer) for signal in needs}
            for step, needs in zip(allocation.steps, self.needs, strict=True)
        ]
        self.watched = Needs([tuple(sources.values()) for sources in self.sources])
        self.attention = allocation.config.attention
        self.changed = () if self.attention is None else self.attention.stage.layers(decoder, width)
        self.encoder = tuple(dict.fromkeys(s for need in self.needs for s in need if isinstance(s, EncoderAttention)))
        first = allocation.config.projector
        if self.watched.scores and not (first and first.stage.gives_score):
            names = [stage.method for stage, needs in zip(stages, self.needs, strict=False) if Importance() in needs]
            raise ConfigError(
                f"{names[0] if names else stages[0].method} ranks by the scores of a stage at the projector, and there "
                "is none that gives any; possible: vflowopt_projector before it"
            )


@dataclass
class Images:
    """The images of a batch of prompts and, per prompt, the tokens left of each. encoded: gives an encoder signal of
    one image (its index over all prompts) for each of its tokens; aims: per image, see `Aim`."""

    batch: Batch
    placement: Placement
    kept: list[list[Kept]]
    encoded: Callable[[EncoderAttention, int], Tensor]
    aims: list[tuple[int, int]]


class Prefill:
    """One prefill. prompt: gets a segment for each drop; counts: tokens of each image after each drop; tokens:
    their positions at layer 0; ends [B]: one past the column of each prompt's last token; mask: as the caller gave it
    for the unpruned prompt; embeds [B, S, D]: the input of layer 0."""

    def __init__(
        self, plan: Plan, prompt: PrunedPrompt, images: Images, counts: list[list[int]], tokens: Tokens,
        ends: list[int], mask, report: Report, embeds: Tensor, planes: Planes | None = None,
        prefix: Prefix | None = None,
    ):  # fmt: skip
        self.planes, self.prefix = planes, prefix
        self.plan, self.prompt, self.images, self.tokens, self.ends = plan, prompt, images, tokens, ends
        self.counts, self.mask, self.report = counts, mask, report
        self.watch = Watch(plan.watched, plan.site, max(map(len, images.placement.requests)), plan.ranks)
        self.masks: dict[tuple, object] = {}
        self.rotary = self.width = None
        self.turned: dict[int, tuple[Tensor, Tensor]] = {}
        self.positions_kept = True  # since layer 0
        self.done = 0
        self.changes = Changes(plan, prompt, report)
        with torch.no_grad():
            self.watch.enter(embeds, self._rows(), self._image_columns(embeds.device))

    def before_layer(self, layer: int, args: tuple, kwargs: dict):
        """Layer pre-hook: drops tokens where a step is due; every later layer gets inputs of the new length."""
        hidden = args[0] if args else kwargs["hidden_states"]
        for number in self.plan.steps.get(layer, ()):
            start = clock.now()
            self.rotary = kwargs["position_embeddings"] if self.rotary is None else self.rotary
            if self.prefix is not None:
                self.rotary = self._behind(layer, hidden)
            cache = kwargs.get("past_key_values")
            hidden = self._drop(number, layer, hidden, cache)
            if self.prefix is None:
                fit(cache, layer, self.prompt.length, hidden.shape[1])
            self.report.spent_inside(select=clock.now() - start)
            self.done += 1
        if layer in self.plan.changed:
            self.changes.mark(layer, hidden, self._rows())
        if self.width is None and (self.prefix is None or not self.prefix.number(layer)):
            return None
        rotary = self.rotary if self.prefix is None else self._behind(layer, hidden)
        layer_kwargs = {**kwargs, "position_embeddings": rotary}
        if kwargs.get("position_ids") is not None:
            layer_kwargs["position_ids"] = None
        if kwargs.get("cache_position") is not None:
            first = 0 if self.prefix is None else self.prefix.at(layer).width
            layer_kwargs["cache_position"] = torch.arange(first, first + hidden.shape[1], device=hidden.device)
        layer_kwargs["attention_mask"] = self._mask(layer, hidden, layer_kwargs)
        if args:
            return (hidden, *args[1:]), layer_kwargs
        return args, {**layer_kwargs, "hidden_states": hidden}

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
        self.watch.attention(layer, query, key, scale, self._rows(layer), value, turns)
        self.report.spent_inside(observe=clock.now() - start)

    def _behind(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The rotary embeddings of a layer in a later turn, whose positions follow those that it holds."""
        number = self.prefix.number(layer)
        if number not in self.turned:
            where = self.prefix.moved(layer, self.tokens.positions.to(hidden.device))
            self.turned[number] = self.plan.site.rotary(hidden, where if where.ndim == 2 else where[-3:])
        return self.turned[number]

    def _drop(self, number: int, layer: int, hidden: Tensor, cache: object = None) -> Tensor:
        plan, images, prompt = self.plan, self.images, self.prompt
        step = plan.allocation.steps[number]
        stage = plan.allocation.stages[step.index]
        device = hidden.device
        column = _columns(prompt.segments[-1], prompt.length).to(device)
        places = [[column[b, w.to(device)] for w in row] for b, row in enumerate(images.placement.places)]
        owner = [(b, j) for b, row in enumerate(images.placement.requests) for j in range(len(row))]
        before = [Kept(images.kept[b][j].offsets.to(device)) for b, j in owner]
        units = [
            Unit(i, None, before[i].offsets, None, owner[i][1], min(self.counts[i][number], len(before[i].offsets)))
            for i in range(len(before))
            if len(before[i].offsets)
        ]
        rows = self._rows(layer)
        with torch.no_grad():
            held = None if self.prefix is None else functools.partial(self.prefix.keys, cache, layer)
            queries = self.watch.look_ahead(plan.needs[number], layer, hidden, self.rotary, rows, held)
        if queries is not None:
            self.report.looked_ahead(self._lengths(), queries)

        @torch.no_grad()
        def look(signal: Signal, unit: Unit) -> Tensor:
            b, j = owner[unit.image]
            if isinstance(signal, Aim):
                return torch.tensor(images.aims[unit.image], dtype=torch.float64)
            if isinstance(signal, EncoderAttention):
                return images.encoded(signal, unit.image).to(device)[unit.offsets]
            read = plan.sources[number][signal]
            values = self.watch.look(read, b, j, places[b][j][unit.offsets], rows)
            return values if getattr(signal, "read", False) else values.to(device)

        def merge(unit: Unit, selection: Selection) -> tuple[Tensor, Tensor | None]:
            b, j = owner[unit.image]
            rows = None
            if self.planes is not None and layer < len(self.planes.planes):
                where = images.placement.places[b][j].to(device)[unit.offsets]
                rows = selection.apply_features(self.planes.of(b, where, layer).unsqueeze(0))[0]
            return selection.apply_features(hidden[b, places[b][j][unit.offsets]].unsqueeze(0))[0], rows

        @torch.no_grad()
        def select(context):
            return plan.ranks.agreed(stage.stage.select(context, plan.decoder))

        chosen = choose(select, plan.needs[number], units, look, merge, device, step.number)
        for i, (b, j) in enumerate(owner):
            kept = images.kept[b][j] = chosen.get(i, before[i])
            self.report.images[i].steps.append(
                StepReport(
                    stage.method, layer, len(before[i].offsets), len(kept.offsets), kept.offsets, kept.flows, "decoder"
                )
            )
        packing = pack(images.batch, images.placement, images.kept).to(device)
        local = column.gather(1, packing.index)
        hidden = merged(hidden, places, images.kept)
        for b, row in enumerate(images.kept):
            for where, kept in zip(images.placement.places[b], row, strict=True):
                if kept.planes is not None:
                    self.planes.write(b, where.to(device)[kept.offsets], kept.planes, layer)
                kept.features = kept.planes = None
        hidden = hidden.gather(1, local.unsqueeze(-1).expand(-1, -1, hidden.shape[2]))
        self._advance(layer, hidden, local, packing, stage.positions)
        return hidden

    def _image_columns(self, device: torch.device) -> list[list[Tensor]]:
        """Per prompt, the columns of the remaining tokens of each of its images."""
        images, column = self.images, _columns(self.prompt.segments[-1], self.prompt.length).to(device)
        return [
            [column[b, w.to(device)][kept.offsets.to(device)] for w, kept in zip(row, images.kept[b], strict=True)]
            for b, row in enumerate(images.placement.places)
        ]

    def _advance(self, layer: int, hidden: Tensor, local: Tensor, packing, positions: str) -> None:
        """Gathers everything with a token axis at the columns `local` [B, K] of the previous segment."""
        self.tokens = move(self.tokens.to(local.device), local, packing.valid, positions)
        if positions == "keep":
            self.rotary = tuple(_gather_rotary(x, local) for x in self.rotary)
        else:
            position_ids = self.tokens.positions
            self.rotary = self.plan.site.rotary(hidden, position_ids if position_ids.ndim == 2 else position_ids[-3:])
        self.watch.gather(local)
        self.masks, self.turned, self.ends, self.width = {}, {}, packing.ends, local.shape[1]
        behind = self.prompt.next_position.to(local.device) - self.tokens.following
        unmoved = self.positions_kept = self.positions_kept and positions == "keep"
        shift = self.prompt.segments[0].shift if unmoved else behind
        self.prompt.segments.append(Segment(layer, packing.index, packing.valid, shift))

    def _mask(self, layer: int, hidden: Tensor, kwargs: dict):
        key = self.plan.site.kinds[layer], 0 if self.prefix is None else self.prefix.number(layer)
        if key not in self.masks:
            segment, cache = self.prompt.segments[-1], kwargs.get("past_key_values")
            static = bool(getattr(cache, "is_compileable", False))
            flat = self.mask
            if isinstance(flat, Tensor) and flat.ndim == 2 and segment.valid is None:
                flat = None
            flat = cut_prefill(flat, segment.index, segment.valid, static)
            if self.prefix is not None:
                flat = self.prefix.over(layer, segment.valid, hidden.shape[1], hidden.device)
            self.masks[key] = self.plan.site.mask(
                layer, hidden, flat, cache, kwargs.get("cache_position"), flat is not None
            )
        return self.masks[key]

    def _lengths(self) -> list[int]:
        """Real tokens of each prompt before a layer's next drop."""
        return [
            entered - sum(image.entered - image.after for image in self.report.images if image.prompt == prompt)
            for prompt, entered in enumerate(self.report.prompts_entered)
        ]

    def _rows(self, layer: int | None = None) -> Rows:
        images, segment = self.images, self.prompt.segments[-1]
        past = None if self.prefix is None or layer is None else self.prefix.at(layer)
        return Rows(images.batch, images.placement, images.kept, segment, self.tokens.valid, self.ends, past)


def _columns(segment: Segment, length: int) -> Tensor:
    """The column [B, length] of each place of the unpruned prompt; the value for a dropped token is meaningless."""
    batch, width = segment.index.shape
    places = segment.index if segment.valid is None else segment.index.masked_fill(~segment.valid, length)
    column = torch.zeros(batch, length + 1, dtype=torch.long, device=places.device)
    return column.scatter_(1, places, torch.arange(width, device=places.device).expand(batch, -1))[:, :length]


def _gather_rotary(x: Tensor, local: Tensor) -> Tensor:
    """Rotary factors x [..., B or 1, S, e] at local [B, K] -> [..., B, K, e]."""
    batch = local.shape[0]
    x = x.expand(*x.shape[:-3], batch, *x.shape[-2:])
    index = local.to(x.device).unsqueeze(-1).expand(*x.shape[:-3], batch, local.shape[1], x.shape[-1])
    return x.gather(-2, index)
