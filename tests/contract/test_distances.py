"""The Bures–Wasserstein and Fréchet distances: values, gradients, transforms, errors."""

import mpmath
import ot
import pytest
import scipy.linalg
import torch
from torch.autograd import gradcheck, gradgradcheck

import matroot
from matroot import bures_wasserstein_distance as bures
from matroot import frechet_distance as frechet
from matroot import screen
from matroot.checks import DTYPES
from matroot.kernels import native
from matroot.kernels.native.distances import squared_distances
from matroot.lyapunov_solvers import Solver
from matroot.spd import real_dtype
from matroot.testing import random_spd, relative_error, tolerance

LinAlgError = torch.linalg.LinAlgError
FUNC = torch.func
DOUBLE = torch.float64

each_form = pytest.mark.parametrize("squared", [True, False])


def pair(n, *batch, cond=5.0, dtype=DOUBLE):
    return tuple(random_spd(n, *batch, cond=cond, dtype=dtype, seed=seed) for seed in (1, 2))


def gradients(function, *inputs, **options):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*inputs, **options).sum(), inputs)


def transport(a, b):
    """M = A^{-1/2} (A^{1/2} B A^{1/2})^{1/2} A^{-1/2} to 40 digits, rounded to double precision."""

    def power(x, p):
        values, q = mpmath.eighe(x)
        return q * mpmath.diag([v**p for v in values]) * q.H

    with mpmath.workdps(40):
        x, y = (mpmath.matrix(m.to(torch.complex128).tolist()) for m in (a, b))
        s, z = power(x, 0.5), power(x, -0.5)
        m = z * power(s * y * s, 0.5) * z
        found = torch.tensor([complex(v) for v in m], dtype=torch.complex128).reshape(a.shape)
    return found if a.is_complex() else found.real


def of_factors(x, y):
    """d² of X Xᴴ and Y Yᴴ in double precision, and its gradients by X and Y."""
    u, sigma, vh = torch.linalg.svd(x.mH @ y, full_matrices=False)
    square = x.abs().square().sum() + y.abs().square().sum() - 2 * sigma.sum()
    return square, 2 * (x - y @ vh.mH @ u.mH), 2 * (y - x @ u @ vh)


# Values.


@pytest.mark.parametrize("n", [1, 2, 7, 32])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_against_scipy(n, dtype):
    a, b = pair(n, cond=100, dtype=dtype)
    s = scipy.linalg.sqrtm(a.numpy())
    cross = scipy.linalg.sqrtm(s @ b.numpy() @ s)
    expected = (a.numpy() + b.numpy() - 2 * cross).trace().real
    found = bures(a, b)
    assert found.dtype == DOUBLE
    assert found.item() == pytest.approx(expected, rel=1e-10)
    assert bures(a, b, squared=False).item() == pytest.approx(expected**0.5, rel=1e-10)


@pytest.mark.parametrize("n", [1, 3, 16])
def test_against_pot(n):
    a, b = pair(n, cond=100)
    mu, nu = torch.randn(2, n, dtype=DOUBLE)
    numbers = [x.numpy() for x in (mu, nu, a, b)]
    expected = ot.gaussian.bures_wasserstein_distance(*numbers)
    assert frechet(mu, a, nu, b, squared=False).item() == pytest.approx(expected, rel=1e-10)
    assert frechet(mu, a, nu, b).item() == pytest.approx(expected**2, rel=1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_commuting_matrices_in_every_dtype(dtype):
    q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.complex128 if dtype.is_complex else DOUBLE)).Q
    x, y = torch.rand(2, 4, 6, dtype=DOUBLE) + 0.1
    a, b = (((q * v[:, None]) @ q.mH).to(dtype) for v in (x, y))
    found = bures(a, b)
    assert found.dtype == real_dtype(dtype)
    expected = (x.sqrt() - y.sqrt()).square().sum(-1)
    # What rounding the input costs is relative to the traces.
    error = (found.double() - expected).abs() / (x + y).sum(-1)
    assert error.max() < 4 * torch.finfo(dtype).eps
    before = a.clone(), b.clone()
    bures(a, b)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


@pytest.mark.parametrize("step", [1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("cond", [1e1, 1e4])
def test_near_matrices_keep_their_digits_in_single_precision(step, cond):
    a, b = pair(48, cond=cond, dtype=torch.float32)
    b = torch.lerp(a, b, step)
    expected = bures(a.double(), b.double(), squared=False)
    error = (bures(a, b, squared=False) - expected).abs() / a.trace().sqrt()
    # tr A + tr B − 2 tr Σ would leave √u = 3e-4.
    assert error < 10 * torch.finfo(torch.float32).eps * cond**0.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("ranks", [(20, 20), (20, 30), (63, 20), (64, 20), (1, 1)])
def test_rank_deficient_matrices(ranks, dtype):
    x, y = (torch.randn(64, rank, dtype=DOUBLE) for rank in ranks)
    a, b = ((z @ z.mT).to(dtype) for z in (x, y))
    expected, *by_factors = of_factors(x, y)
    total = a.trace() + b.trace()
    unit = torch.finfo(dtype).eps
    assert (bures(a, b) - expected).abs() / total < 10 * unit
    near = x + 1e-3 * torch.randn_like(x)
    expected = of_factors(x, near)[0].sqrt()
    found = bures(a, (near @ near.mT).to(dtype), squared=False)
    assert (found - expected).abs() / total.sqrt() < 10 * unit + 1e-9
    # The chain rule sees the gradient on range × all; on null × null it is 0.
    for z, g, by_factor in zip((x, y), gradients(bures, a, b), by_factors, strict=True):
        g = g.double()
        condition = torch.linalg.cond(z) ** 2
        assert relative_error(2 * g @ z, by_factor) < 10 * unit * condition
        q = torch.linalg.qr(z).Q
        null = torch.eye(64, dtype=DOUBLE) - q @ q.mT
        assert torch.linalg.matrix_norm(null @ g @ null) < 10 * unit * condition


def test_disjoint_ranges_and_zero_matrices():
    a = torch.diag(torch.tensor([1.0, 2.0, 0.0, 0.0]))
    b = torch.diag(torch.tensor([0.0, 0.0, 3.0, 0.0]))
    zero = torch.zeros(4, 4)
    for squared in (True, False):
        for x, y, expected in ((a, b, 6.0), (a, zero, 3.0), (zero, b, 3.0), (zero, zero, 0.0)):
            expected = torch.tensor(expected)
            found = bures(x, y, squared=squared)
            torch.testing.assert_close(found, expected if squared else expected.sqrt())
            weight = 1.0 if squared else torch.where(expected > 0, 0.5 / expected.sqrt(), 0.0)
            g, h = gradients(bures, x, y, squared=squared)
            # Where the ranges do not meet the gradient is the projector on the own range.
            torch.testing.assert_close(g, weight * (x > 0))
            torch.testing.assert_close(h, weight * (y > 0))


def test_triangle_inequality_symmetry_and_rotation():
    a, b, c = (random_spd(6, 40, cond=1e3, seed=seed) for seed in range(3))
    ab, bc, ac = (bures(x, y, squared=False) for x, y in ((a, b), (b, c), (a, c)))
    assert (ac <= ab + bc).all()
    torch.testing.assert_close(bures(b, a, squared=False), ab, rtol=1e-12, atol=0)
    q = torch.linalg.qr(torch.randn(6, 6, dtype=DOUBLE)).Q
    turned = bures(q @ a @ q.mT, q @ b @ q.mT, squared=False)
    torch.testing.assert_close(turned, ab, rtol=1e-12, atol=0)


# Shapes, layouts, scales.


@pytest.mark.parametrize(
    ("first", "second"), [((), ()), ((3,), ()), ((2, 1), (3,)), ((2, 3), (2, 3)), ((1,), (4,))]
)
@each_form
def test_broadcasting(first, second, squared):
    a, b = random_spd(4, *first, cond=5), random_spd(4, *second, cond=5, seed=1)
    batch = torch.broadcast_shapes(first, second)
    wide = a.expand(*batch, 4, 4), b.expand(*batch, 4, 4)
    found = bures(a, b, squared=squared)
    assert found.shape == batch
    torch.testing.assert_close(found, bures(*wide, squared=squared), rtol=1e-13, atol=0)
    for x, g, h in zip(
        (a, b),
        gradients(bures, a, b, squared=squared),
        gradients(bures, *wide, squared=squared),
        strict=True,
    ):
        assert g.shape == x.shape
        torch.testing.assert_close(g, h.sum_to_size(x.shape), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [(0, 0), (3, 0, 0), (0, 4, 4), (2, 0, 3, 3)])
@each_form
def test_empty(shape, squared):
    a, b = torch.zeros(shape, requires_grad=True), torch.zeros(shape[-2:], requires_grad=True)
    mu = torch.zeros(shape[:-1], requires_grad=True)
    for found in (bures(a, b, squared=squared), frechet(mu, a, mu, b, squared=squared)):
        assert torch.equal(found, torch.zeros(shape[:-2]))
        found.sum().backward()
    assert a.grad.shape == shape
    assert b.grad.shape == shape[-2:]
    assert not mu.grad.any()


def test_layouts():
    a, b = pair(5, 3)
    expected = bures(a, b)
    strided = torch.stack([b, b], -1)[..., 0]
    for x, y in ((a.mT, b), (a, strided), (a.mT.contiguous().mT, b.mT)):
        torch.testing.assert_close(bures(x, y), expected, rtol=1e-12, atol=0)
    c, d = pair(4, dtype=torch.complex128)
    torch.testing.assert_close(bures(c.mH, d.conj().mT), bures(c, d), rtol=1e-12, atol=0)


@pytest.mark.parametrize("k", [-50, -7, 1, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_powers_of_four_change_no_bit(dtype, k):
    # Multiples of 2⁻¹² are never made subnormal.
    a, b = (((x * 4096).round() / 4096).to(dtype) for x in pair(8, 3, cond=20))
    scaled = a * 4.0**k, b * 4.0**k
    assert torch.equal(bures(*scaled), bures(a, b) * 4.0**k)
    assert torch.equal(bures(*scaled, squared=False), bures(a, b, squared=False) * 2.0**k)
    for g, h in zip(gradients(bures, *scaled), gradients(bures, a, b), strict=True):
        assert torch.equal(g, h)


@pytest.mark.parametrize(
    ("i", "j"),
    [
        (1e-40, 1e-40),
        (1e37, 1e37),
        (1e-38, 1.0),
        (1.0, 1e37),
        (1e37, 1e-38),
        (1e-38, 1e37),
        (1e-40, 0.0),
        (0.0, 1e-40),
        (0.0, 1e37),
    ],
)
def test_entries_at_the_ends_of_the_range(i, j):
    a, b = (x * s for x, s in zip(pair(4, cond=10, dtype=torch.float32), (i, j), strict=True))
    expected = bures(a.double(), b.double())
    torch.testing.assert_close(bures(a, b).double(), expected, rtol=1e-5, atol=1e-44)
    root = bures(a, b, squared=False).double()
    torch.testing.assert_close(root, expected.sqrt(), rtol=1e-5, atol=0)
    for g, h in zip(gradients(bures, a, b), gradients(bures, a.double(), b.double()), strict=True):
        # A subnormal matrix has few digits; both sides see the same ones.
        assert relative_error(g, h) < 1e-4


def test_a_root_in_range_of_a_square_beyond_it():
    a, zero = 3e38 * torch.eye(3), torch.zeros(3, 3)
    assert bures(a, zero).isinf()
    torch.testing.assert_close(bures(a, zero, squared=False), torch.tensor(3.0).sqrt() * 3e38**0.5)
    mu = torch.full((3,), 1e25)
    found = frechet(mu, a, -mu, zero, squared=False)
    torch.testing.assert_close(found, torch.tensor(12.0).sqrt() * 1e25)
    g = gradients(frechet, mu, a, -mu, zero, squared=False)[0]
    torch.testing.assert_close(g, torch.full((3,), 3.0**-0.5))


def test_eps_is_a_ridge_on_both():
    a, b = pair(5, 2)
    ridge = 0.3 * torch.eye(5, dtype=DOUBLE)
    expected = bures(a + ridge, b + ridge)
    torch.testing.assert_close(bures(a, b, eps=0.3), expected, rtol=1e-12, atol=0)
    mu = torch.randn(5, dtype=DOUBLE)
    found = frechet(mu, a, 0 * mu, b, eps=0.3)
    torch.testing.assert_close(found, expected + mu @ mu, rtol=1e-12, atol=0)
    for g, h in zip(
        gradients(bures, a, b, eps=0.3), gradients(bures, a + ridge, b + ridge), strict=True
    ):
        assert relative_error(g, h).max() < 1e-12


# Gradients.


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@pytest.mark.parametrize("cond", [1e1, 1e2, 1e4, 1e6])
def test_gradient_is_identity_minus_transport(cond, dtype):
    a, b = pair(8, cond=cond, dtype=dtype)
    identity = torch.eye(8)
    for g, m in zip(gradients(bures, a, b), (transport(a, b), transport(b, a)), strict=True):
        assert g.dtype == dtype
        assert torch.equal(g, g.mH)
        assert relative_error(g, identity - m) < tolerance(dtype, cond, "gradient")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@each_form
def test_half_precision(squared, dtype):
    a, b = pair(8, 2, cond=10, dtype=dtype)
    expected = bures(a.double(), b.double(), squared=squared)
    found = bures(a, b, squared=squared)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps, atol=0)
    for g, h in zip(
        gradients(bures, a, b, squared=squared),
        gradients(bures, a.double(), b.double(), squared=squared),
        strict=True,
    ):
        assert g.dtype == dtype
        assert relative_error(g, h).max() < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@each_form
def test_gradcheck_and_gradgradcheck(squared, dtype):
    a, b = (x.requires_grad_() for x in pair(3, 2, dtype=dtype))

    def function(a, b):
        return bures(a, b, squared=squared)

    assert gradcheck(function, (a, b), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, (a, b), check_fwd_over_rev=True)


@each_form
def test_gradcheck_of_frechet_with_broadcasting(squared):
    mu1, mu2 = (torch.randn(*s, 3, dtype=DOUBLE, requires_grad=True) for s in ((2, 1), (2,)))
    a, b = random_spd(3, 2, 1, cond=5), random_spd(3, 2, cond=5, seed=1)

    def function(*inputs):
        return frechet(*inputs, squared=squared, eps=0.1)

    inputs = (mu1, a.requires_grad_(), mu2, b.requires_grad_())
    assert gradcheck(function, inputs, check_forward_ad=True)
    assert gradgradcheck(function, inputs)


def test_first_and_second_derivative_at_multiples_of_the_identity():
    """d² (A, B) = Σ (√λ − √μ)²: at c·I and I by A, 1 − c^{-1/2}; second, c^{-3/2}/2."""
    c, eye = 4.0, torch.eye(3, dtype=DOUBLE)
    e, f = torch.randn(2, 3, 3, dtype=DOUBLE)
    e, f = e + e.mT, f + f.mT
    a, b = (c * eye).requires_grad_(), eye.clone().requires_grad_()
    by_a, by_b = torch.autograd.grad(bures(a, b), (a, b), create_graph=True)
    torch.testing.assert_close(by_a, (1 - c**-0.5) * eye)
    torch.testing.assert_close(by_b, (1 - c**0.5) * eye)
    second, mixed = torch.autograd.grad((by_a * e).sum(), (a, b))
    torch.testing.assert_close((second * f).sum(), (e * f).sum() * c**-1.5 / 2)
    torch.testing.assert_close((mixed * f).sum(), -(e * f).sum() * c**-0.5 / 2)


def test_second_derivative_at_equal_matrices():
    """d² (A, A + H) = ⟨H, X⟩/2 + …, where A X + X A = H."""
    a = random_spd(4, cond=5)
    h = torch.randn(4, 4, dtype=DOUBLE)
    h = h + h.mT
    found = FUNC.hessian(lambda b: bures(a, b))(a)
    expected = matroot.solve_lyapunov(a, h)
    torch.testing.assert_close(torch.einsum("ijkl,kl->ij", found, h), expected)


def test_third_derivative():
    a, b = pair(3)
    t, h = torch.tensor(0.1, dtype=DOUBLE), 1e-4

    def distance(t):
        return bures(a + t * t * b, b * (1 + t))

    second = FUNC.grad(FUNC.grad(distance))
    third = FUNC.grad(second)(t)
    torch.testing.assert_close(
        third, (second(t + h) - second(t - h)) / (2 * h), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("rank", [0, 1, 20, 64])
@each_form
def test_gradient_at_equal_matrices_is_exactly_zero(squared, rank, dtype):
    x = torch.randn(3, 64, rank, dtype=dtype)
    a = x @ x.mH
    assert torch.equal(bures(a, a.clone(), squared=squared), torch.zeros(3).to(real_dtype(dtype)))
    for g in gradients(bures, a, a, squared=squared):
        assert torch.equal(g, torch.zeros_like(a))
    mu = torch.randn(3, 64, dtype=dtype)
    for g in gradients(frechet, mu, a, mu, a, squared=squared):
        assert torch.equal(g, torch.zeros_like(g))


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_second_derivatives_of_singular_matrices_are_finite(rank):
    x = torch.randn(2, 5, rank, dtype=DOUBLE)
    a = (x @ x.mT).requires_grad_()
    b = random_spd(5, 2, cond=5).requires_grad_()
    found = torch.autograd.grad(bures(a, b).sum(), (a, b), create_graph=True)
    for g in torch.autograd.grad(sum(g.sin().sum() for g in found), (a, b)):
        assert g.isfinite().all()


def test_the_first_derivative_solves_no_lyapunov_equation(monkeypatch):
    solved = []
    for solver in Solver.__subclasses__():
        solve = solver.solve
        monkeypatch.setattr(solver, "solve", lambda *x, solve=solve: solved.append(1) or solve(*x))
    a, b = (x.requires_grad_() for x in pair(5))
    (bures(a, b) + bures(a, b, squared=False)).backward()
    torch.autograd.grad(bures(a, b), (a, b), create_graph=True)
    assert not solved
    FUNC.hessian(bures)(a, b)
    assert solved  # The count counts.


def test_a_gradient_does_not_depend_on_the_neighbours():
    a, b = pair(6, 5)
    one = gradients(bures, a, b)
    sevens = 7 * torch.eye(6, dtype=DOUBLE).expand(4, 6, 6)
    other = gradients(bures, torch.cat([a[:1], sevens]), torch.cat([b[:1], 0 * sevens]))
    for g, h in zip(one, other, strict=True):
        assert torch.equal(g[0], h[0])


def test_autocast_does_not_reach_inside():
    a, b = pair(16, 2, cond=50, dtype=torch.float32)
    expected = bures(a, b), *gradients(bures, a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = bures(a, b), *gradients(bures, a, b)
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)


def test_activation_checkpointing():
    a, b = (x.requires_grad_() for x in pair(4))
    found = torch.utils.checkpoint.checkpoint(bures, a, b, use_reentrant=False)
    for g, h in zip(
        torch.autograd.grad(found, (a, b), create_graph=True), gradients(bures, a, b), strict=True
    ):
        assert torch.equal(g, h)


# The compiled kernel.


built = pytest.mark.skipif(not native.tasks.available(), reason="no C++ compiler at installation")


def everything(a, b):
    """d², d and both gradients of d²."""
    return bures(a, b), bures(a, b, squared=False), *gradients(bures, a, b)


def by_kernel(a, b, eps=0.0):
    """What the kernel finds of pairs: d² and both gradients, d² NaN where it leaves one."""
    limits = screen.thresholds(a.shape[-1], a.dtype)
    return squared_distances(a, b, limits, eps, gradients=True)


def well_conditioned(n, *batch, cond=1e4):
    return pair(n, *batch, cond=cond, dtype=torch.float32)


@built
@pytest.mark.parametrize("n", [2, 3, 7, 8, 16, 17, 24, 25, 33, 64, 65, 129, 256])
def test_the_kernel_is_exact_to_the_rounding_of_its_result(n, monkeypatch):
    a, b = well_conditioned(n, 3 if n > 64 else 19)
    expected = everything(a.double(), b.double())
    found = everything(a, b)
    for x, y in zip(found, expected, strict=True):
        error = relative_error(x.double(), y) if x.ndim > 1 else (x / y - 1).abs()
        assert error.max() < torch.finfo(torch.float32).eps
    # By PyTorch's operations some hundred times as far off.
    monkeypatch.setattr("matroot.transport.squared_distances", lambda *_, **__: None)
    for x, y in zip(found, everything(a, b), strict=True):
        error = relative_error(y, x) if x.ndim > 1 else (y / x - 1).abs()
        assert error.max() < 1e-2


@built
def test_the_kernel_at_near_matrices():
    a, b = well_conditioned(32, 4, cond=1e2)
    for step in (1e-1, 1e-3, 1e-5):
        c = torch.lerp(a, b, step)
        for x, y in zip(everything(a, c), everything(a.double(), c.double()), strict=True):
            error = relative_error(x.double(), y) if x.ndim > 1 else (x / y - 1).abs()
            assert error.max() < 1e-6


@built
@pytest.mark.parametrize("n", [16, 64])
def test_the_kernel_keeps_the_digits_of_small_eigenvalues(n):
    a = random_spd(n, 4, cond=1e5)
    e = torch.randn(n, n, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) / n**0.5
    root = matroot.sqrtm(a)
    b = root @ (torch.eye(n, dtype=DOUBLE) + 5e-4 * (e + e.mT)) @ root
    a, b = a.float(), b.float()
    assert by_kernel(a, b)[0].isfinite().all()
    for g, h in zip(gradients(bures, a, b), gradients(bures, a.double(), b.double()), strict=True):
        # 1e-3 where QL begins at the large end.
        assert relative_error(g.double(), h).max() < 2e-5


@built
@pytest.mark.parametrize("n", [1, 8, 24, 25, 64])
def test_what_the_kernel_leaves(n):
    """A singular matrix, one close to it, an indefinite one, one that is not symmetric, NaN."""
    good, other = (random_spd(n, cond=10, dtype=torch.float32, seed=seed) for seed in (1, 2))
    q = torch.linalg.qr(torch.randn(n, n, dtype=DOUBLE)).Q
    values = torch.ones(n, dtype=DOUBLE)
    bad = [torch.zeros(n, n)]
    for least in (0.0, 1e-7, -1e-7, -0.5) if n > 1 else ():
        values[0] = least
        bad.append(((q * values) @ q.mT).float())
    if n > 1:
        bad += [torch.ones(n, n), good + torch.ones(n, n).triu(1)]
    bad += [-good, good * torch.nan]
    for x in bad:
        mixed = torch.stack([good, x, good])
        for pairs in ((mixed, other.expand(3, n, n)), (other.expand(3, n, n), mixed)):
            square, *by = by_kernel(*pairs)
            assert square.isnan().tolist() == [False, True, False]
            for y, z in zip((square, *by), by_kernel(good[None], other[None]), strict=True):
                expected = z if pairs[0] is mixed else None
                if expected is not None:
                    assert torch.equal(y[[0, 2]], expected.expand(2, *z.shape[1:]))
        assert by_kernel(x[None], x[None])[0].isnan().all()  # Also where it is its own partner.
    for x in by_kernel(good[None], good[None]):
        assert torch.equal(x, torch.zeros_like(x))
    values[0] = 1e-5
    near = ((q * values) @ q.mT).float()
    assert by_kernel(near[None], other[None])[0].isfinite().all()


@built
@pytest.mark.parametrize("n", [5, 24, 25, 64])
def test_the_bits_of_a_pair_are_its_own(n):
    a, b = well_conditioned(n, 21)
    whole = everything(a, b)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert all(map(torch.equal, everything(a, b), whole))
    finally:
        torch.set_num_threads(threads)
    for i in (0, 9, 20):
        one = everything(a[i], b[i])
        some = everything(a[i - 1 : i + 1], b[i - 1 : i + 1]) if i else everything(a[:3], b[:3])
        for x, y, z in zip(whole, one, some, strict=True):
            assert torch.equal(x[i], y)
            assert torch.equal(x[i], z[-1] if i else z[0])
    # A neighbour that is left to PyTorch's operations.
    a[4] = torch.ones(n, n)
    others = [i for i in range(21) if i != 4]
    for x, y in zip(everything(a, b), whole, strict=True):
        assert torch.equal(x[others], y[others])
        assert x[4].isfinite().all()


@built
@pytest.mark.parametrize("n", [5, 33])
def test_the_kernel_broadcasts(n):
    a, b = random_spd(n, 3, 1, cond=9).float(), random_spd(n, 4, cond=9, seed=1).float()
    wide = a.expand(3, 4, n, n), b.expand(3, 4, n, n)
    assert by_kernel(a, b[None])[0].shape == (3, 4)
    found, expected = everything(a, b), everything(*(x.contiguous() for x in wide))
    for x, y in zip(found[:2], expected[:2], strict=True):
        assert x.shape == (3, 4)
        assert torch.equal(x, y)
    for x, y, shape in zip(found[2:], expected[2:], (a.shape, b.shape), strict=True):
        torch.testing.assert_close(x, y.sum_to_size(shape))
    # Bad matrices on either side spoil their own pairs only.
    a[1], b[2] = torch.nan, -b[2]
    spoilt = FUNC.vmap(bures, in_dims=(0, None))(a[:, 0][:, None], b)
    good = torch.ones(3, 4, dtype=torch.bool)
    good[1], good[:, 2] = False, False
    assert torch.equal(spoilt[good], found[0][good])
    assert spoilt[~good].isnan().all()


@built
@pytest.mark.parametrize("n", [4, 40])
def test_the_kernel_takes_ridges_and_half_precision(n):
    a, b = well_conditioned(n, 2, cond=10)
    ridge = 0.5 * torch.eye(n)
    for x, y in zip(by_kernel(a, b, 0.5), by_kernel(a + ridge, b + ridge), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)
    x, y = a.half(), b.half()
    assert torch.equal(bures(x, y), bures(x.float(), y.float()).half())


@built
@pytest.mark.parametrize("n", [3, 30])
def test_the_kernel_writes_all_of_its_results(n):
    # Fresh memory is filled with NaN: what is not written shows.
    a, b = well_conditioned(n, 11)
    torch.use_deterministic_algorithms(True)
    try:
        found = by_kernel(a, b)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize(("n", "dtype"), [(64, torch.float32), (256, torch.float64)], ids=str)
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.25, 0.75), (0.5, 1.0)])
def test_projectors_have_no_gradient_on_their_null_space(n, dtype, shares):
    bases = [torch.linalg.qr(torch.randn(n, n, dtype=DOUBLE)).Q for _ in shares]
    ranges = [q[:, : int(n * share)] for q, share in zip(bases, shares, strict=True)]
    a, b = ((x @ x.mT).to(dtype) for x in ranges)
    expected = of_factors(*ranges)
    unit = torch.finfo(dtype).eps
    assert bures(a, b).item() == pytest.approx(expected[0].item(), rel=8 * unit)
    for g, q, x, by in zip(gradients(bures, a, b), bases, ranges, expected[1:], strict=True):
        g, null = g.double(), q[:, x.shape[1] :]
        assert (null.mT @ g @ null).norm() < 8 * unit * g.norm()
        assert (2 * g @ x - by).norm() < 100 * unit * x.norm()


# Transforms.


@each_form
def test_transforms_agree_with_autograd(squared):
    a, b = pair(3, 2)

    def loss(a, b):
        return bures(a, b, squared=squared).sin()

    def agree(found, expected):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)

    agree(FUNC.vmap(loss)(a, b), loss(a, b))
    agree(FUNC.vmap(loss, in_dims=(2, None))(a.permute(1, 2, 0), b[0]), loss(a, b[0]))
    nested = FUNC.vmap(FUNC.vmap(loss, in_dims=(None, 0)), in_dims=(0, None))
    agree(nested(a, b), loss(a[:, None], b))
    first = gradients(loss, a, b)
    agree(FUNC.vmap(FUNC.grad(loss, argnums=(0, 1)))(a, b), first)
    agree(FUNC.vmap(FUNC.jacrev(loss, argnums=(0, 1)))(a, b), first)
    agree(FUNC.jacfwd(loss)(a[0], b[0]), first[0][0])
    toward = pair(3, cond=9)
    along = sum((g[0] * v).sum() for g, v in zip(first, toward, strict=True))
    agree(FUNC.jvp(loss, (a[0], b[0]), toward)[1], along)
    hessian = torch.autograd.functional.hessian(loss, (a[0], b[0]))
    agree(FUNC.hessian(loss, argnums=(0, 1))(a[0], b[0]), hessian)
    agree(FUNC.jacrev(FUNC.jacrev(loss, (0, 1)), (0, 1))(a[0], b[0]), hessian)
    agree(FUNC.jacfwd(FUNC.jacfwd(loss, (0, 1)), (0, 1))(a[0], b[0]), hessian)
    agree(FUNC.vmap(FUNC.hessian(loss))(a, b)[0], hessian[0][0])


@each_form
def test_compile_fullgraph_forward_and_backward(squared):
    a, b = (x.requires_grad_() for x in pair(4, 2))
    mu, nu = (torch.randn(2, 4, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    torch._dynamo.reset()
    for function, inputs in ((bures, (a, b)), (frechet, (mu, a, nu, b))):
        compiled = torch.compile(
            lambda *x, f=function: f(*x, squared=squared), fullgraph=True, backend="aot_eager"
        )
        found = compiled(*inputs)
        expected = function(*inputs, squared=squared)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
        for g, h in zip(
            torch.autograd.grad(found.sum(), inputs),
            torch.autograd.grad(expected.sum(), inputs),
            strict=True,
        ):
            torch.testing.assert_close(g, h, rtol=1e-12, atol=1e-13)


def test_tensors_without_values():
    meta = torch.empty(2, 3, 3, device="meta")
    assert bures(meta, meta[0]).shape == (2,)
    with torch._subclasses.FakeTensorMode():
        a = torch.empty(2, 3, 3, requires_grad=True)
        bures(a, a).sum().backward()
        assert a.grad.shape == a.shape


# Errors.


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        ([[1.0]], torch.eye(2), TypeError, "a must be a torch.Tensor, got list"),
        (torch.eye(2), None, TypeError, "b must be a torch.Tensor, got NoneType"),
        (torch.eye(2), torch.eye(2).int(), TypeError, "b must have dtype .*; got int32"),
        (torch.eye(2), torch.eye(2).double(), TypeError, "a and b must have one dtype"),
        (torch.ones(2, 3), torch.eye(2), ValueError, r"a must have shape .*, got \(2, 3\)"),
        (torch.eye(2), torch.ones(2), ValueError, r"b must have shape .*, got \(2,\)"),
        (torch.eye(2), torch.eye(3), ValueError, r"one n, got shapes \(2, 2\) and \(3, 3\)"),
        (
            torch.ones(4, 3, 2, 2),
            torch.ones(2, 2, 2),
            ValueError,
            r"batch dimensions of a and b must be equal or 1, got \(4, 3\) and \(2,\)",
        ),
        (torch.eye(2), torch.eye(2, device="meta"), ValueError, "a and b must be on one device"),
    ],
)
def test_arguments(a, b, error, message):
    with pytest.raises(error, match=message):
        bures(a, b)
    mu = torch.zeros(2)
    message = message.replace("a and b", "cov1 and cov2").replace("a must", "cov1 must")
    with pytest.raises(error, match=message.replace("b must", "cov2 must")):
        frechet(mu, a, mu, b)


@pytest.mark.parametrize(
    ("mu1", "mu2", "error", "message"),
    [
        (torch.zeros(2), 0.0, TypeError, "mu2 must be a torch.Tensor, got float"),
        (torch.tensor(0.0), torch.zeros(2), ValueError, r"mu1 must have shape \(\.\.\., n\)"),
        (torch.zeros(2).double(), torch.zeros(2), TypeError, "mu1 must have one dtype"),
        (torch.zeros(2), torch.zeros(1), ValueError, r"cov1 and mu2 must have one n, got shapes"),
        (
            torch.zeros(3, 2),
            torch.zeros(4, 2),
            ValueError,
            r"batch dimensions of mu1 and mu2 must be equal or 1, got \(3,\) and \(4,\)",
        ),
        (torch.zeros(2), torch.tensor([0, torch.nan]), LinAlgError, "mu2 is not finite"),
        (
            torch.tensor([[0, 0], [0, torch.inf]]),
            torch.zeros(2),
            LinAlgError,
            "1 of the 2 means in mu1 is not finite",
        ),
    ],
)
def test_means(mu1, mu2, error, message):
    with pytest.raises(error, match=message):
        frechet(mu1, torch.eye(2), mu2, torch.eye(2))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"squared": 1}, TypeError, "squared must be a bool, got int"),
        ({"eps": "1"}, TypeError, "eps must be a float, got str"),
        ({"eps": -1.0}, ValueError, "eps must be finite in torch.float32 and at least 0"),
    ],
)
def test_options(options, error, message):
    mu, a = torch.zeros(2), torch.eye(2)
    for call in (lambda: bures(a, a, **options), lambda: frechet(mu, a, mu, a, **options)):
        with pytest.raises(error, match=message):
            call()


def spoilt(kind):
    a = random_spd(3, 4, cond=5)
    if kind == "not finite":
        a[2, 0, 0] = torch.nan
    elif kind == "not symmetric":
        a[2, 0, 1] += 1
    else:
        a[2] *= -1
    return a


@pytest.mark.parametrize("kind", ["not finite", "not symmetric", "indefinite"])
def test_a_bad_matrix_is_named(kind):
    good, bad = random_spd(3, 4, cond=5, seed=1), spoilt(kind)
    mu = torch.zeros(3, dtype=DOUBLE)
    reason = f"is {kind}.*batch index 2"
    with pytest.raises(LinAlgError, match=f"1 of the 4 matrices in a {reason}"):
        bures(bad, good)
    with pytest.raises(LinAlgError, match=f"1 of the 4 matrices in b {reason}"):
        bures(good[:2, None], bad.requires_grad_())
    with pytest.raises(LinAlgError, match=f"1 of the 4 matrices in cov2 {reason}"):
        frechet(mu, good, mu, bad)
    found = FUNC.vmap(bures)(good, bad.detach())
    assert found[2].isnan()
    assert found[[0, 1, 3]].isfinite().all()


@each_form
def test_the_62_good_pairs_of_a_batch_of_64(squared):
    a, b = pair(8, 64, cond=20, dtype=torch.float32)
    mu, nu = torch.randn(2, 64, 8)
    whole = FUNC.vmap(
        FUNC.grad_and_value(lambda *x: frechet(*x, squared=squared), argnums=(0, 1, 2, 3))
    )
    clean = whole(mu, a, nu, b)
    good = [i for i in range(64) if i not in (10, 40)]
    a[10], b[40] = torch.nan, -b[40]
    found = whole(mu, a, nu, b)
    for x, y in zip((*found[0], found[1]), (*clean[0], clean[1]), strict=True):
        assert torch.equal(x[good], y[good])
    assert found[1][[10, 40]].isnan().all()
    for x in (found[0][1], found[0][3]):
        assert x[[10, 40]].isnan().all()
    nu[10, 3] = torch.inf
    assert whole(mu, clean[0][1] * 0, nu, b * 0)[1].isnan().nonzero().flatten().tolist() == [10]
