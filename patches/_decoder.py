"""The decoder site: a text model's layers, their queries and keys ahead of time, and masks for fewer tokens.

No part of a layer is reimplemented: its own attention module computes queries and keys (and is then stopped), and
transformers' own functions build the masks.
"""

import functools
import inspect
from collections.abc import Callable

from torch import Tensor, cat, nn
from torch.nn.functional import pad

from vtc.core.errors import UnsupportedError
from vtc.core.hooks import Patchwork, Stop
from vtc.patches._ahead import looking_ahead


@functools.cache
def _parameters(function: Callable) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
# Norms that some text models have behind attention and MLP: their outputs are what is added to the residual stream.
NORMS_AFTER = ("post_self_attn_layernorm", "post_mlp_layernorm")
_INPUT = "_vtc_input"


def layer_kinds(config: object) -> list[str]:
    """The kind of attention of each layer, by transformers' names of them."""
    every = FULL if getattr(config, "sliding_window", None) is None else SLIDING
    return list(getattr(config, "layer_types", None) or [every] * config.num_hidden_layers)


class DecoderSite:
    """The layers of a text model. Constructing it changes nothing; a missing part raises UnsupportedError.

    language_model: has `layers` (each with self_attn, mlp, input_layernorm; linear_attn instead of self_attn where
    attention is linear), `rotary_emb` and a config. kinds: of each layer's attention, see `layer_kinds`.
    """

    def __init__(self, language_model: nn.Module):
        self.model, self.layers = language_model, list(language_model.layers)
        self.kinds = layer_kinds(language_model.config)
        for layer, kind in zip(self.layers, self.kinds, strict=True):
            for name in ("linear_attn" if kind == LINEAR else "self_attn", "mlp", "input_layernorm"):
                if not hasattr(layer, name):
                    raise UnsupportedError(
                        f"{type(layer).__name__} has no {name!r}: tokens cannot be dropped inside this language model; "
                        "possible: a stage at the projector (`vtc list`)"
                    )
        obstacle = self._obstacle()
        if obstacle:
            raise UnsupportedError(
                f"{type(language_model).__name__} has {obstacle}: tokens cannot be dropped inside it; possible: a "
                "stage at the projector (`vtc list`)"
            )

    def _obstacle(self) -> str | None:
        """The feature that makes it impossible to drop tokens inside this text model, or None."""
        rotary = getattr(self.model, "rotary_emb", None)
        if rotary is None:
            return "no rotary embedding"
        if "layer_type" in _parameters(type(rotary).forward):
            return "rotary embeddings that differ between layers"
        if getattr(self.model.config, "attn_logit_softcapping", None) is not None:
            return "soft-capped attention"
        softmax = [layer.self_attn for layer, kind in zip(self.layers, self.kinds, strict=True) if kind != LINEAR]
        if not softmax or any(not hasattr(attention, "config") for attention in softmax):
            return "layers without softmax attention"
        if any(hasattr(attention, "sinks") for attention in softmax):
            return "attention sinks"
        return None

    def observe(self, patchwork: Patchwork, layer: int, record: Callable, rewrite: Callable | None = None) -> None:
        """Calls record(query, key, scale, cu_seqlens, value) at each attention call of a layer, and lets `rewrite`
        replace its output; see `vtc.patches._observe.observe`."""
        from vtc.patches._observe import observe

        observe(patchwork, self.layers[layer].self_attn, record, rewrite)

    def watch(self, patchwork: Patchwork, layer: int, record: Callable) -> None:
        """Calls record(input [B, S, D], output [B, S, D]) for the attention (softmax or linear) and for the MLP of a
        layer: the input comes from the norm, the output is added to the residual stream (that of a norm behind the
        module, if there is one)."""

        def before_norm(module: nn.Module, args: tuple, kwargs: dict, output):
            first = output[0] if isinstance(output, tuple) else output
            setattr(first, _INPUT, args[0] if args else kwargs["hidden_states"])  # goes with the tensor

        def norm(module: nn.Module, args: tuple, kwargs: dict, output):
            record(getattr(args[0], _INPUT), output)

        def whole(module: nn.Module, args: tuple, kwargs: dict, output):
            record(args[0] if args else kwargs["hidden_states"], output[0] if isinstance(output, tuple) else output)

        block = self.layers[layer]
        attention = block.linear_attn if self.kinds[layer] == LINEAR else block.self_attn
        for module, name in zip((attention, block.mlp), NORMS_AFTER, strict=True):
            if hasattr(block, name):
                patchwork.post_hook(module, before_norm)
                patchwork.post_hook(getattr(block, name), norm)
            else:
                patchwork.post_hook(module, whole)

    def run_up_to_attention(self, layer: int, hidden: Tensor, rotary: tuple[Tensor, Tensor], first: int = 0) -> None:
        """Runs a layer's norm and projections on hidden [B, S, D] up to its (observed) attention, whose `record` must
        raise Stop; queries from column `first` on, others are meaningless, as all values are. The cache is not
        changed."""
        block = self.layers[layer]
        device = next(block.parameters()).device
        if device.type != "meta":  # the layer may be on another device; accelerate moves what it offloaded itself
            hidden, rotary = hidden.to(device), tuple(x.to(device) for x in rotary)
        options = {"position_embeddings": rotary, "attention_mask": None, "past_key_values": None}
        if "cache_position" in _parameters(type(block.self_attn).forward):
            options["cache_position"] = None
        try:
            looking_ahead(block.self_attn, first)(hidden_states=block.input_layernorm(hidden), **options)
        except Stop:
            return
        raise UnsupportedError(
            f"the attention of {type(block).__name__} does not go through transformers' attention interface; "
            "possible: a stock model"
        )

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Applies the final norm, before the output head, to hidden states."""
        return self.model.norm(hidden.to(self.model.norm.weight.device)).to(hidden.device)

    def rotary(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary embeddings of position_ids [B, S], or [3, B, S]."""
        return self.model.rotary_emb(hidden, position_ids)

    def turns(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The cosines and sines [B, S, e] by which each channel of a head is turned. hidden [..., e]: queries."""
        tables = self.rotary(hidden, position_ids)
        if tables[0].ndim > 3:
            sections = self.model.config.rope_parameters["mrope_section"] * 2
            axes = [[part[i % 3] for i, part in enumerate(x.split(sections, -1))] for x in tables]
            tables = tuple(cat(parts, -1) for parts in axes)
        rest = hidden.shape[-1] - tables[0].shape[-1]  # channels that are not turned, see partial_rotary_factor
        return tuple(pad(x, (0, rest), value=1.0 - i) for i, x in enumerate(tables)) if rest else tables

    def sliding(self, layer: int) -> bool:
        """Whether a layer has a sliding window."""
        return self.kinds[layer] == SLIDING

    def _is_one_row(self, layer: int, hidden: Tensor, mask: Tensor | None, cache: object) -> bool:
        """Whether a 2-D mask over a growing cache is already the complete SDPA mask for one new token. The model's own
        function would read the mask from the device, once per segment, to see whether it can be left out."""
        alone = mask is not None and mask.ndim == 2 and hidden.shape[1] == 1 and hidden.device.type != "cpu"
        plain = not self.sliding(layer) and not getattr(cache, "is_compileable", False)
        return alone and plain and self.model.config._attn_implementation == "sdpa"

    def mask(
        self, layer: int, hidden: Tensor, mask: Tensor | None, cache: object, cache_position: Tensor | None,
        padded: bool = False,
    ):  # fmt: skip
        """The mask that the model would build for a layer, whose cache length may differ from the other layers'.

        hidden [B, S, D]: the layer's input. mask: None, 2-D over the layer's cache and hidden, or a ready-made 4-D one.
        padded: something is masked, so newer versions of transformers need not read the mask to see whether it can be
        left out (the host would wait for the device). A layer with linear attention takes the 2-D mask of its input.
        """
        from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

        if self.kinds[layer] == LINEAR:
            flat = mask is not None and mask.ndim == 2 and hidden.shape[1] > 1
            return mask[:, -hidden.shape[1] :].to(hidden.device) if flat else None
        if self._is_one_row(layer, hidden, mask, cache):
            return mask[:, None, None].bool()
        make = create_sliding_window_causal_mask if self.sliding(layer) else create_causal_mask
        arguments = {
            "config": self.model.config,
            "inputs_embeds": hidden,
            "input_embeds": hidden,
            "attention_mask": mask,
            "past_key_values": None if cache is None else OneLayer(cache, layer, self.sliding(layer)),
            "cache_position": cache_position,
            "position_ids": None,
            "allow_is_causal_skip": not padded,
        }
        return make(**{key: value for key, value in arguments.items() if key in _parameters(make)})


class OneLayer:
    """A view of a cache from one of its layers: mask functions read the sizes of "the first layer of a kind"."""

    def __init__(self, cache: object, layer: int, sliding: bool):
        self._cache, self._layer, self.is_sliding = cache, layer, [sliding]

    def get_mask_sizes(self, query: object, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of the keys (query: its length, or in older transformers its cache positions)."""
        return self._cache.get_mask_sizes(query, self._layer)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that the layer has seen."""
        return self._cache.get_seq_length(self._layer)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Position of the next query."""
        return self._cache.get_query_offset(self._layer)

    def __getattr__(self, name: str):
        return getattr(self._cache, name)
