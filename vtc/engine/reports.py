"""The report of one prefill, and the check that it dropped what was requested."""

import torch

from vtc.config.allocation import Allocation
from vtc.config.strategy import StrategyConfig
from vtc.core.budget import Budget
from vtc.core.errors import PatchError
from vtc.core.flops import LanguageShape
from vtc.core.image_report import ImageReport, StepReport
from vtc.core.layout import ImageLayout, VisionRun
from vtc.core.report import Report
from vtc.engine.select import Kept

NO_CALL = "no image was seen since patching"
NO_IMAGE = "no image was seen in the last call"
KEEPS_ALL = "keep=1.0 leaves the model alone"


class Reporter:
    """Writes the reports of one patch. notes: notes common to all of them; stage, inside: the stages at the projector
    and inside the encoder, if they drop anything; front: the last of these before the language model, or None."""

    def __init__(self, family, strategy: StrategyConfig, allocation: Allocation, shape: LanguageShape):
        self.name, self.strategy, self.allocation, self.shape = family.name, strategy, allocation, shape
        self.dump, self.notes = strategy.dump(), []
        self.stage, self.inside = strategy.projector, strategy.encoder
        if self.inside is not None and allocation.encoder.keeps_all:
            self.inside = None
        if self.stage is not None and allocation.projector.keeps_all:
            self.stage = None
        self.front = self.inside if self.stage is None else self.stage
        ranking = [front for front in (self.inside, self.stage) if front is not None and front.stage.needs_cls]
        if ranking and not family.encoder.has_cls:
            self.notes.append("this encoder has no [CLS]: the mean of all queries of an image stands in for it")
        self.notes += allocation.notes

    def report(
        self, requests: list[list[int]], tokens: list[int], kept: list[Kept], before: list[int], after: list[int],
        run: VisionRun, encoder_kept: list[Kept] | None = None, frames: list[int] | None = None,
    ) -> Report:  # fmt: skip
        """requests: per prompt, indices of its images. tokens, kept: of each image; encoder_kept: what the
        stage inside the encoder kept of each, None without one; frames: of each, 0 for an image. before, after: real
        tokens of each prompt. Raises PatchError where the budget required a drop and nothing was dropped."""
        images = []
        for b, prompt_images in enumerate(requests):
            for j, i in enumerate(prompt_images):
                image, remaining = ImageReport(b, j, tokens[i], len(kept[i].offsets), self.shape.layers), tokens[i]
                image.frames = frames[i] if frames else 0
                if encoder_kept is not None:
                    image_kept, name, layer = encoder_kept[i], self.inside.method, run.inside.plan.cuts[-1].layer
                    steps = image_kept.offsets, image_kept.flows, "encoder"
                    image.steps.append(StepReport(name, layer, remaining, len(image_kept.offsets), *steps))
                    remaining = len(image_kept.offsets)
                if self.stage is not None:
                    steps = kept[i].offsets, kept[i].flows
                    image.steps.append(StepReport(self.stage.method, None, remaining, image.entered, *steps))
                images.append(image)
        notes = list(self.notes)
        if any(map(self.allocation.relaxed, tokens)):
            first = self.strategy.stages[0].method
            notes.append(
                f"keep={self.strategy.keep} is more than the schedule inside lets through: {first} keeps everything "
                "and the schedule is relaxed"
            )
        if self.stage is not None:
            _check_dropped(images, run.images, self.allocation.projector)
            if self.stage.stage.clips and not all(layout.frames for layout in run.images):
                notes.append(f"{self.stage.method} compares the frames of clips: images keep all their tokens")
            notes += _missed(images, self.allocation.projector, len(requests))
        return Report(
            self.name, self.dump, self.strategy.keep, notes, images, before, after, self.shape, [], run.observe_seconds,
            encoder=[inside.work() for inside in run.insides],
        )  # fmt: skip


def _check_dropped(images: list[ImageReport], layouts: list[ImageLayout], budget: Budget) -> None:
    before, after = sum(image.before for image in images), sum(image.entered for image in images)
    sizes, clips = [[tile.tokens for tile in layout.tiles] for layout in layouts], [bool(x.frames) for x in layouts]
    if before == after and sum(map(sum, budget.quotas(sizes, clips))) < sum(map(sum, sizes)):
        raise PatchError(f"the patch saw {before} visual tokens and dropped none although keep={budget.keep}")


def _missed(images: list[ImageReport], budget: Budget, prompts: int) -> list[str]:
    """A note if the number of tokens that reached the language model differs from a budget in tokens."""
    if not isinstance(budget.keep, int):
        return []
    if budget.scope == "per_request":
        shared = [[image for image in images if image.prompt == b] for b in range(prompts)]
        parts = [(f"prompt {b}", group) for b, group in enumerate(shared)]
    else:
        parts = [(f"image {image.image} of prompt {image.prompt}", [image]) for image in images]
    misses = []
    for name, group in parts:
        target = min(budget.keep, sum(image.before for image in group))
        kept = sum(image.entered for image in group)
        if kept != target:
            misses.append(f"{name} kept {kept}")
    if not misses:
        return []
    more = f" and {len(misses) - 3} more" if len(misses) > 3 else ""
    return [f"{budget.keep} tokens asked at the projector, but {', '.join(misses[:3])}{more}"]


def cache_lengths(cache: object, shape: LanguageShape) -> list:
    """The cache length of each layer, None for one with linear attention; a static cache's counter is copied on the
    device, so the host does not wait."""
    lengths = [None if shape.is_linear(layer) else cache.get_seq_length(layer) for layer in range(shape.layers)]
    lengths = [length.clone() if isinstance(length, torch.Tensor) else length for length in lengths]
    return [_held(cache, layer, length) for layer, length in enumerate(lengths)]


def _held(cache: object, layer: int, seen: int | torch.Tensor | None) -> int | torch.Tensor | None:
    """How many of the tokens that a layer has seen its cache holds: fewer in one with a sliding window."""
    storage = cache.layers[layer] if hasattr(cache, "layers") else None
    if seen is None or not getattr(storage, "is_sliding", False) or getattr(storage, "keys", None) is None:
        return seen
    most = storage.keys.shape[-2]
    return seen.clamp(max=most) if isinstance(seen, torch.Tensor) else min(seen, most)
