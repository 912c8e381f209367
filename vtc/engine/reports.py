"""The report of one prefill, and the check that it did what was asked."""

import torch

from vtc.config.allocation import Allocation
from vtc.config.strategy import StrategyConfig
from vtc.core.budget import Budget
from vtc.core.errors import PatchError
from vtc.core.flops import LanguageShape
from vtc.core.layout import VisionRun
from vtc.core.report import ImageReport, Report, StepReport
from vtc.engine.select import Kept

NO_CALL = "no image was seen since patching"
NO_IMAGE = "no image was seen in the last call"
KEEPS_ALL = "keep=1.0 leaves the model alone"


class Reporter:
    """Reports of one patch. notes: what holds for all of them; stage, inside: those at the projector and inside the
    encoder that leave something out; front: the last of these before the language model, None without one."""

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

    def report(
        self, requests: list[list[int]], tokens: list[int], kept: list[Kept], before: list[int], after: list[int],
        run: VisionRun, left: list[Kept] | None = None,
    ) -> Report:  # fmt: skip
        """requests: per prompt, indices of its images. tokens, kept: of each image; left: the tokens that the encoder
        left of each, if there is a stage inside it. before, after: real tokens of each prompt. Raises PatchError where
        a budget left something to drop and nothing was dropped."""
        images = []
        for b, mine in enumerate(requests):
            for j, i in enumerate(mine):
                image, seen = ImageReport(b, j, tokens[i], len(kept[i].offsets), self.shape.layers), tokens[i]
                if left is not None:
                    found, name, layer = left[i], self.inside.method, run.inside.plan.cuts[-1].layer
                    steps = found.offsets, found.flows, "encoder"
                    image.steps.append(StepReport(name, layer, seen, len(found.offsets), *steps))
                    seen = len(found.offsets)
                if self.stage is not None:
                    steps = kept[i].offsets, kept[i].flows
                    image.steps.append(StepReport(self.stage.method, None, seen, image.entered, *steps))
                images.append(image)
        notes = list(self.notes)
        if any(map(self.allocation.relaxed, tokens)):
            first = self.strategy.stages[0].method
            notes.append(
                f"keep={self.strategy.keep} is more than the schedule inside lets through: {first} keeps everything "
                "and the schedule is relaxed"
            )
        if self.stage is not None:
            _check_dropped(images, self.allocation.projector)
            notes += _missed(images, self.allocation.projector, len(requests))
        return Report(
            self.name, self.dump, self.strategy.keep, notes, images, before, after, self.shape, [], run.observe_seconds,
            encoder=None if run.inside is None else run.inside.work(),
        )  # fmt: skip


def _check_dropped(images: list[ImageReport], budget: Budget) -> None:
    before, after = sum(image.before for image in images), sum(image.entered for image in images)
    if before == after and sum(budget.count(image.before) for image in images) < before:
        raise PatchError(f"the patch saw {before} visual tokens and dropped none although keep={budget.keep}")


def _missed(images: list[ImageReport], budget: Budget, prompts: int) -> list[str]:
    """A note where a budget in tokens is not the number that reached the language model."""
    if not isinstance(budget.keep, int):
        return []
    if budget.scope == "per_request":
        shared = [[image for image in images if image.prompt == b] for b in range(prompts)]
        parts = [(f"prompt {b}", mine) for b, mine in enumerate(shared)]
    else:
        parts = [(f"image {image.image} of prompt {image.prompt}", [image]) for image in images]
    found = []
    for name, mine in parts:
        asked = min(budget.keep, sum(image.before for image in mine))
        kept = sum(image.entered for image in mine)
        if kept != asked:
            found.append(f"{name} kept {kept}")
    if not found:
        return []
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return [f"{budget.keep} tokens asked at the projector, but {', '.join(found[:3])}{more}"]


def cache_lengths(cache: object, layers: int) -> list:
    """Each layer's length; a static cache's counter is copied, not read, so nothing waits for the device."""
    found = [cache.get_seq_length(layer) for layer in range(layers)]
    return [length.clone() if isinstance(length, torch.Tensor) else length for length in found]
