"""One patched model: the hooks that record, select, cut and account, and nothing else."""

import functools
import itertools

import torch
from torch import Tensor, nn

from vtc.config.strategy import StrategyConfig
from vtc.core.errors import PatchError, UnsupportedError
from vtc.core.hooks import Patchwork
from vtc.core.report import Report
from vtc.core.signals import Decoder
from vtc.engine import clock, decode, prefill
from vtc.engine.calls import Frame, named
from vtc.engine.encoder import plan_of
from vtc.engine.inside import Images, Plan, Prefill
from vtc.engine.labels import Labels
from vtc.engine.masks import padding_mask
from vtc.engine.placement import Batch, place
from vtc.engine.question import Question
from vtc.engine.reports import KEEPS_ALL, NO_CALL, NO_IMAGE, Reporter, cache_lengths
from vtc.engine.select import Kept
from vtc.engine.state import Call, PrunedPrompt, Segment, ThreadState, recall, remember
from vtc.engine.survivors import left_of
from vtc.engine.vision import Vision

_NUMBERS = itertools.count(1)


class Patch:
    """A strategy on a model of a family. `put_on` installs hooks; `take_off` restores the model exactly.

    Everything that could fail for reasons of model or strategy is checked in the constructor, which touches nothing.
    """

    def __init__(self, family, strategy: StrategyConfig, processor: object = None, clip: object = None):
        self.family, self.strategy = family, strategy
        self.shape = family.language_shape()
        self.decoder = Decoder(family.name, self.shape.layers)
        self.allocation = strategy.allocate(self.decoder, family.encoder.tokens)
        self.plan = Plan(family.decoder_site(), self.allocation, self.decoder) if self.allocation.steps else None
        self.reporter = Reporter(family, strategy, self.allocation, self.shape)
        self.stage = self.reporter.stage
        needs = () if self.stage is None else self.stage.stage.needs(family.encoder)
        self.patchwork, self.thread, self.number = Patchwork(), ThreadState(), next(_NUMBERS)
        plan = plan_of(family, self.reporter.inside, self.allocation.encoder)
        self.vision = Vision(family, tuple(dict.fromkeys(needs)), self.thread, plan)
        self.question = Question(family, strategy, processor, clip)
        self.outcome: Report | str = KEEPS_ALL if strategy.keeps_all else NO_CALL

    def put_on(self) -> None:
        """Installs the hooks; keep=1.0 installs none."""
        if self.strategy.keeps_all:
            return
        family, work = self.family, self.patchwork
        self.vision.put_on(work)
        work.pre_hook(family.inner, self._enter)
        work.post_hook(family.inner, self._leave, always=True)
        work.pre_hook(family.language_model, self._boundary)
        work.post_hook(family.language_model, self._remember)
        Labels(self.thread).put_on(work, family.model)
        if self.reporter.front is not None and self.reporter.front.positions == "keep" and not family.mrope:
            for layer in family.language_model.layers:
                work.pre_hook(layer, self._hide_positions)
        if self.plan is not None:
            self._put_inside(work)

    def _put_inside(self, work: Patchwork) -> None:
        site, first = self.plan.site, min(self.plan.steps)
        for layer in self.plan.watched.attention:
            site.observe(work, layer, functools.partial(self._attention, layer))
        for layer in self.plan.watched.modules:
            site.watch(work, layer, functools.partial(self._module, layer))
        for layer in range(first, len(site.layers)):
            work.pre_hook(site.layers[layer], functools.partial(self._layer, layer))

    def take_off(self) -> None:
        """Removes every hook and attribute, and lets go of what was seen."""
        self.patchwork.undo()
        self.thread.pending = None, ()

    def __reduce_ex__(self, protocol: int):
        raise UnsupportedError("a patched model cannot be copied or pickled; possible: vtc.unpatch(model) first")

    def _attention(self, layer: int, query: Tensor, key: Tensor, scale: float | None, cu_seqlens, value) -> None:
        call = self.thread.call
        if call is not None and isinstance(call.inside, Prefill):
            call.inside.attention(layer, query, key, scale, value)

    def _module(self, layer: int, x: Tensor, y: Tensor) -> None:
        call = self.thread.call
        if call is not None and isinstance(call.inside, Prefill):
            call.inside.measure(layer, x, y)

    def _layer(self, layer: int, module: nn.Module, args: tuple, kwargs: dict):
        call = self.thread.call
        return None if call is None or call.inside is None else call.inside.before_layer(layer, args, kwargs)

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict):
        """Inner model, before: opens the call, notes what it was given, completes decode positions."""
        if module is not self.family.inner or torch.jit.is_tracing():
            raise UnsupportedError(
                "copies of a patched model (DataParallel) and traces of it (torch.jit) would lose the patch; possible: "
                "one process for each device, torch.compile, or vtc.unpatch(model) first"
            )
        given = named(module, args, kwargs)
        if (
            given.get("pixel_values_videos") is not None
            or (given.get("mm_encoder_outputs") or {}).get("video") is not None
        ):
            raise UnsupportedError(f"vtc prunes images; video input to {self.family.name} is not supported yet")
        call, outer = Call(), self.thread.outer
        self.thread.call = call
        if outer is not None:
            outer.entered = True
        features = (given.get("mm_encoder_outputs") or {}).get("image")
        if features is not None:
            call.run = self.vision.run_of(features)
            if call.run is None:
                raise UnsupportedError(
                    "precomputed image features without vtc's signals (chunked prefill, features from "
                    "before the patch) are not supported; possible: pass pixel_values"
                )
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        if features is not None or given.get("pixel_values") is not None:
            call.images, call.ids = True, ids
            call.is_image = self._placeholders(embeds) if ids is None else None
            return args, Frame(kwargs, call.over)
        tokens = (ids if ids is not None else embeds).shape[1]
        prompt = recall(given.get("past_key_values"), tokens)
        call.recalled = given.get("past_key_values"), prompt
        if prompt is not None and given.get("position_ids") is None:
            args, kwargs = (), {**given, "position_ids": decode.unpruned_positions(prompt, tokens, self.family.mrope)}
        return args, Frame(kwargs, call.over)

    def _placeholders(self, embeds: Tensor) -> Tensor:
        table = self.family.inner.get_input_embeddings()
        token = table(torch.full((), self.family.image_token_id, dtype=torch.long, device=embeds.device))
        return (embeds == token).all(-1)

    def _boundary(self, module: nn.Module, args: tuple, kwargs: dict):
        """Language model, before: drops the tokens at prefill, maps the bookkeeping at decode."""
        call, cache, embeds = self.thread.call, kwargs.get("past_key_values"), kwargs.get("inputs_embeds")
        if embeds is None:
            return None
        if call is None or call.begun:  # the language model alone
            call = self.thread.call = Call(alone=True)
        call.begun = call.started = True
        if call.images and call.run is None:
            raise PatchError(
                "the model was given images, but its get_image_features was replaced or not called, so nothing can be "
                "dropped; possible: vtc.patch(model, ...) on the model as it is now"
            )
        prompt = None
        if call.run is None:
            known, prompt = call.recalled
            if known is None or known is not cache:
                prompt = recall(cache, embeds.shape[1])
            if prompt is None:
                call.run, call.is_image = self.vision.find(embeds)
        if prompt is not None:
            self._continue(call, prompt, kwargs)
        elif call.run is not None:
            self._begin(call, module, kwargs)
        return args, Frame(kwargs, call.over) if call.alone else kwargs

    def _begin(self, call: Call, module: nn.Module, kwargs: dict) -> None:
        cache, embeds = kwargs.get("past_key_values"), kwargs["inputs_embeds"]
        if cache is not None:
            remember(cache, None)
        self._check_prefill(module, kwargs, cache)
        with torch.no_grad():
            start = clock.now()
            real = padding_mask(kwargs.get("attention_mask"), embeds.shape[1])
            real = None if real is None else real.to(embeds.device)
            is_image = call.ids == self.family.image_token_id if call.is_image is None else call.is_image
            batch = Batch(is_image.to(embeds.device), real, call.ids)
        self._prune(call, kwargs, batch, start)

    def _continue(self, call: Call, prompt: PrunedPrompt, kwargs: dict) -> None:
        if len(prompt.segments) > 1 and prompt.patch != self.number:
            raise PatchError(
                "this cache was filled under another patch, with drops before other layers; possible: a fresh "
                "cache, or the patch that filled it"
            )
        call.pruned = prompt
        call.inside = decode.step(kwargs, prompt, self.family.mrope, None if self.plan is None else self.plan.site)

    def _check_prefill(self, module: nn.Module, kwargs: dict, cache: object) -> None:
        if cache is not None and int(cache.get_seq_length()):
            raise UnsupportedError(
                "images after a cached prefix (a second turn on the same cache, chunked prefill) are "
                "not supported; possible: a fresh cache with the whole conversation"
            )
        if kwargs.get("cu_seq_lens_q") is not None:
            raise UnsupportedError(
                "packed (padding-free) language-model inputs are not supported; possible: a padded batch"
            )
        recomputed = module.training and any(getattr(m, "gradient_checkpointing", False) for m in module.layers)
        if self.plan is not None and recomputed:
            raise UnsupportedError(
                "gradient checkpointing would run a layer again without its drops; possible: "
                "model.gradient_checkpointing_disable(), or a strategy at the projector only"
            )

    def _prune(self, call: Call, kwargs: dict, batch: Batch, start: float) -> None:
        run, embeds, mask, family = call.run, kwargs["inputs_embeds"], kwargs.get("attention_mask"), self.family
        length, device = embeds.shape[1], embeds.device
        from_end = self.thread.outer is not None and self.thread.outer.from_end
        placement = place(batch, [i.tokens for i in run.images], self.plan is not None, from_end)
        requests, places = placement.requests, placement.places
        flat = [(b, where) for b, parts in enumerate(places) for where in parts]
        tokens = [len(where) for _, where in flat]

        def features(image: int) -> Tensor:
            return embeds[flat[image]]

        def text(signal, b: int):
            return self.question.look(signal, b, batch.host)

        left = left_of(run, placement.source, device)
        kept = left or [Kept(torch.arange(n, device=device)) for n in tokens]
        if self.stage is not None:
            budget = self.allocation.projector
            kept = self.vision.select(self.stage, budget, requests, placement.source, run, features, text, device)
        grouped = [[kept[i] for i in images] for images in requests]
        whole = prefill.whole(kwargs, batch.padded, family.mrope)
        if self.reporter.front is None:
            where, after, ends = whole, placement.lengths, placement.ends
            index = torch.arange(length, device=device).expand(len(requests), -1)
            segment = Segment(0, index, whole.valid, None, whole=True)
        else:
            packing = prefill.pack(batch, placement, grouped)
            where = prefill.apply(kwargs, packing, whole, self.reporter.front.positions, places, grouped)
            after, ends, shift = packing.lengths, packing.ends, None
            if where.following is not whole.following:
                shift = whole.following - where.following
            segment = Segment(0, packing.index, packing.valid, shift)
        # Counts first: a budget that an image cannot give is refused before anything is reported.
        counts = [self.allocation.counts(n, len(k.offsets)) for n, k in zip(tokens, kept, strict=True)]
        report = self.reporter.report(requests, tokens, kept, placement.lengths, after, run, left)
        prompt = call.pruned = PrunedPrompt([segment], length, length, whole.following, report, self.number)
        if kwargs.get("past_key_values") is not None:
            remember(kwargs["past_key_values"], prompt)
        if self.plan is not None:
            call.inside = Prefill(self.plan, prompt, Images(batch, placement, grouped), counts, where, ends, mask, report)
        report.select_seconds = clock.now() - start

    def _remember(self, module: nn.Module, args: tuple, kwargs: dict, output):
        """Language model, after: a cache made inside the forward is remembered; its lengths are measured."""
        call = self.thread.call
        if call is None or output is None or not call.begun:
            return
        if call.pruned is not None and call.run is not None:
            self._finish(call.pruned, call.inside, output)
        if call.alone:
            self._end(call)

    def _finish(self, prompt: PrunedPrompt, inside: object, output) -> None:
        if isinstance(inside, Prefill) and inside.done < len(self.allocation.steps):
            raise PatchError(
                f"{inside.done} of {len(self.allocation.steps)} drops inside the language model took place: its "
                "layers did not run as modules"
            )
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            remember(cache, prompt)
            prompt.report.cache_lengths = cache_lengths(cache, self.shape.layers)

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict, output) -> None:
        """Inner model, after: the call is over, and its report counts if it came to its end."""
        call, outer = self.thread.call, self.thread.outer
        self.thread.call = None
        if call is None or output is None:
            return
        if call.images and not call.begun:
            raise PatchError(
                f"{type(module).__name__} was given images, but its language model did not run as a module, so nothing "
                "was dropped; possible: vtc.patch(model, ...) on the model as it is now"
            )
        if outer is not None and outer.labels is not None:
            outer.pruned = call.pruned
        self._end(call)

    def _end(self, call: Call) -> None:
        self.thread.call = None
        self.thread.outcome = self.outcome = NO_IMAGE if call.pruned is None else call.pruned.report

    def last_outcome(self) -> Report | str:
        """The report of the last call, or why there is none: of this thread if it made a call, else of any."""
        return self.thread.outcome or self.outcome

    def _hide_positions(self, module: nn.Module, args: tuple, kwargs: dict):
        """Decoder layers get their rotary embeddings ready-made; raw positions with gaps would only be mistaken for
        packed sequences by flash attention."""
        call = self.thread.call
        if call is not None and call.pruned is not None and kwargs.get("position_ids") is not None:
            return args, {**kwargs, "position_ids": None}
        return None
