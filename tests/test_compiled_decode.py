"""generate() with a static cache compiles its decode steps by itself on accelerators, here by its switch for all
devices: a patched model does it in as many graphs as stock, with the tokens that it writes uncompiled."""

import gc
import logging
import weakref

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig, StaticCache

import vtc
from tests.helpers import CASES, HYBRIDS, INDUCTOR, build, family_of, inputs_of
from vtc.core.errors import VtcError
from vtc.engine.compiled import CompiledSteps
from vtc.patches import FAMILIES
from vtc.patching import find_family

LONG = 64
QUICK = ("hiprune", "fastv")
SHOWN = (*QUICK, "visionzip", "tome", "transprune")  # each kind of drop
COMPACT = {"keep": 0.4, "stages": [{"method": "divprune", "positions": "compact"}]}
TWICE = {"stages": [{"method": "hiprune", "keep": 0.6}, {"method": "pyramiddrop"}]}
# Whose experts are called one by one outside of the graph, in the stock model too.
BREAKING = [name for name in FAMILIES if "moe" in name]


@pytest.fixture(autouse=True)
def quiet():
    """pytest would keep every line of the compiler's trace."""
    trace = logging.getLogger("torch.__trace")
    before, trace.propagate = trace.propagate, False
    torch.compiler.reset()
    yield
    trace.propagate = before
    torch.compiler.reset()


def write(model, inputs: dict, compiled: bool, tokens: int = 8, fullgraph: bool = True, **options):
    """Ids and logits of greedy generation with a static cache, and what the compiler counted: graphs, and breaks."""
    counters.clear()
    if compiled:
        config = CompileConfig(backend="eager", fullgraph=fullgraph)
        config.mode, config._compile_all_devices = None, True
        options["compile_config"] = config
    with torch.no_grad():
        options = dict(max_new_tokens=tokens, do_sample=False, cache_implementation="static") | options
        out = model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
    counted = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    return out.sequences, torch.stack(out.logits), counted, out.past_key_values


def graphs_of_stock(model, inputs: dict, **options) -> tuple[int, int]:
    """What the compiler counts without a patch."""
    counted = write(model, inputs, True, **options)[2]
    torch.compiler.reset()
    return counted


def reported(model) -> dict:
    """The report without what differs from run to run."""
    return {name: value for name, value in vtc.report(model).to_dict().items() if name != "seconds"}


def same(case: str, found: tuple, expected: tuple) -> None:
    """Equal ids, and logits up to what a hybrid's float32 inside allows."""
    assert torch.equal(found[0], expected[0])
    limit = 1e-5 if case in HYBRIDS else 1e-9
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=limit)


@pytest.mark.product(cases=1)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("strategy", [pytest.param(s, marks=() if s in QUICK else pytest.mark.full) for s in SHOWN])
def test_ids_are_those_of_eager_decoding(case, strategy):
    """A batch with padding: equal ids, logits and report, in as many graphs as the stock model."""
    model, inputs, whole = build(case), inputs_of(case), family_of(case) not in BREAKING
    before = [type(module) for module in model.modules()]
    stock = graphs_of_stock(model, inputs, fullgraph=whole)
    with vtc.patched(model, strategy):
        expected = write(model, inputs, False)
        report = reported(model)
        found = write(model, inputs, True, fullgraph=whole)
        assert reported(model) == report
    same(case, found, expected)
    assert found[2] == stock
    assert [type(module) for module in model.modules()] == before


@pytest.mark.full
@pytest.mark.parametrize("strategy", [COMPACT, TWICE, "transprune"], ids=["compact", "twice", "transprune"])
@pytest.mark.parametrize("case", ["llava", "qwen2_5_vl"])
def test_a_long_answer_compiles_once(case, strategy):
    """No graph more as the answer grows, for another picture, or in a second generation."""
    model, inputs = build(case), inputs_of(case)
    with vtc.patched(model, strategy):
        expected = write(model, inputs, False, LONG)
        found = write(model, inputs, True, LONG)
        same(case, found, expected)
        assert found[2] == (1, 0)
        other = inputs_of(case, seed=5)
        same(case, write(model, other, True, LONG), write(model, other, False, LONG))
        assert write(model, other, True, LONG)[2] == (0, 0)


@pytest.mark.full
def test_layers_with_fewer_tokens_get_their_own_masks(monkeypatch):
    """Without what is handed to them their answers are others, in a cache whose layers are of one size."""
    model, inputs, size = build("llava"), inputs_of("llava"), {"max_cache_len": 300}
    with vtc.patched(model, "pyramiddrop"):
        expected = write(model, inputs, False, **size)
        same("llava", write(model, inputs, True, **size), expected)
        monkeypatch.setattr("vtc.engine.compiled._layer_inputs", lambda *args: None)
        assert (write(model, inputs, True, **size)[1] - expected[1]).abs().max() > 1e-6


@pytest.mark.full
def test_a_conversation():
    """A second turn on the same static cache, without a mask."""
    model, inputs = build("llava"), inputs_of("llava", images=(1,))
    found = []
    with vtc.patched(model, "fastv"):
        for compiled in (False, True):
            cache = StaticCache(config=model.config.get_text_config(), max_cache_len=200)
            given = dict(past_key_values=cache, cache_implementation=None)
            first = write(model, inputs, compiled, **given)[0]
            ids = torch.cat([first, first[:, -5:]], 1)
            found.append(write(model, {"input_ids": ids}, compiled, **given))
    same("llava", found[1], found[0])


@pytest.mark.full
def test_text_and_pictures_by_turns():
    """A prompt without pictures is compiled like the stock model's, and its report says so."""
    model, inputs = build("llava"), inputs_of("llava", images=(1,))
    text = {"input_ids": inputs["input_ids"][:, -6:]}
    stock = write(model, text, False)
    torch.compiler.reset()
    with vtc.patched(model, "hiprune"):
        expected = write(model, inputs, False)
        same("llava", write(model, inputs, True), expected)
        found = write(model, text, True)
        same("llava", found, stock)
        with pytest.raises(VtcError, match="no image"):
            vtc.report(model)
        same("llava", write(model, inputs, True), expected)
        assert vtc.report(model).average_share < 1
    same("llava", write(model, text, True), stock)
    assert "get_compiled_call" not in vars(model)


def test_a_twin_is_in_no_cycle():
    """It goes with its last name, and so does all that it shares with the model; with the mode, a new one is made."""
    model = build("llava")
    gc.disable()
    try:
        with vtc.patched(model, "fastv"):
            steps = CompiledSteps(find_family(model).model._vtc_patch, model)
            first = weakref.ref(steps._twin())
            assert steps._twin() is first()
            assert {id(p) for p in first().parameters()} == {id(p) for p in model.parameters()}
            model.train()
            assert steps._twin().training
            assert first() is None
            del steps
            weight = weakref.ref(model.lm_head.weight)
        del model
        assert weight() is None
    finally:
        gc.enable()


def test_what_changes_attention_decodes_uncompiled():
    """`var` rewrites rows of attention at every step."""
    model, inputs = build("llava"), inputs_of("llava")
    with vtc.patched(model, "var"):
        expected = write(model, inputs, False)
        found = write(model, inputs, True)
    same("llava", found, expected)
    assert found[2] == (0, 0)


@pytest.mark.full
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_of_others_run_in_compiled_steps(when):
    """Those that were there before the patch and those that came later."""
    model, inputs = build("llava"), inputs_of("llava", images=(1,))
    module, seen = model.model.language_model.layers[1].mlp, []

    def add():
        return module.register_forward_hook(lambda *args: args[2] * 1.5)

    handle = add() if when == "before" else None
    with vtc.patched(model, "fastv"):
        if when == "after":
            seen.append(write(model, inputs, True)[1])
            handle = add()
        same("llava", write(model, inputs, True), expected := write(model, inputs, False))
        assert all((logits - expected[1]).abs().max() > 1e-6 for logits in seen)
    handle.remove()


@pytest.mark.full
@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_language_model_that_is_compiled_itself(how):
    """With a static cache, and with steps that generate() compiles around it; the model is left as it was."""
    model, inputs = build("llava"), inputs_of("llava", images=(1,))
    with vtc.patched(model, "fastv"):
        expected = write(model, inputs, False)
        stock = model.model.language_model
        if how == "wrapped":
            model.model.language_model = torch.compile(stock, backend="eager")
        else:
            stock.compile(backend="eager")
        same("llava", write(model, inputs, False), expected)
        same("llava", write(model, inputs, True, fullgraph=False), expected)
        model.model.language_model = stock
    assert "layers" in stock._modules


@pytest.mark.full
def test_a_forward_replaced_on_a_module():
    """As accelerate does it: the graph breaks at the hooks, and the answer is the same."""
    model, inputs = build("llava"), inputs_of("llava", images=(1,))
    with vtc.patched(model, "fastv"):
        expected = write(model, inputs, False)
        same("llava", write(model, inputs, True), expected)
        layer = model.model.language_model.layers[2]
        own = layer.forward
        layer.forward = lambda *args, **kwargs: own(*args, **kwargs)
        found = write(model, inputs, True, fullgraph=False)
        del layer.forward
    same("llava", found, expected)
    assert found[2][1] > 0


@INDUCTOR
@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("strategy", QUICK)
def test_machine_code(strategy):
    """Compiled by Inductor, in float32."""
    model, inputs = build("llava", torch.float32), inputs_of("llava", dtype=torch.float32)
    config = CompileConfig(fullgraph=True)
    config.mode, config._compile_all_devices = None, True
    with vtc.patched(model, strategy):
        expected = write(model, inputs, False)
        found = write(model, inputs, False, compile_config=config)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-4)
    assert found[2] == (1, 0)
