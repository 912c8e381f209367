"""What the Hugging Face path (transformers and `vtc.patch`) writes: the reference for every engine."""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

import vtc


@dataclass(frozen=True)
class Ask:
    """One prompt (text with the model's image placeholders) with its pictures (files); tokens: to write at most."""

    prompt: str
    images: tuple[Path, ...] = ()
    tokens: int = 8
    ignore_eos: bool = False


@dataclass(frozen=True)
class Written:
    """What was written for one prompt, and how many tokens of the prompt were left after pruning."""

    ids: list[int]
    prompt_tokens: int


@functools.cache
def loaded(folder: Path) -> tuple:
    """(model, processor) of a folder, float32, sdpa; shared, so patch it in a with-block only."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    options = {"dtype": torch.float32, "attn_implementation": "sdpa", "local_files_only": True}
    model = AutoModelForImageTextToText.from_pretrained(folder, **options).eval()
    return model, AutoProcessor.from_pretrained(folder, local_files_only=True)


@torch.no_grad()
def write(folder: Path, ask: Ask) -> Written:
    """Greedy, one prompt at a time, with the model as it is patched now."""
    model, processor = loaded(folder)
    images = [Image.open(file).convert("RGB") for file in ask.images] or None
    inputs = processor(text=[ask.prompt], images=images, return_tensors="pt")
    end = {"eos_token_id": None} if ask.ignore_eos else {}
    out = model.generate(**inputs, max_new_tokens=ask.tokens, do_sample=False, **end)
    given = inputs["input_ids"].shape[1]
    pruned = bool(ask.images) and hasattr(model, "_vtc_patch")
    left = vtc.report(model).prompts_entered[0] if pruned else given
    return Written(out[0, given:].tolist(), left)


def reference(folder: Path, asks: list[Ask], strategy: str | None = None, keep=None, **options) -> list[Written]:
    """What a strategy at a keep writes for each prompt; strategy None or keep 1.0: the stock model."""
    model, _ = loaded(folder)
    if strategy is None or (isinstance(keep, float) and keep == 1.0):
        return [write(folder, ask) for ask in asks]
    with vtc.patched(model, strategy, keep, **options):
        return [write(folder, ask) for ask in asks]


def written_text(folder: Path, ids: list[int]) -> str:
    """Generated ids as text without special tokens."""
    return loaded(folder)[1].tokenizer.decode(ids, skip_special_tokens=True).strip()
