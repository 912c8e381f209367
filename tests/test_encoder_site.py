"""The encoder site beside the rest: compositions, backends, training, memory, what is refused, and the report."""

import pytest
import torch
import torch.nn.functional as F

import vtc
from tests.helpers import build, family_of, forward, generate, inputs_of, kept_of, model_of, refused, split, state
from tests.helpers_encoder import Pairs, Strided
from tests.helpers_video import clips_of
from tests.test_memory import Largest, run_encoder
from vtc.core.selection import Selection
from vtc.patches import FAMILIES
from vtc.patching import find_family

FAMILY_CASES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "llava-siglip")


@pytest.mark.product
@pytest.mark.parametrize("case", FAMILY_CASES)
@pytest.mark.parametrize("second", ["divprune", "vtc_cls", "vispruner"])
def test_a_stage_at_the_projector_chooses_among_what_is_left(case, second):
    """What a second stage keeps is a part of what the encoder left, and a batch is what its prompts are alone."""
    model, inputs = model_of(case), inputs_of(case)
    with vtc.patched(model, Strided(), keep=0.6):
        forward(model, inputs)
        first = [kept_of(vtc.report(model), b) for b in range(3)]
    strategy = [{"stages": [{"method": "tests.helpers_encoder:Strided", "keep": 0.6}]}, second]
    with vtc.patched(model, strategy, **{f"{second}.keep": 0.2}):
        logits = forward(model, inputs).logits
        report = vtc.report(model)
        for b, single in enumerate(split(inputs)):
            alone = forward(model, single).logits
            torch.testing.assert_close(logits[b, -1], alone[0, -1], atol=1e-9, rtol=0)
    for b in range(3):
        for kept, whole in zip(kept_of(report, b), first[b], strict=True):
            assert set(kept.tolist()) < set(whole.tolist())
    for image in report.images:
        assert [step.site for step in image.steps] == ["encoder", "projector"]
        assert image.steps[0].after == image.steps[1].before > image.steps[1].after


@pytest.mark.product
@pytest.mark.parametrize("case", FAMILY_CASES)
@pytest.mark.parametrize("second", ["vtc_cls", "divprune", "visionzip", "vispruner", "fastv", "transprune", "hiprune"])
def test_compositions_run_or_are_refused_by_name(case, second):
    model, inputs = model_of(case), inputs_of(case)
    config = vtc.load_strategy(second, family_of(case))
    keep = {} if config.projector is None else {f"{config.projector.method}.keep": 0.2}
    run = lambda: vtc.patch(model, f"tome+{second}", **{"tome.keep": 0.5}, **keep)  # noqa: E731
    if config.projector is not None and config.projector.stage.grid:
        refused(run, second, "tome", "raster")
        return
    run()
    try:
        generate(model, inputs, 3)
        assert vtc.report(model).tokens_after < vtc.report(model).tokens_before
    finally:
        vtc.unpatch(model)


def test_one_keep_for_encoder_and_projector_is_refused():
    refused(lambda: vtc.load_strategy("tome+divprune", keep=0.2), "tome.keep", "divprune.keep")
    refused(lambda: vtc.load_strategy("tome", scope="per_request"), "scope", "tome")
    refused(lambda: vtc.load_strategy("divprune+tome", **{"tome.keep": 0.2, "divprune.keep": 0.5}), "in the encoder")


def test_what_the_tower_cannot_give_is_refused():
    model = build("llava")
    model.config.vision_feature_layer = [-2, -1]
    refused(lambda: vtc.patch(model, "tome", keep=0.5), "vision_feature_layer", "several")
    model.config.vision_feature_layer = -2
    refused(lambda: vtc.patch(model, "tome", keep=3), "3 of 64 tokens", "possible: 8 or more")
    with vtc.patched(model, "tome", keep=0.5):
        pixels = inputs_of("llava", images=(1,))["pixel_values"]
        call = lambda: model.model.get_image_features(pixel_values=pixels, vision_feature_layer=-1)  # noqa: E731
        refused(call, "vision_feature_layer=-1")
    model.model.vision_tower.gradient_checkpointing_enable()
    model.train()
    with vtc.patched(model, "tome", keep=0.5):
        refused(lambda: model(**inputs_of("llava", images=(1,))), "gradient checkpointing")


def test_vllm_refuses_it_by_name():
    from vtc.vllm.capability import check, resolved

    for name in ("tome", "pitome", "flowcut", "soft_merge"):
        config = resolved(name, "llava", keep=0.3)
        refused(lambda config=config: check(config, FAMILIES["llava"].published), name, "inside the vision encoder")


@pytest.mark.parametrize("stage", [Strided(), Pairs()], ids=["drops", "merges"])
@pytest.mark.parametrize("case", ["llava", "qwen2_5_vl"])
def test_gradients_are_those_of_the_survivors(case, stage):
    """Training through the stage: a small step of one weight changes a sum of logits as its gradient says."""
    model, inputs = build(case), inputs_of(case, images=(1,))
    block = find_family(model).blocks[1]
    weight = block.mlp.fc1.weight if case == "llava" else block.mlp.gate_proj.weight

    def number() -> torch.Tensor:
        logits = model(**inputs).logits[0, -1]
        return logits @ torch.linspace(-1, 1, len(logits), dtype=logits.dtype)

    with vtc.patched(model, stage, keep=0.5):
        number().backward()
        slope = float((weight.grad * weight.grad).sum())
        step, found = 3e-3 / slope**0.5, []
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(weight.grad, alpha=sign * step)
                found.append(float(number()))
                weight.sub_(weight.grad, alpha=sign * step)
    assert slope > 0
    assert (found[0] - found[1]) / (2 * step) == pytest.approx(slope, rel=1e-3)  # norms are float32 inside


@pytest.mark.parametrize("case", ["llava", "llava-siglip", "qwen2_vl"])
def test_a_bias_without_masks_is_the_same(case, monkeypatch):
    """A backend that takes no mask gets the sizes by one more dimension: the same features."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, inputs = build(case, torch.float32), inputs_of(case, dtype=torch.float32)
    with vtc.patched(model, Pairs(), keep=0.4), torch.no_grad():
        expected = forward(model, inputs).logits
    seen = []

    def maskless(module, query, key, value, attention_mask, scaling=None, **kwargs):
        assert attention_mask is None
        seen.append(query.shape[-1])
        return F.scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "tests_maskless", maskless)
    tower = find_family(model).tower
    before = state(model)
    monkeypatch.setattr(tower.config, "_attn_implementation_internal", "tests_maskless")
    with vtc.patched(model, Pairs(), keep=0.4), torch.no_grad():
        torch.testing.assert_close(forward(model, inputs).logits, expected, atol=2e-5, rtol=0)
    assert len(set(seen)) == 2  # with and without
    del before


@pytest.mark.parametrize("case", ["llava", pytest.param("qwen2_vl", marks=pytest.mark.full)])
def test_a_compiled_tower_gives_the_same(case):
    """torch.compile goes around the hooks."""
    model, inputs = build(case), inputs_of(case)
    with vtc.patched(model, "tome", keep=0.4):
        expected = forward(model, inputs).logits
    tower = find_family(model).tower
    tower.compile(backend="eager")
    with vtc.patched(model, "tome", keep=0.4):
        torch.testing.assert_close(forward(model, inputs).logits, expected, atol=1e-9, rtol=0)
    torch.compiler.reset()


@pytest.mark.parametrize("strategy", ["tome", "pitome", "flowcut"])
def test_no_full_matrix_inside_the_encoder(strategy):
    """3136 patches in bfloat16-sized models: no tensor of heads x N x N, nor of N x N, beside SDPA's own."""
    side, patches = 56, 56 * 56
    model, pictures = run_encoder("llava", side)
    model.model.config.vision_feature_layer = model.config.vision_feature_layer = -1
    with vtc.patched(model, strategy, keep=0.5), torch.no_grad(), Largest() as largest:
        output = model.model.get_image_features(**pictures, return_dict=True)
    assert len(output.pooler_output[0]) == patches
    assert largest.numel < 0.7 * patches * patches


@pytest.mark.parametrize("case", FAMILY_CASES)
def test_the_report_follows_merges_and_work(case):
    """Every original token flows to a survivor, survivors to themselves, and the encoder's FLOPs fall."""
    model, inputs = model_of(case), inputs_of(case)
    with vtc.patched(model, Pairs(), keep=0.4):
        forward(model, inputs)
        report = vtc.report(model)
    for image, layout in zip(report.images, find_family(model).image_layouts(inputs), strict=True):
        into = image.merged_into(0)
        assert torch.equal(into[image.kept], image.kept)
        tokens = torch.cat([tile.offsets for tile in layout.tiles])
        if len(layout.tiles) == 1:
            assert set(into[tokens].tolist()) == set(image.kept.tolist())
    before, after = report.encoder_flops
    assert 0.3 * before < after < before
    assert report.to_dict()["encoder_flops"]["after"] == after
    assert "encoder FLOPs" in str(report)


def test_encoder_flops_by_hand():
    """One crop of LLaVA's tiny tower: [CLS] and 64 patches, 32 of which are left behind layer 0."""
    model, inputs = model_of("llava"), inputs_of("llava", images=(1,))
    with vtc.patched(model, Strided((0, 2)), keep=1 / 64):
        forward(model, inputs)
        before, after = vtc.report(model).encoder_flops

    def layer(n: int) -> int:
        return 8 * n * 32 * 32 + 4 * n * n * 32 + 4 * n * 32 * 48

    assert before == 4 * layer(65)
    assert after == layer(65) + 2 * layer(1 + 33) + layer(1 + 1)


def test_encoder_flops_of_images_and_clips():
    """The encoder runs twice in a call with both, and the work is that of the two runs."""
    model, found = model_of("qwen2_vl"), []
    with vtc.patched(model, Pairs(), keep=0.4):
        for media in ("i", "c", "ci"):
            forward(model, clips_of("qwen2_vl", (media,)))
            found.append(vtc.report(model).encoder_flops)
    assert all(after < before for before, after in found)
    assert found[2] == tuple(map(sum, zip(*found[:2], strict=True)))


def test_targets_of_a_selection():
    keep = torch.tensor([[1, 3]])
    assert Selection(keep).targets(5).tolist() == [[-1, 0, -1, 1, -1]]
