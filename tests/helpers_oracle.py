"""The oracle: a pruned prompt built by hand from its definition and run through the language model alone."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import vtc
from tests.helpers import IMAGE_TOKEN, spy
from vtc.patching import find_family

PICTURES = ("pixel_values", "image_grid_thw")  # of images; clips have the same under other names


@dataclass
class Truth:
    """What one unpadded pruned prompt must give. logits [K + steps - 1, V]: of the prompt and of each fed token;
    tokens [steps]: what greedy decoding writes; places [K]: kept places of the unpruned prompt."""

    logits: Tensor
    tokens: list[int]
    places: Tensor


def unpruned(model: nn.Module, single: dict) -> tuple[Tensor, Tensor]:
    """The stock model's embeddings [1, L, D] with the visual features in place, and positions [L] or [3, L]."""
    with spy(model) as seen, torch.no_grad():
        model(**single)
    embeds, positions = seen[0]["inputs_embeds"], seen[0].get("position_ids")
    if positions is None:
        return embeds, torch.arange(embeds.shape[1])
    return embeds, positions[-3:, 0] if positions.ndim == 3 else positions[0]


def planes_of(model: nn.Module, single: dict) -> list[Tensor]:
    """What the stock model adds to hidden states [L, D] after each of its first layers (DeepStack), zero for text;
    empty for most models."""
    with spy(model) as seen, torch.no_grad():
        model(**single)
    rows, planes = seen[0].get("visual_pos_masks"), []
    for plane in seen[0].get("deepstack_visual_embeds") or ():
        planes.append(plane.new_zeros(rows.shape[1], plane.shape[1]))
        planes[-1][rows[0]] = plane
    return planes


def layouts(model: nn.Module, single: dict) -> list:
    """The layouts of a prompt's images and clips as the family tells them, in the order of the prompt."""
    family, ids, kinds = find_family(model), single["input_ids"][0], []
    if "pixel_values_videos" not in single:
        return family.layouts(single) if "pixel_values" in single else []
    if "pixel_values" in single:
        kinds.append((ids == IMAGE_TOKEN, family.image_layouts(single)))
    named = {family.video.get(name, name): value for name, value in single.items() if name not in PICTURES}
    kinds.append((ids == family.token_ids()["video"], family.clip_layouts(named)))
    found = []
    for where, media in kinds:
        runs = where.nonzero().flatten().split([layout.tokens for layout in media])
        found += zip((int(run[0]) for run in runs), media, strict=True)
    return [layout for _, layout in sorted(found, key=lambda entry: entry[0])]


def visual_places(model: nn.Module, single: dict) -> list[Tensor]:
    """Where each image and clip of a prompt lies."""
    ids = single["input_ids"][0]
    is_visual = ids == IMAGE_TOKEN
    if "pixel_values_videos" in single:
        is_visual |= ids == find_family(model).token_ids()["video"]
    return list(is_visual.nonzero().flatten().split([layout.tokens for layout in layouts(model, single)]))


def pooled(features: Tensor, kept: Tensor, layout) -> Tensor:
    """`features` [n, D] of one image with each kept token replaced by the mean of the tokens nearest to it."""
    out, kept = features.clone(), set(kept.tolist())
    for tile in layout.tiles:
        columns, offsets = tile.grid[1], tile.offsets.tolist()
        points = [i for i, offset in enumerate(offsets) if offset in kept]
        flows = {p: [] for p in points}
        for i in range(len(offsets)):
            away = [((i // columns - p // columns) ** 2 + (i % columns - p % columns) ** 2, p) for p in points]
            flows[min(away)[1]].append(offsets[i])
        for point, members in flows.items():
            out[offsets[point]] = features[members].mean(0)
    return out


@torch.no_grad()
def truth(
    model: nn.Module, single: dict, kept: list[Tensor], positions: str, steps: int = 1, pool: bool = False,
    features: list[Tensor] | None = None, planes: list[list[Tensor]] | None = None,
) -> Truth:  # fmt: skip
    """Runs the shortened prompt through `language_model` and `lm_head` of the unpatched model, then greedy steps.

    kept: per image of the prompt, the places kept in its own run of tokens; features: what stands there, if not the
    model's own; planes: and what is added there after the first layers. The model must not be patched.
    """
    assert "_vtc_patch" not in vars(model)
    embeds, where = unpruned(model, single)
    embeds = embeds.clone()
    added, stays = planes_of(model, single), torch.ones(embeds.shape[1], dtype=torch.bool)
    runs = visual_places(model, single) if kept else []
    for image, places in enumerate(runs):
        if pool:
            for x in (embeds[0], *added):
                x[places] = pooled(x[places], kept[image], layouts(model, single)[image])
        if features is not None:
            embeds[0, places[kept[image]]] = features[image]
            for plane, rows in zip(added, planes[image], strict=True):
                plane[places[kept[image]]] = rows
        stays[places] = False
        stays[places[kept[image]]] = True
    places = stays.nonzero().flatten()
    short = torch.arange(len(places)).expand(*where.shape[:-1], -1) if positions == "compact" else where[..., places]
    following = int(short.max()) + 1 if positions == "compact" else int(where[..., -1].max()) + 1
    more = {}
    if added:
        is_visual = torch.isin(places, torch.cat(runs)) if runs else torch.zeros(len(places), dtype=torch.bool)
        rows = [plane[places[is_visual]] for plane in added]
        more = {"visual_pos_masks": is_visual[None], "deepstack_visual_embeds": rows}
    if single.get("token_type_ids") is not None:
        more = {"token_type_ids": single["token_type_ids"][:, places]}
    return Truth(*_greedy(model, embeds[:, places], short, following, steps, more), places)


def _greedy(model, embeds, where, following, steps, more) -> tuple[Tensor, list[int]]:
    """With types the model above the language model runs, which makes masks with blocks from them."""
    run = model.model if "token_type_ids" in more else find_family(model).language_model
    axes = where.ndim - 1
    position_ids = where.unsqueeze(-2)
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    logits, tokens, cache = [], [], None
    for step in range(steps):
        out = run(
            inputs_embeds=embeds, position_ids=position_ids, attention_mask=mask, past_key_values=cache, use_cache=True,
            **more,
        )  # fmt: skip
        more, cache = {}, out.past_key_values
        logits.append(model.lm_head(out.last_hidden_state)[0])
        allowed = logits[-1][-1].clone()
        allowed[model.generation_config.suppress_tokens] = -torch.inf
        tokens.append(int(allowed.argmax()))
        embeds = model.get_input_embeddings()(torch.tensor([tokens[-1:]]))
        position_ids = torch.full((3, 1, 1) if axes else (1, 1), following + step)
        mask = torch.cat([mask, mask.new_ones(1, 1)], 1)
    return torch.cat(logits), tokens


def asked(strategy: str, family: str, **overrides) -> vtc.config.resolve.StrategyConfig:
    """The strategy resolved as vtc.patch resolves it."""
    return vtc.load_strategy(strategy, family, **overrides)
