"""What a patched decode step does on top of the stock one: nothing that grows with the prompt."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vtc
from tests.helpers import forward, inputs_of, model_of, proceed
from tests.helpers_device import caller, ours
from vtc.engine.masks import SPARE, Grown

pytestmark = pytest.mark.product


class Written(TorchDispatchMode):
    """Elements that operations asked for by files of vtc write anew."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not func.is_view and ours(caller()):
            self.elements += out.numel()
        return out


def longer(inputs: dict, times: int) -> dict:
    """The inputs with their text after the image repeated."""
    tail = 4
    grown = dict(inputs)
    for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if key in inputs:
            grown[key] = torch.cat([inputs[key], inputs[key][:, -tail:].repeat(1, times)], 1)
    return grown


@pytest.mark.parametrize("case", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("strategy", ["hiprune", "fastv", "hiprune+fastv"])
@pytest.mark.parametrize("images", [(1,), (1, 2)], ids=["one", "padded"])
def test_steps_do_not_grow_with_the_prompt(strategy, case, images):
    """The same elements are written in a step after a short and after a long prompt."""
    model, found = model_of(case), []
    with vtc.patched(model, strategy):
        for times in (0, 40):
            inputs = longer(inputs_of(case, images), times)
            out, mask = forward(model, inputs, use_cache=True), inputs["attention_mask"]
            token = torch.full((len(images), 1), 5)
            for _ in range(2):  # the first step makes the mask's buffer
                _, mask = proceed(model, out.past_key_values, mask, token)
            with Written() as written:
                proceed(model, out.past_key_values, mask, token)
            found.append(written.elements)
    assert found[0] == found[1]


def test_a_growing_mask_is_the_concatenation():
    """Over single steps, several tokens at once, beyond its reserve, after a jump, and for other types."""
    mask, first = Grown(), torch.tensor([[True, False, True], [False, True, True]])
    after = torch.randint(0, 2, (2, 3 * SPARE))
    for width, tokens in [(1, 1), (2, 1), (5, 3), (SPARE + 9, SPARE + 4), (SPARE + 10, 1), (3, 1), (4, 1)]:
        found = mask.upto(3, first, after[:, :width], tokens)
        assert torch.equal(found, torch.cat([first.long(), after[:, :width]], 1))
    found = mask.upto(3, first, after[:, :5].bool(), 1)
    assert found.dtype == torch.bool
    assert torch.equal(found, torch.cat([first, after[:, :5].bool()], 1))


def test_what_inference_mode_made_is_made_again():
    """A conversation may leave inference mode between two steps."""
    mask = Grown()
    with torch.inference_mode():
        mask.upto(3, None, torch.ones(1, 1, dtype=torch.long), 1)
    assert mask.upto(3, None, torch.ones(1, 2, dtype=torch.long), 1).tolist() == [[1] * 5]
