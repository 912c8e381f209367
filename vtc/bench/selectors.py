"""`vtc bench selection`: what choosing a set costs, against the definition as a plain loop and against a random draw.

Inputs are random. For each selector, N tokens and k picks: the similarities (common to both forms), vtc's greedy loop,
the plain loop, and their totals, as medians over repeats in which the forms take turns. Times are this machine's.
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
from vtc.kernels.cosine import Cosines
from vtc.kernels.coverage import coverage_greedy
from vtc.kernels.diversity import maxmin_greedy, maxsum_greedy
from vtc.kernels.dpp import dpp_greedy

SIZES, PICKS = (256, 576, 1024, 2880, 4096, 16384), (64, 160, 320)
WIDTH, UNPROJECTED, WORDS = 4096, 1024, 15  # LLaVA-1.5-7B: projected, before the projector; a short question


@dataclass(frozen=True)
class SetSelector:
    """One way of choosing a set. similarities: computes from the inputs what the loops read; matrix: the same as the
    definition has it, of one unit, rows by tokens; fast: vtc's loop on similarities and inputs; plain: the definition
    on the matrix."""

    method: str
    similarities: Callable[[dict], object]
    matrix: Callable[[object, dict], Tensor]
    fast: Callable[[object, dict, int], Tensor]
    plain: Callable[[Tensor, int], Tensor]


def _weights(inputs: dict) -> Tensor:
    from vtc.strategies.mmtok import weights

    return weights(inputs["text"][None], inputs["projected"][None], inputs["unprojected"][None])


def _cosines(inputs: dict) -> Cosines:
    return Cosines(inputs["projected"][None])


def _square(cosines: Cosines, inputs: dict) -> Tensor:
    return cosines.x[0] @ cosines.x[0].T if cosines.matrix is None else cosines.matrix[0]


def _kernel(cosines: Cosines, inputs: dict) -> Tensor:
    return inputs["quality"][:, None] * _square(cosines, inputs) * inputs["quality"]


def _max_sum(cosines: Cosines, inputs: dict, k: int) -> Tensor:
    return maxsum_greedy(cosines, torch.zeros(1, dtype=torch.long, device=cosines.device), k)[0]


SELECTORS = {
    "coverage": SetSelector(
        "mmtok", _weights, lambda w, i: w[0].contiguous(), lambda w, i, k: coverage_greedy(w, k)[0], naive.coverage
    ),
    "max-min": SetSelector("divprune", _cosines, _square, lambda c, i, k: maxmin_greedy(c, k)[0], naive.max_min),
    "max-sum": SetSelector("todre", _cosines, _square, _max_sum, naive.max_sum),
    "dpp": SetSelector(
        "cdpruner", _cosines, _kernel, lambda c, i, k: dpp_greedy(c, i["quality"][None], k)[0], naive.dpp
    ),
}


@dataclass(frozen=True)
class SelectorRow:
    """One measurement, see `vtc.bench.selectors_run.DEFINITIONS`."""

    selector: str
    method: str
    tokens: int
    picks: int
    similarities: float
    loop: float
    total: float
    plain_loop: float | None
    plain_total: float | None
    loop_ratio: float | None
    total_ratio: float | None
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


def check_known(name: str) -> None:
    """Raises ConfigError for an unknown selector."""
    if name not in SELECTORS:
        raise ConfigError(f"selector {name!r} is unknown; possible: {', '.join(SELECTORS)}")


def measure(name: str, tokens: int, picks: int, device: str, repeats: int, limit: float, seed: int = 0) -> SelectorRow:
    """One row. limit: seconds that the plain loop may take, extrapolated from its first tenth of picks; a longer one is
    left out. Raises ConfigError for an unknown selector or more picks than tokens."""
    check_known(name)
    if not 1 <= picks <= tokens:
        raise ConfigError(f"{picks} picks of {tokens} tokens; possible: 1 to {tokens}")
    where, selector = torch.device(device), SELECTORS[name]
    inputs = inputs_of(tokens, where, seed)

    def timed(run: Callable[[], object]) -> tuple[float, object]:
        _wait(where)
        start = time.perf_counter()
        result = run()
        _wait(where)
        return time.perf_counter() - start, result

    matrix = selector.matrix(selector.similarities(inputs), inputs)
    seconds: dict[str, list[float]] = {"similarities": [], "loop": [], "plain": [], "random": []}
    plain = _fits(timed, selector, matrix, picks, limit)
    fast_picks = plain_picks = None
    for _ in range(repeats):
        elapsed, similarities = timed(lambda: selector.similarities(inputs))
        seconds["similarities"].append(elapsed)
        elapsed, fast_picks = timed(lambda values=similarities: selector.fast(values, inputs, picks))
        seconds["loop"].append(elapsed)
        if plain:
            elapsed, plain_picks = timed(lambda: selector.plain(matrix, picks))
            seconds["plain"].append(elapsed)
        seconds["random"].append(timed(lambda: torch.randperm(tokens, device=where)[:picks].sort().values)[0])
    median = {part: statistics.median(values) if values else None for part, values in seconds.items()}
    total = median["similarities"] + median["loop"]
    plain_total = median["similarities"] + median["plain"] if plain else None
    memory = peak_bytes(lambda: selector.fast(selector.similarities(inputs), inputs, picks), where)
    return SelectorRow(
        name, selector.method, tokens, picks, median["similarities"], median["loop"], total, median["plain"],
        plain_total, median["plain"] / median["loop"] if plain else None, plain_total / total if plain else None,
        median["random"], memory, bool(torch.equal(fast_picks.cpu(), plain_picks.cpu())) if plain else None,
    )  # fmt: skip


def _fits(timed: Callable, selector: SetSelector, matrix: Tensor, picks: int, limit: float) -> bool:
    """Whether the plain loop stays within the limit. Its steps get longer with the picks, so the time of a tenth of
    them is scaled up by more than ten."""
    tenth = max(1, picks // 10)
    return timed(lambda: selector.plain(matrix, tenth))[0] * (picks / tenth) ** 1.5 <= limit


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
