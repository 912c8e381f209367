"""Attention reductions and top-k against full-matrix definitions in float64, and the memory they may use."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from vtc.kernels.attention_reduce import attention_columns, attention_rows
from vtc.kernels.attention_reduce.reference import BLOCK
from vtc.kernels.topk import topk_sorted

RTOL = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-4, torch.bfloat16: 1e-4}


def make(b, h, hkv, m, n, d=8, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(b, h, m, d, generator=generator, dtype=torch.float64) * 2
    k = torch.randn(b, hkv, n, d, generator=generator, dtype=torch.float64) * 2
    return q.to(dtype), k.to(dtype)


def naive(q, k, visible=None, scale=None):
    """The full [B, H, M, N] matrix in float64; rows without a visible key are zero."""
    k = k.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q.double() @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if visible is None:
        return logits.softmax(-1)
    return logits.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0)


def tails(lengths, n):
    """Left-padded key mask [B, N]: True on the last `length` positions of a row."""
    return torch.arange(n) >= n - torch.tensor(lengths)[:, None]


def close(actual, expected, dtype=torch.float32):
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(actual.double(), expected, rtol=RTOL[dtype], atol=RTOL[dtype] * 1e-3)


@pytest.mark.parametrize("dtype", RTOL, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize(
    "b, h, hkv, m, n", [(2, 4, 4, 63, 63), (1, 6, 2, 5, 63), (1, 3, 1, 577, 577), (2, 2, 2, 1, 577)]
)
def test_definition(b, h, hkv, m, n, dtype):
    q, k = make(b, h, hkv, m, n, dtype=dtype)
    full = naive(q, k)
    close(attention_columns(q, k), full.mean((1, 2)), dtype)
    close(attention_columns(q, k, reduce_queries="sum", reduce_heads="sum"), full.sum((1, 2)), dtype)
    close(attention_rows(q, k), full.mean(1), dtype)
    close(attention_rows(q, k, reduce_heads="sum"), full.sum(1), dtype)
    close(attention_rows(q, k, reduce_heads="none"), full, dtype)


def test_scale():
    q, k = make(1, 2, 1, 9, 20)
    close(attention_columns(q, k, scale=0.05), naive(q, k, scale=0.05).mean((1, 2)))
    close(attention_rows(q, k, scale=0.05), naive(q, k, scale=0.05).mean(1))


@pytest.mark.parametrize("m, n", [(63, 63), (20, 63), (63, 20)])
def test_causal_columns(m, n):
    q, k = make(2, 4, 2, m, n)
    visible = torch.arange(n) <= torch.arange(m)[:, None] + n - m  # [M, N]
    close(attention_columns(q, k, causal=True), naive(q, k, visible).mean((1, 2)))


@pytest.mark.parametrize("per_sample", [False, True])
def test_causal_rows(per_sample):
    q, k = make(2, 4, 2, 5, 63)
    positions = torch.tensor([[0, 7, 62, -1, 100], [3, 3, 1, 61, 5]])
    positions = positions if per_sample else positions[0]
    visible = torch.arange(63) <= positions.expand(2, 5)[:, None, :, None]
    close(attention_rows(q, k, causal_positions=positions), naive(q, k, visible).mean(1))


def test_key_padding_with_an_empty_sample():
    q, k = make(3, 4, 2, 17, 63)
    mask = tails([63, 40, 0], 63)
    k[~mask[:, None].expand(-1, 2, -1)] = torch.nan  # whatever stands in padding must not leak
    full = naive(q, k.nan_to_num(0), mask[:, None, None])
    close(attention_columns(q, k, key_mask=mask), full.mean((1, 2)))
    close(attention_rows(q, k, key_mask=mask), full.mean(1))
    assert not attention_columns(q, k, key_mask=mask)[2].any()


def test_query_mask_with_key_mask_and_causal():
    q, k = make(3, 4, 2, 63, 63)
    keys, chosen = tails([63, 40, 0], 63), tails([5, 33, 0], 63)
    q[~chosen[:, None].expand(-1, 4, -1)] = torch.nan
    visible = keys[:, None, None] & (torch.arange(63) <= torch.arange(63)[:, None])
    full = naive(q.nan_to_num(0), k, visible) * chosen[:, None, :, None]
    expected = full.mean(1).sum(1) / chosen.sum(1).clamp_min(1)[:, None]
    options = {"query_mask": chosen, "key_mask": keys, "causal": True}
    close(attention_columns(q, k, **options), expected)
    close(attention_columns(q, k, **options, reduce_queries="sum"), full.mean(1).sum(1))


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_packed_equals_each_segment_alone(causal, as_tensor):
    bounds = [0, 16, 17, 17, 63, 100]
    q, k = make(1, 4, 2, 100, 100)
    chosen, keys = torch.rand(1, 100) < 0.6, torch.rand(1, 100) < 0.8
    options = {"causal": causal, "reduce_heads": "sum"}
    parts = [
        attention_columns(q[:, :, a:b], k[:, :, a:b], query_mask=chosen[:, a:b], key_mask=keys[:, a:b], **options)
        for a, b in pairwise(bounds)
    ]
    lengths = torch.tensor(bounds, dtype=torch.int32) if as_tensor else bounds
    whole = attention_columns(q, k, query_mask=chosen, key_mask=keys, cu_seqlens=lengths, **options)
    torch.testing.assert_close(whole, torch.cat(parts, 1))


@pytest.mark.parametrize("chunk", [1, 7, None])
def test_chunks_change_nothing(chunk):
    q, k = make(2, 6, 2, 63, 63)
    options = {"key_mask": tails([63, 50], 63), "causal": True}
    expected = attention_columns(q.double(), k.double(), chunk=63, **options)
    close(attention_columns(q, k, chunk=chunk, **options), expected)


def test_small_blocks_change_nothing(monkeypatch):
    q, k = make(2, 6, 2, 63, 63)
    expected = naive(q, k)
    for elements in (1, 63 * 3 * 5, 63 * 63 * 4):
        monkeypatch.setitem(BLOCK, "cpu", elements)
        close(attention_columns(q, k), expected.mean((1, 2)))
        close(attention_rows(q, k, reduce_heads="none"), expected)


def test_strided_inputs_autocast_and_autograd():
    q, k = make(1, 4, 2, 31, 31, dtype=torch.bfloat16)
    expected = naive(q, k).mean((1, 2))
    q, k = (x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k))  # as models hold them
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = attention_columns(q, k)
    close(actual, expected)
    assert not actual.requires_grad


def test_large_scores_stay_finite():
    q, k = make(1, 2, 2, 9, 9)
    assert attention_columns(q * 1e4, k * 1e4).sum().item() == pytest.approx(1, rel=1e-5)


def test_empty_sides():
    q, k = make(1, 2, 2, 4, 6)
    assert attention_columns(q[:, :, :0], k).eq(0).all()
    assert attention_rows(q[:, :, :0], k).shape == (1, 0, 6)
    assert attention_columns(q, k[:, :, :0]).shape == (1, 0)


class LargestOutput(TorchDispatchMode):
    """Records the largest number of elements in the output of any operation."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            self.numel = max(self.numel, x.numel() if isinstance(x, torch.Tensor) else 0)
        return out


@pytest.mark.parametrize("device, queries, bound", [("cpu", 64, 2**21), ("meta", 8192, 2**25)])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"key_mask": True, "query_mask": True}], ids=str)
def test_memory_of_columns(options, device, queries, bound):
    heads, n = 16, 8192
    q, k = torch.randn(1, heads, queries, 8, device=device), torch.randn(1, heads // 4, n, 8, device=device)
    masks = {"key_mask": n, "query_mask": queries}
    options = {
        o: torch.ones(1, masks[o], dtype=torch.bool, device=device) if o in masks else v for o, v in options.items()
    }
    with LargestOutput() as largest:
        attention_columns(q, k, **options)
    assert 0 < largest.numel <= bound < heads * queries * n


@pytest.mark.parametrize("device, rows, bound", [("cpu", 64, 2**21), ("meta", 8192, 2**26)])
def test_memory_of_rows(device, rows, bound):
    heads, n = 16, 8192
    q, k = torch.randn(1, heads, rows, 8, device=device), torch.randn(1, heads, n, 8, device=device)
    with LargestOutput() as largest:
        attention_rows(q, k, causal_positions=torch.arange(rows, device=device))
    assert 0 < largest.numel <= bound < heads * rows * n


@pytest.mark.parametrize(
    "change, words",
    [
        ({"queries": torch.zeros(2, 3, 4)}, "must be \\[B, H, M, D\\]"),
        ({"queries": torch.zeros(1, 3, 5, 8)}, "3 query heads.*2 key heads"),
        ({"queries": torch.zeros(2, 4, 5, 8)}, "B=2, D=8"),
        ({"key_mask": torch.ones(1, 5, dtype=torch.bool)}, "key_mask must be bool \\[1, 6\\]"),
        ({"key_mask": torch.ones(1, 6)}, "float32"),
        ({"query_mask": torch.ones(1, 6, dtype=torch.bool)}, "query_mask must be bool \\[1, 5\\]"),
        ({"reduce_heads": "max"}, "'max'.*mean, sum"),
        ({"reduce_queries": "none"}, "'none'.*mean, sum"),
        ({"cu_seqlens": [0, 6]}, "M=5, N=6"),
        ({"chunk": 0}, "chunk=0"),
    ],
)
def test_errors_name_value_and_what_is_possible(change, words):
    arguments = {"queries": torch.zeros(1, 4, 5, 8), "keys": torch.zeros(1, 2, 6, 8)} | change
    with pytest.raises(ValueError, match=words):
        attention_columns(**arguments)


@pytest.mark.parametrize("bounds", [[0], [0, 5], [1, 6], [0, 4, 3, 6]])
def test_bad_segments(bounds):
    with pytest.raises(ValueError, match="from 0 to N=6"):
        attention_columns(*make(1, 2, 2, 6, 6), cu_seqlens=bounds)


def test_bad_causal_positions():
    with pytest.raises(ValueError, match="\\[5\\] or \\[2, 5\\]"):
        attention_rows(*make(2, 2, 2, 5, 6), causal_positions=torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_topk_ties_go_to_the_lower_index(dtype):
    scores = torch.tensor([[1, 3, 3, 0, 3], [0, 0, 0, 0, 0]], dtype=dtype)
    assert topk_sorted(scores, 2).tolist() == [[1, 2], [0, 1]]
    assert topk_sorted(scores, 4).tolist() == [[0, 1, 2, 4], [0, 1, 2, 3]]
    assert topk_sorted(scores, 5).tolist() == [[0, 1, 2, 3, 4]] * 2
    assert topk_sorted(scores, 0).shape == (2, 0)
    assert topk_sorted(scores, 0).dtype == torch.int64


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-torch.inf, -1.0, -0.0, 0.0, 0.5, torch.inf]), min_size=1, max_size=80), st.data())
def test_topk_equals_a_stable_sort_in_python(values, data):
    k = data.draw(st.integers(0, len(values)))
    order = sorted(range(len(values)), key=lambda i: -values[i])
    assert topk_sorted(torch.tensor([values]), k).tolist() == [sorted(order[:k])]


def test_topk_errors():
    with pytest.raises(ValueError, match="k=4 is outside 0..3"):
        topk_sorted(torch.zeros(1, 3), 4)
    with pytest.raises(ValueError, match="k=-1"):
        topk_sorted(torch.zeros(1, 3), -1)
    with pytest.raises(ValueError, match="\\[B, N\\]"):
        topk_sorted(torch.zeros(3), 1)
