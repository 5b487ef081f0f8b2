"""Distances of matrices beyond the compiled kernels' size, by Cholesky factors."""

import pytest
import torch

import matroot
from matroot import transport
from matroot.testing import random_spd
from matroot.transport import Call

DOUBLE = torch.float64
N = 260
bures = matroot.bures_wasserstein_distance


def reference(a, b):
    """(d², gradients) by singular value decompositions of roots in double precision."""
    wide = [x.to(torch.complex128 if x.is_complex() else DOUBLE) for x in (a, b)]
    _, _, square, _, *by = transport._by_svd(Call(wide[0].dtype, 0.0), *wide, True)
    return square, *by


def everything(a, b):
    x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
    square = bures(x, y)
    return square.detach(), *torch.autograd.grad(square.sum(), (x, y))


def near(a, step):
    """A matrix at a relative distance from A, regular where A is."""
    root = torch.linalg.cholesky(a.double())
    e = torch.randn(*a.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    e = step * (e + e.mT) / a.shape[-1] ** 0.5
    return (root @ (torch.eye(a.shape[-1], dtype=DOUBLE) + e) @ root.mT).to(a.dtype)


def relative_error(x, expected):
    return (x.to(expected.dtype) - expected).norm() / expected.norm()


def symmetric(x):
    return (x + x.mH) / 2


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.complex128], ids=str)
@pytest.mark.parametrize("cond", [1e1, 1e4])
def test_values_and_gradients_are_those_of_the_reference(dtype, cond, monkeypatch):
    a, b = random_spd(N, 2, cond=cond, dtype=dtype)
    expected = reference(a, b)
    monkeypatch.setattr(transport, "_by_svd", None)  # Nothing is left to it.
    found, unit = everything(a, b), torch.finfo(dtype).eps
    assert relative_error(found[0], expected[0]) < 4 * max(unit, 2**-50)
    for x, y in zip(found[1:], expected[1:], strict=True):
        assert x.dtype == dtype
        assert relative_error(x.to(y.dtype), y) < 64 * unit * (
            1 if dtype == torch.float32 else cond
        )
    value = bures(a, b)
    assert relative_error(value, found[0]) < 4 * max(unit, 2**-48)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("step", [1e-2, 1e-5])
def test_near_matrices_keep_their_digits(dtype, step):
    a = random_spd(N, cond=1e3, dtype=dtype)
    b = symmetric(near(a, step))
    square, *by = reference(a, b)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13 / step
    assert relative_error(bures(a, b), square) < tolerance
    found = everything(a, b)
    assert relative_error(found[0], square) < tolerance
    for x, y in zip(found[1:], by, strict=True):
        assert relative_error(x, y) < (1e-5 if dtype == torch.float32 else 1e-10 / step)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.complex64], ids=str)
def test_equal_matrices(dtype):
    a = random_spd(N, cond=1e4, dtype=dtype)
    for x in everything(a, a.clone()):
        assert torch.equal(x, torch.zeros_like(x))


def test_pairs_are_done_each_by_itself():
    """Broadcast, with neighbours that are singular or have no root."""
    a = random_spd(N, 2, 1, cond=1e2, dtype=torch.float32)
    b = random_spd(N, 3, cond=1e3, dtype=torch.float32).clone()
    x = torch.randn(20, N)
    b[1] = x.T @ x
    whole = everything(a, b)
    assert whole[0].shape == (2, 3)
    for i in range(2):
        for j in range(3):
            square = everything(a[i, 0], b[j])[0]
            assert torch.equal(square, whole[0][i, j])
    singular = transport._by_svd(Call(torch.float32, 0.0), a[0], b[1:2], False)[2]
    assert relative_error(whole[0][0, 1], singular[0]) < 1e-5
    b[2] = -b[2]
    with pytest.raises(torch.linalg.LinAlgError, match=r"1 of the 3 .* in b is indefinite"):
        bures(a, b)


@pytest.mark.parametrize("powers", [(0, 0), (250, 250), (-250, -250), (20, -20), (-250, 250)])
def test_scales(powers):
    a, b = random_spd(N, 2, cond=1e2)
    i, j = powers
    found = bures(a * 4.0**i, b * 4.0**j, squared=False)
    if i == j:
        assert torch.equal(found, bures(a, b, squared=False) * 2.0**i)
    else:
        expected = transport._by_svd(Call(DOUBLE, 0.0), a * 4.0**i, b * 4.0**j, False)[3]
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def test_half_precision_and_ridges():
    a, b = random_spd(N, 2, cond=1e2, dtype=torch.bfloat16)
    expected = reference(*(symmetric(x.double()) + 0.5 * torch.eye(N) for x in (a, b)))[0]
    found = bures(a, b, eps=0.5)
    assert found.dtype == torch.bfloat16
    assert relative_error(found, expected) < 2**-8


@pytest.mark.parametrize("squared", [True, False])
def test_second_derivatives(squared):
    a, b = random_spd(N, 2, cond=10)
    e = symmetric(torch.randn(N, N, dtype=DOUBLE)) / N
    t = torch.zeros((), dtype=DOUBLE, requires_grad=True)

    def value(t):
        return bures(a + t * e, b, squared=squared)

    (first,) = torch.autograd.grad(value(t), t, create_graph=True)
    (second,) = torch.autograd.grad(first, t)
    h = 1e-3
    with torch.no_grad():
        expected = (value(t + h) - 2 * value(t) + value(t - h)) / h**2
    torch.testing.assert_close(second, expected, rtol=1e-4, atol=1e-9)


def sampled(rank, dtype, seed, spread=10.0):
    """Samples in rows whose second moments have that rank, and the moments."""
    wide = torch.complex128 if dtype.is_complex else DOUBLE
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rank, N, dtype=wide, generator=generator)
    if rank == N:
        x = torch.linalg.qr(x).Q * N**0.5  # Regular, beyond doubt.
    x = x / torch.linspace(1, spread, rank, dtype=DOUBLE)[:, None] / rank**0.5
    return x, x.mH @ x


def by_samples(x, y):
    """(d², its derivatives by x and y) of XᴴX and YᴴY by the samples' own products."""
    u, sigma, vh = torch.linalg.svd(x @ y.mH, full_matrices=False)
    turn = u @ vh
    legs = (x - turn @ y, y - vh.mH @ vh @ y, x - u @ u.mH @ x)
    square = x.norm() ** 2 + y.norm() ** 2 - 2 * sigma.sum()
    return square, 2 * legs[0], 2 * (y - turn.mH @ x)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.complex128], ids=str)
@pytest.mark.parametrize("ranks", [(40, 40), (40, 90), (90, 40), (1, 2), (150, 260), (260, 30)])
def test_singular_matrices_have_thin_factors(ranks, dtype, monkeypatch):
    (x, a), (y, b) = (sampled(rank, dtype, seed) for seed, rank in enumerate(ranks))
    a, b = symmetric(a).to(dtype), symmetric(b).to(dtype)
    square, by_x, by_y = by_samples(x, y)
    monkeypatch.setattr(transport, "_by_svd", None)  # Nothing is left to it.
    found, unit = everything(a, b), torch.finfo(dtype).eps
    assert relative_error(found[0], square) < 16 * max(unit, 2**-48)
    assert relative_error(bures(a, b), square) < 16 * max(unit, 2**-48)
    # By the samples it is 2 X G where G is the gradient by XᴴX.
    for gradient, samples, expected in zip(found[1:], (x, y), (by_x, by_y), strict=True):
        assert torch.equal(gradient, gradient.mH)
        assert relative_error(2 * samples @ gradient.to(samples.dtype), expected) < 3e3 * unit


def test_gradients_by_thin_factors_are_of_minimum_norm():
    (_, a), (_, b) = sampled(60, DOUBLE, 0), sampled(80, DOUBLE, 1)
    expected = reference(a, b)
    for x, y in zip(everything(a, b), expected, strict=True):
        assert relative_error(x, y) < 1e-11


@pytest.mark.parametrize("step", [1e-2, 1e-5])
def test_near_singular_pairs_keep_their_digits(step):
    """Of the same rank, so that d² is step² of the traces: neither formula may take traces."""
    x, a = sampled(70, DOUBLE, 0)
    turn = torch.randn(N, N, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)) / N**0.5
    y = x + step * x @ turn
    u, _, vh = torch.linalg.svd(x @ y.mH)
    expected = (x - u @ vh @ y).norm() ** 2
    b = symmetric(y.mH @ y)
    assert relative_error(everything(a, b)[0], expected) < 1e-13 / step
    assert relative_error(bures(a, b), expected) < 1e-13 / step


def test_doubtful_ranks_are_left_to_roots(monkeypatch):
    """Eigenvalues across the limit; what is indefinite; and 0."""
    q = torch.linalg.qr(torch.randn(N, N, dtype=DOUBLE)).Q
    values = torch.cat([torch.ones(40), torch.logspace(-4, -9, N - 40)]).double()
    a = symmetric((q * values) @ q.mT).float()
    b = symmetric(sampled(50, DOUBLE, 1)[1]).float()
    by_roots = []
    whole = transport._by_svd
    monkeypatch.setattr(
        transport, "_by_svd", lambda *arguments: by_roots.append(0) or whole(*arguments)
    )
    bures(a, b)
    assert by_roots
    with pytest.raises(torch.linalg.LinAlgError, match="indefinite"):
        bures(symmetric((q * (values - 0.1)) @ q.mT), b.double())
    zero = torch.zeros(N, N)
    assert relative_error(bures(zero, b), b.trace()) < 1e-6
    assert bures(zero, zero) == 0


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_gradients_between_orthogonal_ranges(dtype):
    """The rounding of zeros decides nothing: the gradients are projectors on the ranges."""
    q = torch.linalg.qr(torch.randn(N, 100, dtype=DOUBLE)).Q
    projectors = [symmetric(x @ x.mT).to(dtype) for x in (q[:, :50], q[:, 50:])]
    square, *by = everything(*projectors)
    unit = torch.finfo(dtype).eps
    assert relative_error(square, torch.tensor(100.0)) < 32 * unit
    for x, expected in zip(by, projectors, strict=True):
        assert relative_error(x, expected.double()) < 64 * unit
