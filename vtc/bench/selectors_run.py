"""What `vtc bench selection` measures and stores in results.json."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from vtc.bench.results import Kind, Results, environment
from vtc.bench.selectors import check_known, measure
from vtc.bench.subject import device_of
from vtc.core.errors import ConfigError
from vtc.io.shapes import number, one_of, or_none, record, text, whole

DEFINITIONS = {
    "vtc": "seconds of vtc from features to picks, median over the repeats",
    "other": "seconds of what it is compared with (setting `against`): the steps of the released code, or the "
    "definition as a plain loop; null where that would take longer than the limit",
    "ratio": "other over vtc, median of the repeats' ratios",
    "random": "seconds of a random draw of as many tokens",
    "memory": "peak bytes of vtc beyond its inputs",
    "equal": "the picks are the other's, in the same order",
}
_row = record(
    {
        "selector": text, "method": text, "tokens": whole(1), "picks": whole(1),
        **dict.fromkeys(("vtc", "random"), number(0)), "memory": whole(),
        **dict.fromkeys(("other", "ratio"), or_none(number(0))), "equal": or_none(one_of(True, False)),
    }
)  # fmt: skip


def _grid(row: dict) -> dict:
    return {"selectors": row["selector"], "tokens": row["tokens"], "picks": row["picks"]}


SELECTION = Kind(
    "vtc.bench.selection/3", _row, ("selector", "tokens", "picks"), DEFINITIONS, _grid, varies="their times"
)
"""The results of `vtc bench selection`."""


@dataclass(frozen=True)
class SelectionOptions:
    """The command line. limit: seconds that the other form may take; against: see `vtc.bench.selectors.AGAINST`;
    threads: of torch on a CPU (default: as it is). Raises ConfigError for what is unknown or cannot be."""

    output: Path
    selectors: tuple[str, ...]
    sizes: tuple[int, ...]
    picks: tuple[int, ...]
    device: str = "cpu"
    repeats: int = 3
    limit: float = 60
    seed: int = 0
    against: str = "definition"
    threads: int | None = None

    def __post_init__(self):
        for name in self.selectors:
            check_known(name, self.against)
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
        names = ("device", "repeats", "limit", "seed", "against")
        return {name: getattr(self, name) for name in names}


def run(
    options: SelectionOptions, progress: Callable[[str], None], command: str = "", overwrite: bool = False
) -> Results:
    """Measures the rows that the output folder does not have yet; calls `progress` with each one's name before. Raises
    ConfigError when the folder holds rows that were measured otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or before)
    try:
        return _measured(options, progress, command, overwrite)
    finally:
        torch.set_num_threads(before)


def _measured(options: SelectionOptions, progress: Callable[[str], None], command: str, overwrite: bool) -> Results:
    machine = environment(device_of(options.device))
    results = Results(SELECTION, options.output, options.settings(), machine, overwrite, command)
    for name, tokens, picks in options.cells():
        if not results.has((name, tokens, picks)):
            progress(f"{name}, N = {tokens}, k = {picks}")
            row = measure(
                name, tokens, picks, options.device, options.repeats, options.limit, options.seed, options.against
            )
            results.add(row.to_dict())
    return results


def _joined(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))
