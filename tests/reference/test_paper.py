"""What the paper reports and how its published code computes, reproduced by figures."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import matroot
from matroot.backends import TORCH
from matroot.gradients import Lyapunov
from matroot.lyapunov import sign_step
from matroot.methods import NewtonSchulz, Pade, Taylor
from matroot.testing import exact, random_spd

SIZES = (16, 32, 64, 96, 128)
# As many matrices as keep the mean's own scatter (standard error) below 0.3 %.
MATRICES = (4000, 2000, 400, 200, 200)
# Mean |S − S_exact| over all entries for A = X Xᵀ, X = randn(n, n), by size.
MEAN_ERRORS = {
    Pade(5): (0.0417, 0.0528, 0.0656, 0.0740, 0.0808),
    Taylor(10): (0.1071, 0.1297, 0.1543, 0.1694, 0.1807),
    NewtonSchulz(5, "trace"): (0.0515, 0.0718, 0.0869, 0.0961, 0.1077),
    NewtonSchulz(5, "frobenius"): (0.0256, 0.0320, 0.0389, 0.0432, 0.0463),
}


@pytest.mark.parametrize(("column", "n"), list(enumerate(SIZES)))
def test_mean_errors_of_the_numerical_test(column, n):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(MATRICES[column], n, n, dtype=torch.float64, generator=generator)
    a = x @ x.mT
    reference = exact(a)
    for method, figures in MEAN_ERRORS.items():
        error = (matroot.sqrtm(a, method=method) - reference).abs().mean().item()
        assert error == pytest.approx(figures[column], rel=0.03), method


def test_convergence_of_the_sign_iteration():
    # Neither an exact root of a matrix with κ = 10 nor division by ‖S‖_F gives the figures. They
    # belong to A with κ = 10, S its root by MPA, and the start of the published code:
    # B₀ = S/√‖A‖_F. So B₀ is the Padé approximant itself, whose eigenvalues are above 1/11.
    a = random_spd(64, cond=10.0)
    b = matroot.sqrtm(a, method=Pade(5)) / torch.linalg.matrix_norm(a).sqrt()
    b = b[None]
    c = torch.zeros_like(b)
    identity = torch.eye(64, dtype=torch.float64)
    distance = {}
    for k in range(1, 10):
        b, c = sign_step(b, c, TORCH)
        distance[k] = torch.linalg.matrix_norm(b - identity).item()
    for k, figure in {5: 0.291, 6: 0.0329, 7: 5.58e-4, 8: 2.16e-7}.items():
        assert distance[k] == pytest.approx(figure, rel=0.03), k
    assert distance[9] < 1e-12


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
    """What a method makes of an eigenvalue x of A/‖A‖_F: A is diagonal, contains x, has norm 1."""
    a = torch.diag(torch.tensor([x, math.sqrt(1 - x * x)], dtype=torch.float64))
    function = matroot.sqrtm if root == "sqrt" else matroot.inv_sqrtm
    return function(a, method=method)[0, 0].item()


@pytest.mark.parametrize("x", [0.5, 1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 6, 8, 16, 32])
def test_pade_is_a_hyperbolic_cotangent(order, x):
    cotangent = 1 / math.tanh((2 * order + 1) * math.atanh(math.sqrt(x)))
    sqrt = on_eigenvalue(x, Pade(order), "sqrt")
    inv_sqrt = on_eigenvalue(x, Pade(order), "inv_sqrt")
    # Powers (to order 5) cancel 4^m to 1 near x = 0; partial fractions have nothing to cancel.
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


class Products(TorchDispatchMode):
    """Counts the products of matrices that reach the dispatcher."""

    COUNTED = frozenset({"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"})

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name in self.COUNTED
        return func(*args, **(kwargs or {}))


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
        method.solve(a, root, TORCH)
    assert products.count == count


def test_products_of_the_published_gradient():
    a = random_spd(8, 3).requires_grad_()
    root = matroot.sqrtm(a, method=Pade(5), gradient=Lyapunov(steps=8), backend="torch")
    g = random_spd(8, 3, seed=1)
    with Products() as products:
        torch.autograd.grad(root, a, g)
    assert products.count == 48
