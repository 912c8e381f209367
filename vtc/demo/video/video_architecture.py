"""The video demo model before its training: a LLaVA-NeXT-Video with the weights of the demo model; and its export.

Real transformers classes. Tower, projector and language model have the demo model's sizes; a frame of 14 x 14 patches
becomes 7 x 7 visual tokens, the means of 2 x 2, before the projector. New words have new rows of embedding and head.
"""

import json
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    LlavaForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from vtc.demo.architecture import BOS, CHAT_TEMPLATE, EOS, IMAGE, PAD, build_config, build_tokenizer, save_weights
from vtc.demo.scenes import GRID, PATCH, SIZE
from vtc.demo.video.clip_questions import NEW_WORDS
from vtc.io.files import write_text

VIDEO_TOKEN = "<video>"
TEMPLATE = CHAT_TEMPLATE.replace(
    "{%- elif part['type'] == 'text' -%}",
    "{%- elif part['type'] == 'video' -%}{{ ' <video>' }}{%- elif part['type'] == 'text' -%}",
)


def build_video_tokenizer() -> PreTrainedTokenizerFast:
    """The demo model's with the words of questions about clips and a placeholder of clips."""
    return build_tokenizer(NEW_WORDS, (VIDEO_TOKEN,))


def build_video_config() -> LlavaNextVideoConfig:
    """The configuration, dtype float32."""
    still, tokenizer = build_config(), build_video_tokenizer()
    text = still.text_config
    text.vocab_size = len(tokenizer)
    return LlavaNextVideoConfig(
        vision_config=still.vision_config,
        text_config=text,
        image_token_index=IMAGE,
        video_token_index=tokenizer.convert_tokens_to_ids(VIDEO_TOKEN),
        image_grid_pinpoints=[[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE]],
        image_seq_length=GRID * GRID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        spatial_pool_mode="average",
        spatial_pool_stride=2,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        dtype="float32",
    )


@torch.no_grad()
def build_video_model(still: LlavaForConditionalGeneration, seed: int = 0) -> LlavaNextVideoForConditionalGeneration:
    """A model in float32, eager attention, with the weights of the demo model `still`; rows of new words are random."""
    torch.manual_seed(seed)
    model = LlavaNextVideoForConditionalGeneration._from_config(build_video_config(), attn_implementation="eager")
    known = still.state_dict()
    for name, value in model.state_dict().items():
        if name in known:
            value[: len(known[name])] = known[name]
    model.model.image_newline.zero_()  # of pictures, which this model is not trained on
    return model


def export_video_model(model: LlavaNextVideoForConditionalGeneration, folder: str | Path) -> None:
    """Write weights (float16, loading as float32), tokenizer, processor and greedy generation settings to `folder`.

    With torchvision, `AutoProcessor` loads the folder with its video part.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    GenerationConfig(
        max_new_tokens=4, do_sample=False, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS
    ).save_pretrained(folder)
    build_video_tokenizer().save_pretrained(folder)
    write_text(folder / "chat_template.jinja", TEMPLATE)
    write_text(folder / "processor_config.json", json.dumps(_processor(), indent=2, sort_keys=True) + "\n")
    save_weights(model, folder)


def _processor() -> dict:
    """What `LlavaNextVideoProcessor` saves; written by hand as its video part cannot be made without torchvision."""
    pixels = {
        "size": {"shortest_edge": SIZE},
        "crop_size": {"height": SIZE, "width": SIZE},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
    }
    pinpoints = [[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE]]
    return {
        "processor_class": "LlavaNextVideoProcessor",
        "image_processor": pixels
        | {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": pinpoints},
        "video_processor": pixels | {"video_processor_type": "LlavaNextVideoVideoProcessor"},
        "image_token": "<image>",
        "video_token": VIDEO_TOKEN,
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
