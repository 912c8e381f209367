"""VisPruner: [CLS] attention and encoder features -> kept tokens."""

import torch
from torch import Tensor

from vtc.config.resolve import resolve
from vtc.core.signals import ClsAttention, Context, Encoder, EncoderFeatures

ENCODER = Encoder("llava", 24, True, tuple(range(24)))


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """Fields: cls_attention [B, H, N], features [B, N, D], kept [B, T]. The units are the crops of one image, which
    each keep T."""
    units, tokens, _ = tensors["features"].shape
    count, ratio = params["visual_token_num"], params["important_ratio"]
    config = resolve("vispruner", "llava_next", keep=units * count, important_ratio=ratio)
    assert config.allocate().projector.quotas([[tokens] * units]) == [[count] * units]
    needs = ClsAttention(22), EncoderFeatures()
    assert config.projector.stage.needs(ENCODER) == needs
    signals = dict(zip(needs, (tensors["cls_attention"].mean(1), tensors["features"]), strict=True))
    context = Context(tokens, count, None, tuple(range(units)), torch.device("cpu"), signals)
    assert config.projector.stage.select(context, ENCODER).keep.tolist() == tensors["kept"].tolist()
