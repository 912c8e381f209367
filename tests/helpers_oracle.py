"""The oracle: a pruned prompt built by hand from its definition and run through the language model alone."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import vtc
from tests.helpers import IMAGE_TOKEN, spy
from vtc.patching import find_family


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


def layouts(model: nn.Module, single: dict) -> list:
    """The images' layouts as the family tells them."""
    return find_family(model).image_layouts(single)


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
    features: list[Tensor] | None = None,
) -> Truth:  # fmt: skip
    """Runs the shortened prompt through `language_model` and `lm_head` of the unpatched model, then greedy steps.

    kept: per image of the prompt, the places kept in its own run of tokens; features: what stands there, if not the
    model's own. The model must not be patched.
    """
    assert "_vtc_patch" not in vars(model)
    embeds, where = unpruned(model, single)
    embeds = embeds.clone()
    is_image = single["input_ids"][0] == IMAGE_TOKEN
    stays, sizes = ~is_image, [layout.tokens for layout in layouts(model, single)] if kept else []
    for image, places in enumerate(is_image.nonzero().flatten().split(sizes) if kept else []):
        if pool:
            embeds[0, places] = pooled(embeds[0, places], kept[image], layouts(model, single)[image])
        if features is not None:
            embeds[0, places[kept[image]]] = features[image]
        stays[places[kept[image]]] = True
    places = stays.nonzero().flatten()
    short = torch.arange(len(places)).expand(*where.shape[:-1], -1) if positions == "compact" else where[..., places]
    following = int(short.max()) + 1 if positions == "compact" else int(where.max()) + 1
    types = None if single.get("token_type_ids") is None else single["token_type_ids"][:, places]
    return Truth(*_greedy(model, embeds[:, places], short, following, steps, types), places)


def _greedy(model, embeds, where, following, steps, types=None) -> tuple[Tensor, list[int]]:
    """types [1, K]: of the short prompt, for models that make masks with blocks from them before the language model."""
    run, blocks = (model.model.language_model, {}) if types is None else (model.model, {"token_type_ids": types})
    axes = where.ndim - 1
    position_ids = where.unsqueeze(-2)
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    logits, tokens, cache = [], [], None
    for step in range(steps):
        out = run(
            inputs_embeds=embeds, position_ids=position_ids, attention_mask=mask, past_key_values=cache, use_cache=True,
            **blocks,
        )  # fmt: skip
        cache, blocks = out.past_key_values, {}
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
