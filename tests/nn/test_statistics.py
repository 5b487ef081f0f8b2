"""Covariances, shrinkage and triangles against their definitions."""

import pytest
import torch
from sklearn.covariance import ledoit_wolf

from matroot.statistics import moments, pack_triangle, unpack_triangle


def samples(d, m, *batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, d, m, dtype=torch.float64, generator=generator)
    return x * torch.arange(1.0, d + 1, dtype=torch.float64)[:, None] + 3


def test_moments():
    x = samples(4, 30, 2, 3)
    found = moments(x)
    expected = torch.stack([torch.cov(y, correction=0) for y in x.reshape(6, 4, 30)])
    torch.testing.assert_close(found.covariance, expected.reshape(2, 3, 4, 4))
    torch.testing.assert_close(found.mean, x.mean(-1, keepdim=True))
    torch.testing.assert_close(found.centered + found.mean, x)
    assert found.samples == 30


@pytest.mark.parametrize(("d", "m"), [(4, 6), (10, 7), (5, 200), (1, 9)])
def test_ledoit_wolf_is_scikit_learns(d, m):
    x = samples(d, m)
    expected, _ = ledoit_wolf(x.T.numpy())
    found = moments(x, shrinkage="ledoit_wolf").covariance
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("d", "m"), [(4, 6), (10, 7), (5, 200)])
def test_oracle_approximating_shrinkage(d, m):
    x = samples(d, m)
    c = torch.cov(x, correction=0)
    square, trace = torch.trace(c @ c), torch.trace(c)
    share = ((1 - 2 / d) * square + trace**2) / ((m + 1 - 2 / d) * (square - trace**2 / d))
    share = min(float(share), 1.0)
    expected = (1 - share) * c + share * trace / d * torch.eye(d, dtype=torch.float64)
    torch.testing.assert_close(moments(x, shrinkage="oas").covariance, expected)


@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", "oas", 0.3])
def test_shrinkage_is_differentiable_and_keeps_the_trace(shrinkage):
    x = samples(3, 5, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: moments(x, shrinkage=shrinkage).covariance, (x,))
    shrunk, plain = moments(x, shrinkage=shrinkage).covariance, moments(x).covariance
    torch.testing.assert_close(*(c.diagonal(dim1=-2, dim2=-1).sum(-1) for c in (shrunk, plain)))


@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", "oas"])
def test_constant_samples_stay_finite(shrinkage):
    x = torch.ones(3, 5, requires_grad=True)
    c = moments(x, shrinkage=shrinkage).covariance
    (gradient,) = torch.autograd.grad(c.sum(), x)
    assert c.eq(0).all()
    assert gradient.isfinite().all()


def test_half_precision_is_summed_in_single():
    x = torch.full((2, 4000), 1.0, dtype=torch.bfloat16)
    found = moments(x)
    assert found.covariance.dtype == torch.float32
    assert found.mean.eq(1).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: moments(torch.zeros(0, 5)), r"got shape \(0, 5\)"),
        (lambda: moments(torch.zeros(5, 0)), r"got shape \(5, 0\)"),
        (lambda: moments(torch.ones(2, 3), shrinkage="lw"), "'ledoit_wolf', 'oas', got 'lw'"),
        (lambda: moments(torch.ones(2, 3), shrinkage=1.5), "got 1.5"),
        (lambda: pack_triangle(torch.ones(2, 3)), r"expected shape \(..., n, n\), got \(2, 3\)"),
        (lambda: unpack_triangle(torch.ones(4)), r"got shape \(4,\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("n", [0, 1, 2, 7])
@pytest.mark.parametrize("scaled", [False, True])
def test_triangles_come_back(n, scaled):
    a = torch.randn(3, 2, n, n, dtype=torch.float64)
    a = a + a.mT
    packed = pack_triangle(a, scaled=scaled)
    assert packed.shape == (3, 2, n * (n + 1) // 2)
    torch.testing.assert_close(unpack_triangle(packed, scaled=scaled), a)


def test_the_scaled_triangle_is_an_isometry():
    a, b = (x + x.mT for x in torch.randn(2, 5, 5, dtype=torch.float64))
    inner = pack_triangle(a, scaled=True) @ pack_triangle(b, scaled=True)
    torch.testing.assert_close(inner, torch.trace(a @ b))
    assert pack_triangle(torch.tensor([[1, 2], [2, 3]])).tolist() == [1, 2, 3]


def test_triangles_are_differentiable():
    a = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: pack_triangle(a, scaled=True), (a,))
    v = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: unpack_triangle(v, scaled=True), (v,))


@pytest.mark.parametrize("rule", ["ledoit_wolf", "oas"])
@pytest.mark.parametrize("scale", [1e-15, 1e-9, 1e9, 1e15])
def test_shrinkage_of_any_scale(rule, scale):
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    expected = moments(x.double(), shrinkage=rule).covariance
    found = moments(scale * x, shrinkage=rule).covariance.double() / scale**2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", [None, 0.3, "ledoit_wolf", "oas"])
@pytest.mark.parametrize("center", [True, False])
def test_samples_over_the_batch_are_samples(rule, center):
    x = torch.randn(5, 3, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = moments(x, shrinkage=rule, center=center, over_batch=True)
    expected = moments(x.permute(1, 2, 0, 3).flatten(2), shrinkage=rule, center=center)
    torch.testing.assert_close(found.covariance, expected.covariance)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.centered.permute(1, 2, 0, 3).flatten(2), expected.centered)
    assert found.samples == expected.samples == 35


def test_scaled_triangles_have_the_digits_of_their_dtype():
    a = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = a + a.mT
    packed = pack_triangle(a, scaled=True)
    torch.testing.assert_close(unpack_triangle(packed, scaled=True), a, rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(packed.norm(), a.norm(), rtol=1e-15, atol=0)
    with pytest.raises(TypeError, match=r"floating-point numbers, got torch\.int64"):
        pack_triangle(torch.eye(2).long(), scaled=True)
    for call in (pack_triangle, unpack_triangle):
        with pytest.raises(ValueError, match=r"got \(\)"):
            call(torch.tensor(1.0))


def test_samples_are_real_floating_point_numbers_in_columns():
    for x in (torch.ones(2, 3, dtype=torch.complex128), torch.ones(2, 3, dtype=torch.int64), [[1]]):
        with pytest.raises(TypeError, match="moments: the samples must be"):
            moments(x)
    with pytest.raises(ValueError, match=r"samples in columns, \(..., d, m\), got \(3,\)"):
        moments(torch.ones(3))
    with pytest.raises(ValueError, match=r"shrinkage must be .* got True"):
        moments(torch.ones(2, 3), shrinkage=True)
