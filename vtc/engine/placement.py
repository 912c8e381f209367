"""Where the images of a batch lie in its prompts: derived from shapes where possible, else read from the device once.

Reading makes the host wait until the GPU has finished all queued work, so it happens at most once per prefill, and only
where it is needed. A single prompt without a mask needs none: all images belong to it and all other tokens stay, so
every length follows from the sizes of the images.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vtc.core.errors import UnsupportedError
from vtc.core.layout import image_runs
from vtc.kernels.transfer import upload


@dataclass
class Host:
    """A batch copied to the host. is_image [B, L] bool; real [B, L] bool, None without padding; ids [B, L], None if the
    input was embeddings; is_video: see `Batch`."""

    is_image: Tensor
    real: Tensor | None
    ids: Tensor | None
    is_video: Tensor | None = None

    def stays(self, b: int) -> Tensor:
        """The text tokens of prompt b [L] bool."""
        return ~self.is_image[b] if self.real is None else ~self.is_image[b] & self.real[b]


class Batch:
    """A batch of prompts as passed to the language model, on its device.

    is_image [B, L] bool: the placeholders. real [B, L] bool or None: tokens that are not masked. ids [B, L] or None.
    is_video [B, L] bool: the placeholders of clips, None where images and clips do not come together.
    """

    def __init__(self, is_image: Tensor, real: Tensor | None, ids: Tensor | None, is_video: Tensor | None = None):
        self.is_image, self.ids, self.is_video = is_image, ids, is_video
        self.real = None if real is None else real.expand(is_image.shape[0], -1)

    @cached_property
    def host(self) -> Host:
        """The batch on the host, read in one transfer. Raises UnsupportedError where the mask hides image tokens."""
        tensors = {"is_image": self.is_image, "real": self.real, "ids": self.ids, "is_video": self.is_video}
        tensors = {name: x for name, x in tensors.items() if x is not None}
        read = dict(zip(tensors, torch.stack([x.long().to(self.is_image.device) for x in tensors.values()]).cpu()))
        is_image, real = read["is_image"].bool(), read.get("real")
        real = None if real is None or bool(real.all()) else real.bool()
        if real is not None and bool((is_image & ~real).any()):
            raise UnsupportedError(
                "the attention mask hides image tokens; possible: a mask that hides padding only, or the prompt "
                "without the image"
            )
        is_video = read.get("is_video")
        return Host(is_image, real, read.get("ids"), None if is_video is None else is_video.bool())

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


def place(
    batch: Batch, totals: list[int], read: bool, from_end: bool = False, pictures: int | None = None
) -> Placement:
    """Assigns the placeholders of a batch to images. totals: tokens of each image of the encoder's run, in order; if
    the batch has images and clips, the first `pictures` are images. read: whether the host needs to know more than
    lengths. from_end: the caller counts columns back from the last one.

    Padding after the tokens is kept column by column if the caller counts from the end, or if there is also padding
    before the tokens (trainers pad prompts on the left and answers on the right), so that the last columns of a row
    keep their meaning. In a batch that is padded on the right only, it is shortened as far as possible.

    Raises PatchError when placeholders and image tokens do not match.
    """
    rows, length = batch.is_image.shape
    if rows == 1 and batch.real is None and batch.is_video is None and not read:
        order = batch.is_image.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
        images = list(range(len(totals)))
        return Placement([images], images, [list(order[0, : sum(totals)].split(totals))], None, [length], [length])
    host = batch.host
    requests, source, places = media_runs(host, totals, pictures)
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


def media_runs(
    host: Host, totals: list[int], pictures: int | None
) -> tuple[list[list[int]], list[int], list[list[Tensor]]]:
    """As `image_runs`, with the images and clips of each prompt in one list, ordered by their first place."""
    if host.is_video is None:
        return image_runs(host.is_image, totals)
    images = image_runs(host.is_image & ~host.is_video, totals[:pictures])
    clips = image_runs(host.is_video, totals[pictures:])
    requests, source, places = [], [], []
    for b in range(len(host.is_image)):
        entries = [
            (where, sources[i] + offset)
            for (indices, sources, parts), offset in ((images, 0), (clips, pictures))
            for i, where in zip(indices[b], parts[b], strict=True)
        ]
        entries.sort(key=lambda entry: int(entry[0][0]))
        requests.append([len(source) + i for i in range(len(entries))])
        source += [index for _, index in entries]
        places.append([where for where, _ in entries])
    return requests, source, places


def token_numbers(embeds: Tensor) -> Tensor:
    """Numbers [B, L] (host) that are equal where the embeddings [B, L, D] are: they tell tokens apart without ids."""
    return embeds.flatten(0, 1).unique(dim=0, return_inverse=True)[1].view(embeds.shape[:2]).cpu()
