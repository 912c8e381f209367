"""Token transition variation in Triton against the reference: sizes, padding, strides, zeros, huge and tiny lengths.

Both sum in float32 whatever the input dtype, and differ by the order of summation: TOLERANCE holds for every dtype.
"""

import pytest
import torch

import vtc.kernels.transition.triton as kernels
from tests.helpers_triton import DEVICE, DTYPES, both
from vtc.kernels import backend
from vtc.kernels.transition import transition_variation

pytestmark = [pytest.mark.product(cases=1), pytest.mark.usefixtures("poisoned")]
TOLERANCE = dict(rtol=1e-5, atol=0.0)


def make(batch=2, tokens=37, width=24, dtype=torch.float32, seed=0):
    """x, and y that is partly x, as a module with a residual connection gives it."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, batch, tokens, width, generator=generator)
    return x.to(DEVICE, dtype), (0.7 * y + 0.4 * x).to(DEVICE, dtype)


def some(batch, tokens, share=0.7):
    return (torch.rand(batch, tokens, generator=torch.Generator().manual_seed(1)) < share).to(DEVICE)


def close(x, y, valid=None, **tolerance):
    """Asserts that both implementations agree, and returns what Triton gives."""
    expected, found = both(lambda: transition_variation(x, y, valid))
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, **{**TOLERANCE, **tolerance})
    return found


LONG = [pytest.param(tokens, width, marks=pytest.mark.full) for tokens, width in ((577, 63), (1000, 16), (2881, 8))]


@pytest.mark.parametrize("tokens, width", [(1, 1), (63, 577), (300, 63), (5, 4096), *LONG])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes(tokens, width, dtype):
    batch = 2 if tokens < 100 else 1
    x, y = make(batch, tokens, width, dtype)
    close(x, y, some(batch, tokens))
    if tokens < 1000:
        close(x, y)


@pytest.mark.parametrize("left", DTYPES, ids=str)
@pytest.mark.parametrize("right", DTYPES, ids=str)
def test_two_dtypes(left, right):
    x, y = make()
    close(x.to(left), y.to(right))


def test_definition():
    """By torch's own cosine in float64, beside the reference."""
    x, y = (t.double() for t in make(3, 40, 100))
    expected = y.norm(dim=-1) / x.norm(dim=-1) * torch.softmax(1 - torch.cosine_similarity(x, y, dim=-1), -1)
    with backend.use("triton"):
        found = transition_variation(x.float(), y.float())
    torch.testing.assert_close(found.double(), expected, **TOLERANCE)


@pytest.mark.parametrize("filler", [torch.nan, torch.inf, -torch.inf, 0.0])
def test_padding_does_not_leak(filler):
    x, y = make()
    valid = torch.ones(2, 37, dtype=torch.bool, device=DEVICE)
    valid[0, :5] = False
    x[0, :5], y[0, 2:5] = filler, filler
    found = close(x, y, valid)
    assert bool((found[0, :5] == 0).all())
    with backend.use("triton"):
        torch.testing.assert_close(found[:1, 5:], transition_variation(x[:1, 5:], y[:1, 5:]), **TOLERANCE)


def test_rows_without_real_tokens_are_zero():
    x, y = make()
    valid = torch.tensor([[False], [True]], device=DEVICE).expand(2, 37)
    found = close(x, y, valid)
    assert bool((found[0] == 0).all())
    assert bool((found[1] > 0).all())


def test_nan_in_a_real_token():
    """It reaches the real tokens of its row, and no others."""
    x, y = make()
    y[0, 3, 2] = torch.nan
    valid = some(2, 37)
    valid[0, 3] = True
    found = close(x, y, valid, equal_nan=True)
    assert torch.equal(found[0].isnan(), valid[0])
    assert not bool(found[1].isnan().any())


def test_zero_vectors():
    x, y = make(1, 6)
    x[0, 1], y[0, 2] = 0, 0
    x[0, 3], y[0, 3] = 0, 0
    assert close(x, y)[0, 1:4].tolist() == [0, 0, 0]


@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1e-7, 1e7, 1e15])
def test_lengths(scale):
    """From under what is divided by up to near what float32 squares hold."""
    x, y = make(1, 20)
    for left, right in ((scale, scale), (scale, 1), (1, scale)):
        close(x * left, y * right)


def test_overflow_is_the_same():
    """Squares beyond float32 are infinite in both."""
    x, y = make(3, 5)
    x[0, 1], y[1, 2] = 1e25, 1e25
    x[2, 3], y[2, 3] = 1e25, 1e25
    found = close(x, y, equal_nan=True)
    assert found[0, 1] == 0
    assert found[1, 2] == torch.inf
    assert bool(found[2].isnan().all())


def test_strides():
    x, y = make(2, 40, 30)
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (x, y)]
    close(*turned, some(40, 2).t())
    close(x[:, 1::3, 1::2], y[:, 2::3, :15])
    close(x.transpose(0, 1), y[:1].expand(2, 40, 30).transpose(0, 1))


def test_empty():
    with backend.use("triton"):
        assert transition_variation(*make(2, 0, 4)).shape == (2, 0)
        assert transition_variation(*make(0, 3, 4)).shape == (0, 3)
        assert transition_variation(*make(1, 3, 0)).tolist() == [[0, 0, 0]]


def test_several_blocks_of_a_row(monkeypatch):
    monkeypatch.setattr(kernels, "ROW", 16)
    for tokens in (16, 17, 37):
        close(*make(2, tokens), some(2, tokens))


def test_every_tile():
    """What the tuner may take gives the same within the tolerance."""
    x, y = make(1, 37, 300)
    with backend.use("reference"):
        expected = transition_variation(x, y)
    for tile in kernels.TILES:
        length, away, out = (x.new_empty(1, 37) for _ in range(3))
        tokens = tile.kwargs["TOKENS"]
        kernels._change_kernel.fn[(-(-37 // tokens),)](
            x, y, None, length, away, 37, 300, *x.stride(), *y.stride(), 0, 0, EPS=1e-8,
            LEFT_OUT=kernels.LEFT_OUT, WIDTH=512, **tile.kwargs,
        )  # fmt: skip
        kernels._share_kernel[(1,)](length, away, out, 37, LEFT_OUT=kernels.LEFT_OUT, BLOCK=64)
        torch.testing.assert_close(out, expected, **TOLERANCE)


def test_same_twice():
    x, y = make(2, 70, 600, torch.bfloat16)
    with backend.use("triton"):
        assert torch.equal(transition_variation(x, y), transition_variation(x, y))


def test_other_dtypes_are_the_reference():
    x, y = make()
    with backend.use("triton"):
        assert transition_variation(x.double(), y).dtype == torch.float64
    whole = (x * 9).int()
    close(whole, y)


def test_no_autograd():
    x, y = make()
    with backend.use("triton"):
        assert not transition_variation(x.requires_grad_(), y.requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("shapes", "valid", "words"),
    [
        (((2, 3), (2, 3)), None, r"must both be \[B, S, D\]"),
        (((2, 3, 4), (2, 3, 5)), None, r"\(2, 3, 4\) and \(2, 3, 5\)"),
        (((2, 3, 4), (2, 3, 4)), torch.ones(2, 3), r"bool \[2, 3\], got torch.float32"),
        (((2, 3, 4), (2, 3, 4)), torch.ones(2, 3, dtype=torch.bool, device="meta"), "valid is on meta, x on cpu"),
    ],
)
def test_refusals(shapes, valid, words):
    with pytest.raises(ValueError, match=words):
        kernels.transition_variation(*(torch.zeros(shape) for shape in shapes), valid)


@pytest.mark.parametrize("padded", [False, True])
def test_operator(padded):
    """Schema, fake tensors and tracing; then one graph for the whole call."""
    x, y = make()
    valid = some(2, 37) if padded else None
    torch.library.opcheck(torch.ops.vtc.transition_variation.default, (x, y, valid))

    def run(x, y, valid):
        return transition_variation(x * 2, y, valid) + 1

    with backend.use("triton"):
        found = torch.compile(run, fullgraph=True, backend="aot_eager")(x, y, valid)
    torch.testing.assert_close(found, both(lambda: run(x, y, valid))[0], **TOLERANCE)
