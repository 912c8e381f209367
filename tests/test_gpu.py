"""What only a GPU can show: Triton kernels at large shapes, on strided inputs, within memory, and in patched models.

Skipped without a CUDA device. `make gpu-check` runs it with the kernels' other tests and times them.
"""

import warnings
from collections import Counter

import pytest
import torch

import vtc
from tests.helpers import build, inputs_of
from tests.helpers_device import is_masked, ours
from tests.helpers_triton import both
from vtc.kernels import backend
from vtc.kernels.attention_reduce import attention_columns, attention_rows
from vtc.kernels.cosine import Cosines
from vtc.kernels.coverage import coverage_greedy
from vtc.kernels.diversity import maxmin_greedy, maxsum_greedy
from vtc.kernels.dpp import dpp_greedy
from vtc.kernels.topk import topk_sorted
from vtc.kernels.transition import transition_variation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MIB = 2**20


def normal(*shape, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, device="cuda", generator=generator).to(dtype)


def heads(batch, n, count, width, seed=0, dtype=torch.bfloat16):
    """[B, H, N, D] as a model holds it: a transposed view, here also with a gap between tokens."""
    return (
        normal(batch, n, 2 * count * width, seed=seed, dtype=dtype)[..., : count * width]
        .unflatten(2, (count, width))
        .transpose(1, 2)
    )


def peak(run) -> int:
    """Bytes at most allocated by `run` on top of what there is, the second time (the first compiles and tunes)."""
    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("n, width", [(577, 64), (2881, 64), (4096, 80), (10007, 72)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_columns_and_rows_at_length(n, width, dtype):
    q, k = heads(2, n, 4, width, 0, dtype), heads(2, n, 2, width, 1, dtype)
    mask = torch.rand(2, n, device="cuda") < 0.9
    for options in ({}, {"causal": True}, {"key_mask": mask, "query_mask": mask}):
        expected, found = both(lambda o=options: attention_columns(q, k, **o))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 / n)
    expected, found = both(lambda: attention_rows(q[:, :, -3:], k, key_mask=mask))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 / n)


def test_packed_columns_at_length():
    lengths = [4096, 1, 2305, 6400, 0, 77]
    bounds = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
    n = sum(lengths)
    q, k = heads(1, n, 4, 80), heads(1, n, 4, 80, 1)
    expected, found = both(lambda: attention_columns(q, k, cu_seqlens=bounds))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"causal": True}], ids=str)
def test_memory_of_scoring(options):
    """16 heads over 16384 patches are 16 GiB as a matrix; here it is numbers per head and token."""
    q, k = heads(1, 16384, 16, 80), heads(1, 16384, 16, 80, 1)
    with backend.use("triton"):
        assert peak(lambda: attention_columns(q, k, **options)) < 64 * MIB
        assert peak(lambda: attention_rows(q[:, :, :1], k)) < 64 * MIB


def test_memory_of_transition():
    x, y = normal(1, 16384, 4096), normal(1, 16384, 4096, seed=1)
    with backend.use("triton"):
        assert peak(lambda: transition_variation(x, y)) < 4 * MIB
    expected, found = both(lambda: transition_variation(x, y))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("n", [2881, 16384, 40000])
def test_topk_at_length(n):
    scores = normal(8, n, dtype=torch.float32)
    for values in (scores, scores.round(decimals=1)):  # few distinct values: ties everywhere
        expected, found = both(lambda v=values: topk_sorted(v, n // 4))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("n, k", [(2881, 320), (4096, 1000)])
def test_sets_at_length(n, k):
    """Max-min and max-sum read the same matrix and pick the same; the others reach the same value."""
    cosines = Cosines(normal(3, n, 1024))
    first = torch.tensor([0, 5, n - 1], device="cuda")
    for run in (lambda: maxmin_greedy(cosines, k), lambda: maxsum_greedy(cosines, first, k)):
        expected, found = both(run)
        assert torch.equal(found, expected)
    weights = normal(2, n, n + 15, dtype=torch.float32).softmax(1).transpose(1, 2)
    expected, found = both(lambda: coverage_greedy(weights, k))
    reached = [float(weights[0][:, picks[0]].amax(1).sum()) for picks in (expected, found)]
    assert reached[1] == pytest.approx(reached[0], rel=1e-5)
    quality = torch.rand(3, n, device="cuda") + 0.1
    expected, found = both(lambda: dpp_greedy(cosines, quality, k // 2))
    assert (expected == found).float().mean() > 0.9
    assert len(found[0].unique()) == k // 2


def test_results_are_the_same_every_time():
    q, k = heads(1, 4096, 8, 80), heads(1, 4096, 8, 80, 1)
    with backend.use("triton"):
        runs = [attention_columns(q, k) for _ in range(5)]
    assert all(torch.equal(run, runs[0]) for run in runs)


def on_gpu(inputs):
    return {key: x.cuda() for key, x in inputs.items()}


@pytest.mark.parametrize("strategy", ["hiprune", "vtc_cls", "divprune", "todre", "fastv", "transprune"])
@pytest.mark.parametrize("case", vtc.families())
def test_patched_models_choose_alike(case, strategy):
    """The same tokens stay with Triton as with torch, and generate() writes the same."""
    model, inputs = build(case, torch.float32).cuda(), on_gpu(inputs_of(case, dtype=torch.float32))
    found = {}
    with vtc.patched(model, strategy):
        for kernels in ("reference", "triton"):
            with backend.use(kernels):
                ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
            found[kernels] = [image.kept.tolist() for image in vtc.report(model).images], ids.tolist()
    assert found["reference"] == found["triton"]


@pytest.mark.parametrize("case", ["llava", "qwen2_5_vl"])
def test_waits_as_counted_without_a_gpu(case):
    """CUDA's own warnings of waits, for one prompt: none in files of vtc but for reading Qwen's sizes and counts."""
    model, inputs = build(case, torch.float32).cuda(), on_gpu(inputs_of(case, (1,), torch.float32))
    budget = (0 if case == "llava" else 2) + is_masked(model, inputs)
    with vtc.patched(model, "hiprune"):
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model.generate(**inputs, max_new_tokens=3, do_sample=False)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    own = Counter(f"{w.filename}:{w.lineno}" for w in caught if ours(w.filename))
    assert own.total() <= budget, own
