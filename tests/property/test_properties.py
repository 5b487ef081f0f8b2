"""Laws that hold for every matrix, tested on random ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import matroot
from matroot.gradients import GRADIENTS, Lyapunov, Spectral, Unrolled
from matroot.methods import METHODS, Eigh, NewtonSchulz, Pade, Svd
from matroot.testing import assert_root, random_spd, relative_error, tolerance

FUNCTIONS = {"sqrt": matroot.sqrtm, "inv_sqrt": matroot.inv_sqrtm}
# Thirty steps bring an eigenvalue at 1e-6 of the trace to 1, with some steps to spare.
CONVERGED = [Eigh(), Svd(), NewtonSchulz(30)]

each_quantity = pytest.mark.parametrize("quantity", FUNCTIONS)
each_converged = pytest.mark.parametrize("method", CONVERGED, ids=repr)
each_method = pytest.mark.parametrize("name", METHODS)
each_rule = pytest.mark.parametrize("rule", [Lyapunov(), Spectral()], ids=repr)

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**31 - 1)
conditions = st.sampled_from([1.0, 10.0, 1e2, 1e4])
spectra = st.sampled_from(["log", "clustered", "outlier"])
real_dtypes = st.sampled_from([torch.float32, torch.float64])
dtypes = st.sampled_from([torch.float32, torch.float64, torch.complex64, torch.complex128])
batches = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@st.composite
def matrices(draw, batch=batches, dtype=dtypes):
    """(A, its condition number), which in single precision leaves the inverse enough digits."""
    dtype = draw(dtype)
    cond = draw(conditions)
    if torch.finfo(dtype).eps > 1e-10:
        cond = min(cond, 1e2)
    shape = draw(batch)
    a = random_spd(
        draw(sizes), *shape, cond=cond, spectrum=draw(spectra), dtype=dtype, seed=draw(seeds)
    )
    return a * 10.0 ** draw(st.integers(-6, 6)), cond


singles = matrices(batch=st.just(()))


def identity(a):
    return torch.eye(a.shape[-1], dtype=a.dtype).expand_as(a)


def gradient_of(a, g, quantity, **options):
    a = a.clone().requires_grad_()
    return torch.autograd.grad(FUNCTIONS[quantity](a, **options), a, g)[0]


def close(found, golden, bound):
    """Whether every matrix is within a relative bound; NaN is not."""
    return bool((relative_error(found, golden) <= bound).all())


# Laws of the root.


@each_converged
@given(matrices())
def test_the_root_squared_is_the_matrix(method, case):
    a, cond = case
    s = matroot.sqrtm(a, method=method)
    assert s.shape == a.shape
    assert s.dtype == a.dtype
    assert_root(a, s, cond=cond)
    assert torch.equal(s, s.mH)
    assert close(s @ s, a, 2 * tolerance(a.dtype, cond, "sqrt"))


@each_converged
@given(matrices())
def test_root_times_inverse_root_is_the_identity(method, case):
    a, cond = case
    s, z = matroot.sqrtm_pair(a, method=method)
    assert_root(a, z, cond=cond, quantity="inv_sqrt")
    assert torch.equal(z, z.mH)
    assert close(s @ z, identity(a), tolerance(a.dtype, cond, "inv_sqrt"))
    assert close(z @ a @ z, identity(a), 2 * tolerance(a.dtype, cond, "inv_sqrt"))


@each_quantity
@each_converged
@given(singles, singles)
def test_blocks_on_the_diagonal_are_independent(method, quantity, first, second):
    (a, cond_a), (b, cond_b) = first, second
    # One dtype and one scale: the condition number of the whole is then known.
    a = a.to(torch.complex128) / a.abs().max()
    b = b.to(torch.complex128) / b.abs().max()
    whole = FUNCTIONS[quantity](torch.block_diag(a, b), method=method)
    parts = torch.block_diag(*(FUNCTIONS[quantity](x, method=method) for x in (a, b)))
    # With largest entries of 1, the largest eigenvalues are between 1 and n ≤ 12.
    bound = tolerance(torch.float64, 12 * max(cond_a, cond_b), quantity)
    assert close(whole, parts, bound)
    n = len(a)
    assert whole[:n, n:].abs().max() <= bound * whole.abs().max()


@each_quantity
@each_converged
@given(singles, seeds)
def test_orthogonal_equivariance(method, quantity, case, seed):
    a, cond = case
    generator = torch.Generator().manual_seed(seed)
    double = torch.complex128 if a.is_complex() else torch.float64
    u = torch.linalg.qr(torch.randn(a.shape, dtype=double, generator=generator)).Q
    turned = u @ a.to(double) @ u.mH
    golden = u @ FUNCTIONS[quantity](a, method=method).to(double) @ u.mH
    found = FUNCTIONS[quantity](((turned + turned.mH) / 2).to(a.dtype), method=method)
    # One tolerance for each of the two roots that are compared, one for rounding the turned matrix.
    assert close(found, golden, 3 * tolerance(a.dtype, cond, quantity))


@each_quantity
@each_method
@given(singles, st.randoms(use_true_random=False))
def test_permutation_equivariance(name, quantity, case, random):
    # Every method is a function of the matrix, the approximations too.
    a, cond = case
    order = list(range(a.shape[-1]))
    random.shuffle(order)
    found = FUNCTIONS[quantity](a[order][:, order], method=name)
    golden = FUNCTIONS[quantity](a, method=name)[order][:, order]
    bound = tolerance(a.dtype, cond, quantity)
    if name == "pade":
        # With powers it solves systems whose condition number may be 4⁵ for any A.
        bound = tolerance(a.dtype, 4.0**5, "inv_sqrt")
    assert close(found, golden, 2 * bound)


# Laws of scale.


@st.composite
def dyadic_matrices(draw):
    """Matrices whose entries are multiples of 2⁻¹²: powers of 4 never make them subnormal."""
    a = random_spd(draw(sizes), cond=20.0, seed=draw(seeds))
    return ((a * 4096).round() / 4096).to(draw(real_dtypes))


@each_quantity
@each_method
@given(dyadic_matrices(), st.integers(-50, 50))
def test_powers_of_four_change_no_bit(name, quantity, a, k):
    scaled = FUNCTIONS[quantity](a * 4.0**k, method=name)
    golden = FUNCTIONS[quantity](a, method=name) * 2.0 ** (k if quantity == "sqrt" else -k)
    assert torch.equal(scaled, golden)


@each_quantity
@each_converged
@given(dyadic_matrices(), st.floats(-30, 30))
def test_sixty_decades_of_scale(method, quantity, a, decade):
    # Rounding a·scale is one more rounding of the input.
    scale = 10.0**decade
    found = FUNCTIONS[quantity]((a.double() * scale).to(a.dtype), method=method).double()
    golden = FUNCTIONS[quantity](a, method=method).double()
    golden = golden * scale ** (0.5 if quantity == "sqrt" else -0.5)
    assert close(found, golden, 2 * tolerance(a.dtype, 21.0, quantity))


def method_for(rule):
    return Eigh() if rule.needs_eigenpairs else Pade()


# The gradient has degree −1/2 or −3/2, and float32 ends at 4^±63: hence the smaller range.
@each_quantity
@pytest.mark.parametrize("rule", [rule() for rule in GRADIENTS.values()], ids=repr)
@given(dyadic_matrices(), seeds, st.integers(-30, 30))
def test_homogeneity_of_the_gradient(rule, quantity, a, seed, k):
    # A cotangent of ordinary size, as of a loss that does not depend on the scale.
    g = random_spd(a.shape[-1], dtype=a.dtype, seed=seed)
    options = {"method": method_for(rule), "gradient": rule}
    found = gradient_of(a * 4.0**k, g, quantity, **options)
    golden = gradient_of(a, g, quantity, **options) * 2.0 ** (-k if quantity == "sqrt" else -3 * k)
    quantity = "gradient" if quantity == "sqrt" else "inv_gradient"
    # Not bit for bit: S is scaled by 2ᵏ, and odd powers of 2 round differently under a root.
    assert close(found, golden, tolerance(a.dtype, 21.0, quantity))


@each_quantity
@pytest.mark.parametrize("rule", [rule() for rule in GRADIENTS.values()], ids=repr)
@given(dyadic_matrices(), seeds, st.integers(-12, 12))
def test_powers_of_sixteen_change_no_bit_of_the_gradient(rule, quantity, a, seed, k):
    # A power of 16 scales S by a power of 4, so that everything inside is the same.
    g = random_spd(a.shape[-1], dtype=a.dtype, seed=seed)
    options = {"method": method_for(rule), "gradient": rule}
    found = gradient_of(a * 16.0**k, g, quantity, **options)
    golden = gradient_of(a, g, quantity, **options) * 4.0 ** (-k if quantity == "sqrt" else -3 * k)
    assert torch.equal(found, golden)


# Laws of the gradient.


@each_quantity
@each_rule
@given(matrices(dtype=st.just(torch.float64)))
def test_gradient_along_the_matrix_itself(rule, quantity, case):
    # Euler: d/dt f(tA) at t = 1 is ±f(A)/2, so ⟨Ā, A⟩ = ±⟨G, f(A)⟩/2 for every cotangent G.
    a, cond = case
    g = random_spd(a.shape[-1], *a.shape[:-2], seed=3)
    root = FUNCTIONS[quantity](a, method="eigh")
    gradient = gradient_of(a, g, quantity, method="eigh", gradient=rule)
    sign = 0.5 if quantity == "sqrt" else -0.5
    found, golden = (gradient * a).sum((-2, -1)), sign * (g * root).sum((-2, -1))
    # Both matrices of each inner product are positive definite: nothing cancels in the second.
    norms = torch.linalg.matrix_norm(gradient) * torch.linalg.matrix_norm(a)
    name = "gradient" if quantity == "sqrt" else "inv_gradient"
    assert ((found - golden).abs() <= tolerance(a.dtype, cond, name) * norms).all()


@each_quantity
@each_rule
@given(matrices())
def test_gradient_solves_its_equation(rule, quantity, case):
    # S Ā + Ā S = G for the root, and Z Ā + Ā Z = −Z² G Z² for the inverse root.
    a, cond = case
    g = random_spd(a.shape[-1], *a.shape[:-2], dtype=a.dtype, seed=3)
    x = gradient_of(a, g, quantity, method="eigh", gradient=rule)
    s, z = matroot.sqrtm_pair(a)
    if quantity == "sqrt":
        left, right = s, g
    else:
        left, right = z, -(z @ z @ g @ z @ z)
    name = "gradient" if quantity == "sqrt" else "inv_gradient"
    residual = torch.linalg.matrix_norm(left @ x + x @ left - right)
    scale = torch.linalg.matrix_norm(left) * torch.linalg.matrix_norm(x)
    assert (residual <= tolerance(a.dtype, cond, name) * scale).all()
    assert torch.equal(x, x.mH)


# Bad matrices in a batch.


def broken(a, kind):
    """A copy of the matrix with one fault."""
    bad = a.clone()
    if kind == "nan":
        bad[0, 0] = torch.nan
    elif kind == "inf":
        bad[-1, -1] = torch.inf
    elif kind == "skew":
        bad[0, -1] += 1
        bad[-1, 0] -= 1
    elif kind == "indefinite":
        bad -= 0.5 * a.diagonal().sum() * torch.eye(len(a), dtype=a.dtype)
    return bad


@each_quantity
@each_method
@given(st.data(), st.integers(2, 12), st.integers(2, 5), seeds, real_dtypes)
def test_a_bad_matrix_leaves_its_neighbours_alone(name, quantity, data, n, batch, seed, dtype):
    a = random_spd(n, batch, cond=50.0, dtype=dtype, seed=seed)
    at = data.draw(st.integers(0, batch - 1))
    kind = data.draw(st.sampled_from(["nan", "inf", "skew", "indefinite"]))
    others = [i for i in range(batch) if i != at]
    spoilt = a.clone()
    spoilt[at] = broken(a[at], kind)
    options = {"method": name, "check_errors": False}

    good = a.clone().requires_grad_()
    found = spoilt.clone().requires_grad_()
    golden_root = FUNCTIONS[quantity](good, **options)
    root = FUNCTIONS[quantity](found, **options)
    assert root[at].isnan().all()
    assert torch.equal(root[others], golden_root[others])

    g = random_spd(n, batch, dtype=dtype, seed=1)
    (golden,) = torch.autograd.grad(golden_root, good, g)
    (gradient,) = torch.autograd.grad(root, found, g)
    assert torch.equal(gradient[others], golden[others])

    with pytest.raises(torch.linalg.LinAlgError, match=rf"batch index {at}\)"):
        FUNCTIONS[quantity](spoilt, method=name)


@each_rule
@given(singles)
def test_a_ridge_is_a_multiple_of_the_identity(rule, case):
    a, cond = case
    eps = 0.1 * a.abs().max().item()
    ridged = a + eps * identity(a)
    found = matroot.sqrtm(a, eps=eps, gradient=rule)
    assert close(found, matroot.sqrtm(ridged), 2 * tolerance(a.dtype, cond, "sqrt"))


@each_quantity
@given(matrices(batch=st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple)))
def test_unrolling_a_converged_loop_gives_the_exact_gradient(quantity, case):
    a, cond = case
    g = random_spd(a.shape[-1], *a.shape[:-2], dtype=a.dtype, seed=3)
    loop = gradient_of(a, g, quantity, method=NewtonSchulz(30), gradient=Unrolled())
    golden = gradient_of(a, g, quantity, method="eigh", gradient=Spectral())
    name = "gradient" if quantity == "sqrt" else "inv_gradient"
    assert close(loop, golden, 2 * tolerance(a.dtype, cond, name))
