"""Inputs and uses that failed once, kept as tests."""

import pytest
import torch

import matroot
from instances import ANY_ORDER, CONVERGED, FUNCTIONS, IMPLICIT, METHOD_OBJECTS, calls, pairs
from matroot import schedules
from matroot.gradients import Lyapunov, Spectral
from matroot.methods import Eigh, Minimax, NewtonSchulz, Pade, Svd, Taylor
from matroot.testing import (
    exact,
    exact_gradient,
    random_spd,
    relative_error,
    tolerance,
)

LinAlgError = torch.linalg.LinAlgError


@pytest.mark.parametrize(
    ("dtype", "smallest"),
    [(torch.float32, 5e-4), (torch.float32, 1e-6), (torch.float64, 1e-8), (torch.float64, 1e-14)],
)
def test_a_given_s_is_regular_down_to_its_own_rounding(dtype, smallest):
    s = torch.diag(torch.tensor([1.0, 0.5, smallest], dtype=dtype))
    x = matroot.solve_lyapunov(s, torch.ones_like(s))
    diagonal = s.diagonal()
    expected = 1 / (diagonal[:, None] + diagonal)
    # The factorisation of S + μ is exact to the rounding of S.
    torch.testing.assert_close(x, expected, rtol=20 * torch.finfo(dtype).eps / smallest, atol=0)


@pytest.mark.parametrize("n", [8, 64])
@pytest.mark.parametrize("spectrum", ["clustered", "outlier", "log"])
@pytest.mark.parametrize(
    ("method", "rule", "backend", "dtype"), calls(pairs([Eigh()], IMPLICIT), torch.float32)
)
def test_gradients_just_above_the_rounding_level(method, rule, backend, dtype, spectrum, n):
    a = random_spd(n, 2, cond=1e6, spectrum=spectrum, dtype=dtype)
    g = torch.randn_like(a)
    x = a.clone().requires_grad_()
    root = matroot.sqrtm(x, method=method, gradient=rule, backend=backend)
    found = torch.autograd.grad((root * g).sum(), x)[0]
    error = relative_error(found, exact_gradient(a, g)).max()
    assert error < tolerance(torch.float32, 1e6, "gradient")


@pytest.mark.parametrize("steps", [10, 15, 20, 25, 26, 30, 35, 40, 60])
@pytest.mark.parametrize("gradient", ["spectral", "lyapunov", "unrolled"])
def test_newton_schulz_on_singular_matrices_is_right_or_not_a_number(gradient, steps):
    v = torch.randn(40, 8, 4)
    a = (v @ v.mT).requires_grad_()
    method = NewtonSchulz(steps=steps)
    s = matroot.sqrtm(a, method=method, gradient=gradient, check_errors=False)
    s.nansum().backward()
    found = s.detach()[s.detach().isfinite().all(-1).all(-1)]
    reference = exact(a)[s.detach().isfinite().all(-1).all(-1)]
    # A zero eigenvalue has an error of some n·u, its root one of √(n·u).
    assert found.numel() == 0 or relative_error(found, reference).max() < 0.02
    if steps <= 15:
        assert s.isfinite().all()
    if steps >= 30:
        with pytest.raises(LinAlgError, match="diverged"):
            matroot.sqrtm(a, method=method)


@pytest.mark.parametrize(
    ("method", "backend", "dtype"), calls(METHOD_OBJECTS, torch.bfloat16, torch.float16)
)
def test_a_negative_half_matrix_is_never_a_rounded_zero(method, backend, dtype):
    # Only the threshold n·u > 1 needs the large matrix.
    n = 1100 if dtype == torch.float16 and method in (Eigh(), Pade()) else 130
    with pytest.raises(LinAlgError, match="indefinite"):
        matroot.sqrtm(-torch.eye(n, dtype=dtype), method=method, backend=backend)


@pytest.mark.parametrize(
    ("method", "backend", "dtype"),
    calls([Pade(), Pade(8), Pade(32), Taylor(), NewtonSchulz(), Eigh()], torch.bfloat16),
)
@pytest.mark.parametrize("value", [-0.4, -0.1, -0.01])
def test_negative_eigenvalues_of_half_matrices_at_rounding_level_count_as_zero(
    method, backend, dtype, value
):
    a = torch.eye(64, dtype=dtype)
    a[0, 0] = value
    zero = torch.eye(64)
    zero[0, 0] = 0
    found = matroot.sqrtm(a, method=method, backend=backend)
    expected = matroot.sqrtm(zero, method=method, backend=backend)
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("function", FUNCTIONS.values())
def test_activation_checkpointing(function):
    a = random_spd(4, 2, cond=5).requires_grad_()

    def total(a):
        out = function(a)
        return sum(x.sum() for x in (out if isinstance(out, tuple) else (out,)))

    torch.utils.checkpoint.checkpoint(total, a, use_reentrant=False).backward()
    expected = torch.autograd.grad(total(a), a)[0]
    assert torch.equal(a.grad, expected)


def test_compiling_again_with_another_eps_and_with_dynamic_shapes():
    torch._dynamo.reset()
    compiled = torch.compile(matroot.sqrtm, fullgraph=True, backend="aot_eager")
    for eps in (1e-3, 1e-2, 0.0, 0.5):
        for n in (3, 4, 5):
            a = random_spd(n, 2, cond=5)
            assert relative_error(compiled(a, eps=eps), matroot.sqrtm(a, eps=eps)).max() < 1e-14


@pytest.mark.parametrize("method", CONVERGED, ids=repr)
def test_lazily_conjugated_and_negated_input(method):
    a = random_spd(4, 2, cond=5, dtype=torch.complex128)
    expected = matroot.sqrtm(a, method=method)
    for lazy in (a.mH, a.conj().mT, torch._neg_view(-a)):
        assert relative_error(matroot.sqrtm(lazy, method=method), expected).max() < 1e-13
    assert relative_error(matroot.sqrtm(a.conj(), method=method), expected.conj()).max() < 1e-13
    x = matroot.solve_lyapunov(expected.conj(), a.conj())
    assert relative_error(x.conj(), matroot.solve_lyapunov(expected, a)).max() < 1e-13


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_results_are_not_views(shape):
    a = random_spd(3, *shape, cond=5).requires_grad_()
    for x in (*matroot.sqrtm_pair(a), matroot.solve_lyapunov(a, torch.ones_like(a))):
        before = x.detach().clone()
        # Allowed, as for torch.exp; the gradient, which needs the result, is then lost.
        assert torch.equal(x.mul_(2), 2 * before)


@pytest.mark.parametrize("rule", [Lyapunov(), Lyapunov(8), Spectral()], ids=repr)
@pytest.mark.parametrize("function", FUNCTIONS.values())
def test_backward_inside_autocast_is_not_done_in_half(function, rule):
    a = random_spd(16, cond=50, dtype=torch.float32).requires_grad_()

    def gradient():
        out = function(a, gradient=rule)
        total = sum((x * torch.arange(16.0)).sum() for x in (out if type(out) is tuple else (out,)))
        return torch.autograd.grad(total, a)[0]

    expected = gradient()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradient()
    assert relative_error(found, expected) < 1e-6


def test_tensors_without_values():
    for method in ("eigh", "pade", "newton_schulz"):
        meta = torch.empty(2, 3, 3, device="meta")
        assert matroot.sqrtm(meta, method=method).shape == (2, 3, 3)
        with torch._subclasses.FakeTensorMode():
            assert matroot.inv_sqrtm(torch.empty(2, 3, 3), method=method).shape == (2, 3, 3)


def test_eps_beyond_the_dtype():
    with pytest.raises(ValueError, match=r"eps must be finite in torch.float32"):
        matroot.sqrtm(torch.eye(2), eps=1e39)
    assert matroot.sqrtm(torch.eye(2).double(), eps=1e39).isfinite().all()


@pytest.mark.parametrize(
    ("method", "rule", "backend", "dtype"),
    calls(pairs([Eigh(), Svd(), NewtonSchulz(40)], ANY_ORDER), torch.float32),
)
def test_one_hard_matrix_does_not_stop_the_batch(method, rule, backend, dtype):
    v = torch.randn(8, 4)
    a = random_spd(8, 3, cond=5, dtype=dtype)
    options = {"method": method, "gradient": rule, "backend": backend}
    expected = matroot.sqrtm(a.clone().requires_grad_(), **options)
    a[1] = v @ v.mT
    found = matroot.sqrtm(a.requires_grad_(), check_errors=False, **options)
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    found[[0, 2]].sum().backward()
    assert a.grad[[0, 2]].isfinite().all()


def grams(n, rank, dtype, kind):
    """300 singular matrices of usual kinds: A = X Xᵀ, centred or of integer entries; projectors."""
    generator = torch.Generator().manual_seed(n + rank)
    x = torch.randn(300, n, rank, dtype=torch.float64, generator=generator)
    if kind == "integer":
        x = (2 * x).round()
    if kind == "projector":
        x = torch.linalg.qr(x).Q
    elif kind == "centred":
        x = x - x.mean(2, keepdim=True)
    x = x.to(dtype)
    return x @ x.mT


@pytest.mark.parametrize("kind", ["plain", "centred", "integer", "projector"])
@pytest.mark.parametrize(("n", "rank"), [(2, 1), (3, 1), (5, 2), (8, 4), (16, 8), (33, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", ["auto", "minimax", Minimax(step_degree=3)], ids=str)
def test_gradients_of_singular_matrices_have_minimum_norm(method, dtype, n, rank, kind):
    if kind == "centred" and rank == 1:
        return  # One sample minus its mean is 0.
    a = grams(n, rank, dtype, kind)
    g = torch.randn(a.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    values, q = torch.linalg.eigh(a.double())
    s = values.clamp(min=0).sqrt()
    null = s <= 1e-3 * s[:, -1:]
    s = torch.where(null, 0.0, s)
    both = null[:, :, None] & null[:, None, :]
    sums = torch.where(both, 1.0, s[:, :, None] + s[:, None, :])
    rotated = q.mT @ ((g + g.mT) / 2).double() @ q
    expected = q @ torch.where(both, 0.0, rotated / sums) @ q.mT
    x = a.clone().requires_grad_()
    found = torch.autograd.grad(matroot.sqrtm(x, method=method), x, g)[0].double()
    error = (found - expected).norm(dim=(1, 2)) / (expected.norm(dim=(1, 2)) + 1e-12)
    # The null space has an error of √u relative to the smallest regular eigenvalue of the root.
    known = torch.finfo(dtype).eps ** 0.5 * s[:, -1] / torch.where(null, torch.inf, s).amin(1)
    usual = ~null.all(1) & (known < 0.02)
    assert (error[usual] <= 40 * known[usual]).all()
    assert found.isfinite().all()
    assert usual.sum() > 200


@pytest.mark.parametrize("n", [8, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_solve_lyapunov_takes_every_semidefinite_matrix(n, dtype):
    generator = torch.Generator().manual_seed(n)
    q = torch.linalg.qr(torch.randn(20, n, n, dtype=torch.float64, generator=generator)).Q
    values = torch.linspace(0.1, 1, n, dtype=torch.float64).repeat(20, 1)
    values[:, 0], values[:, 1] = 0, -0.3 * n * torch.finfo(dtype).eps
    s = (q * values[:, None, :]) @ q.mT
    s = ((s + s.mT) / 2).to(dtype)
    x = matroot.solve_lyapunov(s, torch.eye(n, dtype=dtype).expand_as(s), check_errors=False)
    # On the range X = S⁻¹/2 ≤ 5; positive eigenvalues that are rounding errors may be kept.
    vectors = q[:, :, 2:]
    regular = vectors.mT @ x.double() @ vectors
    assert regular.isfinite().all()
    wanted = torch.diag(0.5 / values[0, 2:])
    tolerance = 0.5 if dtype.itemsize == 2 else 1e-3
    assert (regular - wanted).norm(dim=(1, 2)).median() <= tolerance * wanted.norm()
    root = matroot.sqrtm(grams(n, n // 2, torch.float64, "plain"), method="minimax")
    assert matroot.solve_lyapunov(root, root).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [8, 64, 256])
def test_projectors_are_their_own_roots_and_pseudo_inverses(n, dtype):
    generator = torch.Generator().manual_seed(n)
    q = torch.linalg.qr(torch.randn(6, n, n // 2, dtype=torch.float64, generator=generator)).Q
    p = (q @ q.mT).to(dtype)
    z = matroot.inv_sqrtm(p, singular="pinv")
    assert (z - p).abs().max() <= 1e3 * torch.finfo(dtype).eps
    x = p.clone().requires_grad_()
    w = torch.randn(p.shape, dtype=dtype, generator=generator)
    found = torch.autograd.grad((matroot.sqrtm(x) * w).sum(), x)[0]
    assert (found.norm(dim=(1, 2)) <= 1.1 * w.norm(dim=(1, 2))).all()


@pytest.mark.parametrize("neighbour", [torch.eye(2), torch.diag(torch.tensor([1.0, 0.0]))])
def test_values_do_not_depend_on_whether_a_neighbour_is_regular(neighbour):
    a = grams(2, 1, torch.float64, "plain")
    rest = neighbour.double().expand_as(a)
    alone = matroot.sqrtm(a, method="minimax")
    together = matroot.sqrtm(torch.cat([a, rest]), method="minimax")[: len(a)]
    assert torch.equal(alone, together)


def test_gradients_under_a_promise_do_not_depend_on_a_neighbour_that_breaks_it():
    a = random_spd(6, 5, cond=50)
    g = torch.randn(a.shape, dtype=a.dtype, generator=torch.Generator().manual_seed(0))

    def gradient(last):
        x = torch.cat([a[:4], last[None]]).requires_grad_()
        return torch.autograd.grad(matroot.sqrtm(x, method=Minimax(max_cond=100)), x, g)[0][:4]

    expected = gradient(a[4])
    for last in (torch.zeros(6, 6), torch.diag(torch.logspace(0, -6, 6)), torch.ones(6, 6)):
        assert torch.equal(gradient(last.double()), expected)


def test_a_default_device_changes_nothing():
    a = random_spd(4, 2, cond=5, dtype=torch.float32).requires_grad_()
    g = torch.randn_like(a)
    expected = torch.autograd.grad(matroot.sqrtm(a, method=Minimax(tol=1e-5)), a, g)[0]
    schedules._schedules.cache_clear()
    with torch.device("meta"):
        found = torch.autograd.grad(matroot.sqrtm(a, method=Minimax(tol=1e-5)), a, g)[0]
        assert torch.equal(found, expected)
        assert matroot.sqrtm_ex(a, root="both").converged.all()


@pytest.mark.parametrize("cond", [1e3, 1e5])
def test_converged_is_not_said_of_a_wrong_inverse(cond):
    a = random_spd(16, 3, cond=cond, dtype=torch.float32, seed=5)
    for steps in range(8, 24):
        result = matroot.sqrtm_ex(a, root="inv_sqrt", method=NewtonSchulz(steps))
        wrong = relative_error(result.inv_sqrt, exact(a, "inv_sqrt"))
        assert not (result.converged & (wrong > 1e-4 * cond / 1e3)).any()


def test_a_regular_matrix_near_the_threshold_is_inverted():
    a = random_spd(100, 3, cond=1e6, spectrum="clustered", dtype=torch.float32, seed=101)
    for method in ("auto", "minimax"):
        z = matroot.inv_sqrtm(a, method=method)
        assert relative_error(z, exact(a, "inv_sqrt")).max() < 0.02


def test_singular_vectors_of_opposite_eigenvalues():
    """They tell no signs, and such a matrix is not taken for one of equal eigenvalues."""
    q = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()).Q
    a = torch.stack([torch.kron(torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]])).double()] * 2)
    a[1] = q @ torch.diag(torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)) @ q.mT
    a[1] = (a[1] + a[1].mT) / 2
    assert matroot.sqrtm_ex(a, method="svd").sqrt.isnan().all()
    # At the rounding of half precision they are zeros.
    b = torch.diag(torch.tensor([1.0, 1e-3, -1e-3, 0.0])).half()
    b[1:3, 1:3] = torch.tensor([[0.0, 1e-3], [1e-3, 0.0]])
    found = matroot.sqrtm(b, method="svd").float()
    torch.testing.assert_close(found, matroot.sqrtm(b, method="eigh").float(), rtol=0, atol=1e-3)
