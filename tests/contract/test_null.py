"""One rule for zero eigenvalues: inverse roots, gradients, distances, Lyapunov equations."""

import functools

import pytest
import torch

import matroot
from matroot import spd
from matroot.kernels import native
from matroot.methods import METHODS
from matroot.testing import relative_error

LinAlgError = torch.linalg.LinAlgError
UNIT = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}


def projectors(n, rank, dtype, batch=1):
    """Orthogonal projectors in double precision, shape (batch, n, n)."""
    double = torch.complex128 if dtype.is_complex else torch.float64
    q = torch.linalg.qr(torch.randn(batch, n, rank, dtype=double)).Q
    return q @ q.mH


@functools.cache
def by_compile(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


VIA = {"eager": lambda f: f, "vmap": torch.func.vmap, "compile": by_compile}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize(
    ("dtype", "n"), [(torch.float32, 64), (torch.float64, 4), (torch.float64, 64)]
)
def test_an_inverse_root_has_every_part_or_is_an_error(dtype, n, backend, method):
    units = spd.null_units(n, dtype)
    assert units == (4 if dtype == torch.float32 else max(8, n))
    values = torch.linspace(0.5, 1, n, dtype=dtype)
    # Methods without eigenvalues bound the largest one within a factor.
    for factor in (0.1, 0.95 if METHODS[method].spectral else 0.5):
        values[0] = factor * units * UNIT[dtype]
        with pytest.raises(LinAlgError, match=f"rank {n - 1} of {n}"):
            matroot.inv_sqrtm(torch.diag(values), method=method, backend=backend)
        found = matroot.sqrtm_ex(torch.diag(values), root="both", method=method, backend=backend)
        assert found.sqrt.isnan().all()
        assert not found.converged
    if method in ("minimax", "eigh", "svd"):
        for factor in (0.95, 1.05, 4):
            values[0] = factor * units * UNIT[dtype]
            found = matroot.sqrtm_ex(
                torch.diag(values), root="inv_sqrt", method=method, backend=backend
            )
            assert found.converged == (not found.inv_sqrt.isnan().any())
            assert found.converged or factor < 1
            if found.converged:
                diagonal = found.inv_sqrt.diagonal()
                torch.testing.assert_close(diagonal, values.rsqrt(), rtol=2e-3, atol=0)


def test_a_ridge_below_rounding_is_no_ridge():
    x = torch.randn(5, 512, dtype=torch.float64)
    with pytest.raises(LinAlgError, match="rank 5 of 512"):
        matroot.inv_sqrtm(x.mT @ x, eps=1e-12)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("gradient", ["spectral", "lyapunov"])
@pytest.mark.parametrize("n", [32, 300])
def test_the_gradient_of_an_inverse_root_drops_nothing_that_the_root_keeps(n, gradient, backend):
    values = torch.linspace(0.5, 1, n, dtype=torch.float64)
    values[0] = 1.5 * n * UNIT[torch.float64]
    x = torch.diag(values).requires_grad_()
    root = matroot.inv_sqrtm(x, gradient=gradient, backend=backend)
    found = torch.autograd.grad(root.diagonal().sum(), x)[0].diagonal()
    # The smallest eigenvalue of S has a relative error of some √u.
    torch.testing.assert_close(found, -0.5 * values**-1.5, rtol=1e-3, atol=0)


@pytest.mark.parametrize("via", VIA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float64])
def test_lyapunov_equations_of_projectors(dtype, via):
    if via == "compile" and dtype.is_complex:
        pytest.skip("aot_eager of complex functions is tested in test_transforms")
    for n in (16, 24, 64) if via != "compile" else (16,):
        p = projectors(n, n // 2, dtype, 20)
        g = torch.randn_like(p)
        expected = p @ g + g @ p - 1.5 * p @ g @ p
        found = VIA[via](matroot.solve_lyapunov)(p.to(dtype), g.to(dtype))
        assert relative_error(found, expected).max() < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("via", VIA)
@pytest.mark.parametrize(
    ("dtype", "n"),
    [(torch.float32, 16), (torch.float32, 64), (torch.complex64, 64), (torch.float64, 256)],
)
def test_gradients_of_distances_are_zero_on_null_times_null_space(dtype, n, via):
    if via == "compile" and (dtype.is_complex or n > 16):
        pytest.skip("the compiled program is the same for every n")
    p, q = projectors(n, n // 2, dtype, 2), projectors(n, n // 4, dtype, 2)
    distance = matroot.bures_wasserstein_distance
    if via == "vmap":
        found = torch.func.vmap(torch.func.grad(distance))(p.to(dtype), q.to(dtype))
    else:
        x = p.to(dtype).requires_grad_()
        (found,) = torch.autograd.grad(VIA[via](distance)(x, q.to(dtype)).sum(), x)
    null = torch.eye(n, dtype=p.dtype) - p
    assert (null @ found.to(p.dtype) @ null).abs().max() < 10 * torch.finfo(dtype).eps
    # The rest is the gradient of the nuclear norm: 1 on the range, minus the transport map.
    assert 0.1 < found.abs().max() < 2


def test_the_distances_of_rank_deficient_matrices_have_the_gradient_of_their_range():
    """Against the gradient in a basis of the range, where nothing is singular."""
    n, rank = 64, 20
    q = torch.linalg.qr(torch.randn(n, rank, dtype=torch.float64)).Q
    x, y = (torch.randn(rank, 3 * rank, dtype=torch.float64) for _ in range(2))
    small = (x @ x.mT / rank, y @ y.mT / rank)
    expected = torch.func.grad(matroot.bures_wasserstein_distance)(*small)
    for dtype in (torch.float32, torch.float64):
        a, b = ((q @ s @ q.mT).to(dtype) for s in small)
        found = torch.func.grad(matroot.bures_wasserstein_distance)(a, b)
        error = relative_error(q.mT @ found.double() @ q, expected)
        assert error < 2e3 * torch.finfo(dtype).eps


@pytest.mark.parametrize("n", [512, 2048])
def test_sums_of_squares_keep_their_digits(n):
    a = torch.rand(n, n) + 0.5
    for x in (a, torch.complex(a, a.mT.contiguous()), a.mT, a.double()):
        wide = torch.complex128 if x.is_complex() else torch.float64
        parts = torch.view_as_real(x.to(wide)) if x.is_complex() else x.to(wide)
        expected = parts.square().sum().sqrt()
        assert abs(spd.frobenius_norm(x).item() / expected.item() - 1) < 5e-7
    # The bound of the largest eigenvalue that uses the norm holds; for rank one it is tight.
    v = torch.randn(n)
    rank_one = torch.outer(v, v)
    assert spd.upper_bound(rank_one) >= torch.linalg.vector_norm(v.double()) ** 2


def test_the_norm_is_twice_differentiable_beside_a_row_of_zeros():
    a = torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(spd.frobenius_norm, a)
    assert torch.autograd.gradgradcheck(spd.frobenius_norm, a)
    zero = torch.zeros(2, 2, requires_grad=True)
    assert torch.equal(torch.autograd.grad(spd.frobenius_norm(zero).sum(), zero)[0], zero)


def test_distances_in_single_precision_are_as_good_as_their_input():
    n = 512
    x, y = (torch.randn(2 * n, n, dtype=torch.float64) for _ in range(2))
    a, b = torch.cov(x.mT), torch.cov((y * torch.logspace(0, -1, n)).mT)
    expected = matroot.bures_wasserstein_distance(a, b)
    found = matroot.bures_wasserstein_distance(a.float(), b.float())
    assert abs(found.double() / expected - 1) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 40])
def test_nothing_overflows_near_the_largest_number(n, dtype):
    largest = torch.finfo(dtype).max
    s = 0.9 * largest * torch.eye(n, dtype=dtype)
    torch.testing.assert_close(matroot.solve_lyapunov(s, s), 0.5 * torch.eye(n, dtype=dtype))
    tiny = torch.finfo(dtype).tiny * torch.eye(n, dtype=dtype)
    torch.testing.assert_close(matroot.solve_lyapunov(tiny, s), s / tiny[0, 0] / 2)  # infinity
    found = matroot.solve_lyapunov(s, tiny)
    assert found.abs().max() <= torch.finfo(dtype).tiny
    a = torch.full((n, n), largest / (4 * n), dtype=dtype) + s / 2
    for backend in ("auto", "torch"):
        result = matroot.sqrtm_ex(a, root="both", backend=backend)
        assert result.converged
        assert result.residual < 1e-5
        assert result.inv_residual < 1e-5
    # Cotangents too.
    x = torch.eye(n, dtype=dtype).requires_grad_()
    g = s.clone()
    (found,) = torch.autograd.grad(matroot.sqrtm(x), x, g)
    torch.testing.assert_close(found, s / 2)


def test_the_residual_of_a_good_root_near_overflow():
    result = matroot.sqrtm_ex(torch.tensor([[3.3e38, 1e38], [1e38, 3.0e38]]), root="both")
    assert result.converged
    assert result.residual < 1e-6
    assert result.inv_residual < 1e-6


@pytest.mark.parametrize("n", [5, 16, 33, 260])
@pytest.mark.parametrize("method", ["minimax", "eigh", "pade"])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_digits_do_not_depend_on_how_many_neighbours_are_singular(backend, method, n):
    batch = 9 if n < 200 else 3
    x, y = torch.randn(batch, n, n // 2), torch.randn(batch, n, 2 * n)
    singular, regular = x @ x.mT / n, y @ y.mT / n
    one, many = regular.clone(), regular.clone()
    one[0] = singular[0]
    many[::2] = singular[::2]
    roots = [matroot.sqrtm(a, method=method, backend=backend) for a in (one, many)]
    assert torch.equal(roots[0][0], roots[1][0])
    solved = [matroot.solve_lyapunov(s, regular) for s in roots]
    assert torch.equal(solved[0][0], solved[1][0])
    g = torch.randn_like(one)
    gradients = []
    for a in (one, many):
        a = a.clone().requires_grad_()
        root = matroot.sqrtm(a, method=method, gradient="lyapunov", backend=backend)
        gradients.append(torch.autograd.grad(root, a, g)[0])
    assert torch.equal(gradients[0][0], gradients[1][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("n", [6, 40, 257])
def test_badly_graded_matrices(n, backend, dtype):
    """D B D with D over 34 orders of magnitude, in a batch with a well-scaled matrix."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    x = torch.randn(4, n, n + 4, dtype=wide)
    d = torch.logspace(-17, 17, n, dtype=torch.float64)
    a = x @ x.mH / n
    graded = torch.stack(
        [d[p][:, None] * m * d[p] for p, m in zip(permutations(n, 4), a, strict=True)]
    )
    both = torch.cat([graded, torch.eye(n, dtype=wide)[None]]).to(dtype)
    for method in ("eigh", "svd", "minimax"):
        result = matroot.sqrtm_ex(both, method=method, backend=backend)
        assert result.residual.max() < 1e-5
    assert matroot.bures_wasserstein_distance(both, both.flip(0)).isfinite().all()


def permutations(n, many):
    return [torch.arange(n), torch.arange(n).flip(0), *(torch.randperm(n) for _ in range(many - 2))]


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("double_too", [False, True])
def test_one_matrix_that_a_solver_fails_on(monkeypatch, double_too, backend):
    """The others do not change; that one is computed in double precision or is NaN."""
    n = 300  # beyond the compiled kernels:
    monkeypatch.setattr(native.tasks, "LARGEST_BY_EIGENPAIRS", {torch.float32: 256})
    marked = 0.123456789
    a = torch.diag_embed(torch.rand(3, n) + 0.5)
    a[1, 0, 0] = marked
    expected = matroot.sqrtm(a, backend=backend)

    def failing(solver):
        def solve(x, **options):
            near = (x.abs() - marked).abs() < 1e-6
            scaled = (x.abs() - marked / 4).abs() < 1e-6
            if (near | scaled).any() and (double_too or x.dtype == torch.float32):
                raise LinAlgError("failed to converge")
            return solver(x, **options)

        return solve

    monkeypatch.setattr(torch.linalg, "eigh", failing(torch.linalg.eigh))
    monkeypatch.setattr(torch.linalg, "svd", failing(torch.linalg.svd))
    for method in ("eigh", "svd"):
        result = matroot.sqrtm_ex(a, method=method, backend=backend)
        good = [0, 2] if double_too else [0, 1, 2]
        assert relative_error(result.sqrt[good], expected[good]).max() < 1e-6
        if double_too:
            assert result.sqrt[1].isnan().all()
            assert result.converged.tolist() == [True, False, True]
            with pytest.raises(LinAlgError, match="1 of the 3 matrices in a is out of reach"):
                matroot.sqrtm(a, method=method, backend=backend)
    distances = matroot.bures_wasserstein_distance(a[[0, 2]], a[[2, 0]])
    assert distances.isfinite().all()


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("gradient", ["auto", "spectral", "lyapunov"])
@pytest.mark.parametrize(
    ("dtype", "n"), [(torch.float32, 64), (torch.float32, 300), (torch.complex64, 16)]
)
def test_what_bounds_pass_as_regular_the_gradient_does_too(dtype, n, gradient, backend):
    """Just below the limit Minimax, which has only bounds of eigenvalues, may find a root."""
    values = torch.linspace(0.5, 1, n, dtype=torch.float64)
    values[0] = 0.97 * spd.null_share(n, dtype)
    a = torch.diag(values).to(dtype).requires_grad_()
    options = {"method": "minimax", "gradient": gradient, "backend": backend}
    for function in (matroot.inv_sqrtm, lambda a, **o: matroot.sqrtm_pair(a, **o)[1]):
        z = function(a, check_errors=False, **options)[0, 0].real
        (found,) = torch.autograd.grad(z, a)
        if z.isfinite():
            expected = -0.5 * values[0] ** -1.5
            assert abs(found[0, 0].real.double() / expected - 1) < 1e-2
        else:
            assert found.isnan().all()


@pytest.mark.parametrize("method", ["minimax", "eigh"])
def test_many_small_singular_matrices_take_few_calls(monkeypatch, method):
    calls = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: (calls.append(a.shape), eigh(a))[1])
    x = torch.randn(200, 8, 4)
    s = matroot.sqrtm(x @ x.mT, method=method, backend="torch")
    matroot.solve_lyapunov(s, s)
    matroot.bures_wasserstein_distance(s, s.flip(0))
    assert len(calls) < 12


def test_the_zero_matrix_is_told_as_such():
    with pytest.raises(LinAlgError, match=r"rank 0 of 3, no eigenvalue is above zero.*eps=, or"):
        matroot.inv_sqrtm(torch.zeros(3, 3))


def test_layers_at_scales_the_square_of_which_overflows():
    x = torch.randn(64, 8, dtype=torch.float64) * 1e80
    y = matroot.nn.DecorrelatedBatchNorm1d(8, dtype=torch.float64)(x)
    torch.testing.assert_close(torch.cov(y.mT, correction=0), torch.eye(8, dtype=torch.float64))


def test_a_singular_neighbour_does_not_touch_the_unrolled_gradient():
    x = torch.randn(4, 2, dtype=torch.float64)
    batch = torch.stack([torch.eye(4, dtype=torch.float64), x @ x.mT]).requires_grad_()
    root = matroot.sqrtm(batch, method="minimax", gradient="unrolled", backend="torch")
    (found,) = torch.autograd.grad(root[0].sum(), batch)
    torch.testing.assert_close(found[0], torch.full_like(found[0], 0.5), rtol=1e-8, atol=1e-8)


def test_norms_show_what_is_not_a_number():
    a = torch.tensor([[1.0, torch.nan], [0.0, 1.0]])
    assert spd.frobenius_norm(a).isnan().all()
    assert spd.frobenius_norm(torch.full((2, 2), torch.inf)).isinf().all()
    assert spd.sqrt_or_zero(torch.tensor([torch.nan, -1.0, 0.0, 4.0]))[1:].tolist() == [0, 0, 2]
