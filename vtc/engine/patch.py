"""One patched model: the hooks that record, select, cut and account, and nothing else."""

import functools
import inspect
from collections.abc import Callable

import torch
from torch import nn

from vtc.account import ImageReport, Report
from vtc.config import StrategyConfig
from vtc.engine import clock, decode, prefill
from vtc.engine.masks import padding_mask
from vtc.engine.select import Kept, run_stage
from vtc.engine.state import Call, PrunedPrompt, ThreadState, recall, remember
from vtc.errors import PatchError, UnsupportedError
from vtc.hooks import Patchwork
from vtc.layout import VisionRun
from vtc.signals import ClsAttention, Features, Signal

_RUN = "_vtc_run"


class Patch:
    """A strategy on a model of a family. `put_on` installs hooks; `take_off` restores the model exactly.

    Everything that could fail for reasons of model or strategy is checked in the constructor, which touches nothing.
    """

    def __init__(self, family, strategy: StrategyConfig):
        self.family, self.strategy = family, strategy
        self.signals: tuple[Signal, ...] = tuple(dict.fromkeys(strategy.stage.needs(family.encoder)))
        self.shape, self.dump = family.language_shape(), strategy.dump()
        self.patchwork, self.thread = Patchwork(), ThreadState()
        self.last_report: Report | None = None
        self.notes = []
        if any(isinstance(s, ClsAttention) for s in self.signals) and not family.encoder.has_cls:
            self.notes.append("this encoder has no [CLS]: the mean of all queries of an image stands in for it")

    def put_on(self) -> None:
        """Installs the hooks; keep=1.0 installs none."""
        if self.strategy.budget.keeps_all:
            return
        family, work = self.family, self.patchwork
        for layer in sorted({s.layer for s in self.signals if not isinstance(s, Features)}):
            family.observe(work, layer, functools.partial(self._record, layer))
        work.attribute(family.inner, "get_image_features", self._recording(family.inner.get_image_features))
        work.pre_hook(family.inner, self._enter)
        work.post_hook(family.inner, self._leave, always=True)
        work.pre_hook(family.language_model, self._boundary)
        work.post_hook(family.language_model, self._remember)
        work.pre_hook(family.model, self._take_labels)
        work.post_hook(family.model, self._loss)
        if self.strategy.positions == "keep" and not family.mrope:
            for layer in family.language_model.layers:
                work.pre_hook(layer, self._hide_positions)

    def take_off(self) -> None:
        """Removes every hook and attribute."""
        self.patchwork.undo()

    def __reduce_ex__(self, protocol: int):
        raise UnsupportedError("a patched model cannot be copied or pickled; possible: vtc.unpatch(model) first")

    def _record(self, layer: int, query, key, scale, cu_seqlens) -> None:
        run = self.thread.recording
        if run is None:
            return
        start = clock.now()
        for signal in self.signals:
            if not isinstance(signal, Features) and signal.layer == layer:
                run.captured.setdefault(signal, []).append(self.family.reduce(signal, query, key, scale, cu_seqlens))
        run.observe_seconds += clock.now() - start

    def _recording(self, original: Callable) -> Callable:
        """`get_image_features`, with the run's signals and layout attached to what it returns (generate() may call it
        before the forward, and passes its output on)."""
        signature = inspect.signature(original)

        @functools.wraps(original)
        def get_image_features(*args, **kwargs):
            arguments = signature.bind(*args, **kwargs).arguments
            run = self.thread.recording = VisionRun()
            try:
                output = original(*args, **kwargs)
            finally:
                self.thread.recording = None
            if isinstance(output, tuple):
                return output
            with torch.no_grad():
                run.images = self.family.image_layouts(arguments)
                run.signals = {s: self.family.tile_scores(c, run.images, arguments) for s, c in run.captured.items()}
            run.captured = {}
            expected, found = [i.tokens for i in run.images], [len(f) for f in output.pooler_output]
            if expected != found:
                raise PatchError(
                    f"the {self.family.name} encoder gave {found} tokens per image, {expected} were expected"
                )
            setattr(output, _RUN, run)
            if self.thread.call is not None:
                self.thread.call.run = run
            return output

        return get_image_features

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict):
        """Inner model, before: opens the call, finds the image placeholders, completes decode positions."""
        given = _named(module, args, kwargs)
        if (
            given.get("pixel_values_videos") is not None
            or (given.get("mm_encoder_outputs") or {}).get("video") is not None
        ):
            raise UnsupportedError(f"vtc prunes images; video input to {self.family.name} is not supported yet")
        call = self.thread.call = Call()
        images = (given.get("mm_encoder_outputs") or {}).get("image")
        if images is not None:
            call.run = getattr(images, _RUN, None)
            if call.run is None:
                raise UnsupportedError(
                    "precomputed image features without vtc's signals (chunked prefill, features from "
                    "before the patch) are not supported; possible: pass pixel_values"
                )
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        if images is not None or given.get("pixel_values") is not None:
            call.is_image = self._placeholders(ids, embeds)
            return None
        tokens = (ids if ids is not None else embeds).shape[1]
        prompt = recall(given.get("past_key_values"), tokens)
        if prompt is not None and given.get("position_ids") is None:
            return (), {**given, "position_ids": decode.unpruned_positions(prompt, tokens, self.family.mrope)}
        return None

    def _placeholders(self, ids, embeds):
        if ids is not None:
            return (ids == self.family.image_token_id).cpu()
        table = self.family.inner.get_input_embeddings()
        token = table(torch.tensor(self.family.image_token_id, device=embeds.device))
        return (embeds == token).all(-1).cpu()

    def _boundary(self, module: nn.Module, args: tuple, kwargs: dict):
        """Language model, before: drops the tokens at prefill, maps the bookkeeping at decode."""
        call, cache = self.thread.call, kwargs.get("past_key_values")
        self.thread.last_pruned = None
        if call is None or kwargs.get("inputs_embeds") is None:
            return None
        if call.run is None:
            prompt = recall(cache, kwargs["inputs_embeds"].shape[1])
            if prompt is not None:
                decode.step(kwargs, prompt, self.family.mrope)
            return args, kwargs
        if cache is not None:
            remember(cache, None)
            if int(cache.get_seq_length()):
                raise UnsupportedError(
                    "images after a cached prefix (a second turn on the same cache, chunked prefill) are "
                    "not supported; possible: a fresh cache with the whole conversation"
                )
        if kwargs.get("cu_seq_lens_q") is not None:
            raise UnsupportedError(
                "packed (padding-free) language-model inputs are not supported; possible: a padded batch"
            )
        with torch.no_grad():
            start = clock.now()
            real = padding_mask(kwargs.get("attention_mask"), kwargs["inputs_embeds"].shape[1])
            real = None if real is None else real.expand(call.is_image.shape[0], -1).cpu()
        self._prune(call, kwargs, real, start)
        return args, kwargs

    def _prune(self, call: Call, kwargs: dict, real, start: float) -> None:
        run, embeds = call.run, kwargs["inputs_embeds"]
        requests, source, places = prefill.image_runs(call.is_image, [i.tokens for i in run.images])
        flat = [(b, where) for b, parts in enumerate(places) for where in parts]

        def features(image: int) -> torch.Tensor:
            b, where = flat[image]
            return embeds[b, where.to(embeds.device)]

        kept = run_stage(self.strategy, self.family.encoder, requests, source, run, features, embeds.device)
        tokens = [len(where) for _, where in flat]
        grouped = [[kept[i] for i in images] for images in requests]
        packing = prefill.pack(call.is_image, real, places, grouped, embeds.device)
        self._check_dropped(tokens, kept)
        call.pruned = prefill.apply(kwargs, packing, self.strategy.positions, self.family.mrope, places, grouped)
        if kwargs.get("past_key_values") is not None:
            remember(kwargs["past_key_values"], call.pruned)
        before = [embeds.shape[1]] * len(requests) if real is None else real.sum(1).tolist()
        self._report(requests, tokens, kept, before, packing.lengths, run, clock.now() - start)

    def _check_dropped(self, tokens: list[int], kept: list[Kept]) -> None:
        before, after = sum(tokens), sum(len(k.offsets) for k in kept)
        asked = sum(map(self.strategy.budget.count, tokens))
        if before == after and asked < before:
            raise PatchError(
                f"the patch saw {before} visual tokens and dropped none although keep={self.strategy.budget.keep}"
            )

    def _report(self, requests, tokens, kept, before, after, run: VisionRun, seconds: float) -> None:
        stage = self.dump["stages"][0]["method"]
        images = []
        for b, mine in enumerate(requests):
            for j, i in enumerate(mine):
                left = len(kept[i].offsets)
                images.append(ImageReport(b, j, tokens[i], left, [(stage, tokens[i], left)], kept[i].offsets))
        self.thread.report = self.last_report = Report(
            self.family.name, self.dump, self.strategy.budget.keep, self.notes, images, before, after, self.shape, [],
            run.observe_seconds, seconds,
        )  # fmt: skip

    def _remember(self, module: nn.Module, args: tuple, kwargs: dict, output):
        """Language model, after: a cache made inside the forward is remembered; its lengths are measured."""
        call = self.thread.call
        if call is None or call.pruned is None:
            return
        self.thread.last_pruned = call.pruned
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            remember(cache, call.pruned)
            self.thread.report.cache_lengths = [_length(cache, i) for i in range(self.shape.layers)]

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict, output) -> None:
        self.thread.call = None

    def _hide_positions(self, module: nn.Module, args: tuple, kwargs: dict):
        """Decoder layers get their rotary embeddings ready-made; raw positions with gaps would only be mistaken for
        packed sequences by flash attention."""
        call = self.thread.call
        if call is not None and call.pruned is not None and kwargs.get("position_ids") is not None:
            return args, {**kwargs, "position_ids": None}
        return None

    def _take_labels(self, module: nn.Module, args: tuple, kwargs: dict):
        """Outer model, before: labels are kept back, since the logits will be shorter than they are."""
        self.thread.labels = None
        given = _named(module, args, kwargs)
        if given.get("pixel_values") is None and not given.get("mm_encoder_outputs"):
            return None
        if isinstance(given.get("logits_to_keep"), torch.Tensor):
            raise UnsupportedError(
                "logits_to_keep as a tensor of places is not supported; possible: a number of last tokens"
            )
        if given.get("labels") is None:
            return None
        self.thread.labels = given.pop("labels")
        return (), given

    def _loss(self, module: nn.Module, args: tuple, kwargs: dict, output):
        """Outer model, after: the loss on the surviving text."""
        labels, pruned = self.thread.labels, self.thread.last_pruned
        self.thread.labels = None
        if labels is None or pruned is None:
            return None
        logits = output[0] if isinstance(output, tuple) else output.logits
        extra = {k: kwargs[k] for k in ("num_items_in_batch", "ignore_index") if k in kwargs}
        vocabulary = module.config.get_text_config().vocab_size
        loss = module.loss_function(logits=logits, labels=cut_labels(labels, pruned), vocab_size=vocabulary, **extra)
        if isinstance(output, tuple):
            return (loss, *output)
        return type(output)(**{**dict(output.items()), "loss": loss})


def _named(module: nn.Module, args: tuple, kwargs: dict) -> dict:
    """The arguments of a forward by name. Callers inside transformers name all of them, which costs nothing here.

    The class's own forward is read, because the instance's may be a wrapper that takes anything (accelerate).
    """
    if not args:
        return dict(kwargs)
    signature = inspect.signature(type(module).forward)
    given = dict(signature.bind(module, *args, **kwargs).arguments)
    rest = [name for name in given if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD]
    for name in rest:
        given.update(given.pop(name))
    given.pop(next(iter(signature.parameters)))
    return given


def cut_labels(labels: torch.Tensor, pruned: PrunedPrompt) -> torch.Tensor:
    """Labels [B, L] at the kept places [B, K]; filler is ignored (-100)."""
    return pruned.cut(labels, -100)


def _length(cache: object, layer: int):
    """A layer's length; a static cache's counter is copied, not read, so nothing waits for the device."""
    length = cache.get_seq_length(layer)
    return length.clone() if isinstance(length, torch.Tensor) else length
