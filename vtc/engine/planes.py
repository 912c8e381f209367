"""DeepStack: features that a text model adds to the visual tokens after its first layers, for the tokens that are left.

The text model is given planes, one per layer, with a row for each visual token of the batch, and adds them by a method
of its own (`Family.planes_method`). It indexes with a mask, for which the host waits for the device once per plane;
here the rows are added densely: to every column the row of its token, or zero for text.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vtc.engine.select import Kept
from vtc.engine.state import PrunedPrompt

PLANES, MASK = "deepstack_visual_embeds", "visual_pos_masks"  # keyword arguments of the text models that have them


class Planes:
    """The planes of one prefill. planes: per layer [V, D], the V visual tokens of a batch row by row; is_visual [B, L]
    bool: which columns of the unpruned prompts these are."""

    def __init__(self, planes: list[Tensor], is_visual: Tensor):
        self.planes, self.is_visual = list(planes), is_visual
        self.number = (is_visual.flatten().long().cumsum(0) - 1).clamp(min=0).view_as(is_visual)
        self.owned = [False] * len(self.planes)
        self.added = 0

    def of(self, b: int, places: Tensor, first: int = 0) -> Tensor:
        """The rows of the tokens at `places` [n] of prompt b, of the planes from `first` on, side by side [n, P * D].
        At least one plane."""
        planes = self.planes[first:]
        rows = self.number[b, places.to(self.number.device)]
        return torch.cat([plane[rows.to(plane.device)].to(planes[0].device) for plane in planes], 1)

    def write(self, b: int, places: Tensor, rows: Tensor, first: int = 0) -> None:
        """Replaces what `of` gives by rows [n, P * D]: where tokens merge, their rows do by the same weights."""
        where = self.number[b, places.to(self.number.device)]
        for i, part in enumerate(rows.chunk(len(self.planes) - first, 1), first):
            if not self.owned[i]:
                self.planes[i], self.owned[i] = self.planes[i].clone(), True
            plane = self.planes[i]
            plane[where.to(plane.device)] = part.to(plane)

    def merge(self, b: int, places: Tensor, kept: Kept) -> None:
        """Writes the merged rows of one image; places: of its tokens in prompt b."""
        if kept.planes is not None:
            self.write(b, places[kept.offsets.to(places.device)], kept.planes)

    def add(self, hidden: Tensor, prompt: PrunedPrompt) -> Tensor:
        """Hidden states [B, K, D] of the remaining columns, with their rows of the next plane."""
        segment, rows = prompt.segments[-1], self.planes[self.added].to(hidden.device, hidden.dtype)
        self.added += 1
        index = segment.index.to(self.number.device)
        visual = self.is_visual.gather(1, index)
        visual = visual if segment.valid is None else visual & segment.valid.to(visual.device)
        row = self.number.gather(1, index).to(hidden.device)
        return hidden + rows[row] * visual.to(hidden.device, hidden.dtype).unsqueeze(-1)


def adding(original: Callable, running: Callable[[], tuple[Planes | None, PrunedPrompt | None]]) -> Callable:
    """The text model's own method (hidden, mask, plane) -> hidden, for prompts that are pruned. running: gives the
    planes and the prompt of the call in progress."""

    def add(hidden_states: Tensor, visual_pos_masks: Tensor, visual_embeds: Tensor) -> Tensor:
        planes, prompt = running()
        if planes is None or prompt is None:
            return original(hidden_states, visual_pos_masks, visual_embeds)
        return planes.add(hidden_states, prompt)

    return add
