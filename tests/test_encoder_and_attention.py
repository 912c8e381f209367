"""A stage inside the encoder before one that changes attention (var): both oracles one after the other, by hand."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vtc
from tests.helpers import IMAGE_TOKEN, IMAGES, forward, generate, inputs_of, model_of, patched, refused, split
from tests.helpers_attention import LOW, STEPS, expected
from tests.helpers_decoder import drops_of, resolved
from tests.helpers_encoder import encoded, planes_left
from tests.helpers_oracle import planes_of, unpruned, visual_places
from vtc.core.signals import Decoder

KEEP = 0.4
PAGE = Path(__file__).resolve().parent.parent / "docs" / "choosing.md"


def entering(model, single, images) -> list[torch.Tensor]:
    """What enters the language model of one prompt [n, D]: its own embeddings, and of images what the encoder by hand
    leaves; then what each plane adds to all places [L, D]. images: see `encoded`."""
    embeds, stays = unpruned(model, single)[0][0].clone(), single["input_ids"][0] != IMAGE_TOKEN
    added = [torch.zeros_like(embeds) for _ in planes_of(model, single)]
    for run, (places, features, units) in zip(visual_places(model, single), images, strict=True):
        kept = run[places]
        embeds[kept], stays[kept] = features, True
        for plane, rows in zip(added, planes_left(*units), strict=True):
            plane[kept] = rows
    return [embeds[stays], *added]


@pytest.mark.product
@pytest.mark.parametrize("case", vtc.families())
@pytest.mark.parametrize("strategy", ["flowcut+var", "tome+var", "pitome+var"])
def test_generate_equals_both_oracles(strategy, case):
    """The encoder by hand, its features into the stock layers, whose attention is changed row by row: the tokens and
    logits of batched, cached generation."""
    first = strategy.partition("+")[0]
    options = {**LOW, f"{first}.keep": KEEP}
    model, inputs, config = model_of(case), inputs_of(case), resolved(strategy, case, **options)
    budget = config.allocate(Decoder("test", model.config.text_config.num_hidden_layers)).encoder
    with patched(model, strategy, **options):
        out = generate(model, inputs, STEPS)
        report = vtc.report(model)
    rows_changed = 0
    for b, single in enumerate(split(inputs, IMAGES)):
        entered, drops = None, drops_of(report, b, config)
        if IMAGES[b]:
            images = encoded(model, single, config.encoder.stage, lambda sizes: budget.quotas([sizes])[0])
            assert [step.tolist() for step in drops[0].kept] == [places.tolist() for places, _, _ in images]
            entered = entering(model, single, images)
            drops[0] = replace(drops[0], layer=0)
        truth, changed = expected(model, single, drops, config, entered, out.tokens[b].tolist())
        torch.testing.assert_close(out.logits[:, b], truth.logits[-STEPS:], atol=1e-6, rtol=0)
        assert out.tokens[b].tolist() == truth.tokens
        rows_changed += changed
    assert rows_changed


def rows() -> list[tuple[str, str]]:
    """The table of compositions: an example, and what the page says of it."""
    return re.findall(r"^\| `([^`]+)` \| ((?:runs|refused)[^|]*) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("strategy, said", rows(), ids=[row[0] for row in rows()])
def test_the_pages_table_of_compositions(strategy, said):
    """What is said to run runs on a tiny model; what is said to be refused is, before the model is touched."""
    options, keeps = {}, dict(re.findall(r"(\w+\.keep)=([\d.]+)", said))
    options |= {knob: float(value) for knob, value in keeps.items()}
    model = model_of("llava")
    if said.startswith("refused"):
        refused(lambda: vtc.patch(model, strategy, **options), "possible")
        return
    with patched(model, strategy, **options):
        logits = forward(model, inputs_of("llava")).logits
        stages = [stage.method for stage in resolved(strategy, "llava", **options).stages]
        assert set(strategy.split("+")) <= {re.sub(r"_(projector|decoder)$", "", s) for s in stages}
    assert logits.isfinite().all()


def test_the_table_has_both_kinds():
    """It is found, and says something of each site."""
    said = dict(rows())
    assert len(said) >= 10
    assert {words.partition(" ")[0].rstrip(":,") for words in said.values()} == {"runs", "refused"}
