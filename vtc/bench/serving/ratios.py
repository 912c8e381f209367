"""results.json of `python -m vtc.vllm.measure`: cells as they come, ratios taken within each round, and a table."""

import os
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch

from vtc.bench.results import FILE, SETTINGS, different
from vtc.bench.results import environment as bench_environment
from vtc.core.errors import ConfigError
from vtc.io.files import read_json, write_json
from vtc.io.shapes import list_of, number, one_of, or_none, record, text, whole
from vtc.vllm import installed

SCHEMA = "vtc.vllm.measure/1"
STOCK = "unpruned"
KEY = ("system", "concurrency", "round")
DEFINITIONS = {
    "system": "the stock class (unpruned), or a strategy and its keep",
    "concurrency": "requests in the engine at once: one that ends is replaced until none is left",
    "seconds": "from the first request to the end of the last, processing of pictures included",
    "rate": "requests per second",
    "blocks": "most KV blocks in use at once, seen in every step between scheduling and running it",
    "prompt_tokens": "of each prompt, as the engine has them",
    "first": "seconds from handing a request over to its first token, median over the requests",
    "whole": "seconds from handing a request over to its last token, median over the requests",
    "encoder": "processor seconds in embed_multimodal: tower, selection, projector; null on a GPU",
    "steps": "of the engine",
    "preempted": "requests that lost their KV blocks and began again",
    "cpu": "processor seconds of all threads of the engine; with --threads 1, other work on the machine changes them "
    "little",
    "load": "processes that wanted to run on the machine in the minute before",
    "ratios": "strategy / unpruned of the same round and concurrency; the median, the least and the most are shown",
}
RATIOS = ("rate", "blocks", "first", "whole", "encoder", "cpu")
BUSY = 1.5  # load per core from which on other work is suspected; an engine alone makes 1


def environment() -> dict:
    """Versions and machine."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    server = " ".join(installed() or ()) or None
    return {**bench_environment(device), "vllm": server, "cores": len(os.sched_getaffinity(0))}


class Store:
    """The cells of one output folder. Raises ConfigError when it holds cells that were measured otherwise."""

    def __init__(self, folder: Path, settings: dict, where: dict, command: str, overwrite: bool = False):
        self.folder, self.settings, self.where, self.command = folder, settings, where, command
        self.cells: list[dict] = []
        if (folder / FILE).is_file() and not overwrite:
            old = _read(folder)
            other = different(old, {"settings": settings, "environment": where})
            if other:
                raise ConfigError(
                    f"--output {str(folder)!r} holds cells measured otherwise: {'; '.join(other)}; possible: another "
                    "folder, or --overwrite"
                )
            self.cells = old["cells"]

    def has(self, system: str, concurrency: int, number: int) -> bool:
        """Whether a cell is there."""
        return any(tuple(cell[k] for k in KEY) == (system, concurrency, number) for cell in self.cells)

    def add(self, cell: dict) -> None:
        """Puts a finished cell into the file."""
        self.cells.append(cell)
        data = {
            "schema": SCHEMA, "created": datetime.now(UTC).isoformat(timespec="seconds"), "command": self.command,
            "settings": self.settings, "environment": self.where, "definitions": DEFINITIONS,
            "ratios": summary(self.cells), "cells": self.cells,
        }  # fmt: skip
        write_json(self.folder / FILE, data, indent=1)


_cell = record(
    {
        "system": text, "concurrency": whole(1), "round": whole(), "prompt_tokens": whole(), "load": number(0),
        **dict.fromkeys(("rate", "blocks", "first", "whole", "cpu", "steps", "preempted"), number(0)),
        "encoder": or_none(number(0)),
    }
)  # fmt: skip
SHAPE = record({"schema": one_of(SCHEMA), **SETTINGS, "cells": list_of(_cell)})


def _read(folder: Path) -> dict:
    return read_json(folder / FILE, SHAPE, "possible: another --output, or --overwrite")


def summary(cells: list[dict]) -> list[dict]:
    """For each concurrency and system its cells put together, and `ratios` to the unpruned ones of the same rounds."""
    found = []
    stock = {(cell["concurrency"], cell["round"]): cell for cell in cells if cell["system"] == STOCK}
    for concurrency, system in sorted({(c["concurrency"], c["system"]) for c in cells}, key=lambda k: _order(cells, k)):
        mine = [c for c in cells if (c["concurrency"], c["system"]) == (concurrency, system)]
        pairs = [(c, stock[k]) for c in mine if (k := (concurrency, c["round"])) in stock]
        row = {"concurrency": concurrency, "system": system, "rounds": len(mine)}
        row["prompt_tokens"] = mine[0]["prompt_tokens"]
        row |= {part: spread([c[part] for c in mine]) for part in (*RATIOS, "steps", "preempted")}
        if system != STOCK:
            row["ratios"] = {part: spread([_over(a[part], b[part]) for a, b in pairs]) for part in RATIOS}
            # With more at once, the two encode different numbers of images in a step, which takes differently long.
            row["choosing"] = spread([_choosing(a, b) for a, b in pairs]) if concurrency == 1 else None
        found.append(row)
    return found


def _order(cells: list[dict], key: tuple[int, str]) -> tuple:
    systems = list(dict.fromkeys(c["system"] for c in cells))
    return key[0], key[1] != STOCK, systems.index(key[1])


def _over(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _choosing(mine: dict, stock: dict) -> float | None:
    """What the encoder takes longer than without selection, as a share of the strategy's processor seconds."""
    if mine["encoder"] is None or stock["encoder"] is None:
        return None
    return (mine["encoder"] - stock["encoder"]) / mine["cpu"]


def spread(values: list[float | None]) -> dict | None:
    """Median, least and most; None where a value is missing."""
    if not values or None in values:
        return None
    return {"median": median(values), "min": min(values), "max": max(values)}


def table(cells: list[dict]):
    """A rich table, a line for each concurrency and system."""
    from rich.table import Table

    out = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    for head in ("at once", "system", "rounds", "tokens", "KV blocks", "req/s", "(least, most)", "first s", "whole s",
                 "blocks/unpr.", "req/s/unpr.", "(least, most)", "cpu/unpr.",
                 "first/unpr.", "whole/unpr."):  # fmt: skip
        out.add_column(head, justify="left" if head == "system" else "right", no_wrap=True)
    for row in summary(cells):
        line = [str(row["concurrency"]), row["system"], str(row["rounds"]), str(row["prompt_tokens"])]
        line += [f"{row['blocks']['median']:g}", f"{row['rate']['median']:.3f}", _range(row["rate"])]
        line += [f"{row[part]['median']:.2f}" for part in ("first", "whole")]
        ratios = row.get("ratios", {})
        line += [_middle(ratios.get("blocks")), _middle(ratios.get("rate")), _range(ratios.get("rate"))]
        out.add_row(*line, *[_middle(ratios.get(part)) for part in ("cpu", "first", "whole")])
    return out


def lines(cells: list[dict], cores: int) -> list[str]:
    """What the table does not say: whether pruning ever costs speed, what choosing takes, what lost its blocks, and
    whether other work ran on the machine's `cores`."""
    found = []
    rows = summary(cells)
    for system in dict.fromkeys(r["system"] for r in rows if r["system"] != STOCK):
        mine = [r for r in rows if r["system"] == system and r["ratios"]["rate"]]
        if not mine:
            continue
        slow = [str(r["concurrency"]) for r in mine if r["ratios"]["rate"]["median"] < 1]
        least = min(r["ratios"]["rate"]["min"] for r in mine)
        end = f"slower than unpruned at {', '.join(slow)} at once" if slow else "never slower than unpruned"
        found.append(f"{system}: {end} (by the medians; least ratio of any round {least:.2f})")
        for share in [r["choosing"] for r in mine if r["choosing"]]:
            part = f"{share['median']:.1%}" if share["median"] > 0 else "less than what scatters"
            found.append(f"{system}: choosing takes {part} of the time of requests one at a time")
    lost = [f"{c['system']} at {c['concurrency']}" for c in cells if c["preempted"]]
    if lost:
        found.append(f"requests lost their KV blocks: {', '.join(dict.fromkeys(lost))}; their times are no measure")
    load = max((c["load"] for c in cells), default=0)
    if load > BUSY * cores:
        found.append(f"noisy: up to {load:.1f} processes wanted to run on {cores} cores; other work on this machine?")
    return found


def _middle(found: dict | None) -> str:
    return f"{found['median']:.3f}" if found else ""


def _range(found: dict | None) -> str:
    return f"({found['min']:.3f}, {found['max']:.3f})" if found else ""
