"""The report of one image or clip: what each step of a call did to its tokens."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vtc.core.selection import Flow


@dataclass
class StepReport:
    """One drop. stage: the method; site: "encoder", "projector" or "decoder"; layer: the decoder layer before which it
    took place, or the encoder layer of its last step (0-based), None for the projector; kept [after]: places of the
    kept tokens in the image's own run of tokens, in sequence order (a merged token has the place of its merge target);
    flows: of each unit that merged, read through `ImageReport.merged_into`."""

    stage: str
    layer: int | None
    before: int
    after: int
    kept: Tensor = field(repr=False)
    flows: tuple[Flow, ...] = field(default=(), repr=False)
    site: str = "projector"

    @property
    def where(self) -> str:
        """The method and its site as one word."""
        return self.stage + {"projector": "", "decoder": f"@{self.layer}", "encoder": "@encoder"}[self.site]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        counts = {"before": self.before, "after": self.after}
        return {"stage": self.stage, "site": self.site, "layer": self.layer, **counts, "kept": self.kept.tolist()}


@dataclass
class ImageReport:
    """One image or clip of one prompt. before: its visual tokens in the prompt; entered: those that reach the language
    model; layers: of the language model; steps: what was dropped, in order; frames: of a clip, 0 for an image."""

    prompt: int
    image: int
    before: int
    entered: int
    layers: int
    steps: list[StepReport] = field(default_factory=list)
    frames: int = 0

    @property
    def after(self) -> int:
        """Visual tokens that the last layer sees."""
        return self.steps[-1].after if self.steps else self.entered

    @property
    def kept(self) -> Tensor:
        """Places [after] of the tokens kept to the last layer, in the image's own run of tokens, ascending."""
        return self.steps[-1].kept.sort().values if self.steps else torch.arange(self.entered)

    @property
    def per_frame(self) -> list[int]:
        """How many of the `kept` tokens each frame of a clip has; empty for an image. Waits for the device."""
        if not self.frames:
            return []
        frame = self.kept // (self.before // self.frames)
        return torch.bincount(frame, minlength=self.frames)[: self.frames].tolist()

    @property
    def frames_in_words(self) -> str:
        """`per_frame` in a few words."""
        counts = self.per_frame
        if self.frames <= 8:
            return f"{' + '.join(map(str, counts))} tokens of its {self.frames} frames"
        return f"{self.frames} frames with {min(counts)} to {max(counts)} tokens each, {counts.count(0)} without any"

    def merged_into(self, step: int) -> Tensor | None:
        """The place that `steps[step]` merges each token of the image into: LongTensor [before] of places in the
        image's run of tokens. A kept token has its own place; -1 marks a token dropped in this step or earlier. None
        for a method that only drops.

        If a kept token has another place, or -1, its place was taken by the encoder's [CLS] (visionzip,
        visiondrop_projector). The tensor is computed on demand, which waits for the device.
        """
        flows = self.steps[step].flows
        if not flows:
            return None
        target = torch.full((self.before,), -1)
        for flow in flows:
            places, into = flow.places()
            target[places] = into
        return target

    def also_into(self, step: int) -> Tensor:
        """Further flows of `steps[step]`, where a token flows into others than the one of `merged_into`.

        LongTensor [M, 2], each pair once, ascending: the place of the token, and one that it flows into as well. Empty
        for most methods. Computed on demand, as `merged_into`.
        """
        pairs = {(token, aim) for flow in self.steps[step].flows for token, aim in flow.more().tolist()}
        merged = self.merged_into(step)
        into = [] if merged is None else merged.tolist()
        further = sorted((token, aim) for token, aim in pairs if into[token] != aim)
        return torch.tensor(further, dtype=torch.long).reshape(-1, 2)

    @property
    def stages(self) -> list[tuple[str, int, int]]:
        """(method, before, after) of every step."""
        return [(step.stage, step.before, step.after) for step in self.steps]

    def flow_dict(self, step: int) -> dict[str, Any]:
        """`merged_into` and `also_into` of a step as plain data; without those that say nothing."""
        into = self.merged_into(step)
        if into is None:
            return {}
        also = self.also_into(step).tolist()
        return {"merged_into": into.tolist()} | ({"also_into": also} if also else {})

    @property
    def per_layer(self) -> list[int]:
        """Visual tokens that each decoder layer sees."""
        counts, count = [], self.entered
        for layer in range(self.layers):
            dropped = (s.after for s in reversed(self.steps) if s.site == "decoder" and s.layer == layer)
            count = next(dropped, count)
            counts.append(count)
        return counts
