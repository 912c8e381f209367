"""Static caches that generate() makes for one answer: no room is made for tokens that are dropped.

A static cache is made for the whole prompt before anything was dropped. Its layers allocate when they are first
written to, which is after the drop before them; until then they can be made smaller. Caches of a caller's own, and
those that are to serve several answers (`max_cache_len`, and transformers 5.0, which keeps its static cache), stay as
they are.
"""

import functools
from collections.abc import Callable

from torch import nn

_OWN = "_vtc_one_answer"


def noting(prepare: Callable, model: nn.Module) -> Callable:
    """`_prepare_cache_for_generation`, which notes on a cache that it was made for one answer."""

    @functools.wraps(prepare)
    def prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs):
        given = model_kwargs.get("past_key_values")
        result = prepare(generation_config, model_kwargs, *args, **kwargs)
        cache, longest = model_kwargs.get("past_key_values"), getattr(generation_config, "max_cache_len", None)
        if given is None and cache is not None and longest is None and not hasattr(model, "_cache"):
            setattr(cache, _OWN, True)
        return result

    return prepare_cache_for_generation


def fit(cache: object, first: int, dropped: int) -> None:
    """Takes `dropped` columns from the layers of a cache from `first` on, where they hold nothing yet. Sliding windows
    keep their size."""
    if dropped > 0 and getattr(cache, _OWN, False):
        for layer in cache.layers[first:]:
            growing = not getattr(layer, "is_compileable", False)
            if not (growing or getattr(layer, "is_sliding", False) or getattr(layer, "is_initialized", True)):
                layer.max_cache_len -= dropped
