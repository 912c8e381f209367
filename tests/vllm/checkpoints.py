"""Tiny random checkpoints that vLLM serves: real model and processor classes, head size 32, hub-style weight names.

The weights are drawn wide enough that the greedy text depends on the pictures, and no special token is ever written.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from tests.helpers_checkpoints import TEMPLATE, tokenizer_for
from tests.vllm.pictures import IMAGE, PLACES

VOCABULARY = 128
PAD, BOS, EOS, UNK = range(4)
START, END, VIDEO = 121, 122, 123
SPECIAL = [PAD, BOS, EOS, UNK, *range(100, VOCABULARY)]  # characters have the ids 4 to 99
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "bos_token_id": BOS,
    "eos_token_id": EOS, "pad_token_id": PAD, "tie_word_embeddings": False,
}  # fmt: skip
QWEN_VISION = {
    "depth": 4,
    "num_heads": 2,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "in_channels": 3,
}
QWEN = {
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, {
        "hidden_size": 64, "intermediate_size": 96, "out_hidden_size": 128, "window_size": 56,
        "fullatt_block_indexes": [1, 3],
    }),
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor, {
        "embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2,
    }),
}  # fmt: skip


def save_qwen(kind: str, folder: Path) -> Path:
    """A tiny Qwen2-VL or Qwen2.5-VL (`kind` as in QWEN) with its processor, video part included; returns the folder."""
    config_class, model_class, processor_class, vision = QWEN[kind]
    rope = {"type": "mrope", "rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    config = config_class(
        vision_config={**QWEN_VISION, **vision}, text_config=dict(TEXT, rope_parameters=rope), image_token_id=IMAGE,
        video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = model_class(config)
    extra = {VIDEO: "<|video_pad|>", START: "<|vision_start|>", END: "<|vision_end|>"}
    sizes = {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 56 * 56, "longest_edge": 64 * 28 * 28}}
    processor = processor_class(
        Qwen2VLImageProcessor(**sizes), tokenizer_for(model, "<|image_pad|>", extra), Qwen2VLVideoProcessor(**sizes),
        chat_template=TEMPLATE.replace("PLACE", PLACES[kind]),
    )  # fmt: skip
    return _save(model, processor, folder)


def save_llava_next(folder: Path) -> Path:
    """A tiny LLaVA-NeXT: crops of 8 x 8 patches, five tilings; returns the folder."""
    side, patch = 32, 4
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=2, image_size=side,
        patch_size=patch,
    )  # fmt: skip
    pinpoints = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side], [side, 3 * side], [3 * side, side]]
    config = LlavaNextConfig(
        vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, image_grid_pinpoints=pinpoints,
        image_seq_length=64, vision_feature_select_strategy="default", vision_feature_layer=-2,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaNextForConditionalGeneration(config)
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(**sizes, image_grid_pinpoints=pinpoints), tokenizer_for(model, "<image>"),
        patch_size=patch, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("PLACE", PLACES["llava_next"]),
    )  # fmt: skip
    return _save(model, processor, folder)


def save_llava_siglip(folder: Path) -> Path:
    """A tiny LLaVA with a SigLIP tower (8 x 8 patches, no [CLS]) and a Qwen2 as language model; returns the folder."""
    side, patch = 32, 4
    vision = SiglipVisionConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=2, image_size=side,
        patch_size=patch,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=Qwen2Config(**TEXT), image_token_id=IMAGE, image_seq_length=64,
        vision_feature_select_strategy="full", vision_feature_layer=-2, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    processor = LlavaProcessor(
        SiglipImageProcessor(size={"height": side, "width": side}), tokenizer_for(model, "<image>"), patch_size=patch,
        vision_feature_select_strategy="full", num_additional_image_tokens=0,
        chat_template=TEMPLATE.replace("PLACE", PLACES["llava_siglip"]),
    )  # fmt: skip
    return _save(model, processor, folder)


@torch.no_grad()
def widen(model) -> None:
    """Weights from a wide normal distribution; what would write a special token is 0, below the largest of the rest."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            fan = weight[0].numel()
            weight.normal_(0, 1.0 if "embed" in name else 1.5 * fan**-0.5)
        elif name.endswith("bias"):
            weight.normal_(0, 0.1)
    model.lm_head.weight[SPECIAL] = 0


def _save(model, processor, folder: Path) -> Path:
    widen(model)
    processor.save_pretrained(folder)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, PAD
    model.generation_config.do_sample = False
    model.eval().save_pretrained(folder)
    _name_as_on_the_hub(folder)
    assert AutoConfig.from_pretrained(folder, local_files_only=True).model_type == model.config.model_type
    return folder


def _name_as_on_the_hub(folder: Path) -> None:
    """CLIP's weights below `vision_tower.vision_model`, as published; some versions leave that out."""
    file = folder / "model.safetensors"
    names = {}
    for name, tensor in load_file(file).items():
        head, _, rest = name.rpartition("vision_tower.")
        if head + rest != name and not rest.startswith("vision_model."):
            name = f"{head}vision_tower.vision_model.{rest}"
        names[name] = tensor
    save_file(names, file, metadata={"format": "pt"})


def save(kind: str, folder: Path) -> Path:
    """The tiny model of a family by name; returns the folder."""
    llava = {"llava_next": save_llava_next, "llava_siglip": save_llava_siglip}
    return llava[kind](folder) if kind in llava else save_qwen(kind, folder)
