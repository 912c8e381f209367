"""FastV: the last prompt token's attention -> scores -> kept tokens, positions and hidden states."""

import torch
from torch import Tensor

from vtc.config.resolve import resolve
from vtc.core.signals import Context, Decoder

DECODER = Decoder("llava", 32)


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """Fields: attn_last_row [H, S], scores [N], kept_visual [k], keep_positions and position_ids_out [S - N + k],
    hidden_in [S, D], hidden_out."""
    start, tokens, kept = params["visual_start"], params["n_visual"], params["k"]
    config = resolve("fastv", "llava", R=1 - kept / tokens).decoder[0]
    (step,) = config.stage.steps(DECODER)
    assert config.stage.count(tokens, step.share) == kept
    assert config.positions == "keep"

    row = tensors["attn_last_row"].mean(0)[start : start + tokens]
    torch.testing.assert_close(row, tensors["scores"], rtol=1e-4, atol=0)
    (signal,) = config.stage.needs(DECODER, 0)
    context = Context(tokens, kept, None, (0,), torch.device("cpu"), {signal: row[None]})
    keep = config.stage.select(context, DECODER).keep[0]
    assert keep.tolist() == tensors["kept_visual"].tolist()

    places = torch.arange(params["seq_len"])
    left = torch.cat([places[:start], keep + start, places[start + tokens :]])
    assert left.tolist() == tensors["keep_positions"].tolist()
    assert left.tolist() == tensors["position_ids_out"].tolist()
    assert tensors["hidden_in"][left].equal(tensors["hidden_out"])
