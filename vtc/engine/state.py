"""What must be remembered: of the call in progress (per thread), and of a pruned prompt (on its cache object)."""

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.errors import PatchError
from vtc.layout import VisionRun

_NOTE = "_vtc_pruned"


@dataclass
class PrunedPrompt:
    """A prompt after pruning. B rows; K kept places, filler included.

    index [B, K]: kept places of the unpruned prompt; valid [B, K] bool or None (no filler); length: of the unpruned
    prompt; seen: unpruned tokens so far, decode included; shift [B]: how far positions moved down (compact) or None;
    next_position [B]: the unpruned position that follows the prompt.
    """

    index: Tensor
    valid: Tensor | None
    length: int
    seen: int
    shift: Tensor | None
    next_position: Tensor

    @property
    def dropped(self) -> int:
        """Columns by which the pruned prompt is shorter."""
        return self.length - self.index.shape[1]

    def cut(self, x: Tensor, filler: object) -> Tensor:
        """x [B, length] at the kept places -> [B, K], with `filler` where nothing was kept."""
        out = x.gather(1, self.index.to(x.device))
        return out if self.valid is None else out.masked_fill(~self.valid.to(x.device), filler)


@dataclass
class Call:
    """One forward of the inner model. run: what its vision encoder saw; pruned: what was done to its prompt;
    is_image [B, L] bool (host): the image placeholders."""

    run: VisionRun | None = None
    pruned: PrunedPrompt | None = None
    is_image: Tensor | None = None


class ThreadState(threading.local):
    """Per thread: the forward in progress, the encoder run being recorded, the labels kept back, the last report."""

    call: Call | None = None
    recording: VisionRun | None = None
    last_pruned: PrunedPrompt | None = None
    labels: Tensor | None = None
    report: object = None


def remember(cache: object, prompt: PrunedPrompt | None) -> None:
    """Notes on the cache object what it holds (None: nothing pruned). It lives and is copied with the cache, so
    generations, models and threads do not meet."""
    if prompt is None:
        vars(cache).pop(_NOTE, None)
    else:
        setattr(cache, _NOTE, prompt)


def recall(cache: object, new_tokens: int) -> PrunedPrompt | None:
    """What `cache` holds before `new_tokens` are added; None for an unpruned, empty or reused-and-reset cache.

    Raises PatchError when the cache has another length than what was put into it.
    """
    prompt = getattr(cache, _NOTE, None)
    if prompt is None:
        return None
    length = cache.get_seq_length()
    # A static cache counts on the device; reading that on a GPU would make every decode step wait for it.
    if isinstance(length, torch.Tensor) and length.is_cuda and new_tokens == 1:
        return prompt
    length = int(length)
    if length == 0:
        remember(cache, None)
        return None
    if length != prompt.seen - prompt.dropped:
        raise PatchError(
            f"the pruned cache holds {length} tokens where {prompt.seen - prompt.dropped} were expected: it was "
            "cropped or filled elsewhere (assisted generation, prompt lookup); possible: generate without these"
        )
    return prompt
