"""Every registered function: exact to the dtype, twice differentiable, clear about its domain."""

import fractions

import mpmath
import pytest
import torch

import matroot
from exact import as_written, difference, exactly
from instances import SPECTRAL, backends, public
from matroot.functions import Exp, Log, Power, power
from matroot.gradients import GRADIENTS, Spectral
from matroot.kernels import native
from matroot.methods import METHODS, Eigh, Minimax
from matroot.testing import random_spd, relative_error

functions = pytest.mark.parametrize("function", SPECTRAL, ids=repr)
on_backends = pytest.mark.parametrize("backend", backends(Eigh()))
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# Relative to the largest; the steepest is as hard as the dtype allows.
SPECTRA = {
    "log": lambda cond: [cond ** (-i / 5) for i in range(6)],
    "clusters": lambda cond: [1.0, 1 - 1e-6, 1 - 2e-6, 1 / cond, 1.001 / cond, 1.002 / cond],
    "ties": lambda cond: [1.0, 1.0, 1.0, 1 / cond, 1 / cond, 1 / cond],
    "outlier": lambda cond: [1.0, 2 / cond, 1.5 / cond, 1.3 / cond, 1.1 / cond, 1 / cond],
}


def matrix(values, dtype, scale=1.0):
    """A symmetric matrix with these eigenvalues but for the rounding of its entries."""
    n = len(values)
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
    a = (q * (scale * torch.tensor(values, dtype=torch.float64))) @ q.T
    return ((a + a.T) / 2).to(dtype)


def exact(function, a):
    """f(A) of the very numbers in A, by eigenpairs of 40 digits, and its condition number."""
    with mpmath.workdps(40):
        scalar = exactly(function)
        values, q = mpmath.eigsy(mpmath.matrix(a.double().tolist()))
        found = q * mpmath.diag([scalar(x) for x in values]) * q.T
        result = torch.tensor(found.tolist(), dtype=torch.float64)
    x = torch.tensor([float(v) for v in values], dtype=torch.float64)
    steepest = function.difference(x[:, None], x).abs().max()
    norm = torch.linalg.matrix_norm
    return result, float(steepest * norm(a.double()) / norm(result))


def points(function, count, many=200):
    """Tuples of points in the domain: far, close by 1e-1 … 1e-17, and exact ties."""
    base = 10 ** (3 * torch.rand(many, dtype=torch.float64) - 2)
    found = [base]
    for _ in range(count - 1):
        other = 10 ** (3 * torch.rand(many, dtype=torch.float64) - 2)
        close = base * (1 + 10 ** (-16 * torch.rand(many, dtype=torch.float64) - 1))
        which = torch.randint(3, (many,))
        found.append(torch.stack([other, close, base]).gather(0, which[None])[0])
    if function.domain in ("real", "regular"):
        found = [torch.where(torch.rand(many) < 0.4, -x, x) for x in found]
    return found


# A power is written for the digits of doubles.
@pytest.mark.parametrize("function", [f for f in SPECTRAL if not isinstance(f, Power)], ids=repr)
def test_what_is_written_is_what_is_meant(function):
    with mpmath.workdps(40):
        written, meant = as_written(function), exactly(function)
        for x in map(mpmath.mpf, points(function, 1)[0].tolist()):
            assert abs(written(x) - meant(x)) <= mpmath.mpf(10) ** -36 * abs(meant(x))


@DTYPES
@functions
def test_values_slope_and_divided_differences(function, dtype):
    """To units of rounding of themselves or of what the values' rounding makes of them.

    The bounds are those of the defaults, see SpectralFunction; that functions with formulas of
    their own are more exact is for tests/unit/test_functions.py.
    """
    unit = torch.finfo(dtype).eps
    x, y, z = (t.to(dtype) for t in points(function, 3))
    with mpmath.workdps(200):
        f = exactly(function)
        for found, arguments, bound in (
            (function.values(x), (x,), 4),
            (function.slope(x), (x, x), 10),
            (function.difference(x, y), (x, y), 10),
            (function.difference(x, x), (x, x), 10),
            (function.curvature(x) / 2, (x, x, x), 120),
            (function.second_difference(x, y, z), (x, y, z), 120),
            (function.second_difference(y, x, y), (y, x, y), 120),
        ):
            assert found.dtype == dtype
            for number, *at in zip(found.tolist(), *(t.tolist() for t in arguments), strict=True):
                exact_one = difference(f, *at)
                largest = max(map(abs, at))
                size = max(abs(f(mpmath.mpf(t))) for t in at) / largest ** (len(at) - 1)
                size = max(size, abs(exact_one), *_first(f, at, largest))
                assert abs(number - exact_one) <= bound * unit * size, (at, number, exact_one)


def _first(f, at, largest):
    """What the rounding of first differences makes of a second one."""
    if len(at) < 3:
        return ()
    return [abs(difference(f, at[i], at[i - 1])) / largest for i in range(3)]


@functions
def test_the_domain_is_told(function):
    """What is outside of it is an error, or NaN beside its good neighbours."""
    run, good = public(function), random_spd(4, 3, cond=5)
    q = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q

    def of(values):
        a = (q * torch.tensor(values, dtype=torch.float64)) @ q.mT
        return (a + a.mT) / 2

    indefinite, singular = of([-1.0, 0.5, 1.0, 2.0]), of([0.0, 0.5, 1.0, 2.0])
    for bad, inside, text in (
        (indefinite, function.domain in ("real", "regular"), "indefinite"),
        (singular, function.domain in ("real", "semidefinite"), "singular"),
    ):
        batch = torch.stack([good[0], bad, good[2]])
        if inside:
            assert run(batch).isfinite().all()
            continue
        with pytest.raises(torch.linalg.LinAlgError, match=f"1 of the 3 matrices in a.*{text}"):
            run(batch)
        found = run(batch, check_errors=False)
        assert found[1].isnan().all()
        assert torch.equal(found[[0, 2]], run(good)[[0, 2]])


@pytest.mark.parametrize("spectrum", SPECTRA)
@DTYPES
@on_backends
@functions
def test_against_forty_digits(function, backend, dtype, spectrum):
    run, unit, n = public(function), torch.finfo(dtype).eps, 6
    for cond in (1e1, 1e4, 0.02 / (n * unit)):
        a = matrix(SPECTRA[spectrum](cond), dtype)
        expected, condition = exact(function, a)
        error = relative_error(run(a, backend=backend).double(), expected)
        assert error <= 4 * n * unit * max(1.0, condition), (cond, float(error), condition)


@DTYPES
@on_backends
def test_roots_of_the_family_are_the_roots(dtype, backend):
    a = random_spd(20, 5, cond=100, dtype=dtype)
    for method in ("auto", "minimax", "svd"):
        options = {"method": method, "backend": backend}
        assert torch.equal(matroot.powm(a, 0.5, **options), matroot.sqrtm(a, **options))
        assert torch.equal(matroot.powm(a, -0.5, **options), matroot.inv_sqrtm(a, **options))
    x, y = a.clone().requires_grad_(), a.clone().requires_grad_()
    (first,) = torch.autograd.grad(matroot.powm(x, -0.5, backend=backend).sin().sum(), x)
    (second,) = torch.autograd.grad(matroot.inv_sqrtm(y, backend=backend).sin().sum(), y)
    assert torch.equal(first, second)


@DTYPES
@on_backends
@pytest.mark.parametrize("n", [1, 2, 15, 40])
def test_whole_powers_are_products(dtype, backend, n):
    a, unit = random_spd(n, 3, cond=10, dtype=dtype), torch.finfo(dtype).eps
    for p, expected in (
        (0, torch.eye(n, dtype=dtype).expand_as(a)),
        (1, a),
        (2, a @ a),
        (-1, torch.linalg.inv(a)),
    ):
        found = matroot.powm(a, p, backend=backend)
        assert relative_error(found, expected).max() < 10 * (n + 8) * unit
    indefinite = a - 0.5 * torch.eye(n, dtype=dtype) * a.diagonal(dim1=-2, dim2=-1).mean()
    for p, expected in ((3, indefinite @ indefinite @ indefinite), (1, indefinite)):
        found = matroot.powm(indefinite, p, backend=backend)
        assert relative_error(found, expected).max() < 10 * (n + 8) * unit


@DTYPES
@on_backends
def test_exp_of_log_and_log_of_exp(dtype, backend):
    unit = torch.finfo(dtype).eps
    a = random_spd(24, 4, cond=50, dtype=dtype) * 3
    found = matroot.expm(matroot.logm(a, backend=backend), backend=backend)
    assert relative_error(found, a).max() < 200 * unit
    back = matroot.logm(matroot.expm(a, backend=backend), backend=backend)
    assert relative_error(back, a).max() < 1e4 * unit


def test_exp_overflows_as_pytorchs():
    a = torch.diag(torch.tensor([0.0, 1000.0]))
    ours, theirs = matroot.expm(a), torch.matrix_exp(a)
    assert not ours.isfinite().all()
    assert not theirs.isfinite().all()
    assert matroot.expm(torch.diag(torch.tensor([-1000.0, 0.0]))).tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@functions
def test_derivatives_at_ties(function, dtype):
    run = public(function)
    q = torch.linalg.qr(torch.randn(4, 4, dtype=dtype)).Q
    a = (q * torch.tensor([0.5, 1.0, 1.0, 2.0], dtype=torch.float64)) @ q.mH
    a = ((a + a.mH) / 2).requires_grad_()

    def hermitian(x):
        return run((x + x.mH) / 2)

    assert torch.autograd.gradcheck(hermitian, a, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(hermitian, a, fast_mode=True)


@on_backends
@functions
def test_gradients_against_those_of_double_precision(function, backend):
    run, n = public(function), 12
    a = random_spd(n, 3, cond=50)
    g = torch.randn(3, n, n, dtype=torch.float64)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        x = a.to(dtype).requires_grad_()
        gradients += torch.autograd.grad(run(x, backend=backend), x, g.to(dtype))
    assert torch.equal(gradients[1], gradients[1].mT)
    scale = 50.0 ** max(0.0, 1 - (function.degree or 0.0))  # How steep it is at 1/50.
    assert relative_error(gradients[1], gradients[0]).max() < 40 * scale * 1.2e-7


def test_a_quarter_by_products_is_as_exact_as_by_eigenpairs():
    a = random_spd(64, 4, cond=1e4, dtype=torch.float32)
    exact_root = matroot.powm(a.double(), -0.25)
    values, q = torch.linalg.eigh(a)
    by_hand = (q * values.pow(-0.25)[:, None, :]) @ q.mT
    error = relative_error(matroot.powm(a, -0.25, method="minimax"), exact_root).max()
    assert error <= relative_error(by_hand, exact_root).max()
    for p in (0.25, -0.25, 0.125, -0.125):
        for method in ("minimax", Minimax(step_degree=3), "svd"):
            found = matroot.powm(a.double(), p, method=method)
            assert relative_error(found, matroot.powm(a.double(), p)).max() < 1e-11
    x = random_spd(3, cond=5).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x: matroot.powm((x + x.mT) / 2, -0.25, method="minimax"), x
    )


@DTYPES
@on_backends
def test_null_space(dtype, backend):
    """Powers are those of rounding there, gradients of minimum norm; a logarithm is refused."""
    n = 8
    a = random_spd(n, 2, cond=4, spectrum="half_zero", dtype=dtype)
    values, q = torch.linalg.eigh(a.double())
    null, kept = q[..., : n // 2], q[..., n // 2 :]
    tolerance = 100 * torch.finfo(dtype).eps
    for function in (Power(0.25), Power(1 / 3), Power(2.5)):
        x = a.clone().requires_grad_()
        found = public(function)(x, backend=backend)
        (gradient,) = torch.autograd.grad(found.sum(), x)
        noise = max(tolerance, (16 * torch.finfo(dtype).eps) ** function.p)
        assert (found.detach().double() @ null).norm() < noise * found.norm()
        assert gradient.isfinite().all()
        block = null.mT @ gradient.double() @ null
        assert block.norm() < tolerance * gradient.norm()
    for function in (Power(-0.25), Power(-1), Log()):
        run = public(function)
        with pytest.raises(torch.linalg.LinAlgError, match="2 of the 2 matrices in a are singular"):
            run(a, backend=backend)
        assert run(a, backend=backend, check_errors=False).isnan().all()
        found = run(a, backend=backend, singular="pinv")
        f = function.values(values[..., n // 2 :])
        expected = (kept * f[..., None, :]) @ kept.mT
        assert (found.double() - expected).norm() < 10 * tolerance * (1 + expected.norm())


@DTYPES
@on_backends
@pytest.mark.parametrize("p", [0.25, 1 / 3, 1.5, 2.5])
def test_small_eigenvalues_are_kept(dtype, backend, p):
    """Also those that are below the rounding of the largest, where a graded matrix has them."""
    values = torch.tensor([0.4 * torch.finfo(dtype).eps, 1.0, 2.0, 3.0], dtype=dtype)
    a = torch.diag(values).requires_grad_()
    found = matroot.powm(a, p, backend=backend)
    torch.testing.assert_close(found.diagonal().double(), values.double() ** p, rtol=1e-6, atol=0)
    if p >= 1:
        (gradient,) = torch.autograd.grad(found.trace(), a)
        expected = p * values.double() ** (p - 1)
        torch.testing.assert_close(gradient.diagonal().double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("p", [0.25, 0.125])
def test_a_singular_power_is_one_thing(p):
    """By eigenvalues and by products it differs by powers of rounding only."""
    a = random_spd(8, 2, cond=4, spectrum="half_zero", dtype=torch.float32)
    difference = matroot.powm(a, p) - matroot.powm(a, p, method="minimax")
    assert difference.norm() < 2 * (16 * torch.finfo(torch.float32).eps) ** p


def test_what_is_refused():
    a = torch.eye(3)
    for wrong, error, text in (
        (lambda: matroot.powm(a, "2"), TypeError, "p must be a real number, got str"),
        (lambda: matroot.powm(a, True), TypeError, "p must be a real number, got bool"),
        (lambda: matroot.powm(a, torch.inf), ValueError, "p must be a finite number, got inf"),
        (lambda: matroot.powm(a, 0.3, method="minimax"), ValueError, "'minimax' does not know"),
        (lambda: matroot.logm(a, method="pade"), ValueError, "'eigh', 'svd'.* do"),
        (lambda: matroot.logm(a, gradient="lyapunov"), ValueError, "'spectral', 'unrolled'.* do"),
        (lambda: matroot.expm(a, gradient="spectral_naive"), ValueError, "does not know Exp"),
        (lambda: matroot.expm(a, eps=1.0), TypeError, "eps"),
        (lambda: matroot.logm([[1.0]]), TypeError, "a must be a torch.Tensor, got list"),
        (lambda: matroot.powm([[1.0]], 0.25), TypeError, "a must be a torch.Tensor, got list"),
        (lambda: matroot.logm(torch.ones(2, 3)), ValueError, "shape"),
        (lambda: matroot.logm(-a), torch.linalg.LinAlgError, "indefinite"),
        (lambda: matroot.powm(-a, 0.3), torch.linalg.LinAlgError, "indefinite"),
        (lambda: matroot.expm(a * torch.nan), torch.linalg.LinAlgError, "not finite"),
        (lambda: matroot.powm(0 * a, -1), torch.linalg.LinAlgError, "has no power -1"),
        (lambda: matroot.logm(0 * a), torch.linalg.LinAlgError, "has no logarithm"),
    ):
        with pytest.raises(error, match=text):
            wrong()


@functions
def test_neighbours_and_bad_matrices(function):
    run = public(function)
    a = random_spd(7, 6, cond=30, dtype=torch.float32)
    together, alone = run(a), torch.stack([run(x) for x in a])
    a[2, 0, 1] = torch.nan
    a[4, 0, 6] += 10
    found = run(a, check_errors=False)
    good = [0, 1, 3, 5]
    assert torch.equal(found[good], together[good])
    assert found[[2, 4]].isnan().all()
    if native.tasks.available() and native.tasks.lookup(function) is not None:
        assert torch.equal(found[good], alone[good])
    else:  # PyTorch's products differ with the alignment of a batch.
        assert relative_error(found[good], alone[good]).max() < 1e-6


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.complex64, torch.complex128], ids=str
)
@functions
def test_dtypes(function, dtype):
    run = public(function)
    a = random_spd(5, 2, cond=4, dtype=dtype)
    before = a.clone()
    found = run(a)
    assert found.dtype == dtype
    assert found.shape == a.shape
    assert torch.equal(a, before)
    assert torch.equal(found, found.mH)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    tolerance = 300 * torch.finfo(dtype).eps
    assert relative_error(found.to(wide), run(a.to(wide))).max() < tolerance


@functions
def test_shapes_scales_and_layouts(function):
    run = public(function)
    for shape in ((0, 0), (0, 3, 3), (2, 0, 4, 4)):
        assert run(torch.zeros(shape)).shape == shape
    a = random_spd(6, 2, 3, cond=10)
    assert torch.equal(run(a.transpose(0, 1)).transpose(0, 1), run(a))
    assert torch.equal(run(a[0, :1].expand(4, 6, 6))[3], run(a[0, 0]))
    if function.degree is not None and abs(function.degree) <= 1:
        for k in (-300, 300):
            scaled = run(a * 2.0**k) / 2.0 ** (k * function.degree)
            assert relative_error(scaled, run(a)).max() < 1e-12


@functions
def test_ridges(function):
    if function == Exp():
        return
    run, a = public(function), random_spd(5, 2, cond=10)
    ridged = a + 0.5 * torch.eye(5, dtype=a.dtype)
    assert relative_error(run(a, eps=0.5), run(ridged)).max() < 1e-13
    norm = torch.linalg.matrix_norm(a)[:, None, None]
    ridged = a + 0.1 * norm * torch.eye(5, dtype=a.dtype)
    assert relative_error(run(a, relative_eps=0.1), run(ridged)).max() < 1e-13


@functions
def test_transforms_and_compiler(function):
    run, a = public(function), random_spd(4, 3, cond=5)

    def total(x):
        return run(x).sin().sum()

    expected = torch.func.grad(total)(a)
    mapped = torch.func.vmap(torch.func.grad(total))(a)
    torch.testing.assert_close(mapped, expected, rtol=1e-9, atol=1e-12)
    along = torch.func.jvp(run, (a,), (a,))[1]
    both = (along * torch.ones_like(a).tril()).sum()
    assert both.isfinite()
    torch.compiler.reset()  # Programs of other functions count against its limit.
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    x = a.clone().requires_grad_()
    y = compiled(x)
    torch.testing.assert_close(y.detach(), run(a), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(y.sin().sum(), x)[0], expected, rtol=1e-9, atol=1e-12
    )


@pytest.mark.slow
def test_compiled_programs_in_double_precision():
    """In a batch, for which PyTorch makes vectors of C++."""
    a = random_spd(8, 16, cond=5)
    for run in (lambda a: matroot.powm(a, 0.3), matroot.sqrtm):
        found = torch.compile(run, fullgraph=True)(a)
        torch.testing.assert_close(found, run(a), rtol=1e-12, atol=1e-12)


def test_third_derivatives_are_refused():
    x = random_spd(3, cond=3).requires_grad_()
    (first,) = torch.autograd.grad(matroot.logm(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives of Log"):
        torch.autograd.grad(second.square().sum(), x)


def test_every_method_and_rule_says_what_it_knows():
    knowing = {m for m in METHODS if METHODS[m]().supports(Log())}
    assert knowing == {m for m in METHODS if METHODS[m].spectral}
    assert knowing & {"taylor", "newton_schulz", "minimax", "eigh", "svd"} == {"eigh", "svd"}
    rules = {g for g in GRADIENTS if GRADIENTS[g]().supports(Log())}
    assert rules >= {"spectral", "unrolled"}
    assert not rules & {"lyapunov", "spectral_naive", "power_iteration"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("p", [0.3, 1 / 3, -1.7, 5.0])
def test_the_bits_of_a_matrix_do_not_depend_on_the_batch(dtype, p):
    """By PyTorch's operations; ``Tensor.pow`` has other bits in another place of the tensor.

    Of an odd size LAPACK has, too: with the place of a matrix in memory.
    """
    a = random_spd(8, 11, cond=100, dtype=dtype)

    def run(a):
        x = a.clone().requires_grad_()
        found = matroot.powm(x, p, backend="torch")
        (first,) = torch.autograd.grad(found.real.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.real.square().sum(), x)
        return found.detach(), first.detach(), second

    whole = run(a)
    for i, count in ((0, 1), (4, 1), (2, 3), (5, 6)):
        for alone, together in zip(run(a[i : i + count]), whole, strict=True):
            assert torch.equal(alone, together[i : i + count])


@pytest.mark.parametrize("p", [0.25, -0.25, 0.125])
def test_roots_of_roots_round_half_precision_once(p):
    a = random_spd(8, 4, cond=10, dtype=torch.float16)
    found = matroot.powm(a, p, method="minimax")
    assert found.dtype == torch.float16
    assert torch.equal(found, matroot.powm(a.float(), p, method="minimax").half())


def test_what_powm_takes_beside_a_float():
    a = random_spd(5, 2, cond=10)
    third = matroot.powm(a, 1 / 3)
    assert torch.equal(matroot.powm(a, fractions.Fraction(1, 3)), third)
    # There is nothing to leave out of a positive power; rules of the roots take roots of roots.
    quarter = matroot.powm(a, 0.25, method="minimax")
    assert torch.equal(matroot.powm(a, 0.25, method="minimax", singular="pinv"), quarter)
    x = a.clone().requires_grad_()
    found = matroot.powm(x, 0.25, gradient="lyapunov")
    torch.testing.assert_close(found, quarter)
    y = a.clone().requires_grad_()
    expected = torch.autograd.grad(matroot.powm(y, 0.25).sum(), y)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), x), expected)
    with pytest.raises(ValueError, match='singular="pinv" needs a spectral method'):
        matroot.powm(a, -0.25, method="minimax", singular="pinv")
    with pytest.raises(torch.linalg.LinAlgError, match=r"no logarithm; .* on its range"):
        matroot.logm(torch.zeros(2, 2))


def test_explain_takes_functions():
    a = torch.eye(3)
    for function in (Log(), Exp(), power(0.3)):
        said = matroot.explain(a, function=function)
        assert (said.method, said.gradient) == (Eigh(), Spectral())
    assert matroot.explain(a, function=Power(-0.5)).reasons == (
        matroot.explain(a, root="inv_sqrt").reasons
    )
    said = matroot.explain(a, function=Power(-0.125), method="minimax")
    assert said.method == Minimax()
    assert said.reasons[0] == "Power(p=-0.125): InvSqrt() as here, and then Sqrt() 2 times"
    with pytest.raises(ValueError, match="does not know Log"):
        matroot.explain(a, function=Log(), method="minimax")
