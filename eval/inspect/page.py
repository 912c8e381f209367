"""The page: the figure's content as one HTML file that needs nothing else, for any screen."""

import base64
import io
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from vtc.eval.inspect.record import DROPPED, GONE, KEPT, MERGED, Outcome, columns, keys, outcomes
from vtc.eval.inspect.style import (
    ACCENT,
    DIM,
    SHADE,
    TINT,
    Color,
    budget,
    caption,
    column_title,
    group_color,
    groups,
    is_cut,
    seen,
    used,
    verdict,
)
from vtc.io.escape import html as escape

CSS = """
:root { color-scheme: light dark; --ink: #1b1c1e; --soft: #5f6368; --paper: #ffffff; --line: #d6d8dc;
  --good: #157347; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a6abb3; --paper: #16181c; --line: #3a3e45;
  --good: #63d297; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.45 system-ui, sans-serif; }
main { max-width: 84rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .2rem 0; overflow-wrap: anywhere; }
.soft { color: var(--soft); font-size: .9rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
.answer { font-size: 1.1rem; font-weight: 600; }
header { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
header > .view { flex: 0 0 13rem; } header > div:last-child { flex: 1 1 16rem; }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; font-size: .9rem; }
.legend li { display: flex; gap: .4rem; align-items: center; }
.legend svg { width: 1.1rem; height: 1.1rem; flex: none; }
section { border-top: 1px solid var(--line); padding: 1rem 0; display: flex; flex-wrap: wrap; gap: 1rem; }
section > div:first-child { flex: 0 0 14rem; }
.stages { flex: 1 1 20rem; display: flex; gap: 1rem; overflow-x: auto; }
figure { margin: 0; flex: 1 1 var(--cell); min-width: 9.5rem; max-width: var(--cell); }
figcaption { font-size: .85rem; color: var(--soft); }
figcaption b { display: block; color: var(--ink); font-size: .95rem; }
.none { display: grid; place-items: center; color: var(--soft); font-size: .9rem; border: 1px dashed var(--line); }
.views { display: flex; gap: .3rem; }
.view { flex: 1 1 0; position: relative; aspect-ratio: var(--shape); background: var(--picture) 0 0 / 100% 100%;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.view svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; min-width: 34rem; }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid var(--line); }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.single { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--cell)), 1fr)); gap: 0 1.5rem; }
.single section { display: block; } .single .stages { margin-top: .8rem; }
@media (max-width: 46rem) { section > div:first-child { flex-basis: 100%; } .stages { flex-wrap: wrap; }
  figure { flex: 1 1 100%; max-width: 26rem; } .none { display: none; } }
"""


def page(record: Mapping, picture: Image.Image) -> str:
    """The HTML of a record (see `vtc.eval.inspect.record`) and its picture."""
    found = [outcomes(run, record["tokens"]) for run in record["runs"]]
    stages, size = columns(record) or [(None, 0)], record["picture"]
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    encoded = base64.b64encode(data.getvalue()).decode()
    aspect = size["width"] / size["height"] * len(record["views"])
    cell = min(34.0, max(11.0, 15.0 * aspect**0.5))
    own = (
        f':root {{ --picture: url("data:image/png;base64,{encoded}"); --shape: {size["width"]} / {size["height"]}; '
        f"--cell: {cell:.1f}rem; }}"
    )
    body = [_header(record), _legend(record, found)]
    rows = "\n".join(_row(record, run, row, stages) for run, row in zip(record["runs"], found))
    body.append(f'<div class="{"single" if len(stages) == 1 else "several"}">{rows}</div>')
    body += [_table(record, found), _footer(record)]
    title = escape(f"vtc inspect: {record['question']}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{title}</title>\n<style>{CSS}{own}</style>\n</head>\n<body>\n<main>\n'
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _header(record: Mapping) -> str:
    model, size = record["model"], record["picture"]
    about = [f"{model['name'] or model['family']} ({model['family']}, {model['layers']} layers)"]
    about += [f"{record['tokens']} visual tokens", f"{size['width']} × {size['height']} pixels"]
    about += [size["source"]] if size["source"] else []
    right = record["reference"]
    lines = [
        f"<h1>{escape(record['question'])}</h1>",
        f'<p class="answer">full model: {_quoted(record["full"]["answer"])}</p>',
        "" if right is None else f"<p>right answer: {_quoted(right)}</p>",
        f'<p class="soft">{escape(", ".join(about))}</p>',
    ]
    name = escape(f"the picture {size['source'] or ''} that the question is about".replace("  ", " "))
    shown = f'<div class="view" role="img" aria-label="{name}"></div>'
    return f"<header>{shown}<div>{''.join(lines)}</div></header>"


def _legend(record: Mapping, found: list[list[Outcome]]) -> str:
    items = []
    for words, kind in used(record, found):
        looks = {
            KEPT: _rect("none", 1, _css(ACCENT)),
            MERGED: _rect(_css(DIM[0]), DIM[1]) + _rect(_css(group_color(0)), TINT, _css(group_color(0))),
            "unseen": _rect("url(#stripes)", 1), "summary": _rect("none", 1) + _cross((1, 1, 9, 9)),
        }  # fmt: skip
        drawn = looks.get(kind) or _rect(_css(SHADE[kind][0]), SHADE[kind][1])
        grey = '<rect width="10" height="10" fill="#969696"/>'
        items.append(f'<li><svg viewBox="0 0 10 10" aria-hidden="true">{grey}{drawn}</svg>{escape(words)}</li>')
    stripes = (
        '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><pattern id="stripes" width="6" '
        'height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="6" height="6" '
        'fill="#fff" opacity=".72"/><rect width="1.2" height="6" fill="#777" opacity=".7"/></pattern></svg>'
    )
    return f'{stripes}<ul class="legend">{"".join(items)}</ul>'


def _row(record: Mapping, run: Mapping, row: list[Outcome], stages: list) -> str:
    same, said = verdict(record, run)
    asked, came = budget(run, record["tokens"])
    kind, done = ("good" if same else "bad"), dict(zip(keys(run), row))
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in run["notes"])
    label = (
        f'<div><h2>{escape(run["strategy"])}</h2><p class="soft">{escape(asked)}: {escape(came)}</p>'
        f'<p class="answer {kind}">{_quoted(run["answer"])}</p><p class="{kind}">{said}</p>{notes}</div>'
    )
    cells = [_cell(record, run, done.get(key), key) for key in stages]
    return f'<section>{label}<div class="stages">{"".join(cells)}</div></section>'


def _cell(record: Mapping, run: Mapping, outcome: Outcome | None, key: tuple) -> str:
    title = escape(column_title(key))
    if outcome is None:
        return f'<figure class="none"><figcaption>{title}: nothing is dropped here</figcaption></figure>'
    every = np.concatenate([view["offsets"] for view in record["views"]])
    words, views = caption(outcome, every), []
    for view in record["views"]:
        part = "" if view["name"] == "picture" else f" ({view['name']})"
        about = escape(f"{run['strategy']} {column_title(key)}{part}: {words}; what stays is bright and outlined")
        views.append(f'<div class="view">{_svg(record, view, outcome, about)}</div>')
    stage = escape(outcome.step["stage"])
    return (
        f'<figure><figcaption><b>{title}</b>{stage}</figcaption><div class="views">{"".join(views)}</div>'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


def _svg(record: Mapping, view: Mapping, outcome: Outcome, about: str) -> str:
    wide, high = record["picture"]["width"], record["picture"]["height"]
    places, boxes, colors = np.array(view["offsets"]), np.array(view["boxes"], dtype=float), groups(outcome)
    state, into = outcome.state[places], outcome.into[places]
    parts = []
    if is_cut(record, view):
        left, top, right, bottom = seen(view)
        hole = f"M0 0H{wide}V{high}H0Z{_path([(left, top, right, bottom)])}"
        parts.append(f'<path d="{hole}" fill="url(#stripes)" fill-rule="evenodd"/>')
    for kind in (GONE, DROPPED):
        parts.append(_filled(boxes[state == kind], *SHADE[kind]))
    parts.append(_filled(boxes[state == MERGED], *DIM))
    for place, color in colors.items():
        parts.append(_filled(boxes[(state == MERGED) & (into == place)], color, TINT))
    plain = [box for box, place, kind in zip(boxes, places, state) if kind == KEPT and int(place) not in colors]
    parts.append(_lined(plain, ACCENT, 1.5))
    if len(view["crops"]) > 1:
        parts.append(_lined(view["crops"], (255, 255, 255), 1, 0.5))
    for place, color in colors.items():
        own = boxes[places == place]
        parts += [_lined(own, (0, 0, 0), 4), _lined(own, color, 2.5)]
    parts += [_cross(box) for box, place in zip(boxes, places) if int(place) in outcome.summaries]
    head = f'<svg viewBox="0 0 {wide} {high}" preserveAspectRatio="none" role="img" aria-label="{about}">'
    return f"{head}{''.join(parts)}</svg>"


def _filled(boxes: Iterable, color: Color, alpha: float) -> str:
    path = _path(boxes)
    return path and f'<path d="{path}" fill="{_css(color)}" fill-opacity="{alpha}" shape-rendering="crispEdges"/>'


def _lined(boxes: Iterable, color: Color, line: float, alpha: float = 1.0) -> str:
    path = "".join(_box(box) for box in boxes)
    more = f' stroke-opacity="{alpha}"' if alpha < 1 else ""
    style = f'fill="none" stroke="{_css(color)}" stroke-width="{line}"{more} vector-effect="non-scaling-stroke"'
    return path and f'<path d="{path}" {style}/>'


def _path(boxes: Iterable) -> str:
    """Boxes as a path; neighbours in a row become one."""
    found: list[list[float]] = []
    for left, top, right, bottom in boxes:
        if found and found[-1][1:4:2] == [top, bottom] and abs(found[-1][2] - left) < 0.01:
            found[-1][2] = right
        else:
            found.append([left, top, right, bottom])
    return "".join(map(_box, found))


def _box(box: Iterable) -> str:
    left, top, right, bottom = (f"{float(x):.2f}".rstrip("0").rstrip(".") for x in box)
    return f"M{left} {top}H{right}V{bottom}H{left}Z"


def _rect(fill: str, alpha: float, edge: str = "none") -> str:
    looks = f'fill="{fill}" fill-opacity="{alpha}" stroke="{edge}" stroke-width="2"'
    return f'<rect x="1" y="1" width="8" height="8" {looks}/>'


def _cross(box: Iterable) -> str:
    left, top, right, bottom = (float(x) for x in box)
    path = f"M{left:g} {top:g}L{right:g} {bottom:g}M{right:g} {top:g}L{left:g} {bottom:g}"
    return f'<path d="{path}" stroke="{_css(ACCENT)}" stroke-width="2" vector-effect="non-scaling-stroke"/>'


def _css(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _table(record: Mapping, found: list[list[Outcome]]) -> str:
    heads = ("strategy", "stage", "where", "before", "stay", "merged", "dropped", "answer")
    rows = []
    for run, row in zip(record["runs"], found):
        for key, outcome in zip(keys(run), row):
            numbers = outcome.step["before"], outcome.step["after"], outcome.merged, outcome.dropped
            cells = [run["strategy"], outcome.step["stage"], column_title(key)]
            rows.append(
                "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
                + "".join(f'<td class="n">{escape(number)}</td>' for number in numbers)
                + f"<td>{_quoted(run['answer'])}</td></tr>"
            )  # fmt: skip
    top = "".join(f"<th>{head}</th>" for head in heads)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _footer(record: Mapping) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items() if value)
    return f'<p class="soft">{escape(record["created"])}; {escape(versions)}</p>'


def _quoted(text: str) -> str:
    return f"“{escape(text)}”" if text else "(nothing)"
