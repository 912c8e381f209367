"""What is served when serving is measured: a preset with random weights, as a folder that vLLM loads, and requests."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vtc.bench.presets import build, preset_of, presets
from vtc.core.errors import ConfigError, UnsupportedError
from vtc.core.registry import unknown
from vtc.patching import find_family

SPECIAL = {0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>"}


@dataclass(frozen=True)
class PromptForm:
    """What all prompts of a model have in common. image: the ids that stand for its picture; side: pixels along that
    picture; words: the ids of random words, from the first up to but not including the second."""

    image: tuple[int, ...]
    side: int
    words: tuple[int, int]


@dataclass(frozen=True)
class ServedPreset:
    """A preset that can be served. config: of transformers, its model's class noted; processor: of transformers;
    prompt: the form of its prompts; visual: visual tokens of a prompt."""

    config: object
    processor: object
    prompt: PromptForm
    visual: int


def served(name: str) -> ServedPreset:
    """The preset of that name as it is served; raises ConfigError, which says why, where it cannot be."""
    known = presets()
    if name not in known:
        raise ConfigError(unknown("preset", name, list(known)))
    preset = preset_of(name)
    config = preset.config()
    family = find_family(build(config, torch.device("meta"), torch.float32, "sdpa"))
    possible = ", ".join(other for other, preset in known.items() if preset.processor is not None)
    for missing, why in ((not family.served, "has no pruned form in vLLM"), (not preset.processor, "has no processor")):
        if missing:
            raise ConfigError(f"--preset {name!r} cannot be served: {family.name} {why}; possible: {possible}")
    try:
        processor = preset.processor(config, _tokenizer(config))
    except UnsupportedError as error:
        raise ConfigError(f"--preset {name!r} cannot be served: {error}") from None
    config.architectures = [type(family.model).__name__]
    side = preset.side or config.vision_config.image_size
    first_special = min(i for i in family.special_ids() if i >= len(SPECIAL))
    prompt = PromptForm(tuple(family.image_ids(1)), side, (len(SPECIAL), first_special))
    (layout,) = family.image_layouts(
        processor.image_processor(_noise(side, np.random.default_rng(0)), return_tensors="pt")
    )
    return ServedPreset(config, processor, prompt, layout.tokens)


def kv_bytes(config: object, dtype: torch.dtype) -> int:
    """Bytes of the KV cache for one token."""
    text = config.text_config
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * text.num_key_value_heads * size * dtype.itemsize


def save(model: ServedPreset, folder: Path, dtype: torch.dtype, seed: int) -> int:
    """Writes weights, config, tokenizer and processor of a preset; returns the number of parameters."""
    from safetensors.torch import save_file

    network = build(model.config, torch.device("cpu"), dtype, "sdpa", seed)
    folder.mkdir(parents=True, exist_ok=True)
    network.config.architectures = model.config.architectures
    network.config.dtype = str(dtype).removeprefix("torch.")
    network.config.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    # Parameters alone: a tied output head is the embedding and not saved again. vLLM maps the published name of CLIP's
    # tower, which is one level deeper than that of newer transformers.
    weights = {
        re.sub(r"vision_tower\.(?!vision_model)", "vision_tower.vision_model.", name): value.detach().contiguous()
        for name, value in network.named_parameters()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(parameter.numel() for parameter in network.parameters())


def requests(form: PromptForm, count: int, text: int, seed: tuple[int, ...]) -> Iterator[dict]:
    """Prompts as vLLM takes them: a picture of noise each, between random words. text: tokens that are not visual."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        words = draw.integers(*form.words, text - len(form.image)).tolist()
        half = len(words) // 2
        picture = _noise(form.side, draw)
        ids = [1, *words[:half], *form.image, *words[half:]]
        yield {"prompt_token_ids": ids, "multi_modal_data": {"image": picture}}


def _noise(side: int, draw: np.random.Generator) -> object:
    """A picture of side x side pixels, uint8 [side, side, 3] as a PIL image."""
    from PIL import Image

    return Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8))


def _tokenizer(config: object) -> object:
    """Words are `<4>`, `<5>`, ... by their ids."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    media = {"image_token": (config.image_token_id, "<image>")}
    if getattr(config, "video_token_id", None) is not None:
        media["video_token"] = (config.video_token_id, "<video>")
    names = {i: SPECIAL.get(i, f"<{i}>") for i in range(config.text_config.vocab_size)} | dict(media.values())
    core = Tokenizer(models.WordLevel({name: i for i, name in names.items()}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [*SPECIAL.values(), *(name for _, name in media.values())]
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={role: name for role, (_, name) in media.items()},
    )  # fmt: skip
