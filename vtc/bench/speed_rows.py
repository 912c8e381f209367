"""What a row of `vtc bench` holds, and from how many visual tokens on a strategy pays."""

from collections.abc import Sequence

from vtc.bench.results import SPREAD, Kind
from vtc.io.shapes import anything, number, or_none, record, text, whole

DEFINITIONS = {
    "vision": "seconds of the vision encoder, observing its attention left out",
    "observing": "seconds of observing signals, part of selection (vtc.report)",
    "selection": "seconds of observing signals, selecting and packing (vtc.report)",
    "prefill": "seconds of the language model's first forward without selection and output head",
    "ttft": "seconds from generate() to the end of the first full forward, output head included",
    "decode": "seconds per step after that, of the whole batch",
    "total": "seconds from generate() to the end of the last forward",
    "rate": "new tokens per second of the whole batch over `total`",
    "peak_bytes": "most bytes allocated at once on top of weights and inputs",
    "kv_bytes": "bytes of the KV cache after the last step",
    "_cpu": "the same of the process's CPU time (all threads), on a CPU",
    "noisy": "whether the middle half of the baseline's times to the first token (CPU time on a CPU) lies more than "
    "15 % apart; such a row was given up to twice the rounds",
    "scoring": "observing one encoder layer (of `observed`) as a share of one layer of the encoder (of `depth`)",
    "ratios": "taken in each round, then the median; peak: one run each",
    "compiled": "whether generate() decoded with a static cache in compiled steps; peak_bytes and the times of parts "
    "are of uncompiled runs with that cache",
    "oracle": "the unpatched model fed the tokens that the strategy chose; difference: of the first token's logits",
}
RATIOS = ("ttft/oracle", "decode/baseline", "decode/oracle", "peak/baseline", "kv/baseline")
CPU = ("ttft_cpu/baseline", "ttft_cpu/oracle", "decode_cpu/baseline", "decode_cpu/oracle")
APART = 1.05  # clock and CPU time disagree by more: other work took the clock's time
_system = record(
    {**dict.fromkeys(("vision", "selection", "prefill", "ttft", "decode", "rate"), SPREAD),
     **dict.fromkeys(("peak_bytes", "kv_bytes"), number(0))}
)  # fmt: skip
_row = record(
    {
        "strategy": text, "keep": text, "batch": whole(1), "prompt": whole(), "asked": whole(), "resolved": anything,
        "tokens": record({"visual": whole(), "average": number(0)}),
        "systems": record({"baseline": _system, "strategy": _system}, {"oracle": _system}),
        "ratios": record({"ttft/baseline": SPREAD}, dict.fromkeys((*RATIOS, *CPU), SPREAD)),
        "oracle": record({}, {"missing": text}),
        "scoring": or_none(record({"median": number(), "observed": whole(), "depth": whole()})),
    }
)  # fmt: skip


def verdict(row: dict, key: str) -> tuple[float | None, bool]:
    """A ratio of a row, such as ttft/oracle, and whether it is that of CPU time, because the clock disagrees; None
    where it was not measured."""
    clock = row["ratios"].get(key)
    cpu = row["ratios"].get(key.replace("/", "_cpu/"))
    if clock is None or cpu is None:
        return (None if clock is None else clock["median"]), False
    a, b = clock["median"], cpu["median"]
    return (b, True) if max(a, b) > APART * min(a, b) else (a, False)


def _grid(row: dict) -> dict:
    return {"batch sizes": row["batch"], "prompt lengths": row["prompt"], "visual tokens": row["tokens"]["visual"]}


SPEED = Kind("vtc.bench/1", _row, ("strategy", "keep", "batch", "prompt", "asked"), DEFINITIONS, _grid)
"""The results of `vtc bench`."""


def break_even(points: Sequence[tuple[float, float]]) -> tuple[float | None, str]:
    """Visual tokens below which a strategy costs more than it saves, and the same in words.

    points: (visual tokens, time to first token relative to the baseline). Between the two sizes where the ratio comes
    to 1 for good, it is interpolated linearly; None where it is always on one side.
    """
    points = sorted(points)
    if not points:
        return None, "nothing was measured"
    smallest, (largest, last_ratio) = points[0][0], points[-1]
    if last_ratio > 1:
        return None, f"never within {smallest:g} to {largest:g}"
    above = [i for i, (_, ratio) in enumerate(points) if ratio > 1]
    if not above:
        return None, f"below {smallest:g}, the smallest measured"
    (n0, r0), (n1, r1) = points[above[-1]], points[above[-1] + 1]
    crossing = n0 + (n1 - n0) * (r0 - 1) / (r0 - r1)
    return crossing, f"at {crossing:.0f}"


def break_evens(rows: list[dict]) -> list[dict]:
    """The break-even point of each strategy, keep, batch and prompt length that was measured at several sizes."""
    groups: dict[tuple, list[tuple[float, float]]] = {}
    for row in rows:
        key = row["strategy"], row["keep"], row["batch"], row["prompt"]
        groups.setdefault(key, []).append((row["tokens"]["visual"], row["ratios"]["ttft/baseline"]["median"]))
    result = []
    for (strategy, keep, batch, prompt), points in groups.items():
        if len(points) > 1:
            tokens, words = break_even(points)
            result.append(
                {"strategy": strategy, "keep": keep, "batch": batch, "prompt": prompt, "tokens": tokens, "words": words}
            )
    return result
