"""Published architectures at their real sizes, with random weights: speed depends on shapes, not on what was learnt."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from vtc.core.errors import ConfigError
from vtc.core.registry import unknown
from vtc.patches import FAMILIES
from vtc.patches._preset import Preset


def presets() -> dict[str, Preset]:
    """Those of every family, by name."""
    return {name: preset for family in FAMILIES for name, preset in FAMILIES[family].presets.items()}


def preset_of(name: str) -> Preset:
    """The preset of that name; raises ConfigError for an unknown one."""
    known = presets()
    if name not in known:
        raise ConfigError(unknown("preset", name, list(known)))
    return known[name]


def config_of(name: str) -> object:
    """A new transformers config of a preset; raises ConfigError for an unknown name."""
    return preset_of(name).config()


def build(config: object, device: torch.device, dtype: torch.dtype, attention: str, seed: int = 0) -> nn.Module:
    """The model of a config in evaluation mode, made where it is used and in its dtype, so that no second copy exists.

    Its weights are what its classes start training from, drawn with `seed`; on the meta device it has none.
    """
    from transformers import AutoModelForImageTextToText

    with torch.random.fork_rng([device] if device.type == "cuda" else []), device, _default_dtype(dtype):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
        model.tie_weights()  # transformers 5.0 leaves that out on the meta device
    return model.eval()


def count(config: object) -> int:
    """Parameters of the model of a config; nothing is allocated."""
    model = build(config, torch.device("meta"), torch.bfloat16, "sdpa")
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
