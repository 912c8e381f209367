"""Patches in a process: several models, several threads, nesting, exceptions, and models that others have changed."""

import copy
import functools
import threading

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

import vtc
from tests.helpers import build, forward, generate, inputs_of, model_of, positions_of, state
from vtc.patching import find_family

pytestmark = pytest.mark.product

families = pytest.mark.parametrize("case", vtc.families())


@families
def test_two_models_patched_differently(case):
    """Two models in one process keep their own strategies, budgets and reports."""
    one, two, inputs = model_of(case), build(case), inputs_of(case)
    with vtc.patched(one, "hiprune", keep=0.3):
        alone = generate(one, inputs, 4)
    with vtc.patched(one, "hiprune", keep=0.3), vtc.patched(two, "uniform", keep=9, scope="per_image"):
        forward(two, inputs)
        assert torch.equal(generate(one, inputs, 4).logits, alone.logits)
        assert [i.after for i in vtc.report(two).images] == [9] * 4
        assert vtc.report(one).strategy["stages"][0]["method"] == "hiprune"
        assert vtc.report(two).strategy["stages"][0]["method"] == "uniform"


def in_threads(works):
    """Runs the functions at once, five times each; their results in order."""
    results, barrier = [[] for _ in works], threading.Barrier(len(works))

    def run(i, work):
        barrier.wait()
        for _ in range(5):
            results[i].append(work())

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def work(model, inputs):
    """A generation and its report."""

    def run():
        written = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        return written, [i.kept for i in vtc.report(model).images]

    return run


def same(found, expected):
    """Whether tokens and kept places are equal."""
    kept = zip(found[1], expected[1], strict=True)
    return torch.equal(found[0], expected[0]) and all(torch.equal(a, b) for a, b in kept)


def check_threads(works):
    """Each piece of work gives in its own thread, every time, what it gives alone."""
    serial = [run() for run in works]
    for mine, expected in zip(in_threads(works), serial, strict=True):
        assert len(mine) == 5
        assert all(same(each, expected) for each in mine)


def reentrant(model, inputs, other):
    """Whether the stock model's forward is right when another forward runs in the middle of it."""
    expected = forward(model, inputs).logits
    layer = [m for m in model.model.vision_tower.modules() if type(m).__name__.endswith("EncoderLayer")][-1]
    handles = []

    def again(module, args, output):
        handles.pop().remove()
        forward(model, other)

    handles.append(layer.register_forward_hook(again))
    return torch.equal(forward(model, inputs).logits, expected)


@pytest.mark.parametrize("case", ["llava", "llava_next"])
def test_two_threads_on_one_model(case):
    """Each thread writes what it writes alone and has its own report. (Stock Qwen models keep `rope_deltas` of the
    last call on the model, so two threads cannot share one.)"""
    model = build(case)
    batches = [inputs_of(case, images=(1, 2), seed=1), inputs_of(case, images=(2, 0, 1), seed=2)]
    if not reentrant(model, *batches):
        pytest.skip("this transformers replaces layers' forwards during a call: the stock model mixes calls up")
    with vtc.patched(model, "hiprune", keep=0.3):
        check_threads([work(model, inputs) for inputs in batches])


@families
def test_two_threads_on_two_models(case):
    """Two models with different strategies, each in its thread."""
    models, inputs = [model_of(case), build(case)], inputs_of(case)
    with vtc.patched(models[0], "vtc_cls", keep=0.3), vtc.patched(models[1], "uniform", keep=9):
        check_threads([work(model, inputs) for model in models])


@families
def test_nested_with_blocks(case):
    """The inner strategy holds inside, the outer one again after it, nothing after that."""
    model, inputs = model_of(case), inputs_of(case)
    before, stock = state(model), forward(model, inputs).logits
    with vtc.patched(model, "uniform", keep=0.3):
        outer = forward(model, inputs).logits
        with vtc.patched(model, "random", keep=0.6):
            assert forward(model, inputs).logits.shape[1] > outer.shape[1]
        assert torch.equal(forward(model, inputs).logits, outer)
        with pytest.raises(vtc.VtcError), vtc.patched(model, "uniform", keep=0.3, nonsense=1):
            pass
        assert torch.equal(forward(model, inputs).logits, outer)
    assert state(model) == before
    assert torch.equal(forward(model, inputs).logits, stock)


def test_exception_in_the_with_block():
    """Whatever is raised inside goes through, and the model is restored."""
    model, inputs = model_of("llava"), inputs_of("llava")
    before = state(model)

    def fail():
        with vtc.patched(model, "uniform", keep=0.3):
            forward(model, inputs)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert state(model) == before


def places_to_fail(model):
    """Modules in the encoder, the projector, the decoder and after it."""
    modules = find_family(model).tower.modules()
    layers = [m for m in modules if type(m).__name__.endswith(("Attention", "VisionBlock", "EncoderLayer"))]
    return {"encoder": layers[-1], "decoder": find_family(model).language_model.layers[1], "head": model.lm_head}


@families
@pytest.mark.parametrize("place", ["encoder", "decoder", "head"])
def test_exception_in_the_forward(case, place):
    """A forward that fails half way leaves no state: the next call, with images or without, is right."""
    model, inputs, text = build(case), inputs_of(case), inputs_of(case, images=(0, 0))
    stock = forward(model, text).logits
    with vtc.patched(model, "hiprune", keep=0.3):
        expected = generate(model, inputs, 3)

        def fail(module, args):
            raise ZeroDivisionError(place)

        handle = places_to_fail(model)[place].register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            forward(model, inputs, labels=inputs["input_ids"])
        handle.remove()
        assert torch.equal(forward(model, text).logits, stock)
        again = generate(model, inputs, 3)
    assert torch.equal(again.logits, expected.logits)


class Untouched(ModelHook):
    """An accelerate hook that changes nothing."""


@families
@pytest.mark.parametrize("when", ["before", "after"])
def test_accelerate_hooks(case, when):
    """Models whose forwards accelerate has replaced, before or after patching, do the same."""
    model, inputs = build(case), inputs_of(case)
    labels = inputs["input_ids"]
    with vtc.patched(model, "hiprune", keep=0.3):
        expected, loss = generate(model, inputs, 3), forward(model, inputs, labels=labels).loss
    language = find_family(model).language_model
    targets = [model, model.model, language, *language.layers]
    if when == "before":
        for module in targets:
            add_hook_to_module(module, Untouched())
    with vtc.patched(model, "hiprune", keep=0.3):
        if when == "after":
            for module in targets:
                add_hook_to_module(module, Untouched())
        assert torch.equal(generate(model, inputs, 3).logits, expected.logits)
        assert torch.equal(forward(model, inputs, labels=labels).loss, loss)
    for module in targets:
        remove_hook_from_module(module)


@families
@pytest.mark.parametrize("named", [True, False], ids=["wraps", "bare"])
def test_replaced_forward(case, named):
    """A user's wrapper around the forwards, with or without functools.wraps, keyword arguments or not."""
    model, inputs = build(case), inputs_of(case)
    labels = inputs["input_ids"]
    with vtc.patched(model, "hiprune", keep=0.3):
        expected = forward(model, inputs, labels=labels)
    calls = []
    for module in (model, model.model):
        original = module.forward

        def forwarded(*args, original=original, **options):
            calls.append(len(args))
            return original(*args, **options)

        module.forward = functools.wraps(original)(forwarded) if named else forwarded
    rest = {k: v for k, v in inputs.items() if k != "input_ids"}
    with vtc.patched(model, "hiprune", keep=0.3):
        found = forward(model, inputs, labels=labels)
        with torch.no_grad():
            positional = model(inputs["input_ids"], **rest, **positions_of(inputs), labels=labels)
    assert calls
    assert torch.equal(found.loss, expected.loss)
    torch.testing.assert_close(positional.logits[:, -1], expected.logits[:, -1], atol=1e-9, rtol=0)
    torch.testing.assert_close(positional.loss, expected.loss, atol=1e-6, rtol=0)


@families
def test_deepcopy_after_removal(case):
    """A copy of an unpatched model is a stock model that can be patched."""
    model, inputs = build(case), inputs_of(case)
    with vtc.patched(model, "hiprune", keep=0.3):
        expected = forward(model, inputs).logits
    other = copy.deepcopy(model)
    assert "_vtc_patch" not in vars(other)
    with vtc.patched(other, "hiprune", keep=0.3):
        assert torch.equal(forward(other, inputs).logits, expected)
        assert forward(model, inputs).logits.shape[1] == inputs["input_ids"].shape[1]


@families
def test_attention_backend_changed_while_patched(case):
    """set_attn_implementation on a patched model is followed: the same as patching afterwards."""
    model, inputs = build(case, torch.float32), inputs_of(case, dtype=torch.float32)
    model.set_attn_implementation("eager")
    with vtc.patched(model, "hiprune", keep=0.3):
        expected = forward(model, inputs, output_attentions=True)
    model.set_attn_implementation("sdpa")
    with vtc.patched(model, "hiprune", keep=0.3):
        model.set_attn_implementation("eager")
        found = forward(model, inputs, output_attentions=True)
        assert torch.equal(found.logits, expected.logits)
        assert found.attentions[0].shape[-1] == found.logits.shape[1]
    assert model.config._attn_implementation == "eager"
    assert model.config.get_text_config()._attn_implementation == "eager"


def test_moving_and_casting_while_patched():
    """model.to(dtype) on a patched model: the hooks stay, removal leaves nothing."""
    model = build("llava")
    before = set(state(model))
    with vtc.patched(model, "hiprune", keep=0.3):
        model.to(torch.float32)
        out = forward(model, inputs_of("llava", dtype=torch.float32))
        assert out.logits.dtype == torch.float32
        assert vtc.report(model).kv_bytes[0] > 0
    assert set(state(model)) == before
