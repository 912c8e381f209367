"""The optimizer of the training script: Muon for matrices, stacked by shape, and AdamW for everything else.

Muon: https://kellerjordan.github.io/posts/muon/ . Departure: equal shapes are orthogonalised in one batched product,
and the update is scaled to a root mean square of 0.2, so that one learning rate serves every shape.
"""

import math

import torch
import torch.distributed as dist


def orthogonalize(stack: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration to nearly orthogonal matrices of the same row space, [S, M, N] to bfloat16 [S, M, N]."""
    x = stack.bfloat16()
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum, Nesterov, orthogonalised; for 2-D parameters only.

    Raises ValueError for a parameter that is not 2-D.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95):
        params = list(params)
        for param in params:
            if param.ndim != 2:
                raise ValueError(f"Muon takes matrices only, got shape {tuple(param.shape)}")
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Update every parameter that has a gradient; `closure` is not supported and is ignored."""
        for group in self.param_groups:
            shapes: dict[tuple, list] = {}
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(param)
                state["momentum"].lerp_(param.grad, 1 - group["momentum"])
                update = param.grad.lerp(state["momentum"], group["momentum"])
                shapes.setdefault(tuple(param.shape), []).append((param, update))
            for shape, pairs in shapes.items():
                updates = orthogonalize(torch.stack([update for _, update in pairs]))
                scale = 0.2 * math.sqrt(max(shape)) * group["lr"]
                for (param, _), update in zip(pairs, updates, strict=True):
                    param.sub_(update.to(param.dtype), alpha=scale)


class Optimizers:
    """Muon and AdamW side by side under one warm-up and cosine schedule, with gradient clipping at norm 1."""

    def __init__(self, matrices, other_parameters, muon_lr: float, adamw_lr: float, steps: int, warmup: int = 50):
        self.matrices, self.other_parameters = list(matrices), list(other_parameters)
        self.parts = [
            Muon(self.matrices, lr=muon_lr),
            torch.optim.AdamW(self.other_parameters, lr=adamw_lr, betas=(0.9, 0.98), weight_decay=0.0, foreach=True),
        ]
        self.peaks, self.steps, self.warmup = (muon_lr, adamw_lr), steps, warmup

    def _average(self) -> None:
        """Give every process the mean gradient of all of them."""
        gradients = [param.grad for param in self.matrices + self.other_parameters if param.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def step(self, number: int) -> None:
        """Average over processes if there are several, clip, update at the rate of step `number`, clear gradients."""
        if dist.is_initialized():
            self._average()
        done = max(0.0, (number - self.warmup) / max(1, self.steps - self.warmup))
        factor = min(1.0, (number + 1) / self.warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
        torch.nn.utils.clip_grad_norm_(self.matrices + self.other_parameters, 1.0, foreach=True)
        for part, peak in zip(self.parts, self.peaks, strict=True):
            for group in part.param_groups:
                group["lr"] = peak * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict]:
        """The states of both parts, for a checkpoint."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        """Restore what `state_dict` returned."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def split_parameters(module: torch.nn.Module) -> tuple[list, list]:
    """Weights of hidden linear layers, for Muon, and everything else (embeddings, norms, biases, heads), for AdamW."""
    matrices, other_parameters = [], []
    for name, param in module.named_parameters():
        hidden = param.ndim == 2 and not any(word in name for word in ("embed", "head.", "heads."))
        (matrices if hidden else other_parameters).append(param)
    return matrices, other_parameters
