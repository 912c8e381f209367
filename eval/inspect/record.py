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
               "steps": [{"stage", "layer": null at the projector, "before", "after", "kept": places,
                          "merged_into": a place or -1 for every token, or null}]}]}

Places count the picture's visual tokens in the prompt from 0, row ends (LLaVA-NeXT) among them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vtc.errors import ConfigError

SCHEMA = "vtc.inspect/1"
RECORD, PICTURE = "selection.json", "picture.png"
GONE, DROPPED, KEPT, MERGED = range(4)  # gone: dropped by an earlier step


@dataclass(frozen=True)
class Outcome:
    """What became of N tokens up to and with a step. state [N]: GONE, DROPPED, KEPT or MERGED. into [N]: the place of
    the survivor that holds a token's content, -1 for none. ranks: the survivors that hold more than themselves,
    numbered in the order in which a run has them. summaries: the places where the encoder's [CLS] stands (one for each
    crop that keeps it), not a token of the picture. merged, dropped, targets: of the tokens that the step found, how
    many flow into others, how many are dropped, and into how many the former flow."""

    step: Mapping
    state: np.ndarray
    into: np.ndarray
    ranks: Mapping[int, int]
    summaries: tuple[int, ...]
    merged: int
    dropped: int
    targets: int


def outcomes(run: Mapping, tokens: int) -> list[Outcome]:
    """What each step of a run did to the picture's tokens, merges of merges followed."""
    every, found, summaries, ranks = np.arange(tokens), [], np.arange(0), {}
    into, present = every, np.ones(tokens, bool)
    for step in run["steps"]:
        kept = np.zeros(tokens, bool)
        kept[step["kept"]] = True
        flow = np.where(kept, every, -1) if step["merged_into"] is None else np.array(step["merged_into"])
        before, into = into, np.where(into < 0, -1, flow[into])
        if step["layer"] is None:
            # [CLS] stands at a place whose own token flows elsewhere.
            summaries = np.flatnonzero(kept & (flow != every))
        summaries = summaries[kept[summaries]]
        state = np.select([before < 0, into < 0, into == every], [GONE, DROPPED, KEPT], MERGED)
        holders = np.unique(into[state == MERGED]).tolist()
        for place in holders:
            ranks.setdefault(place, len(ranks))
        moved = present & (flow >= 0) & (flow != every)
        found.append(
            Outcome(
                step, state, into, {place: ranks[place] for place in holders}, tuple(summaries.tolist()),
                int(moved.sum()), int((present & (flow < 0)).sum()), len(np.unique(flow[moved])),
            )
        )  # fmt: skip
        present = kept
    return found


def columns(record: Mapping) -> list[tuple[int | None, int]]:
    """The stages of all runs in the order in which they happen: (layer, number among those of one run there)."""
    found = {key for run in record["runs"] for key in keys(run)}
    return sorted(found, key=lambda key: (-1 if key[0] is None else key[0], key[1]))


def keys(run: Mapping) -> list[tuple[int | None, int]]:
    """The column of each step of a run, see `columns`."""
    layers = [step["layer"] for step in run["steps"]]
    return [(layer, layers[:i].count(layer)) for i, layer in enumerate(layers)]


def read(path: Path) -> tuple[dict, Image.Image]:
    """A record and its picture from `selection.json`, or from the folder that holds it; raises ConfigError."""
    path = path / RECORD if path.is_dir() else path
    possible = f"possible: the {RECORD} that vtc inspect wrote"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{str(path)!r} does not exist; {possible}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read as JSON ({error}); {possible}") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        said = record.get("schema") if isinstance(record, dict) else None
        raise ConfigError(f"{str(path)!r} has schema {said!r}, this version reads {SCHEMA!r}; {possible}")
    try:
        _check(record)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ConfigError(f"{str(path)!r} is damaged: {what}; {possible}") from None
    beside = path.parent / PICTURE
    try:
        with Image.open(beside) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else "is no picture"
        raise ConfigError(f"{str(beside)!r} {why}; possible: the one that was written with {RECORD}") from None
    wanted = record["picture"]["width"] / record["picture"]["height"]
    if abs(picture.width - picture.height * wanted) > 1 + wanted:
        raise ConfigError(f"{str(beside)!r} has another shape than the picture of {RECORD}; possible: its own picture")
    return record, picture


def _check(record: Mapping) -> None:
    """Raises one of the errors that `read` catches unless everything that is drawn is there and fits."""
    tokens = record["tokens"]
    texts = [record["question"], record["full"]["answer"], *(run["answer"] for run in record["runs"])]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("questions and answers must be texts")
    record["model"]["name"], record["model"]["family"], record["model"]["layers"], record["reference"]
    if record["picture"]["width"] < 1 or record["picture"]["height"] < 1:
        raise ValueError("the picture has no size")

    def places(values: list, least: int = 0) -> np.ndarray:
        found = np.array(values, dtype=np.int64)
        if found.ndim != 1 or (len(found) and not least <= found.min() <= found.max() < tokens):
            raise ValueError(f"places must lie in {least}..{tokens - 1}")
        return found

    for view in record["views"]:
        boxes, crops = (np.array(view[name], dtype=float) for name in ("boxes", "crops"))
        if boxes.shape != (len(places(view["offsets"])), 4) or crops.ndim != 2 or crops.shape[1] != 4:
            raise ValueError("boxes and offsets differ in number")
    for run in record["runs"]:
        str(run["strategy"]), float(run["average"]), list(run["notes"]), run["keep"]
        for step in run["steps"]:
            step["stage"], step["layer"]
            if len(places(step["kept"])) != step["after"]:
                raise ValueError("a step's kept places are not as many as it says")
            if step["merged_into"] is not None and len(places(step["merged_into"], -1)) != tokens:
                raise ValueError(f"merged_into must have {tokens} places")
