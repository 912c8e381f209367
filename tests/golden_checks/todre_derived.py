"""ToDRE, from the paper's equations: stage 1 (features -> kept tokens) and the rule of stage 2."""

import torch
from torch import Tensor

from vtc.strategies.todre import drops
from vtc.strategies.todre_projector import ToDREProjector, selection_order


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """Fields, stage 1: features [N, D], cls_attention [N], selection_order [k], kept [k], the first token one of the
    first `thumbnail_tokens`. Stage 2, another prompt: attention [H, L, L], alpha [2]: of the attention of the text
    after the image what goes to the image, and the reverse."""
    attention, features, count = tensors["cls_attention"][None], tensors["features"][None], params["budget"]
    order = selection_order(attention, features, count, ToDREProjector().objective, params["thumbnail_tokens"])
    assert order[0].tolist() == tensors["selection_order"].tolist()
    assert order[0].sort().values.tolist() == tensors["kept"].tolist()

    rows, start = tensors["attention"].double().mean(0), params["image_start"]
    image, text = slice(start, start + params["num_visual"]), slice(start + params["num_visual"], None)
    shares = torch.stack([rows[a, b].sum() / rows[a].sum() for a, b in ((text, image), (image, text))])
    torch.testing.assert_close(shares, tensors["alpha"], rtol=1e-4, atol=0)
    assert bool(drops(shares[0], params["tau"])) == bool(params["drop"])
    assert bool(drops(shares[0], params["tau"], shares[1])) == bool(params["drop"])
