"""PyramidDrop: the last prompt token's query and all keys -> attention -> kept tokens of one step."""

import torch
from torch import Tensor

from vtc.config.resolve import resolve
from vtc.core.signals import Context, Decoder
from vtc.kernels.attention_reduce import attention_rows

DECODER = Decoder("llava", 32)


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """Fields: query_last [H, D], key_states [H, L, D] after RoPE; kept_visual [k] and kept_sequence: places in the
    sequence. The image has `num_visual_now` tokens left of `original_num_visual`."""
    start, tokens, kept = params["image_start"], params["num_visual_now"], params["keep"]
    knobs = {"layer_list": [8], "image_token_ratio_list": [params["next_ratio"]]}
    stage = resolve("pyramiddrop", "llava", **knobs).decoder[0].stage
    (step,) = stage.steps(DECODER)
    assert stage.count(params["original_num_visual"], step.share) == kept
    assert int(params["original_num_visual"] * params["current_ratio"]) == tokens

    query, keys = tensors["query_last"].float()[None, :, None], tensors["key_states"].float()[None]
    row = attention_rows(query, keys)[:, 0, start : start + tokens]
    (signal,) = stage.needs(DECODER, 0)
    context = Context(tokens, kept, None, (0,), torch.device("cpu"), {signal: row})
    keep = stage.select(context, DECODER).keep[0] + start
    assert keep.tolist() == tensors["kept_visual"].tolist()
    places = torch.arange(keys.shape[2])
    left = torch.cat([places[:start], keep, places[start + tokens :]])
    assert left.tolist() == tensors["kept_sequence"].tolist()
