"""Static caches that generate() makes for one answer: no room is made for tokens that are dropped.

A static cache is made for the whole prompt before anything was dropped. Its layers allocate when they are first
written to, which is after the drop before them; until then they can be made smaller. A layer never becomes smaller
than in an earlier answer under the same patch, so that compiled steps are compiled anew only when a longer one comes,
as transformers does it for whole prompts. Caches of a caller's own, and those that are to serve several answers
(`max_cache_len`, and transformers 5.0, which keeps its static cache), stay as they are.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

_OWN = "_vtc_one_answer"


@dataclass
class OneAnswer:
    """Noted on a cache. asked: columns for the unpruned prompt and its answer; earlier: the size of each layer's buffer
    in earlier answers, by its number; sizes: the same with this one's."""

    asked: int
    earlier: dict[int, int]
    sizes: dict[int, int]


def noting(prepare: Callable, model: nn.Module) -> Callable:
    """`_prepare_cache_for_generation`, which notes on a cache that it was made for one answer."""
    sizes: dict[int, int] = {}

    @functools.wraps(prepare)
    def prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, batch_size, max_cache_length):
        given = model_kwargs.get("past_key_values")
        result = prepare(generation_config, model_kwargs, generation_mode, batch_size, max_cache_length)
        cache, several = model_kwargs.get("past_key_values"), getattr(generation_config, "max_cache_len", None)
        if given is None and cache is not None and several is None and not hasattr(model, "_cache"):
            setattr(cache, _OWN, OneAnswer(max_cache_length, dict(sizes), sizes))
        return result

    return prepare_cache_for_generation


def fit(cache: object, first: int, length: int, width: int) -> None:
    """Makes the layers of a cache from `first` on, where they hold nothing yet, as long as `width` of `length` tokens
    of a prompt, and the answer, need. Sliding windows keep their size."""
    own: OneAnswer | None = getattr(cache, _OWN, None)
    if own is None or width >= length:
        return
    for number, layer in enumerate(cache.layers[first:], first):
        growing = not getattr(layer, "is_compileable", False)
        if growing or getattr(layer, "is_sliding", False) or getattr(layer, "is_initialized", True):
            continue
        needed = max(own.asked - (length - width), own.earlier.get(number, 0))
        layer.max_cache_len = own.sizes[number] = min(needed, layer.max_cache_len)
