"""AutoPrune: its curve, the information of the text, and drops that differ from prompt to prompt."""

import sys

import pytest
import torch

import vtc
from tests.helpers import forward, inputs_of, kept_of, model_of, patched, split
from vtc.config.allocation import Allocation
from vtc.config.resolve import resolve
from vtc.core.errors import ConfigError
from vtc.core.selection import Merge, Selection
from vtc.core.signals import Aim, Context, Decoder, DecoderAttention, EncoderAttention, Hidden, TextInformation
from vtc.engine.watch import Watch
from vtc.kernels.density_peaks import density_peaks
from vtc.kernels.information import mutual_information
from vtc.kernels.logistic import curve, merged_count
from vtc.strategies.autoprune import AutoPrune, padded

L32 = Decoder("llava", 32)


def test_information():
    """0 for text rows that are alike, log2 T for rows that each look at another token, as in the formula in between."""
    assert float(mutual_information(torch.full((5, 8), 1 / 8))) == pytest.approx(0, abs=1e-4)
    assert float(mutual_information(torch.eye(8))) == pytest.approx(3, abs=1e-3)
    attention = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 5
    for head, found in zip(attention.tolist(), mutual_information(attention).tolist(), strict=True):
        p = [[x / 3 for x in row] for row in head]
        column = [sum(row[y] for row in p) for y in range(5)]
        ratio = [[row[y] / (column[y] / 3 + 1e-6) for y in range(5)] for row in p]
        terms = [x * torch.tensor(r).double().log2() for row, rs in zip(p, ratio) for x, r in zip(row, rs)]
        assert found == pytest.approx(float(sum(terms)), rel=1e-6)


@pytest.mark.parametrize("bits", [0.0, 0.7, 1.5, 9.0])
@pytest.mark.parametrize("target", [64, 128, 192])
def test_the_mean_over_layers_is_the_target(bits, target):
    """Whatever the text tells; more information makes the curve flatter."""
    found = AutoPrune(target=target / 576).plan(576, -1, bits, 32)
    assert found.counts[0] == min(int(2.5 * target), 576)
    assert abs(sum(found.counts) / 32 - target) < 0.5
    steeper = AutoPrune(target=target / 576).plan(576, -1, 0.0, 32)
    assert found.counts[-1] >= steeper.counts[-1]


def test_a_budget_counts_what_layers_see():
    """`keep` is the mean over what each layer sees, the first with all of its tokens."""
    for keep in (0.2, 0.5):
        schedule = Allocation(resolve("autoprune", "llava", keep=keep), L32)
        entered, total = schedule.aim(576, 576)
        assert entered == 576
        assert abs(total / 32 - keep * 576) < 1
        for bits in (0.0, 1.2):
            seen = [576, *schedule.stages[0].stage.plan(576, total, bits, 32).counts]
            assert len(seen) == 32
            assert abs(sum(seen) / 32 - keep * 576) < 1
    assert Allocation(resolve("autoprune", "llava"), L32).aim(576, 576) == (576, -1)


def test_merged_tokens_are_counted():
    assert [merged_count(n) for n in (0, 1, 30, 31, 63, 64)] == [0, 1, 2, 2, 2, 3]
    assert curve(10, 1, 0.4, 14.9, 8, 8).counts == (1,) * 8


def test_equal_densities():
    """Of two tokens that are nearest to each other the first is the denser, or neither."""
    x = torch.tensor([[[0.0], [0.01], [1.0], [3.0]]])
    assert density_peaks(x, 2)[0].tolist() == [[0, 2]]
    assert density_peaks(x, 2, ranked=False)[0].tolist() == [[0, 1]]


def test_padded():
    """Units that keep different numbers: filler last, in `order` too."""
    short = Selection(
        torch.tensor([[1]]), merge=Merge(torch.zeros(1, 3).long(), torch.ones(1, 3)), order=torch.tensor([[0]])
    )
    long = Selection(
        torch.tensor([[0, 2]]), merge=Merge(torch.zeros(1, 3).long(), torch.ones(1, 3)), order=torch.tensor([[1, 0]])
    )
    both = padded([short, long])
    assert [both.row(b).tolist() for b in range(2)] == [[1], [0, 2]]
    assert both.order.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("case", ["llava", "llava_next", "qwen2_5_vl"])
def test_what_the_engine_shows_it(case):
    """Information by hand from the first layer's queries and keys, and the encoder's attention on the image's run."""
    model, inputs, seen = model_of(case), inputs_of(case), []
    with pytest.MonkeyPatch.context() as spied:
        original = Watch.look

        def look(self, signal, b, ordinal, columns, rows):
            found = original(self, signal, b, ordinal, columns, rows)
            seen.append((signal, b, ordinal, columns, rows, found))
            return found

        spied.setattr(Watch, "look", look)
        hidden = {}
        first = model.model.language_model.layers[0]
        handle = first.register_forward_pre_hook(
            lambda module, args, kwargs: hidden.update(
                x=args[0] if args else kwargs["hidden_states"], rope=kwargs["position_embeddings"]
            ),
            with_kwargs=True,
        )
        with patched(model, "autoprune"):
            forward(model, inputs)
        handle.remove()
    attention = first.self_attn
    given = [row for row in seen if row[0] == TextInformation(0)]
    assert len(given) == 4
    for _, b, ordinal, columns, rows, found in given:
        x = first.input_layernorm(hidden["x"][b : b + 1])
        q, k = (
            projection(x).unflatten(2, (-1, attention.head_dim)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj)
        )
        cos, sin = hidden["rope"]
        q, k = _turned(model, q, k, cos, sin, b)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        text = rows.text_columns(b, ordinal)
        scores = (q[:, :, text] @ k.transpose(2, 3)) * attention.head_dim**-0.5
        place = torch.arange(scores.shape[3])
        hides = place[None] > text[:, None]
        if rows.valid is not None:
            hides = hides | ~rows.valid[b]
        probabilities = scores.masked_fill(hides, -torch.inf).softmax(-1)[0][:, :, columns]
        assert float(found[0]) == pytest.approx(float(mutual_information(probabilities).sum()), rel=1e-9)
        assert int(found[1]) == len(text)


def _turned(model, q, k, cos, sin, b):
    """Queries and keys of one prompt after RoPE, by the model's own function."""
    module = sys.modules[type(model.model.language_model.layers[0].self_attn).__module__]
    if hasattr(module, "apply_multimodal_rotary_pos_emb"):
        sections = model.model.language_model.config.rope_parameters["mrope_section"]
        return module.apply_multimodal_rotary_pos_emb(q, k, cos[:, b : b + 1], sin[:, b : b + 1], sections)
    one = slice(b, b + 1) if len(cos) > 1 else slice(None)
    return module.apply_rotary_pos_emb(q, k, cos[one], sin[one])


def test_each_image_has_its_own_curve():
    """Prompts whose text tells differently keep different numbers, in one batch as alone."""
    model, inputs = model_of("llava"), inputs_of("llava")
    with patched(model, "autoprune", gamma=40.0, target=0.3, x0=2.0):
        forward(model, inputs)
        batch = vtc.report(model)
        found = {tuple(image.per_layer) for image in batch.images}
        for b, single in enumerate(split(inputs)):
            forward(model, single)
            assert all(map(torch.equal, kept_of(batch, b), kept_of(vtc.report(model), 0)))
    assert len(found) > 1


def test_what_it_reads():
    stage = resolve("autoprune", "llava").decoder[0].stage
    assert stage == AutoPrune()
    assert stage.needs(L32, 0) == (
        DecoderAttention(0, "after", ahead=False),
        TextInformation(0),
        Aim(),
        EncoderAttention(-2),
    )
    read = TextInformation(1, read=True)
    assert stage.needs(L32, 5) == (DecoderAttention(5, "after", ahead=False), read, Aim(), Hidden())
    assert [step.layer for step in stage.steps(L32)] == list(range(1, 32))
    for knobs, message in (({"target": 0.0}, "target=0.0 is out of range"), ({"k0": -1.0}, "k0=-1.0 is out of range")):
        with pytest.raises(ConfigError, match=message):
            resolve("autoprune", "llava", **knobs)
    with pytest.raises(ConfigError, match="layer=30 is beyond the 4 layers"):
        vtc.patch(model_of("llava"), "autoprune", layer=30)


def test_first_drop():
    """The attention of [CLS] plus 0.3 x information / text tokens x that of the text; the lower index first."""
    image, relation = torch.tensor([[0.3, 0.1, 0.1, 0.0]]), torch.tensor([[0.0, 0.5, 0.5, 0.9]])
    signals = dict(
        zip(
            AutoPrune().needs(L32, 0),
            (relation, torch.tensor([[2.0, 4.0]]), torch.tensor([[4.0, -1.0]]), image),
            strict=True,
        )
    )
    kept = AutoPrune(target=0.3).select(Context(4, 1, None, (0,), torch.device("cpu"), signals), L32)
    assert kept.row(0).tolist() == [0, 1, 2]
