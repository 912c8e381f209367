"""A stage inside the encoder: its hooks, and the mapping of its remaining tokens to those of the images.

From the projector's output on, every image has all its tokens again, with zeros for dropped ones, so that the model's
own splitting, unpadding and counting of placeholders work unchanged; which tokens are real is recorded here.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vtc.core.errors import PatchError
from vtc.core.hooks import Patchwork
from vtc.core.layout import Left, Tile, VisionRun
from vtc.core.selection import Flow
from vtc.core.signals import Unprojected
from vtc.engine.encoder import EncoderPlan, EncoderRun
from vtc.engine.select import Kept
from vtc.engine.state import ThreadState
from vtc.kernels.transfer import upload


def put_inside(plan: EncoderPlan, work: Patchwork, thread: ThreadState) -> set[int]:
    """Installs hooks for the steps of a plan; returns the layers whose attention has to be observed."""
    site, first = plan.site, plan.cuts[0].layer

    def running() -> EncoderRun | None:
        return None if thread.recording is None else thread.recording.inside

    def before(layer: int, module: nn.Module, args: tuple, kwargs: dict):
        run = running()
        return None if run is None else run.before_layer(layer, args, kwargs)

    def after(layer: int, module: nn.Module, args: tuple, kwargs: dict, output):
        run = running()
        if run is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        short = run.after_layer(layer, hidden)
        return (short, *output[1:]) if isinstance(output, tuple) else short

    def norm(layer: int, module: nn.Module, args: tuple, kwargs: dict):
        run = running()
        short = None if run is None else run.before_norm(layer, args[0])
        return None if short is None else ((short, *args[1:]), kwargs)

    def mlp(module: nn.Module, args: tuple, kwargs: dict, output):
        run = running()
        return None if run is None else run.after_mlp(output)

    def entering(module: nn.Module, args: tuple, kwargs: dict):
        run = running()
        return None if run is None else ((run.projected(args[0]), *args[1:]), kwargs)

    def projected(module: nn.Module, args: tuple, kwargs: dict, output: Tensor):
        run = running()
        return None if run is None else _on_all_places(run, output)

    for layer in range(site.depth):
        if site.packed:
            work.pre_hook(site.layers[layer], functools.partial(before, layer))
        if layer not in plan.by_layer:
            continue
        work.post_hook(site.layers[layer], functools.partial(after, layer), first=True)
        if any(plan.cuts[number].within for number in plan.by_layer[layer]):
            work.pre_hook(site.norms[layer], functools.partial(norm, layer))
            work.post_hook(site.mlps[layer], mlp, first=True)
    if not site.packed:
        work.pre_hook(site.projector, entering)
    work.post_hook(site.projector, projected, first=True)
    biased = plan.stage.proportional or not site.packed
    return set(plan.watched) | (set(range(first + 1, site.depth)) if biased else set())


def _on_all_places(run: EncoderRun, output: Tensor) -> Tensor:
    """The projector's output [C, n, H] or [tokens, H] with a row for each token of the unpruned images."""
    sequence, cell = run.sequence, run.plan.encoder.cell
    if not run.plan.singly:
        return sequence.spread(output)
    out = output.new_zeros(sum(sequence.totals) // cell, output.shape[1])
    starts = [0]
    for total in sequence.totals:
        starts.append(starts[-1] + total // cell)
    parts = [torch.arange(n // cell) + start for n, start in zip(sequence.lengths, starts, strict=False)]
    return out.index_copy(0, upload(torch.cat(parts), output.device), output)


def spread_captured(signal: object, captured: list, spread: Callable[[Tensor], Tensor], inside: EncoderRun) -> list:
    """The values of one signal recorded after tokens were dropped, scattered to the places of all tokens."""
    sequence, final = inside.sequence, inside.final
    if signal != Unprojected():
        return [spread(torch.cat(captured, 1)[0]).unsqueeze(0)] if sequence.packed else list(map(spread, captured))
    if sequence.packed:
        return [spread(torch.cat(captured))]
    lead, width = sequence.lead, sequence.lead + sequence.width

    def restored(state: Tensor | None) -> Tensor | None:
        state = state if final is None or state is None else final
        if state is None or state.shape[1] != width:
            return state
        return torch.cat([state[:, :lead], spread(state[:, lead:])], 1)

    return [tuple(map(restored, states)) for states in captured]


def finish(family, run: VisionRun, arguments: dict) -> None:
    """Notes the remaining tokens of each image, and cuts the signals to them. arguments: of `get_image_features`."""
    inside = run.inside
    if not inside.finished:
        raise PatchError(
            f"{inside.done} of {len(inside.plan.cuts)} steps inside the encoder took place: its layers did not run as "
            "modules"
        )
    owner = {unit: (group, row) for group in inside.sequence.groups for row, unit in enumerate(group.units)}
    run.left = []
    for image, tiles in zip(run.images, family.sources(run.images, arguments), strict=True):
        positions, flows = [], []
        for tile, (unit, source) in zip(image.tiles, tiles, strict=True):
            group, row = owner[unit]
            if inside.plan.singly:
                positions.append(torch.arange(group.width // inside.plan.encoder.cell))
                continue
            place, total = group.place[row], inside.sequence.totals[unit]
            index = None
            if source is not None:
                index = torch.full((total,), -1).scatter(0, source, torch.arange(len(source)))
                index = upload(index, place.device)
            positions.append(_positions(place, index, len(image.tiles) > 1 and source is not None))
            if group.merged:
                where = place.gather(0, group.into[row].clamp(min=0)).masked_fill(group.into[row] < 0, -1)
                where = where if source is None else where[upload(source, where.device)]
                target = where if index is None else index[where.clamp(min=0)].masked_fill(where < 0, -1)
                flows.append(Flow(tile.offsets, torch.arange(tile.tokens), target))
        run.left.append(Left(positions, tuple(flows)))
    for signal, images in run.signals.items():
        run.signals[signal] = [
            [_rows(*tile_values) for tile_values in zip(tiles, image.tiles, left.positions, strict=True)]
            for tiles, image, left in zip(images, run.images, run.left, strict=True)
        ]


def _positions(place: Tensor, index: Tensor | None, partly: bool) -> Tensor:
    """Indices within a tile of the remaining tokens at `place` [k], ascending. index: of each place, -1 for one outside
    the tile; partly: there may be such places, so the number of remaining tokens has to be read from the device."""
    positions = place if index is None else index[place]
    if partly:
        positions = positions.cpu()
        positions = positions[positions >= 0]
    return positions.sort().values


def _rows(x: Tensor, tile: Tile, positions: Tensor) -> Tensor:
    """Rows of a tile's signal [n, ...], or [1 + n, ...] with [CLS] first."""
    lead, positions = len(x) - tile.tokens, upload(positions, x.device)
    return x[torch.cat([positions[:0].new_zeros(lead), positions + lead])]


def left_of(run: VisionRun, source: list[int], device: torch.device) -> list[Kept] | None:
    """The tokens of the images `source` of a run that the encoder kept, as places in their runs of tokens; None without
    a stage inside the encoder."""
    if run.left is None:
        return None
    kept = []
    for image in source:
        left = run.left[image]
        parts = [
            upload(tile.offsets, device)[upload(positions, device)]
            for tile, positions in zip(run.images[image].tiles, left.positions, strict=True)
        ]
        offsets = parts[0] if len(parts) == 1 else torch.cat(parts).sort().values
        kept.append(Kept(offsets, flows=left.flows))
    return kept
