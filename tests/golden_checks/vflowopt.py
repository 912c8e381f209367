"""VFlowOpt: attention and pixels -> importance; importance -> recycled cells -> what the later stages leave."""

import torch
from torch import Tensor

from tests.golden_checks._engine import assert_scores
from vtc.core.signals import Context, Decoder, Extent, Importance
from vtc.kernels.entropy import grey_entropy
from vtc.kernels.important import important
from vtc.strategies.vflowopt import VFlowOpt
from vtc.strategies.vflowopt_projector import VFlowOptProjector, cells_of, recycle


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """The fields are named in tests/golden/vflowopt/README.md."""
    (check_importance if "attn" in tensors else check_recycling)(tensors, params)


def check_importance(tensors: dict[str, Tensor], params: dict) -> None:
    """attn [B, H, N, N], pixel_u8 [B, 3, H, W]; entropy, received_attention, importance [B, N]."""
    attention, side = tensors["attn"].mean(1), 14
    received = attention.mean(1)
    chosen = important(received, params["t"])
    assert chosen.sum(1).tolist() == params["n_important_queries"]
    pixels = (tensors["pixel_u8"].float() / 255 - 0.5) / 0.5
    patches = pixels.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5)
    entropy = torch.stack([grey_entropy(crop.reshape(-1, 3, side**2)) for crop in patches])
    assert_scores(entropy, tensors["entropy"])
    rows = torch.stack([a[c].mean(0) for a, c in zip(attention, chosen, strict=True)])
    assert_scores(received, tensors["received_attention"])
    stage = VFlowOptProjector(t=params["t"], alpha=params["alpha"])
    assert_scores(rows + stage.alpha * entropy.softmax(1), tensors["importance"])


def check_recycling(tensors: dict[str, Tensor], params: dict) -> None:
    """features [T, D], importance [T]; out_features, out_importance, kept_mask, kept_index; llm_stage1_kept and
    llm_stage2_kept, indices of the tokens that are left by the first stage."""
    tokens, side, ratio, a = (params[name] for name in ("input_tokens", "base_side", "retain_ratio", "grid_a"))
    dropped, more = round(tokens * (1 - ratio)), int(tokens / a**2)
    assert (dropped, more) == (params["reduce_tokens"], params["extra_merged"])
    rows, columns = params["crop_h"], params["crop_w_with_newline"]
    cells = cells_of((Extent(side, side, 0, 0), Extent(rows, columns, 0, 0)), a)
    importance = tensors["importance"][None]
    selection = recycle(importance, cells, dropped + more)
    kept = selection.row(0)
    assert kept.tolist() == tensors["kept_index"].tolist()
    assert torch.isin(torch.arange(tokens), kept).int().tolist() == tensors["kept_mask"].tolist()
    assert len(kept) == tokens - dropped - more + params["n_cells"]
    merged = selection.apply_features(tensors["features"][None])[0, : len(kept)]
    torch.testing.assert_close(merged, tensors["out_features"], rtol=0, atol=1e-5)
    scores = selection.score[:, : len(kept)]
    assert_scores(scores[0], tensors["out_importance"])

    stage, decoder = VFlowOpt(ratios=tuple(params["llm_ratios"])), Decoder("qwen2_vl", 28)
    left = torch.arange(len(kept))
    for number, step in enumerate(stage.steps(decoder)):
        count = min(len(left), stage.count(len(kept), step.share))
        assert count == params["llm_stage_sizes"][number]
        context = Context(len(left), count, None, (0,), torch.device("cpu"), {Importance(): scores[:, left]}, number)
        left = left[stage.select(context, decoder).row(0)]
        assert left.tolist() == tensors[f"llm_stage{number + 1}_kept"].tolist()
