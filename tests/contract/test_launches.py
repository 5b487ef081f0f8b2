"""Launches of calls on an accelerator, counted on a CPU, and the results of that path.

``context.pretended_accelerator`` takes the path of a GPU on a CPU: where values cannot be read,
whole calls are a few passes between products (kernels/large.py).
"""

import pytest
import torch

import matroot
from matroot import context, plan, roots, schedules, screen, solve, spd
from matroot.gradients import Lyapunov
from matroot.kernels import large, triton
from matroot.kernels.passes import ByOperations
from matroot.kernels.triton import launch, passes
from matroot.kernels.triton.passes import ByKernels
from matroot.methods import Minimax
from matroot.request import Request
from matroot.screen import Status
from matroot.testing import (
    count_launches,
    exact,
    exact_gradient,
    random_spd,
    relative_error,
    tolerance,
)

# Arithmetic with NaN and infinity: GPUs are silent, the interpreter's NumPy warns.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
)
FUNCTIONS = {
    "sqrt": matroot.sqrtm,
    "inv_sqrt": matroot.inv_sqrtm,
    "both": matroot.sqrtm_pair,
}
BACKENDS = ["torch", "triton"]
# The most launches, forward and backward.
MOST = {
    ("torch", "sqrt"): (100, 80),
    ("torch", "inv_sqrt"): (100, 80),
    ("torch", "both"): (100, 80),
    ("triton", "sqrt"): (60, 45),
    ("triton", "inv_sqrt"): (65, 50),
    ("triton", "both"): (65, 50),
}


@pytest.fixture(autouse=True)
def not_interpreted(monkeypatch):
    """Operators then use PyTorch's operations in place of kernels, and still count as one."""
    monkeypatch.setattr(passes, "interpreting", lambda: False)


@pytest.fixture
def interpreted(monkeypatch, not_interpreted):
    if not (triton._INSTALLED and launch.interpreting()):
        pytest.skip("needs Triton's interpreter")
    monkeypatch.setattr(passes, "interpreting", lambda: True)


def counted(function, a, **options):
    return count_launches(lambda x: function(x, **options), a.requires_grad_()).counts


def solved(function, a, g=None, **options):
    """The roots and, given their cotangents, the gradient, as on an accelerator."""
    with context.pretended_accelerator():
        x = a.clone().requires_grad_(g is not None)
        found = function(x, **options)
        roots = found if isinstance(found, tuple) else (found,)
        gradient = None if g is None else torch.autograd.grad(roots, x, [g] * len(roots))[0]
    return (*(root.detach() for root in roots), gradient)


@pytest.mark.parametrize("n", [48, 200])
@pytest.mark.parametrize("root", FUNCTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_launches(backend, root, n):
    if backend == "triton" and n <= 128:
        pytest.skip("one kernel")
    a = random_spd(n, 2, cond=1e4, dtype=torch.float32)
    found = counted(FUNCTIONS[root], a, backend=backend)
    most = MOST[backend, root]
    assert found[0] <= most[0]
    assert found[1] <= most[1]
    promised = counted(FUNCTIONS[root], a, method=Minimax(max_cond=1e4), backend=backend)
    assert promised[1] <= most[1]


def test_auto_takes_few_launches_on_an_accelerator():
    a = random_spd(200, 2, dtype=torch.float32)
    forward, backward = counted(matroot.sqrtm, a)
    assert forward <= 60
    assert backward <= 45
    half = count_launches(matroot.sqrtm, a.detach().half())
    assert half.forward.total() <= 62
    assert half.backward.total() == 0
    # Up to n = 128 one kernel does everything; so does whitening's, in double precision.
    for function in FUNCTIONS.values():
        assert counted(function, random_spd(48, 2, dtype=torch.float32)) == (1, 1)


@pytest.mark.parametrize(("n", "rank"), [(2, 1), (3, 1), (5, 2), (16, 8)])
def test_projectors_have_gradients_of_minimum_norm(n, rank):
    """Rounding gives the zeros of A either sign; the projector must include them all."""
    generator = torch.Generator().manual_seed(n + rank)
    q = torch.linalg.qr(torch.randn(300, n, n, dtype=torch.float64, generator=generator)).Q
    kept = q[..., :rank]
    a = (kept @ kept.mT).float()
    a, g = (a + a.mT) / 2, torch.randn(300, n, n, generator=generator)
    _, found = solved(matroot.sqrtm, a, g, backend="torch")
    # s is 1 on the range: G/2 on range × range, G on range × null, 0 on null × null space.
    p, h = kept @ kept.mT, (g + g.mT).double() / 2
    expected = p @ h + h @ p - 1.5 * (p @ h @ p)
    assert relative_error(found, expected).max() < 0.02


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_null_space_is_looked_for_only_where_there_may_be_one(backend):
    a = random_spd(140, 3, dtype=torch.float32)
    regular = counted(matroot.sqrtm, a, backend=backend)
    singular = random_spd(140, 3, dtype=torch.float32, spectrum="half_zero")
    found = counted(matroot.sqrtm, torch.cat([a.detach(), singular[:1]]), backend=backend)
    assert found[0] > regular[0]
    assert found[1] > regular[1] + 20


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("root", FUNCTIONS)
def test_digits_are_the_same_whatever_the_host_knows(monkeypatch, root, backend):
    a, g = random_spd(140, 2, cond=1e5, dtype=torch.float32), torch.randn(2, 140, 140)
    expected = solved(FUNCTIONS[root], a, g, backend=backend)
    monkeypatch.setattr(large.Flag, "known_to_hold", lambda flag: False)
    for x, y in zip(expected, solved(FUNCTIONS[root], a, g, backend=backend), strict=True):
        assert torch.equal(x, y)
    # During capture there is no flag.
    monkeypatch.setattr(large.Flag, "of", lambda numbers: None)
    for x, y in zip(expected, solved(FUNCTIONS[root], a, g, backend=backend), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: torch.linalg.cholesky(x),
        lambda x: x + torch.tensor(1.0),
    ],
)
def test_what_waits_is_an_error(wait):
    a = torch.eye(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="waits for the device"):
        count_launches(lambda x: (wait(x.detach()), x)[1], a)

    class InTheGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            wait(g + torch.eye(3))
            return g

    with pytest.raises(RuntimeError, match="waits for the device"):
        count_launches(InTheGradient.apply, a)


def test_what_is_counted():
    def function(x):
        y = torch.empty_like(x).copy_(x)
        return (y.mT.reshape(9)[None] * 2).sum()

    launches = count_launches(function, torch.eye(3))
    assert launches.forward == {"copy_": 1, "clone": 1, "mul": 1, "sum": 1}
    assert launches.counts == (4, 0)
    assert not context.pretending()


@pytest.mark.parametrize("spectrum", ["log", "clustered", "outlier"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 130])
@pytest.mark.parametrize("cond", [1e1, 1e4, 1e6])
def test_roots_and_gradients(monkeypatch, cond, n, dtype, spectrum):
    """Within the table, and as accurate as the methods and rules that they replace."""
    a, g = random_spd(n, 2, cond=cond, dtype=dtype, spectrum=spectrum), torch.randn(2, n, n)
    g, unfit, unit = g.to(dtype), large._unfit, torch.finfo(dtype).eps
    for root in ("sqrt", "inv_sqrt"):
        golden = exact(a, root), exact_gradient(a, g, root)
        found = solved(FUNCTIONS[root], a, g, backend="torch")
        monkeypatch.setattr(large, "_unfit", lambda *tensors: "not today")
        expected = solved(FUNCTIONS[root], a, g, backend="torch")
        monkeypatch.setattr(large, "_unfit", unfit)
        for x, y, truth in zip(found, expected, golden, strict=True):
            error = relative_error(x, truth).max()
            assert error < 4 * relative_error(y, truth).max() + 10 * unit
            assert torch.equal(x, x.mT)
        assert relative_error(found[0], golden[0]).max() < tolerance(dtype, cond, root)
        # In double precision the rules themselves miss the table by 1.2 where half of a spectrum
        # lies at its lower end, as does the path they are compared with.
        if (dtype, spectrum) != (torch.float64, "clustered"):
            error = relative_error(found[1], golden[1]).max()
            assert error < tolerance(dtype, cond, "gradient")


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)]
)
@pytest.mark.usefixtures("interpreted")
def test_kernels_find_what_operations_find(dtype):
    cond, n = 1e4, 140
    a, g = random_spd(n, 2, cond=cond, dtype=dtype), torch.randn(2, n, n, dtype=dtype)
    for options in ({}, {"eps": 1e-3}, {"method": Minimax(max_cond=1e5)}):
        for function in FUNCTIONS.values():
            pair = [solved(function, a, g, backend=backend, **options) for backend in BACKENDS]
            for x, y in zip(*pair, strict=True):
                assert relative_error(x, y.double()).max() < tolerance(dtype, cond, "gradient")


@pytest.mark.parametrize("n", [1, 3, 33, 140])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("interpreted")
def test_every_pass(n, dtype):
    """Fused kernels, run by Triton's interpreter, against PyTorch's operations."""
    x = random_spd(n, 5, cond=30, dtype=dtype) * 100
    x[1] *= 1e-20
    x[2, 0, 0] = torch.nan
    if n > 1:
        x[3, 0, 1] += 30
    x[4] = 0
    limits = screen.thresholds(n, dtype, regular=True)
    steps = schedules.steps_of_five(
        dtype, x.device, 2 * spd.real_eps(dtype), None, n, 1 / (4 * spd.real_eps(dtype)), None
    )
    found = []
    for p in (ByOperations(), ByKernels()):
        scaled = p.scaled(x, 1e-7)
        square = scaled.x @ scaled.x
        inverse, failed = large._inverse(scaled.x, spd.identity_like(x))
        chosen = p.chosen(scaled, square, inverse, failed, limits, None, steps)
        d, c, e = chosen.steps[:, 0].nan_to_num().unbind(-1)
        found.append(
            [
                scaled.x,
                scaled.scale,
                *(chosen.__dict__[name][[0, 1, 4]] for name in chosen.__dict__),
                chosen.info[:, [0, 2]],
                p.combination(d, c, scaled.x),
                p.combination(d, c, scaled.x, e, square),
                p.shift(chosen.bounds, 1e-3),
                p.finished(square, c),
                p.finished(square, c, failed),
            ]
        )
    for x, y in zip(*found, strict=True):
        x, y = (t[[0, 1, 3, 4]] if len(t) == 5 else t for t in (x, y))  # Without the NaN.
        if x.dtype == torch.int64:
            assert torch.equal(x, y)
        # The bounds cancel, and the next row of the table differs by 1 %.
        torch.testing.assert_close(x, y, equal_nan=True, rtol=2e-2, atol=1e-4)


STATUSES = {
    "regular": Status.OK,
    "asymmetric": Status.ASYMMETRIC,
    "nan": Status.NONFINITE,
    "inf": Status.NONFINITE,
    "indefinite": Status.INDEFINITE,
    "negative": Status.INDEFINITE,
}


def matrices(n, dtype):
    a = random_spd(n, len(STATUSES), cond=1e3, dtype=dtype)
    bad = dict(zip(STATUSES, a, strict=True))
    bad["asymmetric"][0, n - 1] += 1
    bad["nan"][0, 0] = torch.nan
    bad["inf"][n - 1, 0] = bad["inf"][0, n - 1] = torch.inf
    values, q = torch.linalg.eigh(bad["indefinite"])
    values[0] = -0.01
    bad["indefinite"].copy_((q * values) @ q.mT)
    bad["negative"].mul_(-1)
    return a


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("root", FUNCTIONS)
@pytest.mark.parametrize("method", [Minimax(), Minimax(max_cond=1e4)], ids=repr)
def test_bad_matrices_are_nan_and_touch_nobody(method, root, backend):
    n, dtype = 140, torch.float32
    a, g = matrices(n, dtype), torch.randn(len(STATUSES), n, n)
    options = {"method": method, "backend": backend}
    found = solved(FUNCTIONS[root], a, g, **options)
    regular = a.clone()
    regular[1:] = random_spd(n, len(STATUSES) - 1, cond=10, dtype=dtype, seed=1)
    expected = solved(FUNCTIONS[root], regular, g, **options)
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x[0], y[0])
        assert x[1:].isnan().all()
    with context.pretended_accelerator():
        call = plan.resolve(roots.ROOTS[root], a, 0.0, method, Lyapunov(), backend, "raise")
        info = solve.evaluate(call, a).info
    assert info[:, 0].tolist() == list(STATUSES.values())
    assert info[:, 2].tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_singular_matrices(backend):
    n = 140
    a = random_spd(n, 2, cond=10, spectrum="half_zero", dtype=torch.float32)
    a[1] = 0
    g = torch.randn(2, n, n)
    root, gradient = solved(matroot.sqrtm, a, g, backend=backend)
    assert relative_error(root[0], exact(a[0])) < 1e-4
    assert torch.equal(root[1], a[1])
    assert torch.equal(gradient[1], a[1])
    values, q = torch.linalg.eigh(a[0].double())
    null = q[:, : n // 2]
    assert (null.mT @ gradient[0].double() @ null).norm() < 1e-3 * gradient[0].norm()
    kept = values.clamp(min=0).sqrt() * (torch.arange(n) >= n // 2)
    sums = kept[:, None] + kept
    rotated = q.mT @ ((g[0] + g[0].mT).double() / 2) @ q
    expected = q @ torch.where(sums > 0, rotated / sums.clamp(min=1e-9), 0) @ q.mT
    assert relative_error(gradient[0], expected) < 1e-3
    for method in (Minimax(), Minimax(max_cond=1e2)):
        options = {"method": method, "backend": backend}
        assert solved(matroot.inv_sqrtm, a, g, **options)[0].isnan().all()
        call = plan.resolve(roots.ROOTS["inv_sqrt"], a, 0.0, method, Lyapunov(), backend, "raise")
        with context.pretended_accelerator():
            status = solve.evaluate(call, a).info[:, 0]
        assert status.tolist() == [Status.SINGULAR] * 2


def test_a_broken_promise_is_told():
    a = random_spd(140, 2, cond=1e4)
    with context.pretended_accelerator():
        kept = matroot.sqrtm_ex(a, method=Minimax(max_cond=1e5), root="both")
        broken = matroot.sqrtm_ex(a, method=Minimax(max_cond=1e2), root="both")
    assert kept.converged.all()
    assert not broken.converged.any()
    assert broken.sqrt.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_ridge(backend):
    a = random_spd(140, 2, cond=10.0, dtype=torch.float32)
    found, _ = solved(matroot.inv_sqrtm, a, eps=0.5, backend=backend)
    expected = exact(a.double() + 0.5 * torch.eye(140), "inv_sqrt")
    assert relative_error(found, expected).max() < tolerance(torch.float32, 10.0, "inv_sqrt")


def test_options_of_the_method():
    a = random_spd(140, 2, cond=1e3)
    for method in (Minimax(tol=1e-2), Minimax(max_steps=2), Minimax(max_steps=1)):
        with context.pretended_accelerator():
            found = matroot.sqrtm_ex(a, method=method)
        expected = matroot.sqrtm_ex(a, method=method, backend="torch")
        assert torch.equal(found.steps, expected.steps)
        assert torch.equal(found.converged, expected.converged)
        assert (found.residual <= 1.01 * expected.residual).all()


def test_second_derivatives_and_transforms_take_the_general_path():
    a = random_spd(3, 2)
    with context.pretended_accelerator():
        x = a.clone().requires_grad_()
        assert torch.autograd.gradcheck(matroot.sqrtm, x)
        assert torch.autograd.gradgradcheck(matroot.sqrtm, x)
        mapped = torch.func.vmap(torch.func.grad(lambda x: matroot.sqrtm(x).sum()))(a)
        tangent = torch.func.jvp(matroot.sqrtm, (a,), (a,))[1]
    root = exact(a)
    torch.testing.assert_close(tangent, root / 2)
    torch.testing.assert_close(mapped, exact_gradient(a, torch.ones_like(a)))


def test_what_is_declined():
    a = random_spd(4, dtype=torch.complex64)
    method, rule = Minimax(), Lyapunov(steps=8)
    request = Request(roots.ROOTS["sqrt"], method, rule, 0.0, "raise", a.dtype, a.dtype)
    with context.pretended_accelerator():
        assert "exact gradient" in large.gradient_declines(request, a.real)
        assert "real numbers" in large.declines(request.without_derivative(), a)
        assert relative_error(matroot.sqrtm(a), exact(a)) < 1e-5
        found = matroot.sqrtm(a.real @ a.real.mT, method=Minimax(step_degree=3), backend="torch")
    assert relative_error(found, exact(a.real @ a.real.mT)) < 1e-3
