"""VisionTrim: attention and features -> metric -> dominant tokens; words -> anchors, rounds, merged tokens."""

import torch
from torch import Tensor

from tests.golden_checks._engine import assert_scores
from vtc.config.resolve import resolve
from vtc.core.signals import (
    ClipPatches,
    ClipWords,
    ClsAttention,
    Context,
    Encoder,
    EncoderFeatures,
    PatchAttention,
    Unprojected,
)
from vtc.kernels.affinity import local_importance
from vtc.kernels.complement import complement
from vtc.kernels.topk import topk_sorted
from vtc.strategies.visiontrim import paper_metric, released_metric

ENCODER = Encoder("llava", 24, True, tuple(range(24)))


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """Fields: features [n, d], cls_attention, received_sum [n], text_features [L, p], visual_projection [p, d];
    metric [n], dominant, anchors (ascending), last_assignment [n - dominant - anchors], complement_tokens [anchors, d];
    paper_local_importance, paper_adaptive_metric [n]."""
    features, attention, received = (tensors[name] for name in ("features", "cls_attention", "received_sum"))
    tokens, dominant, anchors = params["n"], params["dvts"], params["tgvc"]
    count, grid = dominant + anchors, tuple(params["grid"])

    assert_scores(released_metric(attention[None], received[None])[0], tensors["metric"])
    local = local_importance(features, grid)
    assert_scores(local, tensors["paper_local_importance"])
    mixed = paper_metric(attention, local)
    assert_scores(mixed, tensors["paper_adaptive_metric"])

    patches = features @ tensors["visual_projection"].T
    chosen = tensors["dominant"]
    found = complement(patches, tensors["text_features"], chosen, anchors, params["iterations"])
    assert found.anchors.tolist() == tensors["anchors"].tolist()
    group, _ = found.rounds[-1]
    assert group[group >= 0].tolist() == tensors["last_assignment"].tolist()

    needs = [ClipPatches(), ClipWords(), ClsAttention(22)]
    seen = dict(zip(needs, (x[None] for x in (patches, tensors["text_features"], attention)), strict=True))
    for metric, other, value in (("released", PatchAttention(22), received), ("paper", EncoderFeatures(), features)):
        knobs = {"tgvc": anchors / count, "iterations": params["iterations"], "metric": metric, "relevance": "clip"}
        config = resolve("visiontrim", "llava", keep=count, **knobs)
        assert config.allocate().projector.count(tokens) == count
        config = config.projector
        assert config.stage.needs(ENCODER) == (*needs, other, Unprojected())
        context = Context(tokens, count, grid, (0,), torch.device("cpu"), {**seen, other: value[None]})
        selection = config.stage.select(context, ENCODER)
        sequence = selection.keep[0][selection.order[0]]
        if metric == "paper":
            assert sequence[:dominant].tolist() == topk_sorted(mixed[None], dominant)[0].tolist()
            continue
        assert sequence.tolist() == [*chosen.tolist(), *found.anchors.tolist()]
        given = torch.cat([torch.full((1, features.shape[1]), 1e6), features])[None]  # [CLS] is dropped
        merged = selection.apply_features(given)[0][selection.order[0]]
        assert merged[:dominant].equal(features[chosen])
        expected = tensors["complement_tokens"]
        scale = 1e-4 * float(expected.abs().max())
        torch.testing.assert_close(merged[dominant:], expected, rtol=0, atol=scale)
