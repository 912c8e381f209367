"""Images and clips of a call: which it was given, the encoder runs that they belong to, and where they stand."""

from collections.abc import Callable

import torch
from torch import Tensor

from vtc.core.errors import UnsupportedError
from vtc.core.layout import VisionRun
from vtc.engine.state import ThreadState

MEDIA = {"image": "pixel_values", "video": "pixel_values_videos"}  # the argument that holds the pixels of each kind
RUN = "_vtc_run"


def given_kinds(given: dict) -> list[str]:
    """The kinds of media among the arguments of a forward, as pixels or as outputs of the encoder."""
    outputs = given.get("mm_encoder_outputs") or {}
    return [kind for kind, pixels in MEDIA.items() if outputs.get(kind) is not None or given.get(pixels) is not None]


def check_supported(family, kinds: list[str]) -> None:
    """Raises UnsupportedError for a clip where the family takes none."""
    if "video" in kinds and family.video is None:
        raise UnsupportedError(f"vtc prunes images only in {family.name}; video input is not supported")


def encoded(given: dict, kinds: list[str], thread: ThreadState) -> dict[str, VisionRun]:
    """The runs whose output generate() computed before the forward, by kind. Raises UnsupportedError for outputs that
    no recorded run produced."""
    outputs, runs = given.get("mm_encoder_outputs") or {}, {}
    for kind in kinds:
        if outputs.get(kind) is None:
            continue
        run = run_of(outputs[kind], kind, thread)
        if run is None:
            raise UnsupportedError(
                "precomputed image features without vtc's signals (from before the patch, or of another model) are not "
                "supported; possible: pass pixel_values"
            )
        runs[kind] = run
    thread.pending = {}
    return runs


def run_of(output: object, kind: str, thread: ThreadState) -> VisionRun | None:
    """The run that produced this output. If its attribute was lost (accelerate's hooks rebuild what they send to a
    device), the run is recognised by its features."""
    run, (pending, features) = getattr(output, RUN, None), thread.pending.get(kind, (None, ()))
    if run is None and pending is not None:
        returned = getattr(output, "pooler_output", ())
        if [len(f) for f in returned] == [len(f) for f in features] and all(
            torch.equal(a.to(b.device), b) for a, b in zip(features, returned, strict=True)
        ):
            return pending
    return run


def find(embeds: Tensor, thread: ThreadState) -> tuple[dict[str, VisionRun], dict[str, Tensor]]:
    """By kind, the last run of the encoder, if its features were not used yet and occur in embeds [B, L, D], and where
    they do [B, L] bool: for callers that inserted them themselves. Reads from the device."""
    pending, thread.pending, runs, where = thread.pending, {}, {}, {}
    for kind, (run, features) in pending.items():
        places = _occurrences(embeds, _by_image(features, [image.tokens for image in run.images]))
        if places is not None:
            runs[kind], where[kind] = run, places
    return runs, where


def _by_image(features, tokens: list[int]):
    """The features of each image or crop, where a model gives them by prompt. tokens: of each."""
    given = list(map(len, features))
    return torch.cat(list(features)).split(tokens) if given != tokens and sum(given) == sum(tokens) else features


def _occurrences(embeds: Tensor, features) -> Tensor | None:
    is_visual = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    for image in features:
        image = image.to(embeds.device, embeds.dtype).flatten(0, -2)
        occurs = False
        for b, start in (embeds == image[0]).all(-1).nonzero().tolist():
            where = _run(embeds[b], start, image)
            if where is not None:
                is_visual[b, where], occurs = True, True
        if not occurs:
            return None
    return is_visual if len(features) else None


def _run(row: Tensor, start: int, image: Tensor) -> slice | Tensor | None:
    """Where the features image [n, D] stand in order in row [L, D], of which those at `start` are the first: a slice,
    or, with other tokens between them (row ends), places; None if they do not."""
    where = slice(start, start + len(image))
    if torch.equal(row[where], image):
        return where
    values, places, place = row[:, 0].tolist(), [], start
    for first in image[:, 0].tolist():
        while place < len(values) and values[place] != first:
            place += 1
        places.append(place)
        place += 1
    if place > len(values):
        return None
    where = torch.tensor(places, device=row.device)
    return where if torch.equal(row[where], image) else None


def placeholders(family, kinds: list[str], ids: Tensor | None, types: Tensor | None, embeds: Tensor | None) -> Callable:
    """A function that gives, by kind, which columns [B, L] bool are placeholders, from ids or from embeddings that hold
    the placeholders' own; it computes on the device when it is called."""

    def by_embedding() -> dict[str, Tensor]:
        table = family.inner.get_input_embeddings()
        tokens = {k: torch.full((), family.token_ids()[k], dtype=torch.long, device=embeds.device) for k in kinds}
        return {k: (embeds == table(token)).all(-1) for k, token in tokens.items()}

    if ids is None:
        masks = by_embedding()
        return lambda: masks
    return lambda: {kind: family.placeholders(ids, types, kind) for kind in kinds}
