"""The plot of `vtc bench serving`: what serving costs unpruned and pruned, over the number of requests at once."""

from pathlib import Path

from vtc.bench.serving.ratios import summary
from vtc.io.drawing import plain_text, save

PANELS = {
    "blocks": "KV blocks in use (peak)",
    "rate": "requests per second",
    "first": "seconds to the first token",
    "whole": "seconds to the whole answer",
}


def plot(cells: list[dict], folder: Path) -> Path:
    """serving.png: one panel a quantity, one line a system, medians with least and most of the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    with plain_text():
        return _plot(cells, folder / "serving.png")


def _plot(cells: list[dict], file: Path) -> Path:
    from matplotlib import pyplot as plt

    rows = summary(cells)
    figure, axes = plt.subplots(1, len(PANELS), figsize=(3.3 * len(PANELS), 3.4))
    for axis, (part, title) in zip(axes, PANELS.items(), strict=True):
        for system in dict.fromkeys(row["system"] for row in rows):
            series = [row for row in rows if row["system"] == system and row[part] is not None]
            middle = [row[part]["median"] for row in series]
            reach = [[abs(row[part][end] - row[part]["median"]) for row in series] for end in ("min", "max")]
            at_once = [row["concurrency"] for row in series]
            axis.errorbar(at_once, middle, reach, marker="o", markersize=4, capsize=3, label=system)
        axis.set_xscale("log", base=2)
        axis.set_xticks([row["concurrency"] for row in rows], [str(row["concurrency"]) for row in rows])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("requests at once", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(True, alpha=0.3)
    axes[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    save(figure, file, dpi=110)
    plt.close(figure)
    return file
