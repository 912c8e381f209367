"""Running a stage on the images of one prefill: units with equal shapes are batched."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vtc.core.budget import Budget
from vtc.core.layout import ImageLayout, Left
from vtc.core.selection import Extra, Flow, Selection
from vtc.core.signals import Context, Extent, Signal
from vtc.kernels.transfer import upload


@dataclass(frozen=True)
class Unit:
    """The tokens that compete for one quota: a tile, or all remaining tokens of an image.

    image, tile: which image and tile (tile None = all). offsets [n]: places in the image's run of tokens, in sequence
    order. ordinal: its place in the prompt. count: tokens to keep. plain: it is a whole image in order, so that offsets
    are 0..n-1. tiles, frames: see Context.
    """

    image: int
    tile: int | None
    offsets: Tensor
    grid: tuple[int, int] | None
    ordinal: int
    count: int
    plain: bool = False
    tiles: tuple[Extent, ...] = ()
    frames: int = 0

    def of(self, x: Tensor) -> Tensor:
        """The unit's rows of x [tokens of the image, ...] -> [n, ...]."""
        return x if self.plain else x[upload(self.offsets, x.device)]


@dataclass
class Kept:
    """The kept tokens of one image. offsets [k]: places in the image's run of tokens, in sequence order; features
    [k, D] if merged, and planes [k, P * D]: their rows in the DeepStack planes that are still to be added; ordered: the
    offsets may not ascend; flows: of the units merged in the last step; score [k]: see Selection."""

    offsets: Tensor
    features: Tensor | None = None
    ordered: bool = False
    flows: tuple[Flow, ...] = ()
    score: Tensor | None = None
    planes: Tensor | None = None


def units_of(
    budget: Budget, requests: list[list[int]], layouts: list[ImageLayout], left: list[Left] | None = None,
    raster: bool = False,
) -> list[Unit]:  # fmt: skip
    """The units of each prompt with their quotas. requests: per prompt, indices into `layouts`. left: what the encoder
    left of each image, if tokens were dropped inside it; quotas still refer to the whole images. raster: see
    `Budget.quotas`."""
    unpruned, layouts = layouts, layouts if left is None else [cut(*pair) for pair in zip(layouts, left, strict=True)]
    units = []
    for images in requests:
        sizes = [[t.tokens for t in unpruned[i].tiles] for i in images]
        ordinal = 0
        clips = [bool(layouts[i].frames) for i in images]
        for i, counts in zip(images, budget.quotas(sizes, clips, raster), strict=True):
            tiles = layouts[i].tiles
            if len(counts) == 1:
                offsets = tiles[0].offsets if len(tiles) == 1 else torch.cat([t.offsets for t in tiles])
                grid = tiles[0].grid if len(tiles) == 1 else None
                plain = len(tiles) == 1 and tiles[0].tokens == layouts[i].tokens
                count = min(counts[0], len(offsets))
                whole, frames = all(t.grid for t in tiles), layouts[i].frames
                extents = tuple(t.extent for t in tiles) if len(tiles) > 1 and whole and not frames else ()
                units.append(Unit(i, None, offsets, grid, ordinal, count, plain, extents, frames if whole else 0))
                ordinal += 1
                continue
            for t, (tile, count) in enumerate(zip(tiles, counts, strict=True)):
                if count and tile.tokens:
                    units.append(Unit(i, t, tile.offsets, tile.grid, ordinal, min(count, tile.tokens)))
                ordinal += 1
    return units


def cut(layout: ImageLayout, left: Left) -> ImageLayout:
    """The layout of the remaining tokens of an image."""
    tiles = [
        replace(t, offsets=t.offsets.to(p.device)[p], patches=t.patches.to(p.device)[p], grid=None)
        for t, p in zip(layout.tiles, left.positions, strict=True)
    ]
    return replace(layout, tiles=tuple(tiles))


def choose(
    select: Callable[[Context], Selection],
    needs: Sequence[Signal],
    units: list[Unit],
    look: Callable[[Signal, Unit], Tensor],
    merged: Callable[[Unit, Selection], tuple[Tensor, Tensor | None]],
    device: torch.device,
    step: int = 0,
    asked: float | None = None,
) -> dict[int, Kept]:
    """The kept tokens of each image that has units.

    select: the stage. look: gives one signal of one unit [n, ...]. merged: gives the features [K, D] of a merging
    Selection of one unit, and its rows in the DeepStack planes, if there are any. device: the device of the language
    model's input. step, asked: see Context.
    """
    groups: dict[tuple, list[tuple[Unit, list[Tensor]]]] = defaultdict(list)
    for unit in units:
        values = [look(signal, unit) for signal in needs]
        shapes = tuple(x.shape for x in values)
        groups[len(unit.offsets), unit.count, unit.grid, unit.tiles, unit.frames, shapes].append((unit, values))
    selected: list[tuple[list[Unit], Selection]] = []
    for (tokens, count, grid, tiles, frames, _), entries in groups.items():
        members = [unit for unit, _ in entries]
        stacked = [torch.stack(rows) for rows in zip(*(values for _, values in entries), strict=True)]
        signals = dict(zip(needs, stacked, strict=True))
        ordinals = tuple(unit.ordinal for unit in members)
        context = Context(tokens, count, grid, ordinals, device, signals, step, tiles, (), frames, asked)
        selection = select(context).check(tokens)
        selected.append((members, selection))
    chosen: dict[int, list[Kept]] = defaultdict(list)
    for (members, selection), lengths in zip(selected, lengths_of([s for _, s in selected]), strict=True):
        for b, (unit, length) in enumerate(zip(members, lengths, strict=True)):
            chosen[unit.image].append(_kept(selection, b, length, unit, merged, device))
    return {image: _join(parts) for image, parts in chosen.items()}


def lengths_of(selections: list[Selection]) -> list[list[int]]:
    """How many tokens each unit of each selection keeps. If that depends on the image (adaptive methods), the host
    waits for the device once, unless `valid` is on the host."""
    lengths = [
        [s.keep.shape[1]] * len(s.keep) if s.valid is None or s.valid.device.type != "cpu" else s.valid.sum(1).tolist()
        for s in selections
    ]
    adaptive = [i for i, s in enumerate(selections) if s.valid is not None and s.valid.device.type != "cpu"]
    if adaptive:
        read = iter(torch.cat([selections[i].valid.sum(1) for i in adaptive]).tolist())
        for i in adaptive:
            lengths[i] = [next(read) for _ in lengths[i]]
    return lengths


def _kept(selection: Selection, b: int, length: int, unit: Unit, merged: Callable, device: torch.device) -> Kept:
    row, features, planes, flows = selection.keep[b, :length].to(device), None, None, ()
    kept = row if unit.plain else upload(unit.offsets, device)[row]
    if selection.merge is not None:
        merge = selection.merge.unit(b)
        extra = None if merge.extra is None else Extra(*(x[0] for x in merge.extra))
        features, planes = merged(unit, Selection(selection.keep[b : b + 1], None, merge))
        features, planes = features[:length], None if planes is None else planes[:length]
        flows = (Flow(unit.offsets, selection.keep[b], merge.target[0], extra),)
    score = None if selection.score is None else selection.score[b, :length].to(device)
    if selection.order is None:
        return Kept(kept, features, False, flows, score, planes)
    order = selection.order[b, :length].to(device)
    features, score, planes = (None if x is None else x[order.to(x.device)] for x in (features, score, planes))
    return Kept(kept[order], features, True, flows, score, planes)


def _join(parts: list[Kept]) -> Kept:
    if len(parts) == 1 and parts[0].ordered:
        return parts[0]
    offsets = torch.cat([p.offsets for p in parts])
    features, score, planes = (_cat([getattr(p, name) for p in parts]) for name in ("features", "score", "planes"))
    flows = tuple(flow for p in parts for flow in p.flows)
    if any(p.ordered for p in parts):
        return Kept(offsets, features, True, flows, score, planes)
    order = offsets.argsort()
    features, score, planes = (None if x is None else x[order] for x in (features, score, planes))
    return Kept(offsets[order], features, False, flows, score, planes)


def _cat(parts: list[Tensor | None]) -> Tensor | None:
    return None if parts[0] is None else torch.cat(parts)
