"""VScan: [CLS] attention of two layers -> local and global tokens; features -> what they average in."""

import torch
from torch import Tensor

from vtc.config.resolve import resolve
from vtc.core.signals import ClsAttention, Context, Decoder, Encoder, Features
from vtc.strategies.vscan_projector import local_picks, windows

ENCODER = Encoder("llava", 24, True, tuple(range(24)))


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """Fields: features [n, d], attention_shallow, attention_deep [n]; local [l], kept_sorted [k] ascending, tokens
    [k, d] averaged; k may be less than the budget, which does not divide over the windows then."""
    tokens, budget, grid = params["n"], params["budget"], tuple(params["grid"])
    needs = ClsAttention(5), ClsAttention(22), Features()
    names = "attention_shallow", "attention_deep", "features"
    seen = dict(zip(needs, (tensors[name][None] for name in names), strict=True))
    picked = local_picks(seen[ClsAttention(5)], windows(grid, params["window"]), budget // 2, "each")[0]
    assert picked.nonzero().flatten().tolist() == tensors["local"].tolist()
    knobs = {"vscan_projector.keep": budget, "window": params["window"]}
    for remainder, count in (("released", params["k"]), ("global", budget)):
        stage = resolve("vscan", "llava", remainder=remainder, **knobs)
        assert stage.allocate(Decoder("llava", 32)).projector.count(tokens) == budget
        stage = stage.projector
        assert stage.stage.needs(ENCODER) == needs
        context = Context(tokens, budget, grid, (0,), torch.device("cpu"), seen)
        selection = stage.stage.select(context, ENCODER)
        assert selection.keep.shape == (1, count)
        if count == params["k"]:
            assert selection.keep[0].tolist() == tensors["kept_sorted"].tolist()
            merged = selection.apply_features(tensors["features"][None])[0]
            torch.testing.assert_close(merged, tensors["tokens"], rtol=0, atol=1e-5)
        assert set(tensors["kept_sorted"].tolist()) <= set(selection.keep[0].tolist())
