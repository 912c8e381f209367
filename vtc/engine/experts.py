"""Mixtures of experts: the load-balancing loss over the tokens that are left, which the model would compute with the
mask of the unpruned prompt."""

import inspect
import sys

import torch
from torch import Tensor, nn

from vtc.engine.state import PrunedPrompt

FLAG = "output_router_logits"


def asks_for_routers(module: nn.Module, given: dict) -> bool:
    """Whether a forward of the whole model is to return router logits, by its arguments or its config."""
    asked = given.get(FLAG)
    if asked is None and FLAG in inspect.signature(type(module).forward).parameters:
        asked = getattr(module.config.get_text_config(), FLAG, False)
    return bool(asked)


def balance(module: nn.Module, logits: tuple[Tensor, ...], prompt: PrunedPrompt | None, mask: Tensor | None) -> Tensor:
    """The model's own load-balancing loss. logits: per layer, of the tokens [B * K, experts] that it sees; mask [B, L]:
    of the prompt, used if nothing was pruned."""
    loss = next(vars(sys.modules[c.__module__])["load_balancing_loss_func"] for c in type(module).__mro__)
    config = module.config.get_text_config()
    if prompt is None:
        return loss(logits, config.num_experts, config.num_experts_per_tok, mask)
    device, real = logits[0].device, []
    for layer in range(len(logits)):  # as one layer, because layers may hold different numbers of tokens
        segment = [segment for segment in prompt.segments if segment.first <= layer][-1]
        valid = torch.ones_like(segment.index) if segment.valid is None else segment.valid
        real.append(valid.flatten().long().to(device))
    every = torch.cat([x.to(device) for x in logits])
    return loss((every,), config.num_experts, config.num_experts_per_tok, torch.cat(real).unsqueeze(0))
