"""Accuracy against visual tokens (of the average decoder layer): one line per method, the unpruned model across."""

from collections import defaultdict
from pathlib import Path

# Okabe and Ito's colours, told apart by most eyes, then two more.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B5A2B", "#7F7F7F")
MARKERS = "osD^vPX*<>"
CLOSE = 1.18  # places on the axis with a smaller ratio share a label


def draw(summary: dict, path: Path) -> Path:
    """Writes a PNG, one panel per task, from what `vtc.eval.results.write_summary` returned; returns its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = list(summary["comparison"])
    figure = Figure(figsize=(8.0 * len(tasks), 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks):
        _panel(axes, summary, task)
    figure.savefig(path)
    return path


def _panel(axes, summary: dict, task: str) -> None:
    runs = [run for run in summary["runs"] if run["name"] in summary["comparison"][task]]
    lines, full = defaultdict(list), None
    for run in runs:
        result = run["tasks"][task]
        value, error = _figure(result)
        if value is None:
            continue
        before = result["tokens"]["visual_before"]
        if run["method"]["kind"] == "none":
            full = (before, value, error)
        elif before:
            named = run["method"]["budget"] if run["method"]["keep"] is None else ""
            lines[_label(run)].append((_tokens(run, result), value, error, named))
    places = {round(x, 3) for points in lines.values() for x, *_ in points} | ({full[0]} if full and full[0] else set())
    for i, (label, points) in enumerate(sorted(lines.items())):
        x, y, error, named = zip(*sorted(points))
        # A little to the side of each other, so that error bars at one budget do not hide each other.
        x = [place * 1.012 ** (i - (len(lines) - 1) / 2) for place in x]
        hollow = {"mfc": "white", "ls": ":"} if "blurred" in label else {}
        axes.errorbar(x, y, yerr=error, label=label, color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)],
                      ms=5, lw=1.4, capsize=2.5, elinewidth=0.9, **hollow)  # fmt: skip
        for place in zip(x, y, named):
            axes.annotate(place[2], place[:2], (4, -8), textcoords="offset points", fontsize=6, color="0.3")
    if full is not None:
        axes.axhline(full[1], color="0.25", ls="--", lw=1.2, label="none (all tokens)")
        axes.axhspan(full[1] - full[2], full[1] + full[2], color="0.25", alpha=0.08, lw=0)
    _label_axes(axes, sorted(places), full, runs, task)


def _figure(result: dict) -> tuple[float | None, float | None]:
    """The primary figure and its standard error in percent."""
    primary, metrics = result["primary"], result["metrics"]
    if metrics[primary] is None:
        return None, None
    return 100 * metrics[primary], 100 * metrics["macro_stderr" if primary == "macro" else "stderr"]


def _label(run: dict) -> str:
    mode = run["method"].get("downsample", {}).get("mode")
    return (
        "downsample (blurred to what so many\ntokens hold; all are used)" if mode == "blur" else run["method"]["name"]
    )


def _tokens(run: dict, result: dict) -> float:
    """Visual tokens in the average layer; for blurred pictures those that would hold as much."""
    if run["method"].get("downsample", {}).get("mode") == "blur":
        keep, before = run["method"]["keep"], result["tokens"]["visual_before"]
        return keep * before if isinstance(keep, float) else keep
    return result["tokens"]["visual_average"]


def _label_axes(axes, places: list[float], full: tuple | None, runs: list[dict], task: str) -> None:
    import matplotlib.ticker as ticker

    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    merged: list[float] = []
    for x in reversed(places):
        if not merged or x * CLOSE < merged[-1]:
            merged.append(x)
    whole = full[0] if full and full[0] else None
    axes.set_xticks(merged, [f"{x:.0f}" + (f"\n{100 * x / whole:.0f}%" if whole else "") for x in merged])
    axes.set_xlabel("visual tokens in the language model (mean per layer and sample)")
    axes.set_ylabel("accuracy, mean over kinds of question (%)")
    low, high = axes.get_ylim()
    axes.set_ylim(*((max(low, -2.0), min(high, 102.0)) if high - low > 1 else (-2.0, 102.0)))
    axes.grid(True, color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if runs:
        result = runs[0]["tasks"][task]
        n = result["n"] + result["n_errors"]
        title = f"model {runs[0]['model']['id']}, task {task} ({result['split']}), n = {n}; bars: 1 standard error"
        axes.set_title(title, fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
