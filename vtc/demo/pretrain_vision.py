"""Stage 1: teach the vision tower what every patch and the whole scene contain.

Heads on the features that LLaVA reads (layer -2) predict each patch's kind, colour, digit, centre and place; heads on
[CLS], at layer -2 and at the end, predict which shape-colour pairs and which digits the scene holds. The heads are
thrown away. Most steps see 64 of the 196 patches.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from vtc.demo.architecture import HIDDEN, vision_core
from vtc.demo.optim import Optimizers, split_parameters
from vtc.demo.scenes import COLORS, GRID, SHAPES
from vtc.demo.training_data import TOKENS, Scenes, Shard, choose_patches, pixel_values, scene_targets

BATCH = 64
PATCH_HEADS = {"kind": 7, "color": 6, "digit": 20, "center": 1, "offset": 2, "row": GRID, "column": GRID}
PAIRS = len(SHAPES) * len(COLORS)


class Tower(torch.nn.Module):
    """The model's own vision tower with throw-away heads."""

    def __init__(self, model):
        super().__init__()
        self.core = vision_core(model)
        self.patch_head = torch.nn.Linear(HIDDEN, sum(PATCH_HEADS.values()))
        self.scene_heads = torch.nn.ModuleList(torch.nn.Linear(HIDDEN, PAIRS + 20) for _ in range(2))

    def states(self, pixels: torch.Tensor, keep: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states [B, 1 + K, D] of layer -2 and of the last layer, of [CLS] and the patches `keep` [B, K]."""
        hidden = self.core.embeddings(pixels)
        if keep is not None:
            index = torch.cat((torch.zeros_like(keep[:, :1]), keep + 1), 1)
            hidden = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
        hidden = self.core.pre_layrnorm(hidden)
        for layer in self.core.encoder.layers:
            before, hidden = hidden, layer(hidden, attention_mask=None)
        return before, hidden


def _losses(tower: Tower, pixels, keep, labels, pairs, digits) -> dict[str, torch.Tensor]:
    """Every term of the loss; `labels` int64 [B, K, 6] belong to the kept patches."""
    features, last = tower.states(pixels, keep)
    out = dict(
        zip(PATCH_HEADS, tower.patch_head(features[:, 1:]).float().split(list(PATCH_HEADS.values()), -1), strict=True)
    )
    kind, color, digit, center = labels[..., 0], labels[..., 1], labels[..., 2], labels[..., 3].float()
    occupied = kind > 0
    terms = {
        "kind": F.cross_entropy(out["kind"].flatten(0, 1), kind.flatten()),
        "color": F.cross_entropy(out["color"].flatten(0, 1), color.flatten(), ignore_index=-1),
        "digit": F.cross_entropy(out["digit"].flatten(0, 1), digit.flatten(), ignore_index=-1),
        "center": 2 * F.binary_cross_entropy_with_logits(out["center"].squeeze(-1), center),
        "offset": F.smooth_l1_loss(out["offset"][occupied], labels[..., 4:][occupied] / 8.0),
        "row": 0.3 * F.cross_entropy(out["row"].flatten(0, 1), (keep // GRID).flatten()),
        "column": 0.3 * F.cross_entropy(out["column"].flatten(0, 1), (keep % GRID).flatten()),
    }
    final = tower.core.post_layernorm(last[:, 0])
    for name, head, state in zip(("cls-2", "cls"), tower.scene_heads, (features[:, 0], final), strict=True):
        logits = head(state).float()
        terms[name] = 5 * F.binary_cross_entropy_with_logits(logits[:, :PAIRS], pairs)
        terms[name] = terms[name] + F.cross_entropy(logits[:, PAIRS:].reshape(-1, 10), digits.flatten())
    terms["kind accuracy"] = (out["kind"].argmax(-1) == kind)[occupied].float().mean().detach()
    return terms


def pretrain(
    model, data: Scenes, steps: int, seed: int, part: Shard, log: Callable[[str], None], state: dict, save: Callable
) -> None:
    """Train the tower of `model` in place for `steps` steps, on this process's own scenes.

    `state` is what an earlier, interrupted call gave to `save(state)`, or empty. The last tenth of the steps, and a
    fifth of the others, see all patches.
    """
    torch.manual_seed(seed)
    tower = Tower(model).train()
    optimizers = Optimizers(*split_parameters(tower), muon_lr=5e-3, adamw_lr=1e-3, steps=steps)
    if state:
        tower.load_state_dict(state["tower"])
        optimizers.load_state_dict(state["optimizers"])
    started, first = time.perf_counter(), state.get("step", 0)
    for step in range(first, steps):
        rng = np.random.default_rng([seed, 1, step])
        count = TOKENS if step >= 0.9 * steps or rng.random() < 0.2 else 64
        rng = np.random.default_rng([seed, 1, step, part.rank])
        rows = rng.integers(len(data.layouts), size=BATCH // part.of)
        keep = choose_patches(data.labels[rows], count, rng)
        labels = torch.from_numpy(data.labels[rows]).long().gather(1, keep[..., None].expand(-1, -1, 6))
        targets = scene_targets([data.layouts[row] for row in rows])
        with torch.autocast("cpu", torch.bfloat16):
            terms = _losses(tower, pixel_values(data.images[rows]), keep, labels, *targets)
        accuracy = terms.pop("kind accuracy")
        loss = sum(terms.values())
        loss.backward()
        optimizers.step(step)
        if (step + 1) % 25 == 0:
            parts = " ".join(f"{name} {value.item():.2f}" for name, value in terms.items())
            log(
                f"vision {step + 1}/{steps} loss {loss.item():.3f} kind accuracy {accuracy.item():.3f} "
                f"({parts}) {time.perf_counter() - started:.0f} s"
            )
        if (step + 1) % 200 == 0:
            save({"tower": tower.state_dict(), "optimizers": optimizers.state_dict(), "step": step + 1})


@torch.no_grad()
def cache_features(model, images: np.ndarray) -> torch.Tensor:
    """Layer -2 features of all patches, without [CLS], bfloat16 [B, 196, D], computed under bfloat16 autocast."""
    tower = Tower(model).eval()
    cached = torch.empty(len(images), TOKENS, HIDDEN, dtype=torch.bfloat16)
    model.set_attn_implementation("sdpa")
    for start in range(0, len(images), 128):
        with torch.autocast("cpu", torch.bfloat16):
            cached[start : start + 128] = tower.states(pixel_values(images[start : start + 128]))[0][:, 1:]
    model.set_attn_implementation("eager")
    return cached
