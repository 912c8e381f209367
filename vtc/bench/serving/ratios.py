"""The results of `vtc bench serving`: what a row holds, and ratios taken within each round."""

import os

import torch

from vtc.bench.results import Kind, spread
from vtc.bench.results import environment as bench_environment
from vtc.io.shapes import anything, number, or_none, record, text, whole

STOCK = "unpruned"
DEFINITIONS = {
    "system": "the stock class (unpruned), or a strategy and its keep",
    "concurrency": "requests in the engine at once: one that ends is replaced until none is left",
    "seconds": "from the first request to the end of the last, processing of pictures included",
    "rate": "requests per second",
    "blocks": "most KV blocks in use at once, counted in every step between scheduling and running it",
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


def environment() -> dict:
    """Versions and machine."""
    from vtc.vllm import installed

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    server = " ".join(installed() or ()) or None
    return {**bench_environment(device), "vllm": server, "cores": len(os.sched_getaffinity(0))}


_cell = record(
    {
        "system": text, "concurrency": whole(1), "round": whole(), "resolved": anything,
        "prompt_tokens": whole(), "load": number(0),
        **dict.fromkeys(("rate", "blocks", "first", "whole", "cpu", "steps", "preempted"), number(0)),
        "encoder": or_none(number(0)),
    }
)  # fmt: skip


def summary(cells: list[dict]) -> list[dict]:
    """The cells of each concurrency and system aggregated, with `ratios` to the unpruned ones of the same rounds."""
    summaries = []
    stock = {(cell["concurrency"], cell["round"]): cell for cell in cells if cell["system"] == STOCK}
    for concurrency, system in sorted({(c["concurrency"], c["system"]) for c in cells}, key=lambda k: _order(cells, k)):
        group = [c for c in cells if (c["concurrency"], c["system"]) == (concurrency, system)]
        pairs = [(c, stock[k]) for c in group if (k := (concurrency, c["round"])) in stock]
        row = {"concurrency": concurrency, "system": system, "rounds": len(group)}
        row["prompt_tokens"] = group[0]["prompt_tokens"]
        row |= {part: spread([c[part] for c in group]) for part in (*RATIOS, "steps", "preempted")}
        if system != STOCK:
            row["ratios"] = {part: spread([_over(a[part], b[part]) for a, b in pairs]) for part in RATIOS}
            # With more at once, the two encode different numbers of images in a step, so their times do not compare.
            row["choosing"] = spread([_choosing(a, b) for a, b in pairs]) if concurrency == 1 else None
        summaries.append(row)
    return summaries


def _order(cells: list[dict], key: tuple[int, str]) -> tuple:
    systems = list(dict.fromkeys(c["system"] for c in cells))
    return key[0], key[1] != STOCK, systems.index(key[1])


def _over(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _choosing(pruned: dict, stock: dict) -> float | None:
    """The time that selection adds to the encoder, as a share of the strategy's processor seconds."""
    if pruned["encoder"] is None or stock["encoder"] is None:
        return None
    return (pruned["encoder"] - stock["encoder"]) / pruned["cpu"]


def _grid(row: dict) -> dict:
    return {"requests at once": row["concurrency"], "rounds": row["round"] + 1}


def _derived(rows: list[dict]) -> dict:
    return {"ratios": summary(rows)}


SERVING = Kind(
    "vtc.bench.serving/1", _cell, ("system", "concurrency", "round"), DEFINITIONS, _grid, ("keep",), _derived
)
"""The results of `vtc bench serving`."""
