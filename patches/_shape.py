"""The sizes of a text model, read from its config and its layers."""

from torch import nn

from vtc.core.flops import LanguageShape
from vtc.patches._decoder import sliding_layers


def language_shape(config: object, language_model: nn.Module) -> LanguageShape:
    """The decoder's sizes for FLOPs and KV bytes. Of a mixture of experts, the MLP is what one token passes through."""
    heads = config.num_attention_heads
    names = [name for name, _ in language_model.layers[0].named_modules()]
    names += [name for name, _ in language_model.layers[0].named_parameters()]
    active = getattr(config, "num_experts_per_tok", None)
    mlp = config.intermediate_size if active is None else config.moe_intermediate_size * active
    sliding = sliding_layers(config, config.num_hidden_layers)
    return LanguageShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        mlp=mlp,
        gated=any(name.endswith(("gate_proj", "gate_up_proj")) for name in names),
        bytes=next(language_model.parameters()).element_size(),
        sliding=frozenset(i for i, slides in enumerate(sliding) if slides),
        window=config.sliding_window - 1 if any(sliding) else None,
    )
