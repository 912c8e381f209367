"""The demo model from scratch: configuration, random weights, tokenizer, processor, and the export to a folder.

Real transformers classes, so that whatever works on LLaVA-1.5 works here: CLIP tower with [CLS], features of layer -2,
a two-layer projector, a Llama. Sizes are small: 8 + 8 layers, head size 32, 196 visual tokens, about 3 M parameters.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from vtc.demo.questions import vocabulary
from vtc.demo.scenes import GRID, PATCH, SIZE
from vtc.io.files import write_text

HIDDEN = 128  # width of the tower and of the language model
LAYERS = 8  # in each of the two
HEADS = 4  # of size 32
MLP = 384
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:")
PAD, BOS, EOS, UNK, IMAGE = range(5)  # token ids, by the order of SPECIAL
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ ('' if loop.first else ' ') + '<s> USER:' }}"
    "{%- else -%}{{ ' ASSISTANT:' }}{%- endif -%}"
    "{%- if message['content'] is string -%}{{ ' ' + message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ ' <image>' }}"
    "{%- elif part['type'] == 'text' -%}{{ ' ' + part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{ ' </s>' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ ' ASSISTANT:' }}{%- endif -%}"
)


def prompt(question: str, images: int = 1) -> str:
    """The text that the chat template makes of `images` images followed by a question."""
    return f"<s> USER:{' <image>' * images} {question} ASSISTANT:"


def build_tokenizer(more_words: Sequence[str] = (), more_special: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of whole lower-case words; numbers are one token a digit and decode without a space between.

    Words that it does not know become <unk>. It pads on the left and adds no special tokens by itself. `more_words`
    and `more_special` follow the demo model's, whose ids they leave as they are.
    """
    digits = [str(d) for d in range(10)]
    words = [*SPECIAL, "?", ".", ",", *digits, *("##" + d for d in digits), *vocabulary(), *more_words]
    words += more_special
    core = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in (*SPECIAL, *more_special)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> LlavaProcessor:
    """Tokenizer and image processor as one; needs no torchvision. An image becomes 196 <image> tokens."""
    try:
        from transformers import CLIPImageProcessorPil as ImageProcessor
    except ImportError:  # transformers before the Pillow backend got its own name
        from transformers import CLIPImageProcessor as ImageProcessor
    images = ImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_config() -> LlavaConfig:
    """The configuration of the demo model, dtype float32."""
    vision = CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=HIDDEN,
        hidden_act="gelu_pytorch_tanh",
    )
    text = LlamaConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=2048,
        initializer_range=0.05,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        image_seq_length=GRID * GRID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        pad_token_id=PAD,
        dtype="float32",
    )


def vision_core(model: LlavaForConditionalGeneration) -> torch.nn.Module:
    """The module with `embeddings`, `pre_layrnorm`, `encoder` and `post_layernorm`, whatever the version's nesting."""
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower)


def _grid_positions(width: int) -> torch.Tensor:
    """Sine and cosine codes of row and column, [196, width], standard deviation about 0.4."""
    frequency = 100.0 ** (-torch.arange(width // 4) / (width // 4))
    angle = torch.arange(GRID)[:, None] * frequency[None]
    axis = torch.cat((angle.sin(), angle.cos()), 1)  # [14, width / 2]
    rows, columns = axis.repeat_interleave(GRID, 0), axis.repeat(GRID, 1)
    return 0.5 * torch.cat((rows, columns), 1)


def build_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """A model with fresh random weights in float32, eager attention; the same seed gives the same weights."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration._from_config(build_config(), attn_implementation="eager")
    core = vision_core(model)
    with torch.no_grad():
        for layer in core.encoder.layers:
            for weight in (p for p in layer.parameters() if p.ndim == 2):
                torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5 * 0.5)
        torch.nn.init.normal_(core.embeddings.patch_embedding.weight, std=0.06)
        torch.nn.init.normal_(core.embeddings.class_embedding, std=0.4)
        core.embeddings.position_embedding.weight[0] = 0
        core.embeddings.position_embedding.weight[1:] = _grid_positions(HIDDEN)
        for linear in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
            torch.nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            torch.nn.init.zeros_(linear.bias)
    return model


def export(model: LlavaForConditionalGeneration, folder: str | Path) -> None:
    """Write weights (float16, loading as float32), tokenizer, processor and greedy generation settings to `folder`.

    The folder loads with `AutoProcessor` and `LlavaForConditionalGeneration` from transformers 5.0 on, offline.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]  # vLLM goes by it
    model.config.save_pretrained(folder)
    GenerationConfig(
        max_new_tokens=4, do_sample=False, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS
    ).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    save_weights(model, folder)


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Write the weights in float16 to `folder`, beside a configuration that gets dtype float32 and portable names."""
    # Versions nest the tower differently and map only the older, deeper name; so the file has that one.
    weights = {
        re.sub(r"vision_tower\.(?!vision_model)", "vision_tower.vision_model.", name): value.half().contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    for path in folder.glob("*.json"):
        if path.name in ("config.json", "processor_config.json", "preprocessor_config.json"):
            write_text(path, json.dumps(_portable(json.loads(path.read_text())), indent=2, sort_keys=True) + "\n")


def _portable(value):
    """Saved settings with dtype float32 throughout and the image processor's name that every version knows."""
    if isinstance(value, dict):
        return {key: "float32" if key == "dtype" else _portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    return "CLIPImageProcessor" if value == "CLIPImageProcessorPil" else value
