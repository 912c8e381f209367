"""Running a strategy's stage on the images of one prefill: units with equal shapes go through it together."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.config import StrategyConfig
from vtc.errors import PatchError
from vtc.layout import ImageLayout, VisionRun
from vtc.selection import Merge, Selection
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
    features: Callable[[int], Tensor],
    device: torch.device,
) -> list[Kept]:
    """What stays of each image of the prompts.

    requests: per prompt, indices of its images in prompt order (0..M-1 over all). source [M]: the image of `run` that
    each is (beams repeat images). features: gives an image's embeddings [tokens, D]; asked only by stages that look at
    or merge features. device: where the language model's input is.
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
        context = Context(tokens, count, grid, ordinals, device, signals)
        selection = strategy.stage.select(context, encoder).check(tokens)
        for b, unit in enumerate(members):
            chosen[unit.image].append(_kept(selection, b, unit, features, device))
    return [_join(chosen[i]) for i in range(len(layouts))]


def _stack(signal: Signal, members: list[Unit], source: list[int], run: VisionRun, features: Callable) -> Tensor:
    if isinstance(signal, Features):
        seen = [(features(unit.image), unit.offsets) for unit in members]
        return torch.stack([x[offsets.to(x.device)] for x, offsets in seen])
    if signal not in run.signals:
        raise PatchError(f"the signal {signal} was not seen; the vision encoder did not run its observed layer")
    rows = []
    for unit in members:
        tiles = run.signals[signal][source[unit.image]]
        rows.append(torch.cat(tiles) if unit.tile is None and len(tiles) > 1 else tiles[unit.tile or 0])
    return torch.stack(rows)


def _kept(
    selection: Selection, b: int, unit: Unit, features: Callable, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    offsets = unit.offsets.to(device)
    kept = offsets[selection.row(b).to(device)]
    if selection.merge is None:
        return kept, None
    merge = Merge(selection.merge.target[b : b + 1], selection.merge.weight[b : b + 1])
    mine = Selection(selection.keep[b : b + 1], None, merge)
    merged = mine.apply_features(features(unit.image)[offsets].unsqueeze(0))[0]
    return kept, merged if selection.valid is None else merged[selection.valid[b].to(merged.device)]


def _join(parts: list[tuple[Tensor, Tensor | None]]) -> Kept:
    offsets = torch.cat([p[0] for p in parts])
    order = offsets.argsort()
    merged = None if parts[0][1] is None else torch.cat([p[1] for p in parts])[order]
    return Kept(offsets[order], merged)
