"""Published architectures at their real sizes, with random weights: speed depends on shapes, not on what was learnt."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from vtc.core.errors import ConfigError
from vtc.core.registry import unknown
from vtc.patches import FAMILIES


@dataclass(frozen=True)
class Preset:
    """One architecture. config: makes its transformers config; parameters: as published (of the small ones: as built),
    in units; text: how the table of presets describes it."""

    config: Callable[[], object]
    parameters: int
    text: str


def _clip(**sizes) -> object:
    from transformers import CLIPVisionConfig

    large = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
    return CLIPVisionConfig(**{**large, "image_size": 336, "patch_size": 14, "projection_dim": 768, **sizes})


def _llama(hidden: int, mlp: int, layers: int, heads: int, vocab: int) -> object:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
        vocab_size=vocab, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip


def _llava(vision: dict, **text) -> object:
    from transformers import LlavaConfig

    return LlavaConfig(
        vision_config=_clip(**vision), text_config=_llama(**text), image_token_id=text["vocab"] - 64,
        image_seq_length=576, vision_feature_select_strategy="default", vision_feature_layer=-2,
    )  # fmt: skip


def _llava_next(**text) -> object:
    from transformers import LlavaNextConfig

    tilings = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    return LlavaNextConfig(
        vision_config=_clip(), text_config=_llama(**text), image_token_id=text["vocab"] - 64, image_seq_length=576,
        image_grid_pinpoints=tilings, vision_feature_select_strategy="default", vision_feature_layer=-2,
    )  # fmt: skip


_ROPE = {"type": "mrope", "rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0}
_IDS = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652,
        "vision_end_token_id": 151653}  # fmt: skip


def _qwen_text(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vocab: int) -> dict:
    return dict(
        hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocab, max_position_embeddings=32768, rope_parameters=dict(_ROPE),
        rms_norm_eps=1e-6, bos_token_id=151643, eos_token_id=151645,
    )  # fmt: skip


def _qwen2_5(tied: bool, **text) -> object:
    from transformers import Qwen2_5_VLConfig

    vision = dict(
        depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=text["hidden"], patch_size=14,
        window_size=112, fullatt_block_indexes=[7, 15, 23, 31],
    )  # fmt: skip
    text_config = {**_qwen_text(**text), "tie_word_embeddings": tied}
    return Qwen2_5_VLConfig(vision_config=vision, text_config=text_config, tie_word_embeddings=tied, **_IDS)


def _qwen2(**text) -> object:
    from transformers import Qwen2VLConfig

    vision = dict(depth=32, embed_dim=1280, hidden_size=text["hidden"], num_heads=16, mlp_ratio=4, patch_size=14)
    return Qwen2VLConfig(vision_config=vision, text_config=_qwen_text(**text), tie_word_embeddings=False, **_IDS)


_VICUNA_7B = dict(hidden=4096, mlp=11008, layers=32, heads=32, vocab=32064)
_VICUNA_13B = dict(hidden=5120, mlp=13824, layers=40, heads=40, vocab=32064)
_QWEN_3B = dict(hidden=2048, mlp=11008, layers=36, heads=16, kv_heads=2, vocab=151936)
_QWEN_7B = dict(hidden=3584, mlp=18944, layers=28, heads=28, kv_heads=4, vocab=152064)
# As deep as the real tower, with heads as wide: methods observe a fixed number of layers, and what scoring one costs
# beside the layer depends on the width of its heads.
_SMALL_TOWER = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=24, num_attention_heads=4)
_BASE_TOWER = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
_SMALL = dict(hidden=384, mlp=1024, layers=8, heads=6, vocab=8192)
_BASE = dict(hidden=1024, mlp=2816, layers=12, heads=16, vocab=32064)

PRESETS = {
    "tiny": Preset(partial(_llava, _SMALL_TOWER, **_SMALL), 39_954_048, "LLaVA, 24 + 8 layers; for a CPU in seconds"),
    "llava-mini": Preset(
        partial(_llava, _BASE_TOWER, **_BASE), 307_623_424, "LLaVA, CLIP of base size and 12 layers; for a CPU"
    ),
    "llava-1.5-7b": Preset(partial(_llava, {}, **_VICUNA_7B), 7_063_427_072, "LLaVA-1.5-7B"),
    "llava-1.5-13b": Preset(partial(_llava, {}, **_VICUNA_13B), 13_350_839_296, "LLaVA-1.5-13B"),
    "llava-next-7b": Preset(partial(_llava_next, **_VICUNA_7B), 7_063_431_168, "LLaVA-NeXT (1.6) Vicuna 7B"),
    "qwen2.5-vl-3b": Preset(partial(_qwen2_5, True, **_QWEN_3B), 3_754_622_976, "Qwen2.5-VL-3B"),
    "qwen2.5-vl-7b": Preset(partial(_qwen2_5, False, **_QWEN_7B), 8_292_166_656, "Qwen2.5-VL-7B"),
    "qwen2-vl-7b": Preset(partial(_qwen2, **_QWEN_7B), 8_291_375_616, "Qwen2-VL-7B"),
}

OF_FAMILY = "tiny-"


def config_of(name: str) -> object:
    """A new transformers config of a preset, or of "tiny-FAMILY", the miniature that any family brings for its tests;
    raises ConfigError for an unknown name."""
    if name in PRESETS:
        return PRESETS[name].config()
    family = name.removeprefix(OF_FAMILY)
    if family == name or family not in FAMILIES.names():
        raise ConfigError(unknown("preset", name, [*PRESETS, *(OF_FAMILY + family for family in FAMILIES)]))
    return FAMILIES[family].tiny().config


def build(config: object, device: torch.device, dtype: torch.dtype, attention: str, seed: int = 0) -> nn.Module:
    """The model of a config in evaluation mode, made where it is used and in its dtype, so that no second copy exists.

    Its weights are what its classes start training from, drawn with `seed`; on the meta device it has none.
    """
    from transformers import AutoModelForImageTextToText

    with torch.random.fork_rng([device] if device.type == "cuda" else []), device, _default_dtype(dtype):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
        model.tie_weights()  # transformers 5.0 leaves that out on the meta device
    return model.eval()


def count(config: object) -> int:
    """Parameters of the model of a config; nothing is allocated."""
    model = build(config, torch.device("meta"), torch.bfloat16, "sdpa")
    return sum(parameter.numel() for parameter in model.parameters())


def resize_tower(tower: nn.Module, side: int, seed: int = 0) -> None:
    """Gives a CLIP tower with random weights a grid of side x side patches: new position embeddings, all else stays."""
    tower.config.image_size = side * tower.config.patch_size
    name, old = next((n, m) for n, m in tower.named_modules() if hasattr(m, "position_embedding"))
    weight = old.position_embedding.weight
    with torch.random.fork_rng([weight.device] if weight.is_cuda else []), weight.device, _default_dtype(weight.dtype):
        torch.manual_seed(seed)
        new = type(old)(tower.config)
    new.class_embedding, new.patch_embedding = old.class_embedding, old.patch_embedding
    torch.nn.init.normal_(new.position_embedding.weight, std=0.02)
    parent, _, leaf = name.rpartition(".")
    setattr(tower.get_submodule(parent), leaf, new.eval())


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
