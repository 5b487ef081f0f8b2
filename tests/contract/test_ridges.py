"""Remedies for singular, indefinite and noisy matrices, and the error texts that name them."""

import pytest
import torch

import matroot
from matroot.testing import random_spd, relative_error

LinAlgError = torch.linalg.LinAlgError


def signal_in_noise(n=64, rank=20, noise=1e-3):
    """A covariance of rank 20 with sampling noise, and the eigenpairs that are kept."""
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
    values = torch.cat(
        [
            torch.linspace(30.0, 40.0, rank, dtype=torch.float64),
            noise**2 * torch.linspace(0.5, 1.5, n - rank, dtype=torch.float64),
        ]
    )
    a = (q * values) @ q.mT
    return (a + a.mT) / 2, (q[:, :rank] / values[:rank].sqrt()) @ q[:, :rank].mT


@pytest.mark.parametrize("method", ["auto", "svd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cut_off_leaves_noise_out(dtype, method):
    a, expected = signal_in_noise()
    options = {"singular": "pinv", "method": method}
    found = matroot.inv_sqrtm(a.to(dtype), rtol=1e-4, **options)
    assert relative_error(found, expected) < 100 * torch.finfo(dtype).eps
    # Without a cut-off the inverse root is that of the noise.
    assert matroot.inv_sqrtm(a, **options).norm() > 1e3 * expected.norm()
    s, z = matroot.sqrtm_pair(a.to(dtype), rtol=1e-4, **options)
    assert relative_error(s @ s, a) < 100 * torch.finfo(dtype).eps
    assert relative_error(z, expected) < 100 * torch.finfo(dtype).eps
    result = matroot.sqrtm_ex(a.to(dtype), root="both", rtol=1e-4, **options)
    assert result.converged
    assert result.inv_residual < 1e3 * torch.finfo(dtype).eps


def test_a_cut_off_below_rounding_is_that_of_rounding():
    x = torch.randn(3, 12, 4, dtype=torch.float64)
    a = x @ x.mT
    a[2] = 0
    expected = matroot.inv_sqrtm(a, singular="pinv")
    for rtol in (0, 1e-20, 1e-8):
        found = matroot.inv_sqrtm(a, singular="pinv", rtol=rtol)
        assert relative_error(found, expected).max() < 1e-13
    assert torch.equal(expected[2], torch.zeros(12, 12, dtype=torch.float64))


@pytest.mark.parametrize(
    "dtype", [torch.float64, pytest.param(torch.complex128, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("gradient", ["auto", "lyapunov"])
def test_the_derivative_with_a_cut_off_sees_the_noise(gradient, dtype):
    q = torch.linalg.qr(torch.randn(2, 4, 4, dtype=dtype)).Q
    values = torch.tensor([3.0, 2.0, 0.01, 0.02], dtype=torch.float64)
    a = ((q * values) @ q.mH).requires_grad_()

    def both(a):
        hermitian = (a + a.mH) / 2
        return matroot.sqrtm_pair(hermitian, singular="pinv", rtol=0.1, gradient=gradient)

    assert torch.autograd.gradcheck(both, a, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(both, a)
    found = torch.func.vmap(lambda a: both(a)[1])(a.detach())
    torch.testing.assert_close(found, both(a)[1].detach(), rtol=1e-10, atol=1e-10)


def test_a_cut_off_compiles():
    a, expected = signal_in_noise(8, 3)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda a: matroot.inv_sqrtm(a, singular="pinv", rtol=1e-4),
        fullgraph=True,
        backend="aot_eager",
    )
    x = a.clone().requires_grad_()
    found = compiled(x)
    assert relative_error(found, expected) < 1e-12
    g = torch.randn_like(a)
    (first,) = torch.autograd.grad(found, x, g)
    eager = matroot.inv_sqrtm(x, singular="pinv", rtol=1e-4)
    assert relative_error(first, torch.autograd.grad(eager, x, g)[0]) < 1e-10


def test_bad_matrices_and_cut_offs():
    a = torch.diag_embed(torch.tensor([[2.0, 1.0], [1.0, -1.0], [1.0, torch.nan]]))
    with pytest.raises(LinAlgError, match="not finite"):
        matroot.inv_sqrtm(a, singular="pinv", rtol=0.1)
    with pytest.raises(LinAlgError, match="indefinite"):
        matroot.inv_sqrtm(a[:2], singular="pinv", rtol=0.1)
    found = matroot.sqrtm_ex(a, root="both", singular="pinv", rtol=0.1)
    assert found.converged.tolist() == [True, False, False]
    assert found.inv_sqrt.isnan().flatten(1).all(1).tolist() == [False, True, True]
    good = torch.eye(2)
    with pytest.raises(ValueError, match=r'rtol= is the cut-off of singular="pinv"; got .*raise'):
        matroot.inv_sqrtm(good, rtol=0.1)
    for bad in (-1.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="rtol"):
            matroot.inv_sqrtm(good, singular="pinv", rtol=bad)
    with pytest.raises(TypeError, match="rtol"):
        matroot.inv_sqrtm(good, singular="pinv", rtol="small")
    with pytest.raises(ValueError, match="relative_eps"):
        matroot.sqrtm(good, relative_eps=-1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("scale", [1.0, 2.0**-8])
def test_a_relative_ridge(scale, dtype):
    a = random_spd(6, 3, cond=1e3, dtype=dtype) * scale
    wide = torch.complex128 if dtype.is_complex else torch.float64
    ridge = 0.01 * torch.linalg.matrix_norm(a.to(wide))[:, None, None] * torch.eye(6, dtype=wide)
    for function in (matroot.sqrtm, matroot.inv_sqrtm):
        found = function(a, relative_eps=0.01)
        assert found.dtype == dtype
        assert (
            relative_error(found, function(a.to(wide) + ridge)).max() < 60 * torch.finfo(dtype).eps
        )
    result = matroot.sqrtm_ex(a, root="both", relative_eps=0.01)
    assert result.converged.all()


def test_a_relative_ridge_is_differentiated():
    a = random_spd(4, 2, cond=1e2).requires_grad_()
    a.data[1, 3] = a.data[1, :, 3] = 0  # A row of zeros, singular without the ridge.

    def root(a):
        return matroot.inv_sqrtm((a + a.mT) / 2, relative_eps=1e-2, eps=1e-3)

    assert torch.autograd.gradcheck(root, a, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(root, a)


def test_matrices_of_optimizers():
    """Shampoo adds 1e-12 or 1e-6 to sums of squared gradients: below rounding in float32."""
    g = 0.1 * torch.randn(512, 8)
    a = g @ g.mT
    for eps in (1e-12, 1e-6):
        with pytest.raises(LinAlgError, match=r"rank 8 of 512.*relative_eps="):
            matroot.inv_sqrtm(a, eps=eps)
    found = matroot.inv_sqrtm(a, relative_eps=1e-5)
    wide = a.double()
    expected = matroot.inv_sqrtm(wide + 1e-5 * wide.norm() * torch.eye(512))
    assert relative_error(found, expected) < 5e-3


def test_covariances_from_sums_of_products():
    """Σxxᵀ − nμμᵀ cancels: rounding makes it indefinite or skew. The texts say by how much."""
    x = 3 + 0.25 * torch.randn(100, 512, dtype=torch.float64)
    mean = x.mean(0)
    c = (x.mT @ x - 100 * torch.outer(mean, mean)) / 100
    wanted = r"λ_min/λ_max = -\d\.\de-1\d, tolerance -1\.1e-13.*add a ridge with eps=.*centre"
    with pytest.raises(LinAlgError, match=f"^a is indefinite: {wanted}"):
        matroot.sqrtm(c)
    identity = torch.eye(512, dtype=torch.float64)
    with pytest.raises(LinAlgError, match=f"^cov2 is indefinite: {wanted}"):
        matroot.frechet_distance(mean, identity, mean, c)
    assert matroot.sqrtm(c, relative_eps=1e-11).isfinite().all()
    centred = torch.cov(x.mT, correction=0)
    found = matroot.bures_wasserstein_distance(c, identity, eps=1e-9)
    expected = matroot.bures_wasserstein_distance(centred, identity, eps=1e-9)
    assert abs(found / expected - 1) < 1e-6
    y = torch.randn(1000, 64) + 1000
    skew = torch.tensor([[1.0, 0.1], [-0.1, 1.0]])
    with pytest.raises(LinAlgError, match=r"skew part is 1\.0e-01 .*tolerance 0\.001.*A \+ Aᴴ"):
        matroot.sqrtm(skew)
    c = y.mT @ y / 1000 - torch.outer(y.mean(0), y.mean(0))
    with pytest.raises(LinAlgError, match="centre the samples"):
        matroot.sqrtm(c)
    with pytest.raises(LinAlgError, match=r"^s is indefinite: .*add a multiple of the identity"):
        matroot.solve_lyapunov(torch.diag(torch.tensor([1.0, -1.0])), torch.eye(2))
    with pytest.raises(LinAlgError, match="no eigenvalue is positive, λ_min = -2"):
        matroot.sqrtm(-2 * torch.eye(2))
