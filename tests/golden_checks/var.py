"""VAR: hidden states and attention of one layer -> sinks, heads and rows that are changed, attention afterwards."""

import torch
from torch import Tensor

from vtc.config.resolve import resolve
from vtc.core.signals import Decoder

DECODER = Decoder("llava", 32)


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """Fields: hidden [L, D], attention [H, Q, L], sink_dims [2], sinks [s], selected_head_query [n, 2], redistributed
    [H, Q, L]. rho: the largest share on sinks; p: the share that stays on them."""
    stage = resolve(
        "var", "llava", preset="released-config", tau=params["tau"], min_nonsink_share=1 - params["rho"],
        min_image_attention=params["summ"], move_fraction=1 - params["p"], dimensions=tensors["sink_dims"].tolist(),
    ).attention.stage  # fmt: skip
    marked = stage.mark(tensors["hidden"][None], torch.zeros(1, dtype=torch.long), DECODER)
    assert marked[0].nonzero().flatten().tolist() == tensors["sinks"].tolist()

    start, stop = params["image_start"], params["image_start"] + params["num_visual"]
    visual = torch.zeros_like(marked)
    visual[:, start:stop] = True
    attention = tensors["attention"][None]
    after = 0 if params["decode"] else stop
    new, changed = stage.change(attention[:, :, after:], marked, visual)
    selected = changed[0].nonzero() + torch.tensor([0, after])
    assert sorted(selected.tolist()) == sorted(tensors["selected_head_query"].tolist())
    expected = tensors["redistributed"]
    torch.testing.assert_close(new[0], expected[:, after:], rtol=1e-5, atol=1e-8)
    assert torch.equal(expected[:, :after], attention[0, :, :after])
    assert torch.equal(new[~changed], attention[:, :, after:][~changed])
