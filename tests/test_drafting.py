"""vtc.draft: a second model object on the same weights, whose proposals the full model checks."""

import pytest
import torch

import vtc
from tests.helpers import CASES, build, forward, generate, inputs_of, model_of, refused
from vtc.core.errors import UnsupportedError
from vtc.drafting import takes_drafts

pytestmark = pytest.mark.skipif(not takes_drafts(), reason="this transformers begins assisted generation otherwise")
STRATEGIES = ("hiprune", "fastv", "visionzip", "hiprune+transprune")
STEPS = 16


def answer(draft, inputs: dict):
    """The written ids [1, T]."""
    found = draft.generate(**inputs, max_new_tokens=STEPS, do_sample=False, eos_token_id=2)
    return found[:, inputs["input_ids"].shape[1] :]


@pytest.mark.product
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_answers_are_those_of_the_full_model(case, strategy):
    """Ids of greedy generation without the draft; and the model is as it was."""
    model, inputs = model_of(case), inputs_of(case, images=(2,))
    before = forward(model, inputs).logits
    expected = generate(model, inputs, STEPS, eos_token_id=2)
    try:
        draft = vtc.draft(model, strategy, keep=0.4)
        found = answer(draft, inputs)
    except ValueError as error:  # sliding windows in transformers 5.0.0, linear attention
        if "Cannot `crop`" not in str(error) and "stateful" not in str(error):
            raise
        pytest.skip(f"transformers itself cannot: {error}")
    except UnsupportedError as error:
        pytest.skip(f"vtc.patch itself cannot: {error}")
    assert torch.equal(found, expected.tokens)
    assert vtc.report(draft.assistant).average_share < 0.9
    refused(lambda: vtc.report(model), "not patched")
    assert torch.equal(forward(model, inputs).logits, before)


def test_a_model_that_drops_inside_its_encoder_is_assisted():
    """transformers copies the encoder's outputs for the assistant, with what is noted on them."""
    model, inputs = build("llava"), inputs_of("llava", images=(1,))
    with vtc.patched(model, "tome"):
        expected = generate(model, inputs, STEPS, eos_token_id=2)
        draft = vtc.draft(model, "divprune", keep=0.2)
        assert torch.equal(answer(draft, inputs), expected.tokens)


@pytest.fixture
def pair():
    model = build("llava")
    return model, vtc.draft(model, "hiprune", keep=0.1)


def test_no_weight_is_copied(pair):
    """Parameters are shared, module objects are not, and a change of a weight shows in both."""
    model, draft = pair
    draft = draft.assistant
    assert {id(p) for p in draft.parameters()} == {id(p) for p in model.parameters()}
    assert not {*model.modules()} & {*draft.modules()}
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert "_vtc_patch" not in vars(model)
    inputs = inputs_of("llava")
    first = forward(draft, inputs).logits
    with torch.no_grad():
        model.lm_head.weight *= 2
    torch.testing.assert_close(forward(draft, inputs).logits, 2 * first)


def test_what_a_draft_proposes_is_checked(pair):
    """The model's own forwards: fewer than tokens where the draft is right, and the same answer where it is wrong."""
    model, _ = pair
    inputs, calls = inputs_of("llava", images=(1,)), []
    expected = generate(model, inputs, STEPS, eos_token_id=2)
    handle = model.register_forward_pre_hook(lambda *args: calls.append(1))
    right = vtc.draft(model, "hiprune", keep=0.99)
    wrong = vtc.draft(model, "hiprune", keep=1)
    with torch.no_grad():
        wrong.assistant.lm_head = torch.nn.Linear(64, 128).double()
    counts = []
    for draft in (right, wrong):
        draft.assistant._forward_pre_hooks.pop(handle.id)  # a draft keeps the hooks of the model
        calls.clear()
        assert torch.equal(answer(draft, inputs), expected.tokens)
        counts.append(len(calls))
    handle.remove()
    assert counts[0] < counts[1]
    assert counts[0] < STEPS


def test_a_patched_model_is_drafted_with_fewer_tokens():
    """The draft has no hook of the model's own patch."""
    model, inputs = build("llava"), inputs_of("llava", images=(1,))
    vtc.patch(model, "hiprune", keep=0.5)
    expected = generate(model, inputs, STEPS, eos_token_id=2)
    share = vtc.report(model).average_share
    draft = vtc.draft(model, "divprune", keep=0.1)
    found = answer(draft, inputs)
    assert torch.equal(found, expected.tokens)
    assert vtc.report(model).average_share == share > 4 * vtc.report(draft.assistant).average_share
    assert model.generation_config is not draft.assistant.generation_config


def test_refusals(pair):
    """What vtc.patch refuses, and a model that a second object would call again."""
    model, draft = pair
    refused(lambda: vtc.draft(model, "hiprun"), "hiprun", "possible")
    refused(lambda: draft.generate(**inputs_of("llava")), "3 prompts", "possible")
    refused(lambda: draft.generate(), "no input_ids", "possible")
    layer = model.model.language_model.layers[0]
    own = layer.forward
    layer.forward = lambda *args, **kwargs: own(*args, **kwargs)
    refused(lambda: vtc.draft(model), "forward of a module", "possible", kind=UnsupportedError)
