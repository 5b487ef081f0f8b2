"""The minimax iteration: its polynomials, its products, its accuracy compared with eigh."""

import pytest
import torch

import matroot
from matroot import spd
from matroot.gradients import Lyapunov, Spectral
from matroot.kernels import native
from matroot.methods import Eigh, Minimax
from matroot.schedules import best_cubic, best_quintic, schedules
from matroot.testing import (
    Products,
    by_eigh,
    exact,
    exact_gradient,
    random_spd,
    relative_error,
)


@pytest.mark.parametrize("best", [best_cubic, best_quintic])
@pytest.mark.parametrize("low", [1e-7, 1e-3, 0.05, 0.3, 0.7, 0.95])
def test_polynomials_have_equal_extremes_of_alternating_sign(best, low):
    (a, b, c), error = best(torch.tensor(low, dtype=torch.float64))
    t = torch.logspace(torch.log10(torch.tensor(low)).item(), 0, 200_001, dtype=torch.float64)
    t[0] = low
    deviation = a * t + b * t**3 + c * t**5 - 1
    assert deviation.abs().max() <= error * (1 + 1e-6) + 1e-15
    # Chebyshev: one more extremum than there are coefficients proves that none is better.
    at_extreme = deviation[deviation.abs() > error * (1 - 1e-4)].sign()
    changes = int((at_extreme.diff() != 0).sum())
    assert changes >= (2 if best is best_cubic else 3)


@pytest.mark.parametrize("degree", [3, 5])
def test_every_schedule_ends_at_rounding(degree):
    table = schedules(degree, torch.float64, torch.device("cpu"))
    assert (table[:, -1, 3] < torch.finfo(torch.float64).eps).all()
    assert (table[:, 1:, 3] <= table[:, :-1, 3] + torch.finfo(torch.float64).eps).all()


# In float32 a ratio of 3e6 is beyond the rounding level, and the inverse needs a proof.
@pytest.mark.parametrize(
    ("ratio", "dtype", "products", "gradient"),
    [
        (5e2, torch.float32, 14, 14),
        (1.7e5, torch.float32, 22, 17),
        (3e6, torch.float64, 26, 23),
    ],
)
def test_products_where_the_bound_is_known(ratio, dtype, products, gradient):
    a = random_spd(16, 2, cond=100, dtype=dtype)
    looseness = (spd.bounds(a, a @ a).high / spd.largest_at_least(a).flatten()).max().item()
    method = Minimax(max_cond=ratio / looseness, tol=1e-6)
    with Products() as both:
        s, z = matroot.sqrtm_pair(a, method=method, backend="torch")
    assert both.count == products
    for function in (matroot.sqrtm, matroot.inv_sqrtm):
        with Products() as one:
            function(a, method=method, backend="torch")
        assert one.count == products - 1
    a.requires_grad_()
    s, z = matroot.sqrtm_pair(a, method=method, backend="torch")
    total = (s + z).square().sum()
    with Products() as backward:
        torch.autograd.grad(total, a)
    # The gradient of Z, −Z G Z, takes two products besides the solver's.
    assert backward.count == gradient + 2


def test_products_where_nothing_is_known():
    a = random_spd(64, 2, cond=100, dtype=torch.float32).requires_grad_()
    with Products() as forward:
        s = matroot.sqrtm(a, method=Minimax(), backend="torch")
    assert forward.count == 18  # 17 for five steps, 1 for the inverse that bounds λ_min
    with Products() as backward:
        torch.autograd.grad(s.sum(), a)
    assert backward.count == 14


def errors(a, g, function, quantity, method, rule, backend="auto"):
    x = a.clone().requires_grad_()
    y = function(x, method=method, gradient=rule, backend=backend, check_errors=False)
    gradient = torch.autograd.grad(y, x, g)[0]
    root = relative_error(y, exact(a, quantity)).mean()
    return root, relative_error(gradient, exact_gradient(a, g, quantity)).mean()


@pytest.mark.parametrize("cond", [1e1, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("spectrum", ["log", "clustered", "outlier"])
@pytest.mark.parametrize("n", [16, 64, 256])
def test_more_accurate_than_eigh_in_single_precision(n, spectrum, cond):
    a = random_spd(n, 4, cond=cond, spectrum=spectrum, dtype=torch.float32)
    g = torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    for function, quantity in ((matroot.sqrtm, "sqrt"), (matroot.inv_sqrtm, "inv_sqrt")):
        truth = exact(a, quantity), exact_gradient(a, g, quantity)
        eigh = [
            relative_error(x, y).mean() for x, y in zip(by_eigh(a, g, quantity), truth, strict=True)
        ]
        for backend in ("torch", "auto"):
            ours = errors(a, g, function, quantity, Minimax(), Lyapunov(), backend)
            for i in range(2):
                assert ours[i].isfinite()
                # Where rounding made an eigenvalue negative, eigh gives NaN.
                assert ours[i] <= 1.1 * eigh[i] or eigh[i].isnan()
                if cond >= 1e4 and (i == 1 or quantity == "inv_sqrt"):
                    assert ours[i] <= 0.35 * eigh[i] or eigh[i].isnan()
        default = errors(a, g, function, quantity, "auto", "auto")
        for i in range(2):
            assert default[i] <= 1.1 * eigh[i] or eigh[i].isnan()
            if native.tasks.available():
                # With the kernels the errors are rounding, whatever the condition number.
                assert default[i] <= 0.9 * eigh[i] or eigh[i].isnan()
                assert default[i] <= 2e-6


@pytest.mark.parametrize("n", [16, 64, 256])
def test_roots_of_singular_matrices_beside_eigh(n):
    a = random_spd(n, 4, cond=1e2, spectrum="half_zero", dtype=torch.float32)
    reference = exact(random_spd(n, 4, cond=1e2, spectrum="half_zero"))
    eigh = relative_error(by_eigh(a, a)[0], reference).mean()
    for method in ("auto", "minimax"):
        assert relative_error(matroot.sqrtm(a, method=method), reference).mean() <= 3 * eigh


@pytest.mark.parametrize("n", [16, 64, 256])
@pytest.mark.parametrize("spectrum", ["log", "clustered", "outlier"])
def test_double_precision(n, spectrum):
    a = random_spd(n, 2, cond=1e4, spectrum=spectrum)
    g = torch.randn(a.shape, dtype=a.dtype, generator=torch.Generator().manual_seed(0))
    for method, rule in ((Minimax(), Lyapunov()), (Eigh(), Spectral())):
        root, gradient = errors(a, g, matroot.sqrtm, "sqrt", method, rule)
        assert root <= 1e-13
        assert gradient <= 1e-11
        assert errors(a, g, matroot.inv_sqrtm, "inv_sqrt", method, rule)[1] <= 1e-11


@pytest.mark.parametrize("degree", [3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 8, 33])
def test_never_silently_wrong_near_singularity(n, dtype, degree):
    generator = torch.Generator().manual_seed(n)
    q = torch.linalg.qr(torch.randn(200, n, n, dtype=torch.float64, generator=generator)).Q
    values = torch.rand(200, n, dtype=torch.float64, generator=generator)
    values[:50] *= values[:50] < 0.5  # rank-deficient
    values[50:100] = 10 ** (-16 * values[50:100])  # graded
    values[100:150, : n // 2] = 1e-7 * (values[100:150, : n // 2] - 0.5)  # rounding, either sign
    values[150:, 1:] = 1e-8  # one outlier
    a = (q * values[:, None, :]) @ q.mT
    a = ((a + a.mT) / 2).to(dtype)
    method = Minimax(step_degree=degree)
    s = matroot.sqrtm(a, method=method, check_errors=False)
    known = s.isfinite().all(-1).all(-1)
    # A zero eigenvalue has an error of n·u, its root one of √(n·u).
    limit = 5 * (max(n, 4) * torch.finfo(dtype).eps) ** 0.5
    assert (relative_error(s, exact(a))[known] < limit).all()
    z = matroot.inv_sqrtm(a, method=method, check_errors=False)
    found = z.isfinite().all(-1).all(-1)
    smallest = torch.linalg.eigvalsh(a.double())[:, 0]
    assert (smallest[found] > 0).all()


def test_max_cond_is_a_promise_and_shrinks_what_lies_beyond():
    a = torch.diag(torch.tensor([1.0, 0.5, 1e-6], dtype=torch.float64))
    s = matroot.sqrtm(a, method=Minimax(max_cond=100))
    assert 0 < s[2, 2] < 1e-3
    torch.testing.assert_close(s.diagonal()[:2], a.diagonal()[:2].sqrt())


def test_options():
    for wrong in ({"tol": 0.0}, {"max_cond": -1.0}, {"step_degree": 4}, {"max_steps": 0}):
        with pytest.raises(ValueError, match="must be"):
            Minimax(**wrong)
    rough = matroot.sqrtm(random_spd(8, cond=100), method=Minimax(max_steps=2))
    assert 1e-3 < relative_error(rough, exact(random_spd(8, cond=100))) < 1
