"""The published SVD gradients against their definitions, written out here element by element."""

import math

import numpy as np
import pytest
import torch

import matroot
from matroot.gradients import (
    GRADIENTS,
    PowerIteration,
    SpectralClipped,
    SpectralNaive,
    SpectralPade,
    SpectralTaylor,
)
from matroot.methods import Eigh, Svd
from matroot.testing import exact_gradient, relative_error

FUNCTIONS = {"sqrt": matroot.sqrtm, "inv_sqrt": matroot.inv_sqrtm}
# Separated by factors that no substitute for 1/(λ_i − λ_j) treats as ties; of no special scale.
SPECTRA = {
    4: (39.0, 20.0, 13.0, 2.0),
    5: (0.71, 0.52, 0.21, 0.13, 0.04),
    6: (7.1, 5.0, 4.2, 2.0, 1.1, 0.3),
}


def matrix(n, generator_seed=0):
    """(A, its eigenvectors, its eigenvalues)."""
    generator = torch.Generator().manual_seed(generator_seed)
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q
    values = torch.tensor(SPECTRA[n], dtype=torch.float64)
    a = (q * values) @ q.mT
    return (a + a.mT) / 2, q, SPECTRA[n]


def cotangent(n):
    """Not symmetric on purpose: only the symmetric part may count."""
    return torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def gradient_of(a, g, quantity, rule, method="eigh"):
    a = a.clone().requires_grad_()
    root = FUNCTIONS[quantity](a, method=method, gradient=rule)
    return torch.autograd.grad(root, a, g)[0]


def value(x, quantity):
    return math.sqrt(x) if quantity == "sqrt" else 1 / math.sqrt(x)


def slope(x, quantity):
    return 0.5 / math.sqrt(x) if quantity == "sqrt" else -0.5 / (x * math.sqrt(x))


def by_definition(q, values, g, quantity, k):
    """Q [Φ ∘ (Qᵀ G Q)] Qᵀ, Φ_ii = f'(λ_i), Φ_ij = (f(λ_i) − f(λ_j)) K(λ_i, λ_j) where λ_i > λ_j."""
    n = len(values)
    rotated = q.mT @ ((g + g.mT) / 2) @ q
    for i in range(n):
        for j in range(n):
            if i == j:
                rotated[i, j] *= slope(values[i], quantity)
            else:
                large, small = max(values[i], values[j]), min(values[i], values[j])
                difference = value(large, quantity) - value(small, quantity)
                rotated[i, j] *= difference * k(large, small)
    return q @ rotated @ q.mT


def naive(large, small):
    return 1 / (large - small)


def geometric(terms):
    return lambda large, small: sum((small / large) ** k for k in range(terms)) / large


def least_norm_pade(order):
    """The [m/m] Padé approximant of 1/(1 − x) from the least-norm solution of the equations for q.

    The coefficients of x^{m+1} … x^{2m} in q(x)·(1 + x + x² + …) must vanish: Σ_j q_j = 0 each.
    """
    q = np.linalg.lstsq(np.ones((order, order)), -np.ones(order), rcond=1e-8)[0]
    q = [1.0, *q]
    p = [sum(q[: k + 1]) for k in range(order + 1)]

    def k(large, small):
        x = small / large
        numerator = sum(c * x**power for power, c in enumerate(p))
        return numerator / sum(c * x**power for power, c in enumerate(q)) / large

    return k


@pytest.mark.parametrize("quantity", FUNCTIONS)
@pytest.mark.parametrize("n", SPECTRA)
@pytest.mark.parametrize(
    ("rule", "k"),
    [
        (SpectralNaive(), naive),
        (SpectralTaylor(1), geometric(1)),
        (SpectralTaylor(7), geometric(7)),
        (SpectralTaylor(), geometric(100)),
        (SpectralPade(1), least_norm_pade(1)),
        (SpectralPade(4), least_norm_pade(4)),
        (SpectralPade(), least_norm_pade(50)),
    ],
    ids=lambda x: repr(x) if not callable(x) else "",
)
def test_definition(rule, k, n, quantity):
    a, q, values = matrix(n)
    g = cotangent(n)
    golden = by_definition(q, values, g, quantity, k)
    assert relative_error(gradient_of(a, g, quantity, rule), golden) < 1e-12


@pytest.mark.parametrize("quantity", FUNCTIONS)
@pytest.mark.parametrize("n", SPECTRA)
# In units of 1/λ_max: the first cuts every K, the middle ones some, the last none.
@pytest.mark.parametrize("limit", [0.5, 2.0, 5.0, 1e4])
def test_definition_of_clipping(limit, n, quantity):
    a, q, values = matrix(n)
    g = cotangent(n)

    def clipped(large, small):
        return min(1 / (large - small), limit / max(values))

    golden = by_definition(q, values, g, quantity, clipped)
    assert relative_error(gradient_of(a, g, quantity, SpectralClipped(limit)), golden) < 1e-12


def power_iteration_root(a, steps, quantity):
    """Σ f(λ_i) v_i v_iᵀ by power iteration with deflation, each started at its own fixed point."""
    remaining = a
    result = torch.zeros_like(a)
    for _ in range(len(a)):
        # The largest remaining eigenvalue; the start counts as a constant, as in the literature.
        v = torch.linalg.eigh(remaining.detach()).eigenvectors[:, -1]
        for _ in range(steps):
            v = remaining @ v
            v = v / v.norm()
        eigenvalue = v @ remaining @ v
        root = eigenvalue.sqrt() if quantity == "sqrt" else eigenvalue.rsqrt()
        result = result + root * torch.outer(v, v)
        remaining = remaining - eigenvalue * torch.outer(v, v)
    return result


@pytest.mark.parametrize("quantity", FUNCTIONS)
@pytest.mark.parametrize("n", SPECTRA)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_power_iteration_by_differentiating_the_loop(steps, n, quantity):
    a, _, _ = matrix(n)
    g = cotangent(n)
    leaf = a.clone().requires_grad_()
    root = power_iteration_root((leaf + leaf.mT) / 2, steps, quantity)
    (golden,) = torch.autograd.grad(root, leaf, (g + g.mT) / 2)
    assert relative_error(gradient_of(a, g, quantity, PowerIteration(steps)), golden) < 1e-11


PUBLISHED = [SpectralNaive(), SpectralClipped(), SpectralTaylor(), SpectralPade(), PowerIteration()]


def test_no_published_rule_is_forgotten():
    assert {type(rule) for rule in PUBLISHED} == {
        rule for rule in GRADIENTS.values() if rule.max_derivative == 1
    }


@pytest.mark.parametrize("rule", PUBLISHED, ids=repr)
@pytest.mark.parametrize("quantity", FUNCTIONS)
def test_with_many_steps_all_agree_with_the_exact_gradient(quantity, rule):
    # Ratios of neighbours are at most 0.84, and 0.84⁴⁰⁰ is far below the rounding unit.
    if isinstance(rule, SpectralTaylor):
        rule = SpectralTaylor(400)
    if isinstance(rule, PowerIteration):
        rule = PowerIteration(400)
    a, _, _ = matrix(6)
    g = cotangent(6)
    found = gradient_of(a, g, quantity, rule)
    assert relative_error(found, exact_gradient(a, g, quantity)) < 1e-12


@pytest.mark.parametrize("rule", PUBLISHED, ids=repr)
@pytest.mark.parametrize("quantity", FUNCTIONS)
@pytest.mark.parametrize("method", [Eigh(), Svd()], ids=repr)
def test_only_the_naive_rule_breaks_at_a_tie(method, quantity, rule):
    # Diagonal, so that the solvers find the tie exactly.
    a = torch.diag(torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64))
    found = gradient_of(a, cotangent(3), quantity, rule, method)
    assert bool(found.isfinite().all()) is not isinstance(rule, SpectralNaive)


@pytest.mark.parametrize("rule", PUBLISHED, ids=repr)
@pytest.mark.parametrize("quantity", FUNCTIONS)
def test_no_second_derivative(quantity, rule):
    a = matrix(4)[0].requires_grad_()
    root = FUNCTIONS[quantity](a, method="eigh", gradient=rule)
    (first,) = torch.autograd.grad(root.square().sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match=r"Lyapunov\(\) or Spectral\(\)"):
        torch.autograd.grad(first.sum(), a)


@pytest.mark.parametrize("rule", PUBLISHED, ids=repr)
@pytest.mark.parametrize("method", ["taylor", "pade", "newton_schulz"])
def test_eigenpairs_are_needed(method, rule):
    with pytest.raises(ValueError, match="eigenpairs of a spectral method"):
        matroot.sqrtm(matrix(4)[0], method=method, gradient=rule)
