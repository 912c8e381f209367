"""Teach projector and language model to answer questions about clips, on cached features of the frozen tower.

As for the still demo model (`vtc.demo.train_language`): the questions about a clip share one sequence, visual tokens
are dropped in most steps, some of the steps number the kept ones anew. A head that is thrown away afterwards tells from
the states of the visual tokens after layer HEAD_LAYER what each cell holds (see `cell_labels`), which gives a signal
for every token; and what is there first and last is asked too. Each clip is also shown from its end to its start, with
the answers of that.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from vtc.demo.optim import Optimizers, split_parameters
from vtc.demo.questions import YES_NO, Question
from vtc.demo.scenes import COLORS, SHAPES
from vtc.demo.train_language import answer_logits
from vtc.demo.training_data import IGNORE, Packer
from vtc.demo.video.clip_features import FRAME_TOKENS, TOKENS, Clips
from vtc.demo.video.clip_questions import CLIP_TYPES, appearing, ask_clip, disappearing
from vtc.demo.video.clip_scenes import FRAMES, MOVING, STATES, ClipScene, cell_labels
from vtc.demo.video.video_architecture import build_video_tokenizer

CLIP_MIX = ("color", "direction", "appear", "count", "order", "order", "order")
PRACTICE = "presence"  # a type that is only trained: "Is there a red circle first?", in the first frame; "last?"
RENUMBERED = 0.15  # share of the steps that number the kept tokens anew
STATE_WEIGHTS = (0.3, 1.0) + (3.0,) * (STATES - 2)  # of background, still, and what needs several frames
HEAD_LAYER = 5
CHECK_BATCH = 16
# (tokens kept, how they are chosen, clips a step, weight, weight in the last quarter of the steps)
CLIP_BUDGETS = (
    (64, "objects", 20, 0.40, 0.20),
    (98, "one a frame", 16, 0.30, 0.20),
    (196, "one a frame", 10, 0.15, 0.25),
    (TOKENS, "all", 5, 0.15, 0.35),
)


def clip_packer() -> Packer:
    """Packs questions about clips."""
    return Packer(build_video_tokenizer(), _ask, (*CLIP_TYPES, PRACTICE))


def _ask(clip: ClipScene, type: str, rng: np.random.Generator) -> Question | None:
    if type != PRACTICE:
        return ask_clip(clip, type, rng)
    passing = [actor for actor in clip.actors if actor.first or actor.stop < FRAMES]
    actors = passing if passing and rng.random() < 0.7 else clip.actors
    actor, last = actors[int(rng.integers(len(actors)))], bool(rng.random() < 0.5)
    is_shown = actor.stop == FRAMES if last else actor.first == 0
    name = f"{COLORS[actor.item.color]} {SHAPES[actor.item.shape]}"
    return Question(f"Is there a {name} {'last' if last else 'first'}?", YES_NO[is_shown], PRACTICE)


def choose_cells(labels: np.ndarray, count: int, rng: np.random.Generator, how: str) -> torch.Tensor:
    """Indices of `count` of the visual tokens to keep while training, int64 [B, K] ascending.

    `labels` int8 [B, 392, 3]. First come all cells where an object is or was until it disappeared ("objects"), or one
    cell of each object in each frame ("one a frame"); the rest in random order. This uses ground truth.
    """
    rank = rng.random(labels.shape[:2])
    shown = labels[..., 1] >= 0
    if how == "objects":
        rank += shown
    elif how == "one a frame":
        frame = np.arange(TOKENS) // FRAME_TOKENS
        key = (np.arange(len(labels))[:, None] * FRAMES + frame) * 30 + 6 * labels[..., 1] + labels[..., 2]
        order = np.argsort(rank, axis=None)
        order = order[shown.ravel()[order]]
        _, first = np.unique(key.ravel()[order], return_index=True)
        rank.ravel()[order[first]] += 1
    return torch.from_numpy(np.sort(np.argsort(-rank, axis=1)[:, :count], axis=1))


def backwards(features: torch.Tensor) -> torch.Tensor:
    """Features [B, 392, D] of clips shown from their end to their start."""
    return features.unflatten(1, (FRAMES, FRAME_TOKENS)).flip(1).flatten(1, 2)


class CellHead(torch.nn.Module):
    """Tells from the hidden state of a visual token what its cell holds, also of what is gone."""

    def __init__(self, language, width: int):
        super().__init__()
        self.linear = torch.nn.Linear(width, STATES)
        self.looks = torch.nn.Linear(width, len(SHAPES) + len(COLORS))
        self.hidden: torch.Tensor | None = None
        language.layers[HEAD_LAYER - 1].register_forward_hook(self._keep)

    def _keep(self, module, inputs, output) -> None:
        self.hidden = output[0] if isinstance(output, tuple) else output

    def forward(self, before: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits of state, shape and colour [B, K, classes] of the `count` tokens that follow `before` others, in the
        model's last call."""
        hidden = self.hidden[:, before : before + count].float()
        hidden = F.layer_norm(hidden, hidden.shape[-1:])
        return self.linear(hidden), *self.looks(hidden).split((len(SHAPES), len(COLORS)), -1)


def _flipped(clips: Clips, rows: np.ndarray, turn: np.ndarray) -> tuple[list, torch.Tensor, torch.Tensor]:
    """Layouts, features and labels of these clips, shown backwards where `turn`."""
    layouts = [clips.layouts[row].backwards() if t else clips.layouts[row] for row, t in zip(rows, turn, strict=True)]
    features, labels = clips.features[torch.from_numpy(rows)], clips.labels[torch.from_numpy(rows)].clone()
    turned = torch.from_numpy(turn)
    features[turned] = backwards(features[turned])
    for i in np.flatnonzero(turn):
        labels[i] = torch.from_numpy(cell_labels(layouts[i])).flatten(0, 1)
    return layouts, features, labels


def teach_clips(
    model,
    clips: Clips,
    steps: int,
    seed: int,
    log: Callable[[str], None],
    state: dict,
    save: Callable,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Train projector and language model in place for `steps` steps.

    `state` is what an earlier, interrupted call gave to `save(state)`, or empty; the caller restores the weights.
    `check` is called every 500 steps.
    """
    language = model.model.language_model
    head = CellHead(language, model.config.text_config.hidden_size)
    trained = torch.nn.ModuleList([model.model.multi_modal_projector, language])
    matrices, other_parameters = split_parameters(trained)
    others = [*other_parameters, *model.lm_head.parameters(), *head.parameters()]
    optimizers = Optimizers(matrices, others, muon_lr=3e-3, adamw_lr=2e-3, steps=steps)
    if state:
        optimizers.load_state_dict(state["optimizers"])
        head.load_state_dict(state["head"])
    packer = clip_packer()
    prefix = packer.prefix()
    # Clips where much appears, forwards or backwards, come up more often.
    events = np.array([(len(appearing(layout)), len(disappearing(layout))) for layout in clips.layouts], float)
    chances = (1 + events.max(1)) / (1 + events.max(1)).sum()
    weights_of_states = torch.tensor(STATE_WEIGHTS)
    started, recent = time.perf_counter(), []
    for step in range(state.get("step", 0), steps):
        rng = np.random.default_rng([seed, 5, step])
        weights = np.array([budget[4 if step >= 0.75 * steps else 3] for budget in CLIP_BUDGETS])
        count, how, batch = CLIP_BUDGETS[rng.choice(len(CLIP_BUDGETS), p=weights / weights.sum())][:3]
        renumber = bool(rng.random() < RENUMBERED)
        rows = rng.choice(len(clips.features), batch, replace=False, p=chances)
        layouts, features, labels = _flipped(clips, rows, rng.random(batch) < 0.5)
        keep = choose_cells(labels.numpy(), count, rng, how)
        packed, _ = packer.pack(layouts, rng, CLIP_MIX + (PRACTICE,) * 2)
        kept = features.gather(1, keep[..., None].expand(-1, -1, features.shape[-1]))
        with torch.autocast("cpu", torch.bfloat16):
            logits = answer_logits(model, kept, keep, packed, prefix, renumber, TOKENS)
            states, *looks = head(len(prefix), count)
        targets = packed.targets[packed.targets != IGNORE]
        loss = F.cross_entropy(logits.float(), targets)
        wanted = labels[..., 0].long().gather(1, keep)
        state_loss = F.cross_entropy(states.float().flatten(0, 1), wanted.flatten(), weights_of_states, ignore_index=-1)
        look_loss = sum(
            F.cross_entropy(
                guess.float().flatten(0, 1), labels[..., i].long().gather(1, keep).flatten(), ignore_index=-1
            )
            for i, guess in enumerate(looks, 1)
        )
        (loss + state_loss + look_loss).backward()
        optimizers.step(step)
        event = wanted >= MOVING
        right = (states.argmax(-1) == wanted)[event].float().mean().item()
        token_share = (logits.argmax(-1) == targets).float().mean().item()
        recent.append((loss.item(), token_share, state_loss.item(), right, look_loss.item()))
        if (step + 1) % 25 == 0:
            mean = np.mean(recent, axis=0)
            spent = time.perf_counter() - started
            log(
                f"clips {step + 1}/{steps} loss {mean[0]:.4f} tokens right {mean[1]:.4f} "
                f"state loss {mean[2]:.4f} events right {mean[3]:.4f} look loss {mean[4]:.4f} {spent:.0f} s"
            )
            recent.clear()
        if (step + 1) % 100 == 0:
            save({"optimizers": optimizers.state_dict(), "head": head.state_dict(), "step": step + 1})
        if (step + 1) % 500 == 0:
            check()


@torch.no_grad()
def clip_accuracy(
    model, clips: Clips, keep: torch.Tensor | None = None, renumber: bool = True, seed: int = 0
) -> dict[str, float]:
    """Share of questions answered exactly, 0 to 1, by type, and their `macro` mean.

    `keep` [B, K] are the visual tokens that the language model sees, all when None. Runs under bfloat16 autocast.
    """
    packer, rng = clip_packer(), np.random.default_rng([seed, 6])
    right, total = np.zeros(len(CLIP_TYPES)), np.zeros(len(CLIP_TYPES))
    for start in range(0, len(clips.features), CHECK_BATCH):
        features = clips.features[start : start + CHECK_BATCH]
        kept = torch.arange(TOKENS).expand(len(features), -1) if keep is None else keep[start : start + CHECK_BATCH]
        packed, types = packer.pack(clips.layouts[start : start + CHECK_BATCH], rng, CLIP_MIX)
        seen = features.gather(1, kept[..., None].expand(-1, -1, features.shape[-1]))
        with torch.autocast("cpu", torch.bfloat16):
            logits = answer_logits(model, seen, kept, packed, packer.prefix(), renumber, TOKENS)
        wrong = torch.zeros(len(features), int(packed.segment.max()) + 1, dtype=torch.bool)
        place = packed.targets != IGNORE
        missed = logits.argmax(-1) != packed.targets[place]
        rows = torch.arange(len(features))[:, None].expand_as(place)[place]
        wrong[rows[missed], packed.segment[place][missed]] = True
        for row, segment, kind in types:
            total[kind] += 1
            right[kind] += not wrong[row, segment]
    shares = {name: float(r / max(t, 1)) for name, r, t in zip(CLIP_TYPES, right, total, strict=True)}
    return shares | {"macro": sum(shares.values()) / len(shares)}
