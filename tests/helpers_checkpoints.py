"""Tiny random checkpoints as folders, with the real processors behind a tokenizer of single characters."""

import string
from pathlib import Path

import pytest
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from vtc.eval.processors import pictures_only
from vtc.patches import FAMILIES

CHARACTERS = [*string.ascii_letters, *string.digits, *string.punctuation, " ", "\n"]
TEMPLATE = """{% for turn in messages %}{% if turn.role != 'system' %}{{ turn.role | upper }}: {% endif %}{%
for part in turn.content %}{% if part.type == 'image' %}PLACE{% elif part.type == 'video' %}CLIP{%
else %}{{ part.text }}{% endif %}{% endfor %}
{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"""


def tokenizer_for(
    model, image: str, extra: dict[int, str] | None = None, named_as: dict[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """One token per character of ASCII, `<unk>` for any other; `image` at the model's placeholder. extra: other special
    tokens by id; named_as: the tokenizer's names for some."""
    named = {0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>", model.config.image_token_id: image, **(extra or {})}
    free = iter(i for i in range(model.config.get_text_config().vocab_size) if i not in named)
    words = {name: i for i, name in named.items()} | {character: next(free) for character in CHARACTERS}
    words |= {f"<{i}>": i for i in free}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("(?m)."), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in named.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens=named_as or {},
    )  # fmt: skip


def save_tiny(kind: str, folder: Path) -> Path:
    """Writes the tiny random model of a family with its processor; returns the folder."""
    if kind == "mistral3":
        pytest.skip("transformers' PixtralProcessor needs torchvision, which the tests do without")
    model = FAMILIES[kind].tiny()
    processor_of(model, FAMILIES[kind]).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def processor_of(model, family: type):
    """The real processor of a family for its tiny model."""
    if family.groups_crops:
        return {"internvl": _tiles_and_thumbnail}.get(family.name, _tagged_tiles)(model)
    if family.name == "gemma3":
        return _fixed_squares(model)
    return (_marked_processor if family.marks else _plain_processor)(model)


def image_processor(name: str) -> type:
    """The PIL form of an image processor, where transformers tells it from the one that needs torchvision."""
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def _class(config) -> type:
    return getattr(transformers, PROCESSOR_MAPPING_NAMES[config.model_type])


def _plain_processor(model):
    """Of crops of one size, in tiles where the config names some; a placeholder alone stands for a picture."""
    config, side = model.config, model.config.vision_config.image_size
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    images = "CLIPImageProcessor"
    if hasattr(config, "image_grid_pinpoints"):
        sizes["image_grid_pinpoints"], images = config.image_grid_pinpoints, "LlavaNextImageProcessor"
    strategy, kind = config.vision_feature_select_strategy, _class(config)
    grid = {"patch_size": config.vision_config.patch_size, "num_additional_image_tokens": 1}
    if strategy == "full":
        images, sizes["size"] = "LlavaOnevisionImageProcessor", sizes["crop_size"]
        grid = {"num_image_tokens": (side // config.vision_config.patch_size) ** 2}
    extra = {config.video_token_id: "<video>"} if hasattr(config, "video_token_id") else None
    return (kind if extra is None else pictures_only(kind))(
        image_processor=image_processor(images)(**sizes), tokenizer=tokenizer_for(model, "<image>", extra),
        vision_feature_select_strategy=strategy, chat_template=TEMPLATE.replace("PLACE", "<image>\n"), **grid,
    )  # fmt: skip


def _marked_processor(model):
    """Of a grid that follows the picture; a placeholder between marks stands for a picture."""
    config, vision, kind = model.config, model.config.vision_config, _class(model.config)
    sizes = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
    if hasattr(config, "image_start_token_id"):
        image, marks = "<|image|>", ("<|begin_of_image|>", "<|end_of_image|>")
        extra = {
            config.video_token_id: "<|video|>", config.image_start_token_id: marks[0],
            config.image_end_token_id: marks[1], config.video_start_token_id: "<|begin_of_video|>",
            config.video_end_token_id: "<|end_of_video|>",
        }  # fmt: skip
        name = kind.__name__.replace("Processor", "ImageProcessor")
        sizes["size"] = {"shortest_edge": 2 * 8 * 8, "longest_edge": 2 * 256 * 8 * 8}  # of the picture, twice
    else:
        image, marks = "<|image_pad|>", ("<|vision_start|>", "<|vision_end|>")
        extra = {
            config.video_token_id: "<|video_pad|>", config.vision_start_token_id: marks[0],
            config.vision_end_token_id: marks[1],
        }  # fmt: skip
        name = "Qwen2VLImageProcessor"
        sizes |= {"min_pixels": 8 * 8, "max_pixels": 256 * 8 * 8}
    place = marks[0] + image + marks[1]
    template = TEMPLATE.replace("PLACE", place).replace("CLIP", place.replace("image_pad", "video_pad"))
    return pictures_only(kind)(
        image_processor(name)(**sizes), tokenizer_for(model, image, extra), chat_template=template
    )  # fmt: skip


def _fixed_squares(model):
    """Gemma 3's: a mark stands for a picture, which a number of placeholders between two marks replaces."""
    config, side = model.config, model.config.vision_config.image_size
    marks = {config.boi_token_index: "<start_of_image>", config.eoi_token_index: "<end_of_image>"}
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    return _class(config)(
        image_processor("Gemma3ImageProcessor")(size={"height": side, "width": side}),
        tokenizer_for(model, "<image_soft_token>", marks, named), image_seq_length=config.mm_tokens_per_image,
        chat_template=TEMPLATE.replace("PLACE", "<start_of_image>"),
    )  # fmt: skip


def _tiles_and_thumbnail(model):
    """InternVL's: an unbroken run of placeholders between marks stands for a picture."""
    config, image = model.config, model.config.image_token_id
    side = config.vision_config.image_size[0]
    names = {"context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>"}
    tokenizer = tokenizer_for(
        model, "<IMG_CONTEXT>", {image - 2: "<img>", image - 1: "</img>", image + 1: "<video>"},
        {**names, "video_token": "<video>"},
    )  # fmt: skip
    images = image_processor("GotOcr2ImageProcessor")(
        size={"height": side, "width": side}, crop_to_patches=True, max_patches=6
    )
    template = TEMPLATE.replace("PLACE", "<IMG_CONTEXT>\n")
    kind = pictures_only(_class(config))
    return kind(images, tokenizer, image_seq_length=config.image_seq_length, chat_template=template)


def _tagged_tiles(model):
    """Idefics3's, also for SmolVLM, whose own wants a package that writes numbers as words, for clips."""
    config, image = model.config, model.config.image_token_id
    side = {"longest_edge": config.vision_config.image_size}
    named = {image - 1: "<fake_token_around_image>", image + 1: "<end_of_utterance>"}
    images = image_processor("Idefics3ImageProcessor")(max_image_size=side, size={"longest_edge": 96})
    return transformers.Idefics3Processor(
        images, tokenizer_for(model, "<image>", named), image_seq_len=model.model.image_seq_len,
        chat_template=TEMPLATE.replace("PLACE", "<image>"),
    )  # fmt: skip
