"""How near what the model makes of a pruned prompt is to what it makes of the whole one, whatever the right answer.

Source: the objective of VFlowOpt's search (ICCV 2025, arXiv 2508.05211).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import vtc
from vtc.eval.models import Loaded


def last_state(language_model: nn.Module, call: Callable) -> tuple[object, Tensor]:
    """What `call` gives, and the final hidden state (after the last norm) of each prompt's last token in its first
    forward of the language model: [B, D] float32 (float64 for float64). Prompts are padded on the left, or not at
    all."""
    seen: list[Tensor] = []

    def look(module: nn.Module, args: tuple, output: object) -> None:
        if not seen:
            state = output[0][:, -1]
            seen.append(state.to(torch.promote_types(state.dtype, torch.float32)))

    handle = language_model.register_forward_hook(look)
    try:
        return call(), seen[0]
    finally:
        handle.remove()


def whole_state(loaded: Loaded, inputs: dict) -> Tensor:
    """`last_state` of the model as it is; a patch that is on it is off meanwhile."""
    with vtc.patched(loaded.model, "uniform", keep=1.0):
        return last_state(loaded.family.language_model, lambda: loaded.answer(inputs, 1))[1]


def agreement(whole: Tensor, pruned: Tensor) -> list[float]:
    """The cosine of both for each prompt; 0 where it is not a number."""
    return torch.nn.functional.cosine_similarity(whole, pruned, dim=-1).nan_to_num(0.0).tolist()
