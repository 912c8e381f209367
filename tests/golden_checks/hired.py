"""HiRED: [CLS] rows of two layers -> budgets of the tiles -> kept patches, and their order once padding is cut away."""

import torch
from torch import Tensor

from tests.golden_checks._engine import kept_offsets
from vtc.config.resolve import resolve
from vtc.core.layout import ImageLayout, raster
from vtc.core.signals import ClsAttention, Encoder
from vtc.kernels.topk import topk_sorted
from vtc.patches.llava_next import anyres_tiles
from vtc.strategies.hired import tile_budgets

SIDE, DEPTH = 24, 24


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """bottom_cls_attn [P, H, 577] of every crop, top_cls_attn [H, 577] of the first; sub_budgets [P - 1]; keep_mask [P,
    576] (LLaVA-1.5: [576], and keep_idx); packed_correct [n, 2], (crop, patch) in the order of the sequence."""
    next_ = params["family"] == "llava-next"
    family = "llava_next" if next_ else "llava"
    deep = tensors["bottom_cls_attn"].float().sum(1)[:, 1:]
    encoder = Encoder(family, DEPTH, True, tuple(range(DEPTH)), tiled=next_)
    scores = {ClsAttention(params["bottom_layer_0based"]): list(deep)}
    if not next_:
        assert resolve("hired", family, keep=params["token_budget_rate"]).keep == params["token_budget_rate"]
        kept = kept_offsets(resolve("hired", family, keep=params["k"]), encoder, raster(0, SIDE, SIDE), scores)
        assert kept.tolist() == tensors["keep_idx"].tolist()
        assert tensors["keep_mask"].nonzero().flatten().tolist() == kept.tolist()
        return

    size, grid = tuple(params["image_size_hw"]), tuple(params["tiles_hw"])
    layout = ImageLayout(*anyres_tiles(size, grid, SIDE, unpad=False, newline=False))
    early = tensors["top_cls_attn"].float().sum(0)[1:]
    scores[ClsAttention(params["top_layer_0based"])] = [early, *torch.zeros(len(deep) - 1, SIDE**2)]
    total = params["full_budget"] + params["sub_budget_total"]
    strategy = resolve("hired", family, keep=total, alpha=params["alpha"])
    kept = kept_offsets(strategy, encoder, layout, scores)
    assert len(kept) == params["selected_total"]

    hot = torch.zeros(1, SIDE**2)
    hot[0, topk_sorted(early[None], int(SIDE**2 * (1 - params["alpha"])))[0]] = 1
    tiles = tuple(tile.extent for tile in layout.tiles)
    budgets = tile_budgets(hot, tiles, params["sub_budget_total"], "strips")
    assert budgets[0].tolist() == tensors["sub_budgets"].tolist()

    mask = torch.zeros(params["crops"], SIDE**2, dtype=torch.bool)
    for tile in layout.tiles:
        mask[tile.crop, tile.patches] = torch.isin(tile.offsets, kept)
    assert mask.equal(tensors["keep_mask"].bool())

    # What the library never selects from, the padding, is cut away here as the released code does: afterwards.
    tokens, tiles = anyres_tiles(size, grid, SIDE, newline=False)
    source = torch.zeros(tokens, 2, dtype=torch.long)
    for tile in tiles:
        source[tile.offsets] = torch.stack([torch.full_like(tile.patches, tile.crop), tile.patches], 1)
    left = source[mask[tuple(source.t())]]
    assert left.tolist() == tensors["packed_correct"].tolist()
    if grid[0] == grid[1]:
        assert left.tolist() == tensors["packed_official"].tolist()
    else:
        assert len(tensors["packed_official"]) == params["n_packed_official"] < len(left)
