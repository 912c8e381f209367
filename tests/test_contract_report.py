"""The report is true, and attention backends agree: counts, cache lengths, FLOPs against what the model really did."""

import pytest
import torch

import vtc
from tests.helpers import CASES, STRATEGIES, build, forward, generate, inputs_of, model_of, patched, split, spy
from tests.helpers_costs import cached_bytes, prompt_flops
from tests.helpers_oracle import layouts
from vtc.check.batch import cached_lengths

pytestmark = pytest.mark.product

both = pytest.mark.parametrize("strategy", STRATEGIES)
cases = pytest.mark.parametrize("case", CASES)


@both
@cases
def test_report_is_true(strategy, case):
    """Every number against an independent measurement: stock prompts, cache tensors, a spy, arithmetic by hand."""
    model, inputs = model_of(case), inputs_of(case)
    singles = split(inputs)
    sizes = [layout.tokens for single in singles for layout in layouts(model, single)]
    with patched(model, strategy, keep=0.3), spy(model) as seen:
        cache = forward(model, inputs, use_cache=True).past_key_values
        report = vtc.report(model)
    assert (report.family, report.keep) == (case.partition("-")[0], 0.3)
    assert report.strategy["stages"][0]["method"] == strategy
    assert [(i.prompt, i.image) for i in report.images] == [(0, 0), (1, 0), (1, 1), (2, 0)]
    assert [i.before for i in report.images] == sizes
    assert [i.after for i in report.images] == [len(i.kept) for i in report.images]
    assert [i.stages for i in report.images] == [[(strategy, i.before, i.after)] for i in report.images]
    assert (report.tokens_before, report.tokens_after) == (sum(sizes), sum(i.after for i in report.images))
    before = [single["input_ids"].shape[1] for single in singles]
    assert report.prompts_before == before
    mask = seen[0]["attention_mask"]
    width = seen[0]["inputs_embeds"].shape[1]
    after = [width] * 3 if mask is None else mask.sum(1).tolist()
    assert report.prompts_after == after
    lengths = cached_lengths(cache)
    config = model.config.get_text_config()
    sliding = [kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or [""] * 6]
    assert report.kv_lengths == lengths
    assert [n for n in lengths if n is not None] == [
        min(width, config.sliding_window - 1) if slides else width
        for n, slides in zip(lengths, sliding, strict=True) if n is not None
    ]  # fmt: skip
    assert report.prefill_flops == tuple(sum(prompt_flops(config, [n] * 6) for n in each) for each in (before, after))
    assert report.kv_bytes == tuple(cached_bytes(model, cache, [[n] * 6 for n in each]) for each in (before, after))
    data = report.to_dict()
    kept = report.tokens_after
    assert data["tokens"] == {"before": sum(sizes), "after": kept, "average": kept}
    assert (report.average_tokens, report.average_share) == (kept, kept / sum(sizes))
    assert report.prompt_lengths == [[n] * 6 for n in after]
    assert data["kv_bytes"]["saved"] == report.kv_bytes[0] - report.kv_bytes[1]
    assert [image["kept"] for image in data["images"]] == [i.kept.tolist() for i in report.images]
    assert (f"{width} in all {6 - lengths.count(None)} layers" if not any(sliding) else str(lengths)) in str(report)


def test_report_without_a_cache():
    """use_cache=False: no cache length is claimed."""
    model = model_of("llava")
    with vtc.patched(model, "uniform", keep=0.3):
        forward(model, inputs_of("llava"), use_cache=False)
        assert vtc.report(model).kv_lengths == []
        assert "no cache in use" in str(vtc.report(model))


def test_report_stays_while_decoding():
    """Decode steps do not change the report of their prompt; a call without images has none."""
    model, inputs = model_of("llava"), inputs_of("llava")
    with vtc.patched(model, "uniform", keep=0.3):
        forward(model, inputs, use_cache=True)
        first = vtc.report(model).to_dict()
        generate(model, inputs, 5)
        assert vtc.report(model).kv_lengths == first["kv_lengths"]
        assert vtc.report(model).to_dict()["images"] == first["images"]
        generate(model, inputs_of("llava", images=(0, 0)), 2)
        with pytest.raises(vtc.ConfigError, match="no image was seen in the last call"):
            vtc.report(model)


@both
@cases
def test_eager_equals_sdpa(strategy, case):
    """Both attention backends keep the same tokens and give the same logits, and the backend stays as chosen."""
    # Not float64: the stock eager attention turns its padding rows into NaN there.
    model, inputs = build(case, torch.float32), inputs_of(case, dtype=torch.float32)
    found = {}
    for backend in ("sdpa", "eager"):
        model.set_attn_implementation(backend)
        with patched(model, strategy, keep=0.3):
            out = generate(model, inputs, 3)
            found[backend] = out, [i.kept for i in vtc.report(model).images]
        assert model.config._attn_implementation == backend
    (out, kept), (same, again) = found["sdpa"], found["eager"]
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    assert torch.equal(out.tokens, same.tokens)
    torch.testing.assert_close(out.logits, same.logits, atol=1e-5, rtol=0)
