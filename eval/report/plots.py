"""The plots of a report: figure against cost with Pareto front, trials of a search, importance of parameters."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from vtc.eval.report import svg
from vtc.eval.report.significance import front
from vtc.eval.showing.chart import CLOSE, COLORS, MARKERS

SIZE = (4.7, 3.7)  # inches: small, so that text is legible on a phone
WIDEST = 1.1  # the ratio between the outermost points that share an x
ALWAYS = 999  # the series number of points that no button hides


@dataclass(frozen=True)
class Point:
    """A run in a plot. series: index of its style, None for `none`, which no button hides; thread: points with the same
    one are joined by a line; tip: a full description; hollow: costs as much as the full model, and is not on the front.
    """

    label: str
    series: int | None
    thread: str
    x: float
    y: float
    x_error: float | None
    y_error: float | None
    tip: str
    hollow: bool = False


@dataclass(frozen=True)
class Axes:
    """x, y: labels with units; log: x in powers of two with a tick at each value; whole: the x of the full model, for
    the per cent below the ticks; limits: the possible range of y; apart: ratio of neighbours at one x."""

    x: str
    y: str
    log: bool = False
    whole: float | None = None
    limits: tuple[float | None, float | None] = (None, None)
    apart: float = 1.012


def on_front(points: Sequence[Point]) -> list[int]:
    """Indices of the Pareto front among the points that are not hollow, from cheapest to most expensive."""
    solid = [i for i, point in enumerate(points) if not point.hollow]
    return [solid[i] for i in front([(points[i].x, points[i].y) for i in solid])]


def scatter(points: Sequence[Point], axes: Axes, prefix: str, alt: str) -> Element:
    """Figure against cost as inline SVG."""
    import matplotlib

    with matplotlib.rc_context(svg.STYLE):
        figure, panel = _new()
        full = next((point for point in points if point.series is None), None)
        if full is not None:
            panel.axhline(full.y, color=svg.MUTED, ls=(0, (5, 3)), lw=1.1, zorder=1)
        _threads(panel, points, axes)
        best = on_front(points)
        for i, point in enumerate(points):
            _point(panel, point, i, axes, points, i in best)
        _front(panel, [points[i] for i in best])
        _scale(panel, points, axes)
        return svg.inline(figure, prefix, {i: point.tip for i, point in enumerate(points)}, alt)


def _new():
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots()


def style(series: int | None, hollow: bool = False) -> dict:
    """The marker and colours of a series, as in the other plots of vtc."""
    if series is None:
        return {"marker": "D", "color": svg.INK, "mfc": svg.INK, "mec": svg.INK, "ms": 6}
    shade = svg.colour(series % len(COLORS))
    return {
        "marker": MARKERS[series % len(MARKERS)], "color": shade, "mfc": svg.PAPER if hollow else shade,
        "mec": shade if hollow else svg.INK, "mew": 1.2 if hollow else 0.6, "ms": 5.8,
    }  # fmt: skip


def _place(point: Point, axes: Axes, points: Sequence[Point]) -> float:
    """The x of a point, shifted a little from those of other series, so that error bars do not overlap."""
    if not axes.log or point.series is None:
        return point.x
    series = sorted({other.series for other in points if other.series is not None})
    apart = min(axes.apart, WIDEST ** (1 / max(1, len(series) - 1)))
    return point.x * apart ** (series.index(point.series) - (len(series) - 1) / 2)


def _threads(panel, points: Sequence[Point], axes: Axes) -> None:
    threads: Mapping[tuple, list[Point]] = defaultdict(list)
    for point in points:
        if point.series is not None:
            threads[point.series, point.thread, point.hollow].append(point)
    for (series, _, hollow), members in threads.items():
        if len(members) > 1:
            places = sorted((_place(point, axes, points), point.y) for point in members)
            (line,) = panel.plot(
                *zip(*places), color=svg.colour(series % len(COLORS)), lw=1.3, ls=":" if hollow else "-", zorder=2
            )
            line.set_gid(f"series-{series}")


def _point(panel, point: Point, number: int, axes: Axes, points: Sequence[Point], ringed: bool) -> None:
    x, series = _place(point, axes, points), point.series
    shade = svg.INK if series is None else svg.colour(series % len(COLORS))
    bars = []
    if point.y_error:
        bars.append(([x, x], [point.y - point.y_error, point.y + point.y_error]))
    if point.x_error:
        bars.append(([x - point.x_error, x + point.x_error], [point.y, point.y]))
    for place in bars:
        (bar,) = panel.plot(*place, color=shade, lw=0.9, zorder=3)
        if series is not None:
            bar.set_gid(f"series-{series}")
    (mark,) = panel.plot([x], [point.y], ls="none", zorder=4, **style(series, point.hollow))
    mark.set_gid(f"point-{ALWAYS if series is None else series}-{number}")
    if ringed:
        (ring,) = panel.plot([x], [point.y], ls="none", marker="o", mfc="none", mec=svg.INK, mew=1, ms=11, zorder=3.5)
        ring.set_gid(f"series-{ALWAYS if series is None else series}-ring")


def _front(panel, points: Sequence[Point]) -> None:
    if len(points) < 2:
        return
    panel.step(
        [p.x for p in points], [p.y for p in points], where="post", color=svg.INK, lw=2.2, alpha=0.3, zorder=1.5,
        label="Pareto front",
    )  # fmt: skip


def _scale(panel, points: Sequence[Point], axes: Axes) -> None:
    import matplotlib.ticker as ticker

    panel.set_xlabel(axes.x)
    panel.set_title(axes.y, loc="left")
    if axes.log:
        panel.set_xscale("log", base=2)
        panel.xaxis.set_minor_locator(ticker.NullLocator())
        places = sorted({point.x for point in points}, reverse=True)
        close = max(CLOSE, (places[0] / places[-1]) ** 0.11)  # labels take a ninth of the axis
        ticks: list[float] = []
        for x in places:
            if not ticks or x * close < ticks[-1]:
                ticks.append(x)
        panel.set_xlim(places[-1] / 1.12, places[0] * 1.08)
        per_cent = [f"\n{100 * x / axes.whole:.0f} %" if axes.whole else "" for x in ticks]
        panel.set_xticks(ticks, [f"{x:.0f}{share}" for x, share in zip(ticks, per_cent)])
    else:
        low, high = min(p.x for p in points), max(p.x for p in points)
        width = max(high - low, 0.1 * high)
        panel.set_xlim(max(0.0, low - 0.12 * width), high + 0.08 * width)
        panel.xaxis.set_major_locator(ticker.MaxNLocator(6))
    low, high = panel.get_ylim()
    least, most = axes.limits
    panel.set_ylim(low if least is None else max(low, least), high if most is None else min(high, most))


def trials(values: Sequence[tuple[int, float | None]], maximize: bool, named: str, prefix: str, alt: str) -> Element:
    """A search: the value of each trial, and the best so far; trials without a value are at the lower edge."""
    import matplotlib
    import matplotlib.ticker as ticker

    with matplotlib.rc_context(svg.STYLE):
        figure, panel = _new()
        known = [(number, value) for number, value in values if value is not None]
        best, so_far = None, []
        for _, value in known:
            best = value if best is None else (max if maximize else min)(best, value)
            so_far.append(best)
        panel.step([n for n, _ in known], so_far, where="post", color=svg.INK, lw=2.2, alpha=0.3)
        for i, (number, value) in enumerate(values):
            if value is not None:
                (mark,) = panel.plot([number], [value], ls="none", **style(0))
                mark.set_gid(f"point-{ALWAYS}-{i}")
        low = panel.get_ylim()[0]
        failed = [number for number, value in values if value is None]
        panel.plot(failed, [low] * len(failed), ls="none", marker="x", color=svg.INK, clip_on=False)
        panel.set_ylim(bottom=low)
        panel.set_xlabel("trial")
        panel.set_title(named, loc="left")
        panel.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
        tips = {i: f"trial {n}: " + ("failed" if v is None else f"{v:.4g}") for i, (n, v) in enumerate(values)}
        return svg.inline(figure, prefix, tips, alt)


def bars(shares: Mapping[str, float], prefix: str, alt: str) -> Element:
    """Importance of parameters, largest on top."""
    import matplotlib

    with matplotlib.rc_context(svg.STYLE):
        figure, panel = _new()
        figure.set_size_inches(SIZE[0], 0.9 + 0.34 * len(shares))
        names = sorted(shares, key=lambda name: (shares[name], name))
        panel.barh(range(len(names)), [shares[name] for name in names], color=svg.colour(0), height=0.62)
        for place, name in enumerate(names):
            panel.text(shares[name] + 0.01, place, f"{100 * shares[name]:.0f} %", va="center", color=svg.INK)
        panel.set_yticks(range(len(names)), names)
        panel.set_xlim(0, 1.12 * max([*shares.values(), 0.01]))
        panel.xaxis.set_visible(False)
        panel.grid(False)
        for side in ("bottom", "left"):
            panel.spines[side].set_visible(False)
        panel.tick_params(length=0)
        return svg.inline(figure, prefix, {}, alt)
