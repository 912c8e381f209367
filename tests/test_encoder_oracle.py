"""Stages inside the encoder against an oracle: each image's encoder run by hand on the shortened sequence."""

import pytest
import torch

import vtc
from tests.helpers import IMAGES, WITH_ENCODER_SITE, forward, inputs_of, kept_of, model_of, patched, split, spy
from tests.helpers_encoder import Pairs, Strided, Uneven, truth_of
from vtc.core.budget import Budget

pytestmark = pytest.mark.product

cases = pytest.mark.parametrize("case", WITH_ENCODER_SITE)
STAGES = {
    "strided": Strided(),
    "late": Strided((1, 2)),
    "uneven": Uneven(),
    "pairs": Pairs(),
    "pairs behind": Pairs(within=False),
}
KEEP = 0.4


def targets(sizes):
    """What leaves the encoder of each crop."""
    return Budget(KEEP, "per_tile").quotas([sizes])[0]


@cases
@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_forward_equals_oracle(name, case, positions):
    """Every real column of a padded batch of prompts has the oracle's logits, and the same places are left."""
    model, inputs, stage = model_of(case), inputs_of(case), STAGES[name]
    with patched(model, stage, keep=KEEP, positions=positions), spy(model) as seen:
        logits = forward(model, inputs).logits
        report = vtc.report(model)
    mask = seen[0]["attention_mask"]
    real = torch.ones(logits.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    for b, single in enumerate(split(inputs, IMAGES)):
        expected, images = truth_of(model, single, stage, targets, positions)
        for kept, (places, _, _) in zip(kept_of(report, b), images, strict=True):
            assert kept.tolist() == places.tolist()
        torch.testing.assert_close(logits[b][real[b]], expected.logits, atol=1e-9, rtol=0)
