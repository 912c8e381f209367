"""HoloV: features and attention -> scores and quotas of the crops -> kept indices, with and without the surplus."""

import torch
from torch import Tensor

from tests.golden_checks._engine import assert_scores
from vtc.config.resolve import resolve
from vtc.core.signals import ClsAttention, Context, Encoder, Features
from vtc.strategies.holov import allocation

ENCODER = Encoder("llava", 24, True, tuple(range(24)))


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """Fields: features [n, d], attention [n]; crop_score, allocation [crops] (not yet capped by size); selected_order
    crop by crop, kept_sorted ascending, both [real_tokens]: what a crop cannot give is zero_rows in the code."""
    tokens, count = params["n"], params["k"]
    seen = {ClsAttention(22): tensors["attention"][None], Features(): tensors["features"][None]}
    context = Context(tokens, count, None, (0,), torch.device("cpu"), seen)
    knobs = {"crops": params["crops"], "alpha": params["alpha"]}
    config = resolve("holov", "llava", keep=count, surplus="released", **knobs)
    assert config.allocate().projector.count(tokens) == count
    config = config.projector
    assert set(config.stage.needs(ENCODER)) == set(seen)

    scores, sizes = config.stage.scores(tensors["features"], tensors["attention"], count)
    assert_scores(scores, tensors["crop_score"])
    assert allocation(scores, count).tolist() == tensors["allocation"].tolist()
    assert int((tensors["allocation"] - sizes).clamp(min=0).sum()) == params["zero_rows"]
    kept = config.stage.select(context, ENCODER).row(0)
    assert len(kept) == params["real_tokens"]
    assert kept.tolist() == tensors["kept_sorted"].tolist()
    crop = torch.arange(len(sizes)).repeat_interleave(sizes)
    by_attention = sorted(
        kept.tolist(),
        key=lambda i: (
            int(crop[i]),
            i if tensors["allocation"][crop[i]] >= sizes[crop[i]] else -float(tensors["attention"][i]),
        ),
    )
    assert by_attention == tensors["selected_order"].tolist()
    exact = resolve("holov", "llava", keep=count, **knobs).projector.stage.select(context, ENCODER)
    assert exact.keep.shape == (1, count)
    assert set(kept.tolist()) <= set(exact.keep[0].tolist())
