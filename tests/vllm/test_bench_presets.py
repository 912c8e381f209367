"""Measuring serving with the presets of every family, their networks made small."""

import pytest

from vtc.bench.presets import presets
from vtc.bench.serving.ratios import STOCK
from vtc.bench.serving.throughput import ServingOptions, run
from vtc.patches import FAMILIES
from vtc.patches._preset import Preset

TEXT = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 2}  # fmt: skip
VISION = {
    "llava-next-7b": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2},
    "qwen2-vl-7b": {"depth": 4, "embed_dim": 64, "hidden_size": 256, "num_heads": 2},
    "qwen2.5-vl-3b": {"depth": 4, "hidden_size": 64, "intermediate_size": 96, "out_hidden_size": 256, "num_heads": 2,
                      "fullatt_block_indexes": [1, 3]},
}  # fmt: skip
VISUAL = {"llava-next-7b": (576 + 48 * 49, 720), "qwen2-vl-7b": (576, 144), "qwen2.5-vl-3b": (576, 144)}
"""Visual tokens of a picture, and how many of them a quarter is: newline tokens are never kept."""


def small(name: str, config: object) -> object:
    """The config of a preset with few, narrow layers; pictures, tokens and heads of the text as they are."""
    text, vision = config.text_config.to_dict() | TEXT, config.vision_config.to_dict() | VISION[name]
    text.pop("layer_types", None)
    text.pop("head_dim", None)
    return type(config)(**{**config.to_dict(), "text_config": text, "vision_config": vision})


@pytest.mark.parametrize("name", VISION)
def test_every_family_is_measured(name, tmp_path, monkeypatch):
    """The stock class and a strategy: tokens of the prompts and KV blocks as the picture and the keep give them."""
    preset = presets()[name]
    family = next(FAMILIES[family] for family in FAMILIES if name in FAMILIES[family].presets)
    made_small = Preset(
        lambda: small(name, preset.config()), preset.parameters, preset.text, preset.processor, preset.side
    )
    monkeypatch.setattr(family, "presets", {**family.presets, name: made_small})
    wanted = ServingOptions(
        tmp_path, ("divprune",), concurrency=(1,), preset=name, requests=2, rounds=1, new_tokens=4, threads=1
    )
    rows = {row["system"]: row for row in run(wanted).rows}
    assert list(rows) == [STOCK, "divprune 0.25"]
    for row, visual in zip(rows.values(), VISUAL[name], strict=True):
        assert row["prompt_tokens"] == 64 + visual
        assert row["blocks"] == -(-(64 + visual + 3) // 32)  # the last token is never read again
