"""MMTok: embeddings -> weights -> picks in order and what each adds -> kept tokens; its rules for text and padding."""

import torch
from torch import Tensor

from vtc.config.resolve import resolve
from vtc.core.signals import Context, Encoder
from vtc.core.text import keywords_of, padding_patches
from vtc.kernels.coverage import coverage_greedy
from vtc.strategies.mmtok import select_tokens, weights

ENCODER = Encoder("llava", 24, True, tuple(range(24)))


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """What a file of tensors and what a file without any holds is named in the two functions below."""
    (check_tokens if tensors else check_rules)(tensors, params)


def check_tokens(tensors: dict[str, Tensor], params: dict) -> None:
    """text_embeds [m, D], vision_projected [n, D], vision_preproj [n, E]; excluded_indices [e], the padding of a
    picture of image_size_wh; selected_order [k], gains [k] float64, kept_sorted [k]; objective is the gains' sum."""
    tokens, count, size = params["n"], params["k"], params.get("image_size_wh")
    knobs = {"alpha": params["alpha"], "tau_v": params["vv_temperature"], "tau_t": params["tv_temperature"]}
    given = [tensors[name][None] for name in ("text_embeds", "vision_projected", "vision_preproj")]
    assert tensors["excluded_indices"].tolist() == (padding_patches(*size) if size else [])
    excluded = torch.zeros(1, tokens, dtype=torch.bool)
    excluded[0, tensors["excluded_indices"]] = True

    rows = weights(*given, **knobs)
    order = coverage_greedy(rows, count, excluded=excluded)[0]
    assert order.tolist() == tensors["selected_order"].tolist()
    worth = weights(*(x.double() for x in given), **knobs)[0, :, order].cummax(1).values.sum(0)
    torch.testing.assert_close(worth.diff(prepend=worth.new_zeros(1)), tensors["gains"], rtol=1e-4, atol=0)
    torch.testing.assert_close(float(worth[-1]), params["objective"], rtol=1e-4, atol=0)

    kept = select_tokens(rows, count, excluded)
    assert kept.row(0).tolist() == tensors["kept_sorted"].tolist()

    config = resolve("mmtok", "llava", keep=count, **knobs)
    assert config.allocate().projector.count(tokens) == count
    if not size:
        signals = dict(zip(config.projector.stage.needs(ENCODER), given, strict=True))
        kept = config.projector.stage.select(Context(tokens, count, None, (0,), torch.device("cpu"), signals), ENCODER)
        assert kept.keep[0].tolist() == tensors["kept_sorted"].tolist()


def check_rules(tensors: dict[str, Tensor], params: dict) -> None:
    """keywords: text and the result; padding_336_14: size_wh and the indices of the patches that show padding only."""
    assert set(params) == {"keywords", "padding_336_14"}
    for case in params["keywords"]:
        assert keywords_of(case["text"]) == case["result"]
    for case in params["padding_336_14"]:
        assert padding_patches(*case["size_wh"], side=336, patch=14) == case["indices"]
