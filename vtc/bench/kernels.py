"""`vtc.bench.kernels`: every Triton kernel against its torch reference, at shapes of real models: error, time, memory.

Inputs are random. Both forms run on the same device in turns; seconds are medians. A kernel passes when its numbers are
within the stated tolerance of the reference's, or its picks are the reference's or as good.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from vtc.bench.memory import peak_bytes
from vtc.kernels import backend
from vtc.kernels.attention_reduce import attention_columns, attention_rows
from vtc.kernels.cosine import Cosines
from vtc.kernels.coverage import coverage_greedy
from vtc.kernels.diversity import maxmin_greedy, maxsum_greedy
from vtc.kernels.dpp import dpp_greedy
from vtc.kernels.gram import cosine_matrix
from vtc.kernels.topk import topk_gather, topk_sorted
from vtc.kernels.transition import transition_variation

TOLERANCE = 1e-3  # of what is near the largest number of a result; everything is accumulated in float32


@dataclass(frozen=True)
class KernelCase:
    """A kernel at a shape. make: inputs on a device in a dtype; run: of these; value: of picks, which may differ in
    near-ties (the larger the better), else None: results are compared number by number."""

    kernel: str
    shape: str
    make: Callable[[torch.device, torch.dtype], tuple]
    run: Callable[..., Tensor]
    value: Callable[..., float] | None = None


@dataclass(frozen=True)
class KernelRow:
    """One measurement. error: relative to the largest number of the reference, or of the value that picks reach; equal:
    the results are the reference's to the last bit. Seconds are medians; bytes are peaks beyond the inputs."""

    kernel: str
    shape: str
    dtype: str
    error: float
    equal: bool
    passed: bool
    triton_seconds: float
    reference_seconds: float
    triton_bytes: int
    reference_bytes: int

    def to_dict(self) -> dict:
        """As plain data."""
        return asdict(self)


def _normal(*shape: int) -> Callable[[torch.device, torch.dtype], Tensor]:
    def make(device: torch.device, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator(device).manual_seed(sum(shape))
        return torch.randn(shape, device=device, generator=generator, dtype=torch.float32).to(dtype)

    return make


def _attention(batch: int, heads: int, kv_heads: int, rows: int, n: int, width: int) -> Callable:
    def make(device: torch.device, dtype: torch.dtype) -> tuple:
        # As models hold them: heads are a view of the last axis.
        q = _normal(batch, rows, heads, width)(device, dtype).transpose(1, 2)
        return q, _normal(batch, n, kv_heads, width)(device, dtype).transpose(1, 2)

    return make


def _packed(lengths: list[int], heads: int, width: int) -> Callable:
    bounds = [sum(lengths[:i]) for i in range(len(lengths) + 1)]

    def make(device: torch.device, dtype: torch.dtype) -> tuple:
        return *_attention(1, heads, heads, bounds[-1], bounds[-1], width)(device, dtype), bounds

    return make


def _weights(n: int, rows: int) -> Callable:
    def make(device: torch.device, dtype: torch.dtype) -> tuple:
        logits = _normal(1, n, rows)(device, torch.float32)
        return (logits.softmax(1).transpose(1, 2),)

    return make


def _cosines(batch: int, n: int, width: int) -> Callable:
    def make(device: torch.device, dtype: torch.dtype) -> tuple:
        return Cosines(_normal(batch, n, width)(device, dtype)), torch.rand(batch, n, device=device) + 0.1

    return make


def _covered(picks: Tensor, weights: Tensor) -> float:
    return float(weights[0][:, picks[0]].amax(1).sum())


def _spread(picks: Tensor, cosines: Cosines, quality: Tensor) -> float:
    chosen = cosines.matrix[0][picks[0]][:, picks[0]]
    return float((1 - chosen).fill_diagonal_(2).min())


def _apart(picks: Tensor, cosines: Cosines, quality: Tensor) -> float:
    return -float(cosines.matrix[0][picks[0]][:, picks[0]].double().sum())


def _volume(picks: Tensor, cosines: Cosines, quality: Tensor) -> float:
    q = quality[0][picks[0]].double()
    return float(torch.linalg.slogdet(q[:, None] * cosines.matrix[0][picks[0]][:, picks[0]].double() * q)[1])


def cases(small: bool = False) -> Iterator[KernelCase]:
    """All cases. small: sizes for a trial run in Triton's interpreter."""
    n, k, d = (70, 9, 24) if small else (2880, 320, 4096)
    long = (63,) if small else (2048, 4096, 8192, 16384)
    side, heads = (33, 2) if small else (577, 16)
    for batch in (1,) if small else (1, 5, 40):
        make = _attention(batch, heads, heads, side, side, 64)
        yield KernelCase("columns", f"CLIP B={batch} H={heads} N={side} D=64", make, attention_columns)
    for length in long:
        make = _attention(1, heads, heads, length, length, 80)
        yield KernelCase("columns", f"Qwen-VL B=1 H={heads} N={length} D=80", make, attention_columns)
    lengths = [17, 0, 46] if small else [4096, 2304, 6400, 1024]
    yield KernelCase("columns", f"packed {lengths} D=80", _packed(lengths, heads, 80), _columns_packed)
    rows, kv, query = (40, 1, 2) if small else (2880, 4, 28)
    make = _attention(1, query, kv, rows, rows + 64, 128)
    yield KernelCase("columns", f"causal M={rows} N={rows + 64} H={query}/{kv} D=128", make, _columns_causal)
    yield KernelCase(
        "rows", f"[CLS] B=5 H={heads} N={side} D=64", _attention(5, heads, heads, 1, side, 64), attention_rows
    )
    yield KernelCase("rows", f"last H={query}/{kv} N={n} D=128", _attention(1, query, kv, 1, n, 128), attention_rows)
    yield KernelCase(
        "rows", f"text R=64 H={query}/{kv} N={n} D=128", _attention(1, query, kv, 64, n, 128), attention_rows
    )
    yield KernelCase("top-k", f"B=8 N={n} k={k}", lambda v, t: (_normal(8, n)(v, torch.float32), k), topk_sorted)
    yield KernelCase("top-k, gather", f"4 images of {n}, D={d}", _ragged(n, d, k), _gathered)
    yield KernelCase(
        "transition", f"S={n} D={d}", lambda v, t: (_normal(1, n, d)(v, t), _normal(1, n, d)(v, t)), _transition
    )
    yield KernelCase("cosines", f"N={n} D={d}", lambda v, t: (_normal(1, n, d)(v, t),), cosine_matrix)
    yield KernelCase("max-min", f"N={n} k={k}", _cosines(1, n, d), lambda c, q: maxmin_greedy(c, k), _spread)
    yield KernelCase("max-min", f"B=8 N={n} k={k}", _cosines(8, n, d), lambda c, q: maxmin_greedy(c, k), _spread)
    yield KernelCase("max-sum", f"N={n} k={k}", _cosines(1, n, d), lambda c, q: _sum(c, k), _apart)
    yield KernelCase(
        "coverage", f"R={n + 15} N={n} k={k}", _weights(n, n + 15), lambda w: coverage_greedy(w, k), _covered
    )
    yield KernelCase("dpp", f"N={n} k={k}", _cosines(1, n, d), lambda c, q: dpp_greedy(c, q, k), _volume)


def _columns_packed(q: Tensor, k: Tensor, bounds: list[int]) -> Tensor:
    return attention_columns(q, k, cu_seqlens=bounds)


def _columns_causal(q: Tensor, k: Tensor) -> Tensor:
    return attention_columns(q, k, causal=True)


def _transition(x: Tensor, y: Tensor) -> Tensor:
    return transition_variation(x, y)


def _sum(cosines: Cosines, k: int) -> Tensor:
    return maxsum_greedy(cosines, torch.zeros(1, dtype=torch.long, device=cosines.device), k)


def _ragged(n: int, width: int, k: int) -> Callable:
    bounds, counts = [0, n, n + 7, 2 * n, 2 * n + n // 3], [k, 3, k, k // 3]

    def make(device: torch.device, dtype: torch.dtype) -> tuple:
        return _normal(bounds[-1])(device, torch.float32), counts, bounds, _normal(bounds[-1], width)(device, dtype)

    return make


def _gathered(scores: Tensor, counts: list[int], bounds: list[int], features: Tensor) -> Tensor:
    return topk_gather(scores, counts, bounds, features)[1]


def measure(case: KernelCase, device: torch.device, dtype: torch.dtype, repeats: int = 20) -> KernelRow:
    """One row: both forms in turns after a first run of each, which compiles and tunes."""
    inputs = case.make(device, dtype)
    forms = ("reference", "triton")
    results, peaks, seconds = {}, {}, {form: [] for form in forms}
    for form in forms:
        with backend.use(form):
            results[form] = case.run(*inputs)
            peaks[form] = peak_bytes(lambda: case.run(*inputs), device)
    for _ in range(repeats):
        for form in forms:
            with backend.use(form):
                seconds[form].append(_seconds(lambda: case.run(*inputs), device))
    expected, actual = results["reference"], results["triton"]
    equal = torch.equal(expected, actual)
    error = 0.0 if equal else _error(case, inputs, expected, actual)
    half = [statistics.median(seconds[form]) for form in reversed(forms)]
    name = str(dtype).removeprefix("torch.")
    peak = [peaks[form] for form in reversed(forms)]
    return KernelRow(case.kernel, case.shape, name, error, equal, error <= TOLERANCE, *half, *peak)


def _error(case: KernelCase, inputs: tuple, expected: Tensor, actual: Tensor) -> float:
    if case.value is None:
        largest = expected.double().abs().max().clamp_min(1e-30)
        error = ((expected.double() - actual.double()).abs().max() / largest).item()
        return error if error == error else float("inf")
    best, reached = case.value(expected, *inputs), case.value(actual, *inputs)
    return max(0.0, best - reached) / max(abs(best), 1e-12)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    run()
    stop.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(stop) / 1000
