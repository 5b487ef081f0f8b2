"""Other packages' square roots on the same matrices: their expectations, and where they are wrong.

Every cell of peer × matrix × quantity is asserted. Ours must be right in all of them; the peer must
be right too, except where ``WRONG`` says otherwise: there the peer must be wrong, up to the version
in which that was found (a later one may have fixed it).
"""

import functools
import warnings
from importlib.metadata import version

import jax
import jax.numpy as jnp
import ot
import pytest
import torch
from packaging.version import Version
from pyriemann.geometry import base as pyriemann
from pyriemann.geometry.distance import distance_wasserstein
from spd_learn import functional as spd_learn

import matroot
from matroot.bench import packages
from matroot.bench.adapters import ADAPTERS, on_jax, to_jax, to_torch
from matroot.bench.capabilities import least_gradient, tied
from matroot.testing import (
    assert_root,
    exact,
    exact_gradient,
    random_spd,
    relative_error,
    tolerance,
)

with warnings.catch_warnings():
    # OTT-JAX imports JAXopt, which says that it is no longer maintained.
    warnings.filterwarnings("ignore", "JAXopt", DeprecationWarning)
    from ott.geometry.costs import Bures
    from ott.math import matrix_square_root as ott

# OTT-JAX solves batches of triangular systems in a form that JAX is about to reinterpret.
pytestmark = pytest.mark.filterwarnings("ignore:.*batched 1D solves:FutureWarning")

# The newest version of each in which the faults below were seen.
SEEN = {
    "pyriemann": "0.12",
    "POT": "0.9.7.post1",
    "spd_learn": "0.2.1",
    "ott-jax": "0.6.0",
    "geoopt": "0.5.1",
}


def not_mended(package):
    return Version(version(package)) <= Version(SEEN[package])


OURS = {"sqrt": matroot.sqrtm, "inv_sqrt": matroot.inv_sqrtm, "both": matroot.sqrtm_pair}
METHODS = ["auto", "minimax"]
PEERS = {peer.package: peer for peer in packages.PEERS if peer.package in SEEN}
FUNCTIONS = [(package, function) for package, peer in PEERS.items() for function in peer.functions]
TORCH = ADAPTERS["torch"]


def random(cond, *batch, **options):
    return random_spd(4, *batch, cond=cond, **options)


# name: matrices, condition number
MATRICES = {
    "batch": (random(100.0, 2, 3), 100.0),
    "identity": (torch.eye(4, dtype=torch.float64), 1.0),
    "3·identity": (3 * torch.eye(4, dtype=torch.float64), 1.0),
    "tie": (tied(1.0, 1.0, 4.0, 4.0), 4.0),
    "near tie": (tied(1.0, 1.0 + 1e-12, 4.0, 4.0 + 1e-10), 4.0),
    "κ = 1e8": (random(1e8), 1e8),
    "huge": (1e20 * random(10.0), 10.0),
    "tiny": (1e-20 * random(10.0), 10.0),
    "float32, κ = 1e4": (random(1e4, dtype=torch.float32), 1e4),
    "float32, tiny": (1e-6 * random(10.0, dtype=torch.float32), 10.0),
    "complex": (random(10.0, dtype=torch.complex128), 10.0),
}

VALUES = {"sqrt", "inv_sqrt"}
GRADIENTS = {"gradient", "inv_gradient"}
# (package, matrices): what is wrong there.
WRONG = {
    # Differentiating eigh divides by the differences of eigenvalues: NaN, or 40 % off at a tie,
    # 1e-4 near one.
    **{
        (package, matrices): GRADIENTS
        for package in ("pyriemann", "geoopt")
        for matrices in ("identity", "3·identity", "tie", "near tie")
    },
    # Differences of roots over differences of eigenvalues, unless these are below 1e-14: 1e-5.
    ("spd_learn", "near tie"): GRADIENTS,
    # Clamps eigenvalues at absolute numbers, 2e-14 in float64 and 1e-5 in float32, tenfold for the
    # inverse: a matrix in small units becomes a multiple of the identity, its gradient 0. Even with
    # λ_max = 1 the inverse is 8 % off in float32, its gradient 99 %.
    ("spd_learn", "tiny"): VALUES | GRADIENTS,
    ("spd_learn", "float32, tiny"): VALUES | GRADIENTS,
    ("spd_learn", "float32, κ = 1e4"): {"inv_sqrt", "inv_gradient"},
    # Transpose the eigenvectors without conjugating them, silently.
    ("POT", "complex"): VALUES | GRADIENTS,
    ("spd_learn", "complex"): VALUES | GRADIENTS,
    # Raise TypeError and RuntimeError.
    ("ott-jax", "complex"): VALUES | GRADIENTS,
    ("geoopt", "complex"): VALUES | GRADIENTS,
}


def or_nan(adapter, function, a, g):
    """The roots and the gradient; NaN where the peer raises."""
    try:
        return adapter.gradient(function, a, g)
    except (RuntimeError, TypeError):
        nothing = torch.full_like(a, torch.nan)
        return (nothing,) * len(g), nothing


def check(error, bound, right, package):
    """Asserts that a peer is right within the bound, or wrong by ten times as much, or NaN."""
    if right:
        assert error <= bound
    elif not_mended(package):
        assert not error <= 10 * bound


def errors(adapter, function, a, names, gradient):
    """The relative error of the roots and of the gradient."""
    g = tuple(random_spd(4, *a.shape[:-2], dtype=a.dtype, seed=7 + i) for i in range(len(names)))
    roots, found = or_nan(adapter, function, a, g)
    truth = sum(exact_gradient(a, h, name) for h, name in zip(g, names, strict=True))
    pairs = {name: (x, exact(a, name)) for name, x in zip(names, roots, strict=True)}
    pairs[gradient] = found, truth
    return {name: relative_error(*pair).max().item() for name, pair in pairs.items()}


@pytest.mark.parametrize("matrices", MATRICES)
@pytest.mark.parametrize(("package", "function"), FUNCTIONS)
def test_roots_and_gradients(package, function, matrices):
    a, cond = MATRICES[matrices]
    names = ("sqrt", "inv_sqrt") if function == "both" else (function,)
    gradient = "gradient" if function == "sqrt" else "inv_gradient"
    for method in METHODS:
        ours = functools.partial(OURS[function], method=method)
        for name, error in errors(TORCH, ours, a, names, gradient).items():
            assert error <= tolerance(a.dtype, cond, name), (method, name)
    peer = PEERS[package]
    theirs = errors(peer.adapter, peer.functions[function], a, names, gradient)
    wrong = WRONG.get((package, matrices), ())
    for name, error in theirs.items():
        check(error, tolerance(a.dtype, cond, name), name not in wrong, package)


def test_ott_reports_success_while_the_inverse_is_wrong():
    # It reports the error of S S alone, in which small eigenvalues are negligible.
    a = MATRICES["κ = 1e8"][0]
    with on_jax(a.dtype):
        _, z, reported = ott.sqrtm(to_jax(a))
        reported = to_torch(reported)
    if not_mended("ott-jax"):
        assert reported[reported >= 0][-1] < 1e-6
        assert relative_error(to_torch(z), exact(a, "inv_sqrt")) > 0.5
    assert_root(a, matroot.inv_sqrtm(a), cond=1e8, quantity="inv_sqrt")


# Singular matrices: the root exists, the inverse does not.

SINGULAR = {  # S of S²
    "diagonal": torch.diag(torch.tensor([2.0, 1.0, 0.0, 0.0], dtype=torch.float64)),
    "zero": torch.zeros(4, 4, dtype=torch.float64),
    # Rounding gives its zero eigenvalues either sign.
    "projector": random(1.0, 2, 3, spectrum="half_zero"),
    "complex": torch.tensor([[1, -1j], [1j, 1]], dtype=torch.complex128) / 2,
}


SINGULAR_WRONG = {
    # The derivative of √ at 0 times 0: NaN. The roots of negative rounding errors: NaN.
    **{(p, m): {"gradient"} for p in ("pyriemann", "geoopt") for m in ("diagonal", "zero")},
    **{(p, "projector"): {"sqrt", "gradient"} for p in ("pyriemann", "geoopt")},
    ("pyriemann", "complex"): {"gradient"},
    # Only sums s_i + s_j that are exactly 0 count as null; rounding over rounding is 1e8.
    ("POT", "projector"): {"gradient"},
    # The same, 1e15; 0 over 0 in the Schur form; the zero matrix divided by its norm.
    ("ott-jax", "projector"): {"gradient"},
    ("ott-jax", "diagonal"): {"gradient"},
    ("ott-jax", "zero"): {"sqrt", "gradient"},
    # As above.
    **{(p, "complex"): {"sqrt", "gradient"} for p in ("POT", "spd_learn", "ott-jax", "geoopt")},
}


@pytest.mark.parametrize("matrices", SINGULAR)
@pytest.mark.parametrize("package", SEEN)
def test_singular(package, matrices):
    s = SINGULAR[matrices]
    a = s @ s
    g = random_spd(s.shape[-1], *s.shape[:-2], dtype=s.dtype, seed=7)
    truth = least_gradient(s, g)
    # Rounding turns a root of 0 into 1.5e-8; spd_learn clamps it at 1.5e-7.
    bound = 1e-6
    (root,), gradient = TORCH.gradient(matroot.sqrtm, a, (g,))
    assert relative_error(root, s).max() <= bound
    assert relative_error(gradient, truth).max() <= bound
    with pytest.raises(torch.linalg.LinAlgError, match="singular"):
        matroot.inv_sqrtm(a)
    peer = PEERS[package]
    (root,), gradient = or_nan(peer.adapter, peer.functions["sqrt"], a, (g,))
    wrong = SINGULAR_WRONG.get((package, matrices), ())
    check(relative_error(root, s).max(), bound, "sqrt" not in wrong, package)
    check(relative_error(gradient, truth).max(), bound, "gradient" not in wrong, package)


@pytest.mark.parametrize("package", ["spd_learn", "ott-jax"])
def test_peers_invert_what_has_no_inverse(package):
    # A finite matrix, of size 2e6 and 3e1, where there is none; ours raises (test_singular).
    a = SINGULAR["diagonal"]
    peer = PEERS[package]
    (z,), _ = or_nan(peer.adapter, peer.functions["inv_sqrt"], a, (a,))
    if not_mended(package):
        assert z.isfinite().all()


# Second derivatives of functions for which they are known: tr S² = tr A and tr Z² = tr A⁻¹.

SECOND = {
    "spread": random(10.0),
    "2·identity": MATRICES["identity"][0] * 2,
    "tie": tied(1, 1, 4, 4),
}
SECOND_WRONG = {
    *{(p, m) for p in ("pyriemann", "geoopt") for m in ("2·identity", "tie")},  # NaN, 1e13
    # Silently wrong everywhere: the eigenpairs saved for the backward pass count as constants, so
    # that the second derivative of tr A is not 0 and that of tr A⁻¹ 75 % off.
    *{("spd_learn", m) for m in SECOND},
    # Raise: the backward pass is declared not differentiable; JAX cannot differentiate schur.
    *{(p, m) for p in ("POT", "ott-jax") for m in SECOND},
}


@pytest.mark.parametrize("matrices", SECOND)
@pytest.mark.parametrize(("package", "function"), [p for p in FUNCTIONS if p[1] != "both"])
def test_second_derivative(package, function, matrices):
    a, e = SECOND[matrices], random(10.0, seed=7)
    twos = torch.full_like(a, 2.0)  # In ½ Σ 2 f(A)².
    z = torch.linalg.inv(a)
    truth = torch.zeros_like(a) if function == "sqrt" else z @ (e @ z + z @ e) @ z
    bound = tolerance(torch.float64, 100.0, "gradient")
    for method in METHODS:
        ours = TORCH.second(functools.partial(OURS[function], method=method), a, twos, e)
        assert relative_error(ours, truth) <= bound
    peer = PEERS[package]
    try:
        theirs = peer.adapter.second(peer.functions[function], a, twos, e)
    except (RuntimeError, NotImplementedError):
        theirs = torch.full_like(a, torch.nan)
    right = (package, matrices) not in SECOND_WRONG
    check(relative_error(theirs, truth), bound, right, package)


# Functions of the packages that use their roots.


def bures_squared(a, b):
    s = matroot.sqrtm(a)
    return (a + b - 2 * matroot.sqrtm(s @ b @ s)).trace()


def bures_ott(a, b):
    x, y = (jnp.concatenate([jnp.zeros(len(c)), c.reshape(-1)]) for c in (a, b))
    return Bures(len(a))(x, y)


BURES = {
    "pyriemann": lambda a, b: distance_wasserstein(a, b) ** 2,
    "POT": lambda a, b: ot.gaussian.bures_distance(a, b).squeeze() ** 2,
    "spd_learn": lambda a, b: spd_learn.bures_wasserstein_distance(a, b) ** 2,
    "ott-jax": lambda a, b: bures_ott(a, to_jax(b)),
    "matroot": bures_squared,
}


@pytest.mark.parametrize("cond", [10.0, 1e4])
@pytest.mark.parametrize("package", BURES)
def test_bures_distance(package, cond):
    a, b = random(cond), random(cond, seed=1)
    s, z = exact(a), exact(a, "inv_sqrt")
    middle = exact(s @ b @ s)
    value = (a + b - 2 * middle).trace()
    # I − T with T the optimal map from N(0, A) to N(0, B).
    gradient = torch.eye(4, dtype=a.dtype) - z @ middle @ z
    g = (torch.ones_like(value),)
    adapter = PEERS[package].adapter if package in PEERS else TORCH
    (found,), found_gradient = adapter.gradient(lambda x: BURES[package](x, b), a, g)
    bound = tolerance(torch.float64, cond**2, "gradient")  # The product has κ².
    if package == "ott-jax" and cond == 1e4:
        # Passes the dimension to sqrtm in place of the threshold; it stops after ten steps, whose
        # gradient is 11 times as large as it should be.
        if not_mended(package):
            assert (found / value - 1).abs() > 1e-3
            assert relative_error(found_gradient, gradient) > 1
        return
    assert (found / value - 1).abs() <= bound
    assert relative_error(found_gradient, gradient) <= bound


def test_product_of_two_definite_matrices():
    """OTT-JAX expects the root of M N, not symmetric; ours rejects it, but has roots for it.

    M^{1/2} (M^{1/2} N M^{1/2})^{1/2} M^{-1/2}, also differentiated along N + x D.
    """
    m, n, d, unit = (random(4.0, seed=i) for i in range(4))
    s, z = matroot.sqrtm_pair(m)

    def ours(x):
        return ((s @ matroot.sqrtm(s @ (n + x * d) @ s) @ z) * unit).sum()

    x = torch.zeros((), dtype=m.dtype)
    theirs = PEERS["ott-jax"].functions["sqrt"]
    with on_jax(m.dtype):
        mj, nj, dj, uj = map(to_jax, (m, n, d, unit))
        value, slope = jax.value_and_grad(lambda x: jnp.sum(theirs(mj @ (nj + x * dj)) * uj))(0.0)
    torch.testing.assert_close(ours(x), to_torch(value), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.func.grad(ours)(x), to_torch(slope), rtol=1e-12, atol=0)
    with pytest.raises(torch.linalg.LinAlgError):
        matroot.sqrtm(m @ n)


def test_refusals():
    """pyriemann expects ValueError unless matrices are square, and for NaN and infinity."""
    for wrong in (torch.ones(5), torch.ones(2, 3)):
        for sqrtm in (pyriemann.sqrtm, matroot.sqrtm):
            with pytest.raises(ValueError, match=r"2D|square|\(\.\.\., n, n\)"):
                sqrtm(wrong)
    for number in (torch.nan, torch.inf):
        a = torch.full((2, 2), number)
        with pytest.raises(ValueError, match="positive definite"):
            pyriemann.sqrtm(a)
        with pytest.raises(torch.linalg.LinAlgError):
            matroot.sqrtm(a)


def test_finite_differences_off_the_symmetric_matrices():
    """POT expects gradcheck to pass without symmetrising: the Hermitian part counts."""
    x = torch.randn(5, 5, dtype=torch.float64)
    a = (x @ x.mT + torch.eye(5, dtype=torch.float64)).requires_grad_()
    for sqrtm in (PEERS["POT"].functions["sqrt"], matroot.sqrtm):
        assert torch.autograd.gradcheck(sqrtm, a)
