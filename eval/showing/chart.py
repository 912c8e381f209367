"""Plots each task's figure against the mean number of visual tokens per decoder layer: one line per method, and a
horizontal line for the unpruned model."""

from collections import defaultdict
from pathlib import Path

from vtc.eval.showing.console import unit
from vtc.io.drawing import plain_text, save
from vtc.io.escape import visible

# Okabe and Ito's palette, safe for most colour-blind readers, and two more colours.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B5A2B", "#7F7F7F")
MARKERS = "osD^vPX*<>"
CLOSE = 1.18  # positions with a smaller ratio share a tick
ACROSS = 3  # panels side by side
NONE = "none (all tokens)"
LONG = {"macro": "accuracy, mean over kinds of question", "f1": "F1"}


def draw(summary: dict, path: Path) -> Path:
    """Writes a PNG, one panel per task, from what `vtc.eval.results.runs.write_summary` returned; returns its path."""
    with plain_text():
        save(_figure(summary), path)
    return path


def _figure(summary: dict):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {task: _lines(summary, task) for task in summary["comparison"]}
    columns = min(ACROSS, len(panels))
    rows = -(-len(panels) // columns)
    size = (8.0, 4.8) if len(panels) == 1 else (4.6 * columns + 2.4, 3.9 * rows + 0.3)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    every = sorted({label for lines, *_ in panels.values() for label in lines})
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (task, (lines, full, runs)) in zip(grid, panels.items()):
        _panel(axes, lines, full, every)
        _label_axes(axes, lines, full, runs, task, alone=len(panels) == 1)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if len(panels) > 1:
        model = next((runs[0]["model"]["id"] for *_, runs in panels.values() if runs), None)
        figure.suptitle(f"model {model}; bars: 1 standard error", fontsize=11)
    _legend(figure, every)
    return figure


def _lines(summary: dict, task: str) -> tuple[dict[str, list], tuple | None, list[dict]]:
    """By label the points (tokens, value, error, annotation); tokens, value and error of `none`; the runs."""
    runs = [run for run in summary["runs"] if run["name"] in summary["comparison"][task]]
    lines, full = defaultdict(list), None
    for run in runs:
        result = run["tasks"][task]
        value, error = _value(result)
        before = result["tokens"]["visual_before"]
        if value is None:
            continue
        if run["method"]["kind"] == "none":
            full = (before, value, error)
        elif before:
            named = run["method"]["budget"] if run["method"]["keep"] is None else ""
            lines[_label(run)].append((_tokens(run, result), value, error, named))
    return lines, full, runs


def _panel(axes, lines: dict[str, list], full: tuple | None, every: list[str]) -> None:
    for i, (label, points) in enumerate(sorted(lines.items())):
        x, y, error, named = zip(*sorted(points))
        # Shifted a little, so that error bars at one budget do not overlap.
        x = [place * 1.012 ** (i - (len(lines) - 1) / 2) for place in x]
        axes.errorbar(x, y, yerr=error, label=label, capsize=2.5, elinewidth=0.9, **_style(label, every))
        for place in zip(x, y, named):
            axes.annotate(place[2], place[:2], (4, -8), textcoords="offset points", fontsize=6, color="0.3")
    if full is not None:
        axes.axhline(full[1], color="0.25", ls="--", lw=1.2, label=NONE)
        axes.axhspan(full[1] - full[2], full[1] + full[2], color="0.25", alpha=0.08, lw=0)


def _style(label: str, every: list[str]) -> dict:
    """The style of a label, the same in every panel."""
    i = every.index(label)
    hollow = {"mfc": "white", "ls": ":"} if "blurred" in label else {}
    return {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)], "ms": 5, "lw": 1.4, **hollow}


def _value(result: dict) -> tuple[float | None, float]:
    """The primary figure and its standard error (0 if unknown), times the task's scale."""
    figure = result["figures"].get(result["primary"], {"value": None})
    if figure["value"] is None:
        return None, 0.0
    return figure["value"] * result["scale"], (figure["stderr"] or 0.0) * result["scale"]


def _label(run: dict) -> str:
    mode = run["method"].get("downsample", {}).get("mode")
    blurred = "downsample (blurred to the information\nof fewer tokens; all are used)"
    return blurred if mode == "blur" else visible(run["method"]["name"])


def _tokens(run: dict, result: dict) -> float:
    """The mean number of visual tokens per layer; for blurred pictures, the number with as much information."""
    if run["method"].get("downsample", {}).get("mode") == "blur":
        keep, before = run["method"]["keep"], result["tokens"]["visual_before"]
        return keep * before if isinstance(keep, float) else keep
    return result["tokens"]["visual_average"]


def _label_axes(axes, lines: dict, full: tuple | None, runs: list[dict], task: str, alone: bool) -> None:
    import matplotlib.ticker as ticker

    whole = full[0] if full and full[0] else None
    places = {round(x, 3) for points in lines.values() for x, *_ in points} | ({whole} if whole else set())
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    merged: list[float] = []
    for x in sorted(places, reverse=True):
        if not merged or x * CLOSE < merged[-1]:
            merged.append(x)
    if merged:
        axes.set_xlim(merged[-1] / 1.1, merged[0] * 1.05)
    axes.set_xticks(merged, [f"{x:.0f}" + (f"\n{100 * x / whole:.0f}%" if whole else "") for x in merged])
    axes.tick_params(labelsize=10 if alone else 8)
    axes.set_xlabel("visual tokens" + (" in the language model (mean per layer and sample)" if alone else ""))
    axes.grid(True, color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if runs:
        result = runs[0]["tasks"][task]
        _scale_axis(axes, result)
        n = result["n"] + result["n_errors"]
        about = f"{task} (dialect {result['dialect']}, {result['split']}), n = {n}"
        if alone:
            about = f"model {runs[0]['model']['id']}, task {about}; bars: 1 standard error"
        axes.set_title(about, fontsize=9.5 if alone else 9)


def _scale_axis(axes, result: dict) -> None:
    """Labels the y axis and limits it to possible scores; leaves some room around a flat line."""
    primary, scale = result["primary"], result["scale"]
    axes.set_ylabel(f"{LONG.get(primary, primary.replace('_', ' '))} ({unit(scale)})")
    low, high = axes.get_ylim()
    if scale == 1:
        axes.set_ylim(max(low, 0.0) if high > 0 else low, high)
        return
    least, most = -0.02 * scale, 1.02 * scale
    axes.set_ylim(*((max(low, least), min(high, most)) if high - low > 0.01 * scale else (least, most)))


def _legend(figure, every: list[str]) -> None:
    """One legend for all panels, beside them, in the order of the styles."""
    handles: dict[str, object] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    order = [label for label in (NONE, *every) if label in handles]
    if order:
        figure.legend([handles[o] for o in order], order, loc="outside right center", frameon=False, fontsize=9)
