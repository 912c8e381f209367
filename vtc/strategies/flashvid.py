"""FlashVID: distinct tokens of every frame, and the others merged along trees through time and within frames."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtc.core.errors import ConfigError
from vtc.core.selection import Merge, Selection
from vtc.core.signals import AttentionColumns, ClsAttention, Context, Encoder, Features
from vtc.kernels.gram import cosine_matrix
from vtc.kernels.trees import join, segments
from vtc.strategies import METHODS
from vtc.strategies.base import Stage


@METHODS.register("flashvid")
@dataclass(frozen=True)
class FlashVID(Stage):
    """Keeps distinct tokens of every frame that the encoder attends to, and merges the others through time and space.

    1. The clip is cut into segments where the mean features of neighbouring frames have a cosine below `cut`; if that
       gives fewer than `segments`, also at the lowest of the other cosines.
    2. Of a frame with b tokens to keep, ceil(`distinct` * b) are chosen: again and again the token with the largest
       attention times distance (1 - cosine of projected features) to the nearest one chosen.
    3. Each of the others is linked to the most similar of the others in the frame before, in the same segment, if their
       cosine is above `link`; if that left too few, to what the budget needs. A tree of links is one token, its root.
    4. What is still too many is clustered in each frame by density peaks; a cluster is the mean of its trees, at the
       place of its centre.

    Knobs:
    - cut: cosine of frame means below which a new segment begins.
    - segments: at least so many segments, if there are as many frames.
    - distinct: share of a frame's tokens to keep that step 2 chooses.
    - link: cosine above which a token joins one of the frame before.
    - trees: "released" divides the sum of a tree by one more than the number of tokens linked to its root itself, as
      the code does, so that long trees grow in length; "mean" divides by its number of tokens, as the paper says.
    - counts: "exact" keeps the budget's number: frames share it evenly, the first ones have what is left, and the
      clusters of a segment's frames are rounded by largest remainders. "official" rounds up for every frame, which
      is more.
    - layer: the encoder layer whose attention is read (index, or relative depth as a float).

    Paper: FlashVID, ICLR 2026, arXiv 2602.08024. Official code: Fanziyang-v/FlashVID @ 1d37422c (MIT). There are no
    vectors of it; the tests compare with the definition written as loops. The code keeps 1.25 times as much at the
    projector and three tenths of that from layer 20 on, by FastV's rule: that is the strategy `flashvid_fastv`, whose
    keep is the mean over layers. Departures: step 2 weights by attention alone (the code can also weight by the
    product with the segment's frame means); without [CLS] the attention is the mean received from all. In a segment of
    one frame the code clusters the tokens chosen in step 2 once more; here the others. The noise that the code adds to
    densities is replaced by the order of the tokens. DeepStack planes are merged by the same weights (the code takes
    those of roots and centres). An image is a clip of one frame. Float32, ties to the lower index.
    """

    cut: float = 0.9
    segments: int = 8
    distinct: float = 0.7
    link: float = 0.8
    trees: Literal["released", "mean"] = "released"
    counts: Literal["exact", "official"] = "exact"
    layer: int | float = -2

    needs_cls = True
    fixed_count = {"counts": "exact"}

    def __post_init__(self):
        if self.segments < 1:
            raise ConfigError(f"segments={self.segments} is out of range; possible: 1 or more")
        if not 0 <= self.distinct <= 1:
            raise ConfigError(f"distinct={self.distinct} is out of range; possible: a share in [0, 1]")
        for name in ("cut", "link"):
            if not -1 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range; possible: a cosine in [-1, 1]")

    def least(self, frames: int, each: int) -> int:
        """One token of each frame."""
        return frames

    def needs(self, encoder: Encoder) -> tuple[ClsAttention | AttentionColumns, Features]:
        """The attention of one layer, and the projected features."""
        layer = encoder.layer(self.layer, "layer")
        return ClsAttention(layer) if encoder.has_cls else AttentionColumns(layer), Features()

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """One clip after another; see `compress`."""
        attention, features = (context[signal] for signal in self.needs(encoder))
        frames = max(1, context.frames)
        each = context.tokens // frames
        budgets = [context.count // frames + (f < context.count % frames) for f in range(frames)]
        if self.counts == "official":
            budgets = [min(each, math.ceil(each * context.share))] * frames
        dtype = torch.promote_types(features.dtype, torch.float32)
        clips = [
            self.compress(x.to(dtype).view(frames, each, -1), a.to(x.device, dtype).view(frames, each), budgets)
            for x, a in zip(features, attention, strict=True)
        ]
        kept, merges = zip(*clips, strict=True)
        most = max(map(len, kept))
        keep = torch.stack([torch.cat([k, k.new_zeros(most - len(k))]) for k in kept])
        valid = torch.stack([torch.arange(most, device=k.device) < len(k) for k in kept])
        target, weight = (torch.stack(parts) for parts in zip(*merges, strict=True))
        full = all(len(k) == most for k in kept)
        return Selection(keep, None if full else valid, Merge(target, weight.to(dtype)))

    def compress(self, x: Tensor, attention: Tensor, budgets: list[int]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The kept tokens of one clip, ascending, and per token the slot that it goes into, with its weight.

        x [F, n, D]; attention [F, n]; budgets: of each frame."""
        frames, each = attention.shape
        chosen = torch.zeros_like(attention, dtype=torch.bool)
        cosine = cosine_matrix(x)
        for f, budget in enumerate(budgets):
            chosen[f, distinct(cosine[f], attention[f], math.ceil(self.distinct * budget))] = True
        places = torch.arange(frames * each, device=x.device)
        into, weight = places.clone(), torch.ones_like(attention).flatten()
        into[~chosen.flatten()], start = -1, 0
        for length in segments(x.mean(1), self.cut, self.segments):
            part = slice(start, start + length)
            quota = [b - math.ceil(self.distinct * b) for b in budgets[part]]
            where = slice(start * each, (start + length) * each)
            trees = join(x[part], chosen[part], quota, self.link, self.trees == "mean", self.counts == "exact")
            into[where] = torch.where(trees.into < 0, into[where], trees.into + start * each)
            weight[where] = torch.where(trees.into < 0, weight[where], trees.weight)
            start += length
        kept = (into == places).nonzero().flatten()
        slot = torch.full_like(places, -1).scatter(0, kept, torch.arange(len(kept), device=x.device))
        return kept, (torch.where(into < 0, into, slot[into.clamp(min=0)]), weight)


def distinct(cosine: Tensor, attention: Tensor, count: int) -> Tensor:
    """`count` tokens of one frame, the largest attention times distance to the nearest one chosen next. cosine [n, n];
    attention [n]. The first has the largest attention times distance to its nearest neighbour."""
    distance = 1 - cosine
    near = distance.topk(min(2, len(distance)), 0, largest=False).values[-1]
    picks, near = [(attention * near).argmax()], torch.full_like(attention, math.inf)
    taken = torch.zeros_like(attention, dtype=torch.bool)
    while len(picks) < count:
        taken[picks[-1]] = True
        near = torch.minimum(near, distance[picks[-1]])
        picks.append((attention * near).masked_fill(taken, -1).argmax())
    return torch.stack(picks[:count]) if count else picks[0].new_empty(0)
