"""Attention reductions in Triton against the reference: sizes, dtypes, masks, packed segments, layouts, the compiler.

Sums of probabilities are compared relative to the largest, because a tile's order of addition differs: 2e-5 where the
inputs are float32, 1e-4 with 16-bit inputs on a GPU whose products round differently.
"""

import pytest
import torch

import vtc.kernels.attention_reduce.triton as implementation
from tests.helpers_triton import DEVICE, DTYPES, both
from vtc.kernels import backend
from vtc.kernels.attention_reduce import attention_columns, attention_rows

TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-4, torch.bfloat16: 1e-4}
pytestmark = [pytest.mark.product(cases=1), pytest.mark.usefixtures("poisoned")]
FULL = pytest.mark.full


def make(b, h, hkv, m, n, d=16, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(b, m, h, d, generator=generator) * 2
    k = torch.randn(b, n, hkv, d, generator=generator) * 2
    return tuple(x.to(DEVICE, dtype).transpose(1, 2) for x in (q, k))  # [B, H, M, D] as models hold them


def mask(*shape, share=0.7, seed=1):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share).to(DEVICE)


def agree(run, tolerance=2e-5):
    expected, actual = both(run)
    assert actual.dtype == torch.float32
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())
    return actual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("b, h, hkv, m, n, d", [(2, 2, 1, 63, 100, 72), (1, 3, 1, 5, 63, 16), (1, 2, 2, 1, 1, 32)])
def test_dtypes_and_shapes(b, h, hkv, m, n, d, dtype):
    q, k = make(b, h, hkv, m, n, d, dtype)
    agree(lambda: attention_columns(q, k), TOLERANCE[dtype])
    agree(lambda: attention_columns(q, k, reduce_queries="sum", reduce_heads="sum"), TOLERANCE[dtype])
    for reduce_heads in ("mean", "sum", "none"):
        agree(lambda heads=reduce_heads: attention_rows(q[:, :, :3], k, reduce_heads=heads), TOLERANCE[dtype])


@pytest.mark.parametrize(
    "m, n", [(577, 577), pytest.param(40, 2881, marks=FULL), pytest.param(2881, 40, marks=FULL), (1000, 63)]
)
def test_long_sides(m, n):
    """More than a tile, sides that are divided into spans, and lengths that no tile divides."""
    q, k = make(1, 1, 1, m, n)
    agree(lambda: attention_columns(q, k))
    agree(lambda: attention_rows(q[:, :, :2], k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [8, 80, 320])
def test_widths(d, dtype):
    q, k = make(1, 2, 1, 20, 30, d, dtype)
    agree(lambda: attention_columns(q, k), TOLERANCE[dtype])
    agree(lambda: attention_rows(q[:, :, :3], k), TOLERANCE[dtype])


@pytest.mark.parametrize("m, n", [(100, 100), (20, 150), (100, 30)])
def test_causal_with_masks(m, n):
    """Whatever stands in padding, NaN too, does not leak; a sample without keys gets zeros."""
    q, k = make(2, 4, 2, m, n)
    chosen, keys = mask(2, m), mask(2, n, seed=2)
    keys[1] = False
    q = q.masked_fill(~chosen[:, None, :, None], torch.nan)
    k = k.masked_fill(~keys[:, None, :, None], torch.nan)
    agree(lambda: attention_columns(q.nan_to_num(0), k.nan_to_num(0), causal=True))
    options = {"query_mask": chosen, "key_mask": keys, "causal": True}
    agree(lambda: attention_columns(q, k, **options))
    actual = agree(lambda: attention_columns(q, k, reduce_queries="sum", **options))
    assert not actual[1].any()
    assert not actual[0][~keys[0]].any()


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"masks": True}, {"causal": True, "masks": True}], ids=str)
def test_packed(options, as_tensor):
    bounds = [0, 16, 17, 17, 93, 150]
    q, k = make(1, 2, 1, 150, 150)
    options = dict(options)
    if options.pop("masks", False):
        options |= {"query_mask": mask(1, 150), "key_mask": mask(1, 150, seed=2)}
        options["query_mask"][:, 20:93] = False
    lengths = torch.tensor(bounds, device=DEVICE) if as_tensor else bounds
    agree(lambda: attention_columns(q, k, cu_seqlens=lengths, **options))
    agree(lambda: attention_columns(q, k, cu_seqlens=lengths, reduce_queries="sum", **options))


def test_segments_that_a_tensor_gets_wrong_stay_inside():
    """Their values are not checked, but they lead no kernel outside of the tensors."""
    q, k = make(1, 1, 1, 70, 70)
    with backend.use("triton"):
        actual = attention_columns(q, k, cu_seqlens=torch.tensor([-5, 30, 20, 40, 900], device=DEVICE))
        short = attention_columns(q, k, cu_seqlens=torch.tensor([0, 30], device=DEVICE))
    assert actual.isfinite().all()
    assert not short[:, 30:].any()


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_rows_with_positions_and_mask(per_sample, dtype):
    q, k = make(2, 6, 2, 5, 100)
    keys = mask(2, 100)
    k = k.masked_fill(~keys[:, None, :, None], torch.nan)
    positions = torch.tensor([[0, 7, 62, -1, 200], [3, 3, 1, 61, 5]], dtype=dtype, device=DEVICE)
    options = {"causal_positions": positions if per_sample else positions[0], "key_mask": keys}
    for reduce_heads in ("mean", "none"):
        actual = agree(lambda heads=reduce_heads: attention_rows(q, k, reduce_heads=heads, **options))
        assert not actual[0, ..., 3, :].any()


def test_rows_in_parts(monkeypatch):
    """Scores of few rows are held at a time; rows of 40 heads fill several tiles."""
    q, k = make(1, 40, 2, 5, 70)
    monkeypatch.setattr(implementation, "SCRATCH", 40 * 70 * 2)
    for reduce_heads in ("mean", "none"):
        agree(lambda heads=reduce_heads: attention_rows(q, k, reduce_heads=heads))


@pytest.mark.parametrize("scale", [0.05, -0.3, 0.0])
def test_scale(scale):
    q, k = make(1, 2, 2, 30, 70)
    agree(lambda: attention_columns(q, k, scale=scale))
    agree(lambda: attention_rows(q[:, :, :3], k, scale=scale))


def test_large_scores_stay_finite():
    q, k = make(1, 2, 2, 20, 100)
    for factor in (1e2, 1e4):
        with backend.use("triton"):
            columns, rows = attention_columns(q * factor, k * factor), attention_rows(q * factor, k * factor)
        assert columns.sum().item() == pytest.approx(1, rel=1e-3)
        assert rows.sum(-1).allclose(torch.ones(1, 20, device=DEVICE), rtol=1e-3)


@pytest.mark.parametrize("name", ["plain", "causal", "packed", "masked"])
def test_given_log_sum_exp(name):
    """With the norms known, the answer is the same without the first pass, also as a view of [B, M, H]."""
    q, k = make(1, 4, 2, 90, 90, dtype=torch.bfloat16)
    place = torch.arange(90, device=DEVICE)
    segment, keys = (place >= 40).int(), mask(1, 90)
    chosen = mask(1, 90, seed=4)
    see = {
        "plain": place[None] >= 0,
        "causal": place[None] <= place[:, None],
        "packed": segment[None] == segment[:, None],
        "masked": keys,
    }[name]
    options = {
        "plain": {}, "causal": {"causal": True}, "packed": {"cu_seqlens": [0, 40, 90]},
        "masked": {"key_mask": keys, "query_mask": chosen},
    }[name]  # fmt: skip
    scores = q.float() @ k.float().repeat_interleave(2, 1).transpose(2, 3) / 4
    lse = scores.masked_fill(~see, -torch.inf).logsumexp(-1)
    if name == "masked":
        lse = lse.masked_fill(~chosen[:, None], torch.nan)
    lse = lse.transpose(1, 2).contiguous().transpose(1, 2)
    actual = agree(lambda: attention_columns(q, k, lse=lse, **options), 1e-4)
    with backend.use("reference"):
        expected = attention_columns(q, k, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_lse_is_checked():
    q, k = make(1, 2, 2, 5, 6)
    for choice in ("reference", "triton"):
        for lse in (torch.zeros(1, 2, 6, device=DEVICE), torch.zeros(1, 2, 5, dtype=torch.float16, device=DEVICE)):
            with backend.use(choice), pytest.raises(ValueError, match="lse must be float32 \\[1, 2, 5\\]"):
                attention_columns(q, k, lse=lse)


def test_mixed_dtypes_layouts_and_autograd():
    q, k = make(1, 2, 2, 20, 30)
    agree(lambda: attention_columns(q, k.bfloat16()))
    agree(lambda: attention_columns(q.half(), k.bfloat16()))
    spread = torch.stack([q, q], -1)[..., 0].requires_grad_()  # components of a head not side by side
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        actual = agree(lambda: attention_columns(spread, k))
        agree(lambda: attention_rows(spread, k))
    assert not actual.requires_grad


@pytest.mark.parametrize("b, m, n", [(1, 0, 6), (1, 6, 0), (0, 3, 4)])
def test_empty_sides(b, m, n):
    q, k = torch.zeros(b, 2, m, 8, device=DEVICE), torch.zeros(b, 2, n, 8, device=DEVICE)
    for run in (attention_columns, attention_rows):
        expected, actual = both(lambda run=run: run(q, k))
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("bounds", [[0], [0, 5], [1, 6], [0, 4, 3, 6]])
def test_bad_segments(bounds):
    q, k = make(1, 2, 2, 6, 6)
    with backend.use("triton"), pytest.raises(ValueError, match="from 0 to N=6"):
        attention_columns(q, k, cu_seqlens=bounds)


def test_compiler():
    """The operators tell the compiler the truth, and are traced without a break."""
    q, k = make(1, 4, 2, 20, 30, dtype=torch.bfloat16)
    keys, lengths = mask(1, 30), torch.tensor([0, 12, 30], device=DEVICE)
    position = torch.arange(20, device=DEVICE).expand(1, 20)
    tests = ("test_schema", "test_faketensor")
    for heads in ("mean", "none"):
        torch.library.opcheck(implementation._attention_rows, (q, k, keys, position, 0.25, heads), test_utils=tests)
    lse = torch.zeros(1, 4, 30, device=DEVICE)
    for cu_seqlens, norm, queries in ((None, None, q), (lengths, lse, make(1, 4, 2, 30, 30, dtype=q.dtype)[0])):
        arguments = (queries, k, None, keys, cu_seqlens, norm, 0.25, True, True, True)
        torch.library.opcheck(implementation._attention_columns, arguments, test_utils=tests)

    def reduced(q, k, keys):
        columns = attention_columns(q, k, key_mask=keys, causal=True)
        return columns + attention_rows(q[:, :, -1:], k, causal_positions=position[:, -1:])[:, 0]

    with backend.use("triton"):
        expected = reduced(q, k, keys)
        traced = torch.compile(reduced, fullgraph=True, backend="aot_eager")(q, k, keys)
    assert torch.equal(traced, expected)
