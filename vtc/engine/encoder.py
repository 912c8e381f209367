"""Inside the vision encoder: drops and merges tokens between its layers, and adapts the inputs of later layers."""

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from vtc.config.strategy import StageConfig
from vtc.core.budget import Budget
from vtc.core.errors import ConfigError, PatchError, UnsupportedError
from vtc.core.flops import EncoderWork
from vtc.core.selection import Selection
from vtc.core.signals import Carried, Context, Hidden, Signal, Sizes
from vtc.engine.ranks import WHOLE, Ranks
from vtc.engine.select import lengths_of
from vtc.engine.sequence import Group, Sequence


class EncoderPlan:
    """What is known about a stage inside the encoder before any image arrives.

    cuts: its steps; by_layer: step numbers by layer; needs: the signals of each step; watched: signals by the layer
    whose attention they are computed from. cell: patches that stay together. singly: see `EncoderStage.singly`. ranks:
    must agree on the choice.
    """

    def __init__(self, family, config: StageConfig, budget: Budget, ranks: Ranks = WHOLE):
        self.family, self.config, self.stage, self.budget, self.ranks = family, config, config.stage, budget, ranks
        self.encoder, self.site = family.encoder, family.encoder_site()
        self.cuts = self.stage.steps(self.encoder)
        if not self.cuts or any(not 0 <= cut.layer <= self.encoder.last for cut in self.cuts):
            raise ConfigError(
                f"{config.method} acts at the layers {[cut.layer for cut in self.cuts]} of this encoder; possible: 0 "
                f"to {self.encoder.last}, whose output the projector receives"
            )
        self.needs = [self.stage.needs(self.encoder, step) for step in range(len(self.cuts))]
        self.by_layer: dict[int, list[int]] = {}
        for number, cut in enumerate(self.cuts):
            self.by_layer.setdefault(cut.layer, []).append(number)
        self.watched: dict[int, list[Signal]] = {}
        for signal in dict.fromkeys(s for needs in self.needs for s in needs if hasattr(s, "layer")):
            self.watched.setdefault(signal.layer, []).append(signal)
        self.singly = self.stage.singly(self.encoder) and self.encoder.cell > 1
        self.cell = 1 if self.singly else self.encoder.cell
        if self.singly and self.site.plane_mergers:
            raise ConfigError(
                f"{config.method} chooses patches one by one, but this encoder's DeepStack planes are of whole tokens; "
                "possible: a stage that keeps the patches of a token together (flowcut: merge=cells)"
            )
        if self.encoder.tokens is not None:
            self.counts(self.encoder.tokens, budget.count(self.encoder.tokens))

    @lru_cache(maxsize=1024)  # noqa: B019 - there is one plan per patch
    def counts(self, tokens: int, target: int) -> tuple[int, ...]:
        """Tokens of a unit left after each step; see `EncoderStage.counts`."""
        per = self.encoder.cell if self.singly else 1
        return self.stage.counts(tokens * per, target * per, self.encoder)

    def begin(self, images: list, arguments: dict) -> "EncoderRun":
        """Starts a run for these images [ImageLayout]. arguments: of `get_image_features`. Raises UnsupportedError for
        what the site does not support, ConfigError for a target that the steps cannot reach."""
        self.site.check(arguments)
        if any(image.resampled for image in images):
            shown = "a clip" if any(image.frames for image in images) else "an image of this size"
            raise UnsupportedError(
                f"{self.config.method} drops tokens inside the encoder, and {self.family.name} resamples the whole "
                f"raster of {shown}; possible: a stage at the projector or in the language model, or smaller images"
            )
        units = self.family.units(images)
        sizes: dict[int, list[int]] = {}
        for tokens, image in zip(units.tokens, units.images, strict=True):
            sizes.setdefault(image, []).append(tokens)
        targets = [n for part in self.budget.quotas(list(sizes.values())) for n in part]
        per = self.encoder.cell if self.singly else 1
        schedules = [self.counts(n, target) for n, target in zip(units.tokens, targets, strict=True)]
        totals = [n * per for n in units.tokens]
        sequence = Sequence(totals, schedules, self.site.lead, self.site.packed, self.cell)
        return EncoderRun(self, sequence, units.images)


def plan_of(family, config: StageConfig | None, budget: Budget | None, ranks: Ranks = WHOLE) -> EncoderPlan | None:
    """The plan of a stage inside the encoder, or None if there is no such stage."""
    return None if config is None else EncoderPlan(family, config, budget, ranks)


@dataclass
class EncoderRun:
    """One run of the encoder. sequence: its tokens; images: the image of each unit; captured: the signals observed
    since the last step, in call order; done: steps completed; merging: the move in progress while a layer merges tokens
    before its MLP; segments: the bounds before and after pruning, by layer of a packed encoder; reach: for each step,
    its layer, whether it is within the layer, and the tokens left of each unit; cursor: patches whose attention the
    current layer has already computed; final: the output of the layer that the projector reads, if a step is in it.
    """

    plan: EncoderPlan
    sequence: Sequence
    images: list[int]
    captured: dict[Signal, list[Tensor]] = field(default_factory=dict)
    done: int = 0
    merging: object = None
    segments: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    reach: list[tuple[int, bool, list[int]]] = field(default_factory=list)
    cursor: int = 0
    final: Tensor | None = None

    @property
    def finished(self) -> bool:
        """Whether all steps are done; nothing is observed after that."""
        return self.done == len(self.plan.cuts)

    def bias(self, key: Tensor, cu_seqlens) -> Tensor | None:
        """The bias [B, N] on the logits of the keys [B, H, N, e] of one attention call: log sizes, and -inf for filler
        where crops keep different counts."""
        row = self.sequence.bias(self.plan.stage.proportional, key)
        if row is None or not self.sequence.packed:
            return row
        start, stop = self.cursor, self.cursor + key.shape[2]  # segments come one by one, or all at once
        self.cursor = 0 if stop == row.shape[1] else stop
        return row[:, start:stop]

    def observe(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale, cu_seqlens, bias) -> None:
        """Computes the signals that the next step needs from one attention call."""
        if self.finished or layer > self.plan.cuts[self.done].layer:
            return
        needs = self.plan.needs[self.done]
        for signal in self.plan.watched.get(layer, ()):
            if signal in needs:
                values = self.sequence.reduce(self.plan.family, signal, query, key, value, scale, cu_seqlens, bias)
                self.captured.setdefault(signal, []).append(values)

    def before_layer(self, layer: int, args: tuple, kwargs: dict):
        """Layer pre-hook of a packed encoder: rotary positions and bounds of the remaining tokens."""
        bounds = kwargs["cu_seqlens"]
        self.cursor = 0
        layer_kwargs = {**kwargs, "cu_seqlens": self.sequence.bounds(bounds)}
        self.segments[layer] = bounds, layer_kwargs["cu_seqlens"]
        if not self.done:
            return None
        if kwargs.get("position_embeddings") is not None:
            layer_kwargs["position_embeddings"] = tuple(map(self.sequence.of_places, kwargs["position_embeddings"]))
        return args, layer_kwargs

    def after_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """Layer hook: the layer's output with tokens dropped or merged."""
        if self.merging is not None:
            hidden, self.merging = self.sequence.shorter(hidden, self.merging), None
        for number in self.plan.by_layer[layer]:
            if not self.plan.cuts[number].within:
                hidden = self._step(number, hidden)[0]
        self.final = hidden if layer == self.plan.encoder.last else None
        return hidden

    def projected(self, tokens: Tensor) -> Tensor:
        """The projector's input in place of `tokens` [C, n, D]: older versions of transformers record a layer's output
        before hooks have changed it."""
        return tokens if self.final is None else self.final[:, self.plan.site.lead :]

    def before_norm(self, layer: int, hidden: Tensor) -> Tensor | None:
        """Hook before the norm of a layer's MLP: merges the residual stream in place (the block later adds the MLP's
        output to it) and returns the shorter sequence for the MLP."""
        for number in self.plan.by_layer[layer]:
            if self.plan.cuts[number].within:
                short, moved = self._step(number, hidden)
                if moved is None:
                    return None
                self.sequence.write_back(hidden, short, moved)
                self.merging = moved
                return short
        return None

    def after_mlp(self, output: Tensor) -> Tensor | None:
        """Hook after a layer's MLP: its output placed on the rows of the block's residual stream."""
        return None if self.merging is None else self.sequence.longer(output, self.merging)

    def _step(self, number: int, hidden: Tensor) -> tuple[Tensor, object]:
        """The sequence after a step, and the `Moved` between the old and the new one, None for a step that changes
        nothing."""
        if number != self.done:
            raise PatchError(f"step {number} of {self.plan.config.method} was reached after {self.done} steps")
        flat = self.sequence.flat(hidden)
        chosen: list[tuple[Group, Selection]] = []
        with torch.no_grad():
            observed = {signal: self.sequence.rows(parts) for signal, parts in self.captured.items()}
            for group in self.sequence.groups:
                if group.counts[number] < group.width:
                    chosen.append((group, self._select(number, group, flat, observed)))
            lengths = lengths_of([selection for _, selection in chosen])
        self.captured, self.done = {}, self.done + 1
        cut = self.plan.cuts[number]
        if not chosen:
            return hidden, None
        moved, rows = self.sequence.advance(flat, chosen, lengths)
        rows_left = [n * self.plan.cell + self.plan.site.lead for n in self.sequence.lengths]
        self.reach.append((cut.layer, cut.within, rows_left))
        return self.sequence.joined(hidden, rows), moved

    def _select(self, number: int, group: Group, flat: Tensor, observed: dict) -> Selection:
        plan, at = self.plan, group.at

        def look(signal: Signal) -> Tensor:
            if isinstance(signal, Hidden):
                tokens = flat.detach()[at]
                return tokens if plan.cell == 1 else tokens.unflatten(2, (plan.cell, -1)).mean(2)
            if isinstance(signal, Sizes):
                return group.sizes()
            if isinstance(signal, Carried):
                return group.carry if group.carry is not None else flat.new_zeros(at.shape, dtype=torch.float32)
            if signal not in observed:
                raise PatchError(f"the signal {signal} was not seen; the encoder layer that it reads did not run")
            return observed[signal].to(at.device)[at]

        signals = {signal: look(signal) for signal in plan.needs[number]}
        images = tuple(self.images[u] for u in group.units)
        context = Context(
            group.width, group.counts[number], None, tuple(group.units), flat.device, signals, number, images=images
        )
        return plan.ranks.agreed(plan.stage.select(context, plan.encoder)).check(group.width)

    def work(self) -> EncoderWork:
        """The work of this run, for counting FLOPs."""
        sequence, site = self.sequence, self.plan.site
        unpruned = [n * sequence.cell + site.lead for n in sequence.totals]
        current, before, after = unpruned, [], []
        for layer in range(site.depth):
            full, short = self.segments.get(layer, (unpruned, current))
            before.append((full, sum(unpruned)))
            reach = current
            for _, within, rows_left in (event for event in self.reach if event[0] == layer):
                current = rows_left
                reach = rows_left if within else reach
            after.append((short, sum(reach)))
        return EncoderWork(site.shape(), before, after)
