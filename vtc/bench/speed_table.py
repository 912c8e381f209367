"""What `vtc bench` shows: a table of all rows, two results side by side, plots."""

from collections.abc import Callable
from pathlib import Path

from vtc.bench.results import check_comparable
from vtc.bench.speed_rows import CPU, SPEED, break_evens, verdict
from vtc.io.drawing import plain_text, save

PARTS = ("vision", "selection", "prefill")
SYSTEMS = ("baseline", "strategy", "oracle")
STILL_NOISY = 3  # exit code of `vtc bench`
NOISY = 1.3  # largest over smallest baseline from which on a row is called noisy
COLORS = {"vision": "#4c78a8", "selection": "#e45756", "prefill": "#72b7b2", "rest": "#bab0ac"}


def table(rows: list[dict]):
    """A rich table, three lines a row: medians in ms (of the time to the first token also minimum and maximum), ratios
    in the line of the strategy, whose visual tokens are those that the average layer sees."""
    from rich.table import Table

    out = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    for head in ("strategy", "keep", "B", "text", "visual", "system"):
        out.add_column(head, justify="left" if head in ("strategy", "system") else "right", no_wrap=True)
    for head in (
        "vision", "select", "prefill", "ttft ms", "least", "most", "step ms", "tok/s", "peak MB", "KV MB", "ttft/base",
        "ttft/orac", "step/orac", "peak/base",
    ):  # fmt: skip
        out.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        for name in SYSTEMS:
            out.add_row(*_line(row, name))
    return out


def _line(row: dict, name: str) -> list[str]:
    first = name == SYSTEMS[0]
    counts = row["tokens"]
    head = [row["strategy"], row["keep"], str(row["batch"]), str(row["prompt"])] if first else [""] * 4
    head.append(str(counts["visual"]) if first else f"{counts['average']:.0f}" if name == "strategy" else "")
    if name not in row["systems"]:
        return [*head, f"no {name}", *[""] * 14]
    figures = row["systems"][name]
    cells = [_ms(figures[part]["median"]) for part in PARTS]
    cells += [_ms(figures["ttft"][key]) for key in ("median", "min", "max")]
    cells += [_ms(figures["decode"]["median"]), _short(figures["rate"]["median"])]
    cells += [_short(figures[key] / 1e6) for key in ("peak_bytes", "kv_bytes")]
    keys = ("ttft/baseline", "ttft/oracle", "decode/oracle", "peak/baseline")
    return [*head, name, *cells, *[_ratio(row, key) if name == "strategy" else "" for key in keys]]


def _ms(seconds: float) -> str:
    return _short(1000 * seconds)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(row: dict, key: str) -> str:
    value, of_cpu = verdict(row, key)
    return "-" if value is None else f"{value:.3f}{'c' if of_cpu else ''}"


def lines(rows: list[dict]) -> list[str]:
    """What the table has no room for: missing oracles, rounds that differ too much, break-even points."""
    messages = [
        f"{row['strategy']} {row['keep']} has no oracle: {row['oracle']['missing']}"
        for row in rows
        if "missing" in row["oracle"]
    ]
    messages += [_steps(row) for row in rows if row.get("compiled")]
    for row in rows:
        cost = row["scoring"]
        if cost is not None:
            share = f"{cost['median']:.0%} of the layer ({cost['observed']} of {cost['depth']} layers)"
            messages.append(f"{_which(row)}: scoring a layer of the encoder costs {share}")
        for key in (key.replace("_cpu", "") for key in CPU):
            value, of_cpu = verdict(row, key)
            if of_cpu:
                messages.append(
                    f"{_which(row)}: {key} is {row['ratios'][key]['median']:.3f} by the clock and {value:.3f} of CPU "
                    "time (c in the table): other work on this machine?"
                )
        if row.get("noisy"):
            messages.append(f"{_which(row)}: still noisy after twice the rounds; exit code {STILL_NOISY}")
        ttft = row["systems"]["baseline"]["ttft"]
        if ttft["max"] > NOISY * ttft["min"]:
            messages.append(
                f"noisy: with {row['tokens']['visual']} visual tokens, batch {row['batch']}, the baseline took "
                f"{_ms(ttft['min'])} to {_ms(ttft['max'])} ms to the first token; other work on this machine?"
            )
    for entry in break_evens(rows):
        where = f"{entry['strategy']} {entry['keep']}, batch {entry['batch']}, {entry['prompt']} text tokens"
        messages.append(f"{where}, break-even in visual tokens: {entry['words']}")
    return list(dict.fromkeys(messages))


def _which(row: dict) -> str:
    return f"{row['strategy']} {row['keep']}, {row['tokens']['visual']} visual tokens, batch {row['batch']}"


def _steps(row: dict) -> str:
    """How fast compiled steps write."""
    rates = {name: _short(row["batch"] / x["decode"]["median"]) for name, x in row["systems"].items()}
    words = f"{rates['strategy']} new tokens per second, unpruned {rates['baseline']}"
    if "oracle" in rates:
        words += f", the oracle {rates['oracle']} (a step takes {_ratio(row, 'decode/oracle')} of its time)"
    return f"{_which(row)}: compiled steps write {words}"


def compared(a: dict, b: dict):
    """A rich table of two results, by shape: the times of each strategy, also relative to its own baseline. Raises
    ConfigError when they differ in more than strategy and keep."""
    from rich.table import Table

    check_comparable(SPEED, a, b)
    out = Table(box=None, header_style="bold", padding=(0, 1))
    for head in ("B", "text", "visual", "result", "strategy", "keep", "base ms", "first token ms", "step ms"):
        out.add_column(head, justify="left" if head in ("result", "strategy") else "right")
    for head in ("ttft/base", "ttft/orac", "step/base", "step/orac", "peak/base", "kv/base"):
        out.add_column(head, justify="right")
    keyed = [
        (row["batch"], row["prompt"], row["tokens"]["visual"], n, row)
        for n, d in enumerate((a, b))
        for row in d["rows"]
    ]
    for batch, prompt, visual, which, row in sorted(keyed, key=lambda item: item[:4]):
        base, strategy = row["systems"]["baseline"], row["systems"]["strategy"]
        cells = [str(batch), str(prompt), str(visual), "AB"[which], row["strategy"], row["keep"]]
        cells += [_ms(x["median"]) for x in (base["ttft"], strategy["ttft"], strategy["decode"])]
        names = ("ttft/baseline", "ttft/oracle", "decode/baseline", "decode/oracle", "peak/baseline", "kv/baseline")
        out.add_row(*cells, *[_ratio(row, key) for key in names])
    return out


def plot(rows: list[dict], folder: Path) -> list[Path]:
    """ttft.png (systems, stacked parts) and, with several numbers of visual tokens, break_even.png."""
    import matplotlib

    matplotlib.use("Agg")
    files, points = [folder / "ttft.png"], break_evens(rows)
    with plain_text():
        _drawn(files[0], (9, 1.2 + 0.75 * len(rows)), lambda axis: _bars(axis, rows))
        if points:
            files.append(folder / "break_even.png")
            _drawn(files[1], (7, 4.5), lambda axis: _curves(axis, rows, points))
    return files


def _drawn(file: Path, size: tuple[float, float], draw: Callable) -> None:
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=size)
    draw(axis)
    figure.tight_layout()
    save(figure, file, dpi=110)
    plt.close(figure)


def _bars(axis, rows: list[dict]) -> None:
    """The tick is the time to the first token; what it exceeds the parts by is projector, embedding, output head and
    bookkeeping."""
    places, labels = [], []
    for number, row in enumerate(rows):
        for shift, name in enumerate(s for s in SYSTEMS if s in row["systems"]):
            seconds, y, start = row["systems"][name], -(4 * number + shift), 0.0
            widths = {part: 1000 * seconds[part]["median"] for part in PARTS}
            widths["rest"] = max(0.0, 1000 * seconds["ttft"]["median"] - sum(widths.values()))
            for part, width in widths.items():
                axis.barh(y, width, left=start, color=COLORS[part], label=part if not places else None, height=0.85)
                start += width
            axis.plot(1000 * seconds["ttft"]["median"], y, "k|", markersize=11)
            places.append(y)
            text = f"{row['strategy']} {row['keep']}" if name == "strategy" else name
            labels.append(f"{text}, B {row['batch']}, N {row['tokens']['visual']}")
    axis.set_yticks(places, labels, fontsize=8)
    axis.set_xlabel("ms (tick: time to the first token, measured without the breakdown)")
    axis.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.4, 1.0), frameon=False, fontsize=8)


def _curves(axis, rows: list[dict], points: list[dict]) -> None:
    for entry in points:
        key = ("strategy", "keep", "batch", "prompt")
        curve = [(row["tokens"]["visual"], row["ratios"]["ttft/baseline"]) for row in rows
                if all(row[k] == entry[k] for k in key)]  # fmt: skip
        curve.sort(key=lambda point: point[0])
        tokens, ratio = [n for n, _ in curve], [r["median"] for _, r in curve]
        name = f"{entry['strategy']} {entry['keep']}, B {entry['batch']}"
        (line,) = axis.plot(tokens, ratio, "o-", label=name)
        lowest, highest = [r["min"] for _, r in curve], [r["max"] for _, r in curve]
        axis.fill_between(tokens, lowest, highest, color=line.get_color(), alpha=0.15)
        if entry["tokens"] is not None:
            axis.axvline(entry["tokens"], color=line.get_color(), linestyle=":")
            axis.annotate(f"{entry['tokens']:.0f}", (entry["tokens"], 1), textcoords="offset points", xytext=(4, 6))
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xlabel("visual tokens")
    axis.set_ylabel("time to the first token / baseline")
    axis.grid(True, alpha=0.3)
    axis.legend(fontsize=8)
