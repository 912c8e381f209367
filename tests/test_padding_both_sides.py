"""Prompts padded left and answers padded right, as trainers lay them out: counted from the end, columns keep their
meaning."""

import pytest
import torch

import vtc
from tests.helpers import forward, inputs_of, model_of, patched, split

NEW = 6
ANSWERS = (3, NEW, 5)  # real tokens of each prompt's answer


def answered(inputs):
    """A batch with an answer behind each prompt, padded on the right."""
    rows = len(inputs["input_ids"])
    ids = torch.randint(3, 100, (rows, NEW), generator=torch.Generator().manual_seed(5))
    mask = (torch.arange(NEW) < torch.tensor(ANSWERS[:rows]).unsqueeze(1)).long()
    grown = dict(inputs, input_ids=torch.cat([inputs["input_ids"], ids * mask], 1))
    grown["attention_mask"] = torch.cat([inputs["attention_mask"], mask], 1)
    for name in {"mm_token_type_ids", "token_type_ids"} & {*inputs}:
        grown[name] = torch.cat([inputs[name], torch.zeros_like(ids).to(inputs[name])], 1)
    return grown


@pytest.mark.product
@pytest.mark.parametrize("positions", ["keep", "compact"])
@pytest.mark.parametrize("images", [(1, 2, 1), (1, 1, 1)], ids=["unequal", "equal"])
@pytest.mark.parametrize("strategy", ["hiprune", "visionzip", "fastv", "transprune", "visiondrop", "todre"])
@pytest.mark.parametrize("case", vtc.families())
def test_columns_count_from_the_end(case, strategy, images, positions):
    """Logits of a prompt's last token and of its answer are those of the prompt alone, where the caller expects them:
    with logits_to_keep, with a slice of all logits, and for the first prompt as a batch of one."""
    model, inputs = model_of(case), answered(inputs_of(case, images=images))
    singles = split(inputs, images)
    with patched(model, strategy, positions=positions):
        last = forward(model, inputs, logits_to_keep=NEW + 1).logits
        every = forward(model, inputs).logits[:, -NEW - 1 :]
        kept = [image.kept.tolist() for image in vtc.report(model).images]
        alone = []
        for b, single in enumerate(singles):
            n = ANSWERS[b] + 1
            expected = forward(model, single).logits[0, -n:]
            alone += [image.kept.tolist() for image in vtc.report(model).images]
            torch.testing.assert_close(last[b, :n], expected, rtol=0, atol=1e-9)
            if inputs["attention_mask"][:, 0].min() == 0 or len(set(images)) == 1:
                torch.testing.assert_close(every[b, :n], expected, rtol=0, atol=1e-9)
    assert kept == alone


@pytest.mark.parametrize("strategy", ["hiprune", "fastv"])
@pytest.mark.parametrize("case", vtc.families())
def test_a_batch_of_one(case, strategy):
    """One prompt with padding on both sides."""
    model, batch = model_of(case), answered(inputs_of(case, images=(1,)))
    pad = torch.zeros(1, 4, dtype=torch.long)
    tokens = [name for name in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids") if name in batch]
    both = {**batch, **{name: torch.cat([pad.to(batch[name].dtype), batch[name]], 1) for name in tokens}}
    (single,) = split(both, (1,))
    n = ANSWERS[0] + 1
    with patched(model, strategy):
        expected = forward(model, single).logits[0, -n:]
        found = forward(model, both).logits[0, -NEW - 1 :][:n]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
