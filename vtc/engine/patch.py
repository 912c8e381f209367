"""One patched model: its hooks, and the course of a call from its start to its report."""

import functools
import itertools

import torch
from torch import Tensor, nn

from vtc.config.strategy import StrategyConfig
from vtc.core.errors import PatchError, UnsupportedError
from vtc.core.hooks import Patchwork
from vtc.core.report import Report
from vtc.core.signals import Decoder
from vtc.engine import continuing, decode, media
from vtc.engine.calls import Frame, named
from vtc.engine.changing import decoded
from vtc.engine.compiled import CompiledSteps
from vtc.engine.cut import PromptCut
from vtc.engine.encoder import plan_of
from vtc.engine.experts import FLAG
from vtc.engine.inside import Plan, Prefill
from vtc.engine.labels import Labels
from vtc.engine.layer_masks import Blocks
from vtc.engine.noted import recall, remember
from vtc.engine.planes import adding
from vtc.engine.question import QuestionReader
from vtc.engine.ranks import Ranks, head_group, refuse_spread
from vtc.engine.reports import KEEPS_ALL, NO_CALL, NO_IMAGE, Reporter, cache_lengths
from vtc.engine.state import Call, PrunedPrompt, ThreadState
from vtc.engine.vision import Vision, encoder_signal

_NUMBERS = itertools.count(1)


class Patch:
    """A strategy on a model of a family. `put_on` installs hooks; `take_off` restores the model exactly.

    Everything that could fail because of the model or the strategy is checked in the constructor, which changes
    nothing.
    """

    def __init__(self, family, strategy: StrategyConfig, processor: object = None, clip: object = None):
        refuse_spread(family.model)
        self.family, self.strategy = family, strategy
        self.shape = family.language_shape()
        self.decoder = Decoder(family.name, self.shape.layers, self.shape.softmax)
        self.allocation = strategy.allocate(self.decoder, family.encoder.tokens)
        inside = bool(self.allocation.steps) or strategy.attention is not None
        layers = family.language_model.layers
        group = head_group(family.model, (layer.self_attn for layer in layers if hasattr(layer, "self_attn")))
        self.ranks = Ranks(group, self.shape.heads)
        self.plan = None
        if inside:
            self.plan = Plan(family.decoder_site(), self.allocation, self.decoder, self.shape.hidden, self.ranks)
        reporter = Reporter(family, strategy, self.allocation, self.shape)
        self.stage = reporter.stage
        needs = () if self.stage is None else self.stage.stage.needs(family.encoder)
        self.patchwork, self.thread, self.number = Patchwork(), ThreadState(), next(_NUMBERS)
        inside = () if self.plan is None else (encoder_signal(s, family.encoder) for s in self.plan.encoder)
        encoder = plan_of(family, reporter.inside, self.allocation.encoder, self.ranks)
        self.vision = Vision(family, tuple(dict.fromkeys([*needs, *inside])), self.thread, encoder, self.ranks)
        if (self.vision.observed or encoder is not None) and head_group(family.model, family.attention) is not None:
            raise UnsupportedError(
                "the heads of this vision encoder are split over processes, and the strategy reads them; possible: a "
                'tp_plan that leaves the encoder whole, such as "auto", or a method that reads features (`vtc list`)'
            )
        self.front = reporter.front
        question = QuestionReader(family, strategy, processor, clip)
        self.cut = PromptCut(
            family, self.allocation, self.plan, self.vision, question, reporter, self.thread, self.number
        )
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
        if family.planes_method is not None:
            add = getattr(family.language_model, family.planes_method)
            work.method(family.language_model, family.planes_method, adding(add, self._planes))
        Labels(self.thread).put_on(work, family.model)
        continuing.put_on(work, family.model, self.thread)
        CompiledSteps(self, family.model).put_on()
        if self.front is not None and self.front.positions == "keep" and not family.mrope:
            for layer in family.language_model.layers:
                work.pre_hook(layer, self._hide_positions)
        if self.plan is not None:
            self._put_inside(work)

    def _put_inside(self, work: Patchwork) -> None:
        site, first = self.plan.site, min([*self.plan.steps, *self.plan.changed], default=len(self.plan.site.layers))
        for layer in sorted({*self.plan.watched.attention, *self.plan.changed}):
            rewrite = functools.partial(self._rewrite, layer) if layer in self.plan.changed else None
            site.observe(work, layer, functools.partial(self._attention, layer), rewrite)
        for layer in self.plan.watched.modules:
            site.watch(work, layer, functools.partial(self._module, layer))
        for layer in range(first, len(site.layers)):
            work.pre_hook(site.layers[layer], functools.partial(self._layer, layer))

    def take_off(self) -> None:
        """Removes every hook and attribute, and releases the recorded features."""
        self.patchwork.undo()
        self.thread.pending = {}

    def __reduce_ex__(self, protocol: int):
        raise UnsupportedError("a patched model cannot be copied or pickled; possible: vtc.unpatch(model) first")

    def _attention(self, layer: int, query: Tensor, key: Tensor, scale: float | None, cu_seqlens, value) -> None:
        call = self.thread.call
        if call is not None and isinstance(call.inside, Prefill):
            call.inside.attention(layer, query, key, scale, value)

    def _rewrite(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask, options: dict, out: tuple) -> tuple:
        call = self.thread.call
        if call is None or call.pruned is None or layer not in call.pruned.marks:
            return out
        if isinstance(call.inside, Prefill):
            return call.inside.changes.prefill(layer, query, key, value, mask, options, out)
        return decoded(self.plan, call.pruned, layer, query, key, value, mask, options, out)

    def _planes(self) -> tuple:
        call = self.thread.call
        return (None, None) if call is None else (call.planes, call.pruned)

    def _module(self, layer: int, x: Tensor, y: Tensor) -> None:
        call = self.thread.call
        if call is not None and isinstance(call.inside, Prefill):
            call.inside.measure(layer, x, y)

    def _layer(self, layer: int, module: nn.Module, args: tuple, kwargs: dict):
        call = self.thread.call
        return None if call is None or call.inside is None else call.inside.before_layer(layer, args, kwargs)

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict):
        """Inner model, before: opens the call, notes its inputs, and fills in decode positions."""
        if module is not self.family.inner or torch.jit.is_tracing():
            raise UnsupportedError(
                "copies of a patched model (DataParallel) and traces of it (torch.jit) would lose the patch; possible: "
                "one process for each device, torch.compile, or vtc.unpatch(model) first"
            )
        given = named(module, args, kwargs)
        kinds = media.given_kinds(given)
        media.check_supported(self.family, kinds)
        call, outer = Call(kinds=kinds), self.thread.outer
        self.thread.call = call
        if outer is not None:
            outer.entered = True
            kwargs = {**kwargs, FLAG: True} if outer.routers else kwargs
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        if self.family.block_types is not None:
            call.blocks = Blocks(self.family.model, self.family.block_types, given)
        if kinds:
            call.ids, call.runs = ids, media.encoded(given, kinds, self.thread)
            types = given.get("mm_token_type_ids")
            call.placeholders = media.placeholders(self.family, kinds, ids, types, embeds)
            return args, Frame(kwargs, call.over)
        tokens = (ids if ids is not None else embeds).shape[1]
        prompt = recall(given.get("past_key_values"), tokens)
        call.recalled = given.get("past_key_values"), prompt
        if prompt is not None and call.blocks is not None:
            args, kwargs = (), call.blocks.for_step(module, given, prompt.seen, tokens)
            given = kwargs
        if prompt is not None and given.get("position_ids") is None:
            args, kwargs = (), {**given, "position_ids": decode.unpruned_positions(prompt, tokens, self.family.mrope)}
        return args, Frame(kwargs, call.over)

    def _boundary(self, module: nn.Module, args: tuple, kwargs: dict):
        """Language model, before: drops tokens at prefill, maps the bookkeeping at decode."""
        call, cache, embeds = self.thread.call, kwargs.get("past_key_values"), kwargs.get("inputs_embeds")
        if embeds is None:
            return None
        if call is None or call.begun:  # the language model was called directly
            call = self.thread.call = Call(alone=True)
        call.begun = call.started = True
        mask, self.thread.mask = self.thread.mask, None
        if any(kind not in call.runs for kind in call.kinds):
            raise PatchError(
                "the model was given images, but its get_image_features was replaced or not called, so nothing can be "
                "dropped; possible: vtc.patch(model, ...) on the model as it is now"
            )
        prompt = None
        if call.runs:
            if mask is not None and cache is not None and int(cache.get_seq_length()):
                kwargs["attention_mask"] = mask
        else:
            recalled_cache, prompt = call.recalled
            if recalled_cache is None or recalled_cache is not cache:
                prompt = recall(cache, embeds.shape[1])
            if prompt is None:
                call.runs, masks = media.find(embeds, self.thread)
                call.placeholders = lambda: masks
        if prompt is not None:
            if mask is not None and mask.shape[1] == prompt.seen + embeds.shape[1]:
                kwargs["attention_mask"] = mask
                if call.blocks is not None:
                    call.blocks.mask = mask
            self._continue(call, prompt, kwargs)
        elif call.runs:
            self.cut(call, module, kwargs)
        return args, Frame(kwargs, call.over) if call.alone else kwargs

    def _continue(self, call: Call, prompt: PrunedPrompt, kwargs: dict) -> None:
        changed = prompt.marks or self.plan is not None and self.plan.changed
        if (len(prompt.segments) > 1 or changed) and prompt.patch != self.number:
            how = "other changes of attention" if changed else "drops before other layers"
            raise PatchError(
                f"this cache was filled under another patch, with {how}; possible: a fresh cache, or the patch that "
                "filled it"
            )
        call.pruned = prompt
        if call.blocks is not None:
            kwargs["attention_mask"] = call.blocks.mask
        call.inside = decode.step(kwargs, prompt, self.family.mrope, None if self.plan is None else self.plan.site)

    def _remember(self, module: nn.Module, args: tuple, kwargs: dict, output):
        """Language model, after: notes the prompt on a cache created inside the forward, and measures its lengths."""
        call = self.thread.call
        if call is None or output is None or not call.begun:
            return
        if call.pruned is not None and call.runs:
            self._finish(call, output)
        if call.alone:
            self.end(call)

    def _finish(self, call: Call, output) -> None:
        prompt, inside = call.pruned, call.inside
        if isinstance(inside, Prefill) and inside.done < len(self.allocation.steps):
            raise PatchError(
                f"{inside.done} of {len(self.allocation.steps)} drops inside the language model took place: its "
                "layers did not run as modules"
            )
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            remember(cache, prompt if call.prefix is None else call.prefix.joined(prompt))
            prompt.report.cache_lengths = cache_lengths(cache, self.shape)

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict, output) -> None:
        """Inner model, after: closes the call; its report counts only if the forward completed."""
        call, outer = self.thread.call, self.thread.outer
        self.thread.call = None
        if call is None or output is None:
            return
        if call.kinds and not call.begun:
            raise PatchError(
                f"{type(module).__name__} was given images, but its language model did not run as a module, so nothing "
                "was dropped; possible: vtc.patch(model, ...) on the model as it is now"
            )
        if outer is not None and (outer.labels is not None or outer.routers):
            outer.pruned, outer.router_logits = call.pruned, getattr(output, "router_logits", None)
        self.end(call)

    def end(self, call: Call) -> None:
        """Makes the report of a call that completed the last one."""
        self.thread.call = None
        self.thread.outcome = self.outcome = NO_IMAGE if call.pruned is None else call.pruned.report

    def last_outcome(self) -> Report | str:
        """The report of the last call, or why there is none; of this thread if it made a call, else of any thread."""
        return self.thread.outcome or self.outcome

    def _hide_positions(self, module: nn.Module, args: tuple, kwargs: dict):
        """Hides position ids from the decoder layers, which get their rotary embeddings precomputed: flash attention
        would mistake positions with gaps for packed sequences."""
        call = self.thread.call
        if call is not None and call.pruned is not None and kwargs.get("position_ids") is not None:
            return args, {**kwargs, "position_ids": None}
        return None
