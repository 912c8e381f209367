"""What is served when serving is measured: a preset with random weights, as a folder that vLLM loads, and requests."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vtc.bench.presets import build, preset_of, presets
from vtc.core.errors import ConfigError
from vtc.patching import find_family

SPECIAL = {0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>"}


def preset(name: str) -> object:
    """The transformers config of a preset, its model's class noted; raises ConfigError unless it comes with a processor
    and its images all have one number of tokens."""
    possible = [name for name, preset in presets().items() if preset.processor is not None]
    if name not in possible:
        raise ConfigError(f"--preset {name!r} cannot be served here; possible: {', '.join(possible)}")
    config = preset_of(name).config()
    config.architectures = [type(_skeleton(config)).__name__]
    return config


def _skeleton(config: object) -> nn.Module:
    return build(config, torch.device("meta"), torch.float32, "sdpa")


def visual_tokens(config: object) -> int:
    """How many visual tokens an image has."""
    return find_family(_skeleton(config)).encoder.tokens


def kv_bytes(config: object, dtype: torch.dtype) -> int:
    """Bytes of the KV cache for one token."""
    text = config.text_config
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * text.num_key_value_heads * size * dtype.itemsize


def save(name: str, config: object, folder: Path, dtype: torch.dtype, seed: int) -> int:
    """Writes weights, config, tokenizer and processor of a preset; returns the number of parameters."""
    from safetensors.torch import save_file

    model = build(config, torch.device("cpu"), dtype, "sdpa", seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = str(dtype).removeprefix("torch.")
    model.config.save_pretrained(folder)
    preset_of(name).processor(config, _tokenizer(config)).save_pretrained(folder)
    # vLLM maps the published name of the tower, which is one level deeper than that of newer transformers.
    weights = {
        re.sub(r"vision_tower\.(?!vision_model)", "vision_tower.vision_model.", name): value.contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(parameter.numel() for parameter in model.parameters())


def requests(config: object, count: int, text: int, seed: tuple[int, ...]) -> Iterator[dict]:
    """Prompts as vLLM takes them: each an image of its own (noise, uint8 [H, W, 3]) between random words."""
    from PIL import Image

    side, image = config.vision_config.image_size, config.image_token_id
    draw = np.random.default_rng(seed)
    for _ in range(count):
        words = draw.integers(len(SPECIAL), image, text - 1).tolist()  # placeholders are beyond the words
        half = len(words) // 2
        picture = Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8))
        ids = [1, *words[:half], image, *words[half:]]
        yield {"prompt_token_ids": ids, "multi_modal_data": {"image": picture}}


def _tokenizer(config: object) -> object:
    """Words are `<4>`, `<5>`, ... by their ids."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {i: SPECIAL.get(i, f"<{i}>") for i in range(config.text_config.vocab_size)}
    names[config.image_token_id] = "<image>"
    core = Tokenizer(models.WordLevel({name: i for i, name in names.items()}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in (*SPECIAL.values(), "<image>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
