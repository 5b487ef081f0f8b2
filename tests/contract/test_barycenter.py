"""Bures–Wasserstein barycentres."""

import mpmath as mp
import pytest
import torch

import matroot
from matroot import barycenters
from matroot.context import pretended_accelerator
from matroot.testing import random_spd

DOUBLE = torch.float64
DTYPES = [torch.float16, torch.bfloat16, torch.float32, DOUBLE, torch.complex64, torch.complex128]
FUNC = torch.func


def several(n, k, *batch, cond=10.0, dtype=DOUBLE, seed=0, spectrum="log"):
    count = torch.Size(batch).numel() * k
    each = [
        random_spd(n, cond=cond, dtype=dtype, seed=seed + i, spectrum=spectrum)
        for i in range(count)
    ]
    return torch.stack(each).reshape(*batch, k, n, n)


def relative_error(x, expected):
    return (x.to(expected.dtype) - expected).norm() / expected.norm()


def share_of_maps(s, covariances, weights):
    """‖Σ w_i M_i − I‖, which is 0 at the barycentre alone."""
    maps = matroot.transport_map(s[..., None, :, :].expand_as(covariances), covariances)
    mean = (weights[..., None, None] * maps).sum(-3)
    return torch.linalg.matrix_norm(mean - torch.eye(s.shape[-1], dtype=s.dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 7, 32])
def test_transport_maps_have_the_identity_for_their_mean(n, dtype):
    c = several(n, 4, 2, dtype=dtype)
    w = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=DOUBLE)
    s = matroot.barycenter(c, w)
    assert s.dtype == dtype
    assert s.shape == (2, n, n)
    assert torch.equal(s, s.mH)
    wide = torch.complex128 if dtype.is_complex else DOUBLE
    assert share_of_maps(s.to(wide), c.to(wide), w).max() < 100 * torch.finfo(dtype).eps
    # Single precision is that of the result; weights are divided by their sum.
    units = 20 if dtype in (DOUBLE, torch.complex128) else 1
    exact = matroot.barycenter(c.to(wide), w * 5)
    assert relative_error(s, exact) < units * torch.finfo(dtype).eps


@pytest.mark.parametrize("cond", [1e2, 1e8])
@pytest.mark.parametrize("spectrum", ["log", "clustered", "outlier"])
def test_badly_conditioned_matrices(cond, spectrum):
    c = several(12, 5, cond=cond, spectrum=spectrum)
    w = torch.full((5,), 0.2, dtype=DOUBLE)
    # The maps are only known to the root of what S⁻¹ multiplies rounding by.
    assert share_of_maps(matroot.barycenter(c, w), c, w) < 1e-14 * cond


def in_many_digits(c, w, s):
    """The fixed-point iteration of Álvarez-Esteban et al. from S, 40 digits."""
    with mp.workdps(40):
        c, s = [mp.matrix(x.tolist()) for x in c], mp.matrix(s.tolist())
        for _ in range(30):
            values, q = mp.eigsy(s)
            root, inverse = (q * mp.diag([x**p for x in values]) * q.T for p in (0.5, -0.5))
            total = mp.zeros(s.rows)
            for matrix, weight in zip(c, w.tolist(), strict=True):
                inner, vectors = mp.eigsy((root * matrix * root + (root * matrix * root).T) / 2)
                total += weight * vectors * mp.diag([mp.sqrt(x) for x in inner]) * vectors.T
            s, last = inverse * total * total * inverse, s
            s = (s + s.T) / 2
        assert mp.mnorm(s - last, "f") < 1e-18 * mp.mnorm(s, "f")
        return torch.tensor([[float(x) for x in row] for row in s.tolist()], dtype=DOUBLE)


@pytest.mark.parametrize(("cond", "units"), [(1e1, 40), (1e3, 200)])
def test_the_error_is_that_of_rounding(cond, units):
    c, w = several(3, 3, cond=cond, seed=5), torch.tensor([0.25, 0.5, 0.25], dtype=DOUBLE)
    s = matroot.barycenter(c, w)
    assert relative_error(s, in_many_digits(c, w, s)) < units * torch.finfo(DOUBLE).eps
    single = matroot.barycenter(c.float(), w)
    exact = matroot.barycenter(c.float().double(), w)
    assert relative_error(single, exact) < torch.finfo(torch.float32).eps


def test_against_pot():
    ot = pytest.importorskip("ot")
    c, w = several(6, 4), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=DOUBLE)
    _, theirs = ot.gaussian.bures_wasserstein_barycenter(
        torch.zeros(4, 6, dtype=DOUBLE), c, weights=w, num_iter=200, eps=1e-14
    )
    torch.testing.assert_close(matroot.barycenter(c, w), theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.complex128], ids=str)
def test_where_there_is_a_formula(dtype):
    def close(found, expected):
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(found, expected.to(dtype), rtol=50 * unit, atol=20 * unit)

    a, b = random_spd(6, cond=50, dtype=dtype), random_spd(6, cond=20, dtype=dtype, seed=1)
    close(matroot.barycenter(a[None]), a)
    close(matroot.barycenter(torch.stack([a, a, a]), torch.tensor([0.5, 0.25, 0.25])), a)
    # Matrices with the same eigenvectors.
    commuting = [a, matroot.powm(a, 2.0), torch.eye(6, dtype=dtype)]
    w = torch.tensor([0.2, 0.3, 0.5], dtype=DOUBLE)
    mean = sum(x * matroot.sqrtm(c) for x, c in zip(w, commuting, strict=True))
    close(matroot.barycenter(torch.stack(commuting), w), mean @ mean)
    # Two: a point of the geodesic.
    m = 0.75 * torch.eye(6, dtype=dtype) + 0.25 * matroot.transport_map(a, b)
    close(matroot.barycenter(torch.stack([a, b]), torch.tensor([3.0, 1.0])), m @ a @ m)
    numbers = torch.tensor([1.0, 4.0, 9.0], dtype=dtype)[:, None, None]
    close(matroot.barycenter(numbers), torch.tensor([[4.0]]))


def test_a_weight_of_zero_leaves_a_matrix_out():
    c = several(5, 3)
    found = matroot.barycenter(c, torch.tensor([0.0, 1.0, 3.0]))
    expected = matroot.barycenter(c[1:], torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("k", [-80, -7, 1, 80])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_powers_of_four_change_no_bit(dtype, k):
    if dtype == DOUBLE:
        k *= 4
    c = several(5, 3, dtype=dtype)
    k = k if dtype == DOUBLE else k // 2
    assert torch.equal(matroot.barycenter(c * 4.0**k), matroot.barycenter(c) * 4.0**k)


def test_singular_matrices():
    half = random_spd(6, cond=4, spectrum="half_zero")
    other = random_spd(6, cond=4, spectrum="half_zero", seed=3)
    regular = random_spd(6, cond=4, seed=1)
    w = torch.tensor([0.3, 0.3, 0.4], dtype=DOUBLE)
    c = torch.stack([half, other, regular]).requires_grad_()
    s = matroot.barycenter(c, w)
    maps = share_of_maps(s.detach(), c.detach(), w)
    assert maps < 1e-6  # Maps to singular matrices are known to the root of rounding.
    s.sum().backward()
    assert c.grad.isfinite().all()
    with pytest.raises(torch.linalg.LinAlgError, match=r"no matrix with a positive weight .* eps="):
        matroot.barycenter(c, torch.tensor([0.5, 0.5, 0.0]))
    with pytest.raises(torch.linalg.LinAlgError, match=r"no barycenter \(1 of 2 sets\)"):
        matroot.barycenter(torch.stack([c[:2], c[1:]]))
    found = matroot.barycenter(c[:2], eps=0.1)
    ridged = c[:2] + 0.1 * torch.eye(6, dtype=DOUBLE)
    torch.testing.assert_close(found, matroot.barycenter(ridged), rtol=1e-12, atol=1e-13)
    # What rounding to single precision leaves of zeros is none.
    with pytest.raises(torch.linalg.LinAlgError, match="no matrix with a positive weight"):
        matroot.barycenter(c[:2].float())


def test_gradients_along_matrices_of_one_rank():
    regular, x = random_spd(5, cond=4), torch.randn(2, 5, 2, dtype=DOUBLE, requires_grad=True)

    def run(x):
        return matroot.barycenter(torch.cat([x @ x.mT, regular[None]]))

    assert torch.autograd.gradcheck(run, (x,))


def spoilt():
    good = several(5, 3, 6)
    bad = good.clone()
    bad[1, 2, 0, 0] = torch.nan
    bad[2, 1] = -bad[2, 1]
    bad[3, 0, 0, 1] += 1.0
    bad[4] = torch.diag(torch.tensor([1.0, 1, 1, 0, 0]))
    return good, bad


def test_a_bad_matrix_is_named_and_its_neighbours_are_left_alone():
    good, bad = spoilt()
    for i, text in (
        (1, "covariances is not finite"),
        (2, r"covariances is indefinite: .* \(batch index \(1, 1\)\)"),
        (3, "covariances is not symmetric"),
        (4, "no barycenter"),
    ):
        with pytest.raises(torch.linalg.LinAlgError, match=text):
            matroot.barycenter(bad[[0, i]])
    w = torch.ones(6, 3, dtype=DOUBLE)
    w[5, 1] = -1.0
    expected = matroot.barycenter(good)
    for c, weights in ((bad, w), (bad.clone().requires_grad_(), w.clone().requires_grad_())):
        with pretended_accelerator():
            found = matroot.barycenter(c, weights)
        assert found.isnan().all(-1).all(-1).tolist() == [False, True, True, True, True, True]
        assert torch.equal(found[0], expected[0])
        if c.requires_grad:
            by_c, by_w = torch.autograd.grad(found.sum(), (c, weights))
            alone = good[0].clone().requires_grad_()
            torch.testing.assert_close(
                by_c[0], torch.autograd.grad(matroot.barycenter(alone).sum(), alone)[0]
            )
            assert by_w[0].isfinite().all()
            assert by_c[1:].isnan().flatten(1).any(-1).all()


def test_what_does_not_converge_is_said(monkeypatch):
    monkeypatch.setattr(barycenters, "_STEPS", 3)
    c = torch.stack([several(6, 3, cond=1e4), several(6, 3, cond=1.1)])
    with pytest.raises(torch.linalg.LinAlgError, match=r"\(1 of 2 sets\): .* not converged in 3"):
        matroot.barycenter(c)
    with pretended_accelerator():
        assert matroot.barycenter(c).isnan().flatten(1).all(-1).tolist() == [True, False]


@pytest.mark.parametrize("n", [3, 8, 33])
def test_neighbours_change_no_bit(n):
    easy, hard = several(n, 3, cond=1.5, seed=100), several(n, 3, 4, cond=1e5)
    w = torch.tensor([0.2, 0.3, 0.5], dtype=DOUBLE)

    def everything(c):
        c = c.clone().requires_grad_()
        s = matroot.barycenter(c, w)
        return s.detach(), torch.autograd.grad(s.sum(), c)[0]

    whole = everything(hard)
    for others in (easy, 1e3 * hard[0], torch.eye(n, dtype=DOUBLE).expand(3, n, n)):
        c = others.repeat(4, 1, 1, 1)
        c[2] = hard[2]
        for x, y in zip(everything(c), whole, strict=True):
            assert torch.equal(x[2], y[2])
    # Taken for a GPU's, all steps are made.
    with pretended_accelerator():
        again = everything(hard)
    for x, y in zip(again, whole, strict=True):
        assert torch.equal(x, y)
    torch.testing.assert_close(matroot.barycenter(hard[2], w), whole[0][2], rtol=1e-9, atol=1e-11)


def test_broadcasting_and_empty():
    c, w = several(4, 3, 2, 1), torch.rand(5, 3, dtype=DOUBLE) + 0.1
    found = matroot.barycenter(c, w)
    assert found.shape == (2, 5, 4, 4)
    for i in range(2):
        for j in range(5):
            torch.testing.assert_close(found[i, j], matroot.barycenter(c[i, 0], w[j]))
    assert matroot.barycenter(torch.empty(0, 3, 4, 4)).shape == (0, 4, 4)
    assert matroot.barycenter(torch.empty(2, 3, 0, 0), torch.ones(4, 1, 3)).shape == (4, 2, 0, 0)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.complex128], ids=str)
def test_gradients(dtype):
    c = several(3, 3, 2, cond=20, dtype=dtype).requires_grad_()
    w = torch.tensor([0.5, 2.0, 1.0], dtype=DOUBLE, requires_grad=True)

    def run(c, w):
        return matroot.barycenter((c + c.mH) / 2, w, eps=0.01)

    assert torch.autograd.gradcheck(run, (c, w))
    with torch.no_grad():
        w[2] = 0.0
    # On one side of 0 alone.
    by = torch.autograd.grad(run(c, w).real.sum(), w)[0]
    step = torch.tensor([0.0, 0.0, 1e-6], dtype=DOUBLE)
    difference = (run(c, w + step) - run(c, w)).real.sum() / 1e-6
    torch.testing.assert_close(by[2], difference, rtol=1e-4, atol=1e-4)


def test_gradients_where_there_is_a_formula():
    a, b = several(5, 2, cond=30)
    w = torch.tensor([0.75, 0.25], dtype=DOUBLE)
    g = torch.randn(5, 5, dtype=DOUBLE)
    both = torch.stack([a, b]).requires_grad_()
    found = torch.autograd.grad(matroot.barycenter(both, w), both, g)[0]
    other = torch.stack([a, b]).requires_grad_()
    m = 0.75 * torch.eye(5, dtype=DOUBLE) + 0.25 * matroot.transport_map(other[0], other[1])
    expected = torch.autograd.grad(m @ other[0] @ m, other, g + g.mT)[0] / 2
    expected = (expected + expected.mT) / 2
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
    same = torch.stack([a, a]).requires_grad_()
    found = torch.autograd.grad(matroot.barycenter(same, w), same, g)[0]
    torch.testing.assert_close(found, w[:, None, None] * (g + g.mT) / 2, rtol=1e-11, atol=1e-12)


def test_the_least_mean_distance():
    c, w = several(5, 4), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=DOUBLE)
    s = matroot.barycenter(c, w).requires_grad_()
    cost = (w * matroot.bures_wasserstein_distance(s, c)).sum()
    assert torch.autograd.grad(cost, s)[0].abs().max() < 1e-13


def test_single_precision_has_gradients_of_double():
    c = several(6, 3, cond=100, dtype=torch.float32).requires_grad_()
    w = torch.tensor([0.2, 0.3, 0.5]).requires_grad_()
    g = torch.randn(6, 6)
    found = torch.autograd.grad(matroot.barycenter(c, w), (c, w), g)
    wide = [x.detach().double().requires_grad_() for x in (c, w)]
    expected = torch.autograd.grad(matroot.barycenter(*wide), wide, g.double())
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == torch.float32
        assert relative_error(x, y) < 1e-6


def test_second_derivatives_and_forward_mode_are_refused():
    c = several(3, 2).requires_grad_()
    (g,) = torch.autograd.grad(matroot.barycenter(c).square().sum(), c, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives of barycenter"):
        g.sum().backward()
    with pytest.raises(NotImplementedError, match="second derivatives of barycenter"):
        FUNC.jacrev(FUNC.jacrev(lambda c: matroot.barycenter(c).sum()))(c.detach())
    with pytest.raises(RuntimeError, match="jvp"):
        FUNC.jvp(matroot.barycenter, (c.detach(),), (c.detach(),))


def test_transforms_agree_with_autograd():
    c, w = several(3, 3, 4), torch.rand(4, 3, dtype=DOUBLE) + 0.1
    expected = matroot.barycenter(c, w)
    torch.testing.assert_close(FUNC.vmap(matroot.barycenter)(c, w), expected)
    each = FUNC.vmap(matroot.barycenter, in_dims=(None, 0))(c[0], w)
    torch.testing.assert_close(each, matroot.barycenter(c[0], w))
    by = FUNC.vmap(FUNC.grad(lambda c, w: matroot.barycenter(c, w).sin().sum(), (0, 1)))(c, w)
    leaves = [x.clone().requires_grad_() for x in (c, w)]
    again = torch.autograd.grad(matroot.barycenter(*leaves).sin().sum(), leaves)
    torch.testing.assert_close(by, again, rtol=1e-9, atol=1e-10)
    jacobian = FUNC.jacrev(matroot.barycenter)(c[0], w[0])
    first = torch.autograd.functional.jacobian(lambda c: matroot.barycenter(c, w[0]), c[0])
    torch.testing.assert_close(jacobian, first, rtol=1e-9, atol=1e-10)


def test_compile_fullgraph_forward_and_backward():
    c = several(4, 3, 2).requires_grad_()
    w = torch.tensor([0.5, 2.0, 1.0], dtype=DOUBLE, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(matroot.barycenter, fullgraph=True, backend="aot_eager")
    found, expected = compiled(c, w), matroot.barycenter(c, w)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    g = torch.randn_like(expected)
    for x, y in zip(
        torch.autograd.grad(found, (c, w), g), torch.autograd.grad(expected, (c, w), g), strict=True
    ):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-11)
    bad = c.detach().clone()
    bad[1, 0] = -bad[1, 0]
    torch._dynamo.reset()
    found = torch.compile(matroot.barycenter, fullgraph=True, backend="aot_eager")(bad)
    assert found.isnan().flatten(1).all(-1).tolist() == [False, True]


def test_tensors_without_values():
    c = torch.empty(2, 3, 4, 4, device="meta", requires_grad=True)
    s = matroot.barycenter(c)
    assert s.shape == (2, 4, 4)
    assert torch.autograd.grad(s.sum(), c)[0].is_meta


def test_autocast_does_not_reach_inside():
    c = several(8, 3, dtype=torch.float32).requires_grad_()
    expected = matroot.barycenter(c)
    by = torch.autograd.grad(expected.sum(), c)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = matroot.barycenter(c)
        again = torch.autograd.grad(found.sum(), c)[0]
    assert torch.equal(found, expected)
    assert torch.equal(again, by)


def test_inputs_are_left_alone_and_may_be_lazy():
    c, w = several(4, 3, dtype=torch.complex128), torch.rand(3, dtype=DOUBLE)
    copies = c.clone(), w.clone()
    found = matroot.barycenter(c.conj().mT.conj().conj(), w)
    torch.testing.assert_close(found, matroot.barycenter(c, w), rtol=1e-13, atol=1e-14)
    assert torch.equal(c, copies[0])
    assert torch.equal(w, copies[1])


def test_arguments():
    c = several(4, 3)
    for wrong, error, text in (
        (lambda: matroot.barycenter(c[0]), ValueError, r"\(\.\.\., k, n, n\) with k at least 1"),
        (lambda: matroot.barycenter(c[:0]), ValueError, "k at least 1, got"),
        (lambda: matroot.barycenter(c[..., :3]), ValueError, r"\(\.\.\., n, n\)"),
        (lambda: matroot.barycenter(c.tolist()), TypeError, "covariances must be a torch.Tensor"),
        (lambda: matroot.barycenter(c.long()), TypeError, "covariances must have dtype"),
        (lambda: matroot.barycenter(c, eps=-1.0), ValueError, "eps"),
        (lambda: matroot.barycenter(c, [1.0] * 3), TypeError, "weights must be a torch.Tensor"),
        (lambda: matroot.barycenter(c, torch.ones(3).long()), TypeError, "weights must be of real"),
        (lambda: matroot.barycenter(c, torch.ones(2)), ValueError, r"weights must have shape"),
        (lambda: matroot.barycenter(c, torch.tensor(1.0)), ValueError, r"weights must have shape"),
        (
            lambda: matroot.barycenter(c.expand(2, 3, 4, 4), torch.ones(5, 3)),
            ValueError,
            "batch dimensions of weights and covariances must be equal or 1",
        ),
        (lambda: matroot.barycenter(c, torch.ones(3).to("meta")), ValueError, "on the device cpu"),
        *(
            (lambda w=w: matroot.barycenter(c, torch.tensor(w)), ValueError, "weights must be fini")
            for w in ([1.0, -1e-3, 1.0], [0.0] * 3, [1.0, float("nan"), 1.0], [float("inf")] * 3)
        ),
    ):
        with pytest.raises(error, match=text):
            wrong()
