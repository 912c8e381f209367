"""A model family from a config alone: what `vtc.patch` would know of the model, without its weights."""

import copy

import torch
from transformers import AutoModelForImageTextToText, PretrainedConfig

from vtc.core.errors import UnsupportedError
from vtc.patches import FAMILIES
from vtc.patching import find_family


def served() -> list[str]:
    """The families that have a pruned form in vLLM."""
    return [name for name in FAMILIES if FAMILIES[name].served]


def architecture(family: str) -> str:
    """The name under which the pruned form of a family is registered with vLLM: the stock name after "Vtc"."""
    return FAMILIES[family].served.partition(":")[2]


def family_name(config: PretrainedConfig) -> str:
    """The family of a model's config; raises UnsupportedError for a model that cannot be served pruned."""
    kind = getattr(config, "model_type", None)
    by_type = {kind: name for name in served() for kind in FAMILIES[name].model_types}
    if kind not in by_type:
        raise UnsupportedError(f"model_type={kind!r} cannot be served pruned; possible: {', '.join(by_type)}")
    return by_type[kind]


def loaded_layers(config: PretrainedConfig, depth: int) -> int:
    """How many of the vision tower's `depth` layers vLLM loads: for LLaVA only up to the one that is read."""
    chosen = getattr(config, "vision_feature_layer", None)
    if chosen is None:
        return depth
    layers = [chosen] if isinstance(chosen, int) else chosen
    return max(layer if layer >= 0 else depth + 1 + layer for layer in layers)


def skeleton(config: PretrainedConfig):
    """The family of a model's config, on a transformers model without weights and with one decoder layer.

    It answers everything that a strategy asks of a family (layouts, encoder, sorting and reducing of signals) from the
    config; only its projector cannot be used. Raises UnsupportedError as `vtc.patch` does.
    """
    family_name(config)
    small = copy.deepcopy(config)
    text = small.get_text_config()
    text.num_hidden_layers = 1
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    if hasattr(small, "quantization_config"):
        del small.quantization_config
    with torch.device("meta"):
        return find_family(AutoModelForImageTextToText.from_config(small, attn_implementation="sdpa"))
