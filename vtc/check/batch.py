"""Batches of tiny models: split, padded on either side, extended by tokens; positions do not count padding."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtc.patches._tiny import IMAGE_TOKEN

IMAGES = (1, 2, 1)
"""Images of each prompt of the batch that methods and families are tried on."""


def split(
    inputs: dict, images: tuple[int, ...] = IMAGES, sizes: str | None = "image_grid_thw", placeholder: int = IMAGE_TOKEN
) -> list[dict]:
    """The prompts of a batch one by one, without padding.

    images: of each prompt. sizes: the argument [images, 3] whose products are the rows that each image has in an
    argument whose first axis is patches of all images. placeholder: the id by whose number the rows of other arguments
    are divided, where these are neither images nor prompts.
    """
    shape, singles, first = inputs["input_ids"].shape, [], 0
    per_token = [name for name, value in inputs.items() if value.shape[:2] == shape]
    counts = (inputs["input_ids"] == placeholder).sum(1)
    for b, count in enumerate(images):
        real, images_of_prompt = inputs["attention_mask"][b].bool(), slice(first, first + count)
        one = {name: inputs[name][b : b + 1, real] for name in per_token}
        for name in set(inputs) - set(per_token) if count else ():
            value = inputs[name]
            if name == "batch_num_images":
                one[name] = value.new_tensor([count])
            elif name == "pixel_values" and value.ndim == 5 and "image_sizes" not in inputs:
                # [prompts, most crops, 3, H, W], the rest empty
                one[name] = value[b : b + 1, value[b].flatten(1).any(1)]
            elif len(value) == sum(images):
                one[name] = value[images_of_prompt]
            elif sizes in inputs:
                rows = inputs[sizes].prod(1)
                start = int(rows[:first].sum())
                one[name] = value[start : start + int(rows[images_of_prompt].sum())]
            else:
                start, stop = (int(counts[:n].sum()) * len(value) // int(counts.sum()) for n in (b, b + 1))
                one[name] = value[start:stop]
        singles.append(one)
        first += count
    return singles


def padded(inputs: dict, side: str) -> dict:
    """The batch with its padding on this side, "left" or "right"."""
    mask = inputs["attention_mask"]
    order = (mask if side == "left" else 1 - mask).argsort(dim=1, stable=True)
    return {name: x.gather(1, order) if x.shape[:2] == mask.shape else x for name, x in inputs.items()}


def grow(inputs: dict, tokens: Tensor) -> dict:
    """The inputs with `tokens` [B, n] after the prompts."""
    grown = dict(inputs, input_ids=torch.cat([inputs["input_ids"], tokens], 1))
    grown["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], 1)
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in inputs:
            grown[name] = torch.cat([inputs[name], torch.zeros_like(tokens).to(inputs[name])], 1)
    return grown


def real_columns(mask: object) -> Tensor | None:
    """The 2-D mask [B, K] that belongs to masks by layer type [B, 1, K, K]: a token that is not padding attends to
    itself. Any other mask is given back."""
    if not isinstance(mask, dict):
        return mask
    mask = next((m for m in mask.values() if m is not None), None)
    if mask is None:
        return None
    itself = mask[:, 0].diagonal(dim1=1, dim2=2)
    return (itself if itself.dtype == torch.bool else itself == 0).long()


def cached_lengths(cache: object) -> list[int | None]:
    """The columns of keys that each layer of a cache holds; None for a layer without any (linear attention)."""
    return [layer.keys.shape[2] if hasattr(layer, "keys") else None for layer in cache.layers]


def positions_of(inputs: dict) -> dict:
    """`position_ids` that count real tokens, as generate() makes them, where the model itself would count padding."""
    if {"image_grid_thw", "video_grid_thw", "mm_token_type_ids"} & set(inputs):
        return {}
    mask = inputs["attention_mask"]
    return {"position_ids": (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)}


@torch.no_grad()
def forward(model: nn.Module, inputs: dict, **options):
    """A forward pass whose positions do not depend on padding."""
    return model(**inputs, **positions_of(inputs), **options)


@dataclass
class Generated:
    """The result of generate(). tokens [B, n]: after the prompt; logits [n, B, V]: of each step, in the model's own
    type (`output_logits` is always float32); output: the object that generate() returned."""

    tokens: Tensor
    logits: Tensor
    output: object


def generate(model: nn.Module, inputs: dict, tokens: int = 8, **options) -> Generated:
    """generate(), greedy by default, with the logits of each step as the model computed them."""
    steps: list[Tensor] = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: steps.append(output[:, -1]))
    try:
        options = {"do_sample": False, "return_dict_in_generate": True, **options}
        output = model.generate(**inputs, max_new_tokens=tokens, **options)
    finally:
        handle.remove()
    given = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    return Generated(output.sequences[:, given:], torch.stack(steps), output)


class Words:
    """A tokenizer for the tiny models, for methods that read the question: a token is a word, in Vicuna's template."""

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """The prompt as text."""
        return f"USER: {' '.join(f'word{i}' for i in ids)} ASSISTANT:"

    def __call__(self, words: list[str], is_split_into_words: bool = True, add_special_tokens: bool = False) -> dict:
        """The ids of words; what is no token of its own becomes one that depends on its letters."""
        known = [word.removeprefix("word") for word in words]
        return {"input_ids": [int(w) if w.isdecimal() else 3 + sum(map(ord, w)) % 90 for w in known]}
