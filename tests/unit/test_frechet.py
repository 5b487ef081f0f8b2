"""Functions of matrices and their two derivatives: gradcheck at ties, mpmath, torch.func, zeros."""

import mpmath
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import matroot
from instances import SPECTRAL
from matroot import call, errors
from matroot import frechet as module
from matroot.frechet import differences, frechet, second_frechet
from matroot.functions import Exp, InvSqrt, Log, OnRange, Power, Sqrt
from matroot.plan import resolve
from matroot.spectrum import Spectrum
from matroot.testing import random_spd, relative_error

FUNC = torch.func
# Every registered function, but for some of the powers.
POWERS = (1 / 3, -1 / 4, 2, 3, -1, 2.5)
FUNCTIONS = [f for f in SPECTRAL if not isinstance(f, Power) or f.p in POWERS]
SPECTRA = {
    "generic": [0.3, 1.0, 2.2],
    "tie": [0.7, 1.0, 1.0],
    "multiple of the identity": [1.5, 1.5, 1.5],
    "cluster": [0.5, 1.0, 1 + 1e-9],
    "clusters close to the series' reach": [0.5, 0.99, 1.01],
}
DOUBLES = [torch.float64, torch.complex128]
NAMED = errors.Named("a")


def spectral_values(functions, a):
    """The functions, called as by the public ones; NaN for a matrix out of their domain."""
    plan = resolve(functions, a, 0.0, "eigh", "spectral", "auto", "raise")
    return call.values(plan, a, False, named=NAMED)


def spectral_value(function, a):
    return spectral_values((function,), a)[0]


def matrix(values, dtype=torch.float64, seed=0):
    """A Hermitian matrix with these eigenvalues."""
    values = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    q = torch.linalg.qr(torch.randn(n, n, dtype=dtype, generator=generator)).Q
    a = (q * values) @ q.mH
    return (a + a.mH) / 2


def any_matrices(count, n, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, n, n, dtype=dtype, generator=generator).unbind()


def loss(function, w):
    return lambda a: (spectral_value(function, a) * w).real.sum().sin()


@pytest.mark.parametrize("dtype", DOUBLES, ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("function", FUNCTIONS, ids=repr)
def test_first_and_second_derivatives(function, spectrum, dtype):
    a = matrix(SPECTRA[spectrum], dtype).requires_grad_()

    def value(a):
        return spectral_value(function, a)

    # One product with the Jacobian per direction, not all of its columns.
    assert gradcheck(value, a, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(value, a, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("dtype", DOUBLES, ids=str)
@pytest.mark.parametrize("function", [Power(1 / 3), Power(-1), Exp()], ids=repr)
def test_every_entry_of_the_second_derivative(function, dtype):
    a = matrix([0.5, 1.0, 1.0], dtype).requires_grad_()
    assert gradgradcheck(lambda a: spectral_value(function, a), a)


@pytest.mark.parametrize("function", [Power(2), Power(3), Power(-1), Exp()], ids=repr)
def test_indefinite_matrices(function):
    a = matrix([-1.3, -1.3, 0.4, 0.9]).requires_grad_()
    assert gradgradcheck(lambda a: spectral_value(function, a), a, check_fwd_over_rev=True)
    expected = {
        Power(2): a @ a,
        Power(3): a @ a @ a,
        Power(-1): torch.linalg.inv(a),
        Exp(): torch.linalg.matrix_exp(a),
    }[function]
    torch.testing.assert_close(spectral_value(function, a), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", DOUBLES, ids=str)
@pytest.mark.parametrize("function", [Power(1 / 3), Power(-0.25), Log(), Exp()], ids=repr)
def test_hessian_against_differences_of_exact_functions(function, dtype):
    """Second differences of f(A + s E + t G) in sixty digits, at a repeated eigenvalue."""
    a = matrix([0.6, 1.1, 1.1], dtype)
    e, g = ((x + x.mH) / 2 for x in any_matrices(2, 3, dtype))
    v, q = torch.linalg.eigh(a)
    found = second_frechet(function, a, v, q, e, g)
    with mpmath.workdps(60):
        h = mpmath.mpf(10) ** -14
        name = {Log: mpmath.log, Exp: mpmath.exp}.get(type(function))
        p = None if name else mpmath.mpf(function.p)

        def f(s, t):
            b = mpmath.matrix(a.tolist()) + s * mpmath.matrix(e.tolist())
            b = b + t * mpmath.matrix(g.tolist())
            values, vectors = mpmath.eighe((b + b.H) / 2)
            values = [name(x) if name else mpmath.power(x, p) for x in values]
            return vectors * mpmath.diag(values) * vectors.H

        second = (f(h, h) - f(h, -h) - f(-h, h) + f(-h, -h)) / (4 * h * h)
        entries = [[complex(second[i, j]) for j in range(3)] for i in range(3)]
    expected = torch.tensor(entries, dtype=torch.complex128)
    assert relative_error(found, expected if dtype.is_complex else expected.real) < 1e-13


@pytest.mark.parametrize("dtype", DOUBLES, ids=str)
@pytest.mark.parametrize("function", [Power(1 / 3), Log()], ids=repr)
def test_blocks_do_not_change_the_second_derivative(function, dtype, monkeypatch):
    a = random_spd(7, 2, cond=50, dtype=dtype)
    e, g = (torch.stack(any_matrices(2, 7, dtype, seed)) for seed in (1, 2))
    v, q = torch.linalg.eigh(a)
    whole = second_frechet(function, a, v, q, e, g)
    x, y, z = v[..., :, None, None], v[..., None, :, None], v[..., None, None, :]
    weights = function.second_difference(x, y, z).to(dtype)
    e_hat, g_hat = q.mH @ e @ q, q.mH @ g @ q
    expected = torch.einsum("bikj,bik,bkj->bij", weights, e_hat, g_hat)
    expected = q @ (expected + torch.einsum("bikj,bik,bkj->bij", weights, g_hat, e_hat)) @ q.mH
    assert relative_error(whole, expected).max() < 1e-14
    for side, numbers in ((1, 1), (2, 2 * 2**3), (3, 1), (7, 2 * 7**3)):
        monkeypatch.setattr(module, "_SIDE_ON_CPU", side)
        monkeypatch.setattr(module, "_BLOCK_ON_CPU", numbers)
        assert relative_error(second_frechet(function, a, v, q, e, g), whole).max() < 1e-14


@pytest.mark.parametrize("dtype", DOUBLES, ids=str)
def test_both_maps_are_their_own_adjoints(dtype):
    a = random_spd(5, cond=50, dtype=dtype)
    v, q = torch.linalg.eigh(a)
    e, g, w = any_matrices(3, 5, dtype)

    def inner(x, y):
        return (x.conj() * y).sum().real

    for function in (Power(1 / 3), Exp()):
        first = inner(g, frechet(function, a, v, q, e))
        torch.testing.assert_close(first, inner(frechet(function, a, v, q, g), e))
        second = inner(w, second_frechet(function, a, v, q, e, g))
        torch.testing.assert_close(second, inner(second_frechet(function, a, v, q, e.mH, w), g))


@pytest.mark.parametrize("dtype", DOUBLES, ids=str)
@pytest.mark.parametrize("function", [Sqrt(), InvSqrt()], ids=repr)
def test_agrees_with_the_lyapunov_equation(function, dtype):
    root = matroot.sqrtm if isinstance(function, Sqrt) else matroot.inv_sqrtm
    a = matrix([0.2, 0.5, 0.5, 2.0], dtype)
    w = any_matrices(1, 4, dtype)[0]

    def by_root(a):
        return (root(a) * w).real.sum().sin()

    mine = loss(function, w)
    assert relative_error(spectral_value(function, a), root(a)) < 1e-14
    assert relative_error(FUNC.grad(mine)(a), FUNC.grad(by_root)(a)) < 1e-13
    if not dtype.is_complex:
        torch.testing.assert_close(
            FUNC.hessian(mine)(a), FUNC.hessian(by_root)(a), rtol=1e-11, atol=1e-12
        )


@pytest.mark.parametrize("function", [Power(1 / 3), Power(2.5), Log(), Exp()], ids=repr)
def test_transforms(function):
    a = torch.stack([matrix([0.5, 1.0, 1.0]), matrix([0.3, 0.8, 2.0], seed=1)])
    w, direction = any_matrices(2, 3)
    f = loss(function, w)

    def value(a):
        return spectral_value(function, a)

    def agree(found, expected):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)

    jacobian = torch.stack([torch.autograd.functional.jacobian(value, m) for m in a])
    agree(FUNC.vmap(value)(a), value(a))
    agree(FUNC.vmap(value, in_dims=2, out_dims=2)(a.permute(1, 2, 0)), value(a).permute(1, 2, 0))
    agree(FUNC.vjp(value, a[0])[1](w)[0], torch.einsum("ij,ijkl->kl", w, jacobian[0]))
    along = torch.einsum("ijkl,kl->ij", jacobian[0], direction)
    agree(FUNC.jvp(value, (a[0],), (direction,))[1], along)
    agree(FUNC.vmap(FUNC.jacrev(value))(a), jacobian)
    agree(FUNC.jacfwd(value)(a[0]), jacobian[0])
    hessian = torch.autograd.functional.hessian(f, a[0])
    agree(hessian, hessian.permute(2, 3, 0, 1))
    for transform in (
        FUNC.hessian,
        lambda f: FUNC.jacrev(FUNC.jacrev(f)),
        lambda f: FUNC.jacfwd(FUNC.jacfwd(f)),
        lambda f: FUNC.jacrev(FUNC.jacfwd(f)),
    ):
        agree(transform(f)(a[0]), hessian)
    agree(FUNC.vmap(FUNC.hessian(f))(a)[0], hessian)


def test_vmap_over_one_argument_of_the_derivatives():
    a = random_spd(4, cond=4)
    v, q = torch.linalg.eigh(a)
    e = torch.stack(any_matrices(3, 4))
    f = Log()
    found = FUNC.vmap(lambda e: frechet(f, a, v, q, e))(e)
    torch.testing.assert_close(found, frechet(f, *(t.expand(3, *t.shape) for t in (a, v, q)), e))
    found = FUNC.vmap(lambda e: second_frechet(f, a, v, q, e, a))(e)
    expected = second_frechet(f, *(t.expand(3, *t.shape) for t in (a, v, q)), e, a.expand(3, 4, 4))
    torch.testing.assert_close(found, expected)


def test_second_derivative_maps_are_differentiable_in_their_directions():
    a = matrix([0.5, 1.0, 1.0], torch.complex128)
    v, q = torch.linalg.eigh(a)
    e, g = (x.clone().requires_grad_() for x in any_matrices(2, 3, torch.complex128))

    def second(e, g):
        return second_frechet(Power(1 / 3), a, v, q, e, g)

    assert gradcheck(second, (e, g), check_forward_ad=True)
    assert gradgradcheck(second, (e, g), check_fwd_over_rev=True)


@pytest.mark.parametrize("dtype", DOUBLES, ids=str)
def test_first_derivative_map_is_differentiable_in_any_direction(dtype):
    a, e = any_matrices(2, 3, dtype)
    a = (a @ a.mH).requires_grad_()
    e.requires_grad_()

    def first(a, e):
        # Also where neither is Hermitian: the derivative by A is that of its Hermitian part.
        v, q = torch.linalg.eigh((a + a.mH).detach() / 2)
        return frechet(Power(1 / 3), a, v, q, e)

    assert gradcheck(first, (a, e), check_forward_ad=True)


def test_third_derivatives_are_refused():
    a = matrix([0.5, 1.0, 2.0])
    f = loss(Power(1 / 3), any_matrices(1, 3)[0])
    message = r"third derivatives of Power\(p=0.333.*\) of a matrix"
    for third in (
        lambda f: FUNC.jacfwd(FUNC.hessian(f)),
        lambda f: FUNC.jacrev(FUNC.hessian(f)),
        lambda f: FUNC.jacfwd(FUNC.jacfwd(FUNC.jacfwd(f))),
    ):
        with pytest.raises(NotImplementedError, match=message):
            third(f)(a)
    a.requires_grad_()
    first = torch.autograd.grad(f(a), a, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), a, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match=message):
        torch.autograd.grad(second.sum(), a)


@pytest.mark.parametrize("dtype", DOUBLES, ids=str)
@pytest.mark.parametrize("function", [Power(1 / 3), Power(1.5), Power(2.5), Sqrt()], ids=repr)
def test_singular_matrices(function, dtype):
    q = torch.linalg.qr(any_matrices(1, 4, dtype)[0]).Q
    x, y = 1.0, 2.0
    a = (q * torch.tensor([0.0, 0.0, x, y])) @ q.mH
    value = spectral_value(function, a)
    given = torch.tensor([0.0, 0.0, x, y], dtype=torch.float64)
    powers = function.values(given)
    p, eps = function.degree, torch.finfo(torch.float64).eps
    noise = (16 * eps) ** p
    assert relative_error(value, (q * powers) @ q.mH) < max(noise, 1e-12)
    e = any_matrices(1, 4, dtype, seed=2)[0]
    e = e + e.mH
    first = FUNC.jvp(lambda a: spectral_value(function, a), (a,), (e,))[1]
    turned, e_hat = q.mH @ first @ q, q.mH @ e @ q
    # On null × null space the difference is left out or 0; on range × null it is f(x)/x.
    assert turned[:2, :2].abs().max() < max(1e-12, (16 * eps) ** (p - 1) if p > 1 else 0)
    across = powers[2:] / given[2:]
    torch.testing.assert_close(turned[:2, 2:], e_hat[:2, 2:] * across, rtol=1e-6, atol=1e-6)
    second = FUNC.jvp(
        lambda a: FUNC.jvp(lambda a: spectral_value(function, a), (a,), (e,))[1], (a,), (e,)
    )[1]
    assert second.isfinite().all()
    zero = torch.zeros(3, 3, dtype=dtype, requires_grad=True)
    f = spectral_value(function, zero)
    assert not f.any()
    g = torch.autograd.grad(f.real.sum(), zero, create_graph=True)[0]
    assert not g.any()
    assert torch.autograd.grad(g.real.sum(), zero)[0].isfinite().all()


def along(curve, function):
    """The second derivative of f(A(t)) at 0."""

    def value(t):
        return spectral_value(function, curve(t))

    return FUNC.jacfwd(FUNC.jacfwd(value))(torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("function", [InvSqrt(), Log(), Power(-1), Sqrt()], ids=repr)
def test_on_range_both_derivatives_are_exact_where_the_rank_is_kept(function):
    """A(t) = e^{tK} A e^{−tK} for a skew K has f(A(t)) = e^{tK} f(A) e^{−tK}."""
    k, q = any_matrices(2, 4)
    k, q = k - k.T, torch.linalg.qr(q).Q

    def turned(values):
        def curve(t):
            r = torch.linalg.matrix_exp(t * k) @ q
            return (r * values) @ r.T

        return curve

    values = torch.tensor([0.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    kept = OnRange(function)
    found = along(turned(values), kept)
    expected = FUNC.jacfwd(FUNC.jacfwd(turned(kept.values(values))))
    expected = expected(torch.zeros((), dtype=torch.float64))
    assert relative_error(found, expected) < 1e-13


def test_on_range_is_the_pseudo_inverse():
    a = random_spd(6, cond=10, spectrum="half_zero")
    found = spectral_value(OnRange(Power(-1)), a)
    torch.testing.assert_close(found, torch.linalg.pinv(a), rtol=1e-12, atol=1e-12)
    root = spectral_value(OnRange(InvSqrt()), a)
    torch.testing.assert_close(root, matroot.inv_sqrtm(a, singular="pinv"), rtol=1e-12, atol=1e-12)


def test_bad_matrices_are_nan_alone():
    good = matrix([0.5, 1.0, 2.0])
    nonfinite = good.clone()
    nonfinite[0, 1] = torch.inf
    bad = {
        "semidefinite": [nonfinite, matrix([-0.5, 1.0, 2.0])],
        "definite": [nonfinite, matrix([-0.5, 1.0, 2.0]), matrix([0.0, 1.0, 2.0])],
        "regular": [nonfinite, matrix([0.0, -1.0, 2.0])],
        "real": [nonfinite],
    }
    for function in [*FUNCTIONS, OnRange(InvSqrt()), OnRange(Power(-1))]:
        a = torch.stack([good, *bad[function.domain]]).requires_grad_()
        f = spectral_value(function, a)
        assert torch.equal(f[0], spectral_value(function, good[None])[0])
        assert f[1:].isnan().all()
        g = torch.autograd.grad(f.sum(), a)[0]
        assert g[0].isfinite().all()
        assert g[1:].isnan().all()


def test_null_eigenvalues_are_exactly_zero():
    unit = torch.finfo(torch.float64).eps
    rounded = torch.tensor([-2 * unit, unit, 1e-10, 1.0], dtype=torch.float64)

    def arguments(function, values):
        pairs = Spectrum.from_pairs(values, torch.eye(len(values), dtype=torch.float64))
        return pairs.arguments(function)

    assert arguments(Sqrt(), rounded).tolist() == [0, 0, 1e-10, 1]
    assert arguments(OnRange(Log()), rounded).tolist() == [0, 0, 1e-10, 1]
    assert arguments(OnRange(Power(-1)), -rounded).tolist() == [0, 0, -1e-10, -1]
    assert torch.equal(arguments(Exp(), rounded), rounded)
    zero = torch.zeros(3, dtype=torch.float64)
    assert torch.equal(arguments(Sqrt(), zero), zero)
    assert not differences(Power(1 / 3), zero).any()


def test_several_functions_of_one_decomposition():
    a = random_spd(4, 2, cond=4).requires_grad_()
    functions = (Sqrt(), Log(), Power(-1))
    found = spectral_values(functions, a)
    g = torch.autograd.grad(found[0].sum() + found[2].square().sum(), a)[0]
    alone = [spectral_value(f, a) for f in functions]
    expected = torch.autograd.grad(alone[0].sum() + alone[2].square().sum(), a)[0]
    for x, y in zip(found, alone, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(g, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, *DOUBLES], ids=str)
@pytest.mark.parametrize("shape", [(0, 0), (0, 3, 3), (1, 1), (2, 3, 4, 4)], ids=str)
def test_shapes_and_dtypes(shape, dtype):
    a = torch.eye(shape[-1], dtype=dtype).expand(shape).clone().requires_grad_()
    f = spectral_value(Power(-1 / 3), a)
    assert f.shape == shape
    assert f.dtype == dtype
    g = torch.autograd.grad(f.real.sum(), a)[0]
    torch.testing.assert_close(g, -a.detach().new_ones(()) / 3 * torch.ones_like(a))


def test_autocast_changes_nothing():
    a = random_spd(8, cond=10, dtype=torch.float32).requires_grad_()

    def both():
        f = spectral_value(Log(), a)
        return f, torch.autograd.grad(f.square().sum(), a)[0]

    expected = both()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = both()
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("function", [Power(1 / 3), Exp()], ids=repr)
def test_compiles_with_its_first_derivative(function):
    a = random_spd(4, 2, cond=4).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda a: spectral_value(function, a), fullgraph=True, backend="aot_eager"
    )
    found, expected = compiled(a), spectral_value(function, a)
    assert relative_error(found, expected).max() < 1e-13
    w = any_matrices(1, 4)[0]
    first, second = (torch.autograd.grad((x * w).sum(), a)[0] for x in (found, expected))
    assert relative_error(first, second).max() < 1e-12


def test_exports():
    a = random_spd(4, 2, cond=4)

    class Logarithm(torch.nn.Module):
        def forward(self, a):
            return spectral_value(Log(), a)

    program = torch.export.export(Logarithm(), (a,))
    torch.testing.assert_close(program.module()(a), spectral_value(Log(), a))
