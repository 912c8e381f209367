"""Clips in LLaVA-OneVision and LLaVA-NeXT-Video: scopes, order, batches, caches, against prompts shortened by hand."""

import pytest
import torch

import vtc
from tests.helpers import build, check_no_trace, forward, generate, kept_of, model_of, patched, refused
from tests.helpers_oracle import Truth, _greedy, unpruned
from vtc.check.trial import watch
from vtc.patches import FAMILIES
from vtc.patches._tiny import IMAGE_TOKEN
from vtc.patching import find_family

pytestmark = pytest.mark.product

CASES = ["llava_onevision", "llava_next_video"]
cases = pytest.mark.parametrize("case", CASES)
VIDEO, FRAMES, SIDE, STEPS = 123, 3, 3, 4
CLIP = {"llava_onevision": FRAMES * 9 + 1, "llava_next_video": FRAMES * 9}
ORDERS = ["ic", "ci", "c", "cic", ""]


def clips_of(case, orders, seed=0, frames=FRAMES):
    """A float64 batch padded on the left. orders: per prompt, its images ("i") and clips ("c"), with text between."""
    inputs = FAMILIES[case].tiny_clips(model_of(case), tuple(orders), seed, frames)
    return {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}


def alone(inputs, orders, b):
    """Prompt b of a batch without padding, with its own images and clips."""
    real = inputs["attention_mask"][b].bool()
    one = {name: inputs[name][b : b + 1, real] for name in ("input_ids", "attention_mask")}
    for kind, names in (("i", ("pixel_values", "image_sizes")), ("c", ("pixel_values_videos",))):
        first, count = sum(order.count(kind) for order in orders[:b]), orders[b].count(kind)
        one |= {name: inputs[name][first : first + count] for name in names if count}
    if "i" in orders[b] and "batch_num_images" in inputs:
        one["batch_num_images"] = torch.tensor([orders[b].count("i")])
    return one


def truth(model, single, kept, positions, steps=1) -> Truth:
    """What the unpatched model gives for the prompt with these places of each image and clip, and text."""
    embeds, where = unpruned(model, single)
    ids = single["input_ids"][0]
    visual = (ids == IMAGE_TOKEN) | (ids == VIDEO)
    starts = (visual & ~torch.cat([torch.zeros(1, dtype=torch.bool), visual[:-1]])).nonzero().flatten().tolist()
    stays = ~visual
    for start, places in zip(starts, kept, strict=True):
        stays[start + places] = True
    places = stays.nonzero().flatten()
    short = torch.arange(len(places)) if positions == "compact" else where[places]
    following = len(places) if positions == "compact" else len(ids)
    return Truth(*_greedy(model, embeds[:, places], short, following, steps, {}), places)


def check_oracle(case, strategy, orders, positions="compact", frames=FRAMES, **options):
    """Generates with a batch and compares every prompt with its shortened self; returns the report."""
    model, inputs = model_of(case), clips_of(case, orders, frames=frames)
    with patched(model, strategy, positions=positions, **options):
        out = generate(model, inputs, STEPS)
        report = vtc.report(model)
    for b, order in enumerate(orders):
        kept = kept_of(report, b)
        assert len(kept) == len(order)
        expected = truth(model, alone(inputs, orders, b), kept, positions, STEPS)
        assert out.tokens[b].tolist() == expected.tokens
        torch.testing.assert_close(out.logits[:, b], expected.logits[-STEPS:], atol=1e-9, rtol=0)
        assert report.prompts_after[b] == len(expected.places)
    return report


@cases
@pytest.mark.parametrize("strategy", ["hiprune", "divprune", "uniform", "vtc_cls", "holov", "hired"])
@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_batch_equals_shortened_prompts(case, strategy, positions):
    """Image and clip in either order, alone, between clips, and a prompt with neither."""
    report = check_oracle(case, strategy, ORDERS, positions, keep=0.3)
    assert [image.before for image in report.images if image.prompt == 2] == [CLIP[case]]


def test_image_clip_image_with_every_scope():
    """On OneVision, whose images then are base crops; the share of each is worked out by hand: 36, 27 and 36 tokens."""
    expected = {"per_image": [12] * 3, "per_clip": [12] * 3, "per_frame": [12] * 3, "per_tile": [12] * 3,
                "per_request": [4, 3, 5]}  # fmt: skip
    for scope, counts in expected.items():
        report = check_oracle("llava_onevision", "divprune", ["ici"], keep=12, scope=scope)
        found = [image.after for image in report.images]
        assert sorted(found) == sorted(counts) if scope == "per_request" else found == counts
        assert [image.before for image in report.images] == [37, 28, 37]


@cases
@pytest.mark.parametrize("strategy", ["divprune", "hiprune", "holov"])
def test_frames_apart_or_together(case, strategy):
    """per_frame: each frame keeps its part; per_clip: they compete. A method that needs a raster keeps tiles apart."""
    grid = vtc.load_strategy(strategy, case, keep=7).projector.stage.grid
    for scope in ("per_tile",) if grid else ("per_frame", "per_clip"):
        report = check_oracle(case, strategy, ["c"], keep=7, scope=scope, rounding="ceil")
        (kept,) = kept_of(report, 0)
        frames = (kept // 9).bincount(minlength=FRAMES).tolist()
        assert len(kept) == 7
        assert frames == [3, 2, 2] or scope == "per_clip"


@cases
def test_a_frame_may_keep_nothing(case):
    """Two tokens for three frames; and the newline behind a clip never stays."""
    (kept,) = kept_of(check_oracle(case, "divprune", ["c"], keep=2), 0)
    assert len(kept) == 2
    (kept,) = kept_of(check_oracle(case, "uniform", ["c"], keep=1000), 0)
    assert kept.tolist() == list(range(27))


@cases
def test_a_clip_of_one_frame(case):
    """It is one raster."""
    (kept,) = kept_of(check_oracle(case, "hiprune", ["c"], frames=1, keep=0.5), 0)
    assert len(kept) in (4, 5)


@cases
@pytest.mark.parametrize(
    "strategy", ["hiprune", "visionzip", "visiontrim", "prunesid", "fastv", "pyramiddrop", "visiondrop"]
)
def test_batched_equals_one_by_one(case, strategy):
    """Each prompt alone keeps the same tokens and gives the same last logits, also where tokens merge or go inside."""
    model, inputs = model_of(case), clips_of(case, ORDERS)
    with patched(model, strategy, keep=0.5):
        logits = forward(model, inputs).logits
        batch = vtc.report(model)
        for b, order in enumerate(ORDERS[:-1]):
            last = forward(model, alone(inputs, ORDERS, b)).logits[0, -1]
            for kept, same in zip(kept_of(batch, b), kept_of(vtc.report(model), 0), strict=True):
                assert torch.equal(kept, same)
            assert len(kept_of(batch, b)) == len(order)
            torch.testing.assert_close(logits[b, -1], last, atol=1e-9, rtol=0)


@cases
@pytest.mark.parametrize("strategy", ["divprune", "fastv"])
def test_caches_and_beams(case, strategy):
    """Dynamic, static and no cache write the same; beams run."""
    model, inputs = model_of(case), clips_of(case, ["ic", "ci"])
    with patched(model, strategy, keep=0.4):
        dynamic = generate(model, inputs, STEPS)
        anew = [{"use_cache": False}] if strategy == "divprune" else []  # fastv reads the last token, then another one
        for options in ({"cache_implementation": "static"}, *anew):
            other = generate(model, inputs, STEPS, **options)
            assert torch.equal(other.tokens, dynamic.tokens)
            torch.testing.assert_close(other.logits, dynamic.logits, atol=1e-9, rtol=0)
        assert generate(model, clips_of(case, ["c"]), STEPS, num_beams=2).tokens.shape == (1, STEPS)


@cases
def test_leaves_no_trace(case):
    """keep=1.0 and a removed patch are bit-equal to the stock model."""
    check_no_trace(model_of(case), clips_of(case, ["ic", "c"]), "hiprune", keep=0.3)


@cases
def test_signals_are_pooled_as_features(case):
    """What a frame's patches have is pooled by the code that pools its features: scores, keys, pixels."""
    model, family = model_of(case), find_family(model_of(case))
    pixels = clips_of(case, ["cc"])["pixel_values_videos"]
    layouts = family.clip_layouts({"pixel_values": pixels})
    assert [(layout.tokens, layout.frames) for layout in layouts] == [(CLIP[case], FRAMES)] * 2
    x = torch.randn(2 * FRAMES, 36, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pool = getattr(model.model, "apply_pooling", None) or model.model.vision_resampler
    expected = pool(x)
    found = family.by_tile(x, layouts, {})
    scores = family.tile_scores([x[..., 0]], layouts, {})
    for f in range(2 * FRAMES):
        torch.testing.assert_close(found[f // FRAMES][f % FRAMES], expected[f], atol=1e-12, rtol=0)
        torch.testing.assert_close(scores[f // FRAMES][f % FRAMES], expected[f, :, 0], atol=1e-12, rtol=0)
    grey = family.pixel_scores({"pixel_values": pixels}, layouts, lambda x: x.flatten(1).mean(1))
    patches = torch.nn.functional.avg_pool2d(pixels.flatten(0, 1).mean(1, keepdim=True), 4).flatten(1)
    torch.testing.assert_close(grey[1][2], pool(patches.unsqueeze(-1))[-1, :, 0], atol=1e-12, rtol=0)


@cases
def test_merging_before_the_projector(case):
    """NeXT-Video merges the pooled input of the projector; OneVision, which pools after it, merges the embeddings."""
    model, inputs = model_of(case), clips_of(case, ["c"])
    with torch.no_grad():
        stock = model.model.get_video_features(inputs["pixel_values_videos"]).pooler_output[0].reshape(-1, 64)[:27]
    stage = {"method": "visiondrop_projector", "keep": 0.5, "scope": "per_tile"}
    with patched(model, {"stages": [stage]}), torch.no_grad():
        choices, seen = watch(model), []
        layer = model.model.language_model.layers[0]
        handle = layer.register_forward_pre_hook(lambda m, args, kwargs: seen.append(args[0]), with_kwargs=True)
        model(**inputs)
        handle.remove()
    selection, expected = choices[0].selection, []
    assert selection.merge.unprojected
    rows = stock.view(FRAMES, 9, -1)
    if case == "llava_next_video":
        pixels = inputs["pixel_values_videos"].flatten(0, 1)
        with torch.no_grad():
            hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        rows = torch.cat([hidden[:, :1], model.model.vision_resampler(hidden[:, 1:])], 1)  # [CLS] takes part
    for f in range(FRAMES):
        merge = selection.merge.on_tokens(rows.shape[1])
        weight = torch.zeros(selection.keep.shape[1], rows.shape[1], dtype=torch.float64)
        for i, (slot, share) in enumerate(zip(merge.target[f].tolist(), merge.weight[f].tolist(), strict=True)):
            if slot >= 0:
                weight[slot, i] = share
        frame = weight @ rows[f]
        frame = frame if case == "llava_onevision" else model.model.multi_modal_projector(frame)
        expected.append(frame if selection.order is None else frame[selection.order[f]])
    start, expected = int((inputs["input_ids"][0] == VIDEO).nonzero()[0]), torch.cat(expected)
    assert len(expected) < 27
    torch.testing.assert_close(seen[0][0, start : start + len(expected)], expected, atol=1e-9, rtol=0)


@cases
def test_stages_inside_the_encoder_are_refused(case):
    """For clips; pictures beside them are not."""
    model = build(case)
    with patched(model, "tome", keep=0.5):
        refused(lambda: forward(model, clips_of(case, ["ic"])), "tome", case, "clip", "possible:")
        assert forward(model, clips_of(case, ["i"])).logits.isfinite().all()


def test_another_way_of_pooling_is_refused():
    """A model whose clips are pooled by a maximum."""
    model = FAMILIES["llava_next_video"].tiny(spatial_pool_mode="max")
    refused(lambda: vtc.patch(model, "hiprune", keep=0.3), "spatial_pool_mode='max'", "possible: average")
