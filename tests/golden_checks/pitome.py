"""PiToMe: hidden states -> merged tokens, in the authors' order of the sequence."""

from dataclasses import replace

import torch
from torch import Tensor

from vtc.config.resolve import resolve
from vtc.core.signals import Context, Encoder

CLIP = Encoder("llava", 24, True, tuple(range(24)), 576, output=22)


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """x [T, D], the hidden states and the metric; merged [n, D]. With class_token row 0 is [CLS]; use_bsm: a layer that
    matches without energy. margin is that of the layer, ratio what it leaves."""
    lead, plain = params["class_token"], params["use_bsm"]
    layer = round(24 * (1 - params["margin"] / 0.9))
    knobs = {"margin": params["margin"] / (1 - layer / 24), "alpha": params["alpha"], "plain": float(plain)}
    stage, encoder = resolve("pitome", "llava", **knobs).encoder.stage, replace(CLIP, has_cls=bool(lead))
    assert stage.is_plain(layer, encoder) == bool(plain)
    x = tensors["x"][None, lead:]
    n = x.shape[1]
    everything = n + lead if plain else n
    count = n - int(everything - params["ratio"] * everything)
    signals = dict.fromkeys(stage.needs(encoder, layer), x)
    selection = stage.select(Context(n, count, None, (0,), torch.device("cpu"), signals, layer), encoder)
    merged = selection.apply_features(x)[0][selection.order[0]]
    torch.testing.assert_close(torch.cat([tensors["x"][:lead], merged]), tensors["merged"], rtol=1e-5, atol=1e-5)
