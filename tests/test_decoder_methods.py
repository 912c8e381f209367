"""FastV, PyramidDrop and VisionDrop as functions of tensors: steps and counts by depth, signals, selections, errors."""

import importlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import projector_budget
from tests.test_golden import read
from vtc.config.resolve import resolve
from vtc.core.errors import ConfigError
from vtc.core.signals import (
    AttentionColumns,
    ClsAttention,
    Context,
    Decoder,
    DecoderAttention,
    DecoderKeys,
    Encoder,
    EncoderKeys,
    Unprojected,
)
from vtc.strategies.fastv import FastV
from vtc.strategies.pyramiddrop import PyramidDrop
from vtc.strategies.visiondrop import VisionDrop
from vtc.strategies.visiondrop_projector import VisionDropProjector

CLIP = Encoder("llava", 24, True, tuple(range(24)))
SIGLIP = Encoder("llava", 27, False, tuple(range(27)))
L32 = Decoder("llava", 32)
DECODER_STAGES = [FastV(), PyramidDrop(), VisionDrop()]
GOLDEN = Path(__file__).parent / "golden"
examples = settings(max_examples=60, deadline=None)
by_name = pytest.mark.parametrize("stage", DECODER_STAGES, ids=lambda s: type(s).__name__)


def context(needs, tokens, count, units=1, seed=0, step=0, values=None):
    """A context with random (or constant) scores and random keys."""
    generator = torch.Generator().manual_seed(seed)
    signals = {}
    for signal in needs:
        if isinstance(signal, DecoderKeys | EncoderKeys):
            signals[signal] = torch.randn(units, tokens, 6, generator=generator, dtype=torch.float64)
        elif signal != Unprojected():
            random = torch.rand(units, tokens, generator=generator)
            signals[signal] = random if values is None else torch.full_like(random, values)
    return Context(tokens, count, None, tuple(range(units)), torch.device("cpu"), signals, step)


def plan(stage, depth, entered=576):
    """[(layer, tokens kept)] of a stage on a language model of some depth."""
    return [(step.layer, stage.count(entered, step.share)) for step in stage.steps(Decoder("test", depth))]


def check_selection(selection, tokens, count, units, extra=0):
    """Exactly `count` distinct, ascending places; order a permutation; every slot is fed, nothing out of range."""
    assert selection.check(tokens).keep.shape == (units, count)
    assert bool((selection.keep[:, 1:] > selection.keep[:, :-1]).all())
    assert 0 <= int(selection.keep.min()) <= int(selection.keep.max()) < tokens
    if selection.merge is not None:
        slots = torch.arange(count).expand(units, -1)
        assert torch.equal(selection.order.sort(1).values, slots)
        target, weight = selection.merge.target, selection.merge.weight
        assert target.shape == weight.shape == (units, tokens + extra)
        for b in range(units):
            assert set(range(count)) <= set(target[b].tolist()) <= set(range(-1, count))
        assert bool(((weight >= 0) & (weight <= 1) & ((weight > 0) == (target >= 0))).all())
        # A dominant token alone gives 1, a target with others 1 for itself and 1 for their mean.
        total = torch.zeros(units, count).scatter_add_(1, target.clamp(min=0), weight.float())
        assert bool((torch.isclose(total, torch.ones(())) | torch.isclose(total, torch.tensor(2.0))).all())


def test_the_published_schedules():
    """Layers and counts on 32 layers, and at relative depth elsewhere."""
    assert plan(FastV(), 32) == [(2, 288)]
    assert [plan(FastV(R=r), 32)[0][1] for r in (0.25, 0.75, 0.875)] == [432, 144, 72]
    assert plan(FastV(K=3), 32) == [(3, 288)]
    assert plan(FastV(), 28) == [(2, 288)]
    assert plan(FastV(), 8) == [(1, 288)]
    assert plan(PyramidDrop(), 32) == [(8, 288), (16, 144), (24, 72)]
    assert plan(PyramidDrop(), 28) == [(7, 288), (14, 144), (21, 72)]
    assert plan(PyramidDrop(), 8) == [(2, 288), (4, 144), (6, 72)]
    assert plan(VisionDrop(), 32, 48) == [(8, 35), (16, 26), (24, 19)]
    assert plan(VisionDrop(), 28, 48) == [(7, 35), (14, 26), (21, 19)]
    assert plan(VisionDrop(), 8, 48) == [(2, 35), (4, 26), (6, 19)]


def test_counts_round_as_published():
    """FastV and VisionDrop to nearest with halves to even, PyramidDrop down; nobody below 1."""
    assert [FastV().count(n, 0.5) for n in (577, 579, 3, 1)] == [288, 290, 2, 1]
    assert [PyramidDrop().count(n, 0.5) for n in (577, 579, 3, 1)] == [288, 289, 1, 1]
    assert [VisionDrop().count(n, 0.73) for n in (48, 96, 1)] == [35, 70, 1]


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl"])
def test_the_shipped_files_are_the_defaults(family):
    """YAML and dataclass agree; positions are the published ones on LLaVA, kept on Qwen."""
    qwen = family.startswith("qwen")
    for name, stage, positions in (
        ("fastv", FastV(), "keep"),
        ("pyramiddrop", PyramidDrop(), "keep" if qwen else "compact"),
        ("visiondrop", VisionDrop(), "keep" if qwen else "compact"),
    ):
        config = resolve(name, family)
        assert config.keep is None
        assert [(s.stage, s.positions) for s in config.decoder] == [(stage, positions)]
    first = config.projector
    assert first.stage == VisionDropProjector(layer=-1 if qwen else -2)
    assert (first.positions, projector_budget(config).count(576)) == ("keep" if qwen else "compact", 48)
    assert first.scope == ("per_tile" if family == "llava_next" else "per_image")


def test_needs_of_each_step():
    """Signals, ahead or observed, with the layers resolved."""
    assert FastV().needs(L32, 0) == (DecoderAttention(1, "last", ahead=False),)
    assert FastV().needs(Decoder("test", 8), 0) == (DecoderAttention(0, "last", ahead=False),)
    assert [PyramidDrop().needs(L32, s) for s in range(3)] == [
        (DecoderAttention(layer, "last", ahead=True),) for layer in (8, 16, 24)
    ]
    assert [VisionDrop().needs(L32, s) for s in range(3)] == [
        (DecoderAttention(layer, "image", ahead=True), DecoderKeys(layer)) for layer in (8, 16, 24)
    ]
    assert VisionDropProjector().needs(CLIP) == (ClsAttention(22), EncoderKeys(22), Unprojected())
    assert VisionDropProjector().needs(SIGLIP) == (AttentionColumns(25, "mean"), EncoderKeys(25), Unprojected())


def test_steps_that_fall_together():
    """On two layers the three steps are one: the last share, and the last contextual share with it."""
    shallow = Decoder("test", 2)
    assert plan(PyramidDrop(), 2) == [(1, 72)]
    assert plan(VisionDrop(), 2, 48) == [(1, 19)]
    assert VisionDrop().needs(shallow, 0) == (DecoderAttention(1, "image"), DecoderKeys(1))
    assert VisionDrop().contextual_count(context((), 48, 19), shallow) == 3
    three = Decoder("test", 3)  # 0.75, 1.5 and 2.25 of three layers are 1, 2 and 2
    assert plan(VisionDrop(), 3, 48) == [(1, 35), (2, 19)]
    counts = [VisionDrop().contextual_count(context((), 48, n, step=s), three) for s, n in enumerate((35, 19))]
    assert counts == [5, 3]


@by_name
@examples
@given(tokens=st.integers(1, 60), units=st.integers(1, 3), seed=st.integers(0, 10**6), data=st.data())
def test_every_step_keeps_exactly_its_count(stage, tokens, units, seed, data):
    """Random scores and budgets, 1 and all tokens included; each image as if it were alone."""
    count = data.draw(st.integers(1, tokens))
    step = data.draw(st.integers(0, len(stage.steps(L32)) - 1))
    needs = stage.needs(L32, step)
    seen = context(needs, tokens, count, units, seed, step)
    selection = stage.select(seen, L32)
    check_selection(selection, tokens, count, units)
    last = {signal: values[-1:] for signal, values in seen.signals.items()}
    alone = stage.select(Context(tokens, count, None, (0,), seen.device, last, step), L32)
    assert torch.equal(alone.keep[0], selection.keep[-1])
    if selection.merge is not None:
        assert torch.equal(alone.order[0], selection.order[-1])
        assert torch.equal(alone.merge.target[0], selection.merge.target[-1])
        assert torch.equal(alone.merge.weight[0], selection.merge.weight[-1])


@pytest.mark.parametrize("encoder", [CLIP, SIGLIP], ids=["cls", "no-cls"])
@examples
@given(
    tokens=st.integers(1, 60),
    units=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    contextual=st.sampled_from([0.0, 0.125, 0.5, 0.99]),
    data=st.data(),
)
def test_visiondrop_projector_keeps_exactly_its_count(encoder, tokens, units, seed, contextual, data):
    """With and without [CLS], any share of contextual tokens; each unit as if it were alone."""
    count = data.draw(st.integers(1, tokens))
    stage = VisionDropProjector(contextual)
    seen = context(stage.needs(encoder), tokens, count, units, seed)
    selection = stage.select(seen, encoder)
    assert selection.merge.unprojected
    check_selection(selection, tokens, count, units, extra=encoder.has_cls)
    last = {signal: values[-1:] for signal, values in seen.signals.items()}
    alone = stage.select(Context(tokens, count, None, (0,), seen.device, last), encoder)
    assert torch.equal(alone.merge.target[0], selection.merge.target[-1])
    features = torch.randn(units, tokens + encoder.has_cls, 3)
    merged = selection.apply_features(features).gather(1, selection.order.unsqueeze(-1).expand(-1, -1, 3))
    if count == tokens:
        assert torch.equal(merged, features[:, encoder.has_cls :])
    elif encoder.has_cls:
        assert torch.equal(merged[:, 0], features[:, 0])


def test_visiondrop_projector_by_hand():
    """[CLS] on the lowest free place, dominant tokens by score, the rest into its most similar target."""
    stage = VisionDropProjector(contextual=0.25)
    score, keys, _ = stage.needs(CLIP)
    scores = torch.tensor([[0.9, 0.1, 0.2, 0.3, 0.8, 0.4, 0.0]])
    metric = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [1, 0.1], [0, 1], [0.1, 1], [1, 0]]])
    seen = Context(7, 4, (1, 7), (0,), torch.device("cpu"), {score: scores, keys: metric})
    selection = stage.select(seen, CLIP)
    # Dominant 0 and 4; of 1, 2, 3, 5, 6 the first is the only target; [CLS] takes place 2.
    assert selection.keep.tolist() == [[0, 1, 2, 4]]
    assert selection.order.tolist() == [[2, 0, 3, 1]]
    assert selection.merge.target.tolist() == [[2, 0, 1, 1, 1, 3, 1, 1]]
    assert selection.merge.weight.tolist() == [[1, 1, 1, 0.25, 0.25, 1, 0.25, 0.25]]


def test_small_budgets_of_visiondrop_projector():
    """One token: [CLS] alone, the rest dropped. Two: [CLS] and the best patch."""
    stage = VisionDropProjector()
    for count, sequence in ((1, [0]), (2, [0, 1])):
        scores = torch.tensor([[0.1, 0.9, 0.5, 0.2]])
        score, keys, _ = stage.needs(CLIP)
        seen = Context(4, count, (2, 2), (0,), torch.device("cpu"), {score: scores, keys: torch.rand(1, 4, 3)})
        selection = stage.select(seen, CLIP)
        assert selection.keep[0][selection.order[0]].tolist() == sequence
        assert (selection.merge.target >= 0).sum() == count


def test_the_published_split_of_visiondrop():
    """42 + 6 of 576 before the projector; 30 + 5, 22 + 4, 16 + 3 inside."""
    stage = VisionDropProjector()
    selection = stage.select(context(stage.needs(CLIP), 576, 48), CLIP)
    assert int((selection.merge.weight < 1).any(1).sum()) == 1
    merged_into = selection.merge.target[selection.merge.weight < 1].unique()
    assert len(merged_into) == 6
    assert torch.equal(selection.order.argsort(1)[0][merged_into].sort().values, torch.arange(42, 48))
    tokens = 48
    for step, (count, contextual) in enumerate(((35, 5), (26, 4), (19, 3))):
        assert VisionDrop().contextual_count(context((), tokens, count, step=step), L32) == contextual
        tokens = count


@by_name
def test_ties_go_to_the_lower_index(stage):
    """With constant scores the first tokens are kept (the first are dominant, where there are contextual ones)."""
    seen = context(stage.needs(L32, 0), 48, 20, values=0.5)
    selection = stage.select(seen, L32)
    dominant = 20 if selection.merge is None else 17
    assert selection.keep[0, :dominant].tolist() == list(range(dominant))


def test_wrong_knobs_are_refused():
    """One line: what was wrong and what is possible."""
    for make, message in (
        (lambda: FastV(R=1.0), r"R=1\.0 is out of range; possible"),
        (lambda: FastV(R=-0.1), "R=-0.1"),
        (lambda: FastV(K=0).steps(L32), "K=0 is beyond the 32 layers"),
        (lambda: FastV(K=32).steps(L32), "K=32 is beyond"),
        (lambda: FastV(K=1.5).steps(L32), r"K=1\.5 is no relative depth"),
        (lambda: PyramidDrop(layer_list=(8, 16)).steps(L32), "2 layer_list and 3 image_token_ratio_list"),
        (lambda: PyramidDrop(layer_list=(16, 8, 24)).steps(L32), "do not rise"),
        (lambda: PyramidDrop(image_token_ratio_list=(0.5, 0.6, 0.1)).steps(L32), "must not rise"),
        (lambda: PyramidDrop(layer_list=(8, 16, 40)).steps(L32), "beyond the 32 layers"),
        (lambda: VisionDrop(contextual=(0.1, 0.1)), "3 layers and 2 contextual shares"),
        (lambda: VisionDrop(contextual=(0.1, 1.0, 0.1)), r"contextual=\[0\.1, 1\.0, 0\.1\] is out of range"),
        (lambda: VisionDrop(ratios=(0.5, 0.4)).steps(L32), "3 layers and 2 ratios"),
        (lambda: VisionDropProjector(contextual=1.0), r"contextual=1\.0 is out of range"),
        (lambda: VisionDropProjector(layer=24).needs(CLIP), "layer=24 is beyond the 24 layers"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            make()
        assert "\n" not in str(error.value)


def answers():
    """(file, field) of every golden answer of these methods in the repository."""
    fields = {
        "fastv": ("scores", "kept_visual", "keep_positions", "position_ids_out", "hidden_out"),
        "pyramiddrop": ("kept_visual", "kept_sequence"),
        "visiondrop": ("importance", "tokens_out", "sequence_out", "position_ids_out", "dominant_idx", "merged_idx")
        + ("context_target_idx", "merged_assign"),
    }
    files = [(file, names) for m, names in fields.items() for file in sorted((GOLDEN / m).glob("*.safetensors"))]
    return [(file, name) for file, names in files for name in names if name in read(file)[0]]


@pytest.mark.parametrize("file, name", answers(), ids=lambda v: v.stem if isinstance(v, Path) else v)
def test_each_golden_answer_is_compared(file, name):
    """A file with one value of one answer changed does not pass."""
    tensors, params = read(file)
    wrong = tensors[name].clone()
    wrong.view(-1)[-1] += 1
    check = importlib.import_module(f"tests.golden_checks.{file.parent.name}").check
    check(tensors, params)
    with pytest.raises(AssertionError):
        check({**tensors, name: wrong}, params)
