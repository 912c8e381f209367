"""VTC-CLS: [CLS] rows -> summed scores -> kept indices and features."""

from torch import Tensor

from tests.golden_checks._engine import assert_scores, kept_offsets
from vtc.config.resolve import resolve
from vtc.core.layout import raster
from vtc.core.signals import ClsAttention, Encoder


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """Fields: cls_attn [layers, heads, 1 + N], ensemble_score [N], keep_idx [token_num], hidden, kept_hidden."""
    start, end, depth = params["start_layer_0based"], params["end_layer_0based_inclusive"], params["num_layers"]
    encoder = Encoder("llava", depth, True, tuple(range(depth)))
    strategy = resolve("vtc_cls", "llava", keep=params["token_num"], start_layer=start, end_layer=end)
    rows = tensors["cls_attn"].float().mean(1)[:, 1:]  # [layers, N]
    assert_scores(rows[start : end + 1].sum(0), tensors["ensemble_score"])
    scores = {ClsAttention(layer): [rows[layer]] for layer in range(start, end + 1)}
    kept = kept_offsets(strategy, encoder, raster(0, *params["grid"]), scores)
    assert kept.tolist() == tensors["keep_idx"].tolist()
    assert tensors["hidden"][kept].equal(tensors["kept_hidden"])
