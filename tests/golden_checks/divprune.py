"""DivPrune: features -> the tokens in the order of choice -> kept tokens."""

import torch
from torch import Tensor

from vtc.config.resolve import resolve
from vtc.core.signals import Context, Encoder, Features
from vtc.kernels.diversity import maxmin_greedy

ENCODER = Encoder("llava", 24, True, tuple(range(24)))


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """Fields: features [n, d], selected_order [k], kept_sorted [k]."""
    config = resolve("divprune", "llava", keep=params["ratio"])
    tokens, count = params["n"], params["k"]
    assert config.allocate().projector.count(tokens) == count
    features = tensors["features"][None]
    assert maxmin_greedy(features, count)[0].tolist() == tensors["selected_order"].tolist()
    assert config.projector.stage.needs(ENCODER) == (Features(),)
    context = Context(tokens, count, None, (0,), torch.device("cpu"), {Features(): features})
    assert config.projector.stage.select(context, ENCODER).row(0).tolist() == tensors["kept_sorted"].tolist()
