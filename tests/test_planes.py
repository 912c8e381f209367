"""DeepStack: what a text model adds to visual tokens after its first layers follows them through every drop."""

import pytest
import torch

import vtc
from tests.helpers import forward, generate, inputs_of, model_of, patched, split
from tests.helpers_decoder import resolved, truths
from vtc.engine.planes import Planes
from vtc.patches import FAMILIES

CASES = [name for name in vtc.families() if FAMILIES[name].planes_method]
families = pytest.mark.parametrize("case", CASES)
STEPS = 6
EARLY = {
    "fastv": {"K": 1}, "fastv later": {"K": 2}, "pyramiddrop": {"layer_list": [1, 2, 3]},
    "apet": {"stages": [{"method": "apet", "layer": 1}]}, "sparsevlm": {"layers": [1, 2, 3]},
}  # fmt: skip


def early(name):
    """A strategy and knobs with which it drops before a layer that still adds a plane."""
    knobs = EARLY[name]
    return (knobs, {}) if "stages" in knobs else (name.partition(" ")[0], knobs)


@families
@pytest.mark.parametrize("name", EARLY)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_drops_before_the_last_plane_equal_the_oracle(case, name, cache):
    """Dropped tokens take the rest of their planes with them; where tokens merge, their rows do by the same weights."""
    strategy, knobs = early(name)
    model, inputs, config = model_of(case), inputs_of(case), resolved(strategy, case, **knobs)
    with patched(model, strategy, **knobs):
        out = generate(model, inputs, STEPS, **({} if cache == "dynamic" else {"cache_implementation": "static"}))
        report = vtc.report(model)
    assert min(step.layer for step in report.images[0].steps) <= 2
    for b, answer in enumerate(truths(model, split(inputs), report, config, None, STEPS, out.tokens)):
        torch.testing.assert_close(out.logits[:, b], answer.logits[-STEPS:], atol=1e-9, rtol=0)
        assert out.tokens[b].tolist() == answer.tokens


def damaged(monkeypatch, how):
    """The planes of the next calls with one row changed."""
    original = Planes.__init__

    def init(self, planes, is_visual):
        planes = [plane.clone() for plane in planes]
        how(planes)
        original(self, planes, is_visual)

    monkeypatch.setattr(Planes, "__init__", init)


def dropped(planes):
    """One row of the first plane is gone."""
    planes[0][3] = 0


def shifted(planes):
    """The rows of the last plane stand one token too far."""
    planes[-1][:] = planes[-1].roll(1, 0)


@families
@pytest.mark.parametrize("how", [dropped, shifted])
def test_a_wrong_row_is_seen(case, how, monkeypatch):
    """One row of a plane missing, or all rows off by one: the hidden states of that token are off by far more than the
    tolerance of the oracles."""
    model, inputs = model_of(case), inputs_of(case, images=(1,))
    stock = forward(model, inputs, output_hidden_states=True)
    with patched(model, "uniform", keep=0.9999):
        right = forward(model, inputs, output_hidden_states=True)
        torch.testing.assert_close(right.hidden_states[-1], stock.hidden_states[-1], atol=1e-9, rtol=0)
        damaged(monkeypatch, how)
        wrong = forward(model, inputs, output_hidden_states=True)
    assert float((wrong.hidden_states[-1] - right.hidden_states[-1]).abs().max()) > 1


@families
def test_merging_merges_the_planes(case, monkeypatch):
    """At the projector: with every plane replaced by the features themselves, what is added after a layer is what was
    merged."""
    model, inputs, seen = model_of(case), inputs_of(case, images=(1,)), {}
    original, add = Planes.__init__, Planes.add

    def init(self, planes, is_visual):
        features = seen["features"]
        original(self, [features.clone() for _ in planes], is_visual)

    def adding(self, hidden, prompt):
        out = add(self, hidden, prompt)
        seen.setdefault("added", []).append(out - hidden)
        return out

    monkeypatch.setattr(Planes, "__init__", init)
    monkeypatch.setattr(Planes, "add", adding)

    def entering(module, args, kwargs):
        seen["entered"] = kwargs["inputs_embeds"]

    with torch.no_grad():
        features = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        seen["features"] = torch.cat(list(features))
    with patched(model, "pool", keep=0.3):
        handle = model.model.language_model.register_forward_pre_hook(entering, with_kwargs=True)
        forward(model, inputs)
        handle.remove()
        (image,) = vtc.report(model).images
    first = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0])
    own = slice(first, first + image.after)
    assert len(seen["added"]) == 2
    for added in seen["added"]:
        torch.testing.assert_close(added[0, own], seen["entered"][0, own], atol=1e-9, rtol=0)
        assert not bool(added[0, :first].any())
        assert not bool(added[0, own.stop :].any())
    untouched = seen["features"][image.kept]
    assert float((untouched - seen["entered"][0, own]).abs().max()) > 1e-3
