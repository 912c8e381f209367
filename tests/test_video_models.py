"""Methods for clips on tiny models: what stays is what the method keeps of the model's own features; images; families
without clips; the tables that say so."""

import pytest
import torch

import vtc
from tests.helpers import CLIPS, forward, generate, inputs_of, model_of, patched, refused, spy, subject_of
from tests.helpers_video import clips_of
from vtc.check import behaviour, choices
from vtc.check.trial import watch
from vtc.config.catalog import support_table
from vtc.config.resolve import resolve
from vtc.core.signals import Context, Features
from vtc.patches import FAMILIES
from vtc.vllm.capability import table

families = pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
CHECKS = {
    "number": choices.number, "order": choices.order, "precision": choices.precision, "batch": behaviour.batch,
    "padding": behaviour.padding, "decoding": behaviour.decoding, "report": behaviour.reported,
}  # fmt: skip


@families
@pytest.mark.parametrize("method", ["evs", "vidcom2", "v_cast", "dycoke", "flashvid"])
def test_kept_is_the_methods_choice(method, family):
    """Of features that the stock model gives, in the report and among the embeddings that enter the language model."""
    model, inputs = model_of(family), clips_of(family, ("c", "cc"))
    grids = inputs["video_grid_thw"]
    with torch.no_grad():
        stock = model.model.get_video_features(inputs["pixel_values_videos"], grids, return_dict=True).pooler_output
    with patched(model, method, keep=0.4), spy(model) as seen:
        chosen = watch(model)
        forward(model, inputs)
        images = vtc.report(model).images
    assert [image.before for image in images] == [len(x) for x in stock]
    config = resolve(method, family, keep=0.4)
    stage, budget = config.projector.stage, config.allocate().projector
    for clip, image, (t, h, w) in zip(stock, images, grids.tolist(), strict=True):
        each = h * w // 4
        (counts,) = budget.quotas([[each] * t], [True])
        context = next(c.context for c in chosen if torch.equal(c.context[Features()][0], clip))
        assert (context.frames, context.grid, context.count, context.asked) == (t, None, counts[0], 0.4)
        again = Context(
            len(clip), counts[0], None, (0,), torch.device("cpu"),
            {s: clip[None] if s == Features() else x[:1] for s, x in context.signals.items()}, frames=t, asked=0.4,
        )  # fmt: skip
        selection = stage.select(again, None if method != "flashvid" else chosen[0].part)
        assert image.kept.tolist() == selection.row(0).tolist()
        assert 0 < image.after < image.before
        entered = seen[0]["inputs_embeds"][image.prompt]
        for row in selection.apply_features(clip[None])[0]:
            assert bool(((entered - row).abs().amax(1) < 1e-9).any())


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    ("strategy", "family"),
    [
        ("evs", "qwen3_vl"),
        ("v_cast", "qwen2_5_vl"),
        *(
            pytest.param(*pair, marks=pytest.mark.full)
            for pair in (
                ("evs", "qwen2_5_vl"),
                ("v_cast", "qwen3_vl"),
                ("dycoke", "qwen3_vl"),
                ("dycoke", "qwen2_vl"),
                ("evs", "glm4v"),
            )  # fmt: skip
        ),
    ],
)
def test_the_contract_on_clips(check, strategy, family):
    """`vtc check` tries methods that compare frames on clips."""
    trial = subject_of(strategy, family)
    assert trial.kind == "video"
    assert "pixel_values" not in trial.inputs
    CHECKS[check](trial)


@pytest.mark.parametrize("strategy", CLIPS)
def test_images_keep_all_their_tokens(strategy):
    """A prompt with images alone: nothing is dropped, the logits are the model's, and the report says why."""
    model, inputs = model_of("qwen2_vl"), inputs_of("qwen2_vl", (1, 2))
    stock = forward(model, inputs).logits
    with patched(model, strategy, keep=0.3):
        logits = forward(model, inputs).logits
        report = vtc.report(model)
        generate(model, inputs, 2)
    assert [image.after for image in report.images] == [image.before for image in report.images]
    assert report.notes == [f"{strategy} compares the frames of clips: images keep all their tokens"]
    torch.testing.assert_close(logits[:, -1], stock[:, -1], atol=1e-12, rtol=0)


def test_images_beside_clips():
    """In one prompt with a clip, in either order, an image stays whole and the clip is pruned."""
    model, inputs = model_of("qwen2_vl"), clips_of("qwen2_vl", ("ci", "ic"))
    with patched(model, "evs", keep=0.5):
        forward(model, inputs)
        report = vtc.report(model)
    whole = [(image.prompt, image.image) for image in report.images if image.after == image.before]
    assert whole == [(0, 1), (1, 0)]
    assert len(report.notes) == 1


@pytest.mark.parametrize("strategy", CLIPS)
def test_refusals(strategy):
    """No clips in the family, frames that may not compete, and frames that the encoder has taken apart."""
    words = f"{strategy} compares the frames of clips, and vtc takes no clips of llava; possible: a method for images"
    refused(lambda: vtc.patch(model_of("llava"), strategy, keep=0.5), words, "qwen3_vl", kind=vtc.UnsupportedError)
    for scope in ("per_frame", "per_tile"):
        words = f"scope={scope}: {strategy} compares the frames of a clip, so they compete; possible: per_clip"
        refused(lambda scope=scope: resolve(strategy, scope=scope), words, kind=vtc.ConfigError)
    words = f"{strategy} needs whole frames, and tome leaves none of the encoder's; possible: a method that looks"
    refused(lambda: resolve(f"tome+{strategy}"), words, kind=vtc.ConfigError)


def test_tables_say_which_families_take_clips():
    rows = {row.split("|")[1].strip(" `"): row for row in support_table().splitlines()}
    heads = [cell.strip() for cell in rows["strategy"].split("|")[2:-1]]
    served = {row.split("|")[1].strip(" `"): row for row in table().splitlines()}
    for strategy in CLIPS:
        cells = dict(zip(heads, (cell.strip() for cell in rows[strategy].split("|")[2:-1]), strict=True))
        assert {name: cell == "clips" for name, cell in cells.items()} == {
            name: FAMILIES[name].video is not None for name in heads
        }
        assert set(cells.values()) == {"clips", "no"}
        assert "no: clips only" in served[strategy]
    assert CLIPS == ["dycoke", "evs", "v_cast"]
