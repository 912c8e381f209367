"""`vtc bench selection`: what choosing a set costs, against released code or the definition, and a random draw.

Inputs are random. For each selector, N tokens and k picks: seconds from features to picks, of vtc and of what it is
compared with, as medians over repeats in which the two take turns. Times are this machine's.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from vtc.bench import naive
from vtc.bench.memory import peak_bytes
from vtc.core.errors import ConfigError
from vtc.kernels.coverage import coverage_greedy
from vtc.kernels.diversity import maxmin_greedy, maxsum_greedy
from vtc.kernels.dpp import dpp_greedy
from vtc.kernels.gram import cosine_matrix

SIZES, PICKS = (256, 576, 1024, 2880, 4096, 16384), (64, 160, 320)
WIDTH, UNPROJECTED, WORDS = 4096, 1024, 15  # LLaVA-1.5-7B: projected, before the projector; a short question
AGAINST = ("released", "definition")
Chooser = Callable[[dict, int], Tensor]


@dataclass(frozen=True)
class SetSelector:
    """One way of choosing a set, each from inputs and k to picks [k]: vtc's, the definition as a plain loop, and the
    steps of the released code (None: none was released)."""

    method: str
    vtc: Chooser
    definition: Chooser
    released: Chooser | None = None


def _weights(inputs: dict) -> Tensor:
    from vtc.strategies.mmtok import weights

    return weights(inputs["text"][None], inputs["projected"][None], inputs["unprojected"][None])


def _cosines(inputs: dict) -> Tensor:
    return cosine_matrix(inputs["projected"][None])[0]


def _kernel(inputs: dict) -> Tensor:
    return inputs["quality"][:, None] * _cosines(inputs) * inputs["quality"]


def _max_sum(inputs: dict, k: int) -> Tensor:
    features = inputs["projected"][None]
    return maxsum_greedy(features, torch.zeros(1, dtype=torch.long, device=features.device), k)[0]


SELECTORS = {
    "coverage": SetSelector(
        "mmtok",
        lambda i, k: coverage_greedy(_weights(i), k)[0],
        lambda i, k: naive.coverage(_weights(i)[0].contiguous(), k),
        lambda i, k: naive.released_mmtok(i["text"], i["projected"], i["unprojected"], k),
    ),
    "max-min": SetSelector(
        "divprune",
        lambda i, k: maxmin_greedy(i["projected"][None], k)[0],
        lambda i, k: naive.max_min(_cosines(i), k),
        lambda i, k: naive.released_divprune(i["projected"], k),
    ),
    "max-sum": SetSelector("todre", _max_sum, lambda i, k: naive.max_sum(_cosines(i), k)),
    "dpp": SetSelector(
        "cdpruner",
        lambda i, k: dpp_greedy(i["projected"][None], i["quality"][None], k)[0],
        lambda i, k: naive.dpp(_kernel(i), k),
        lambda i, k: naive.released_cdpruner(i["projected"], i["quality"], k),
    ),
}


@dataclass(frozen=True)
class SelectorRow:
    """One measurement, see `vtc.bench.selectors_run.DEFINITIONS`."""

    selector: str
    method: str
    tokens: int
    picks: int
    vtc: float
    other: float | None
    ratio: float | None
    random: float
    memory: int
    equal: bool | None

    def to_dict(self) -> dict:
        """As plain data."""
        return asdict(self)


def inputs_of(tokens: int, device: torch.device, seed: int = 0) -> dict[str, Tensor]:
    """Random features with some structure: neighbours in the raster are alike, as in a picture."""
    generator = torch.Generator().manual_seed(seed)

    def features(n: int, width: int) -> Tensor:
        themes = torch.randn(max(2, n // 12), width, generator=generator)
        mix = torch.rand(n, len(themes), generator=generator).pow(8)
        return (mix @ themes / mix.sum(1, keepdim=True) + 0.3 * torch.randn(n, width, generator=generator)).to(device)

    return {
        "projected": features(tokens, WIDTH),
        "unprojected": features(tokens, UNPROJECTED),
        "text": torch.randn(WORDS, WIDTH, generator=generator).to(device),
        "quality": torch.rand(tokens, generator=generator).add(0.1).to(device),
    }


def check_known(name: str, against: str) -> None:
    """Raises ConfigError for an unknown selector or comparison, and for one without released code."""
    if name not in SELECTORS:
        raise ConfigError(f"selector {name!r} is unknown; possible: {', '.join(SELECTORS)}")
    if against not in AGAINST:
        raise ConfigError(f"--against {against!r} is unknown; possible: {', '.join(AGAINST)}")
    if against == "released" and SELECTORS[name].released is None:
        released = [name for name, selector in SELECTORS.items() if selector.released is not None]
        raise ConfigError(f"of {name} ({SELECTORS[name].method}) no code was released; possible: {', '.join(released)}")


def measure(
    name: str, tokens: int, picks: int, device: str, repeats: int, limit: float, seed: int = 0,
    against: str = "definition",
) -> SelectorRow:  # fmt: skip
    """One row. limit: seconds that the other form may take, extrapolated from its first tenth of picks; a longer one is
    left out. Raises ConfigError for an unknown selector or more picks than tokens."""
    check_known(name, against)
    if not 1 <= picks <= tokens:
        raise ConfigError(f"{picks} picks of {tokens} tokens; possible: 1 to {tokens}")
    where, selector = torch.device(device), SELECTORS[name]
    inputs, other = inputs_of(tokens, where, seed), getattr(selector, against)

    def timed(run: Callable[[], object]) -> tuple[float, object]:
        _wait(where)
        start = time.perf_counter()
        result = run()
        _wait(where)
        return time.perf_counter() - start, result

    seconds: dict[str, list[float]] = {"vtc": [], "other": [], "random": []}
    fits = _fits(timed, other, inputs, picks, limit)
    selector.vtc(inputs, picks)
    picked = expected = None
    for _ in range(repeats):
        elapsed, picked = timed(lambda: selector.vtc(inputs, picks))
        seconds["vtc"].append(elapsed)
        if fits:
            elapsed, expected = timed(lambda: other(inputs, picks))
            seconds["other"].append(elapsed)
        seconds["random"].append(timed(lambda: torch.randperm(tokens, device=where)[:picks].sort().values)[0])
    median = {part: statistics.median(values) if values else None for part, values in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["vtc"], seconds["other"])]
    return SelectorRow(
        name, selector.method, tokens, picks, median["vtc"], median["other"],
        statistics.median(ratios) if fits else None, median["random"],
        peak_bytes(lambda: selector.vtc(inputs, picks), where),
        bool(torch.equal(picked.cpu(), expected.cpu())) if fits else None,
    )  # fmt: skip


def _fits(timed: Callable, other: Chooser, inputs: dict, picks: int, limit: float) -> bool:
    """Whether the other form stays within the limit. Its steps get longer with the picks, so the time of a tenth of
    them is scaled up by more than ten."""
    tenth = max(1, picks // 10)
    return timed(lambda: other(inputs, tenth))[0] * (picks / tenth) ** 1.5 <= limit


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
