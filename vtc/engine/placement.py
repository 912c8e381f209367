"""Where the images of a batch lie in its prompts: derived from shapes where possible, else read from the device once.

Reading makes the host wait until the GPU has finished all queued work, so it happens at most once per prefill, and only
where it is needed. A single prompt without a mask needs none: all images belong to it and all other tokens stay, so
every length follows from the sizes of the images.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vtc.core.errors import PatchError, UnsupportedError
from vtc.kernels.transfer import upload


@dataclass
class Host:
    """A batch copied to the host. is_image [B, L] bool; real [B, L] bool, None without padding; ids [B, L], None if the
    input was embeddings."""

    is_image: Tensor
    real: Tensor | None
    ids: Tensor | None

    def stays(self, b: int) -> Tensor:
        """The text tokens of prompt b [L] bool."""
        return ~self.is_image[b] if self.real is None else ~self.is_image[b] & self.real[b]


class Batch:
    """A batch of prompts as passed to the language model, on its device.

    is_image [B, L] bool: the placeholders. real [B, L] bool or None: tokens that are not masked. ids [B, L] or None.
    """

    def __init__(self, is_image: Tensor, real: Tensor | None, ids: Tensor | None):
        self.is_image, self.ids = is_image, ids
        self.real = None if real is None else real.expand(is_image.shape[0], -1)

    @cached_property
    def host(self) -> Host:
        """The batch on the host, read in one transfer. Raises UnsupportedError where the mask hides image tokens."""
        tensors = {"is_image": self.is_image, "real": self.real, "ids": self.ids}
        tensors = {name: x for name, x in tensors.items() if x is not None}
        read = dict(zip(tensors, torch.stack([x.long().to(self.is_image.device) for x in tensors.values()]).cpu()))
        is_image, real = read["is_image"].bool(), read.get("real")
        real = None if real is None or bool(real.all()) else real.bool()
        if real is not None and bool((is_image & ~real).any()):
            raise UnsupportedError(
                "the attention mask hides image tokens; possible: a mask that hides padding only, or the prompt "
                "without the image"
            )
        return Host(is_image, real, read.get("ids"))

    @property
    def padded(self) -> Tensor | None:
        """`real`, or None if the host has found that there is no padding."""
        return None if self.real is None or self.host.real is None else self.real


@dataclass
class Placement:
    """The images of a batch. requests: per prompt, indices of its images in prompt order (0..M-1 over all). source [M]:
    the index of each in the encoder's run (beams repeat images). places: per prompt and image, its places [tokens] on
    the batch's device. bounds: first and last of these, None where the host has not read them. lengths [B]: tokens of
    each prompt without padding. ends [B]: one past its last token. fixed: the padding after it stays, see `place`."""

    requests: list[list[int]]
    source: list[int]
    places: list[list[Tensor]]
    bounds: list[list[tuple[int, int]]] | None
    lengths: list[int]
    ends: list[int]
    fixed: bool = False


def place(batch: Batch, totals: list[int], read: bool, from_end: bool = False) -> Placement:
    """Assigns the placeholders of a batch to images. totals: tokens of each image of the encoder's run, in order. read:
    whether the host needs to know more than lengths. from_end: the caller counts columns back from the last one.

    Padding after the tokens is kept column by column if the caller counts from the end, or if there is also padding
    before the tokens (trainers pad prompts on the left and answers on the right), so that the last columns of a row
    keep their meaning. In a batch that is padded on the right only, it is shortened as far as possible.

    Raises PatchError when placeholders and image tokens do not match.
    """
    rows, length = batch.is_image.shape
    if rows == 1 and batch.real is None and not read:
        order = batch.is_image.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
        images = list(range(len(totals)))
        return Placement([images], images, [list(order[0, : sum(totals)].split(totals))], None, [length], [length])
    host = batch.host
    requests, source, places = image_runs(host.is_image, totals)
    flat = [where for row in places for where in row]
    on_device = iter(upload(torch.cat(flat), batch.is_image.device).split([len(where) for where in flat]))
    real = torch.ones_like(host.is_image) if host.real is None else host.real
    bounds = [(int(row[0]), int(row[-1]) + 1) if len(row) else (0, length) for row in (r.nonzero() for r in real)]
    starts, ends = zip(*bounds, strict=True)
    return Placement(
        requests, source, [[next(on_device) for _ in row] for row in places],
        [[(int(where[0]), int(where[-1])) for where in row] for row in places],
        real.sum(1).tolist(), list(ends), from_end or any(starts) or min(ends) == length,
    )  # fmt: skip


def image_runs(is_image: Tensor, totals: list[int]) -> tuple[list[list[int]], list[int], list[list[Tensor]]]:
    """requests, source and places on the host, see `Placement`. is_image [B, L] bool (host)."""
    rows = [row.nonzero().flatten() for row in is_image]
    count, available = sum(len(r) for r in rows), sum(totals)
    if not available or count % available:
        raise PatchError(
            f"the prompts hold {count} image tokens, the encoder gave {available}; possible: equal numbers"
        )
    copies = count // available
    requests, source, places, cursor = [], [], [], 0
    for b, row in enumerate(rows):
        if b % copies == 0:
            start = cursor
        cursor, prompt_images, prompt_places, remaining = start, [], [], row
        while len(remaining):
            if cursor >= len(totals) or totals[cursor] > len(remaining):
                raise PatchError(f"prompt {b} holds {len(row)} image tokens, which are not those of the next images")
            prompt_places.append(remaining[: totals[cursor]])
            remaining = remaining[totals[cursor] :]
            prompt_images.append(len(source))
            source.append(cursor)
            cursor += 1
        requests.append(prompt_images)
        places.append(prompt_places)
    return requests, source, places
