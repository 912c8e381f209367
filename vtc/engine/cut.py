"""Pruning at the input of the language model: selects tokens at prefill and shortens every input with a token axis."""

import functools

import torch
from torch import Tensor, nn

from vtc.config.allocation import Allocation
from vtc.core.errors import UnsupportedError
from vtc.core.layout import VisionRun, crop_groups
from vtc.engine import clock, prefill
from vtc.engine.inside import Images, Plan, Prefill
from vtc.engine.labels import check_places
from vtc.engine.masks import padding_mask
from vtc.engine.noted import remember
from vtc.engine.placement import Batch, place, token_numbers
from vtc.engine.planes import PLANES, Planes
from vtc.engine.question import QuestionReader
from vtc.engine.reports import Reporter
from vtc.engine.select import Kept
from vtc.engine.state import Call, PrunedPrompt, Segment, ThreadState
from vtc.engine.static import fit
from vtc.engine.survivors import left_of
from vtc.engine.turns import Prefix, prefix_of
from vtc.engine.vision import Vision


class PromptCut:
    """Selects tokens at the projector, packs the prompt, and prepares for drops inside the language model.

    plan: the plan of these drops, or None. number: the patch's number, stored with the prompt.
    """

    def __init__(
        self, family, allocation: Allocation, plan: Plan | None, vision: Vision, question: QuestionReader,
        reporter: Reporter, thread: ThreadState, number: int,
    ):  # fmt: skip
        self.family, self.allocation, self.plan, self.vision, self.question = family, allocation, plan, vision, question
        self.reporter, self.stage, self.thread, self.number = reporter, reporter.stage, thread, number

    def __call__(self, call: Call, module: nn.Module, kwargs: dict) -> None:
        """Prunes the arguments `kwargs` of the language model `module` in place and records the result in `call`."""
        cache, embeds = kwargs.get("past_key_values"), kwargs["inputs_embeds"]
        self._check(module, kwargs, cache, call)
        call.prefix = prefix = prefix_of(cache, kwargs.get("attention_mask"), embeds)
        if cache is not None and prefix is None:
            remember(cache, None)
        with torch.no_grad():
            start = clock.now()
            if prefix is not None:
                kwargs["attention_mask"] = prefix.mask
                if kwargs.get("position_ids") is None:
                    kwargs["position_ids"] = prefix.positions(embeds.shape[1], self.family.mrope)
            mask = kwargs.get("attention_mask") if call.blocks is None else call.blocks.mask
            real = padding_mask(mask, embeds.shape[1])
            real = None if real is None else real.to(embeds.device)
            masks = {kind: mask.to(embeds.device) for kind, mask in call.placeholders().items()}
            runs = [call.runs[kind] for kind in masks]
            is_visual = masks["image"] | masks["video"] if len(masks) > 1 else next(iter(masks.values()))
            if self.thread.outer is not None and self.thread.outer.places is not None:
                check_places(self.thread.outer.places, is_visual, real)
            batch = Batch(is_visual, real, call.ids, masks["video"] if len(masks) > 1 else None)
        run = VisionRun.joined(runs)
        if self.family.groups_crops:
            crops, host = [image.tokens for image in run.images], batch.host
            tokens = functools.cache(lambda: token_numbers(embeds) if host.ids is None else host.ids)
            run = run.grouped(crop_groups(self.family.image_groups, crops, host.is_image, tokens))
        if self.family.planes_method is not None and kwargs.get(PLANES) is not None:
            call.planes = Planes(kwargs[PLANES], is_visual)
        self._prune(call, run, len(runs[0].images), kwargs, batch, start)

    def _check(self, module: nn.Module, kwargs: dict, cache: object, call: Call) -> None:
        mask, linear = kwargs.get("attention_mask"), self.reporter.shape.linear is not None
        reason = "linear attention" if linear else "images attended both ways" if call.blocks is not None else None
        if self.plan is not None and self.plan.changed:
            reason = "a stage that changes attention"
        if reason is not None and cache is not None and int(cache.get_seq_length()):
            raise UnsupportedError(
                f"images after a cached prefix (a later turn on the same cache) are not supported with {reason}; "
                "possible: a fresh cache with the whole conversation"
            )
        if linear and isinstance(mask, Tensor) and mask.ndim == 4 and not getattr(cache, "is_compileable", False):
            raise UnsupportedError(
                "a 4-D attention mask does not tell linear attention where padding is, so tokens cannot be dropped "
                "behind it; possible: a 2-D mask"
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

    def _prune(self, call: Call, run: VisionRun, pictures: int, kwargs: dict, batch: Batch, start: float) -> None:
        embeds, mask, family = kwargs["inputs_embeds"], kwargs.get("attention_mask"), self.family
        length, device = embeds.shape[1], embeds.device
        from_end = self.thread.outer is not None and self.thread.outer.from_end
        placement = place(batch, [i.tokens for i in run.images], self.plan is not None, from_end, pictures)
        requests, places = placement.requests, placement.places
        flat = [(b, where) for b, parts in enumerate(places) for where in parts]
        tokens = [len(where) for _, where in flat]

        def features(image: int) -> Tensor:
            b, where = flat[image]
            return embeds[b, where]

        def text(signal, b: int):
            return self.question.look(signal, b, batch.host)

        encoder_kept = left_of(run, placement.source, device)
        kept = encoder_kept or [Kept(torch.arange(n, device=device)) for n in tokens]
        if self.stage is not None:
            budget = self.allocation.projector
            planes = None if call.planes is None else lambda image: call.planes.of(*flat[image])
            kept = self.vision.select(
                self.stage, budget, requests, placement.source, run, features, text, device, planes=planes
            )
        grouped = [[kept[i] for i in images] for images in requests]
        if call.planes is not None:
            for (b, where), image in zip(flat, kept, strict=True):
                call.planes.merge(b, where, image)
        unpruned = prefill.unpruned_tokens(kwargs, batch.padded, family.mrope)
        if self.reporter.front is None:
            moved, after, ends = unpruned, placement.lengths, placement.ends
            index = torch.arange(length, device=device).expand(len(requests), -1)
            segment = Segment(0, index, unpruned.valid, None, whole=True)
        else:
            packing = prefill.pack(batch, placement, grouped)
            if call.prefix is None:  # masks are made for the cache as it will be
                fit(kwargs.get("past_key_values"), 0, length, packing.index.shape[1])
            if call.blocks is not None:
                kwargs["attention_mask"] = call.blocks.mask
            moved = prefill.apply(kwargs, packing, unpruned, self.reporter.front.positions, places, grouped)
            after, ends, shift = packing.lengths, packing.ends, None
            if call.blocks is not None:
                call.blocks.rebuild(kwargs, packing.index, packing.valid)
            if moved.following is not unpruned.following:
                shift = unpruned.following - moved.following
            segment = Segment(0, packing.index, packing.valid, shift)
        # Counts first: a budget that an image cannot meet is refused before anything is reported.
        counts = [self.allocation.counts(n, len(k.offsets)) for n, k in zip(tokens, kept, strict=True)]
        frames = [run.images[source].frames for source in placement.source]
        report = self.reporter.report(requests, tokens, kept, placement.lengths, after, run, encoder_kept, frames)
        prompt = PrunedPrompt([segment], length, length, unpruned.following, report, self.number)
        prompt.counted = self.reporter.shape.first_cached
        call.pruned, prefix = prompt, call.prefix
        if prefix is not None:
            self._behind(prefix, kwargs, moved, segment)
        elif kwargs.get("past_key_values") is not None:
            remember(kwargs["past_key_values"], prompt)
        if self.plan is not None:
            aims = [self.allocation.aim(n, len(k.offsets)) for n, k in zip(tokens, kept, strict=True)]

            def encoded(signal, image: int) -> Tensor:
                return self.vision.on_run(signal, run, placement.source[image])

            images = Images(batch, placement, grouped, encoded, aims)
            embeds = kwargs["inputs_embeds"]
            call.inside = Prefill(
                self.plan, prompt, images, counts, moved, ends, mask, report, embeds, call.planes, prefix
            )
        report.select_seconds = clock.now() - start

    def _behind(self, prefix: Prefix, kwargs: dict, moved: prefill.Tokens, segment: Segment) -> None:
        """Puts what the first layer holds from before into the arguments: positions, mask and columns."""
        device, width = kwargs["inputs_embeds"].device, segment.width
        kwargs["position_ids"] = prefix.moved(0, moved.positions)
        kwargs["attention_mask"] = prefix.over(0, segment.valid, width, device)
        if kwargs.get("cache_position") is not None:
            start = prefix.at(0).width
            kwargs["cache_position"] = torch.arange(start, start + width, device=kwargs["cache_position"].device)
