"""The record of an inspection, `selection.json`: validation on reading, and the outcome of every token.

    {"schema": "vtc.inspect/1", "created", "versions", "model": {"name", "family", "layers"}, "question",
     "reference": the right answer or null, "max_new_tokens",
     "picture": {"source": its name or null, "width", "height"; of a clip, "frames", and "pictures" that they were
                 made of; width and height are then those of one},
     "tokens": visual tokens of the picture,
     "views": [{"name": "picture" | "base" | "tiles" | "frame 0" ..., "offsets": positions of its tokens,
                "boxes": the area of each, "crops": the area of each crop}], (left, top, right, bottom in pixels)
     "full": {"answer"},
     "runs": [{"strategy", "keep": asked or null, "average": tokens in the average layer, "last": in the last layer,
               "answer", "notes", "resolved": the strategy with its knobs,
               "steps": [{"stage", "layer": null at the projector, -1 in the encoder, "before", "after", "kept":
                          positions, "merged_into": a position or -1 for every token, or null,
                          "also_into": pairs of positions, of a token and of one more that it goes into; or absent}]}]}

Positions count the visual tokens of the picture, or of the clip, in the prompt from 0, including row ends (LLaVA-NeXT).
A clip has a view for each frame, and `picture.png` shows one picture of each, one under another.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from vtc.core.errors import ConfigError
from vtc.io.files import read_json
from vtc.io.shapes import anything, list_of, mapping_of, number, one_of, or_none, record, text, whole, wrong

SCHEMA = "vtc.inspect/1"
MOST, FARTHEST = 10**6, 10**6  # of tokens, layers and pixels; in pixels from the picture's corner
RECORD, PICTURE = "selection.json", "picture.png"
GONE, DROPPED, KEPT, MERGED = range(4)  # gone: dropped by an earlier step
IN_ENCODER = -1  # the layer of a step inside the vision encoder


@dataclass(frozen=True)
class Outcome:
    """The state of N tokens after a step. state [N]: GONE, DROPPED, KEPT or MERGED. into [N]: the position of the kept
    token that holds a token's content, -1 for none. ranks: the kept tokens that others were merged into, numbered in
    order of first appearance in the run. summaries: the positions held by the encoder's [CLS] (one for each crop that
    keeps it) instead of a token of the picture. also: for tokens whose content several kept ones hold, the positions of
    those other than `into`, ascending. merged, dropped: how many of the tokens present before the step it merged into
    others and dropped; targets: how many tokens the merged ones went into; several: how many tokens went into more than
    one."""

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
    """What each step of a run did to the picture's tokens, following chains of merges."""
    every, results, summaries, ranks = np.arange(tokens), [], np.arange(0), {}
    into, present, more = every, np.ones(tokens, bool), {}
    for step in run["steps"]:
        kept = np.zeros(tokens, bool)
        kept[step["kept"]] = True
        flow = np.where(kept, every, -1) if step["merged_into"] is None else np.array(step["merged_into"])
        before, into = into, np.where(into < 0, -1, flow[into])
        pairs = step.get("also_into") or []
        more = _also(before, into, more, flow, pairs)
        if step["layer"] is None:
            # [CLS] occupies a position whose own token was merged elsewhere.
            summaries = np.flatnonzero(kept & (flow != every))
        summaries = summaries[kept[summaries]]
        state = np.select([before < 0, into < 0, into == every], [GONE, DROPPED, KEPT], MERGED)
        holders = sorted({*into[state == MERGED].tolist(), *(place for places in more.values() for place in places)})
        for place in holders:
            ranks.setdefault(place, len(ranks))
        moved = present & (flow >= 0) & (flow != every)
        several = len({token for token, _ in pairs})
        aims = {*flow[moved].tolist(), *(aim for _, aim in pairs)}
        results.append(
            Outcome(
                step, state, into, {place: ranks[place] for place in holders}, tuple(summaries.tolist()),
                int(moved.sum()), int((present & (flow < 0)).sum()), len(aims), several, more,
            )
        )  # fmt: skip
        present = kept
    return results


def _also(before: np.ndarray, into: np.ndarray, more: Mapping, flow: np.ndarray, pairs: list) -> dict:
    """`Outcome.also` after a step. before, into: what holds each token before and after it; more: `also` before it;
    flow, pairs: where the step lets each token flow, and where it lets some flow as well."""
    further: dict[int, list[int]] = {}
    for token, aim in pairs:
        further.setdefault(token, []).append(aim)
    leads = {}
    for token, holder in enumerate(before.tolist()):
        holders = [holder, *more.get(token, ())] if holder >= 0 else more.get(token, ())
        aims = {int(flow[h]) for h in holders} | {aim for h in holders for aim in further.get(h, ())}
        if aims := aims - {-1, int(into[token])}:
            leads[token] = tuple(sorted(aims))
    return leads


def columns(record: Mapping) -> list[tuple[int | None, int]]:
    """The stages of all runs in order of execution: (layer, index among the run's steps at that layer)."""
    stages = {key for run in record["runs"] for key in keys(run)}
    return sorted(stages, key=lambda key: (-0.5 if key[0] is None else key[0], key[1]))


def keys(run: Mapping) -> list[tuple[int | None, int]]:
    """The column of each step of a run, see `columns`."""
    layers = [step["layer"] for step in run["steps"]]
    return [(layer, layers[:i].count(layer)) for i, layer in enumerate(layers)]


def across(record: Mapping, outcome: Outcome) -> list[tuple[str, str, int]]:
    """Of a clip: the names of the frames between which tokens flow, and how many do."""
    frame = {place: v for v, view in enumerate(record["views"]) for place in view["offsets"]}
    flows = [(token, int(outcome.into[token])) for token in np.flatnonzero(outcome.state == MERGED).tolist()]
    flows += [(token, aim) for token, aims in outcome.also.items() for aim in aims]
    known = [(frame[token], frame[aim]) for token, aim in flows if token in frame and aim in frame]
    pairs = Counter(pair for pair in known if pair[0] != pair[1])
    names = [view["name"] for view in record["views"]]
    return [(names[source], names[aim], count) for (source, aim), count in sorted(pairs.items())]


def frames_of(record: Mapping, picture: Image.Image) -> list[Image.Image]:
    """What each view of a record is drawn on: the picture, or the frame of a clip's sheet."""
    frames = record["picture"].get("frames")
    if frames is None:
        return [picture] * len(record["views"])
    edges = [round(i * picture.height / frames) for i in range(frames + 1)]
    return [picture.crop((0, top, picture.width, bottom)) for top, bottom in zip(edges, edges[1:])]


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
        "picture": record(
            {"source": or_none(text), "width": whole(1, MOST), "height": whole(1, MOST)},
            {"frames": whole(1, MOST), "pictures": whole(1, MOST)},
        ),
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
    saved = read_json(path, _whole, f"possible: the {RECORD} that vtc inspect wrote")
    picture_path = path.parent / PICTURE
    try:
        with Image.open(picture_path) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else "is no picture"
        raise ConfigError(f"{str(picture_path)!r} {why}; possible: the one that was written with {RECORD}") from None
    aspect = saved["picture"]["width"] / (saved["picture"]["height"] * saved["picture"].get("frames", 1))
    if abs(picture.width - picture.height * aspect) > 1 + aspect:
        raise ConfigError(
            f"{str(picture_path)!r} has another shape than the picture of {RECORD}; possible: its own picture"
        )
    return saved, picture


def _whole(value: object, where: str) -> dict:
    """A record, checked for everything that is drawn from it."""
    if (schema := record({"schema": anything})(value, where)["schema"]) != SCHEMA:
        raise wrong("schema", schema, repr(SCHEMA))
    data = RECORD_SHAPE(value, where)
    tokens, size = data["tokens"], data["picture"]
    if "frames" in size and ("pictures" not in size or size["frames"] != len(data["views"])):
        raise wrong("picture.frames", size["frames"], f"as many as views, {len(data['views'])}, beside pictures")
    for v, view in enumerate(data["views"]):
        _within(view["offsets"], tokens, f"views[{v}].offsets")
        if len(view["boxes"]) != len(view["offsets"]):
            raise wrong(f"views[{v}].boxes", len(view["boxes"]), f"as many as offsets, {len(view['offsets'])}")
    for r, run in enumerate(data["runs"]):
        for i, step in enumerate(run["steps"]):
            place = f"runs[{r}].steps[{i}]"
            _within(step["kept"], tokens, f"{place}.kept")
            if len(step["kept"]) != step["after"]:
                raise wrong(f"{place}.after", step["after"], f"as many as are kept, {len(step['kept'])}")
            if step["merged_into"] is not None:
                _within(step["merged_into"], tokens, f"{place}.merged_into")
                if len(step["merged_into"]) != tokens:
                    possible = f"a place for each of {tokens} tokens"
                    raise wrong(f"{place}.merged_into", len(step["merged_into"]), possible)
            _within([x for pair in step.get("also_into", ()) for x in pair], tokens, f"{place}.also_into")
    return data


def _within(places: list[int], tokens: int, where: str) -> None:
    if places and max(places) >= tokens:
        raise wrong(where, max(places), f"places below {tokens}")
