"""What `vtc bench selection` measures and stores in results.json."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vtc.bench.results import Kind, Results, environment
from vtc.bench.selectors import check_known, measure
from vtc.bench.subject import device_of
from vtc.core.errors import ConfigError
from vtc.io.shapes import number, one_of, or_none, record, text, whole

DEFINITIONS = {
    "similarities": "seconds to compute what both loops read, median over the repeats",
    "loop": "seconds of vtc's greedy loop, median over the repeats",
    "total": "similarities and loop",
    "plain_loop": "seconds of the definition as a plain loop; null where it would take longer than the limit",
    "plain_total": "similarities and plain loop",
    "loop_ratio": "plain_loop over loop",
    "total_ratio": "plain_total over total",
    "random": "seconds of a random draw of as many tokens",
    "memory": "peak bytes of similarities and loop beyond their inputs",
    "equal": "the picks are the plain loop's, in the same order",
}
_row = record(
    {
        "selector": text, "method": text, "tokens": whole(1), "picks": whole(1),
        **dict.fromkeys(("similarities", "loop", "total", "random"), number(0)), "memory": whole(),
        **dict.fromkeys(("plain_loop", "plain_total", "loop_ratio", "total_ratio"), or_none(number(0))),
        "equal": or_none(one_of(True, False)),
    }
)  # fmt: skip


def _grid(row: dict) -> dict:
    return {"selectors": row["selector"], "tokens": row["tokens"], "picks": row["picks"]}


SELECTION = Kind(
    "vtc.bench.selection/2", _row, ("selector", "tokens", "picks"), DEFINITIONS, _grid, varies="their times"
)
"""The results of `vtc bench selection`."""


@dataclass(frozen=True)
class SelectionOptions:
    """The command line. limit: seconds that a plain loop may take. Raises ConfigError for what is unknown or cannot
    be."""

    output: Path
    selectors: tuple[str, ...]
    sizes: tuple[int, ...]
    picks: tuple[int, ...]
    device: str = "cpu"
    repeats: int = 3
    limit: float = 60
    seed: int = 0

    def __post_init__(self):
        for name in self.selectors:
            check_known(name)
        device_of(self.device)
        if not self.cells():
            raise ConfigError(
                f"--picks {_joined(self.picks)} are more than --sizes {_joined(self.sizes)}; possible: at least one "
                "k <= N"
            )

    def cells(self) -> list[tuple[str, int, int]]:
        """Selector, tokens and picks of each row."""
        return [(name, n, k) for name in self.selectors for n in self.sizes for k in self.picks if k <= n]

    def settings(self) -> dict:
        """What all rows of a folder have in common."""
        return {"device": self.device, "repeats": self.repeats, "limit": self.limit, "seed": self.seed}


def run(
    options: SelectionOptions, progress: Callable[[str], None], command: str = "", overwrite: bool = False
) -> Results:
    """Measures the rows that the output folder does not have yet; calls `progress` with each one's name before. Raises
    ConfigError when the folder holds rows that were measured otherwise."""
    machine = environment(device_of(options.device))
    results = Results(SELECTION, options.output, options.settings(), machine, overwrite, command)
    for name, tokens, picks in options.cells():
        if not results.has((name, tokens, picks)):
            progress(f"{name}, N = {tokens}, k = {picks}")
            row = measure(name, tokens, picks, options.device, options.repeats, options.limit, options.seed)
            results.add(row.to_dict())
    return results


def _joined(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))
