"""What a prompt costs, written out layer by layer, for reports to be held against."""

from torch import nn


def kinds_of(config) -> list[bool]:
    """Of each layer, whether its attention is linear."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return [kind == "linear_attention" for kind in kinds]


def mlp_width(config) -> int:
    """Rows of the MLP that a token passes through: with experts, those of the chosen ones and of the shared one."""
    if getattr(config, "num_experts_per_tok", None) is None:
        return config.intermediate_size
    shared = getattr(config, "shared_expert_intermediate_size", 0)
    if hasattr(config, "first_k_dense_replace"):  # GLM: dense layers first, on average over all
        layers, dense = config.num_hidden_layers, config.first_k_dense_replace
        experts = config.moe_intermediate_size * (config.num_experts_per_tok + config.n_shared_experts)
        return round((dense * config.intermediate_size + (layers - dense) * experts) / layers)
    return config.num_experts_per_tok * config.moe_intermediate_size + shared


def layer_flops(config, tokens: int, linear: bool = False) -> int:
    """Prefill FLOPs of one layer: q, o, k, v projections, scores and values, three MLP matrices."""
    d = config.hidden_size
    mlp = 2 * tokens * d * mlp_width(config) * 3
    if linear:
        keys = config.linear_num_key_heads * config.linear_key_head_dim
        values = config.linear_num_value_heads * config.linear_value_head_dim
        qkv, gate, out, scalars = 2 * keys + values, values, values, 2 * config.linear_num_value_heads
        conv = config.linear_conv_kernel_dim * qkv
        rule = 3 * values * config.linear_key_head_dim  # what a key holds is read, corrected, and read by the query
        return 2 * tokens * (d * (qkv + gate + out + scalars) + conv + rule) + mlp
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    e = getattr(config, "head_dim", None) or d // heads
    queries = 2 if hasattr(config, "linear_num_key_heads") else 1  # a gate beside them
    projections = 2 * tokens * d * heads * e * (queries + 1) + 2 * tokens * d * kv * e * 2
    return projections + 2 * heads * tokens * tokens * e * 2 + mlp


def prompt_flops(config, lengths: list[int]) -> int:
    """Prefill FLOPs of one prompt of which layer l sees lengths[l] tokens."""
    return sum(layer_flops(config, n, linear) for n, linear in zip(lengths, kinds_of(config), strict=True))


def cached_bytes(model: nn.Module, cache, lengths: list[list[int]]) -> int:
    """Bytes of keys and values of prompts of which layer l holds lengths[prompt][l] tokens, and of states, from the
    sizes of the cache's tensors; recurrent states count as float32, which transformers itself has."""
    total = 0
    for i, (layer, linear) in enumerate(zip(cache.layers, kinds_of(model.config.get_text_config()), strict=True)):
        if linear:
            conv, state = layer.conv_states[0], layer.recurrent_states[0]
            total += len(lengths) * (conv[0].nbytes + 4 * state[0].numel())
        else:
            keys = layer.keys
            most = layer.sliding_window - 1 if getattr(layer, "is_sliding", False) else max(row[i] for row in lengths)
            held = sum(min(row[i], most) for row in lengths)
            total += 2 * keys.shape[1] * keys.shape[3] * keys.element_size() * held
    return total
