"""Masks by layer type: models whose images attend to themselves both ways make their masks before the language model
is entered, for the whole prompt; here they are made again for the kept tokens."""

import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Blocks:
    """What one call of such a model was given. mask: the caller's, as it came; types [B, L]: of the tokens, None where
    the caller gave none and attention is causal. model: its `create_masks_for_generate` makes the masks; name: its
    argument for the types. given: the arguments of the inner model."""

    def __init__(self, model: nn.Module, name: str, given: dict):
        self.model, self.name, self.mask, self.types = model, name, given.get("attention_mask"), given.get(name)

    def for_step(self, inner: nn.Module, given: dict, seen: int, tokens: int) -> dict:
        """The arguments of a decode step without the mask over the unpruned prompt, which does not fit the cache: the
        boundary cuts it, and the language model makes its own masks from that. seen: tokens before the step. Older
        versions of transformers would count these on the pruned cache, which the boundary does not expect."""
        step = {**given, "attention_mask": None}
        if "cache_position" in _parameters(type(inner).forward) and given.get("cache_position") is None:
            device = (given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]).device
            step["cache_position"] = torch.arange(seen, seen + tokens, device=device)
        return step

    def rebuild(self, kwargs: dict, index: Tensor, valid: Tensor | None) -> None:
        """Puts the masks of the kept tokens `index` [B, K] into the language model's arguments, which have been cut:
        sliding windows count kept tokens, and the kept tokens of a block attend to each other."""
        if self.types is None:
            return
        types = self.types.to(index.device).expand(index.shape[0], -1).gather(1, index)
        own = {self.name: types if valid is None else types.masked_fill(~valid, 0), "is_first_iteration": True}
        kwargs["attention_mask"] = made(self.model, {**kwargs, **own})


def made(model: nn.Module, given: dict) -> object:
    """The masks that generate() of a model makes, from the arguments of its language model."""
    from transformers.masking_utils import create_masks_for_generate

    make = getattr(type(model), "create_masks_for_generate", create_masks_for_generate)
    arguments = {**given, "config": model.config, "input_embeds": given["inputs_embeds"], "position_ids": None}
    return make(**{name: arguments.get(name) for name in _parameters(make) if name in arguments})


@functools.cache
def _parameters(function: Callable) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
