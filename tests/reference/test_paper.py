"""The paper's figures and the results of its published code, reproduced."""

import math

import pytest
import torch

import matroot
from matroot.bench import claims, paper
from matroot.bench.cases import Settings
from matroot.bench.rows import pick
from matroot.gradients import Lyapunov
from matroot.methods import NewtonSchulz, Pade, Taylor
from matroot.roots import ROOTS
from matroot.testing import (
    Products,
    random_spd,
)


def test_figures_of_the_numerical_tests():
    # Mean errors over 200 to 4,000 matrices, whose own scatter is below 0.3 %, and the convergence
    # of the sign iteration. The latter belongs to A with κ = 10, S its root by MPA, and the start
    # of the published code, B₀ = S/√‖A‖_F: neither an exact root nor division by ‖S‖_F gives it.
    settings = Settings(torch.device("cpu"))
    rows = [
        {"experiment": case.experiment, **case.fields, **row}
        for make in (paper.mean_errors, paper.convergence)
        for case in make(settings)
        for row in case.measure()
    ]
    figures = claims.agreement(rows)
    assert len(figures) == 4 * 5 + 4
    for what, here, reference, within in figures:
        assert within, (what, here, reference)
        assert here == pytest.approx(reference, rel=0.03)
    (last,) = pick(rows, experiment="convergence", cond=10.0)
    assert last["curve"]["y"][8] < 1e-12  # B_9


@pytest.mark.parametrize("cond", [1e1, 1e4])
def test_gradient_of_the_root_is_the_published_one(cond):
    # The published backward pass written out: B₀ = S/√‖A‖_F, C₀ = G/√‖A‖_F, eight steps, C/2.
    # With S by MPA every eigenvalue of B₀ is above 1/11, so that eight steps nearly converge.
    a = random_spd(12, 3, cond=cond).requires_grad_()
    g = random_spd(12, 3, seed=1)
    root = matroot.sqrtm(a, method=Pade(5), gradient=Lyapunov(steps=8))
    (gradient,) = torch.autograd.grad(root, a, g)

    norm = torch.linalg.matrix_norm(a.detach(), keepdim=True).sqrt()
    three = 3 * torch.eye(12, dtype=torch.float64)
    b, c = root.detach() / norm, g / norm
    for _ in range(8):
        square = b @ b
        c = (c @ (three - square) - square @ c + b @ c @ b) / 2
        b = b @ (three - square) / 2
    torch.testing.assert_close(gradient, c / 2, rtol=1e-11, atol=1e-11)


def on_eigenvalue(x, method, root):
    """A method's result at an eigenvalue x of A/‖A‖_F: A is diagonal, contains x, has norm 1."""
    a = torch.diag(torch.tensor([x, math.sqrt(1 - x * x)], dtype=torch.float64))
    function = matroot.sqrtm if root == "sqrt" else matroot.inv_sqrtm
    return function(a, method=method)[0, 0].item()


@pytest.mark.parametrize("x", [0.5, 1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 6, 8, 16, 32])
def test_pade_is_a_hyperbolic_cotangent(order, x):
    cotangent = 1 / math.tanh((2 * order + 1) * math.atanh(math.sqrt(x)))
    sqrt = on_eigenvalue(x, Pade(order), "sqrt")
    inv_sqrt = on_eigenvalue(x, Pade(order), "inv_sqrt")
    # Powers (up to order 5) cancel from 4^m to 1 near x = 0; partial fractions do not cancel.
    rel = 4**order * 1e-15 if order <= 5 else 2e-14
    assert sqrt == pytest.approx(math.sqrt(x) * cotangent, rel=rel)
    assert inv_sqrt == pytest.approx(1 / (math.sqrt(x) * cotangent), rel=rel)


@pytest.mark.parametrize(
    ("method", "x", "percent", "half_digit"),
    [
        (Pade(5), 1e-1, 0.15, 0.005),
        (Pade(5), 1e-2, 25, 0.5),
        (Pade(5), 1e-3, 199, 0.5),
        (Pade(5), 1e-4, 813, 0.5),
        (Taylor(10), 1e-1, 4.3, 0.05),
        (Taylor(10), 1e-2, 94, 0.5),
        (Taylor(10), 1e-3, 463, 0.5),
    ],
)
def test_errors_on_one_eigenvalue(method, x, percent, half_digit):
    error = on_eigenvalue(x, method, "sqrt") / math.sqrt(x) - 1
    # The figures are rounded; both methods make small eigenvalues too large, never too small.
    assert 100 * error == pytest.approx(percent, abs=half_digit)


@pytest.mark.parametrize(
    ("method", "root", "count"),
    [
        (Taylor(10), "sqrt", 5),
        (Taylor(10), "inv_sqrt", 5),
        (Taylor(10), "both", 6),
        (Pade(5), "both", 4),
        (NewtonSchulz(5), "sqrt", 12),
        (NewtonSchulz(5), "inv_sqrt", 12),
        (NewtonSchulz(5), "both", 13),
    ],
)
def test_products_of_the_forward_pass(method, root, count):
    a = random_spd(8, 3)
    with torch.no_grad(), Products() as products:
        method.solve(a, ROOTS[root])
    assert products.count == count


def test_products_of_the_published_gradient():
    a = random_spd(8, 3).requires_grad_()
    root = matroot.sqrtm(a, method=Pade(5), gradient=Lyapunov(steps=8), backend="torch")
    g = random_spd(8, 3, seed=1)
    with Products() as products:
        torch.autograd.grad(root, a, g)
    assert products.count == 48
