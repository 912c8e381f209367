"""Clips beside images: what is kept of each, and the pruned prompt against oracles that know no engine."""

import dataclasses

import pytest
import torch

import vtc
from tests.helpers import check_no_trace, forward, generate, kept_of, model_of, patched, spy
from tests.helpers_decoder import entered_of, resolved, truths
from tests.helpers_encoder import Pairs, Strided, truth_of
from tests.helpers_oracle import truth
from tests.helpers_video import clips_of, frame_counts, grids_of, media_of, split_media, with_clips
from vtc.core.budget import Budget

pytestmark = pytest.mark.product

KINDS = ("hiprune", "divprune", "visionzip", "fastv", "transprune", "visiondrop")  # per frame, sets, merging, inside
strategies = pytest.mark.parametrize("strategy", KINDS)
STEPS = 4


def agree(out, expected, steps=STEPS):
    """Each prompt's tokens and the logits of each step are the oracle's."""
    for b, answer in enumerate(expected):
        torch.testing.assert_close(out.logits[:, b], answer.logits[-steps:], atol=1e-9, rtol=0)
        assert out.tokens[b].tolist() == answer.tokens


@strategies
@with_clips
@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_generate_equals_the_oracle(strategy, case, positions):
    """Images before and after clips, several clips, a clip alone, in one padded batch."""
    model, inputs, options = model_of(case), clips_of(case), {"keep": 0.5, "positions": positions}
    config = resolved(strategy, case, **options)
    with patched(model, strategy, **options):
        out = generate(model, inputs, STEPS)
        report, entered = vtc.report(model), entered_of(model, inputs, config)
    agree(out, truths(model, split_media(inputs), report, config, entered, STEPS, out.tokens))
    assert [image.before for image in report.images] == [t * n for prompt in grids_of(inputs) for t, n in prompt]
    assert all(image.after < image.before for image in report.images)


@strategies
@with_clips
def test_right_padding_and_caches(strategy, case):
    """Padding on the right, a static cache, and no cache: the same tokens are kept and written."""
    model, inputs = model_of(case), clips_of(case)
    right = clips_of(case, padding="right")
    with patched(model, strategy, keep=0.5):
        out = generate(model, inputs, STEPS)
        kept = [image.kept.tolist() for image in vtc.report(model).images]
        same = generate(model, inputs, STEPS, cache_implementation="static")
        torch.testing.assert_close(out.logits, same.logits, atol=1e-9, rtol=0)
        with spy(model) as seen:
            logits = forward(model, right).logits
        assert kept == [image.kept.tolist() for image in vtc.report(model).images]
    mask = seen[0]["attention_mask"]
    last = mask.sum(1) - 1 if mask is not None and mask.shape[1] == logits.shape[1] else None
    if last is not None and strategy not in ("fastv", "transprune", "visiondrop"):
        torch.testing.assert_close(logits[torch.arange(3), last], out.logits[0], atol=1e-9, rtol=0)


@with_clips
@pytest.mark.parametrize("stage", [Strided(), Pairs()], ids=["dropping", "merging"])
def test_inside_the_encoder(case, stage):
    """A stage that works on each frame by itself, against the encoder run by hand."""
    model, inputs, budget = model_of(case), clips_of(case), Budget(0.4, "per_tile")
    with patched(model, stage, keep=0.4):
        logits = forward(model, inputs).logits
        report = vtc.report(model)
    for b, single in enumerate(split_media(inputs)):
        expected, media = truth_of(model, single, stage, lambda sizes: budget.quotas([sizes])[0], "keep")
        assert [kept.tolist() for kept in kept_of(report, b)] == [places.tolist() for places, *_ in media]
        torch.testing.assert_close(logits[b, -1], expected.logits[-1], atol=1e-9, rtol=0)


@with_clips
@pytest.mark.parametrize("strategy", ["fastv", pytest.param("visionzip", marks=pytest.mark.full)])
def test_beams(case, strategy):
    """Beams repeat clips as they repeat images: a batch writes what its prompts write alone."""
    model, inputs = model_of(case), clips_of(case)
    try:
        generate(model, inputs, 1, num_beams=2)
    except ValueError as error:
        pytest.skip(f"the stock model cannot either: {error}")
    with patched(model, strategy, keep=0.5):
        out = generate(model, inputs, 3, num_beams=2)
        for b, single in enumerate(split_media(inputs)):
            assert generate(model, single, 3, num_beams=2).tokens[0].tolist() == out.tokens[b].tolist()


@with_clips
@pytest.mark.parametrize(
    "strategy", ["hiprune", *(pytest.param(name, marks=pytest.mark.full) for name in ("fastv", "tome"))]
)
def test_keep_all_and_removal_leave_no_trace(case, strategy):
    """Bit-equal, and nothing is left on any module."""
    check_no_trace(model_of(case), clips_of(case), strategy, keep=0.5)


@pytest.mark.parametrize("case", ["qwen2_5_vl"])  # the only one that takes it
@pytest.mark.parametrize("positions", ["keep", "compact"])
@pytest.mark.parametrize("strategy", ["hiprune", "fastv"])
def test_the_length_of_a_frame_moves_the_positions(case, strategy, positions):
    """With `second_per_grid_ts` time goes on faster, beyond the text after a clip: the pruned prompt follows, token by
    token."""
    model, inputs = model_of(case), clips_of(case)
    slow = dict(inputs, second_per_grid_ts=inputs["second_per_grid_ts"] * 4)
    answers, options = [], {"keep": 0.5, "positions": positions}
    for given in (inputs, slow):
        with patched(model, strategy, **options):
            answers.append(generate(model, given, STEPS))
            report = vtc.report(model)
        config = resolved(strategy, case, **options)
        agree(answers[-1], truths(model, split_media(given), report, config, None, STEPS, answers[-1].tokens))
    if positions == "keep":
        assert float((answers[0].logits - answers[1].logits).abs().max()) > 1e-4


SCOPES = ("per_image", "per_clip", "per_request", "per_frame", "per_tile")
SANDWICH = ("ici",)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("keep", [0.4, 30])
@pytest.mark.parametrize("strategy", ["divprune", "hiprune"])
@with_clips
def test_scopes(scope, keep, strategy, case):
    """(image, clip, image) with every scope: the counts, and the prompt built by hand."""
    model, inputs = model_of(case), clips_of(case, SANDWICH)
    with patched(model, strategy, keep=keep, scope=scope):
        out = generate(model, inputs, STEPS)
        report = vtc.report(model)
    (grids,) = grids_of(inputs, SANDWICH)
    kept = kept_of(report, 0)
    config = resolved(strategy, case, keep=keep)
    budget = Budget(keep, rounding=config.projector.rounding)
    asked = [budget.count(t * n) for t, n in grids]
    if scope == "per_request" and keep == 30:
        assert sum(map(len, kept)) == 30
        asked = [len(k) for k in kept]
        shares = [len(k) / (t * n) for k, (t, n) in zip(kept, grids, strict=True)]
        assert max(shares) - min(shares) < 0.1
    found = [frame_counts(k, t, n) for k, (t, n) in zip(kept, grids, strict=True)]
    for counts, (t, _), total in zip(found, grids, asked, strict=True):
        frames_alike = t > 1 and (scope in ("per_frame", "per_tile") or strategy == "hiprune")
        if frames_alike:
            assert max(counts) - min(counts) <= 1
        assert sum(counts) == total or frames_alike and isinstance(keep, float) and abs(sum(counts) - total) <= t
    (single,) = split_media(inputs, SANDWICH)
    expected = truth(model, single, kept, config.projector.positions, STEPS)
    torch.testing.assert_close(out.logits[:, 0], expected.logits[-STEPS:], atol=1e-9, rtol=0)
    assert out.tokens[0].tolist() == expected.tokens


@with_clips
def test_frames_that_keep_nothing(case):
    """Two tokens of a clip of three frames: its timestamps and marks stay, and the prompt is the one built by hand."""
    model, inputs = model_of(case), clips_of(case)
    with patched(model, "uniform", keep=2, scope="per_clip"):
        out = generate(model, inputs, STEPS)
        report = vtc.report(model)
    for b, single in enumerate(split_media(inputs)):
        counts = [frame_counts(k, t, n) for k, (t, n) in zip(kept_of(report, b), grids_of(inputs)[b], strict=True)]
        assert all(sum(c) == 2 for c in counts)
        expected = truth(model, single, kept_of(report, b), "keep", STEPS)
        torch.testing.assert_close(out.logits[:, b], expected.logits[-STEPS:], atol=1e-9, rtol=0)
    assert any(0 in frames for image in report.images if (frames := image.per_frame))


@with_clips
def test_the_report_counts_frames(case):
    """A clip is named as one, with the tokens that are left of each frame; images have none."""
    model, inputs = model_of(case), clips_of(case)
    with patched(model, "hiprune", keep=0.5):
        forward(model, inputs)
        report = vtc.report(model)
    kinds = [kind for prompt in media_of(case) for kind in prompt]
    grids = [grid for prompt in grids_of(inputs) for grid in prompt]
    for image, kind, (t, n), entry in zip(report.images, kinds, grids, report.to_dict()["images"], strict=True):
        assert image.frames == (t if kind == "c" else 0)
        assert image.per_frame == (frame_counts(image.kept, t, n) if kind == "c" else [])
        assert entry.get("per_frame") == (image.per_frame if kind == "c" else None)
        assert entry.get("kind") == ("clip" if kind == "c" else None)
        words = f"clip {image.image} of prompt {image.prompt}".ljust(22) + " + ".join(map(str, image.per_frame))
        assert (words in str(report)) == (kind == "c")
    many = dataclasses.replace(report.images[1], before=1600, frames=16)
    assert many.frames_in_words == f"16 frames with 0 to {many.after} tokens each, 15 without any"
