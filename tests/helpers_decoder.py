"""The oracle for drops inside the language model: the stock layers one by one, nothing gathered, nothing cached.

It is told which places survive each drop and does the rest by itself: the whole prompt stays in every layer, masks hide
what is gone, positions are worked out per layer, and each written token is computed with the whole text before it.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.models.gemma3 import modeling_gemma3

import vtc
from tests.helpers import family_of, forward, model_of, patched, spy
from tests.helpers_costs import kinds_of
from tests.helpers_merging import MERGED_BEFORE, merging_of
from tests.helpers_oracle import planes_of, unpruned, visual_places
from vtc.core.signals import Decoder
from vtc.patching import find_family

BLOCKS_IN_WINDOW = hasattr(modeling_gemma3, "get_block_sequence_ids_for_mask")


@dataclass(frozen=True)
class Drop:
    """One drop of a prompt.

    layer: the first to see fewer tokens (0 for a stage at the projector). kept: per image, the places that stay in its
    own run of tokens, in the order in which they then stand. compact: positions are renumbered. contextual: per image,
    how many of the kept tokens, at the end, take in those that go (None: nothing merges here). merging: of other
    methods that merge, what hidden states or planes become: (they, the hidden states, the view, the drop, where each
    image's tokens are) -> they.
    """

    layer: int
    kept: list[Tensor]
    compact: bool
    contextual: list[int] | None = None
    merging: Callable | None = None


@dataclass
class Truth:
    """What one prompt must give. logits [K + steps - 1, V]: of the places that survive all drops, then of each fed
    token; tokens [steps]: what greedy decoding writes; places [K]: the survivors in their order."""

    logits: Tensor
    tokens: list[int]
    places: Tensor


@dataclass
class View:
    """What a layer sees. order: places of the prompt as they stand in the sequence, written tokens at the end;
    positions [1 or 3, n] by place; following: the position of the first written token."""

    order: Tensor
    positions: Tensor
    following: int


def drops_of(report, prompt: int, config) -> list[Drop]:
    """The drops of one prompt as its report tells them; config: the resolved strategy, for positions and knobs."""
    images, drops = [image for image in report.images if image.prompt == prompt], []
    for number in range(len(images[0].steps) if images else 0):
        steps = [image.steps[number] for image in images]
        assert len({(step.stage, step.layer) for step in steps}) == 1
        stage = next(s for s in config.stages if s.method == steps[0].stage)
        inside = [step for step in images[0].steps[:number] if step.stage == stage.method]
        contextual, merging = None, merging_of(stage, steps)
        if stage.method == "visiondrop":
            share = stage.stage.contextual[_step_at(stage.stage.layers, steps[0].layer, len(inside), report.shape)]
            contextual = [round(step.after * share) if step.after < step.before else 0 for step in steps]
        layer = 0 if steps[0].layer is None else steps[0].layer
        kept, compact = [step.kept.cpu() for step in steps], stage.positions == "compact"
        drops.append(Drop(layer, kept, compact, contextual, merging))
    return drops


def _step_at(layers, layer: int, number: int, shape) -> int:
    """Which of the steps asked for before `layers` took place before `layer`, the `number`-th in the report: where
    several come to lie before one layer with softmax attention, the last."""
    if shape.softmax is None:
        return number
    asked = [Decoder("", shape.layers).layer(value, "") for value in layers]
    return max(i for i, a in enumerate(asked) if min(s for s in shape.softmax if s >= a) == layer)


@torch.no_grad()
def truth(
    model: nn.Module,
    single: dict,
    drops: list[Drop],
    steps: int = 1,
    entered: list[Tensor] | None = None,
    draft=(),
    watch=None,
) -> Truth:
    """One unpadded prompt through the unpatched model, and what greedy decoding writes after it.

    entered: what the language model receives [n, D] after a stage at the projector, and what it adds after its first
    layers (of the tokens that are left then, or of all [L, D]), where the oracle does not redo it.
    draft: a guess of the tokens. It saves passes, since one pass checks them all, and does not influence the result.
    watch(layer, hidden, view, hidden after drops, view after drops) is called before each layer runs.
    """
    assert "_vtc_patch" not in vars(model)
    (embeds, positions), planes = unpruned(model, single), planes_of(model, single)
    guess = (list(draft) + [0] * steps)[: steps - 1]
    runs = visual_places(model, single)
    while True:
        hidden = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([guess], dtype=torch.long))], 1)
        view = View(
            torch.arange(embeds.shape[1]), positions.reshape(-1, embeds.shape[1]), int(positions[..., -1].max()) + 1
        )
        hidden, view = _layers(model, hidden, view, drops, runs, len(guess), entered, watch, planes)
        rows = torch.cat([view.order, torch.arange(embeds.shape[1], hidden.shape[1])])
        logits = model.lm_head(find_family(model).language_model.norm(hidden[0, rows]))
        allowed = logits[len(view.order) - 1 :].clone()
        allowed[:, model.generation_config.suppress_tokens] = -torch.inf
        tokens = allowed.argmax(-1).tolist()
        if tokens[: len(guess)] == guess:
            return Truth(logits, tokens, view.order)
        wrong = next(i for i, token in enumerate(guess) if token != tokens[i])
        guess = tokens[: wrong + 1] + guess[wrong + 1 :]


def _layers(model, hidden, view: View, drops, runs, written: int, entered, watch, planes) -> tuple[Tensor, View]:
    """All layers over [1, L + written, D]; returns the last one's output and the last view."""
    language, length, planes = find_family(model).language_model, hidden.shape[1] - written, list(planes)
    kinds = getattr(language.config, "layer_types", None) or [None] * len(language.layers)
    for index, layer in enumerate(language.layers):
        given = hidden, view
        for drop in (d for d in drops if d.layer == index):
            before, view = view, _dropped(view, drop, runs)
            merging = drop.merging
            if drop.contextual is not None:
                keys = heads_of(language, layer, "k_proj", hidden[:, :length], before).mean(1)
                merging = functools.partial(_merged, keys)
            if merging is not None:
                planes[index:] = [merging(x[None], hidden, before, drop, runs)[0] for x in planes[index:]]
                hidden = merging(hidden, hidden, before, drop, runs)
            if index == 0 and entered is not None:
                hidden = hidden.clone()
                hidden[0, view.order] = entered[0]
        if watch is not None:
            watch(index, *given, hidden, view)
        where = torch.cat([view.positions, view.following + torch.arange(written).expand(len(view.positions), -1)], 1)
        window = None if kinds[index] == "full_attention" else getattr(language.config, "sliding_window", None)
        mask = _mask(view, length, written, window, runs if find_family(model).block_types else [])
        mask = mask if hidden.dtype == mask.dtype else mask.clamp(min=torch.finfo(hidden.dtype).min).to(hidden.dtype)
        options = dict(position_embeddings=_rotary(language, hidden, where, kinds[index]), position_ids=None)
        if hasattr(layer, "linear_attn"):  # a state would take in what is masked, so what is gone is taken out
            rows = torch.cat([view.order, torch.arange(length, hidden.shape[1])])
            hidden = hidden.index_copy(1, rows, layer(hidden[:, rows], attention_mask=None, **options))
        else:
            out = layer(hidden, attention_mask=mask, **options)
            hidden = out[0] if isinstance(out, tuple) else out
        if entered is not None and index + 1 < len(entered):
            rows = entered[index + 1]
            hidden[0, view.order] += rows if len(rows) == len(view.order) else rows[view.order]
        elif entered is None and index < len(planes):
            hidden[0, :length] += planes[index]
    return hidden, view


def _rotary(language: nn.Module, hidden: Tensor, where: Tensor, kind: str | None = None) -> tuple[Tensor, Tensor]:
    """kind: of the layer, where each has its own embeddings."""
    by_kind = [kind] if "layer_type" in inspect.signature(type(language.rotary_emb).forward).parameters else []
    return language.rotary_emb(hidden, where if len(where) == 1 else where.unsqueeze(1), *by_kind)


def _mask(view: View, length: int, written: int, window: int | None, blocks: list[Tensor]) -> Tensor:
    """[1, 1, L + written, L + written]: a token sees itself and those that stand before it in the sequence, and in a
    block those behind it, too; one that is gone sees itself alone and is seen by no other."""
    total = length + written
    rank = torch.full((total,), -1)
    order = torch.cat([view.order, torch.arange(length, total)])
    rank[order] = torch.arange(len(order))
    seen = (rank[:, None] >= rank) & (rank >= 0) & (rank[:, None] >= 0)
    near = torch.ones_like(seen) if window is None else rank[:, None] - rank < window
    block = torch.full((total,), -1)
    for number, places in enumerate(blocks):
        block[places] = number
    block[rank < 0] = -1
    same = (block[:, None] == block) & (block >= 0)
    # In transformers 5.0.0 a block leaves the window.
    seen = (seen | same) & near if BLOCKS_IN_WINDOW else seen & near | same
    seen |= torch.eye(total, dtype=torch.bool)
    return torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)[None, None]


def _dropped(view: View, drop: Drop, runs: list[Tensor]) -> View:
    """The sequence after a drop: an image's survivors stand in their own order in the places that they had."""
    visual = {place for run in runs for place in run.tolist()}
    text, left = (
        set(view.order.tolist()) - visual,
        [run[kept].tolist() for run, kept in zip(runs, drop.kept, strict=True)],
    )
    assert drop.layer == 0 or set().union(*left) <= set(view.order.tolist())
    stands = {slot: place for mine in left for slot, place in zip(sorted(mine), mine, strict=True)}
    order = torch.tensor([stands.get(slot, slot) for slot in sorted(text.union(*left))])
    if not drop.compact:
        return View(order, view.positions, view.following)
    positions = view.positions.clone()
    positions[:, order] = torch.arange(len(order))
    return View(order, positions, len(order))


def heads_of(language: nn.Module, layer: nn.Module, projection: str, hidden: Tensor, view: View) -> Tensor:
    """Queries ("q_proj") or keys ("k_proj") [L, heads, e] of what is about to enter a layer, after RoPE."""
    states = getattr(layer.self_attn, projection)(layer.input_layernorm(hidden))[0]
    width = layer.self_attn.head_dim
    norm = getattr(layer.self_attn, f"{projection[0]}_norm", nn.Identity())
    gated = projection == "q_proj" and states.shape[1] == 2 * language.config.num_attention_heads * width
    states = norm(states.view(len(states), -1, 2 * width if gated else width)[..., :width])  # a head's gate comes last
    cos, sin = (_one_axis(language, x)[0].unsqueeze(1) for x in _rotary(language, hidden, view.positions))
    width = cos.shape[-1]
    states, rest = states[..., :width], states[..., width:]  # GLM turns half of a head
    if language.config.model_type == "glm4v_text":  # and neighbours instead of halves
        cos, sin = (_of_neighbours(x) for x in (cos, sin))
        turned = torch.stack([-states[..., 1::2], states[..., ::2]], -1).flatten(-2)
    else:
        turned = torch.cat([-states[..., width // 2 :], states[..., : width // 2]], -1)
    return torch.cat([states * cos + turned * sin, rest], -1)


def _of_neighbours(x: Tensor) -> Tensor:
    """Cosines or sines in pairs, as newer versions of transformers make them; older ones repeat their first half."""
    half = x.shape[-1] // 2
    return x if torch.equal(x[..., ::2], x[..., 1::2]) else x[..., :half].repeat_interleave(2, -1)


def turned_ones(language: nn.Module, hidden: Tensor, view: View) -> Tensor:
    """A vector of ones at each place [L, e], after RoPE."""
    cos, sin = (_one_axis(language, x)[0] for x in _rotary(language, hidden, view.positions))
    half, rest = cos.shape[-1] // 2, language.layers[0].self_attn.head_dim - cos.shape[-1]
    if language.config.model_type == "glm4v_text":
        cos, sin = (_of_neighbours(x) for x in (cos, sin))
        turned = cos + sin * torch.tensor([-1.0, 1.0]).repeat(half)
    else:
        turned = cos + torch.cat([-sin[..., :half], sin[..., half:]], -1)
    return torch.cat([turned, turned.new_ones(len(turned), rest)], -1)


def _one_axis(language: nn.Module, x: Tensor) -> Tensor:
    """Cosines or sines [1, L, e]: of three axes [3, 1, L, e] each gives its sections of the width."""
    if x.ndim == 3:
        return x
    sections = language.config.rope_parameters["mrope_section"] * 2
    return torch.cat([part[i % 3] for i, part in enumerate(x.split(sections, -1))], -1)


def _merged(keys: Tensor, x: Tensor, hidden, view: View, drop: Drop, runs: list[Tensor]) -> Tensor:
    """Contextual tokens take in the mean of the dropped tokens whose key is most like theirs."""
    out = x.clone()
    for run, kept, count in zip(runs, drop.kept, drop.contextual, strict=True):
        mine = [place for place in view.order.tolist() if place in set(run.tolist())]
        left = run[kept].tolist()
        dominant, contextual = left[: len(left) - count], left[len(left) - count :]
        assert [place for place in mine if place in dominant] == dominant
        rest = [place for place in mine if place not in dominant]
        if not count:
            continue
        assert rest[:: max(1, len(rest) // count)][:count] == contextual
        unit = keys / keys.norm(dim=-1, keepdim=True)
        groups = {place: [] for place in contextual}
        for place in (p for p in rest if p not in groups):
            groups[contextual[int((unit[contextual] @ unit[place]).argmax())]].append(place)
        for place, members in groups.items():
            if members:
                out[0, place] = x[0, place] + x[0, members].mean(0)
    return out


# VisionDrop's published budget leaves five tokens of a tiny image, too few to merge anything.
OPTIONS = {"visiondrop": {"visiondrop_projector.keep": 0.5}, **dict.fromkeys(("hiprune", "pool"), {"keep": 0.3})}


def options_of(strategy, **more) -> dict:
    """The options with which a strategy is tested."""
    return {**(OPTIONS.get(strategy, {}) if isinstance(strategy, str) else {}), **more}


def on(model: nn.Module, strategy, **more):
    """The model patched, in a with-block, with a strategy and the options with which it is tested."""
    return patched(model, strategy, **options_of(strategy, **more))


def exact(strategy) -> float:
    """The tolerance: merge weights are float32, everything else is float64."""
    return 1e-9


def truths(model: nn.Module, singles: list[dict], report, config, entered=None, steps: int = 1, draft=None) -> list:
    """The oracle's answer for each prompt of a batch. entered: see `entered_of`; draft [B, steps]: see `truth`."""
    return [
        truth(
            model, single, drops_of(report, b, config), steps,
            None if entered is None else entered[b], () if draft is None else draft[b].tolist(),
        )
        for b, single in enumerate(singles)
    ]  # fmt: skip


def entered_of(model: nn.Module, inputs: dict, config) -> list[list[Tensor]] | None:
    """What the language model of a patched model receives of each prompt [n, D], where a stage merges before the
    projector (the oracle does not redo the encoder), and what it adds after its first layers; else None."""
    if config.projector is None or config.projector.method not in MERGED_BEFORE:
        return None
    with spy(model) as seen, additions(model) as added:
        forward(model, inputs)
    right, found = bool((inputs["attention_mask"][:, -1] == 0).any()), [seen[0]["inputs_embeds"], *added]
    return [
        [x[b, :n] if right else x[b, -n:] for x, n in zip(found, [mine[0], *mine], strict=False)]
        for b, mine in enumerate(vtc.report(model).prompt_lengths)
    ]


@contextmanager
def additions(model: nn.Module) -> Iterator[list[Tensor]]:
    """What the text model adds to hidden states [B, K, D] after its first layers, see `helpers_oracle.planes_of`."""
    language, name, seen = find_family(model).language_model, "_deepstack_process", []
    if not hasattr(language, name):
        yield seen
        return
    stock, original = name not in vars(language), getattr(language, name)

    def noting(hidden: Tensor, *rows: Tensor) -> Tensor:
        seen.append(original(hidden, *rows) - hidden)
        return hidden + seen[-1]

    setattr(language, name, noting)
    try:
        yield seen
    finally:
        delattr(language, name) if stock else setattr(language, name, original)


def decoder_of(case: str) -> Decoder:
    """The facts about the language model of a case."""
    kinds = kinds_of(model_of(case).config.get_text_config())
    softmax = tuple(i for i, linear in enumerate(kinds) if not linear)
    return Decoder(family_of(case), len(kinds), softmax if any(kinds) else None)


def resolved(strategy, case: str, **options):
    """The strategy as vtc.patch resolves it for the family of a case."""
    return vtc.load_strategy(strategy, family_of(case), **options)
