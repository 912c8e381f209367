"""OTPrune: features -> picks in their order -> kept tokens."""

import torch
from torch import Tensor

from vtc.config.resolve import resolve
from vtc.core.signals import Context, Encoder, Features
from vtc.strategies.otprune import picks

ENCODER = Encoder("llava", 24, True, tuple(range(24)))


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """features [n, d]; selected_order [k], kept_sorted [k]."""
    features, count = tensors["features"][None], params["k"]
    config = resolve("otprune", "llava", keep=params["ratio"], gamma=params["gamma"])
    assert config.allocate().projector.count(params["n"]) == count
    assert picks(features, count, params["gamma"])[0].tolist() == tensors["selected_order"].tolist()
    context = Context(params["n"], count, None, (0,), torch.device("cpu"), {Features(): features})
    assert config.projector.stage.select(context, ENCODER).keep[0].tolist() == tensors["kept_sorted"].tolist()
