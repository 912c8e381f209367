"""EVS: the tokens of a clip that changed most since the frame before."""

from dataclasses import dataclass

from vtc.core.selection import Selection
from vtc.core.signals import Context, Encoder, Features
from vtc.kernels.frames import distances
from vtc.kernels.topk import topk_sorted
from vtc.strategies import METHODS
from vtc.strategies.base import Stage

FIRST = 255.0  # more than any cosine distance


@METHODS.register("evs")
@dataclass(frozen=True)
class EVS(Stage):
    """Keeps the first frame of a clip and, of the others, the tokens least like the one in the same place before.

    The distance is 1 - cosine of the projected features of a token and of the one at its place in the previous frame;
    those of the first frame are above all others. The largest over the whole clip stay, in any frame: a frame may keep
    none. Of a clip of N tokens in frames of n, max(n, int(N * keep)) stay (`rounding: floor`): a smaller budget keeps
    the first frame alone. An image is a clip of one frame, so it keeps all its tokens. There are no knobs.

    Paper: Efficient Video Sampling, arXiv 2510.14624. Code: vllm-project/vllm, `vllm/multimodal/video_prune/evs.py` @
    d750efb1 (Apache-2.0), Qwen2.5-VL and others. There are no vectors of it; the tests compare with the definition
    written as loops. Departures: equal tokens have a distance of exactly 0 (see `vtc.kernels.frames`); the budget is an
    exact fraction (the code's N * (1 - q) may fall below a whole number by rounding). Float32, ties to the lower index.
    """

    clips = True

    def least(self, frames: int, each: int) -> int:
        """The first frame."""
        return each

    def needs(self, encoder: Encoder) -> tuple[Features]:
        """The projected features."""
        return (Features(),)

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """Top `count` of the distances."""
        earlier = [None, *range(max(1, context.frames) - 1)]
        return Selection(topk_sorted(distances(context[Features()], earlier, FIRST).flatten(1), context.count))
