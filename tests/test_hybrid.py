"""Language models with linear attention in some layers: where methods drop, what they read, what it costs."""

import pytest
import torch

import vtc
from tests import helpers_delta
from tests.helpers import forward, generate, inputs_of, model_of, patched, proceed, refused, split, unharmed
from tests.helpers_costs import layer_flops
from tests.helpers_decoder import Drop, View, decoder_of, heads_of, truth
from tests.helpers_oracle import unpruned
from vtc.config import hybrid
from vtc.config.resolve import resolve
from vtc.core.errors import UnsupportedError
from vtc.core.flops import LanguageShape, LinearAttention
from vtc.core.selection import Selection
from vtc.core.signals import Decoder, DecoderAttention, DecoderKeys, Transition
from vtc.patches import FAMILIES, available
from vtc.patching import find_family
from vtc.strategies.base import DecoderStage, Step

SINCE = FAMILIES["qwen3_5"].since
pytestmark = pytest.mark.skipif(
    not available("qwen3_5"), reason=f"the only hybrid family is in transformers {SINCE} and later"
)

HYBRID = Decoder("qwen3_5", 32, tuple(range(3, 32, 4)))
PLACED = {  # drops before these layers, and the layers read, of 32 layers with softmax attention in 3, 7, 11, ...
    "fastv": ([4], [3]),
    "dart": ([4], [3]),
    "sparsevlm": ([4, 7, 16], [3, 3, 15]),
    "pyramiddrop": ([11, 19, 27], [11, 19, 27]),
    "transprune": ([11, 15], [11, 15]),  # two of three meet
    "visiondrop": ([11, 19, 27], [11, 19, 27]),
    "vscan": ([19], [19]),
    "todre": ([28], [27]),
    "apet": ([16], [None]),
    "vflowopt": ([10, 21], [None, None]),
}


@pytest.mark.parametrize("strategy", PLACED)
def test_where_methods_drop_and_what_they_read(strategy):
    """Those that read ahead move to the next layer with softmax attention, others read the last one that ran; what
    reads neither stays where it is published."""
    allocation = resolve(strategy, "qwen3_5").allocate(HYBRID)
    layers, reads = PLACED[strategy]
    assert [drop.layer for drop in allocation.steps] == layers
    found = []
    for drop in allocation.steps:
        needs = allocation.stages[drop.index].stage.needs(HYBRID, drop.number)
        read = {
            hybrid.source(HYBRID, s, drop.layer).layer for s in needs if isinstance(s, (*hybrid.OBSERVED, DecoderKeys))
        }
        found.append(read.pop() if read else None)
        assert not read
    assert found == reads
    for drop in resolve(strategy, "qwen3_5").allocate(Decoder("test", 32)).steps:
        assert drop.layer in range(1, 32)


def test_transitions_are_those_of_every_layer():
    """What a layer changes can be seen in any; a decoder without linear attention leaves every signal as it is."""
    for signal in (Transition(5), DecoderAttention(5, "last")):
        assert hybrid.source(Decoder("test", 32), signal, 6) == signal
    assert hybrid.source(HYBRID, Transition(5), 6) == Transition(5)
    assert hybrid.source(HYBRID, DecoderAttention(5, "last"), 7) == DecoderAttention(7, "last")
    assert hybrid.drop_layer(Decoder("test", 6, (1, 3)), 4, (DecoderAttention(4, "last"),)) == 3  # none comes after it


def test_steps_that_meet_are_one():
    """Before layer 3 of 6 two of PyramidDrop's steps meet: the later share holds, once."""
    steps = resolve("pyramiddrop", "qwen3_5").allocate(Decoder("qwen3_5", 6, (1, 3, 5))).steps
    assert [(drop.layer, drop.number, drop.share) for drop in steps] == [(3, 1, 0.25), (5, 2, 0.125)]


@pytest.mark.parametrize("strategy", ["autoprune", "var"])
def test_what_needs_every_layer_is_refused(strategy):
    """By name, and before the model is touched; only the families whose attention is softmax throughout have it."""
    model = model_of("qwen3_5")
    with unharmed(model, inputs_of("qwen3_5", images=(1,))):
        refused(
            lambda: vtc.patch(model, strategy), strategy, "softmax attention in every layer", "3 of the 6", "possible",
            kind=UnsupportedError,
        )  # fmt: skip


@pytest.mark.parametrize("ahead", [False, True], ids=["observed", "ahead"])
def test_kept_tokens_are_those_of_the_layer_that_is_read(ahead):
    """Of one prompt with one image: the attention of the last token in the layer that is read, worked out by hand."""
    model, inputs = model_of("qwen3_5"), inputs_of("qwen3_5", images=(1,))
    strategy, options, layer = (
        ("vscan", {"vscan_projector.keep": 1.0, "vscan.layer": 2}, 3) if ahead else ("fastv", {"K": 3}, 1)
    )
    with patched(model, "vscan" if ahead else strategy, **options):
        forward(model, inputs)
        (image,) = vtc.report(model).images
    language, (_, positions) = model.model.language_model, unpruned(model, inputs)
    length = inputs["input_ids"].shape[1]
    hidden = forward(model, inputs, output_hidden_states=True).hidden_states[layer]
    view = View(torch.arange(length), positions.reshape(-1, length), 0)
    with torch.no_grad():
        q, k = (heads_of(language, language.layers[layer], name, hidden, view) for name in ("q_proj", "k_proj"))
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    row = torch.einsum("he,lhe->hl", q[-1], k) * q.shape[-1] ** -0.5
    places = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    score = row.softmax(-1).mean(0)[places]
    assert image.kept.tolist() == score.topk(image.after).indices.sort().values.tolist()
    assert image.after < image.before
    assert image.steps[-1].layer == 3


def test_the_report_says_what_moved():
    """One note for each method that is not where it was asked; none where nothing moved."""
    model, inputs = model_of("qwen3_5"), inputs_of("qwen3_5", images=(1,))
    with patched(model, "fastv", K=1):
        forward(model, inputs, use_cache=True)
        report = vtc.report(model)
        (note,) = report.notes
        assert note.startswith("fastv drops before layer 2 (asked: layer 1) and reads layer 1 (asked: layer 0)")
        assert report.kv_lengths[::2] == [None] * 3
        assert report.kv_lengths[1] > report.kv_lengths[3] == report.kv_lengths[5]
        assert "with softmax attention, a fixed state in the other 3" in str(report)
    with patched(model, "fastv", K=2):
        forward(model, inputs)
        assert vtc.report(model).notes == []


class Own(DecoderStage):
    """Half of the tokens go before a layer, by the keys that it would have."""

    def steps(self, decoder):
        """Before layer 2."""
        return (Step(2, 0.5),)

    def needs(self, decoder, step):
        """Keys of the coming layer."""
        return (DecoderKeys(2),)

    def select(self, context, decoder):
        """The shortest."""
        (signal,) = self.needs(decoder, 0)
        return Selection(context[signal].norm(dim=-1).topk(context.count, largest=False).indices.sort().values)


def test_a_method_from_outside_need_not_know():
    """It names the layer that it wants and is shown the next one that has keys."""
    model, inputs = model_of("qwen3_5"), inputs_of("qwen3_5")
    with patched(model, Own()):
        forward(model, inputs)
        assert {step.layer for image in vtc.report(model).images for step in image.steps} == {3}


def test_masking_is_not_removing():
    """Tokens that are only masked change what a linear layer gives: the oracles take them out."""
    model, single = model_of("qwen3_5"), split(inputs_of("qwen3_5"))[0]
    visual = (single["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    removed = truth(model, single, [Drop(0, [torch.arange(0, len(visual), 3)], False)])
    embeds, positions = unpruned(model, single)
    mask = torch.zeros_like(single["input_ids"]).index_fill_(1, removed.places, 1)
    with torch.no_grad():
        out = model.model.language_model(inputs_embeds=embeds, position_ids=positions[:, None], attention_mask=mask)
        masked = model.lm_head(out.last_hidden_state[0, -1])
    assert float((masked - removed.logits[-1]).abs().max()) > 1e-4


def test_a_ready_made_mask_is_refused():
    """Linear layers would take in the padding that only a 4-D mask shows, patched or not."""
    model, inputs = model_of("qwen3_5"), inputs_of("qwen3_5", images=(1,))
    embeds, positions = unpruned(model, inputs)
    mask = torch.ones(1, 1, embeds.shape[1], embeds.shape[1], dtype=torch.bool).tril()
    where = {key: value for key, value in inputs.items() if key != "attention_mask"}
    with patched(model, "hiprune", keep=0.3):
        refused(
            lambda: model(**where, attention_mask=mask, position_ids=positions[:, None]), "4-D attention mask", "2-D",
            kind=UnsupportedError,
        )  # fmt: skip


@pytest.mark.parametrize("strategy", ["hiprune", "fastv", "transprune"])
def test_several_tokens_at_once(strategy):
    """Three tokens fed on the pruned cache give what they give one by one."""
    model, inputs = model_of("qwen3_5"), inputs_of("qwen3_5")
    new = torch.tensor([[5, 6, 7]] * 3)
    with patched(model, strategy, **({"keep": 0.3} if strategy == "hiprune" else {})):
        cache, mask, single = forward(model, inputs, use_cache=True).past_key_values, inputs["attention_mask"], []
        for i in range(3):
            out, mask = proceed(model, cache, mask, new[:, i : i + 1])
            single.append(out.logits[:, -1])
        cache = forward(model, inputs, use_cache=True).past_key_values
        together, _ = proceed(model, cache, inputs["attention_mask"], new)
    torch.testing.assert_close(together.logits, torch.stack(single, 1), atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", ["qwen3_5", pytest.param("qwen3_5_moe", marks=pytest.mark.full)])
def test_as_transformers_computes_it(family):
    """With linear attention in float32, as it is outside of tests: batches and single prompts agree to `rounding`."""
    model, inputs = model_of(family), inputs_of(family)
    with helpers_delta.stock(), patched(model, "fastv"):
        together = generate(model, inputs, 4)
        alone = [generate(model, single, 4) for single in split(inputs)]
    for b, one in enumerate(alone):
        torch.testing.assert_close(together.logits[:, b], one.logits[:, 0], atol=FAMILIES[family].rounding, rtol=0)
    assert float((together.logits[:, 0] - alone[0].logits[:, 0]).abs().max()) > 1e-12  # the reason for the tolerance


def test_the_sizes_of_the_9b_model():
    """8 of 32 layers cache keys; queries have a gate; FLOPs and bytes by hand."""
    with torch.device("meta"):
        config = FAMILIES["qwen3_5"].presets["qwen3.5-9b"].config()
        from transformers import Qwen3_5ForConditionalGeneration

        model = Qwen3_5ForConditionalGeneration(config).bfloat16()
    shape = find_family(model).language_shape()
    linear = LinearAttention(frozenset(i for i in range(32) if i % 4 != 3), 16, 128, 32, 128, 4)
    assert shape == LanguageShape(32, 4096, 16, 4, 256, 12288, True, 2, output_gate=True, linear=linear)
    assert shape.softmax == FAMILIES["qwen3_5"].softmax_layers(32) == HYBRID.softmax
    text = config.text_config
    assert shape.prefill_flops([1000] * 32) == 24 * layer_flops(text, 1000, True) + 8 * layer_flops(text, 1000)
    state = 4 * (2 * 2048 + 4096) * 2 + 32 * 128 * 128 * 4
    assert shape.kv_bytes([1000] * 32) == 8 * 1000 * 2 * 4 * 256 * 2 + 24 * state
    assert "linear attention" in shape.formula


def test_only_the_experts_of_a_token_count():
    """2 of 4 experts of 32 rows, and a shared one of 24."""
    assert find_family(model_of("qwen3_5_moe")).language_shape().mlp == 2 * 32 + 24
    assert decoder_of("qwen3_5_moe").softmax == (1, 3, 5)
