"""Tiny random checkpoints as folders, with the real processors behind a tokenizer of single characters."""

import string
from pathlib import Path

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
)

from vtc.eval.processors import pictures_only
from vtc.patches import FAMILIES

CHARACTERS = [*string.ascii_letters, *string.digits, *string.punctuation, " ", "\n"]
TEMPLATE = """{% for turn in messages %}{% if turn.role != 'system' %}{{ turn.role | upper }}: {% endif %}{%
for part in turn.content %}{% if part.type == 'image' %}PLACE{% else %}{{ part.text }}{% endif %}{% endfor %}
{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"""
QWEN = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor}


def tokenizer_for(model, image: str, extra: dict[int, str] | None = None) -> PreTrainedTokenizerFast:
    """One token per character of ASCII, `<unk>` for any other; `image` at the model's placeholder."""
    named = {0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>", model.config.image_token_id: image, **(extra or {})}
    free = iter(i for i in range(model.config.get_text_config().vocab_size) if i not in named)
    words = {name: i for i, name in named.items()} | {character: next(free) for character in CHARACTERS}
    words |= {f"<{i}>": i for i in free}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("(?m)."), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in named.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def save_tiny(kind: str, folder: Path) -> Path:
    """Writes the tiny random model of a family with its processor; returns the folder."""
    model = FAMILIES[kind].tiny()
    processor = _qwen_processor(QWEN[kind], model) if kind in QWEN else _llava_processor(model)
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def image_processor(name: str) -> type:
    """The PIL form of an image processor, where transformers tells it from the one that needs torchvision."""
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def _llava_processor(model) -> LlavaProcessor | LlavaNextProcessor:
    config, side = model.config, model.config.vision_config.image_size
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    kind, images = LlavaProcessor, "CLIPImageProcessor"
    if config.model_type == "llava_next":
        kind, images = LlavaNextProcessor, "LlavaNextImageProcessor"
        sizes["image_grid_pinpoints"] = config.image_grid_pinpoints
    return kind(
        image_processor(images)(**sizes), tokenizer_for(model, "<image>"),
        patch_size=config.vision_config.patch_size, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE.replace("PLACE", "<image>\n"),
    )  # fmt: skip


def _qwen_processor(kind: type, model):
    config = model.config
    extra = {
        config.video_token_id: "<|video_pad|>", config.vision_start_token_id: "<|vision_start|>",
        config.vision_end_token_id: "<|vision_end|>",
    }  # fmt: skip
    place = "<|vision_start|><|image_pad|><|vision_end|>"
    vision = config.vision_config
    images = image_processor("Qwen2VLImageProcessor")(
        patch_size=vision.patch_size, merge_size=vision.spatial_merge_size, min_pixels=8 * 8, max_pixels=256 * 8 * 8
    )
    template = TEMPLATE.replace("PLACE", place)
    return pictures_only(kind)(images, tokenizer_for(model, "<|image_pad|>", extra), chat_template=template)
