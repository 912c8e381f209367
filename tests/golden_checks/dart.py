"""DART: keys and normed hidden states -> pivots -> kept tokens, for both orders of the pivots that a file has."""

import torch
from torch import Tensor

from vtc.config.resolve import resolve
from vtc.core.signals import Context, Decoder, FinalHidden, KeyNorms, TextPivots
from vtc.kernels.anchor import least_similar
from vtc.strategies.dart import longest

DECODER = Decoder("llava", 32)


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """Fields: hidden [L, D], key_states [H, L, e]; places in the sequence: pivot_image, pivot_text, longest key first,
    pivot_order, in which the released code went through them, kept [k], kept_canonical_order [k]: in our order."""
    start, tokens = params["image_start"], params["image_len"]
    end, kept = start + tokens, tensors["kept"].tolist()
    pivots = {name: params[name] for name in ("pivot_image_token", "pivot_text_token")}
    knobs = {"reduction_ratio": 1 - params["max_num_trunction"] / tokens, **pivots}
    config = resolve("dart", "llava", **knobs).decoder[0]
    (step,) = config.stage.steps(DECODER)
    count = config.stage.count(tokens, step.share)
    assert count == len(kept) == params["pivot_image_token"] + params["per_pivot"] * sum(pivots.values())
    assert config.positions == "keep"

    hidden, norms = tensors["hidden"], tensors["key_states"].abs().sum((0, 2))
    image = longest(norms[None, start:end], params["pivot_image_token"])[0]
    text = longest(norms[None, end:], params["pivot_text_token"])[0] + end
    assert (image + start).tolist() == tensors["pivot_image"].tolist()
    assert text.tolist() == tensors["pivot_text"].tolist()

    ours = KeyNorms(1), FinalHidden(), TextPivots(1, params["pivot_text_token"])
    assert config.stage.needs(DECODER, 0) == ours
    seen = dict(zip(ours, (norms[None, start:end], hidden[None, start:end], hidden[None, text]), strict=True))
    selection = config.stage.select(Context(tokens, count, None, (0,), torch.device("cpu"), seen), DECODER)
    assert (selection.keep[0] + start).tolist() == tensors["kept_canonical_order"].tolist()

    order = tensors["pivot_order"]
    assert sorted(order.tolist()) == sorted((image + start).tolist() + text.tolist())
    quotas = [params["per_pivot"]] * len(order)
    official = least_similar(hidden[None, start:end], hidden[None, order], quotas, image[None])
    assert (official[0] + start).tolist() == kept
