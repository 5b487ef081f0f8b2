"""This library has none of the defects of the published code.

The seventh is one of published applications (second-order transformer, style encoder), whose tests
are those of the recipes.
"""

import math
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import matroot
from matroot.gradients import GRADIENTS, Lyapunov, Spectral, Unrolled
from matroot.methods import METHODS, Eigh, NewtonSchulz, Pade, Svd, Taylor
from matroot.testing import (
    assert_root,
    exact,
    exact_gradient,
    random_spd,
    relative_error,
    tolerance,
)

FUNCTIONS = {"sqrt": matroot.sqrtm, "inv_sqrt": matroot.inv_sqrtm}
PAPER = Lyapunov(steps=8)
RULES = [rule() for rule in GRADIENTS.values()] + [PAPER]


def method_for(rule):
    return Eigh() if rule.needs_eigenpairs else Pade()


def gradient_of(a, g, quantity="sqrt", **options):
    a = a.clone().requires_grad_()
    return torch.autograd.grad(FUNCTIONS[quantity](a, **options), a, g)[0]


# 1. The backward pass of the inverse divides by the norm of the whole batch.


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("quantity", FUNCTIONS)
def test_1_gradient_ignores_the_neighbours(quantity, rule):
    options = {"method": method_for(rule), "gradient": rule}
    a = random_spd(8, 6, cond=30.0)
    g = random_spd(8, 6, seed=1)
    other = a.clone()
    # Other directions, other condition numbers and norms far above that of the first matrix.
    other[1:] = (
        random_spd(8, 5, cond=1e3, seed=2) * torch.logspace(-6, 6, 5).double()[:, None, None]
    )
    together = gradient_of(a, g, quantity, **options)
    among_others = gradient_of(other, g, quantity, **options)
    assert torch.equal(together[0], among_others[0])
    assert not torch.equal(together[1], among_others[1])
    # For a single matrix the solvers may use other kernels, whose last bits differ.
    alone = gradient_of(a[0], g[0], quantity, **options)
    assert relative_error(alone, together[0]) < 1e-12


# 2. The Taylor helper overwrites the identity that the backward pass has saved.


@pytest.mark.parametrize("quantity", FUNCTIONS)
def test_2_gradient_of_taylor_is_right(quantity):
    # Degree 400 is converged here, so the gradient is that of the exact root.
    a, g = random_spd(6, 2, cond=10.0), random_spd(6, 2, seed=1)
    found = gradient_of(a, g, quantity, method=Taylor(400), gradient=Lyapunov())
    error = relative_error(found, exact_gradient(a, g, quantity)).max()
    assert error <= tolerance(torch.float64, 10.0, "gradient")


def test_2_gradient_of_taylor_10_solves_its_lyapunov_equation():
    # Where Taylor has not converged, its root S is another matrix: S X + X S = G is solved for it.
    a, g = random_spd(8, 3, cond=1e3), random_spd(8, 3, seed=1)
    s = matroot.sqrtm(a, method=Taylor(10))
    x = gradient_of(a, g, method=Taylor(10), gradient=Lyapunov())
    assert relative_error(s @ x + x @ s, g).max() < 1e-13


@pytest.mark.parametrize("name", METHODS)
def test_2_nothing_is_overwritten(name):
    a = random_spd(6, 3, cond=10.0).requires_grad_()
    before = a.detach().clone()
    g = random_spd(6, 3, seed=1)
    roots = matroot.sqrtm_pair(a, method=name, gradient=Lyapunov())
    values = [root.detach().clone() for root in roots]
    first = torch.autograd.grad(roots, a, (g, g), retain_graph=True)[0]
    # autograd raises if a saved tensor was written to; a second pass must give the same bits.
    second = torch.autograd.grad(roots, a, (g, g))[0]
    assert torch.equal(first, second)
    assert torch.equal(a, before)
    assert all(map(torch.equal, roots, values))
    assert torch.equal(g, random_spd(6, 3, seed=1))


# 3. There is no inverse root by MTP.


def test_3_taylor_has_an_inverse():
    a = random_spd(6, 4, cond=10.0)
    z = matroot.inv_sqrtm(a, method=Taylor(400))
    assert_root(a, z, cond=10.0, quantity="inv_sqrt")
    # The series approaches A^{-1/2} from below; at the paper's degree it has not converged.
    coarse = matroot.inv_sqrtm(a, method=Taylor(10))
    assert torch.linalg.eigvalsh(z - coarse).min() > -1e-12
    assert relative_error(coarse, z).max() > 1e-3


# 4. float64 is computed in float32; gradcheck fails; half is not preserved.


@pytest.mark.parametrize(
    "method", [NewtonSchulz(30), Pade(32), Taylor(400), Eigh(), Svd()], ids=repr
)
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.complex128,
    ],
)
def test_4_precision_is_that_of_the_input(dtype, method):
    a = random_spd(6, 3, cond=10.0, dtype=dtype)
    s, z = matroot.sqrtm_pair(a, method=method)
    assert s.dtype == z.dtype == dtype
    # Half precision moves the condition number: half a unit of 2⁻⁸ is 2 % of the eigenvalue 0.1.
    cond = 11.0
    assert_root(a, s, cond=cond)
    assert_root(a, z, cond=cond, quantity="inv_sqrt")
    leaf = a.clone().requires_grad_()
    root = matroot.sqrtm(leaf, method=method)
    g = random_spd(6, 3, dtype=dtype, seed=1)
    (gradient,) = torch.autograd.grad(root, leaf, g)
    assert gradient.dtype == dtype
    error = relative_error(gradient, exact_gradient(a, g)).max()
    assert error <= tolerance(dtype, cond, "gradient")


@pytest.mark.parametrize("rule", [Lyapunov(), Spectral(), Unrolled()], ids=repr)
@pytest.mark.parametrize("quantity", FUNCTIONS)
def test_4_gradcheck(quantity, rule):
    a = random_spd(4, 2, cond=10.0).requires_grad_()

    def root(a):
        return FUNCTIONS[quantity]((a + a.mT) / 2, method=NewtonSchulz(30), gradient=rule)

    assert torch.autograd.gradcheck(root, a)


# 5. Only 3-D input; the zero matrix gives NaN; indefinite input is silently wrong.


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_5_any_batch_shape(batch, name):
    a = random_spd(5, *batch, cond=10.0)
    s, z = matroot.sqrtm_pair(a, method=name)
    assert s.shape == z.shape == a.shape
    flat = matroot.sqrtm_pair(a.reshape(-1, 5, 5), method=name)
    torch.testing.assert_close(s.reshape(-1, 5, 5), flat[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(z.reshape(-1, 5, 5), flat[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
def test_5_zero_matrix(dtype, name):
    a = torch.stack([torch.zeros(4, 4), torch.eye(4)]).to(dtype).requires_grad_()
    s = matroot.sqrtm(a, method=name)
    assert torch.equal(s[0], torch.zeros_like(s[0]))
    (gradient,) = torch.autograd.grad(s.real.sum(), a)
    # Minimum norm: the derivative that does not exist counts as 0.
    assert torch.equal(gradient[0], torch.zeros_like(gradient[0]))
    assert gradient[1].isfinite().all()
    with pytest.raises(torch.linalg.LinAlgError, match="singular"):
        matroot.inv_sqrtm(a, method=name)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("lowest", [-1e-3, -1.0])
def test_5_indefinite_matrices_raise(lowest, name):
    a = random_spd(4, 3)
    q = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()).Q
    a[1] = (q * torch.tensor([1.0, 0.5, 0.2, lowest])) @ q.mT
    for function in (matroot.sqrtm, matroot.inv_sqrtm):
        with pytest.raises(torch.linalg.LinAlgError, match=r"indefinite.*batch index 1\)"):
            function(a, method=name)
    s = matroot.sqrtm(a, method=name, check_errors=False)
    assert s[1].isnan().all()
    assert s[[0, 2]].isfinite().all()


# 6. No double backward, jvp or vmap.


@pytest.mark.parametrize("rule", [Lyapunov(), Spectral(), Unrolled()], ids=repr)
@pytest.mark.parametrize("quantity", FUNCTIONS)
def test_6_double_backward(quantity, rule):
    a = random_spd(3, 2, cond=10.0).requires_grad_()

    def root(a):
        return FUNCTIONS[quantity]((a + a.mT) / 2, method=NewtonSchulz(30), gradient=rule)

    assert torch.autograd.gradgradcheck(root, a)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("quantity", FUNCTIONS)
@pytest.mark.parametrize("rule", [Lyapunov(), PAPER, Unrolled()], ids=repr)
def test_6_jvp_and_vjp_agree(rule, quantity, name):
    a = random_spd(5, 2, cond=10.0)
    e, g = random_spd(5, 2, seed=1), random_spd(5, 2, seed=2)

    def root(a):
        return FUNCTIONS[quantity](a, method=name, gradient=rule)

    _, forward = torch.func.jvp(root, (a,), (e,))
    backward = gradient_of(a, g, quantity, method=name, gradient=rule)
    assert forward.abs().max() > 0
    torch.testing.assert_close((forward * g).sum(), (backward * e).sum(), rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("quantity", FUNCTIONS)
@pytest.mark.parametrize("rule", [Lyapunov(), PAPER, Unrolled()], ids=repr)
def test_6_vmap_equals_the_batch(rule, quantity, name):
    a, g = random_spd(5, 3, cond=10.0), random_spd(5, 3, seed=1)

    def scalar(a, g):
        return (FUNCTIONS[quantity](a, method=name, gradient=rule) * g).sum()

    mapped = torch.vmap(torch.func.grad(scalar))(a, g)
    batched = gradient_of(a, g, quantity, method=name, gradient=rule)
    torch.testing.assert_close(mapped, batched, rtol=1e-11, atol=1e-11)


# 8. LU on a CPU: batched solves with several threads and n ≥ 150 raise or return garbage.


@contextmanager
def two_threads():
    """Only around the tested code: two threads are slow where two cores are not idle."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def on_eigenvalues(method, x, norm, trace):
    """A method's results at eigenvalues x, shape (b, n), of matrices of this norm and trace."""
    if isinstance(method, Pade):
        t = (x / norm).sqrt()
        root = norm.sqrt() * t / torch.tanh((2 * method.order + 1) * torch.atanh(t))
        return root, 1 / root
    if isinstance(method, Taylor):
        z = 1 - x / norm
        powers = [math.comb(2 * k, k) / 4**k * z**k for k in range(method.degree + 1)]
        root = sum(term / (1 - 2 * k) for k, term in enumerate(powers))
        return norm.sqrt() * root, sum(powers) / norm.sqrt()
    if isinstance(method, NewtonSchulz):
        y, z = x / trace, torch.ones_like(x)
        for _ in range(method.steps):
            t = (3 - z * y) / 2
            y, z = y * t, z * t
        return trace.sqrt() * y, z / trace.sqrt()
    return x.sqrt(), x.rsqrt()


@pytest.mark.parametrize(
    ("method", "batch", "n"),
    [
        *((m, 6, 192) for m in (Pade(), Pade(8), Taylor(), NewtonSchulz(), Eigh(), Svd())),
        *((m, 4, 512) for m in (Pade(), Taylor(), NewtonSchulz())),
    ],
    ids=str,
)
@pytest.mark.usefixtures("one_thread")
def test_8_large_matrices_on_two_threads(method, batch, n):
    a = random_spd(n, batch, cond=100.0)
    values, q = torch.linalg.eigh(a)
    norm = torch.linalg.matrix_norm(a)[:, None]
    trace = a.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None]
    with two_threads():
        roots = matroot.sqrtm_pair(a, method=method)
    for root, mapped in zip(roots, on_eigenvalues(method, values, norm, trace), strict=True):
        golden = (q * mapped[:, None, :]) @ q.mT
        assert relative_error(root, golden).max() < 1e-12


@pytest.mark.parametrize(("rule", "n"), [(Lyapunov(), 192), (Lyapunov(), 512), (Spectral(), 192)])
@pytest.mark.usefixtures("one_thread")
def test_8_gradient_of_large_matrices_on_two_threads(rule, n):
    a, g = random_spd(n, 4, cond=100.0), random_spd(n, 4, seed=1)
    golden = exact_gradient(a, g)
    s = exact(a)
    bound = tolerance(torch.float64, 100.0, "gradient")
    with two_threads():
        found = gradient_of(a, g, method=NewtonSchulz(20), gradient=rule)
        solved = matroot.solve_lyapunov(s, g)
    assert relative_error(found, golden).max() <= bound
    assert relative_error(solved, golden).max() <= bound


# 9. The backward pass of the NS baseline is a Python loop over the batch.


class Operations(TorchDispatchMode):
    """Counts everything that reaches the dispatcher."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(batch, quantity, options):
    a = random_spd(6, batch).requires_grad_()
    g = random_spd(6, batch, seed=1)
    with Operations() as all_of_it:
        torch.autograd.grad(FUNCTIONS[quantity](a, **options), a, g)
    return all_of_it.count


@pytest.mark.parametrize("quantity", FUNCTIONS)
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_9_no_loop_over_the_batch(rule, quantity):
    method = Eigh() if rule.needs_eigenpairs else NewtonSchulz(5)
    options = {"method": method, "gradient": rule}
    assert operations(2, quantity, options) == operations(64, quantity, options) > 0
