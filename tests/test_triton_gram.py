"""The matrix of cosines in Triton against the reference: sizes, precision, strides, vectors that count as zero."""

import pytest
import torch

import vtc.kernels.cosine as cosine
import vtc.kernels.gram.reference as reference
import vtc.kernels.gram.triton as gram
import vtc.kernels.products as products
from tests.helpers_triton import DEVICE, DTYPES, both
from vtc.kernels import backend
from vtc.kernels.cosine import Cosines
from vtc.kernels.gram import cosine_matrix

pytestmark = pytest.mark.product(cases=1)

LIMIT = 1e-5  # whatever the dtype: both read the same values, and sum products in float32


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def compare(features):
    """Triton's matrix, after a comparison with the reference's."""
    expected, found = both(lambda: cosine_matrix(features))
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=LIMIT)
    assert torch.equal(found, found.mT)
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("units, tokens, width", [(1, 1, 1), (3, 63, 5), (2, 130, 577), (1, 577, 16)])
def test_matrix(units, tokens, width, dtype, poisoned):
    compare(draw(units, tokens, width, dtype=dtype))


@pytest.mark.parametrize("tokens", [600, *(pytest.param(tokens, marks=pytest.mark.full) for tokens in (1000, 2881))])
def test_matrix_of_long_units(tokens, poisoned):
    compare(draw(1, tokens, 8, dtype=torch.bfloat16))


def test_last_token_of_every_tile_size(poisoned):
    """One token more or less than a tile of any configuration."""
    for tokens in (31, 32, 33, 64, 65, 127, 128, 129):
        compare(draw(1, tokens, 20))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(dtype, poisoned):
    """Every second token, the last axis outermost, one unit seen three times."""
    x = draw(2, 80, 24, dtype=dtype)
    expected = compare(x[:, ::2].contiguous())
    assert torch.equal(compare(x[:, ::2]), expected)
    assert torch.equal(compare(x.permute(2, 0, 1).contiguous().permute(1, 2, 0)[:, ::2]), expected)
    assert torch.equal(compare(x[:1].expand(3, -1, -1))[2], compare(x)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf, -torch.inf])
def test_vectors_that_count_as_zero(value, dtype, poisoned):
    """They have cosine 0 with all tokens, and the others have the cosines that they would have without them."""
    x = draw(2, 70, 33, dtype=dtype)
    expected = compare(x)
    x[0, 5], x[1, 69, :] = 0, 0
    x[0, 66, 3 if value else slice(None)] = value
    found = compare(x)
    zero = torch.zeros(2, 70, dtype=torch.bool, device=DEVICE)
    zero[0, 5] = zero[0, 66] = zero[1, 69] = True
    either = zero[:, :, None] | zero[:, None]
    assert torch.equal(found, expected.masked_fill(either, 0))


def test_norms_at_the_ends_of_float32(poisoned):
    """Squares that overflow, and norms whose square is not a normal number, count as 0."""
    x = draw(1, 5, 16)
    x = x / x.norm(dim=2, keepdim=True)
    expected = compare(x)
    scaled = x * torch.tensor([1e-18, 1e18, 1.0, 1e-25, 1e25], device=DEVICE)[:, None]
    with backend.use("triton"):
        found = cosine_matrix(scaled)
    torch.testing.assert_close(found[:, :3, :3], expected[:, :3, :3], rtol=0, atol=LIMIT)
    assert not found[:, 3:].any()


def test_equal_tokens_have_equal_cosines():
    """Wherever they stand: duplicates tie exactly for the greedy choices."""
    with backend.use("triton"):
        found = cosine_matrix(draw(1, 40, 100).round().repeat(1, 3, 1))[0]
    for i, j in ((0, 40), (3, 83), (41, 81)):
        other = torch.ones(120, dtype=torch.bool, device=DEVICE)
        other[[i, j]] = False
        assert torch.equal(found[i, other], found[j, other])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_unit_is_the_same_alone(dtype):
    x = draw(3, 65, 48, dtype=dtype)
    with backend.use("triton"):
        together = cosine_matrix(x)
        assert torch.equal(together, torch.cat([cosine_matrix(x[b : b + 1]) for b in range(3)]))


def test_empty_sides():
    for shape in ((0, 4, 3), (2, 0, 3)):
        assert both(lambda shape=shape: cosine_matrix(draw(*shape)))[1].shape == (*shape[:2], shape[1])
    assert not both(lambda: cosine_matrix(draw(2, 4, 0)))[1].any()


def test_reference_in_blocks(monkeypatch):
    """Mirrored halves of blocks that do not divide the tokens; float64 is the reference's whatever is asked for."""
    x = draw(2, 11, 5).double()
    x[0, 3] = 0
    expected = torch.nn.functional.cosine_similarity(x[:, :, None], x[:, None], dim=3)
    monkeypatch.setattr(products, "LEAF", 3)
    for found in both(lambda: cosine_matrix(x)):
        torch.testing.assert_close(found, expected)
        assert torch.equal(found, found.mT)


def test_cosines_normalise_only_for_the_reference(monkeypatch):
    """`Cosines` that hold a matrix have no unit vectors until they are asked for."""
    x = draw(2, 30, 12, dtype=torch.bfloat16)

    def refuse(features):
        raise AssertionError("unit vectors are not needed")

    with backend.use("triton"), monkeypatch.context() as patch:
        patch.setattr(reference, "unit_vectors", refuse)
        patch.setattr(cosine, "unit_vectors", refuse)
        found = Cosines(x)
        assert torch.equal(found.rows(torch.tensor([4, 29], device=DEVICE))[1], found.matrix[1, 29])
        assert found.second().shape == (2, 30)
    assert (found.shape, found.dtype, found.device) == (x.shape, torch.float32, x.device)
    torch.testing.assert_close(found.x.norm(dim=2), torch.ones(2, 30, device=DEVICE))
    assert found.x is found.x


@pytest.mark.parametrize("kernels", ["reference", "triton"])
@pytest.mark.parametrize("features", [torch.zeros(2, 3), torch.zeros(1, 2, 3, dtype=torch.long)])
def test_errors(features, kernels):
    with backend.use(kernels), pytest.raises(ValueError, match=r"features are .*; possible: floats \[B, N, D\]"):
        cosine_matrix(features.to(DEVICE))


def test_operator():
    for dtype in DTYPES:
        torch.library.opcheck(torch.ops.vtc.cosine_matrix, (draw(2, 9, 6, dtype=dtype),))
        torch.library.opcheck(torch.ops.vtc.cosine_matrix, (draw(2, 6, 9, dtype=dtype).mT,))


def test_compiles_whole():
    x = draw(2, 20, 6, dtype=torch.float16)
    with backend.use("triton"):
        whole = torch.compile(lambda x: cosine_matrix(x) * 2, fullgraph=True, backend="aot_eager")
        assert torch.equal(whole(x), cosine_matrix(x) * 2)


def test_configurations_go_over_the_width_in_equal_steps():
    """A change of tiles is not meant to change sums; so it must not change how the width is divided."""
    for configs in (gram.TILES, gram.FLOAT_TILES):
        assert len({config.kwargs["D"] for config in configs}) == 1
