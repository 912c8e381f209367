"""The encoder side of a patch: signals recorded while it runs, and the stage at the projector."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from vtc.config.strategy import StageConfig
from vtc.core.budget import Budget
from vtc.core.errors import PatchError
from vtc.core.hooks import Patchwork
from vtc.core.layout import VisionRun
from vtc.core.selection import Selection
from vtc.core.signals import (
    AttentionColumns,
    ClipPatches,
    ClipWords,
    ClsAttention,
    Context,
    Encoder,
    EncoderAttention,
    EncoderFeatures,
    Features,
    PatchEntropy,
    Signal,
    TextEmbeddings,
    TextRelevance,
    Unprojected,
)
from vtc.engine import clock
from vtc.engine.encoder import EncoderPlan
from vtc.engine.media import RUN
from vtc.engine.ranks import WHOLE, Ranks
from vtc.engine.select import Kept, Unit, choose, units_of
from vtc.engine.state import ThreadState
from vtc.engine.survivors import finish, put_inside, spread_captured
from vtc.kernels.entropy import grey_entropy
from vtc.kernels.transfer import upload

ENCODED = Unprojected, EncoderFeatures, TextRelevance, ClipPatches  # computed from the projector's input


class Vision:
    """Runs the stage inside the encoder, and records the signals of the stage at the projector. signals: of the latter,
    empty without one. plan: of the former. ranks: must agree on the choice."""

    def __init__(
        self, family, signals: tuple[Signal, ...], thread: ThreadState, plan: EncoderPlan | None = None,
        ranks: Ranks = WHOLE,
    ):  # fmt: skip
        self.family, self.thread, self.plan, self.ranks = family, thread, plan, ranks
        self.observed = tuple(s for s in signals if hasattr(s, "layer"))
        self.pixels = tuple(s for s in signals if isinstance(s, PatchEntropy))
        self.unprojected = any(isinstance(s, ENCODED) for s in signals)

    def put_on(self, work: Patchwork) -> None:
        """Observes the layers that the signals name and wraps `get_image_features`."""
        family = self.family
        inside = set() if self.plan is None else put_inside(self.plan, work, self.thread)
        for layer in sorted({s.layer for s in self.observed} | inside):
            family.observe(work, layer, functools.partial(self._record, layer))
        if self.unprojected:
            family.observe_unprojected(work, self._record_unprojected)
        work.method(family.inner, "get_image_features", self._recording("image", family.inner.get_image_features))
        if family.video is not None:
            work.method(family.inner, "get_video_features", self._recording("video", family.inner.get_video_features))

    def _record(self, layer: int, query: Tensor, key: Tensor, scale: float | None, cu_seqlens, value: Tensor):
        run = self.thread.recording
        if run is None:
            return None
        start = clock.now()
        inside, bias, reduce = run.inside, None, self.family.reduce
        cut = inside is not None and inside.sequence.lengths != inside.sequence.totals
        if not cut and run.bounds is not None and _holds_all(run.bounds, key, cu_seqlens):
            cu_seqlens = run.bounds
        if inside is not None:
            bias = inside.bias(key, cu_seqlens)
            inside.observe(layer, query, key, value, scale, cu_seqlens, bias)
            reduce = functools.partial(inside.sequence.reduce, self.family, bias=bias)
        for signal in self.observed:
            if signal.layer == layer:
                values = reduce(signal, query, key, scale=scale, cu_seqlens=cu_seqlens, value=value)
                run.captured.setdefault(signal, []).append(values)
                if cut:
                    run.places[signal] = inside.sequence.spreader()
        run.observe_seconds += clock.now() - start
        return bias

    def _record_unprojected(self, tokens: object) -> None:
        run = self.thread.recording
        if run is not None:
            run.captured.setdefault(Unprojected(), []).append(tokens)
            if run.inside is not None:
                run.places[Unprojected()] = run.inside.sequence.spreader()

    def _recording(self, kind: str, original: Callable) -> Callable:
        """`get_image_features` or its counterpart for clips, with the run's signals and layout attached to its output
        (generate() may call it before the forward, and passes its output on)."""
        signature = inspect.signature(original)

        @functools.wraps(original)
        def get_features(*args, **kwargs):
            if self.thread.recording is not None:  # families whose clips go through the method for images
                return original(*args, **kwargs)
            arguments, family = dict(signature.bind(*args, **kwargs).arguments), self.family
            clips = kind == "video"
            if clips:
                arguments = {family.video.get(name, name): value for name, value in arguments.items()}
            if family.sizes is not None:  # read before the encoder is queued, so that there is nothing to wait for
                if arguments.get(family.sizes) is None and (not clips or family.sizes in family.video.values()):
                    return original(*args, **kwargs)  # it reports what is missing
                if arguments.get(family.sizes) is not None:
                    arguments[family.sizes] = torch.as_tensor(arguments[family.sizes]).cpu()
            images = family.clip_layouts(arguments) if clips else family.image_layouts(arguments)
            bounds = family.packed_bounds(arguments)
            call = None if self.thread.call is None or self.thread.call.begun else self.thread.call
            if call is not None:
                call.started = True
            run = VisionRun(images=images, bounds=bounds)
            if self.plan is not None:
                run.insides = [self.plan.begin(images, arguments)]
            self.thread.recording = run
            try:
                output = original(*args, **kwargs)
            finally:
                self.thread.recording = None
            if isinstance(output, tuple):
                return output
            sort_signals(family, run, arguments)
            for signal in self.pixels:
                run.signals[signal] = family.pixel_scores(arguments, images, functools.partial(_entropy, signal))
            if run.inside is not None:
                finish(family, run, arguments)
            expected = [image.tokens for image in run.images]
            counts = [features.shape[:-1].numel() for features in output.pooler_output]
            if clips and family.clip_end and counts == [n - family.clip_end for n in expected]:
                counts = expected  # older versions of transformers append these tokens later
            if expected != counts and not (family.groups_crops and sum(expected) == sum(counts)):
                raise PatchError(f"the {family.name} encoder gave {counts} tokens per image, {expected} were expected")
            setattr(output, RUN, run)
            if call is not None:
                call.runs[kind] = run
            else:
                self.thread.pending = {**self.thread.pending, kind: (run, output.pooler_output)}
            return output

        return get_features

    def on_run(self, signal: EncoderAttention, run: VisionRun, image: int) -> Tensor:
        """A signal for stages inside the language model: one value for each token of one image of `run`."""
        layout, tile_values = run.images[image], run.signals[encoder_signal(signal, self.family.encoder)][image]
        out = tile_values[0].new_zeros(layout.tokens)
        for tile, values in zip(layout.tiles, tile_values, strict=True):
            out[upload(tile.offsets, out.device)] = values
        return out

    def select(self, *args, **kwargs) -> list[Kept]:
        """See `select_images`."""
        return select_images(self.family, *args, **kwargs, ranks=self.ranks)


def encoder_signal(signal: EncoderAttention, encoder: Encoder) -> ClsAttention | AttentionColumns:
    """The encoder signal that is recorded for a stage inside the language model."""
    layer = encoder.layer(signal.encoder_layer, "layer")
    return ClsAttention(layer) if encoder.has_cls else AttentionColumns(layer)


def _holds_all(bounds: list[int], key: Tensor, cu_seqlens: Tensor | None) -> bool:
    """Whether an attention call with these keys [B, H, N, e] holds all packed sequences of a run, so that their bounds
    say what attends to what: either they are the values of `cu_seqlens` (unless there are windows), known without a
    wait for the device, or a mask keeps the sequences apart."""
    return len(bounds) == len(cu_seqlens) if cu_seqlens is not None else len(bounds) > 2 and key.shape[2] == bounds[-1]


def _entropy(signal: PatchEntropy, pixels: Tensor) -> Tensor:
    return grey_entropy(pixels, signal.released).softmax(0)


def sort_signals(family, run: VisionRun, arguments: dict) -> None:
    """Sorts the captured signals of a run by image and tile. arguments: of the model's `get_image_features`."""
    for signal, captured in run.captured.items():
        if signal in run.places:
            captured = spread_captured(signal, captured, run.places[signal], run.inside)
        sort = family.unprojected if isinstance(signal, Unprojected) else family.tile_scores
        run.signals[signal] = sort(captured, run.images, arguments)
    run.captured = {}


def select_images(
    family,
    stage: StageConfig,
    budget: Budget,
    requests: list[list[int]],
    source: list[int],
    run: VisionRun,
    features: Callable[[int], Tensor],
    text: Callable[[Signal, int], Tensor],
    device: torch.device,
    project: Callable[[Tensor], Tensor] | None = None,
    planes: Callable[[int], Tensor] | None = None,
    ranks: Ranks = WHOLE,
) -> list[Kept]:
    """The tokens that a stage keeps of each image of the prompts. budget: of the stage, see `vtc.config.allocation`.

    requests: per prompt, indices of its images in prompt order (0..M-1 over all). source [M]: the index of each in
    `run` (beams repeat images). features: gives an image's embeddings [tokens, D]; called only for stages that use
    or merge them. text: gives a signal of a prompt's question. device: the device of the language model's input.
    project: the projector, if it is not the family's own. planes: gives the rows of an image's tokens in all DeepStack
    planes [tokens, P * D]; tokens merge there by the same weights as their embeddings. ranks: must agree on the choice.
    """
    layouts, encoder = [run.images[s] for s in source], family.encoder
    prompt = {image: b for b, images in enumerate(requests) for image in images}

    def recorded(signal: Signal, unit: Unit) -> Tensor:
        tiles = run.signals[signal][source[unit.image]]
        return torch.cat(tiles) if unit.tile is None and len(tiles) > 1 else tiles[unit.tile or 0]

    def encoded(unit: Unit) -> Tensor:
        tiles = run.signals[Unprojected()][source[unit.image]]
        tiles = tiles if unit.tile is None else tiles[unit.tile : unit.tile + 1]
        return torch.cat([family.encoder_features(tile) for tile in tiles])

    def look(signal: Signal, unit: Unit) -> Tensor:
        if isinstance(signal, Features):
            return unit.of(features(unit.image))
        if isinstance(signal, EncoderFeatures):
            return encoded(unit)
        if isinstance(signal, (TextEmbeddings, ClipWords)):
            return text(signal, prompt[unit.image])
        if isinstance(signal, (TextRelevance, ClipPatches)):
            return text(signal, prompt[unit.image])(encoded(unit))
        if signal not in run.signals:
            raise PatchError(f"the signal {signal} was not seen; the vision encoder did not run its observed layer")
        return recorded(signal, unit)

    def merged(unit: Unit, selection: Selection) -> tuple[Tensor, Tensor | None]:
        rows = None if planes is None else planes(unit.image)
        if rows is not None:
            rows = unit.of(rows).unsqueeze(0)
            rows = replace(selection, merge=selection.merge.on_tokens(rows.shape[1])).apply_features(rows)[0]
        if selection.merge.unprojected and layouts[unit.image].resampled != "after":
            tokens = recorded(Unprojected(), unit).unsqueeze(0)
            return (project or family.project)(selection.apply_features(tokens)[0]), rows
        tokens = unit.of(features(unit.image)).unsqueeze(0)
        if selection.merge.unprojected:  # no token has a projector's input of its own
            selection = replace(selection, merge=selection.merge.on_tokens(tokens.shape[1]))
        return selection.apply_features(tokens)[0], rows

    needs = [signal for signal in stage.stage.needs(encoder) if not isinstance(signal, Unprojected)]
    left = None if run.left is None else [run.left[s] for s in source]
    units = units_of(budget, requests, layouts, left, stage.stage.grid)
    asked = budget.keep if isinstance(budget.keep, float) else None

    def select(context: Context) -> Selection:
        return ranks.agreed(stage.stage.select(context, encoder))

    chosen = choose(select, needs, units, look, merged, device, asked=asked)
    return [chosen[i] for i in range(len(layouts))]
