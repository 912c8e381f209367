"""DyCoke, its temporal part: of four frames one stays whole, and of the others what it does not show already."""

from dataclasses import dataclass

import torch

from vtc.core.selection import Selection
from vtc.core.signals import Context, Encoder, Features
from vtc.kernels.frames import distances
from vtc.kernels.topk import topk_sorted
from vtc.strategies import METHODS
from vtc.strategies.base import Stage

WINDOW = 4


@METHODS.register("dycoke")
@dataclass(frozen=True)
class DyCoke(Stage):
    """Keeps the first of every four frames of a clip, and of the other three the tokens least like an earlier frame.

    In a window of four frames the second and the fourth are compared with the frame before, the third with the first,
    token by token at the same place, by cosine of projected features. Each of them keeps the same number of its least
    similar tokens; the others count as merged into the earlier frame, which stays as it is (the code drops them). With
    a share K merged in each, int((1 - K) * n) of n stay; here the budget says how many: `keep` is 1/4 + 3/4 * (1 - K),
    so 0.475 is the published K = 0.7. What does not divide evenly goes to the first frames. The whole frames stay in
    any case. An image, and the only frame of a clip, is the first of its window and keeps all. There are no knobs.

    Paper: DyCoke, CVPR 2025, arXiv 2411.15024, its temporal merging (TTM); the reduction of the KV cache while decoding
    is not included. Official code: KD-TAO/DyCoke @ dd746349, LLaVA-OneVision. There are no vectors of it; the tests
    compare with the definition written as loops. Departures: windows are the paper's, every four frames, the last one
    perhaps shorter; the code leaves out the third frame of the last window and the last of an odd number of frames, and
    takes the similarities of the pair before for every second frame. Kept tokens stay in their order (the code puts
    those of a frame in the order of similarity). Float32, ties to the lower index.
    """

    clips = True

    def least(self, frames: int, each: int) -> int:
        """The first frame of every window."""
        return -(-frames // WINDOW) * each

    def needs(self, encoder: Encoder) -> tuple[Features]:
        """The projected features."""
        return (Features(),)

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """The largest distances in each frame; whole frames are compared with none."""
        frames = max(1, context.frames)
        each, whole = context.tokens // frames, [f % WINDOW == 0 for f in range(frames)]
        earlier = [None if whole[f] else f - 1 if f % 2 else f - 2 for f in range(frames)]
        distance = distances(context[Features()], earlier, 0.0)
        few, more = divmod(context.count - each * sum(whole), max(1, frames - sum(whole)))
        late = [f for f in range(frames) if not whole[f]]
        quota = {f: few + (place < more) for place, f in enumerate(late)}
        rows = [topk_sorted(distance[:, f], quota.get(f, each)) + f * each for f in range(frames)]
        return Selection(torch.cat(rows, 1))
