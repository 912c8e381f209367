"""Where the images of a batch lie in its prompts: known from shapes where these can tell, else read once.

Reading makes the host wait for all that a GPU has still to do, so it is done at most once for each prefill, and only
where it has to be. One prompt without a mask needs none: all images are its own, and each token that is not theirs
stays, so every length follows from the sizes of the images.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vtc.core.errors import PatchError, UnsupportedError
from vtc.kernels.transfer import upload


@dataclass
class Host:
    """A batch as the host has read it. is_image [B, L] bool; real [B, L] bool, None without padding; ids [B, L] or
    None for embeddings."""

    is_image: Tensor
    real: Tensor | None
    ids: Tensor | None

    def stays(self, b: int) -> Tensor:
        """The text tokens of prompt b [L] bool."""
        return ~self.is_image[b] if self.real is None else ~self.is_image[b] & self.real[b]


class Batch:
    """A batch of prompts as the language model is given it, on its device.

    is_image [B, L] bool: the placeholders. real [B, L] bool or None: what the mask lets through. ids [B, L] or None.
    """

    def __init__(self, is_image: Tensor, real: Tensor | None, ids: Tensor | None):
        self.is_image, self.ids = is_image, ids
        self.real = None if real is None else real.expand(is_image.shape[0], -1)

    @cached_property
    def host(self) -> Host:
        """All of it, read in one go. Raises UnsupportedError where the mask hides image tokens."""
        given = {"is_image": self.is_image, "real": self.real, "ids": self.ids}
        given = {name: x for name, x in given.items() if x is not None}
        read = dict(zip(given, torch.stack([x.long().to(self.is_image.device) for x in given.values()]).cpu()))
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
        """`real` where the host has read that there is padding."""
        return None if self.real is None or self.host.real is None else self.real


@dataclass
class Placement:
    """The images of a batch. requests: per prompt, indices of its images in prompt order (0..M-1 over all). source [M]:
    the image of the encoder's run that each is (beams repeat images). places: per prompt and image, its places [tokens]
    on the batch's device. bounds: first and last of these, None where the host has not read them. lengths [B]: tokens
    of each prompt, padding left out. ends [B]: one past its last one. fixed: all behind that stays, see `place`."""

    requests: list[list[int]]
    source: list[int]
    places: list[list[Tensor]]
    bounds: list[list[tuple[int, int]]] | None
    lengths: list[int]
    ends: list[int]
    fixed: bool = False


def place(batch: Batch, totals: list[int], read: bool, from_end: bool = False) -> Placement:
    """Assigns the placeholders of a batch to images. totals: tokens of each image of the encoder's run, in order. read:
    whether the host needs to know more than lengths. from_end: the caller counts columns from the last one back.

    Padding behind the tokens stays as it is, column by column, if the caller counts from the end or there is padding
    before the tokens as well (trainers put prompts to the left and answers to the right): the last columns of a row
    then mean what they meant. In a batch that is padded on the right only, it becomes as short as can be.

    Raises PatchError when they do not add up.
    """
    rows, length = batch.is_image.shape
    if rows == 1 and batch.real is None and not read:
        order = batch.is_image.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
        every = list(range(len(totals)))
        return Placement([every], every, [list(order[0, : sum(totals)].split(totals))], None, [length], [length])
    host = batch.host
    requests, source, places = image_runs(host.is_image, totals)
    flat = [where for row in places for where in row]
    there = iter(upload(torch.cat(flat), batch.is_image.device).split([len(where) for where in flat]))
    real = torch.ones_like(host.is_image) if host.real is None else host.real
    bounds = [(int(row[0]), int(row[-1]) + 1) if len(row) else (0, length) for row in (r.nonzero() for r in real)]
    starts, ends = zip(*bounds, strict=True)
    return Placement(
        requests, source, [[next(there) for _ in row] for row in places],
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
        cursor, mine, parts, left = start, [], [], row
        while len(left):
            if cursor >= len(totals) or totals[cursor] > len(left):
                raise PatchError(f"prompt {b} holds {len(row)} image tokens, which are not those of the next images")
            parts.append(left[: totals[cursor]])
            left = left[totals[cursor] :]
            mine.append(len(source))
            source.append(cursor)
            cursor += 1
        requests.append(mine)
        places.append(parts)
    return requests, source, places
