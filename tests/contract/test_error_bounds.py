"""Error bounds are never below the error, seldom far above it, and catch wrong roots."""

import functools
import math

import mpmath
import pytest
import torch

import matroot
from matroot import error_bounds, gradient_bounds, plan, residuals
from matroot.methods import Minimax, Pade, Taylor
from matroot.roots import BOTH
from matroot.testing import (
    count_launches,
    exact,
    exact_gradient,
    random_spd,
    relative_error,
)

SINGLE = [torch.float32, torch.complex64]
SHAPES = [(1, 20), (2, 20), (7, 20), (16, 20), (33, 4), (70, 1)]


def conditions(a, quantity):
    """‖A‖_F/(2 λ_min^½ ‖S‖_F), or ‖A‖_F/(2 λ_min^{3/2} ‖Z‖_F)."""
    least = torch.linalg.eigvalsh(a)[..., 0]
    power = 0.5 if quantity == "sqrt" else 1.5
    norm = torch.linalg.matrix_norm
    return norm(a) / (2 * least**power * norm(exact(a, quantity)))


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("dtype", SINGLE, ids=str)
@pytest.mark.parametrize("spectrum", ["log", "clustered", "outlier"])
def test_bounds_lie_between_the_error_and_ten_times_what_conditions_allow(spectrum, dtype, backend):
    if backend == "native" and dtype.is_complex:
        pytest.skip("its kernels know real numbers")
    # Beyond the kernels' size operations take over.
    for n, count in SHAPES + [(260, 1)] * (backend == "native" and spectrum == "log"):
        for cond in (1.0, 1e2, 1e4, 1e6):
            a = random_spd(n, count, cond=cond, spectrum=spectrum, dtype=dtype, seed=n)
            found = matroot.sqrtm_ex(a, root="both", backend=backend)
            for quantity, x, bound in (
                ("sqrt", found.sqrt, found.error_bound),
                ("inv_sqrt", found.inv_sqrt, found.inv_error_bound),
            ):
                error = relative_error(x, exact(a, quantity))
                level = n * torch.finfo(dtype).eps * conditions(a.to(exact(a).dtype), quantity)
                assert (bound >= error).all(), (n, cond, quantity)
                assert (bound <= 10 * torch.maximum(error, level)).all(), (n, cond, quantity)


@functools.cache
def by_mpmath(n, cond, spectrum, seed):
    a = random_spd(n, cond=cond, spectrum=spectrum, seed=seed)
    with mpmath.workdps(60):
        values, q = mpmath.eigsy(mpmath.matrix(a.tolist()))
        return a, [q * mpmath.diag([f(x) for x in values]) * q.T for f in (ROOT, INV_ROOT)]


def ROOT(x):
    return mpmath.sqrt(x) if x > 0 else mpmath.mpf(0)


def INV_ROOT(x):
    return 1 / mpmath.sqrt(abs(x))


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("spectrum", ["log", "clustered", "half_zero"])
@pytest.mark.parametrize("cond", [1.0, 1e3, 1e8, 1e14])
def test_in_double_precision_bounds_are_above_the_error_of_exact_arithmetic(
    cond, spectrum, backend
):
    unit = torch.finfo(torch.float64).eps
    zero = 1e-6 if spectrum == "half_zero" else 0.0
    for n in (1, 2, 5):
        a, exactly = by_mpmath(n, cond, spectrum, 3)
        root = "sqrt" if spectrum == "half_zero" and n > 1 else "both"
        found = matroot.sqrtm_ex(a, root=root, backend=backend)
        values = [(found.sqrt, found.error_bound), (found.inv_sqrt, found.inv_error_bound)]
        for (x, bound), reference in zip(values, exactly, strict=True):
            if x is None:
                continue
            with mpmath.workdps(60):
                apart = mpmath.mnorm(mpmath.matrix(x.tolist()) - reference, "f")
                error = float(apart / mpmath.mnorm(reference, "f"))
            assert error <= bound
            assert bound < 1e3 * unit * (cond**0.5 if x is found.sqrt else cond) + zero


@pytest.mark.parametrize("method", [Taylor(), Pade(), Minimax(max_steps=2)], ids=repr)
def test_bounds_of_roots_that_are_far_off(method):
    a = random_spd(16, 5, cond=30.0, dtype=torch.float64)
    found = matroot.sqrtm_ex(a, root="both", method=method)
    error, inv_error = (
        relative_error(found.sqrt, exact(a)),
        relative_error(found.inv_sqrt, exact(a, "inv_sqrt")),
    )
    assert (error > 1e-3).all()
    assert (found.error_bound >= error).all()
    assert (found.error_bound < 20 * error).all()
    # NaN, where ‖Z A Z − I‖_F is not below 1, is right too.
    assert not (found.inv_error_bound < inv_error).any()


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_wrong_roots_are_told(dtype, backend):
    """Roots that are off, and the other roots of A, with residuals of rounding."""
    a = random_spd(9, 2, cond=50.0, dtype=dtype)
    s, z = exact(a).to(dtype), exact(a, "inv_sqrt").to(dtype)
    values, q = torch.linalg.eigh(a.double())
    signs = torch.ones(9, dtype=torch.float64)
    signs[0] = -1.0
    call = plan.resolve(BOTH, a, 0.0, "auto", "auto", backend, "raise")

    def bounds(s, z):
        measures = residuals.measure(call, a, s, z)
        return error_bounds.error_bounds(measures, 9, call.request.computing_dtype)

    good, inv_good = bounds(s, z)
    assert (good < 200 * torch.finfo(dtype).eps).all()
    assert (inv_good < 1000 * torch.finfo(dtype).eps).all()
    off, inv_off = bounds(s + 0.01 * torch.eye(9, dtype=dtype), 1.01 * z)
    assert (off > 0.01).all()
    assert (inv_off > 0.0099).all()
    other = ((q * (signs * values.sqrt())[:, None, :]) @ q.mT).to(dtype)
    inv_other = ((q * (signs / values.sqrt())[:, None, :]) @ q.mT).to(dtype)
    off, inv_off = bounds(other, inv_other)
    assert off.isnan().all()
    assert inv_off.isnan().all()


@pytest.mark.parametrize("method", ["auto", "minimax"])
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_bounds_of_nearly_singular_matrices_are_near_the_error(backend, method):
    for n in (2, 5, 16, 40):
        for cond in (1e7, 3e8):
            a = random_spd(n, 50, cond=cond, dtype=torch.float32, seed=n)
            a = a[torch.linalg.eigvalsh(a.double())[:, 0] > 1e-8 * torch.linalg.matrix_norm(a, 2)]
            found = matroot.sqrtm_ex(a, root="sqrt", method=method, backend=backend)
            error = relative_error(found.sqrt, exact(a))
            assert (found.error_bound >= error).all()
            assert (found.error_bound < 100 * error).all()


def test_kernel_and_operations_measure_the_same():
    a = random_spd(40, 5, cond=1e3, dtype=torch.float32)
    s, z = exact(a).float() * 1.001, exact(a, "inv_sqrt").float() * 1.001
    found, expected = (
        residuals.measure(plan.resolve(BOTH, a, 1e-4, "auto", "auto", backend, "raise"), a, s, z)
        for backend in ("native", "torch")
    )
    torch.testing.assert_close(found.norm, expected.norm)
    torch.testing.assert_close(found.trace, expected.trace)
    for name in ("norm", "residual"):
        torch.testing.assert_close(getattr(found.sqrt, name), getattr(expected.sqrt, name))
    for measured, by_torch in zip(found.sqrt.inverse, expected.sqrt.inverse, strict=True):
        torch.testing.assert_close(measured, by_torch)
    torch.testing.assert_close(found.inv_sqrt[:5], expected.inv_sqrt[:5])
    # The kernel proves nine tenths of what its inverse proposes.
    torch.testing.assert_close(found.sqrt.least, 0.9 * expected.sqrt.least)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_singular_and_bad_matrices(dtype, backend):
    unit = torch.finfo(dtype).eps
    good = random_spd(6, cond=10.0, dtype=dtype)
    v = torch.randn(6, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
    a = torch.stack([good, v @ v.mT, 0 * good, good / 0, -good])
    found = matroot.sqrtm_ex(a, backend=backend)
    bound = found.error_bound
    assert bound[0] < 100 * unit
    # The root of what rounding may have added to an eigenvalue of 0.
    assert relative_error(found.sqrt[1], exact(a[1])) <= bound[1] < 20 * unit**0.5
    assert bound[2] == 0
    assert bound[3:].isnan().all()
    assert matroot.sqrtm_ex(a, root="inv_sqrt", backend=backend).inv_error_bound[1:].isnan().all()


def test_a_bound_does_not_depend_on_neighbours():
    for n in (5, 30, 300):
        a = random_spd(n, 4, cond=1e3, dtype=torch.float32)
        alone = matroot.sqrtm_ex(a[2:3], root="both")
        a[0, 0, 0] = torch.nan
        together = matroot.sqrtm_ex(a, root="both")
        for x, y in zip(alone[2:6], together[2:6], strict=True):
            if n <= 256:
                assert x[0] == y[2]
            torch.testing.assert_close(x[0], y[2], rtol=1e-3, atol=0)


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e150, 1e300])
def test_bounds_do_not_depend_on_the_scale(scale):
    a = random_spd(6, 3, cond=20.0)
    for backend in ("native", "torch"):
        found = matroot.sqrtm_ex(a * scale, root="both", backend=backend)
        assert (found.error_bound < 1e-13).all()
        assert (found.inv_error_bound < 1e-12).all()


def test_nothing_waits_for_a_device():
    a = random_spd(200, 3, dtype=torch.float32)
    count_launches(lambda a: matroot.sqrtm_ex(a, root="both")[2:], a)


@pytest.mark.parametrize("dtype", [*SINGLE, torch.float64], ids=str)
@pytest.mark.parametrize("quantity", ["sqrt", "inv_sqrt"])
def test_bounds_of_gradients(quantity, dtype):
    function = matroot.sqrtm if quantity == "sqrt" else matroot.inv_sqrtm
    for n in (1, 3, 20):
        for cond in (1.0, 1e2, 1e4):
            a = random_spd(n, 20, cond=cond, dtype=dtype, seed=n).requires_grad_()
            g = torch.randn(a.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
            function(a).backward(g)
            wanted = {f"g_{quantity}": g}
            bound = matroot.gradient_error_bound(a, a.grad, **wanted)
            if dtype != torch.float64:
                assert (bound >= relative_error(a.grad, exact_gradient(a, g, quantity))).all()
            assert (bound < 100 * n**1.5 * cond * torch.finfo(dtype).eps).all()
            off = 1.01 * exact_gradient(a, g, quantity).to(dtype)
            assert not (matroot.gradient_error_bound(a, off, **wanted) < 0.0099).any()


def test_bounds_of_gradients_of_pairs_and_what_has_none():
    a = random_spd(4, 2, cond=10.0, dtype=torch.float32)
    g = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    x = a.clone().requires_grad_()
    roots = matroot.sqrtm_pair(x, eps=0.1)
    torch.autograd.backward(roots, tuple(g))
    bound = matroot.gradient_error_bound(a, x.grad, g_sqrt=g[0], g_inv_sqrt=g[1], eps=0.1)
    assert (bound < 1e-5).all()
    a[1] = 1.0
    known = matroot.gradient_error_bound(a, x.grad, g_sqrt=g[0], g_inv_sqrt=g[1], eps=0.1)
    assert known[0] == bound[0]
    assert known[1] > 0.5  # A gradient of another matrix.
    x = a.clone().requires_grad_()
    torch.autograd.backward(matroot.sqrtm_pair(x, eps=0.1), tuple(g))
    error = relative_error(100 * x.grad, x.grad)
    wrong = matroot.gradient_error_bound(a, 100 * x.grad, g_sqrt=g[0], g_inv_sqrt=g[1], eps=0.1)
    torch.testing.assert_close(wrong.double(), error, rtol=2e-3, atol=0)
    assert matroot.gradient_error_bound(a, x.grad, g_sqrt=g[0])[1].isnan()  # A singular matrix.
    assert matroot.gradient_error_bound(a[:0], a[:0], g_sqrt=a[:0]).shape == (0,)
    with pytest.raises(ValueError, match="g_sqrt="):
        matroot.gradient_error_bound(a, x.grad)
    with pytest.raises(ValueError, match="one shape"):
        matroot.gradient_error_bound(a, x.grad[0], g_sqrt=g[0])


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
@pytest.mark.parametrize("of_a", [1e-200, 1.0, 1e200])
def test_bounds_of_gradients_do_not_depend_on_the_scale(of_a, scale):
    """Where squares of X or G are no numbers."""
    a = of_a * torch.diag(torch.tensor([4.0, 9.0], dtype=torch.float64))
    g = torch.full_like(a, scale)
    s = a.sqrt().diagonal()
    for quantity, ratio in (("sqrt", 1.0), ("inv_sqrt", -1 / (s[:, None] * s))):
        exact = g * ratio / (s[:, None] + s)
        if not (exact.isfinite() & (exact.abs() > 1e-300)).all():
            continue
        for factor in (1.0, 1.001, 2.0, -1.0, 0.0):
            bound = matroot.gradient_error_bound(a, factor * exact, **{f"g_{quantity}": g})
            assert abs(factor - 1) <= bound < 1.01 * abs(factor - 1) + 1e-13


def test_a_gradient_below_all_numbers_is_not_exact():
    a = torch.full((1, 1), 1e300, dtype=torch.float64)
    one = torch.ones_like(a)
    assert matroot.gradient_error_bound(a, 0 * a, g_inv_sqrt=one) >= 1
    assert matroot.gradient_error_bound(a, 0 * a, g_inv_sqrt=0 * one) == 0


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("beyond", [1e-3, 1e-6, 1e-9])
def test_a_relative_ridge_that_cancels_is_known_to_rounding_only(beyond, backend):
    for value in (0.3, 0.7, 0.9):
        a = torch.diag(torch.full((2,), -value, dtype=torch.float64))
        relative_eps = (1 + beyond) / 2**0.5
        found = matroot.sqrtm_ex(a, root="both", relative_eps=relative_eps, backend=backend)
        with mpmath.workdps(40):
            exact = mpmath.mpf(value) * (mpmath.sqrt(2) * mpmath.mpf(relative_eps) - 1)
            for x, power, bound in (
                (found.sqrt, 0.5, found.error_bound),
                (found.inv_sqrt, -0.5, found.inv_error_bound),
            ):
                error = abs(mpmath.mpf(x[0, 0].item()) / exact**power - 1)
                assert error <= bound.item() < 1e-15 * 1e3 / beyond


def test_half_precision_may_be_as_asymmetric_for_a_gradient_as_for_a_root():
    a = torch.tensor([[1.0, 0.012], [0.0, 1.0]], dtype=torch.float16, requires_grad=True)
    g = torch.ones(2, 2, dtype=torch.float16)
    matroot.sqrtm(a).backward(g)
    assert matroot.gradient_error_bound(a, a.grad, g_sqrt=g) < 0.01
    skewed = a.detach() + torch.tensor([[0.0, 0.1], [0.0, 0.0]], dtype=torch.float16)
    assert matroot.gradient_error_bound(skewed, a.grad, g_sqrt=g).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128], ids=str)
def test_bounds_of_gradients_that_are_far_too_large(dtype):
    """Where X − X₀ and X are the same number to rounding."""
    a = torch.diag_embed(1 + 1e-3 * torch.rand(400, 4, generator=torch.Generator().manual_seed(0)))
    a = a.to(dtype).requires_grad_()
    g = torch.randn(a.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    (x,) = torch.autograd.grad(matroot.sqrtm(a), a, g)
    for power in (10, 40, 44, 48, 50, 60, 80):
        bound = matroot.gradient_error_bound(a, x * 2.0**power, g_sqrt=g)
        assert ((bound >= 2.0**power - 1) | bound.isnan()).all()
        assert power > 44 or (bound < 1.1 * 2.0**power).all()


@pytest.mark.parametrize("eps", [1e-8 / 3, 1e-10 / 7])
def test_a_ridge_that_rounds_the_matrix_is_in_the_bound_of_its_gradient(eps):
    """A = 1/2 everywhere: what 1/2 + eps loses is a part of the least eigenvalue, eps."""
    a = torch.full((2, 2), 0.5, dtype=torch.float64)
    g = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    rounded = (0.5 + eps) - 0.5
    with mpmath.workdps(40):
        error = float(abs(mpmath.sqrt(mpmath.mpf(eps) / mpmath.mpf(rounded)) - 1))
    x = g / (2 * rounded**0.5)
    assert error > 1e-10
    assert error <= matroot.gradient_error_bound(a, x, g_sqrt=g, eps=eps) < 100 * error


def test_what_roots_lack_is_in_the_bound_of_a_gradient(monkeypatch):
    """Of roots that are wrong by a known share the gradient that solves their equation is."""
    a, lack = random_spd(5, cond=10.0), 1e-6
    g = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = exact_gradient(a, g, "sqrt").to(a.dtype)

    def wrong(a, *, root):
        s, z, *rest = matroot.sqrtm_ex(a, root=root)
        rest[2], rest[3] = torch.full_like(rest[2], lack), torch.full_like(rest[3], lack)
        return (s * (1 + 0.9 * lack), z * (1 - 0.9 * lack), *rest)

    monkeypatch.setattr(gradient_bounds, "sqrtm_ex", wrong)
    bound = matroot.gradient_error_bound(a, x / (1 + 0.9 * lack), g_sqrt=g)
    assert 0.9 * lack <= bound < 1e-4


def test_the_ridge_of_a_gradient_is_checked():
    a = torch.eye(2)
    for eps, error in (
        (-1.0, ValueError),
        (math.nan, ValueError),
        (1e300, ValueError),
        ("1", TypeError),
    ):
        with pytest.raises(error, match="eps must be"):
            matroot.gradient_error_bound(a, a, g_sqrt=a, eps=eps)
