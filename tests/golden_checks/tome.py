"""ToMe: metric of each round -> who joins whom, sizes and merged tokens, in the authors' order of the sequence."""

from dataclasses import replace

import torch
from torch import Tensor

from vtc.config.resolve import resolve
from vtc.core.signals import Context, Encoder
from vtc.strategies.tome import most

CLIP = Encoder("llava", 24, True, tuple(range(24)), 576, output=22)


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """x [N, C]; metric_i [N_i, D] of each round; merged [n, C]; size [n, 1]; assignment [N]: row of each input token.
    With class_token row 0 is [CLS]."""
    lead = params["class_token"]
    stage, encoder = resolve("tome", "llava").encoder.stage, replace(CLIP, has_cls=bool(lead))
    x, size = tensors["x"][None, lead:], torch.ones(1, len(tensors["x"]) - lead)
    row = torch.arange(x.shape[1])
    for i, r in enumerate(params["r"]):
        metric = tensors[f"metric_{i}"][None, lead:]
        n = metric.shape[1]
        signals = dict(zip(stage.needs(encoder, i), (metric, size), strict=True))
        context = Context(n, n - min(r, most(n, encoder.has_cls)), None, (0,), torch.device("cpu"), signals, i)
        selection = stage.select(context, encoder)
        order, target = selection.order, selection.merge.target
        x = selection.apply_features(x).gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[2]))
        size = torch.zeros(selection.keep.shape).scatter_add_(1, target, size).gather(1, order)
        row = order.argsort(1)[0][target[0]][row]
    assert (row + lead).tolist() == tensors["assignment"].tolist()[lead:]
    assert tensors["assignment"][:lead].tolist() == [0] * lead
    assert size[0].tolist() == tensors["size"][lead:, 0].tolist()
    torch.testing.assert_close(x[0], tensors["merged"][lead:], rtol=1e-5, atol=1e-5)
