"""What is kept of the images of one run of vLLM's encoder: signals recorded while it runs, then the strategy's own
selector."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vtc.core.errors import PatchError
from vtc.core.layout import ImageLayout, VisionRun
from vtc.core.signals import Signal, Unprojected
from vtc.engine.select import Kept
from vtc.engine.vision import select_images, sort_signals
from vtc.vllm.settings import ServedStrategy, unpacked


class Selector:
    """Records a model's signals and selects. One per model, used by one thread.

    reduce_ranks: makes means over the heads of one tensor-parallel rank means over all heads (in place of the argument,
    or a new tensor); ranks that skip it would keep different tokens without noticing. project: the projector.
    """

    def __init__(self, settings: ServedStrategy, reduce_ranks: Callable[[Tensor], Tensor], project: Callable):
        self.settings, self.reduce_ranks, self.project = settings, reduce_ranks, project
        self.family = settings.family
        self.needs: tuple[Signal, ...] = settings.stage.stage.needs(self.family.encoder)
        self.run: VisionRun | None = None

    @property
    def layers(self) -> list[int]:
        """The encoder layers whose attention is to be recorded."""
        return sorted({signal.layer for signal in self.needs if hasattr(signal, "layer")})

    @contextmanager
    def recording(self, arguments: dict, images: list[ImageLayout]) -> Iterator[VisionRun]:
        """The encoder runs inside; afterwards the run has its signals. arguments: as of `get_image_features`."""
        run = self.run = VisionRun(images=images, bounds=self.family.packed_bounds(arguments))
        try:
            yield run
        finally:
            self.run = None
        for signal, captured in run.captured.items():
            if not isinstance(signal, Unprojected):
                run.captured[signal] = [self.reduce_ranks(part) for part in captured]
        sort_signals(self.family, run, arguments)

    def record(self, layer: int, query: Tensor, key: Tensor, scale: float | None, cu_seqlens: Tensor | None) -> None:
        """Records the q and k [B, H, N, D] of one attention call of a layer; H are the heads of this rank."""
        run = self.run
        if run is None:
            return
        if cu_seqlens is not None and layer in self.family.encoder.global_layers:
            cu_seqlens = run.bounds  # on the host, so that nothing waits for the device
        for signal in self.needs:
            if getattr(signal, "layer", None) == layer:
                run.captured.setdefault(signal, []).append(self.family.reduce(signal, query, key, scale, cu_seqlens))

    def record_unprojected(self, tokens: object) -> None:
        """Records what the projector's input is made of, as the family's `unprojected` takes it."""
        if self.run is not None:
            self.run.captured.setdefault(Unprojected(), []).append(tokens)

    def rows(self, run: VisionRun | None, embeds: list[Tensor], keeps: list[float]) -> list[Kept]:
        """What is kept of each image. embeds: per image its tokens [tokens, D]; keeps: per image its keep, `packed`.
        run: None where every image keeps all.

        Images of one keep go through the strategy together, each as the only image of its prompt, because what is
        stored for an image must not depend on its neighbours.
        """
        kept_by_image: dict[int, Kept] = {}
        for keep in dict.fromkeys(keeps):
            members = [i for i, other in enumerate(keeps) if other == keep]
            budget = self.settings.budget(unpacked(keep))
            if budget.keeps_all:
                for i in members:
                    kept_by_image[i] = Kept(torch.arange(len(embeds[i]), device=embeds[i].device), embeds[i])
                continue
            kept = select_images(
                self.family, self.settings.stage, budget, [[i] for i in range(len(members))], members, run,
                lambda i, members=members: embeds[members[i]], _no_text, embeds[members[0]].device, self.project,
            )  # fmt: skip
            kept_by_image |= dict(zip(members, kept, strict=True))
        return [kept_by_image[i] for i in range(len(embeds))]


def portions(sizes: list[int], limit: int) -> list[tuple[int, int]]:
    """Consecutive images as portions (first, one past the last) of at most `limit` tokens before pruning, or one
    image."""
    bounds, room = [], 0
    for i, size in enumerate(sizes):
        if not bounds or size > room:
            bounds.append((i, i + 1))
            room = limit - size
        else:
            bounds[-1] = (bounds[-1][0], i + 1)
            room -= size
    return bounds


def kept_features(kept: Kept, embeds: Tensor, expected: int) -> Tensor:
    """The features [k, D] of an image's kept tokens; raises PatchError unless there are as many as placeholders: of too
    many, vLLM would silently use the first."""
    features = embeds[kept.offsets] if kept.features is None else kept.features.to(embeds.dtype)
    if len(features) != expected:
        raise PatchError(f"{len(features)} tokens were kept of an image with {expected} placeholders")
    return features


def _no_text(signal: Signal, prompt: int) -> Tensor:
    raise PatchError(f"the signal {signal} needs the question, which is not known when an image is encoded")
