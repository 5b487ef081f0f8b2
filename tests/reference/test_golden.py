"""Roots, gradients and coefficients against mpmath, to fifty digits and more."""

from fractions import Fraction

import mpmath
import pytest
import torch

import matroot
from matroot.gradients import Lyapunov, Spectral
from matroot.methods import Eigh, NewtonSchulz, Pade, Svd, Taylor, pade, taylor
from matroot.testing import random_spd, relative_error, tolerance

DIGITS = 50
# Converged to the last digit where every eigenvalue is above 0.07 ‖A‖_F.
LIMITED = [Taylor(400), Pade(32)]
ROBUST = [NewtonSchulz(30), Eigh(), Svd()]


def hilbert(n, ridge=0.0):
    """1/(i + j + 1), rounded to double precision: mpmath is given the rounded entries."""
    index = torch.arange(n, dtype=torch.float64)
    a = 1 / (index[:, None] + index[None, :] + 1)
    return a + ridge * torch.eye(n, dtype=torch.float64)


def complex_hilbert(n):
    """The Hilbert matrix turned by a diagonal of phases, which keeps its eigenvalues."""
    phases = torch.polar(torch.ones(n, dtype=torch.float64), torch.arange(n, dtype=torch.float64))
    a = phases[:, None] * hilbert(n) * phases.conj()[None, :]
    return (a + a.mH) / 2


# Matrix and its condition number, rounded up. On these every method is converged …
CLOSE = {
    **{f"real {n}": (random_spd(n, cond=10.0, seed=n), 10.0) for n in range(1, 7)},
    **{
        f"complex {n}": (random_spd(n, cond=10.0, dtype=torch.complex128, seed=n), 10.0)
        for n in range(1, 7)
    },
    "identity 3": (torch.eye(3, dtype=torch.float64) * 3, 1.0),
}
# … and on these the robust ones.
SPREAD = {
    "clustered 6": (random_spd(6, cond=10.0, spectrum="clustered"), 10.0),
    "hilbert 2": (hilbert(2), 20.0),
    "hilbert 6 + 1/8": (hilbert(6, 0.125), 14.0),
    "hilbert 3": (hilbert(3), 525.0),
    "hilbert 4": (hilbert(4), 15514.0),
    "complex hilbert 3": (complex_hilbert(3), 525.0),
    "complex hilbert 4": (complex_hilbert(4), 15514.0),
    "complex 6": (random_spd(6, cond=1e4, dtype=torch.complex128), 1e4),
    "outlier 5": (random_spd(5, cond=1e4, spectrum="outlier"), 1e4),
}


def to_mpmath(a):
    return mpmath.matrix(a.tolist())


def to_torch(x, dtype):
    values = [[complex(x[i, j]) for j in range(x.cols)] for i in range(x.rows)]
    result = torch.tensor(values, dtype=torch.complex128)
    return result if dtype.is_complex else result.real


def golden_root(a, quantity):
    """The (inverse) root in mpmath's arithmetic, as an mpmath matrix."""
    values, q = mpmath.eighe(to_mpmath(a))
    roots = [mpmath.sqrt(value) for value in values]
    diagonal = mpmath.diag(roots if quantity == "sqrt" else [1 / r for r in roots])
    return q * diagonal * q.H


def golden_gradient(a, g, quantity):
    """The gradient from the n² linear equations behind S X + X S = R, as an mpmath matrix."""
    n = len(a)
    s = golden_root(a, "sqrt")
    r = to_mpmath(g)
    if quantity == "inv_sqrt":
        z = golden_root(a, "inv_sqrt")
        r = -(z * r * z)
    system = mpmath.zeros(n * n)
    right = mpmath.zeros(n * n, 1)
    for i in range(n):
        for j in range(n):
            right[i * n + j] = r[i, j]
            for k in range(n):
                system[i * n + j, k * n + j] += s[i, k]
                system[i * n + j, i * n + k] += s[k, j]
    x = mpmath.lu_solve(system, right)
    return mpmath.matrix([[x[i * n + j] for j in range(n)] for i in range(n)])


ROOTS = [
    pytest.param(a, cond, method, id=f"{name}-{type(method).__name__}")
    for matrices, methods in ((CLOSE, LIMITED + ROBUST), (SPREAD, ROBUST))
    for name, (a, cond) in matrices.items()
    for method in methods
]


@pytest.mark.parametrize(("a", "cond", "method"), ROOTS)
def test_roots(a, cond, method):
    both = matroot.sqrtm_pair(a, method=method)
    alone = matroot.sqrtm(a, method=method), matroot.inv_sqrtm(a, method=method)
    for position, quantity in enumerate(("sqrt", "inv_sqrt")):
        with mpmath.workdps(DIGITS):
            golden = to_torch(golden_root(a, quantity), a.dtype)
        bound = tolerance(torch.float64, cond, quantity)
        assert relative_error(both[position], golden) <= bound
        assert relative_error(alone[position], golden) <= bound


GRADIENTS = [
    pytest.param(
        a, cond, method, gradient, id=f"{name}-{type(gradient).__name__}-{type(method).__name__}"
    )
    for name, (a, cond) in (CLOSE | SPREAD).items()
    if cond <= 1e3
    for method in (Eigh(), NewtonSchulz(30))
    for gradient in (Lyapunov(), Spectral())
]


@pytest.mark.parametrize("quantity", ["sqrt", "inv_sqrt"])
@pytest.mark.parametrize(("a", "cond", "method", "gradient"), GRADIENTS)
def test_gradients(a, cond, method, gradient, quantity):
    g = random_spd(len(a), cond=7.0, dtype=a.dtype, seed=11)
    with mpmath.workdps(DIGITS):
        golden = to_torch(golden_gradient(a, g, quantity), a.dtype)
    function = matroot.sqrtm if quantity == "sqrt" else matroot.inv_sqrtm
    a = a.clone().requires_grad_()
    root = function(a, method=method, gradient=gradient)
    (found,) = torch.autograd.grad(root, a, g)
    name = "gradient" if quantity == "sqrt" else "inv_gradient"
    assert relative_error(found, golden) <= tolerance(torch.float64, cond, name)


@pytest.mark.parametrize("root", ["sqrt", "inv_sqrt"])
@pytest.mark.parametrize("degree", [1, 2, 10, 30])
def test_taylor_coefficients_are_those_of_mpmath(degree, root):
    with mpmath.workdps(DIGITS + degree):
        power = mpmath.mpf(1) / (2 if root == "sqrt" else -2)
        golden = [float(c) for c in mpmath.taylor(lambda z: (1 - z) ** power, 0, degree)]
    assert taylor.coefficients(degree, root) == pytest.approx(golden, rel=1e-15, abs=0)


@pytest.mark.parametrize("root", ["sqrt", "inv_sqrt"])
def test_taylor_coefficients_are_rounded_once(root):
    # The binomial series by its recurrence, c_{k+1} = c_k (k − p)/(k + 1) for (1 − z)^p.
    power = Fraction(1, 2) if root == "sqrt" else Fraction(-1, 2)
    exact = [Fraction(1)]
    for k in range(400):
        exact.append(exact[-1] * (k - power) / (k + 1))
    assert taylor.coefficients(400, root) == tuple(map(float, exact))


def golden_pade(order):
    """(p, q) of the [m/m] Padé approximant of (1 − z)^{1/2}, by mpmath's linear solve."""
    series = mpmath.taylor(lambda z: mpmath.sqrt(1 - z), 0, 2 * order)
    return mpmath.pade(series, order, order)


@pytest.mark.parametrize("order", [1, 2, 5, 8, 16, 32])
def test_pade_coefficients_are_those_of_mpmath(order):
    # The linear system loses about 2·order digits and the numerical derivatives as many.
    with mpmath.workdps(DIGITS + 6 * order):
        golden_p, golden_q = ([float(c) for c in side] for side in golden_pade(order))
    p, q = pade.coefficients(order)
    assert p == pytest.approx(golden_p, rel=1e-15, abs=0)
    assert q == pytest.approx(golden_q, rel=1e-15, abs=0)


def test_pade_coefficients_of_the_paper_are_exact_in_half_precision():
    p, q = pade.coefficients(5)
    assert p == (1.0, -2.75, 2.75, -1.203125, 0.21484375, -0.0107421875)
    assert q == (1.0, -2.25, 1.75, -0.546875, 0.05859375, -0.0009765625)
    doubles = torch.tensor([p, q], dtype=torch.float64)
    assert torch.equal(doubles.half().double(), doubles)


@pytest.mark.parametrize("order", [6, 7, 8, 12, 16, 24, 32])
def test_partial_fractions_equal_the_rational_function(order):
    x = torch.tensor([0.9, 0.5, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6], dtype=torch.float64)
    # Diagonal matrices of Frobenius norm 1, so that the method is applied to x.
    a = torch.diag_embed(torch.stack([x, (1 - x * x).sqrt()], -1))
    sqrt, inv_sqrt = matroot.sqrtm_pair(a, method=Pade(order))
    # Near z = 1 the powers cancel like 4^order; a hundred digits are enough.
    with mpmath.workdps(100):
        p, q = (list(map(exact_value, side)) for side in fractions_of_pade(order))
        for i, value in enumerate(x.tolist()):
            z = 1 - mpmath.mpf(value)
            quotient = mpmath.polyval(p[::-1], z) / mpmath.polyval(q[::-1], z)
            assert abs(sqrt[i, 0, 0].item() / quotient - 1) < 1e-14
            assert abs(inv_sqrt[i, 0, 0].item() * quotient - 1) < 1e-14


def exact_value(fraction):
    return mpmath.mpf(fraction.numerator) / fraction.denominator


def fractions_of_pade(order):
    """(p, q) exactly, from the even and the odd part of (1 + √(1 − z))^{2m+1} in √(1 − z).

    With t = √(1 − z) and r = 2m + 1 the approximant is

        t·((1 + t)^r + (1 − t)^r)/((1 + t)^r − (1 − t)^r),

    t times the even part over the odd part: polynomials in t² = 1 − z. Scaled to p(0) = q(0) = 1.
    """
    r = 2 * order + 1
    over = [binomial(r, 2 * j) for j in range(order + 1)]
    under = [binomial(r, 2 * j + 1) for j in range(order + 1)]
    p, q = in_powers_of_z(over), in_powers_of_z(under)
    return [c / p[0] for c in p], [c / q[0] for c in q]


def binomial(n, k):
    result = Fraction(1)
    for i in range(k):
        result = result * (n - i) / (i + 1)
    return result


def in_powers_of_z(coefficients):
    """Σ c_j (1 − z)^j as a polynomial in z."""
    result = [Fraction(0)] * len(coefficients)
    for j, c in enumerate(coefficients):
        for k in range(j + 1):
            result[k] += c * binomial(j, k) * (-1) ** k
    return result


@pytest.mark.parametrize("order", [1, 2, 5, 9, 32])
def test_pade_coefficients_are_rounded_once(order):
    p, q = fractions_of_pade(order)
    assert pade.coefficients(order) == (tuple(map(float, p)), tuple(map(float, q)))
