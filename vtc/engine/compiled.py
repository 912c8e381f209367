"""Decoding as transformers compiles it: generate() with a static cache, in one graph without hooks.

The prefill runs as ever. For the steps after it transformers asks the model for a compiled call (by itself on
accelerators, on a CPU where its configuration says so). What the hooks would do to a step is done here before the call,
and the call is that of a model object without hooks on the same weights (`vtc.core.twin`), so torch.compile sees the
stock model with other masks and positions. Layers that hold fewer tokens than the first are handed their own.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vtc.core.twin import own_forward, twin
from vtc.engine import decode, media
from vtc.engine.layer_masks import made
from vtc.engine.noted import recall
from vtc.engine.state import Call, PrunedPrompt

_OWN = "vtc_layers"


class CompiledSteps:
    """The compiled decode steps of a patched model."""

    def __init__(self, patch, model: nn.Module):
        self.patch, self.model = patch, model
        self.plain, self.made_of = None, None

    def put_on(self) -> None:
        """Replaces `get_compiled_call` of a model that can generate()."""
        if hasattr(self.model, "get_compiled_call"):
            self.patch.patchwork.method(self.model, "get_compiled_call", self._wrapped(self.model.get_compiled_call))

    def _wrapped(self, ask: Callable) -> Callable:
        @functools.wraps(ask)
        def get_compiled_call(compile_config, *args, **kwargs):
            plain = self._twin()
            if plain is None:
                return ask(compile_config, *args, **kwargs)  # traced with its hooks, at which the graph breaks
            call = type(self.model).get_compiled_call(plain, compile_config, *args, **kwargs)
            return functools.partial(self._step, call)

        return get_compiled_call

    def _twin(self) -> nn.Module | None:
        """The model without hooks, made anew when its modules, or their hooks, mode or forward, have changed since."""
        parts = dict(self.model.named_modules())
        now = [(n, m, m.training, own_forward(m), *m._forward_hooks, *m._forward_pre_hooks) for n, m in parts.items()]
        if self.made_of != now:
            language_model, plan = self.patch.family.language_model, self.patch.plan
            layers = () if plan is None else language_model.layers
            self.plain, self.made_of = twin(self.model, self.patch.patchwork, layers), now
            if self.plain is not None and plan is not None:
                path = next(name for name, module in parts.items() if module is language_model)
                for number, layer in enumerate(self.plain.get_submodule(path).layers):
                    layer.__class__, layer._vtc_number = _fed(type(layer)), number
        return self.plain

    def _step(self, call: Callable, **inputs):
        """One forward of generate(), compiled if it is a step of one token after a prompt."""
        patch, cache, ids = self.patch, inputs.get("past_key_values"), inputs.get("input_ids")
        if ids is None or ids.shape[1] != 1 or media.given_kinds(inputs):
            return self.model(**inputs)
        prompt = recall(cache, 1)
        if prompt is not None:
            if prompt.marks or len(prompt.segments) > 1 and prompt.patch != patch.number:
                return self.model(**inputs)
            inputs = self._mapped(prompt, inputs)
        patch.thread.mask = None
        output = call(**inputs)
        patch.end(Call(pruned=prompt))
        return output

    def _mapped(self, prompt: PrunedPrompt, inputs: dict) -> dict:
        """The inputs of a step as the pruned cache has them."""
        patch, ids, mask = self.patch, inputs["input_ids"], self.patch.thread.mask
        hidden = torch.empty((*ids.shape, 0), dtype=self.model.dtype, device=ids.device)  # for its shape and dtype
        cache = inputs["past_key_values"]
        own = {"inputs_embeds": hidden, "past_key_values": cache, "position_ids": inputs.get("position_ids")}
        own["attention_mask"] = mask if _fits(mask, prompt) else inputs.get("attention_mask")
        own["cache_position"] = given = inputs.get("cache_position")
        inside = decode.step(own, prompt, patch.family.mrope, None if patch.plan is None else patch.plan.site)
        ready = own["attention_mask"]  # made by generate(), where nothing was dropped before the first layer
        masks = made(self.model, own) if ready is None or isinstance(ready, Tensor) and ready.ndim == 2 else ready
        inputs = {**inputs, "position_ids": own["position_ids"], "attention_mask": masks}
        if given is not None:
            inputs["cache_position"] = own["cache_position"]
        if inside is not None:
            layers = range(patch.shape.layers)
            inputs[_OWN] = tuple(_layer_inputs(inside, layer, hidden, own) for layer in layers)
        return inputs


def _fits(mask: Tensor | None, prompt: PrunedPrompt) -> bool:
    return mask is not None and mask.shape[1] == prompt.seen + 1


def _layer_inputs(inside: decode.DecodeStep, layer: int, hidden: Tensor, given: dict) -> dict | None:
    """What a layer gets instead of what the first layers get."""
    changed = inside.before_layer(layer, (hidden,), {**given, "position_embeddings": None})
    if changed is None:
        return None
    names = ("attention_mask", "position_embeddings", "cache_position")
    return {name: changed[1][name] for name in names if name == "attention_mask" or changed[1].get(name) is not None}


@functools.cache
def _fed(kind: type) -> type:
    """The class of a decoder layer that takes its own inputs out of those of all layers."""

    def forward(self, *args, **kwargs):
        own = kwargs.pop(_OWN, None)
        if own is not None and own[self._vtc_number] is not None:
            kwargs = {**kwargs, **own[self._vtc_number]}
        return kind.forward(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
