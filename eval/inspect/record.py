"""The record of an inspection, `selection.json`: checked when it is read, and what it says of every token.

    {"schema": "vtc.inspect/1", "created", "versions", "model": {"name", "family", "layers"}, "question",
     "reference": the right answer or null, "max_new_tokens",
     "picture": {"source": its name or null, "width", "height"},
     "tokens": visual tokens of the picture,
     "views": [{"name": "picture" | "base" | "tiles", "offsets": places of its tokens, "boxes": what each shows,
                "crops": what the tokens of each crop show}],        (left, top, right, bottom in pixels)
     "full": {"answer"},
     "runs": [{"strategy", "keep": asked or null, "average": tokens in the average layer, "last": in the last layer,
               "answer", "notes", "resolved": the strategy with its knobs,
               "steps": [{"stage", "layer": null at the projector, -1 in the encoder, "before", "after", "kept": places,
                          "merged_into": a place or -1 for every token, or null,
                          "also_into": pairs of places, of a token and of one more that it flows into; or absent}]}]}

Places count the picture's visual tokens in the prompt from 0, row ends (LLaVA-NeXT) among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from vtc.core.errors import ConfigError
from vtc.io.files import read_json
from vtc.io.shapes import anything, list_of, mapping_of, number, one_of, or_none, record, text, whole, wrong

SCHEMA = "vtc.inspect/1"
MOST, FARTHEST = 10**6, 10**6  # tokens, layers and pixels; pixels from the picture's corner
RECORD, PICTURE = "selection.json", "picture.png"
GONE, DROPPED, KEPT, MERGED = range(4)  # gone: dropped by an earlier step
IN_ENCODER = -1  # the layer of a step inside the vision encoder


@dataclass(frozen=True)
class Outcome:
    """What became of N tokens up to and with a step. state [N]: GONE, DROPPED, KEPT or MERGED. into [N]: the place of
    the survivor that holds a token's content, -1 for none. ranks: the survivors that hold more than themselves,
    numbered in the order in which a run has them. summaries: the places where the encoder's [CLS] stands (one for each
    crop that keeps it), not a token of the picture. also: for tokens whose content several survivors hold, the places
    of those beside `into`, ascending. merged, dropped, targets, several: of the tokens that the step found, how many
    flow into others, how many are dropped, into how many the former flow, and how many flow into more than one."""

    step: Mapping
    state: np.ndarray
    into: np.ndarray
    ranks: Mapping[int, int]
    summaries: tuple[int, ...]
    merged: int
    dropped: int
    targets: int
    several: int = 0
    also: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


def outcomes(run: Mapping, tokens: int) -> list[Outcome]:
    """What each step of a run did to the picture's tokens, merges of merges followed."""
    every, found, summaries, ranks = np.arange(tokens), [], np.arange(0), {}
    into, present, more = every, np.ones(tokens, bool), {}
    for step in run["steps"]:
        kept = np.zeros(tokens, bool)
        kept[step["kept"]] = True
        flow = np.where(kept, every, -1) if step["merged_into"] is None else np.array(step["merged_into"])
        before, into = into, np.where(into < 0, -1, flow[into])
        pairs = step.get("also_into") or []
        more = _also(before, into, more, flow, pairs)
        if step["layer"] is None:
            # [CLS] stands at a place whose own token flows elsewhere.
            summaries = np.flatnonzero(kept & (flow != every))
        summaries = summaries[kept[summaries]]
        state = np.select([before < 0, into < 0, into == every], [GONE, DROPPED, KEPT], MERGED)
        holders = sorted({*into[state == MERGED].tolist(), *(place for places in more.values() for place in places)})
        for place in holders:
            ranks.setdefault(place, len(ranks))
        moved = present & (flow >= 0) & (flow != every)
        several = len({token for token, _ in pairs})
        aims = {*flow[moved].tolist(), *(aim for _, aim in pairs)}
        found.append(
            Outcome(
                step, state, into, {place: ranks[place] for place in holders}, tuple(summaries.tolist()),
                int(moved.sum()), int((present & (flow < 0)).sum()), len(aims), several, more,
            )
        )  # fmt: skip
        present = kept
    return found


def _also(before: np.ndarray, into: np.ndarray, more: Mapping, flow: np.ndarray, pairs: list) -> dict:
    """`Outcome.also` after a step. before, into: what holds each token before and after it; more: `also` before it;
    flow, pairs: where the step lets each token flow, and where it lets some flow as well."""
    further: dict[int, list[int]] = {}
    for token, aim in pairs:
        further.setdefault(token, []).append(aim)
    found = {}
    for token, holder in enumerate(before.tolist()):
        holders = [holder, *more.get(token, ())] if holder >= 0 else more.get(token, ())
        aims = {int(flow[h]) for h in holders} | {aim for h in holders for aim in further.get(h, ())}
        if aims := aims - {-1, int(into[token])}:
            found[token] = tuple(sorted(aims))
    return found


def columns(record: Mapping) -> list[tuple[int | None, int]]:
    """The stages of all runs in the order in which they happen: (layer, number among those of one run there)."""
    found = {key for run in record["runs"] for key in keys(run)}
    return sorted(found, key=lambda key: (-0.5 if key[0] is None else key[0], key[1]))


def keys(run: Mapping) -> list[tuple[int | None, int]]:
    """The column of each step of a run, see `columns`."""
    layers = [step["layer"] for step in run["steps"]]
    return [(layer, layers[:i].count(layer)) for i, layer in enumerate(layers)]


def _box(value: object, where: str) -> list[float]:
    left, top, right, bottom = list_of(number(-FARTHEST, FARTHEST), 4, 4)(value, where)
    if left > right or top > bottom:
        raise wrong(where, value, "left <= right, top <= bottom")
    return value


_places, _flows, _pairs = list_of(whole(0, MOST)), list_of(whole(-1, MOST)), list_of(list_of(whole(0, MOST), 2, 2))
_step = record(
    {
        "stage": text, "layer": or_none(whole(IN_ENCODER, MOST)), "before": whole(0, MOST), "after": whole(0, MOST),
        "kept": _places, "merged_into": or_none(_flows),
    },
    {"also_into": _pairs},
)  # fmt: skip
RECORD_SHAPE = record(
    {
        "schema": one_of(SCHEMA), "created": text, "versions": mapping_of(or_none(text)), "question": text,
        "model": record({"name": or_none(text), "family": text, "layers": whole(0, MOST)}),
        "reference": or_none(text), "tokens": whole(1, MOST),
        "picture": record({"source": or_none(text), "width": whole(1, MOST), "height": whole(1, MOST)}),
        "views": list_of(
            record({"name": text, "offsets": _places, "boxes": list_of(_box), "crops": list_of(_box, 1)}), 1
        ),
        "full": record({"answer": text}),
        "runs": list_of(
            record(
                {
                    "strategy": text, "keep": or_none(number(0, MOST)), "average": number(0, MOST), "answer": text,
                    "notes": list_of(text), "steps": list_of(_step),
                }
            )
        ),
    }
)  # fmt: skip


def read(path: Path) -> tuple[dict, Image.Image]:
    """A record and its picture from `selection.json`, or from the folder that holds it; raises ConfigError."""
    path = path / RECORD if path.is_dir() else path
    found = read_json(path, _whole, f"possible: the {RECORD} that vtc inspect wrote")
    beside = path.parent / PICTURE
    try:
        with Image.open(beside) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else "is no picture"
        raise ConfigError(f"{str(beside)!r} {why}; possible: the one that was written with {RECORD}") from None
    wanted = found["picture"]["width"] / found["picture"]["height"]
    if abs(picture.width - picture.height * wanted) > 1 + wanted:
        raise ConfigError(f"{str(beside)!r} has another shape than the picture of {RECORD}; possible: its own picture")
    return found, picture


def _whole(value: object, where: str) -> dict:
    """The shape of a record in which everything that is drawn is there and fits."""
    if (said := record({"schema": anything})(value, where)["schema"]) != SCHEMA:
        raise wrong("schema", said, repr(SCHEMA))
    found = RECORD_SHAPE(value, where)
    tokens = found["tokens"]
    for v, view in enumerate(found["views"]):
        _within(view["offsets"], tokens, f"views[{v}].offsets")
        if len(view["boxes"]) != len(view["offsets"]):
            raise wrong(f"views[{v}].boxes", len(view["boxes"]), f"as many as offsets, {len(view['offsets'])}")
    for r, run in enumerate(found["runs"]):
        for i, step in enumerate(run["steps"]):
            place = f"runs[{r}].steps[{i}]"
            _within(step["kept"], tokens, f"{place}.kept")
            if len(step["kept"]) != step["after"]:
                raise wrong(f"{place}.after", step["after"], f"as many as are kept, {len(step['kept'])}")
            if step["merged_into"] is not None:
                _within(step["merged_into"], tokens, f"{place}.merged_into")
                if len(step["merged_into"]) != tokens:
                    said = f"a place for each of {tokens} tokens"
                    raise wrong(f"{place}.merged_into", len(step["merged_into"]), said)
            _within([x for pair in step.get("also_into", ()) for x in pair], tokens, f"{place}.also_into")
    return found


def _within(places: list[int], tokens: int, where: str) -> None:
    if places and max(places) >= tokens:
        raise wrong(where, max(places), f"places below {tokens}")
