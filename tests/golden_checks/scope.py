"""SCOPE: features and saliency -> picks in order -> kept indices."""

import torch
from torch import Tensor

from vtc.config.resolve import resolve
from vtc.core.signals import ClsAttention, Context, Encoder, EncoderFeatures
from vtc.strategies.scope import selection_order

ENCODER = Encoder("llava", 24, True, tuple(range(24)))


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """Fields: features [n, d], saliency [n]; selected_order [k], kept_sorted [k]. One unit."""
    features, saliency = tensors["features"][None], tensors["saliency"][None]
    tokens, count, knobs = params["n"], params["k"], {"alpha": params["alpha"], "combine": params["combine"]}
    assert selection_order(features, saliency, count, **knobs)[0].tolist() == tensors["selected_order"].tolist()
    config = resolve("scope", "llava", keep=count, **knobs)
    assert config.allocate().projector.count(tokens) == count
    config = config.projector
    needs = ClsAttention(22), EncoderFeatures()
    assert config.stage.needs(ENCODER) == needs
    signals = dict(zip(needs, (saliency, features), strict=True))
    context = Context(tokens, count, None, (0,), torch.device("cpu"), signals)
    assert config.stage.select(context, ENCODER).keep[0].tolist() == tensors["kept_sorted"].tolist()
