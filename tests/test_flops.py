"""What a prompt costs: FLOPs and KV bytes by hand, and the numbers that the papers print, out of real reports."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vtc
from vtc.config.allocation import Allocation
from vtc.config.resolve import resolve
from vtc.core.flops import FORMULA, PAPER_FORMULA, LanguageShape, paper_flops
from vtc.core.report import Report
from vtc.core.signals import Decoder
from vtc.patches import FAMILIES
from vtc.patches._tiny import BOS, EOS, IMAGE_TOKEN, PAD, TEXT

LLAVA_7B = LanguageShape(32, 4096, 32, 32, 128, 11008, True, 2)
L32 = Decoder("test", 32)
lengths = st.lists(st.integers(0, 4000), min_size=1, max_size=8)


def tera(flops: int) -> float:
    """As the papers print it."""
    return round(flops / 1e12, 2)


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    """LLaVA-1.5 in what counts here: 24 x 24 patches of an image, 32 decoder layers; everything else is tiny."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=96, patch_size=4
    )
    sizes = {**TEXT, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 32, "num_attention_heads": 2}
    text = LlamaConfig(**sizes, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, image_seq_length=576)
    return LlavaForConditionalGeneration(config).eval()


def report_of(model, strategy, **options) -> Report:
    """The report of one prompt of 20 text tokens and an image of 576, at the sizes of LLaVA-1.5-7B."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(3, 100, (20,), generator=generator).tolist()
    inputs = {
        "input_ids": torch.tensor([[BOS, *text[:9], *[IMAGE_TOKEN] * 576, *text[9:19]]]),
        "pixel_values": torch.randn(1, 3, 96, 96, generator=generator),
    }
    with vtc.patched(model, strategy, **options), torch.no_grad():
        model(**inputs)
        return dataclasses.replace(vtc.report(model), shape=LLAVA_7B)


PRINTED = [
    ("transprune", {}, 1.56, [504, 360, 72]),
    ("fastv", {"K": 2, "R": 0.5}, 2.01, [288]),
    ("pyramiddrop", {}, 1.78, [288, 144, 72]),
]


@pytest.mark.parametrize("strategy, knobs, printed, counts", PRINTED)
def test_the_papers_flops_out_of_a_report(model, strategy, knobs, printed, counts):
    """3.82 T with all 576 tokens; TransPrune (high) 1.56 T, FastV K=2 R=0.5 2.01 T, PyramidDrop 1.78 T."""
    report = report_of(model, strategy, **knobs)
    assert [after for _, _, after in report.images[0].stages] == counts
    assert tuple(map(tera, report.paper_flops)) == (3.82, printed)


def test_both_conventions_are_printed(model):
    """The papers' count beside ours, and which is which; as data with both formulas."""
    report = report_of(model, "transprune")
    ours, paper = report.prefill_flops, report.paper_flops
    lines = str(report).splitlines()
    (mine,) = [line for line in lines if line.startswith("prefill FLOPs")]
    (theirs,) = [line for line in lines if "as papers count" in line]
    assert lines.index(theirs) == lines.index(mine) + 1
    assert f"{ours[0]:.4g} -> {ours[1]:.4g} ({ours[1] / ours[0]:.1%})" in mine
    assert "3.817e+12 -> 1.557e+12 (40.8%), visual tokens alone" in theirs
    data = report.to_dict()
    assert data["prefill_flops"] == {"before": ours[0], "after": ours[1], "formula": FORMULA}
    assert data["paper_flops"] == {"before": paper[0], "after": paper[1], "formula": PAPER_FORMULA}


def test_our_count_of_a_report_by_hand(model):
    """The whole prompt with its text, layer by layer, a multiply-add as 2."""
    report = report_of(model, "transprune")
    per_layer = [576] * 7 + [504] * 2 + [360] * 3 + [72] * 20
    assert report.images[0].per_layer == per_layer
    assert report.prompt_lengths == [[n + 20 for n in per_layer]]

    def layer(n: int) -> int:
        return 2 * n * 4 * 4096 * 4096 + 4 * n * n * 4096 + 2 * n * 4096 * 11008 * 3

    ahead = sum(2 * (tokens + 20 + 10) * 4096 * 4096 for tokens in (576, 504, 360))  # keys, and the queries
    assert report.ahead_flops() == ahead
    assert report.prefill_flops == (32 * layer(596), sum(layer(n + 20) for n in per_layer) + ahead)
    each = 2 * 32 * 128 * 2
    assert report.kv_bytes == (32 * 596 * each, sum(n + 20 for n in per_layer) * each)


def printed(strategy, tokens: int, **overrides) -> float:
    """The papers' FLOPs of one image of LLaVA-7B under a strategy."""
    allocation = Allocation(resolve(strategy, **overrides), L32)
    entered = tokens if allocation.projector is None else allocation.projector.count(tokens)
    return tera(paper_flops(LLAVA_7B, allocation.tokens_per_layer(tokens, entered)))


def test_llava_next_at_2880_tokens():
    """20.83 T and 8.33 T are printed for 2880 tokens, five crops of 576. The real model has fewer after unpadding and
    one more per row for its newlines, so its reports do not give these numbers."""
    assert tera(paper_flops(LLAVA_7B, [2880] * 32)) == 20.83
    assert printed("transprune", 2880) == 8.33


@pytest.mark.parametrize(
    "layers, value", [((5, 7, 10), 1.35), ((6, 8, 11), 1.45), ((8, 10, 13), 1.66), ((9, 11, 14), 1.77)]
)
def test_transprune_before_other_layers(layers, value):
    """The paper's table of other layers with the same shares."""
    assert printed("transprune", 576, layers=layers) == value


def test_transprune_with_inferred_schedules():
    """ "low" gives the printed 1.19 T and 6.41 T; "combined" the 0.66 T and 0.44 T behind a method that leaves 288 or
    192 tokens."""
    assert [printed("transprune", n, schedule="low") for n in (576, 2880)] == [1.19, 6.41]
    knobs = {"schedule": "combined"}
    assert [printed("hiprune+transprune", 576, **knobs, **{"hiprune.keep": n}) for n in (288, 192)] == [0.66, 0.44]
    assert printed("hiprune_transprune", 576) == 0.66


def test_the_same_numbers_from_schedules():
    """No model needed: the schedule says what each layer sees."""
    assert tera(paper_flops(LLAVA_7B, [576] * 32)) == 3.82
    for strategy, knobs, value, _ in PRINTED:
        assert printed(strategy, 576, **knobs) == value


def test_the_shape_of_llava_7b():
    """What a family reads off a 7B model is what the printed numbers are computed with; float16 on no device."""
    text = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32064
    )
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14,
    )  # fmt: skip
    with torch.device("meta"):
        large = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text)).half()
    family = FAMILIES["llava"](large)
    assert family.language_shape() == LLAVA_7B
    assert (family.encoder.tokens, family.encoder.depth) == (576, 24)


@settings(max_examples=100)
@given(per_layer=lengths, d=st.integers(1, 5000), m=st.integers(1, 12000))
def test_the_papers_formula(per_layer, d, m):
    """4 n d^2 + 2 n^2 d + 3 n d m, summed over layers; heads do not matter."""
    shape = LanguageShape(len(per_layer), d, 7, 1, 3, m, True, 2)
    assert paper_flops(shape, per_layer) == sum(4 * n * d * d + 2 * n * n * d + 3 * n * d * m for n in per_layer)


@settings(max_examples=100)
@given(per_layer=lengths, gated=st.booleans(), kv_heads=st.sampled_from([1, 2, 4]))
def test_our_formula(per_layer, gated, kv_heads):
    """Grouped key heads make projections and cache smaller; an MLP without gate has two matrices."""
    shape = LanguageShape(len(per_layer), 64, 4, kv_heads, 16, 100, gated, 4)
    kv = kv_heads * 16
    expected = 0
    for n in per_layer:
        projections = 2 * n * (64 * 64 + 64 * kv + 64 * kv + 64 * 64)
        scores_and_values = 2 * n * n * 64 + 2 * n * n * 64
        expected += projections + scores_and_values + 2 * n * 64 * 100 * (3 if gated else 2)
    assert shape.prefill_flops(per_layer) == expected
    assert shape.kv_bytes(per_layer) == sum(n * 2 * kv * 4 for n in per_layer)
    assert shape.prefill_flops([0] * len(per_layer)) == shape.kv_bytes([0]) == 0
