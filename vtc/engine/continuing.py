"""What generate() derives from the length of the cache that it continues, which is a pruned one: put right."""

import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vtc.core.hooks import Patchwork
from vtc.engine.media import given_kinds
from vtc.engine.noted import recall
from vtc.engine.state import ThreadState
from vtc.engine.static import noting


def put_on(work: Patchwork, model: nn.Module, thread: ThreadState) -> None:
    """Wraps the methods of a model that can generate() where it matters how many tokens the cache has seen."""
    if hasattr(model, "_prepare_cache_for_generation"):
        work.method(model, "_prepare_cache_for_generation", noting(model._prepare_cache_for_generation, model))
    for name, wrap in (
        ("prepare_inputs_for_generation", _prepared),
        ("_prepare_position_ids_for_generation", _placed),
        ("_get_candidate_generator", _later),
        ("_prefill", _in_one_piece),
    ):
        if hasattr(model, name):
            work.method(model, name, wrap(getattr(model, name), thread))


def _prepared(prepare: Callable, thread: ThreadState) -> Callable:
    """The first forward of a later turn gets the tokens that the pruned cache has not seen yet, where the caller passed
    the whole conversation; and the caller's 2-D mask is noted, since the one that is made of it for a static cache
    counts columns of the pruned cache."""

    @functools.wraps(prepare)
    def prepare_inputs_for_generation(input_ids, *args, **kwargs):
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        thread.mask = None
        if cache is None or not hasattr(cache, "get_seq_length"):
            return prepare(input_ids, *args, **kwargs)
        if getattr(cache, "is_compileable", False) and isinstance(mask, Tensor) and mask.ndim == 2:
            thread.mask = mask
        prompt = recall(cache, 2) if kwargs.get("is_first_iteration") else None
        if prompt is not None:
            if mask is None and getattr(cache, "is_compileable", False):
                thread.mask = torch.ones_like(input_ids)  # that of the cache's mask, with none, counts its own columns
            embeds, position = kwargs.get("inputs_embeds"), kwargs.get("cache_position")
            length = (input_ids if embeds is None else embeds).shape[1]
            if kwargs.get("next_sequence_length") is not None:
                kwargs["next_sequence_length"] = length - prompt.seen
            elif position is not None and len(position) == length - int(cache.get_seq_length()):  # older versions
                kwargs["cache_position"] = torch.arange(prompt.seen, length, device=position.device)
        return prepare(input_ids, *args, **kwargs)

    return prepare_inputs_for_generation


def _placed(prepare: Callable, thread: ThreadState) -> Callable:
    """Models with M-RoPE look for visual tokens behind what the cache has seen: those of earlier turns are none."""

    @functools.wraps(prepare)
    def prepare_position_ids_for_generation(inputs, model_kwargs, *args, **kwargs):
        types, cache = model_kwargs.get("mm_token_type_ids"), model_kwargs.get("past_key_values")
        if types is not None and cache is not None and hasattr(cache, "get_seq_length"):
            prompt = recall(cache, 2)
            if prompt is not None and not bool(types[:, prompt.seen :].any()):
                model_kwargs = {**model_kwargs, "mm_token_type_ids": torch.zeros_like(types)}
        return prepare(inputs, model_kwargs, *args, **kwargs)

    return prepare_position_ids_for_generation


def _later(make: Callable, thread: ThreadState) -> Callable:
    """The first forward of assisted generation is the prompt alone: candidates behind it would be taken for the end of
    the question, by which tokens are chosen."""

    @functools.wraps(make)
    def get_candidate_generator(*args, **kwargs):
        generator = make(*args, **kwargs)
        propose = generator.get_candidates

        def get_candidates(input_ids, *more, **options):
            del generator.get_candidates
            propose(input_ids, *more, **options)  # an assistant's first look at the prompt
            return input_ids, None

        if not getattr(generator, "requires_model_outputs", False):
            generator.get_candidates = get_candidates
        return generator

    return get_candidate_generator


def _in_one_piece(prefill: Callable, thread: ThreadState) -> Callable:
    """A prompt with images, or behind pruned ones, is not read in chunks (`prefill_chunk_size`): tokens are chosen once
    for the whole prompt, and the layers behind a drop see few of them anyway."""

    @functools.wraps(prefill)
    def whole(input_ids, generation_config, model_kwargs, *args, **kwargs):
        if generation_config.prefill_chunk_size is not None:
            cache = model_kwargs.get("past_key_values")
            pruned = hasattr(cache, "get_seq_length") and recall(cache, 2) is not None
            if pruned or given_kinds(model_kwargs):
                generation_config = copy.copy(generation_config)
                generation_config.prefill_chunk_size = None
        return prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)

    return whole
