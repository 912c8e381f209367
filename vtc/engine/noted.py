"""The pruned prompt noted on its cache: it goes with the cache, and follows what the cache's own methods do to it."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from vtc.core.errors import PatchError
from vtc.engine.state import PrunedPrompt

_NOTE, _TELLS = "_vtc_pruned", "_vtc_tells"


def note_of(cache: object) -> PrunedPrompt | None:
    """What is noted on a cache, as it was after the last call."""
    return getattr(cache, _NOTE, None)


def remember(cache: object, prompt: PrunedPrompt | None) -> None:
    """Stores the pruned prompt on the cache object (None: nothing pruned). It lives and is copied with the cache, so
    generations, models and threads do not interfere; meanwhile the cache is of a class whose methods that crop it or
    choose rows tell the note. (Wrappers on the object itself would be a reference cycle, and keep the cache alive.)"""
    kind = type(cache)
    if prompt is None:
        vars(cache).pop(_NOTE, None)
        if _TELLS in vars(kind):
            cache.__class__ = kind.__bases__[0]
        return
    setattr(cache, _NOTE, prompt)
    if _TELLS not in vars(kind):
        cache.__class__ = _telling(kind)


@functools.cache
def _telling(kind: type) -> type:
    """A class of caches, under its own name, with the methods of FOLLOWED that it has."""
    methods = {name: follow for name, follow in FOLLOWED.items() if hasattr(kind, name)}
    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__, _TELLS: True}
    return type(kind.__name__, (kind,), methods | named | {"__reduce_ex__": _reduced})


def _reduced(cache: object, protocol: int) -> tuple:
    """Copied and pickled as its own class, which is found again by its name."""
    kind = type(cache).__bases__[0]
    return (_empty, (kind,), *kind.__reduce_ex__(cache, protocol)[2:])


def _empty(kind: type) -> object:
    telling = _telling(kind)
    return telling.__new__(telling)


def recall(cache: object, new_tokens: int) -> PrunedPrompt | None:
    """The pruned prompt in `cache` before `new_tokens` are added; None for an unpruned, empty or reset cache.

    Raises PatchError when the length of the cache is not what was put into it.
    """
    prompt = note_of(cache)
    if prompt is None:
        return None
    length = cache.get_seq_length()
    # A static cache counts on the device; reading that on a GPU would make every decode step wait for it.
    if isinstance(length, torch.Tensor) and length.device.type != "cpu" and new_tokens == 1:
        return prompt
    length = int(length)
    if length == 0:
        remember(cache, None)
        return None
    expected = prompt.cached
    if length != expected and not (length < expected and _counts_by_content(cache)):
        raise PatchError(
            f"the pruned cache holds {length} tokens where {expected} were expected: its layers were filled or cropped "
            "one by one; possible: the methods of the cache itself, or a fresh cache"
        )
    return prompt


def _counts_by_content(cache: object) -> bool:
    """Whether a static cache derives its length from the non-zero keys of its first prompt, as in older versions of
    transformers: padding, whose embeddings are zero, is then not counted."""
    return bool(getattr(cache, "is_compileable", False)) and not hasattr(cache.layers[0], "cumulative_length")


def _crop(cache: object, tokens: int) -> None:
    """`crop` of a pruned cache: a negative number of tokens to drop, or (in older transformers) the number of tokens of
    the unpruned conversation to keep. Raises PatchError, and crops nothing, where that would split an image."""
    prompt = note_of(cache)
    dropped = -tokens if tokens <= 0 else max(0, prompt.seen - tokens)
    if not prompt.can_forget(dropped):
        raise PatchError(
            f"cropping the pruned cache by {dropped} tokens would reach into an image or into padding; possible: to "
            "crop the text at its end"
        )
    if dropped or tokens <= 0:
        type(cache).__bases__[0].crop(cache, -dropped)
        prompt.forget(dropped)


def _chosen(name: str) -> Callable:
    """A method of a cache by whose argument rows are chosen, with the note following."""

    def follow(cache: object, rows: Tensor) -> None:
        getattr(type(cache).__bases__[0], name)(cache, rows)
        note_of(cache).select(torch.as_tensor(rows))

    return follow


def _repeat(cache: object, repeats: int) -> None:
    """`batch_repeat_interleave`, with the note following."""
    type(cache).__bases__[0].batch_repeat_interleave(cache, repeats)
    prompt = note_of(cache)
    prompt.select(torch.arange(len(prompt.next_position)).repeat_interleave(repeats))


FOLLOWED = {
    "crop": _crop,
    "reorder_cache": _chosen("reorder_cache"),
    "batch_select_indices": _chosen("batch_select_indices"),
    "batch_repeat_interleave": _repeat,
}
