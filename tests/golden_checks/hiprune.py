"""HiPrune: queries and keys -> scores -> kept indices, and on LLaVA-NeXT the order in which they reach the decoder."""

import torch
from torch import Tensor

from tests.golden_checks._engine import assert_scores, kept_offsets
from vtc.config.resolve import resolve
from vtc.core.layout import ImageLayout, Tile, raster
from vtc.core.signals import AttentionColumns, Encoder
from vtc.kernels.attention_reduce import attention_columns
from vtc.patches.llava_next import anyres_tiles
from vtc.patches.qwen2_5_vl import window_index
from vtc.patches.qwen2_vl import merged_scores
from vtc.strategies.hiprune import anchor_count

CLIP_DEPTH, QWEN_DEPTH = 24, 32
QWEN_MERGE, QWEN_WINDOW = 2, 4  # patches along a merged token, merged tokens along a window


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """The fields that each family has are named in the two functions below."""
    {"llava-1.5": check_crops, "llava-next": check_crops, "qwen2.5-vl": check_qwen}[params["family"]](tensors, params)


def knobs(params: dict) -> dict:
    """What the file says of the method, as knobs of ours."""
    layers = {"object_layer": params["object_layer_0based"], "deep_layer": params["deep_layer_0based"]}
    return {"alpha": params["alpha"], **layers}


def check_crops(tensors: dict[str, Tensor], params: dict) -> None:
    """q_*, k_* [B, H, 1 + N, D], *_score [B, N], keep_mask [B, N], keep_idx (B = 1), packed_order [n, 2] (LLaVA-NeXT).

    The released code divides the budget by the first dimension of the pixels, also where that counts plain images;
    here the crops are tiles of one image then.
    """
    crops, (rows, columns) = params["crops"], params["grid"]
    patches = rows * columns
    if params["family"] == "llava-next":
        width, height = params["image_size_wh"]
        tokens, tiles = anyres_tiles((height, width), tuple(params["tiles_hw"]), rows, unpad=False, newline=False)
    else:
        every = torch.arange(patches)
        tokens = crops * patches
        tiles = tuple(Tile(b, every + b * patches, every, (rows, columns)) for b in range(crops))
    layout = ImageLayout(tokens, tiles)
    strategy = resolve("hiprune", "llava_next", keep=params["budget_total"], **knobs(params))
    assert strategy.allocate().projector.quotas([[patches] * crops]) == [[params["budget_total"] // crops] * crops]
    assert anchor_count(params["budget_total"] // crops, params["alpha"]) == params["anchors_per_crop"]

    scores = {}
    for name in ("object", "deep"):
        ours = attention_columns(tensors[f"q_{name}"], tensors[f"k_{name}"])[:, 1:]
        assert_scores(ours, tensors[f"{name}_score"])
        scores[AttentionColumns(params[f"{name}_layer_0based"])] = list(ours)
    kept = kept_offsets(strategy, Encoder("llava", CLIP_DEPTH, True, tuple(range(CLIP_DEPTH))), layout, scores)

    source = torch.zeros(tokens, 2, dtype=torch.long)  # (crop, patch) of each place in the image's run of tokens
    for tile in tiles:
        source[tile.offsets] = torch.stack([torch.full_like(tile.patches, tile.crop), tile.patches], 1)
    mask = torch.zeros(crops, patches, dtype=torch.bool)
    mask[tuple(source[kept].t())] = True
    assert mask.equal(tensors["keep_mask"].bool())
    if "keep_idx" in tensors:
        assert kept.tolist() == tensors["keep_idx"].tolist()
    if "packed_order" in tensors:
        assert source[kept].tolist() == tensors["packed_order"].tolist()


def check_qwen(tensors: dict[str, Tensor], params: dict) -> None:
    """q_*, k_* [H, 4N, D], window_index [N], *_score [N] in raster order, keep_idx, keep_idx_corrected."""
    rows, columns = params["merged_grid"]
    window = window_index(rows, columns, QWEN_WINDOW)
    assert window.tolist() == tensors["window_index"].tolist()
    scores = {}
    for name in ("object", "deep"):
        patch_scores = attention_columns(tensors[f"q_{name}"][None], tensors[f"k_{name}"][None], reduce_queries="sum")
        ours = merged_scores(patch_scores[0], QWEN_MERGE**2, window.argsort())
        assert_scores(ours, tensors[f"{name}_score"])
        scores[AttentionColumns(params[f"{name}_layer_0based"], "sum")] = [ours]

    encoder = Encoder("qwen2_5_vl", QWEN_DEPTH, False, (7, 15, 23, 31))
    for exclude, expected in (("official", "keep_idx"), ("exact", "keep_idx_corrected")):
        strategy = resolve("hiprune", "qwen2_5_vl", keep=params["retention"], exclude=exclude, **knobs(params))
        count = strategy.allocate().projector.count(rows * columns)
        assert count == params["visual_token_num"]
        assert anchor_count(count, params["alpha"]) == params["anchors"]
        kept = kept_offsets(strategy, encoder, raster(0, rows, columns), scores)
        assert kept.tolist() == tensors[expected].tolist(), exclude
