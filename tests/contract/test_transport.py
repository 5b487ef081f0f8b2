"""Transport maps and geometric means."""

import pytest
import torch

import matroot
from matroot.testing import random_spd

DOUBLE = torch.float64
DTYPES = [torch.float16, torch.float32, DOUBLE, torch.complex64, torch.complex128]


def relative_error(x, expected):
    return (x.to(expected.dtype) - expected).norm() / expected.norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 8, 40, 260])
def test_transport_takes_one_covariance_to_the_other(dtype, n):
    a, b = random_spd(n, 3, cond=10, dtype=dtype), random_spd(n, cond=20, dtype=dtype, seed=1)
    m = matroot.transport_map(a, b)
    assert m.dtype == dtype
    assert m.shape == a.shape
    assert torch.equal(m, m.mH)
    wide = torch.complex128 if a.is_complex() else DOUBLE
    a, b, m = a.to(wide), b.to(wide), m.to(wide)
    assert relative_error(m @ a @ m, b.expand_as(a)) < 100 * torch.finfo(dtype).eps
    assert (torch.linalg.eigvalsh(m) > 0).all()


@pytest.mark.parametrize("n", [4, 40, 260])
def test_transport_between_equal_matrices_is_the_identity(n):
    a = random_spd(n, 2, cond=1e3)
    assert torch.equal(matroot.transport_map(a, a), torch.eye(n, dtype=DOUBLE).expand_as(a))


def test_transport_to_a_singular_matrix_and_from_one():
    a, b = random_spd(6, cond=4), random_spd(6, cond=4, spectrum="half_zero")
    m = matroot.transport_map(a, b)
    torch.testing.assert_close(m @ a @ m, b)
    with pytest.raises(torch.linalg.LinAlgError, match=r"a is singular .* no transport map"):
        matroot.transport_map(b, a)
    ridged = matroot.transport_map(b, a, eps=0.1)
    i = torch.eye(6, dtype=DOUBLE)
    torch.testing.assert_close(ridged @ (b + 0.1 * i) @ ridged, a + 0.1 * i)
    both = torch.stack([a, b])
    with pytest.raises(torch.linalg.LinAlgError, match="1 of the 2 matrices in a is singular"):
        matroot.transport_map(both, a)
    found = torch.func.vmap(lambda x: matroot.transport_map(x, a))(both)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[0] @ a @ found[0], a)


def test_transport_has_derivatives():
    a, b = random_spd(4, 2, cond=5).requires_grad_(), random_spd(4, cond=5, seed=1).requires_grad_()

    def run(a, b):
        return matroot.transport_map((a + a.mT) / 2, (b + b.mT) / 2)

    assert torch.autograd.gradcheck(run, (a, b))
    assert torch.autograd.gradgradcheck(run, (a, b))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_geometric_mean(dtype):
    a, b = random_spd(8, 3, cond=10, dtype=dtype), random_spd(8, cond=20, dtype=dtype, seed=1)
    g = matroot.geometric_mean(a, b)
    assert g.dtype == dtype
    assert torch.equal(g, g.mH)
    wide = torch.complex128 if a.is_complex() else DOUBLE
    unit = torch.finfo(dtype).eps
    x = g.to(wide)
    assert relative_error(x @ a.to(wide).inverse() @ x, b.to(wide).expand_as(x)) < 200 * unit
    assert relative_error(matroot.geometric_mean(b, a), x) < 100 * unit
    c = random_spd(8, cond=3, dtype=dtype, seed=2)
    if unit < 1e-4:  # The mean of congruent matrices is congruent.
        turned = matroot.geometric_mean(*(c @ y @ c.mH for y in (a, b)))
        assert relative_error(turned, c.to(wide) @ x @ c.to(wide).mH) < 1000 * unit


SIZES = [(torch.float32, 1e25, 1e-25), (DOUBLE, 1e200, 1e-200), (torch.complex64, 1e-25, 1e25)]


@pytest.mark.parametrize(("dtype", "of_a", "of_b"), SIZES, ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_matrices_of_very_different_size(dtype, of_a, of_b, compiled):
    a, b = random_spd(5, 2, cond=10, dtype=dtype), random_spd(5, cond=10, dtype=dtype, seed=1)
    functions = [matroot.transport_map, matroot.geometric_mean]
    for function, size in zip(
        functions, (of_b**0.5 / of_a**0.5, of_a**0.5 * of_b**0.5), strict=True
    ):
        expected = function(a, b)
        run = torch.compile(function, backend="eager") if compiled else function
        found = run(a * of_a, b * of_b) / size
        assert relative_error(found, expected) < 200 * torch.finfo(dtype).eps
    # One bad matrix that goes with two others is one.
    with pytest.raises(torch.linalg.LinAlgError, match=r"^b is indefinite"):
        matroot.transport_map(a * of_a, -b * of_b)


def test_transport_of_a_ridge_alone():
    a, b = torch.eye(3), torch.zeros(3, 3)
    m = matroot.transport_map(a, b, eps=1e-12)
    torch.testing.assert_close(m, 1e-6 * a, rtol=1e-6, atol=0)


def test_geometric_mean_takes_no_asymmetric_matrix():
    bad = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    for pair in ((torch.eye(2), bad), (bad, torch.eye(2))):
        with pytest.raises(torch.linalg.LinAlgError, match="is not symmetric"):
            matroot.geometric_mean(*pair)
        (found,) = torch.func.vmap(matroot.geometric_mean)(*(x[None] for x in pair))
        assert found.isnan().all()


def test_geometric_mean_of_commuting_and_singular_matrices():
    a, b = torch.diag(torch.tensor([1.0, 4.0])), torch.diag(torch.tensor([0.0, 9.0]))
    torch.testing.assert_close(matroot.geometric_mean(a, b), torch.diag(torch.tensor([0.0, 6.0])))
    with pytest.raises(torch.linalg.LinAlgError, match="a is singular"):
        matroot.geometric_mean(b, a)
    with pytest.raises(torch.linalg.LinAlgError, match="b is indefinite"):
        matroot.geometric_mean(a, -a)
    found = matroot.geometric_mean(b, a, eps=1.0)
    expected = torch.diag(torch.tensor([1.0 * 2.0, 10.0 * 5.0])).sqrt()
    torch.testing.assert_close(found, expected)


def test_geometric_mean_has_derivatives():
    a, b = random_spd(4, 2, cond=5).requires_grad_(), random_spd(4, cond=5, seed=1).requires_grad_()

    def run(a, b):
        return matroot.geometric_mean((a + a.mT) / 2, (b + b.mT) / 2)

    assert torch.autograd.gradcheck(run, (a, b))
    assert torch.autograd.gradgradcheck(run, (a, b))


@pytest.mark.parametrize("function", ["transport_map", "geometric_mean"])
def test_arguments(function):
    run = getattr(matroot, function)
    a = torch.eye(3)
    assert run(torch.empty(0, 3, 3), a).shape == (0, 3, 3)
    assert run(torch.empty(0, 0), torch.empty(0, 0)).shape == (0, 0)
    for wrong, error in (
        (lambda: run(a, torch.eye(4)), ValueError),
        (lambda: run(a, a.double()), TypeError),
        (lambda: run(a, [[1.0]]), TypeError),
        (lambda: run(a, a, eps=-1.0), ValueError),
        (lambda: run(a, torch.full((3, 3), torch.nan)), torch.linalg.LinAlgError),
    ):
        with pytest.raises(error):
            wrong()


@pytest.mark.parametrize(
    "function", ["geometric_mean", pytest.param("transport_map", marks=pytest.mark.slow)]
)
def test_compiled(function):
    run = getattr(matroot, function)
    a, b = random_spd(5, cond=5).requires_grad_(), random_spd(5, 2, cond=5, seed=1).requires_grad_()
    expected = run(a, b)
    compiled = torch.compile(run, fullgraph=True)(a, b)
    torch.testing.assert_close(compiled, expected)
    g = torch.randn_like(expected)
    for x, y in zip(
        torch.autograd.grad(compiled, (a, b), g),
        torch.autograd.grad(expected, (a, b), g),
        strict=True,
    ):
        torch.testing.assert_close((x + x.mT) / 2, (y + y.mT) / 2)
