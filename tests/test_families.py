"""Real processors, built locally: pictures and text in, patched generate() out, for every family."""

import inspect

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import vtc
import vtc.demo
from tests.helpers import kept_of, model_of, patched
from tests.helpers_checkpoints import processor_of
from tests.helpers_oracle import layouts
from vtc.eval.processors import pictures_only
from vtc.patches import FAMILIES
from vtc.patches._tiny import IMAGE_TOKEN
from vtc.patching import find_family

pytestmark = pytest.mark.product

WORDS = {"<pad>": 0, "<s>": 1, "</s>": 2, "what": 3, "is": 4, "on": 5, "this": 6, "picture": 7, "left": 8, "<unk>": 9,
         "<image>": IMAGE_TOKEN, "<start>": 121, "<end>": 122, "<video>": 123}  # fmt: skip
GRID = dict(patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1)
PLAIN = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)


def picture(width, height, seed):
    """A random picture."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def tokenizer():
    """A word-level tokenizer whose ids are those of the tiny models."""
    filled = WORDS | {f"word{i}": i for i in range(128) if i not in WORDS.values()}
    core = Tokenizer(models.WordLevel(filled, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [word for word in WORDS if word.startswith("<")]
    core.add_special_tokens(special)
    extra = {"image_token": "<image>", "video_token": "<video>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", padding_side="left",
                                   extra_special_tokens=extra)  # fmt: skip


def pillow(name):
    """The image processor that needs no torchvision, under either of its names."""
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def llava():
    """A CLIP image processor for 32 x 32 pixels."""
    side = {"height": 32, "width": 32}
    images = pillow("CLIPImageProcessor")(size={"shortest_edge": 32}, crop_size=side, **PLAIN)
    return transformers.LlavaProcessor(image_processor=images, tokenizer=tokenizer(), **GRID)


def llava_next():
    """Crops of 24 x 24 pixels in the tiny model's tilings."""
    grid, side = model_of("llava_next").config.image_grid_pinpoints, {"height": 24, "width": 24}
    images = pillow("LlavaNextImageProcessor")(
        size={"shortest_edge": 24}, crop_size=side, image_grid_pinpoints=grid, do_pad=True, **PLAIN
    )
    return transformers.LlavaNextProcessor(image_processor=images, tokenizer=tokenizer(), **GRID)


def llava_next_video():
    """As LLaVA-NeXT's, without the part for videos, which needs torchvision."""
    processor = llava_next()
    kind = pictures_only(transformers.LlavaNextVideoProcessor)
    return kind(image_processor=processor.image_processor, tokenizer=processor.tokenizer, **GRID)


def llava_onevision():
    """Crops of 24 x 24 pixels; without the part for videos."""
    side = {"height": 24, "width": 24}
    images = pillow("LlavaOnevisionImageProcessor")(
        size=side, image_grid_pinpoints=model_of("llava_onevision").config.image_grid_pinpoints, **PLAIN
    )
    kind = pictures_only(transformers.LlavaOnevisionProcessor)
    options = dict(num_image_tokens=36, vision_feature_select_strategy="full")
    return kind(image_processor=images, tokenizer=tokenizer(), **options)


def pixtral(texts, pictures):
    """The image processor alone, since the joint one needs torchvision; rows of placeholders end as it ends them."""
    sizes = dict(size={"longest_edge": 64}, patch_size={"height": 8, "width": 8})
    processor = pillow("PixtralImageProcessor")(**sizes, **PLAIN)
    found = processor(images=pictures, return_tensors="pt")
    grids, expanded = iter((torch.as_tensor(found["image_sizes"]) // 8).tolist()), []
    for text in texts:
        head, *parts = text.split("<image>")
        images = ["<start> ".join(["<image> " * w] * h) + "<end>" for h, w in (next(grids) for _ in parts)]
        expanded.append(head + "".join(image + part for image, part in zip(images, parts, strict=True)))
    return {**tokenizer()(expanded, padding=True, return_tensors="pt"), **found}


LLAVAS = {
    "llava": llava, "llava_next": llava_next, "llava_next_video": llava_next_video, "llava_onevision": llava_onevision
}  # fmt: skip


def qwen():
    """The image processor alone: the joint processor wants a video processor, which needs torchvision."""
    return pillow("Qwen2VLImageProcessor")(
        patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=64 * 64, **PLAIN
    )


def gemma():
    """Pictures of 64 x 64 pixels."""
    return pillow("Gemma3ImageProcessor")(size={"height": 64, "width": 64}, **PLAIN)


def inputs_of(case, texts, pictures):
    """What the family's processor makes of prompts with <image> in them."""
    if FAMILIES[case].groups_crops:
        processor, first = processor_of(model_of(case), FAMILIES[case]), texts[0].count("<image>")
        shown = [text.replace("<image>", getattr(processor, "image_token", "<image>")) for text in texts]
        processor.tokenizer.padding_side = "left"
        return dict(
            processor(images=[pictures[:first], pictures[first:]], text=shown, padding=True, return_tensors="pt")
        )
    if case in LLAVAS:
        if case == "llava_onevision":  # it is told which pictures are of one prompt
            rest = iter(pictures)
            pictures = [[next(rest) for _ in range(text.count("<image>"))] for text in texts]
        return dict(LLAVAS[case]()(images=pictures, text=texts, padding=True, return_tensors="pt"))
    if case == "mistral3":
        return pixtral(texts, pictures)
    if case == "gemma3":
        found = {"pixel_values": gemma()(images=pictures, return_tensors="pt")["pixel_values"]}
        sizes = iter([64] * len(pictures))
    else:
        found = qwen()(images=pictures, return_tensors="pt")
        sizes = iter((found["image_grid_thw"].prod(1) // 4).tolist())
    expanded = []
    for text in texts:
        head, *parts = text.split("<image>")
        expanded.append(head + "".join(f"<start> {'<image> ' * next(sizes)}<end>{part}" for part in parts))
    ids = tokenizer()(expanded, padding=True, return_tensors="pt")
    inputs = {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"], **found}
    for name in {"mm_token_type_ids", "token_type_ids"} & {*parameters(model_of(case))}:
        inputs[name] = (inputs["input_ids"] == IMAGE_TOKEN).int()
    return inputs


def parameters(model):
    """The arguments of the model's forward."""

    return inspect.signature(type(model).forward).parameters


TEXTS = ["<s> what is on this picture <image> ?", "<s> what is on <image> left this <image> picture"]


@pytest.mark.parametrize("strategy", ["hiprune", "vtc_cls", "pool"])
@pytest.mark.parametrize("case", vtc.families())
def test_processor_output_goes_through(case, strategy):
    """Pictures of three sizes in two prompts: the layouts fit what the processor made, and budgets hold."""
    model = model_of(case)
    inputs = inputs_of(case, TEXTS, [picture(60, 40, 0), picture(33, 80, 1), picture(50, 50, 2)])
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    sizes = [layout.tokens for layout in layouts(model, inputs)]
    assert sum(sizes) == int((inputs["input_ids"] == IMAGE_TOKEN).sum())
    with patched(model, strategy, keep=0.3):
        written = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        report = vtc.report(model)
    assert torch.equal(written[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    assert written.shape[1] == inputs["input_ids"].shape[1] + 4
    assert [i.before for i in report.images] == sizes
    assert [(i.prompt, i.image) for i in report.images] == [(0, 0), (1, 0), (1, 1)]
    assert all(0 < i.after <= 0.3 * i.before + 5 for i in report.images)
    assert len(kept_of(report, 1)) == 2


@pytest.mark.parametrize("case", vtc.families())
def test_family_describes_its_tiny_model(case):
    """Name, depth, [CLS] and the token of an image are those of the config."""
    model = model_of(case)
    family = find_family(model)
    assert (family.name, family.image_token_id) == (case, IMAGE_TOKEN)
    assert family.encoder.depth == 4
    published = family.published
    assert family.encoder.has_cls == published.has_cls
    windowed = len(published.global_layers) < published.depth
    assert family.encoder.global_layers == ((1, 3) if windowed else (0, 1, 2, 3))
    assert family.encoder.tokens == (published.tokens and 64)
    assert family.encoder.tiled == published.tiled


def test_demo_model_with_its_processor():
    """The bundled model and its processor: a picture, a question, a quarter of the tokens."""
    model, processor = vtc.demo.load()
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many shapes are there ?"}]}],
        add_generation_prompt=True,
    )
    inputs = processor(images=picture(224, 224, 0), text=text, return_tensors="pt")
    with vtc.patched(model, "hiprune", keep=0.25):
        written = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        (image,) = vtc.report(model).images
    assert written.shape[1] > inputs["input_ids"].shape[1]
    assert (image.before, image.after) == (196, 49)
