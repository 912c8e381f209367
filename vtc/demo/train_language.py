"""Stage 2: teach projector and language model to answer, on cached features of the frozen tower.

Several questions about a scene share one sequence: each sees the image and itself only, at the positions that it would
have alone, so the answers are those of separate prompts. Visual tokens are dropped before the language model in most
steps, all objects kept; half of the steps keep the original position of every token, half number the kept ones anew.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from vtc.demo.optim import Optimizers, split_parameters
from vtc.demo.questions import TYPES, largest_count
from vtc.demo.training_data import IGNORE, MIX, TOKENS, Packed, Packer, Scenes, Shard, choose_patches

CHECK_BATCH = 32
# (tokens kept, objects' patches mixed with background, scenes a step, weight, weight in the last quarter of the steps)
BUDGETS = (
    (32, True, 20, 0.40, 0.20),
    (64, True, 20, 0.10, 0.10),
    (48, False, 20, 0.25, 0.15),
    (72, False, 20, 0.15, 0.10),
    (120, False, 16, 0.05, 0.15),
    (TOKENS, False, 12, 0.10, 0.30),
)


def answer_logits(
    model,
    features: torch.Tensor,
    keep: torch.Tensor,
    packed: Packed,
    prefix: torch.Tensor,
    renumber: bool,
    tokens: int = TOKENS,
) -> torch.Tensor:
    """Logits [A, V] at the A places where `packed.targets` holds an answer, in row-major order.

    `features` [B, K, D] are those of the tower at the kept patches `keep` [B, K]; `renumber` numbers them 0 to K - 1
    instead of by their place among all `tokens`.
    """
    language = model.model.language_model
    embed = language.get_input_embeddings()
    batch, count = keep.shape
    before = len(prefix)
    image = model.model.multi_modal_projector(features)
    start = embed(prefix).expand(batch, -1, -1)
    hidden = torch.cat((start.to(image.dtype), image, embed(packed.ids).to(image.dtype)), 1)
    place = torch.arange(count).expand(batch, -1) if renumber else keep
    after = before + (count if renumber else tokens)
    positions = torch.cat((torch.arange(before).expand(batch, -1), before + place, after + packed.offset), 1)
    segment = torch.cat((torch.zeros(batch, before + count, dtype=torch.long), packed.segment), 1)
    segment[:, before + count :][packed.segment == 0] = -1  # padding
    same_segment = segment[:, None, :] == segment[:, :, None]
    visible = ((segment[:, None, :] == 0) | same_segment).tril()
    mask = torch.zeros(visible.shape, dtype=hidden.dtype).masked_fill_(~visible, torch.finfo(hidden.dtype).min)[:, None]
    out = language(inputs_embeds=hidden, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
    return model.lm_head(out[:, before + count :][packed.targets != IGNORE])


def _gather(features: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """The rows [B, K, D] of features [B, N, D] at `keep` [B, K]."""
    return features.gather(1, keep[..., None].expand(-1, -1, features.shape[-1]))


def teach(
    model,
    data: Scenes,
    features: torch.Tensor,
    steps: int,
    seed: int,
    part: Shard,
    log: Callable[[str], None],
    state: dict,
    save: Callable,
) -> None:
    """Train projector and language model in place for `steps` steps on `features` [B, N, D] of the first B of `data`.

    `state` is what an earlier, interrupted call gave to `save(state)`, or empty; the caller restores the weights.
    """
    trained = torch.nn.ModuleList([model.model.multi_modal_projector, model.model.language_model])
    matrices, other_parameters = split_parameters(trained)
    optimizers = Optimizers(
        matrices, [*other_parameters, *model.lm_head.parameters()], muon_lr=4e-3, adamw_lr=2e-3, steps=steps
    )
    if state:
        optimizers.load_state_dict(state["optimizers"])
    packer = Packer()
    prefix = packer.prefix()
    # Scenes with high counts are rare and come up to five times as often.
    chances = np.array([1 + 2 * max(0, largest_count(layout) - 2) for layout in data.layouts[: len(features)]], float)
    chances /= chances.sum()
    started, recent = time.perf_counter(), []
    for step in range(state.get("step", 0), steps):
        rng = np.random.default_rng([seed, 2, step])
        weights = np.array([budget[4 if step >= 0.75 * steps else 3] for budget in BUDGETS])
        count, sparse, batch = BUDGETS[rng.choice(len(BUDGETS), p=weights / weights.sum())][:3]
        renumber = bool(rng.random() < 0.5)
        rng = np.random.default_rng([seed, 2, step, part.rank])
        rows = np.sort(rng.choice(len(features), batch // part.of, replace=False, p=chances))
        keep = choose_patches(data.labels[rows], count, rng, sparse)
        packed, _ = packer.pack([data.layouts[row] for row in rows], rng)
        kept = _gather(features[torch.from_numpy(rows)], keep)
        with torch.autocast("cpu", torch.bfloat16):
            logits = answer_logits(model, kept, keep, packed, prefix, renumber)
        targets = packed.targets[packed.targets != IGNORE]
        loss = F.cross_entropy(logits.float(), targets)
        loss.backward()
        optimizers.step(step)
        recent.append((loss.item(), (logits.argmax(-1) == targets).float().mean().item()))
        if (step + 1) % 25 == 0:
            mean = np.mean(recent, axis=0)
            spent = time.perf_counter() - started
            log(f"language {step + 1}/{steps} loss {mean[0]:.4f} tokens right {mean[1]:.4f} {spent:.0f} s")
            recent.clear()
        if (step + 1) % 100 == 0:
            save({"optimizers": optimizers.state_dict(), "step": step + 1})


@torch.no_grad()
def accuracy(
    model, data: Scenes, features: torch.Tensor, keep: torch.Tensor | None = None, renumber: bool = True, seed: int = 0
) -> dict[str, float]:
    """Share of questions answered exactly, 0 to 1, by type, and their `macro` mean, on `features` [B, N, D] of `data`.

    `keep` [B, K] are the visual tokens that the language model sees, all when None. Runs under bfloat16 autocast.
    """
    packer, rng = Packer(), np.random.default_rng([seed, 3])
    right, total = np.zeros(len(TYPES)), np.zeros(len(TYPES))
    for start in range(0, len(features), CHECK_BATCH):
        batch_features = features[start : start + CHECK_BATCH]
        kept = (
            torch.arange(TOKENS).expand(len(batch_features), -1) if keep is None else keep[start : start + CHECK_BATCH]
        )
        packed, question_types = packer.pack(data.layouts[start : start + CHECK_BATCH], rng, MIX)
        with torch.autocast("cpu", torch.bfloat16):
            logits = answer_logits(model, _gather(batch_features, kept), kept, packed, packer.prefix(), renumber)
        wrong = torch.zeros(len(batch_features), int(packed.segment.max()) + 1, dtype=torch.bool)
        place = packed.targets != IGNORE
        missed = logits.argmax(-1) != packed.targets[place]
        rows = torch.arange(len(batch_features))[:, None].expand_as(place)[place]
        wrong[rows[missed], packed.segment[place][missed]] = True
        for row, segment, kind in question_types:
            total[kind] += 1
            right[kind] += not wrong[row, segment]
    shares = {name: float(r / max(t, 1)) for name, r, t in zip(TYPES, right, total, strict=True)}
    return shares | {"macro": sum(shares.values()) / len(shares)}
