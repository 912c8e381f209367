"""What a call leaves behind when it is over: what the stock model leaves, with the garbage collector off."""

import contextlib
import functools
import gc

import pytest
import torch

import vtc
from tests.helpers import CLIPS, build, family_of, forward, inputs_of, model_of, patched, split
from tests.helpers_video import clips_of
from vtc.patches import FAMILIES
from vtc.patching import find_family

cases = pytest.mark.parametrize("case", vtc.families())


@contextlib.contextmanager
def no_collector():
    """Only reference counts free anything, and `alive` sees only what is made from here on."""
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()


def alive(numbers: bool = False) -> int:
    """Bytes of the tensors that there are, or of those in floating point."""
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    return sum(x.numel() * x.element_size() for x in tensors if x.is_floating_point() or not numbers)


def left(model, inputs) -> int:
    """Bytes of tensors that generate(), and a forward without a cache, leave after a first time."""

    def run():
        write(model, inputs)
        forward(model, inputs, use_cache=False)

    with no_collector():
        run()
        before = alive()
        run()
        return alive() - before


def write(model, inputs):
    """Two tokens."""
    model.generate(**inputs, max_new_tokens=2, do_sample=False)


@functools.cache
def left_by_stock(case: str, clips: bool = False) -> int:
    """The unpatched model's."""
    return left(model_of(case), clips_of(case) if clips else inputs_of(case))


@pytest.mark.product
@pytest.mark.parametrize("strategy", vtc.strategies())
@cases
def test_nothing_stays_after_a_call(strategy, case):
    """Several images and prompts; clips for methods that compare frames."""
    clips = strategy in CLIPS
    if clips and FAMILIES[family_of(case)].video is None:
        pytest.skip(f"{case} takes no clips; refused in test_video_models.py")
    model, expected = model_of(case), left_by_stock(case, clips)
    with patched(model, strategy):
        assert left(model, clips_of(case) if clips else inputs_of(case)) == expected


@cases
def test_only_indices_stay(case):
    """After a patched call there are the indices of its report, and no features, scores or weights."""
    model, inputs = model_of(case), inputs_of(case)
    write(model, inputs)
    with patched(model, "visionzip+transprune"), no_collector():
        write(model, inputs)
        assert vtc.report(model).images
        assert alive(numbers=True) == 0


def interrupt(*_):
    """Ctrl-C."""
    raise KeyboardInterrupt


@pytest.mark.product
@pytest.mark.parametrize("strategy", ["visionzip", "transprune", "mmtok"])
@pytest.mark.parametrize("where", ["language_model.layers.3.mlp", "language_model", "vision"])
@cases
def test_an_interrupted_call_leaves_what_a_failed_one_does(strategy, where, case):
    """After Ctrl-C in the encoder or the language model: the report of the call before, and no tensor but stock's."""
    model, inputs = build(case), inputs_of(case)
    family = find_family(model)
    text = where.replace("language_model", family.language_path)
    module = model.get_submodule(family.tower_path if where == "vision" else text)

    def grown() -> int:
        with no_collector():
            write(model, split(inputs)[0])
            before, handle = alive(), module.register_forward_hook(interrupt)
            for call in (lambda: write(model, inputs), lambda: forward(model, inputs, labels=inputs["input_ids"])):
                with pytest.raises(KeyboardInterrupt):
                    call()
            handle.remove()
            return alive() - before

    stock = grown()
    with patched(model, strategy):
        assert grown() == stock
        assert len(vtc.report(model).images) == 1
