"""Decode: generate()'s bookkeeping of the unpruned prompt mapped onto the pruned cache, step by step."""

import torch

from vtc.engine.masks import cut_decode
from vtc.engine.state import PrunedPrompt
from vtc.errors import PatchError


def unpruned_positions(prompt: PrunedPrompt, tokens: int, mrope: bool) -> torch.Tensor:
    """Positions of the next `tokens` tokens as if nothing had been dropped: [B, tokens], or [3, B, tokens] (M-RoPE)."""
    steps = torch.arange(tokens, device=prompt.next_position.device) + (prompt.seen - prompt.length)
    positions = prompt.next_position.unsqueeze(1) + steps
    return positions.unsqueeze(0).expand(3, -1, -1) if mrope else positions


def step(kwargs: dict, prompt: PrunedPrompt, mrope: bool) -> None:
    """Rewrites the language model's keyword arguments in place for tokens that follow a pruned prompt.

    Raises PatchError when the caller's bookkeeping does not follow on what the cache has seen (a cropped cache, a
    conversation continued from it, a batch of another size).
    """
    embeds, mask = kwargs["inputs_embeds"], kwargs.get("attention_mask")
    tokens = embeds.shape[1]
    if embeds.shape[0] != prompt.index.shape[0]:
        raise PatchError(
            f"a batch of {embeds.shape[0]} continues a pruned cache of {prompt.index.shape[0]} prompts; "
            "possible: the same prompts in the same order"
        )
    flat = mask is not None and not isinstance(mask, dict) and mask.ndim == 2
    if flat and mask.shape[1] != prompt.seen + tokens or not flat and tokens > 1:
        raise PatchError(
            f"{tokens} tokens do not follow on the {prompt.seen} that this pruned cache has seen (multi-turn reuse of "
            "the cache, assisted generation); possible: a fresh cache for each generate(), or only new tokens with a "
            "2-D mask"
        )
    if kwargs.get("position_ids") is None:
        kwargs["position_ids"] = unpruned_positions(prompt, tokens, mrope)
    if prompt.shift is not None:
        kwargs["position_ids"] = kwargs["position_ids"] - prompt.shift.unsqueeze(1)
    if kwargs.get("cache_position") is not None:
        kwargs["cache_position"] = kwargs["cache_position"] - prompt.dropped
    cached = prompt.seen - prompt.dropped + tokens
    static = bool(getattr(kwargs["past_key_values"], "is_compileable", False))
    kwargs["attention_mask"] = cut_decode(mask, prompt.index, prompt.valid, prompt.length, cached, static)
    prompt.seen += tokens
