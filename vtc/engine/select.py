"""Running a strategy's stage on the images of one prefill: units with equal shapes go through it together."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.config import StrategyConfig
from vtc.errors import PatchError
from vtc.layout import ImageLayout, VisionRun
from vtc.selection import Selection
from vtc.signals import Context, Encoder, Features, Signal


@dataclass(frozen=True)
class Unit:
    """What competes for one quota: a tile, or all tiles of an image.

    image, tile: where it is (tile None = all). offsets [n]: places in the image's run. ordinal: its place in the
    prompt. count: tokens to keep.
    """

    image: int
    tile: int | None
    offsets: Tensor
    grid: tuple[int, int] | None
    ordinal: int
    count: int


@dataclass
class Kept:
    """What stays of one image. offsets [k] ascending places in the image's run; features [k, D] where merged."""

    offsets: Tensor
    features: Tensor | None = None


def units_of(strategy: StrategyConfig, requests: list[list[int]], layouts: list[ImageLayout]) -> list[Unit]:
    """The units of each prompt with their quotas. requests: per prompt, indices into `layouts`."""
    units = []
    for images in requests:
        sizes = [[t.tokens for t in layouts[i].tiles] for i in images]
        ordinal = 0
        for i, counts in zip(images, strategy.budget.quotas(sizes), strict=True):
            tiles = layouts[i].tiles
            if len(counts) == 1:
                offsets = tiles[0].offsets if len(tiles) == 1 else torch.cat([t.offsets for t in tiles])
                grid = tiles[0].grid if len(tiles) == 1 else None
                units.append(Unit(i, None, offsets, grid, ordinal, counts[0]))
                ordinal += 1
                continue
            for t, (tile, count) in enumerate(zip(tiles, counts, strict=True)):
                if count:
                    units.append(Unit(i, t, tile.offsets, tile.grid, ordinal, count))
                ordinal += 1
    return units


def run_stage(
    strategy: StrategyConfig,
    encoder: Encoder,
    requests: list[list[int]],
    source: list[int],
    run: VisionRun,
    features: list[Tensor],
) -> list[Kept]:
    """What stays of each image of the prompts.

    requests: per prompt, indices of its images in prompt order (0..M-1 over all). source [M]: the image of `run` that
    each is (beams repeat images). features: per image, its tokens' embeddings [tokens, D].
    """
    layouts = [run.images[s] for s in source]
    groups: dict[tuple, list[Unit]] = defaultdict(list)
    units = units_of(strategy, requests, layouts)
    for unit in units:
        groups[len(unit.offsets), unit.count, unit.grid].append(unit)
    needs = strategy.stage.needs(encoder)
    chosen: dict[int, list[tuple[Tensor, Tensor | None]]] = defaultdict(list)
    for (tokens, count, grid), members in groups.items():
        signals = {signal: _stack(signal, members, source, run, features) for signal in needs}
        ordinals = tuple(unit.ordinal for unit in members)
        context = Context(tokens, count, grid, ordinals, features[0].device, signals)
        selection = strategy.stage.select(context, encoder).check(tokens)
        for b, unit in enumerate(members):
            chosen[unit.image].append(_kept(selection, b, unit, features[unit.image]))
    return [_join(chosen[i]) for i in range(len(layouts))]


def _stack(signal: Signal, members: list[Unit], source: list[int], run: VisionRun, features: list[Tensor]) -> Tensor:
    if isinstance(signal, Features):
        return torch.stack([features[u.image][u.offsets.to(features[u.image].device)] for u in members])
    if signal not in run.signals:
        raise PatchError(f"the signal {signal} was not seen; the vision encoder did not run its observed layer")
    rows = []
    for unit in members:
        tiles = run.signals[signal][source[unit.image]]
        rows.append(torch.cat(tiles) if unit.tile is None and len(tiles) > 1 else tiles[unit.tile or 0])
    return torch.stack(rows)


def _kept(selection: Selection, b: int, unit: Unit, features: Tensor) -> tuple[Tensor, Tensor | None]:
    offsets = unit.offsets.to(features.device)
    kept = offsets[selection.row(b).to(features.device)]
    if selection.merge is None:
        return kept, None
    mine = Selection(selection.keep[b : b + 1], None, _row(selection.merge, b))
    merged = mine.apply_features(features[offsets].unsqueeze(0))[0]
    return kept, merged if selection.valid is None else merged[selection.valid[b].to(merged.device)]


def _row(merge, b: int):
    return type(merge)(merge.target[b : b + 1], merge.weight[b : b + 1])


def _join(parts: list[tuple[Tensor, Tensor | None]]) -> Kept:
    offsets = torch.cat([p[0] for p in parts])
    order = offsets.argsort()
    merged = None if parts[0][1] is None else torch.cat([p[1] for p in parts])[order]
    return Kept(offsets[order], merged)
