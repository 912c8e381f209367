"""Properties of a stage's choice: how many tokens, in which order, ties, and precision."""

import dataclasses

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vtc.check.trial import TOKENS, CheckedCall, Choice, Trial
from vtc.check.verdicts import DoesNotApply, Violation
from vtc.core.budget import Budget
from vtc.core.layout import ImageLayout
from vtc.core.selection import Selection
from vtc.core.signals import Aim, ClipWords, TextEmbeddings, TextInformation, TextPivots, TextToVisual

HALF = (torch.float16, torch.bfloat16)
NOT_OF_TOKENS = (Aim, ClipWords, TextEmbeddings, TextInformation, TextPivots, TextToVisual)
"""Signals whose second axis is not the visual tokens."""


def number(trial: Trial) -> None:
    """The number kept is the budget's; only methods whose count depends on the picture may keep fewer."""
    config = trial.config
    if any(getattr(stage.stage, "own_counts", False) for stage in config.stages):
        raise DoesNotApply("the counts of its steps follow the prompt, and their mean over layers is the budget's")
    exact = {
        knob if len(config.stages) == 1 else f"{stage.method}.{knob}": value
        for stage in config.stages
        for knob, value in getattr(stage.stage, "fixed_count", {}).items()
    }
    _number(trial, trial.run(**exact))
    if not (config.decoder or config.attention) and not trial.has_budget:
        _number(trial, trial.run(keep=TOKENS, **exact))


def _number(trial: Trial, run: CheckedCall) -> None:
    for choice in run.choices:
        for b, kept in enumerate(rows(choice.selection)):
            count, adaptive = choice.context.count, choice.stage.stage.adaptive
            if adaptive and choice.stage.stage.site == "encoder" and len(kept) >= count:
                continue  # inside the encoder the budget is a lower bound
            if len(kept) > count or (len(kept) < count and not adaptive):
                expectation = f"{choice.context.tokens} tokens where the budget says {count}"
                raise Violation(f"{choice.stage.method} keeps {len(kept)} of {expectation} (unit {b})")
    images = iter(run.report.images)
    for layouts in trial.tiny.layouts(trial.inputs):
        budget = run.patch.allocation.projector
        projected = budget is not None and not budget.keeps_all
        sizes, clips = [[tile.tokens for tile in x.tiles] for x in layouts], [bool(x.frames) for x in layouts]
        quotas = budget.quotas(sizes, clips) if projected else None
        for j, (layout, image) in enumerate(zip(layouts, images)):
            inside = _left_by_encoder(run.patch.allocation.encoder, layout, image)
            entered = inside[-1] if inside else layout.tokens
            entered = min(sum(quotas[j]), entered) if projected else entered
            if projected and run.patch.stage.stage.adaptive and image.steps:
                entered = min(entered, image.steps[len(inside)].after)
            expected = [*inside, *[entered] * projected, *run.patch.allocation.counts(layout.tokens, entered)]
            _counts(image, layout.tokens, expected, run)


def _left_by_encoder(budget: Budget | None, layout: ImageLayout, image) -> list[int]:
    """The tokens of an image that the encoder should keep, if there is a stage inside it. With several crops, unpadding
    removes some of them, so there may be fewer than the budget's."""
    if budget is None or budget.keeps_all:
        return []
    count = sum(budget.quotas([[layout.tiles[0].tokens] * len(layout.tiles)])[0])
    remaining = image.steps[0].after if image.steps else 0
    return [remaining if len(layout.tiles) > 1 and remaining < count else count]


def _counts(image, tokens: int, expected: list[int], run: CheckedCall) -> None:
    """Compares the steps of one image with the number of tokens expected after each."""
    adaptive = {choice.stage.method for choice in run.choices if choice.stage.stage.adaptive}
    if image.before != tokens or len(image.steps) != len(expected):
        raise Violation(f"an image of {tokens} tokens is reported as {image.before}, cut {len(image.steps)} times")
    remaining = tokens
    for step, count in zip(image.steps, expected):
        count = min(count, remaining)
        if step.after > count or (step.after < count and step.stage not in adaptive):
            raise Violation(f"{step.where} leaves {step.after} of an image's {tokens} tokens; the budget says {count}")
        remaining = step.after


def order(trial: Trial) -> None:
    """Kept indices ascend without duplicates inside the unit; each step keeps places that the step before kept."""
    run = trial.run()
    for choice in run.choices:
        for b, kept in enumerate(rows(choice.selection)):
            if (why := misordered(kept, choice.context.tokens)) is not None:
                raise Violation(f"{choice.stage.method} keeps {shown_row(kept)} (unit {b}), which {why}")
            merge = choice.selection.merge
            slots = None if merge is None else [int(x) for x in merge.target[b].aminmax()]
            if slots is not None and not -1 <= slots[0] <= slots[1] < len(kept):
                raise Violation(f"{choice.stage.method} merges into slots that do not exist")
    for image in run.report.images:
        remaining = set(range(image.before))
        for step in image.steps:
            kept = step.kept.tolist()
            if not set(kept) <= remaining or len(set(kept)) != len(kept) or len(kept) != step.after:
                raise Violation(f"{step.where} reports {shown_row(step.kept)}, which the step before did not leave")
            remaining = set(kept)


def misordered(kept: Tensor, tokens: int) -> str | None:
    """What is wrong with the kept indices [k] of a unit of `tokens`, if anything."""
    if len(kept) and not 0 <= int(kept.min()) <= int(kept.max()) < tokens:
        return f"is not inside 0 to {tokens - 1}"
    if bool((kept[1:] == kept[:-1]).any()) or len(kept.unique()) != len(kept):
        return "names a token twice"
    return "does not ascend" if bool((kept[1:] < kept[:-1]).any()) else None


def ties(trial: Trial) -> None:
    """Of tokens that are equal in every signal, those with the lower index are kept."""
    reasons, applied = [], False
    for choice in _first_of_each(trial.run().choices):
        token_signals = [signal for signal in choice.context.signals if not isinstance(signal, NOT_OF_TOKENS)]
        if not token_signals:
            reasons.append("it reads no signal of the tokens")
        elif not _goes_by_signals(choice, token_signals):
            reasons.append("what it keeps also depends on where a token lies")
        elif not _ranks(tied := _tied(choice, token_signals)):
            reasons.append("it compares tokens with each other, so none has a score of its own")
        else:
            applied = True
            _check_ties(choice, tied)
    if not applied:
        raise DoesNotApply(reasons[0] if reasons else "no stage chose anything")


def _first_of_each(choices: list[Choice]) -> list[Choice]:
    first = {}
    for choice in choices:
        if choice.context.count < choice.context.tokens:
            first.setdefault(choice.stage.method, choice)
    return list(first.values())


def _kept_of(choice: Choice, changed: dict) -> list[Tensor]:
    """What the stage keeps of each unit when some signals are replaced."""
    stage, context = choice.stage.stage, choice.context
    context = dataclasses.replace(context, signals={**context.signals, **changed})
    return rows(type(stage).select(stage, context, choice.part))


def _groups(tokens: int, generator: torch.Generator) -> Tensor:
    """For each token [N] one that it becomes a copy of, so that about a quarter of them are distinct."""
    return torch.randint(max(2, tokens // 4), (tokens,), generator=generator)


def _goes_by_signals(choice: Choice, signals: list) -> bool:
    """Whether the same tokens are kept wherever they lie, when no two are quite equal."""
    generator, tokens = torch.Generator().manual_seed(0), choice.context.tokens
    for group in (torch.arange(tokens), _groups(tokens, generator), _groups(tokens, generator)):
        varied = {}
        for signal in signals:
            x = choice.context[signal][:, group]
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
            varied[signal] = x * (1 + 1e-3 * noise)
        mixed = torch.randperm(tokens, generator=generator)
        plain = _kept_of(choice, varied)
        moved = _kept_of(choice, {signal: x[:, mixed] for signal, x in varied.items()})
        if any(mixed[b].sort().values.tolist() != a.sort().values.tolist() for a, b in zip(plain, moved)):
            return False
    return True


def _tied(choice: Choice, signals: list) -> list[tuple[Tensor, Tensor]]:
    """The kept tokens [N] of each unit when only about a quarter of the tokens are distinct, with their groups [N].

    Vectors are rounded so that sums of products are exact: equal tokens then get equal scores in any order of
    summation.
    """
    generator, tokens, result = torch.Generator().manual_seed(1), choice.context.tokens, []
    exact = {s: _rounded(x) if x.ndim == 3 and x.is_floating_point() else x for s, x in choice.context.signals.items()}
    for _ in range(4):
        group = _groups(tokens, generator)
        for kept in _kept_of(choice, {s: x[:, group] if s in signals else x for s, x in exact.items()}):
            stays = torch.zeros(tokens, dtype=torch.bool)
            stays[kept] = True
            result.append((stays, group))
    return result


def _rounded(x: Tensor) -> Tensor:
    largest = x.abs().max().clamp_min(torch.finfo(x.dtype).tiny)
    return (x / largest * 64).round() / 64


def _ranks(tied: list[tuple[Tensor, Tensor]]) -> bool:
    """Whether a method ranks tokens one by one: equal tokens are all kept or all dropped, except where the count ends.
    A method that compares tokens with each other keeps some of many groups."""
    return all(sum(_divided(stays[group == g]) for g in group.unique().tolist()) <= 1 for stays, group in tied)


def _divided(stays: Tensor) -> bool:
    return bool(stays.any()) and not bool(stays.all())


def _check_ties(choice: Choice, tied: list[tuple[Tensor, Tensor]]) -> None:
    for stays, group in tied:
        for one in group.unique().tolist():
            alike = (group == one).nonzero().flatten()
            gap = (stays[alike][1:] & ~stays[alike][:-1]).nonzero().flatten()
            if len(gap):
                lower, higher = alike[gap[0]], alike[gap[0] + 1]
                method = choice.stage.method
                raise Violation(f"{method} keeps token {higher} and not {lower}, which is equal in every signal")


def precision(trial: Trial) -> None:
    """The model runs in half precision, and stages compute in float32 from the signals that they are given."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        other = Trial(trial.strategy, trial.tiny.of(dtype), trial.given)
        run = other.run()
        _usable(run, name)
        for choice in run.choices:
            _check_precision(choice, name)


def _usable(run: CheckedCall, name: str) -> None:
    for choice in run.choices:
        for kept in rows(choice.selection):
            if (why := misordered(kept.sort().values, choice.context.tokens)) is not None:
                raise Violation(f"on a {name} model {choice.stage.method} keeps {shown_row(kept)}, which {why}")
    if not bool(run.output.logits[:, -1].isfinite().all()):
        raise Violation(f"on a {name} model the logits are not finite")


def _check_precision(choice: Choice, name: str) -> None:
    method, signals = choice.stage.method, choice.context.signals
    for part in (1.0, 0.3, 0.1):  # share of the differences between tokens that is left; half precision loses the last
        squeezed = {s: _squeezed(x, part) for s, x in signals.items()}
        with _Half() as half:
            expected = _seeded(choice, {s: x.float() if x.dtype in HALF else x for s, x in squeezed.items()})
        if half.operation:
            raise Violation(f"{method} is given float32 and computes in half precision: {half.operation}")
        if any(set(a.tolist()) != set(b.tolist()) for a, b in zip(expected, _seeded(choice, squeezed))):
            raise Violation(f"on a {name} model {method} chooses differently from the same numbers in float32")


def _squeezed(x: Tensor, part: float) -> Tensor:
    if part == 1.0 or x.ndim < 2 or not x.is_floating_point():
        return x
    mean = x.float().mean(1, keepdim=True)
    return (mean + part * (x.float() - mean)).to(x.dtype)


def _seeded(choice: Choice, changed: dict) -> list[Tensor]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return _kept_of(choice, changed)


class _Half(TorchDispatchMode):
    """Notes the first operation whose result is in half precision. operation: its name and the type."""

    operation = ""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.dtype in HALF and not self.operation:
                self.operation = f"{function} gives {str(x.dtype).removeprefix('torch.')}"
        return result


def rows(selection: Selection) -> list[Tensor]:
    """The kept indices of each unit."""
    return [selection.row(b) for b in range(len(selection.keep))]


def shown_row(kept: Tensor) -> str:
    """Indices for a message."""
    values = kept.tolist()
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
