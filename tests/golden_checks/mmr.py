"""MMR: importance and features -> picks in their order -> kept tokens."""

import torch
from torch import Tensor

from vtc.config.resolve import resolve
from vtc.core.signals import ClsAttention, Context, Encoder, Features
from vtc.strategies.mmr import picks

ENCODER = Encoder("llava", 24, True, tuple(range(24)))


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """features [n, d], importance_raw [n]; selected_order [k], kept_sorted [k]."""
    features, score, count = tensors["features"][None], tensors["importance_raw"][None], params["k"]
    keep = round(1 - params["drop_ratio"], 12)
    config = resolve("mmr", "llava", keep=keep, lam=params["lambda"], picks_per_step=params["picks_per_step"])
    assert config.allocate().projector.count(params["n"]) == count
    order = picks(score, features, count, params["lambda"], params["picks_per_step"])
    assert order[0].tolist() == tensors["selected_order"].tolist()
    signals = {ClsAttention(22): score, Features(): features}
    context = Context(params["n"], count, None, (0,), torch.device("cpu"), signals)
    assert config.projector.stage.select(context, ENCODER).keep[0].tolist() == tensors["kept_sorted"].tolist()
