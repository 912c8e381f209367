"""VisionZip: [CLS] attention and keys -> dominant tokens, anchors, who joins which -> the projector's input."""

import torch
from torch import Tensor

from vtc.config.resolve import resolve
from vtc.core.signals import ClsAttention, Context, Encoder, EncoderKeys, Unprojected

ENCODER = Encoder("llava", 24, True, tuple(range(24)))


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """Fields, [CLS] first among 1 + n: cls_attention [B, H, 1 + n], key_metric [B, 1 + n, e], hidden_states [B, 1 + n,
    D]; dominant_sorted_with_cls [B, d], context_anchor_index [B, c], context_assignment [B, 1 + n] (-1 for dominant
    tokens and anchors), output_tokens [B, d + c, D]."""
    tokens, count, contextual = params["n_patches"], params["total_tokens"], params["contextual"]
    config = resolve("visionzip", "llava", keep=count, contextual=contextual / count)
    assert config.allocate().projector.count(tokens) == count == params["dominant_arg"] + contextual
    needs = ClsAttention(22), EncoderKeys(22), Unprojected()
    assert config.projector.stage.needs(ENCODER) == needs
    signals = {needs[0]: tensors["cls_attention"].mean(1)[:, 1:], needs[1]: tensors["key_metric"][:, 1:]}
    units = range(params["batch"])
    context = Context(tokens, count, None, tuple(units), torch.device("cpu"), signals)
    selection = config.projector.stage.select(context, ENCODER)

    merged = selection.apply_features(tensors["hidden_states"])
    for b in units:
        dominant, anchors = (tensors[name][b].tolist() for name in ("dominant_sorted_with_cls", "context_anchor_index"))
        order, target = selection.order[b], selection.merge.target[b]
        assert dominant[0] == 0
        assert (selection.keep[b][order][1:] + 1).tolist() == dominant[1:] + anchors
        place = order.argsort()[target]  # where in the sequence each token flows to
        assert int(target.min()) >= 0
        assert place[dominant + anchors].tolist() == list(range(count))
        slot = (place - params["dominant_arg"]).index_fill(0, torch.tensor(dominant + anchors), -1)
        assert slot.tolist() == tensors["context_assignment"][b].tolist()
        torch.testing.assert_close(merged[b][order], tensors["output_tokens"][b], rtol=0, atol=1e-5)
