"""Gradients: every method × rule × backend × root, to second order, also at singular matrices."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import matroot
from instances import (
    ANY_ORDER,
    CONVERGED,
    DIFFERENTIATED,
    FUNCTIONS,
    IMPLICIT,
    PUBLISHED,
    RULES,
    calls,
    pairs,
    runs,
)
from matroot.gradients import Lyapunov, Spectral, Unrolled
from matroot.lyapunov_solvers import BySmith
from matroot.methods import Eigh, Minimax, NewtonSchulz, Pade, Svd, Taylor
from matroot.testing import by_eigh, exact_gradient, random_spd, relative_error, tolerance


def gradient(a, g, function=matroot.sqrtm, **options):
    a = a.detach().clone().requires_grad_()
    x = function(a, **options)
    return torch.autograd.grad((x * g.conj()).real.sum(), a)[0]


def checked():
    """Every call; the pair, which has the derivatives of both, stands for each of its roots."""
    for call in calls(pairs(DIFFERENTIATED, ANY_ORDER), torch.float64, torch.complex128):
        native = "native" in call.values
        for root in FUNCTIONS:
            slow = () if native or root == "both" else (pytest.mark.slow,)
            yield pytest.param(*call.values, root, marks=(*call.marks, *slow))


@pytest.mark.parametrize(("method", "rule", "backend", "dtype", "root"), [*checked()])
def test_gradcheck_and_gradgradcheck(method, rule, backend, root, dtype):
    # By operations every column of a pair of complex matrices would take four times as long.
    count = 1 if backend == "torch" and dtype.is_complex else 2
    a = random_spd(3, count, cond=4, dtype=dtype).requires_grad_()
    options = {"method": method, "gradient": rule, "backend": backend}

    def function(a):
        return FUNCTIONS[root](a, check_errors=False, **options)

    # PyTorch's own SVD gradient has no batching rule for complex input.
    batched = not (method == Svd() and rule == Unrolled() and dtype.is_complex)
    # Where kernels find the values every column is checked by them, in a tenth of the time,
    # and one product of each derivative by PyTorch's operations.
    fast = backend == "torch" and not dtype.is_complex and runs("native", method, rule=rule)
    # Long polynomials are PyTorch's operations and its derivatives; see below for every column.
    if fast or (dtype.is_complex and rule == Unrolled() and method in DIFFERENTIATED[:2]):
        assert gradcheck(function, a, check_forward_ad=True, fast_mode=True)
        assert gradgradcheck(function, a, fast_mode=True)
        return
    assert gradcheck(function, a, check_forward_ad=True, check_batched_grad=batched)
    assert gradgradcheck(function, a)


@pytest.mark.slow
@pytest.mark.parametrize("root", FUNCTIONS)
@pytest.mark.parametrize("method", DIFFERENTIATED[:2], ids=repr)
def test_every_column_of_unrolled_polynomials(method, root):
    a = random_spd(3, 2, cond=4, dtype=torch.complex128).requires_grad_()

    def function(a):
        options = {"method": method, "gradient": Unrolled(), "backend": "torch"}
        return FUNCTIONS[root](a, check_errors=False, **options)

    assert gradcheck(function, a, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, a)


@pytest.mark.parametrize("root", FUNCTIONS)
@pytest.mark.parametrize("method", PUBLISHED, ids=repr)
def test_unrolled_differentiates_unconverged_approximations(method, root):
    a = random_spd(4, 2, cond=50).requires_grad_()

    def function(a):
        return FUNCTIONS[root](a, method=method, gradient=Unrolled(), check_errors=False)

    assert gradcheck(function, a)
    assert gradgradcheck(function, a)


BY_EIGH = pairs([Eigh()], IMPLICIT)


@pytest.mark.parametrize("cond", [1e1, 1e2, 1e4])
@pytest.mark.parametrize("spectrum", ["log", "clustered", "outlier"])
@pytest.mark.parametrize("quantity", ["sqrt", "inv_sqrt"])
@pytest.mark.parametrize(
    ("method", "rule", "backend", "dtype"),
    calls(BY_EIGH, torch.float32, torch.complex64, torch.float64),
)
def test_gradient_accuracy(method, rule, backend, quantity, spectrum, cond, dtype):
    a = random_spd(16, 2, cond=cond, spectrum=spectrum, dtype=dtype)
    g = torch.randn(a.shape, dtype=dtype)
    options = {"method": method, "gradient": rule, "backend": backend}
    found = gradient(a, g, FUNCTIONS[quantity], **options)
    error = relative_error(found, exact_gradient(a, g, quantity)).max()
    kind = "gradient" if quantity == "sqrt" else "inv_gradient"
    bound = tolerance(dtype, cond, kind)
    if backend == "torch" and dtype == torch.float32 and spectrum == "clustered":
        # LAPACK's eigenvectors in single precision miss it by some percent, by hand too.
        by_hand = by_eigh(a, g, quantity)[1]
        bound = max(bound, 1.1 * relative_error(by_hand, exact_gradient(a, g, quantity)).max())
    assert error < bound
    assert relative_error(found, found.mH).max() == 0


@pytest.mark.parametrize(
    ("method", "rule", "backend", "dtype"), calls(BY_EIGH, torch.float16, torch.bfloat16)
)
def test_half_precision_gradients(method, rule, backend, dtype):
    a = random_spd(8, 2, cond=10, dtype=dtype)
    g = torch.randn(a.shape).to(dtype)
    found = gradient(a, g, method=method, gradient=rule, backend=backend)
    assert found.dtype == dtype
    error = relative_error(found, exact_gradient(a, g)).max()
    assert error < 2 * tolerance(dtype, 10, "gradient")


@pytest.mark.parametrize(("method", "rule", "backend"), calls(pairs(CONVERGED, RULES)))
def test_a_gradient_does_not_depend_on_the_neighbours(method, rule, backend):
    a, options = random_spd(6, 5, cond=5), {"method": method, "gradient": rule, "backend": backend}
    g = torch.randn_like(a)
    one = gradient(a, g, **options)
    other = torch.cat([a[:1], 7 * torch.eye(6).double().expand(4, 6, 6)])
    assert torch.equal(gradient(other, g, **options)[0], one[0])
    alone = gradient(a[0], g[0], **options)
    assert relative_error(alone, one[0]) < 1e-12


@pytest.mark.parametrize(
    ("method", "rule", "backend"), calls(pairs([Eigh()], [Lyapunov(), Lyapunov(12), Spectral()]))
)
@pytest.mark.parametrize("root", ["sqrt", "inv_sqrt"])
def test_the_pair_shares_its_gradient(root, method, rule, backend):
    options = {"method": method, "gradient": rule, "backend": backend}
    a = random_spd(5, 3, cond=5).requires_grad_()
    g, h = torch.randn_like(a), torch.randn_like(a)
    s, z = matroot.sqrtm_pair(a, **options)
    both = torch.autograd.grad((s * g).sum() + (z * h).sum(), a)[0]
    apart = gradient(a, g, **options) + gradient(a, h, matroot.inv_sqrtm, **options)
    assert relative_error(both, apart).max() < 1e-12


def test_the_two_roots_of_a_pair_share_one_solve(monkeypatch):
    solved = []
    solve = BySmith.solve
    monkeypatch.setattr(BySmith, "solve", lambda *args: solved.append(1) or solve(*args))
    a = random_spd(5, cond=5).requires_grad_()
    s, z = matroot.sqrtm_pair(a, gradient="lyapunov", backend="torch")
    (s + z).sum().backward()
    assert len(solved) == 1


SINGULAR = [Lyapunov(), Lyapunov(8), Lyapunov(30), Spectral()]


@pytest.mark.parametrize(
    ("method", "rule", "backend", "dtype"),
    calls(
        pairs([Eigh(), Svd(), NewtonSchulz(20)], SINGULAR),
        torch.float32,
        torch.float64,
        torch.complex128,
    ),
)
def test_minimum_norm_gradient_of_diagonal_one_zero(rule, method, backend, dtype):
    a = torch.diag(torch.tensor([1.0, 0.0])).to(dtype)
    g = torch.tensor([[1.0, 2.0], [2.0, 3.0]]).to(dtype)
    # s_i + s_j is 2, 1 and 0: the last block is 0 by minimum norm.
    expected = torch.tensor([[0.5, 2.0], [2.0, 0.0]]).to(dtype)
    found = gradient(a, g, method=method, gradient=rule, backend=backend)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "rule", "backend"), calls(pairs([*PUBLISHED, *CONVERGED], SINGULAR))
)
def test_the_gradient_at_zero_is_zero(rule, method, backend):
    zero = torch.zeros(2, 3, 3, dtype=torch.float64)
    found = gradient(zero, torch.ones_like(zero), method=method, gradient=rule, backend=backend)
    assert torch.equal(found, zero)


@pytest.mark.parametrize(("n", "rank"), [(6, 1), (8, 5), (64, 40), (256, 196)])
@pytest.mark.parametrize(
    ("method", "rule", "backend", "dtype"), calls(BY_EIGH, torch.float32, torch.float64)
)
def test_minimum_norm_gradient_of_rank_deficient_covariances(method, rule, backend, n, rank, dtype):
    x = torch.randn(n, rank, dtype=dtype)
    a = x @ x.mT
    values, q = torch.linalg.eigh(a.double())
    s = torch.where(torch.arange(n) < n - rank, 0.0, values.clamp(min=0).sqrt())
    g = torch.randn(n, n, dtype=dtype)
    rotated = q.mT @ ((g + g.mT) / 2).double() @ q
    sums = s[:, None] + s[None]
    expected = q @ torch.where(sums > 0, rotated / sums, 0.0) @ q.mT
    # A zero eigenvalue has an error of n·u, its root one of √(n·u), and so has s_i + s_j.
    found = gradient(a, g, method=method, gradient=rule, backend=backend)
    error = relative_error(found, expected)
    assert error < 20 * torch.finfo(dtype).eps ** 0.5


@pytest.mark.parametrize(("method", "rule", "backend"), calls(pairs(CONVERGED, IMPLICIT)))
def test_first_and_second_derivative_at_a_multiple_of_the_identity(method, rule, backend):
    """At c·I: dS = E/(2√c), and the second derivative in E, F is −(EF + FE)/(8 c^{3/2})."""
    c, n = 2.0, 3
    a = c * torch.eye(n, dtype=torch.float64)
    e, f, g = (torch.randn(n, n, dtype=torch.float64) for _ in range(3))
    e, f = e + e.mT, f + f.mT

    def directional(a):
        options = {"method": method, "gradient": rule, "backend": backend}
        root = matroot.sqrtm(a, check_errors=False, **options)
        return (torch.autograd.grad((root * g).sum(), a, create_graph=True)[0] * e).sum()

    a.requires_grad_()
    first = directional(a)
    torch.testing.assert_close(first, (g * e).sum() / (2 * c**0.5), rtol=1e-10, atol=1e-10)
    second = (torch.autograd.grad(first, a)[0] * f).sum()
    expected = -(g * (e @ f + f @ e)).sum() / (8 * c**1.5)
    torch.testing.assert_close(second, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rule", IMPLICIT, ids=repr)
def test_third_derivative_runs_and_is_right(rule):
    """d³/dt³ √(1 + t) = 3/8 at t = 0, on the diagonal of (1 + t)·I."""
    t = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    eye = torch.eye(3, dtype=torch.float64)
    value = matroot.sqrtm((1 + t) * eye, gradient=rule)[0, 0]
    for _ in range(3):
        (value,) = torch.autograd.grad(value, t, create_graph=True)
    torch.testing.assert_close(value.item(), 3 / 8, rtol=1e-9, atol=0)


@pytest.mark.parametrize("rule", IMPLICIT, ids=repr)
def test_gradient_of_the_pseudo_inverse_along_directions_that_keep_the_rank(rule):
    x = torch.randn(6, 4, dtype=torch.float64)
    dx = torch.randn_like(x)

    def root(t):
        y = x + t * dx
        return matroot.inv_sqrtm(y @ y.mT, singular="pinv", gradient=rule)

    t = torch.zeros((), dtype=torch.float64)
    tangent = torch.func.jvp(root, (t,), (torch.ones_like(t),))[1]
    h = 1e-5
    torch.testing.assert_close(tangent, (root(t + h) - root(t - h)) / (2 * h), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "rule", "backend"),
    calls(pairs([Taylor(), Pade(), NewtonSchulz(), Eigh(), Minimax()], ANY_ORDER)),
)
def test_a_bad_matrix_has_a_nan_gradient_and_its_neighbours_their_own(method, rule, backend):
    a = random_spd(4, 3, cond=5)
    bad = a.clone()
    bad[1] = -bad[1]
    g = torch.randn_like(a)
    options = {"method": method, "gradient": rule, "backend": backend}
    found = gradient(bad, g, check_errors=False, **options)
    expected = gradient(a, g, **options)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


def test_lyapunov_solve_for_any_square_right_hand_side():
    s = random_spd(7, 2, 3, cond=100)
    g = torch.randn_like(s)
    x = matroot.solve_lyapunov(s, g)
    assert relative_error(s @ x + x @ s, g).max() < 1e-12
    small = random_spd(3, 2, cond=5).requires_grad_()
    right = torch.randn_like(small).requires_grad_()
    assert gradcheck(matroot.solve_lyapunov, (small, right), check_forward_ad=True)
    assert gradgradcheck(matroot.solve_lyapunov, (small, right))
