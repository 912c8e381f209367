"""Self-speculation by visual tokens: a draft that sees few of them proposes, the full model decides."""

import copy
import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import transformers
from torch import Tensor, nn
from transformers import GenerationMixin

from vtc.config.strategy import Strategy
from vtc.core.errors import ConfigError, UnsupportedError
from vtc.core.hooks import Patchwork
from vtc.core.twin import twin
from vtc.engine.noted import note_of
from vtc.patching import ATTRIBUTE, current, patch

REREAD = 2  # tokens that an assistant reads again in each round
ROUND = ("input_ids", "attention_mask")  # what a round after the first is given


def takes_drafts() -> bool:
    """Whether assisted generation of the installed transformers is the one that a draft knows."""
    return "next_sequence_length" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters


class Answering(threading.local):
    """Per thread: the tensors beside ids and mask that the answer in progress was given, and whether a round begins."""

    media: Mapping[str, Tensor] = MappingProxyType({})
    begins: bool = False


class Draft:
    """What `vtc.draft` gives. model: decides; assistant: a second model object on its weights, patched, that proposes;
    `vtc.report(draft.assistant)` tells of it. work: what is on the assistant."""

    def __init__(self, model: Any, assistant: Any, work: Patchwork):
        self.model, self.assistant = model, assistant
        self._answering = Answering()
        work.method(assistant, "generate", self._one_round(assistant.generate))
        prepare = assistant.prepare_inputs_for_generation
        work.method(assistant, "prepare_inputs_for_generation", self._reading(prepare))

    def generate(self, **inputs: Any) -> Any:
        """`model.generate(**inputs)` with the assistant's proposals: the same tokens where generation is greedy, up to
        the rounding of forwards of several tokens; one prompt at a time. Raises ConfigError for several."""
        ids = inputs.get("input_ids")
        if ids is None or len(ids) != 1:
            given = "no input_ids" if ids is None else f"{len(ids)} prompts"
            raise ConfigError(f"a draft was given {given}; possible: input_ids of one prompt [1, L], and its images")
        self._answering.media = {k: x for k, x in inputs.items() if k not in ROUND and isinstance(x, Tensor)}
        try:
            return self.model.generate(**inputs, assistant_model=self.assistant)
        finally:
            self._answering.media = {}

    def _one_round(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """A round of proposals. The first reads the prompt with its images (transformers would hand it the features of
        the full model, without the signals that a method reads); each later one continues the draft's own cache, as
        the next turn of a conversation, after what was rejected is taken back from it."""

        @functools.wraps(generate)
        def one_round(*args: Any, **kwargs: Any) -> Any:
            kwargs.pop("mm_encoder_outputs", None)
            cache, ids, self._answering.begins = kwargs.get("past_key_values"), kwargs["input_ids"], True
            prompt = note_of(cache)
            if prompt is None or cache is None:
                return generate(*args, **{**kwargs, **self._answering.media})
            cache.crop(min(0, ids.shape[1] - REREAD - prompt.seen))
            kwargs = {k: x for k, x in kwargs.items() if k in ROUND or not isinstance(x, Tensor)}
            return generate(*args, **kwargs)

        return one_round

    def _reading(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        """To transformers the first forward of an assistant is one like the others, which would leave images out."""

        @functools.wraps(prepare)
        def prepare_inputs_for_generation(*args: Any, **kwargs: Any) -> Any:
            if self._answering.begins:
                self._answering.begins, kwargs["is_first_iteration"] = False, True
            return prepare(*args, **kwargs)

        return prepare_inputs_for_generation


def draft(
    model: nn.Module, strategy: Strategy = "hiprune", keep: float | int | str | None = 0.1, **options: Any
) -> Draft:
    """A draft of a model that sees few visual tokens: `vtc.draft(model).generate(**inputs)` answers as `model` does.

    The draft proposes tokens, which it reads from few visual tokens, and `model` checks several of them in one forward
    (transformers' assisted generation). No weight is copied; the draft has a cache of its own, and the vision encoder
    runs twice. `model` may be patched too (with more tokens) or not, and stays as it is; the draft follows later
    changes of its weights, not of its modules or hooks.

    strategy, keep, options: as for `vtc.patch`. Raises what `vtc.patch` raises, and UnsupportedError where the forward
    of a module of `model` was replaced on the module itself, as accelerate does for several devices, and on older
    versions of transformers, whose assistants begin in another way.
    """
    if not takes_drafts():
        raise UnsupportedError(
            f"transformers {transformers.__version__} begins assisted generation in another way; possible: a newer "
            "version (5.23 was tried)"
        )
    present = current(model)
    second = twin(model, Patchwork() if present is None else present.patchwork, model.modules())
    if second is None:
        raise UnsupportedError(
            "the forward of a module was replaced on the module itself, so a second model object would call the first; "
            "possible: a model on one device that is not compiled"
        )
    vars(second).pop(ATTRIBUTE, None)
    second.generation_config = copy.deepcopy(model.generation_config)  # which assisted generation writes to
    patch(second, strategy, keep, **options)
    drafting = current(second)
    assert drafting is not None
    return Draft(model, second, drafting.patchwork)
