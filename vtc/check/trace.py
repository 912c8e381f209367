"""What a patch could leave behind on a model: everything attached to it, by identity."""

from torch import nn


def shape_of(value: object) -> object:
    """The own attributes of a live object by identity: equal before and after means no trace."""
    return {name: id(item) for name, item in sorted(vars(value).items(), key=lambda pair: pair[0])}


def state(model: nn.Module) -> dict:
    """Everything that a patch could leave on a model: every module's attributes, hook dictionaries, and its config.

    `rope_deltas` is left out: the stock Qwen models write it in each forward.
    """
    result = {}
    for name, module in model.named_modules():
        result[name] = shape_of(module)
        result[name].pop("rope_deltas", None)
        for key, value in vars(module).items():
            if isinstance(value, dict):
                result[name, key] = {k: id(v) for k, v in value.items()}
    config = model.config
    result["config"] = (id(config), config.to_json_string(), shape_of(config))
    result["generation"] = model.generation_config.to_json_string()
    result["attention"] = config._attn_implementation
    return result
