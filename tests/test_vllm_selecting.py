"""The plugin's selection without vLLM: the same tokens as `vtc.patch`, and the same on every tensor-parallel rank."""

from contextlib import ExitStack

import pytest
import torch

import vtc
from tests.helpers import ADAPTIVE, READERS, STRATEGIES, inputs_of, model_of
from vtc.core.errors import PatchError, UnsupportedError
from vtc.core.hooks import Patchwork
from vtc.core.signals import EncoderFeatures, Unprojected
from vtc.patching import find_family
from vtc.vllm.capability import table
from vtc.vllm.positions import attach, detach
from vtc.vllm.selecting import Selector, kept_features, portions
from vtc.vllm.settings import ServedStrategy, overrides, packed
from vtc.vllm.skeleton import served

pytestmark = pytest.mark.product

SERVED = [line.split("`")[1] for line in table().splitlines()[2:] if "no: " not in line]
ALONE = (1, 1, 1, 1)  # the draw of `random` depends on an image's place in its prompt when it is patched


def settings_of(case: str, strategy: str, keep, **knobs) -> ServedStrategy:
    """The settings as a served model would read them from its overridden config."""
    config = type(model_of(case).config).from_dict(model_of(case).config.to_dict())
    config.update(overrides(config, strategy, keep, **knobs))
    return ServedStrategy.of(config)


def encoder_arguments(case: str, inputs: dict) -> dict:
    """The arguments of `get_image_features` among a batch's inputs."""
    return {k: v for k, v in inputs.items() if k in ("pixel_values", "image_sizes", "image_grid_thw")}


def run(case: str, selector: Selector, inputs: dict, keeps: list, heads=slice(None)):
    """Runs the tiny model's encoder under the selector's eyes, with a part of its heads; returns what is kept."""
    model, arguments = model_of(case), encoder_arguments(case, inputs)
    family, work = find_family(model), Patchwork()
    with ExitStack() as stack:
        stack.callback(work.undo)

        def record(layer):
            return lambda q, k, scale, bounds, value: selector.record(layer, q[:, heads], k[:, heads], scale, bounds)

        for layer in selector.layers:
            family.observe(work, layer, record(layer))
        if any(isinstance(signal, (Unprojected, EncoderFeatures)) for signal in selector.needs):
            family.observe_unprojected(work, selector.record_unprojected)
        with torch.no_grad(), selector.recording(arguments, family.image_layouts(arguments)) as seen:
            embeds = list(model.model.get_image_features(**arguments).pooler_output)
    return selector.rows(seen, embeds, [packed(keep) for keep in keeps]), embeds


def selector_of(case: str, settings: ServedStrategy, reduce_ranks=lambda x: x) -> Selector:
    """A selector with the tiny model's own projector."""
    return Selector(settings, reduce_ranks, find_family(model_of(case)).project)


@pytest.mark.parametrize("keep", [0.5, 0.25, 7])
@pytest.mark.parametrize("strategy", SERVED)
@pytest.mark.parametrize("case", served())
def test_the_same_tokens_as_patch(case, strategy, keep):
    """Every served strategy on every family: places, order and merged features of `vtc.patch`, as many as counted."""
    settings, inputs = settings_of(case, strategy, keep), inputs_of(case, ALONE)
    kept, embeds = run(case, selector_of(case, settings), inputs, [keep] * 4)
    layouts = settings.family.image_layouts(encoder_arguments(case, inputs))
    knobs = settings.stage.stage.fixed_count
    seen = []
    with vtc.patched(model_of(case), strategy, keep, **knobs) as model, torch.no_grad():
        watched = model.model.language_model.layers[0]
        handle = watched.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        model(**inputs)
        handle.remove()
        images = vtc.report(model).images
    for i, (mine, image, layout) in enumerate(zip(kept, images, layouts, strict=True)):
        assert mine.offsets.tolist() == image.steps[0].kept.tolist()
        assert len(mine.offsets) == settings.count(layout, keep)
        features = kept_features(mine, embeds[i], settings.count(layout, keep))
        row = seen[0][image.prompt]
        assert any(torch.equal(row[j : j + len(features)], features) for j in range(len(row) - len(features) + 1))


def test_served_are_all_that_fit():
    """The table's list is every shipped strategy that acts at the projector, whose count is known beforehand, and that
    does not read the question."""
    assert set(SERVED) == set(STRATEGIES) - {*READERS, *ADAPTIVE}


@pytest.mark.parametrize("case", served())
def test_mixed_keeps_are_those_of_each_alone(case):
    """Images with keeps of their own in one run of the encoder, tokens beside fractions beside all."""
    settings, inputs, keeps = settings_of(case, "hiprune", 0.25), inputs_of(case, (1, 2, 1)), [0.5, 1.0, 9, 0.25]
    mixed, embeds = run(case, selector_of(case, settings), inputs, keeps)
    for i, keep in enumerate(keeps):
        alone, _ = run(case, selector_of(case, settings), inputs, [keep] * 4)
        assert mixed[i].offsets.tolist() == alone[i].offsets.tolist()
    assert mixed[1].offsets.tolist() == list(range(len(embeds[1])))


@pytest.mark.parametrize("strategy", ["hiprune", "vtc_cls", "visionzip", "vispruner"])
@pytest.mark.parametrize("case", served())
def test_two_ranks(case, strategy):
    """Each of two ranks sees half of the heads: with scores reduced both keep what one rank with all heads keeps,
    without it they differ (which vLLM would not notice)."""
    settings, inputs, keeps = settings_of(case, strategy, 0.25), inputs_of(case, ALONE), [0.25] * 4
    halves = slice(0, 1), slice(1, 2)
    whole, _ = run(case, selector_of(case, settings), inputs, keeps)
    local = [[], []]
    apart = [
        run(case, selector_of(case, settings, lambda x, r=r: (local[r].append(x), x)[1]), inputs, keeps, halves[r])[0]
        for r in (0, 1)
    ]
    both = iter([(a + b) / 2 for a, b in zip(*local, strict=True)])
    reduced, _ = run(case, selector_of(case, settings, lambda x: next(both)), inputs, keeps, halves[0])
    assert [k.offsets.tolist() for k in reduced] == [k.offsets.tolist() for k in whole]
    assert [k.offsets.tolist() for k in apart[0]] != [k.offsets.tolist() for k in apart[1]]


def test_too_many_rows_are_an_error():
    """A count that does not fit the placeholders stops the request instead of giving it other tokens."""
    settings, inputs = settings_of("llava", "uniform", 0.25), inputs_of("llava", (1,))
    (kept,), (embeds,) = run("llava", selector_of("llava", settings), inputs, [0.25])
    with pytest.raises(PatchError, match="16 tokens were kept of an image with 15 placeholders"):
        kept_features(kept, embeds, 15)


def test_portions():
    """As many images at once as the unpruned budget lets through; one that is larger goes alone."""
    assert portions([576] * 8, 2048) == [(0, 3), (3, 6), (6, 8)]
    assert portions([100, 3000, 100, 100], 2048) == [(0, 1), (1, 2), (2, 4)]
    assert portions([3000], 2048) == [(0, 1)]
    assert portions([], 2048) == []


def test_rows_and_columns_survive_bfloat16():
    """Places up to 65535 travel exactly in 16-bit floats, and features come back untouched."""
    offsets = torch.tensor([0, 255, 256, 257, 70_000, 999 * 1000 + 998])
    features = torch.randn(6, 3, dtype=torch.bfloat16)
    rows = attach(features, offsets, 1000)
    assert rows.dtype == torch.bfloat16
    back, places = detach(rows)
    assert torch.equal(back, features)
    assert places.tolist() == [[o // 1000, o % 1000] for o in offsets.tolist()]


def test_text_guided_is_refused_before_anything_runs():
    """The question is unknown when an image is encoded and stored."""
    with pytest.raises(UnsupportedError, match="'mmtok' reads the question"):
        settings_of("llava", "mmtok", 0.25)
