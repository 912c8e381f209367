"""TransPrune: its schedule, the signals that it asks for, its score, and the FLOPs of the paper."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.golden_checks import transprune as golden
from vtc.config.resolve import resolve
from vtc.core.errors import ConfigError
from vtc.core.signals import Context, Decoder, DecoderAttention, Transition
from vtc.strategies.transprune import TransPrune, score_tokens

LLAMA, QWEN = Decoder("llava", 32), Decoder("qwen2_5_vl", 28)


def summed(stage, decoder, step):
    """Layers whose transition a step reads."""
    return [signal.layer for signal in stage.needs(decoder, step) if isinstance(signal, Transition)]


def context(stage, decoder, step, count, values):
    """values: signal -> [B, N]."""
    batch, tokens = next(iter(values.values())).shape
    return Context(tokens, count, None, tuple(range(batch)), torch.device("cpu"), values, step=step)


def random_signals(stage, decoder, step, batch, tokens, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    signals = stage.needs(decoder, step)
    return {s: torch.rand(batch, tokens, generator=generator, dtype=torch.float64).to(dtype) for s in signals}


def test_the_released_schedule():
    stage = resolve("transprune", "llava").stages[0].stage
    assert stage == TransPrune()
    assert [step.layer for step in stage.steps(LLAMA)] == [7, 9, 12]
    assert [stage.count(576, step.share) for step in stage.steps(LLAMA)] == [504, 360, 72]
    assert [summed(stage, LLAMA, step) for step in range(3)] == [[6], [6, 7, 8], [6, 7, 8, 9, 10, 11]]
    for step, layer in enumerate((7, 9, 12)):
        assert stage.needs(LLAMA, step)[-1] == DecoderAttention(layer, "after", ahead=True)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_qwen_drops_at_the_same_layers_and_keeps_positions(family):
    config = resolve("transprune", family).stages[0]
    steps = config.stage.steps(QWEN)
    assert [step.layer for step in steps] == [7, 9, 12]
    assert config.positions == "keep"
    assert config.keep is None
    seen = 7 + 2 * steps[0].share + 3 * steps[1].share + 16 * steps[2].share
    assert round(100 * seen / 28, 2) == 45.09  # the share of FLOPs that the paper prints


def test_a_yaml_states_lists():
    own = {"layers": [3, 0.5], "ratios": [0.5, 0.25], "accumulate": [2, 0.5], "alpha": 0}
    stage = resolve("transprune", "llava", **own).stages[0].stage
    assert stage == TransPrune((3, 0.5), ratios=(0.5, 0.25), accumulate=(2, 0.5), alpha=0.0)
    assert resolve("transprune", "llava").stages[0].positions == "compact"


def tokens_per_layer(stage, entered):
    """Visual tokens in each of 32 layers."""
    steps = stage.steps(LLAMA)
    left = {step.layer: stage.count(entered, step.share) for step in steps}
    found = [entered]
    for layer in range(1, 32):
        found.append(left.get(layer, found[-1]))
    return found


def teraflops(stage, entered):
    """The paper's formula (eq. 7) over the visual tokens alone, for a 7B Llama."""
    d, m = 4096, 11008
    return sum(4 * n * d**2 + 2 * n**2 * d + 3 * n * d * m for n in tokens_per_layer(stage, entered)) / 1e12


@pytest.mark.parametrize(
    ("knobs", "entered", "printed"),
    [
        ({"layers": (5, 7, 10)}, 576, 1.35),
        ({"layers": (6, 8, 11)}, 576, 1.45),
        ({}, 576, 1.56),
        ({"layers": (8, 10, 13)}, 576, 1.66),
        ({"layers": (9, 11, 14)}, 576, 1.77),
        ({}, 2880, 8.33),
        ({"schedule": "low"}, 576, 1.19),
        ({"schedule": "low"}, 2880, 6.41),
        ({"schedule": "combined"}, 288, 0.66),
        ({"schedule": "combined"}, 192, 0.44),
        ({"ratios": (1.0, 1.0, 1.0)}, 576, 3.82),
    ],
)
def test_the_flops_that_the_paper_prints(knobs, entered, printed):
    assert round(teraflops(TransPrune(**knobs), entered), 2) == printed


@pytest.mark.parametrize(
    ("schedule", "entered", "counts"),
    [("low", 576, [288, 144, 38]), ("combined", 288, [144, 72, 36]), ("high", 1, [1, 1, 1])],
)
def test_counts(schedule, entered, counts):
    stage = TransPrune(schedule=schedule)
    assert [stage.count(entered, step.share) for step in stage.steps(LLAMA)] == counts


def test_alpha_at_its_ends_drops_a_signal():
    for step in range(3):
        assert all(isinstance(s, Transition) for s in TransPrune(alpha=1.0).needs(LLAMA, step))
        assert [type(s) for s in TransPrune(alpha=0.0).needs(LLAMA, step)] == [DecoderAttention]
    assert summed(TransPrune(alpha=1.0), LLAMA, 1) == [6, 7, 8]


@pytest.mark.parametrize(
    ("accumulate", "expected"),
    [
        ((7, 12), [[6], [6, 7, 8], [6, 7, 8, 9, 10, 11]]),
        ((1, 6), [[0, 1, 2, 3, 4, 5]] * 3),
        ((0.21875, 0.375), [[6], [6, 7, 8], [6, 7, 8, 9, 10, 11]]),
        ((5, 8), [[4, 5, 6], [4, 5, 6, 7], [4, 5, 6, 7]]),
        ((7, 31), [[6], [6, 7, 8], [6, 7, 8, 9, 10, 11]]),
        ((3, 3), [[2]] * 3),
    ],
)
def test_accumulated_layers(accumulate, expected):
    assert [summed(TransPrune(accumulate=accumulate), LLAMA, step) for step in range(3)] == expected


@pytest.mark.parametrize(
    ("depth", "steps", "layers"),
    [(8, [(2, 0.625), (3, 0.125)], [[1], [1, 2]]), (3, [(1, 0.125)], [[0]]), (2, [(1, 0.125)], [[0]])],
)
def test_layers_fall_together_on_a_shallow_model(depth, steps, layers):
    shallow = Decoder("llava", depth)
    stage = TransPrune()
    assert [(step.layer, step.share) for step in stage.steps(shallow)] == steps
    assert [summed(stage, shallow, step) for step in range(len(steps))] == layers


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"alpha": 1.5}, "alpha=1.5 is out of range; possible: 0 to 1"),
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"schedule": "medium"}, "schedule='medium'.*possible: .*low"),
        ({"layers": (7, 9)}, "2 layers and 3 ratios"),
        ({"layers": (9, 7, 12)}, "do not rise"),
        ({"layers": (7, 9, 32)}, "layers=32 is beyond the 32 layers"),
        ({"ratios": (0.5, 0.7, 0.1)}, "must not rise"),
        ({"accumulate": (8, 12)}, r"accumulate=\[8, 12\]: no layer to sum before the drop at layer 7 of 32.*at most 7"),
        ({"accumulate": (6, 5)}, r"accumulate=\[6, 5\]"),
        ({"accumulate": (0, 5)}, "accumulate=0 is beyond"),
        ({"accumulate": (1.0, 5)}, "accumulate=1.0 is no relative depth"),
    ],
)
def test_refusals(knobs, words):
    with pytest.raises(ConfigError, match=words) as caught:
        TransPrune(**knobs).steps(LLAMA)
    assert "\n" not in str(caught.value)


def test_a_model_too_shallow_to_sum_is_refused():
    with pytest.raises(ConfigError, match="has 1 layer; possible: 2 or more"):
        TransPrune().steps(Decoder("llava", 1))


@pytest.mark.parametrize(
    ("key", "value"), [("accumulate", [7]), ("layers", 7), ("schedule", "medium"), ("ratios", "0.5"), ("alpha", 2)]
)
def test_wrong_values_in_a_file_are_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        resolve("transprune", "llava", **{key: value})


def test_accumulate_does_not_matter_without_its_term():
    assert len(TransPrune(alpha=0.0, accumulate=(8, 12)).steps(LLAMA)) == 3


def test_score():
    ttv, iga = torch.tensor([[1.0, 2.0, 5.0]]), torch.tensor([[0.02, 0.02, 0.06]])
    torch.testing.assert_close(score_tokens(ttv, iga, 0.5), torch.tensor([[0.1625, 0.225, 0.6125]]))
    torch.testing.assert_close(score_tokens(ttv, iga, 0.25), torch.tensor([[0.18125, 0.2125, 0.60625]]))
    torch.testing.assert_close(score_tokens(ttv, None, 1.0), ttv / 8)
    torch.testing.assert_close(score_tokens(None, iga, 0.0), iga * 10, rtol=1e-5, atol=0)
    torch.testing.assert_close(score_tokens(ttv, iga, 0.5, "raw"), (ttv + iga) / 2)
    assert score_tokens(ttv.bfloat16(), iga.bfloat16(), 0.5).dtype == torch.float32
    assert score_tokens(ttv, iga.double(), 0.5).dtype == torch.float64
    assert bool((score_tokens(torch.zeros(1, 3), torch.zeros(1, 3), 0.5) == 0).all())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_select_by_hand(alpha, step):
    stage = TransPrune(alpha=alpha)
    values = random_signals(stage, LLAMA, step, 3, 40, torch.float64)
    kept = stage.select(context(stage, LLAMA, step, 11, values), LLAMA)
    assert kept.check(40).keep.shape == (3, 11)
    for b in range(3):
        ttv = sum(v[b] for s, v in values.items() if isinstance(s, Transition))
        iga = sum(v[b] for s, v in values.items() if isinstance(s, DecoderAttention))
        score = sum(w * t / t.sum() for w, t in ((alpha, ttv), (1 - alpha, iga)) if w)
        order = sorted(range(40), key=lambda i: (-float(score[i]), i))
        assert kept.row(b).tolist() == sorted(order[:11])


def test_each_image_stands_alone():
    stage = TransPrune()
    values = random_signals(stage, LLAMA, 2, 4, 50)
    together = stage.select(context(stage, LLAMA, 2, 9, values), LLAMA).keep
    for b in range(4):
        alone = {signal: v[b : b + 1] for signal, v in values.items()}
        assert torch.equal(stage.select(context(stage, LLAMA, 2, 9, alone), LLAMA).keep[0], together[b])


def test_ties_go_to_the_lower_index():
    stage = TransPrune()
    values = {signal: torch.full((2, 20), 0.25) for signal in stage.needs(LLAMA, 1)}
    assert stage.select(context(stage, LLAMA, 1, 6, values), LLAMA).keep.tolist() == [list(range(6))] * 2


@pytest.mark.parametrize("answer", ["stage0.kept_local", "stage2.kept_local", "stage1.kept_original", "layer9.ttv"])
def test_a_wrong_golden_answer_is_noticed(answer):
    file = Path(__file__).parent / "golden" / "transprune" / "c03_n144_low.safetensors"
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        params = {k: json.loads(v) for k, v in opened.metadata().items() if k != "method"}
    golden.check(tensors, params)
    with pytest.raises(AssertionError):
        golden.check({**tensors, answer: tensors[answer] + 1}, params)
