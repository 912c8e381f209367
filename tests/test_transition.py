"""Token transition variation against its definition in float64: padding, precision, zeros, blocks, memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vtc.kernels.transition.reference as reference
from vtc.kernels.transition import transition_variation


def make(batch=2, tokens=37, width=24, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, batch, tokens, width, generator=generator, dtype=torch.float64)
    return x.to(dtype), (0.7 * y + 0.4 * x).to(dtype)


def naive(x, y, valid=None):
    """Token by token and row by row, in float64."""
    out = torch.zeros(x.shape[:2], dtype=torch.float64)
    for b in range(x.shape[0]):
        real = [s for s in range(x.shape[1]) if valid is None or valid[b, s]]
        pairs = [(x[b, s].double(), y[b, s].double()) for s in real]
        away = [float(torch.exp(1 - i @ o / (i.norm() * o.norm()))) for i, o in pairs]
        for s, (i, o), e in zip(real, pairs, away, strict=True):
            out[b, s] = o.norm() / i.norm() * e / sum(away)
    return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_definition(dtype, padded):
    x, y = make(dtype=dtype)
    valid = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(1)) < 0.7 if padded else None
    found = transition_variation(x, y, valid)
    exact = dtype == torch.float64
    assert found.dtype == (torch.float64 if exact else torch.float32)
    torch.testing.assert_close(found.double(), naive(x, y, valid), rtol=1e-10 if exact else 1e-5, atol=0)


def test_one_float64_input_is_enough():
    x, y = make()
    assert transition_variation(x, y.double()).dtype == torch.float64


@pytest.mark.parametrize("filler", [torch.nan, torch.inf, -torch.inf, 0.0])
def test_padding_does_not_leak(filler):
    x, y = make()
    expected = transition_variation(x[:1, 5:], y[:1, 5:])
    valid = torch.ones(2, 37, dtype=torch.bool)
    valid[0, :5] = False
    for tensors in ([x], [y], [x, y]):
        for padded in tensors:
            padded[0, :5] = filler
        found = transition_variation(x, y, valid)
        torch.testing.assert_close(found[:1, 5:], expected)
        assert bool((found[0, :5] == 0).all())
        torch.testing.assert_close(found[1:], transition_variation(x[1:], y[1:]))


def test_a_row_without_real_tokens_is_zero():
    x, y = make()
    valid = torch.tensor([[False], [True]]).expand(2, 37)
    found = transition_variation(x, y, valid)
    assert bool((found[0] == 0).all())
    torch.testing.assert_close(found[1:], transition_variation(x[1:], y[1:]))


def test_zero_vectors_are_finite():
    """Both kinds have cosine 0; nothing in, or nothing out, gives 0; tokens beside them share the softmax."""
    x, y = make(1, 6)
    x[0, 1], y[0, 2] = 0, 0
    x[0, 3], y[0, 3] = 0, 0
    found = transition_variation(x, y)[0]
    assert bool(found.isfinite().all())
    assert found[1:4].tolist() == [0, 0, 0]
    cosine = torch.cosine_similarity(x[0], y[0], dim=-1)
    expected = y[0].norm(dim=-1) / x[0].norm(dim=-1) * torch.softmax(1 - cosine, -1)
    torch.testing.assert_close(found[[0, 4, 5]], expected[[0, 4, 5]])


def test_turning_away_and_growing_count():
    """A token that turns or grows more than another one has the larger value."""
    x = torch.tensor([[[1.0, 0.0]] * 4])
    y = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [-3.0, 0.0]]])
    found = transition_variation(x, y)[0]
    assert bool((found[1:] > found[:-1]).all())
    torch.testing.assert_close(found[3], 3 * found[2])


@pytest.mark.parametrize("elements", [1, 100, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blocks_change_nothing(elements, dtype, monkeypatch):
    x, y = make(dtype=dtype)
    valid = torch.arange(37) >= torch.tensor([[0], [9]])
    expected = transition_variation(x, y, valid)
    monkeypatch.setitem(reference.BLOCK, "cpu", elements)
    torch.testing.assert_close(transition_variation(x, y, valid), expected, rtol=1e-6, atol=0)


def test_other_strides():
    x, y = make()
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (x, y)]
    torch.testing.assert_close(transition_variation(*turned), transition_variation(x, y))


class LargestOutput(TorchDispatchMode):
    """Records the largest number of elements that an operation makes anew."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not out._is_view():
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_memory(device):
    batch, tokens, width = 1, 9000, 2048
    x, y = torch.ones(2, batch, tokens, width, dtype=torch.bfloat16, device=device)
    with LargestOutput() as largest:
        transition_variation(x, y)
    bound = reference.BLOCK["cpu" if device == "cpu" else "other"]
    assert 0 < largest.numel <= bound < x.numel()


def test_no_autograd_and_no_autocast():
    x, y = make()
    expected = transition_variation(x, y)
    assert not transition_variation(x.requires_grad_(), y.requires_grad_()).requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(transition_variation(x, y), expected)


def test_no_tokens():
    assert transition_variation(torch.zeros(2, 0, 4), torch.zeros(2, 0, 4)).shape == (2, 0)


@pytest.mark.parametrize(
    ("shapes", "valid", "words"),
    [
        (((2, 3), (2, 3)), None, r"must both be \[B, S, D\]"),
        (((2, 3, 4), (2, 3, 5)), None, r"\(2, 3, 4\) and \(2, 3, 5\)"),
        (((2, 3, 4), (2, 3, 4)), torch.ones(2, 3), r"bool \[2, 3\], got torch.float32"),
        (((2, 3, 4), (2, 3, 4)), torch.ones(2, 4, dtype=torch.bool), r"got torch.bool \[2, 4\]"),
    ],
)
def test_refusals(shapes, valid, words):
    with pytest.raises(ValueError, match=words):
        transition_variation(*(torch.zeros(shape) for shape in shapes), valid)
