"""The sizes of a text model, read from its config and its layers."""

from torch import nn

from vtc.core.flops import LanguageShape, LinearAttention
from vtc.patches._decoder import LINEAR, SLIDING, layer_kinds


def language_shape(config: object, language_model: nn.Module) -> LanguageShape:
    """The decoder's sizes for FLOPs and KV bytes. Of a mixture of experts, the MLP is what one token passes through."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    names = [name for name, _ in language_model.layers[0].named_modules()]
    names += [name for name, _ in language_model.layers[0].named_parameters()]
    active = getattr(config, "num_experts_per_tok", None)
    mlp = config.intermediate_size if active is None else config.moe_intermediate_size * active
    mlp += 0 if active is None else getattr(config, "shared_expert_intermediate_size", 0)
    linear = linear_attention(config)
    softmax = [layer for i, layer in enumerate(language_model.layers) if linear is None or i not in linear.layers]
    query = getattr(getattr(softmax[0], "self_attn", None), "q_proj", None)
    sliding = frozenset(i for i, kind in enumerate(layer_kinds(config)) if kind == SLIDING)
    return LanguageShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=head_dim,
        mlp=mlp,
        gated=any(name.endswith(("gate_proj", "gate_up_proj")) for name in names),
        bytes=next(language_model.parameters()).element_size(),
        sliding=sliding,
        window=config.sliding_window - 1 if sliding else None,
        output_gate=getattr(query, "out_features", 0) == 2 * heads * head_dim,
        linear=linear,
    )


def linear_attention(config: object) -> LinearAttention | None:
    """The layers with linear attention and their sizes; None where there are none."""
    layers = frozenset(i for i, kind in enumerate(layer_kinds(config)) if kind == LINEAR)
    if not layers:
        return None
    return LinearAttention(
        layers=layers,
        key_heads=config.linear_num_key_heads,
        key_dim=config.linear_key_head_dim,
        value_heads=config.linear_num_value_heads,
        value_dim=config.linear_value_head_dim,
        conv=config.linear_conv_kernel_dim,
    )
