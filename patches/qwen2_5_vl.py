"""Qwen2.5-VL: like Qwen2-VL, but the encoder uses window order and most of its layers attend within windows."""

from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from vtc.core.signals import Encoder
from vtc.patches import FAMILIES
from vtc.patches.qwen2_vl import PUBLISHED_IDS, QWEN_3B, QWEN_7B, Qwen2VL, preset, text_sizes

PROCESSOR = "Qwen2_5_VLProcessor"


def _config(tied: bool, **text) -> object:
    from transformers import Qwen2_5_VLConfig

    vision = dict(
        depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=text["hidden"], patch_size=14,
        window_size=112, fullatt_block_indexes=[7, 15, 23, 31],
    )  # fmt: skip
    text_config = {**text_sizes(**text), "tie_word_embeddings": tied}
    return Qwen2_5_VLConfig(vision_config=vision, text_config=text_config, tie_word_embeddings=tied, **PUBLISHED_IDS)


def window_index(rows: int, columns: int, window: int) -> Tensor:
    """Raster indices [rows * columns] of merged tokens in window order: windows of window x window tokens, row-major,
    cut off at the right and lower border."""
    raster = torch.arange(rows * columns).view(rows, columns)
    blocks = [
        raster[y : y + window, x : x + window].flatten()
        for y in range(0, rows, window)
        for x in range(0, columns, window)
    ]
    return torch.cat(blocks)


@lru_cache(maxsize=256)
def raster_order(rows: int, columns: int, window: int) -> Tensor:
    """The place in window order of each merged token of the raster [rows * columns]."""
    return window_index(rows, columns, window).argsort()


@FAMILIES.register("qwen2_5_vl")
class Qwen2_5VL(Qwen2VL):
    """Qwen2.5-VL (`qwen2_5_vl`). Layers in `fullatt_block_indexes` are global, the others windowed; scores of a
    windowed layer come from attention within each window.

    Source: `Qwen2_5_VLForConditionalGeneration` of transformers; "Qwen2.5-VL Technical Report", arXiv 2502.13923.
    """

    name = "qwen2_5_vl"
    model_types = ("qwen2_5_vl",)
    served = "vtc.vllm.qwen2_5_vl:VtcQwen2_5_VLForConditionalGeneration"
    published = Encoder("qwen2_5_vl", 32, False, (7, 15, 23, 31), cell=4)
    presets = {
        "qwen2.5-vl-3b": preset(PROCESSOR, partial(_config, True, **QWEN_3B), 3_754_622_976, "Qwen2.5-VL-3B"),
        "qwen2.5-vl-7b": preset(PROCESSOR, partial(_config, False, **QWEN_7B), 8_292_166_656, "Qwen2.5-VL-7B"),
    }

    def describe_encoder(self) -> Encoder:
        """Reads the global layers from the config."""
        return replace(super().describe_encoder(), global_layers=tuple(sorted(self.tower.config.fullatt_block_indexes)))

    def token_order(self, arguments: dict) -> Tensor:
        """Inverse of the window order, image after image."""
        vision, parts, start = self.tower.config, [], 0
        window = vision.window_size // vision.spatial_merge_size // vision.patch_size
        merge = vision.spatial_merge_size
        for frames, height, width in torch.as_tensor(arguments["image_grid_thw"]).tolist():
            for _ in range(frames):
                rows, columns = height // merge, width // merge
                parts.append(raster_order(rows, columns, window) + start)
                start += rows * columns
        return torch.cat(parts)

    @staticmethod
    def vision_sizes() -> dict:
        """Sizes of the tiny encoder: windows of 4 x 4 tokens, layers 1 and 3 global."""
        return {
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 4,
            "temporal_patch_size": 2,
            "window_size": 32,
            "fullatt_block_indexes": [1, 3],
        }

    @classmethod
    def tiny(cls, **overrides) -> nn.Module:
        """4 encoder layers of 2 heads, 3 decoder layers with GQA."""
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        return cls.build(Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, **overrides)
