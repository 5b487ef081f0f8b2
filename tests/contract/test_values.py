"""Values: every method × backend × root × dtype × shape against double precision."""

import pytest
import torch

import matroot
from instances import CONVERGED, FUNCTIONS, METHOD_OBJECTS, calls
from matroot.checks import DTYPES
from matroot.methods import Eigh, NewtonSchulz, Pade, Svd
from matroot.testing import assert_root, exact, random_spd, relative_error, tolerance

ROOTS = ["sqrt", "inv_sqrt"]


@pytest.mark.parametrize(
    ("method", "backend", "dtype"), calls(CONVERGED, *DTYPES, interpreted=True)
)
def test_roots_are_right_in_every_dtype(method, backend, dtype):
    a = random_spd(6, 3, cond=10, dtype=dtype)
    before = a.clone()
    sqrt, inv_sqrt = matroot.sqrtm_pair(a, method=method, backend=backend)
    assert sqrt.dtype == inv_sqrt.dtype == dtype
    assert_root(a, sqrt, cond=10)
    assert_root(a, inv_sqrt, cond=10, quantity="inv_sqrt")
    assert torch.equal(a, before)


@pytest.mark.parametrize("n", [1, 2, 3, 17, 64])
@pytest.mark.parametrize(("method", "backend"), calls(METHOD_OBJECTS))
def test_one_root_is_the_root_of_the_pair(method, backend, n):
    a, options = random_spd(n, 2, cond=5), {"method": method, "backend": backend}
    sqrt, inv_sqrt = matroot.sqrtm_pair(a, **options)
    # Not bit for bit: Taylor may use other powers for one polynomial than for two.
    assert relative_error(matroot.sqrtm(a, **options), sqrt).max() < 1e-14
    assert relative_error(matroot.inv_sqrtm(a, **options), inv_sqrt).max() < 1e-13
    assert torch.equal(sqrt, sqrt.mH)
    assert torch.equal(inv_sqrt, inv_sqrt.mH)


@pytest.mark.parametrize("spectrum", ["log", "clustered", "outlier"])
@pytest.mark.parametrize("cond", [1e1, 1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize(
    ("method", "backend", "dtype"),
    calls([Eigh(), Svd(), NewtonSchulz(40)], torch.float32, torch.float64, torch.complex64),
)
def test_accuracy_over_condition_numbers(method, backend, dtype, cond, spectrum):
    if method == NewtonSchulz(40) and cond == 1e8:
        return  # In single precision it amplifies the rounding of eigenvalues at 1e-8.
    a = random_spd(12, 2, cond=cond, spectrum=spectrum, dtype=dtype)
    assert_root(a, matroot.sqrtm(a, method=method, backend=backend), cond=cond)
    # Beyond 1/(4·eps) there is an error instead; see test_errors.
    if cond < 1 / (4 * torch.finfo(dtype).eps):
        inv_sqrt = matroot.inv_sqrtm(a, method=method, backend=backend)
        assert_root(a, inv_sqrt, cond=cond, quantity="inv_sqrt")


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (2, 1, 2)])
@pytest.mark.parametrize(("method", "backend"), calls(METHOD_OBJECTS))
@pytest.mark.parametrize("root", FUNCTIONS)
def test_batch_dimensions(root, method, backend, shape):
    a = random_spd(4, *shape, cond=5)
    found = FUNCTIONS[root](a, method=method, backend=backend)
    flat = FUNCTIONS[root](a.reshape(-1, 4, 4), method=method, backend=backend)
    for x, y in zip(
        found if root == "both" else (found,), flat if root == "both" else (flat,), strict=True
    ):
        assert x.shape == a.shape
        assert torch.equal(x.reshape(-1, 4, 4), y)


@pytest.mark.parametrize("shape", [(0, 0), (3, 0, 0), (0, 4, 4), (2, 0, 3, 3)])
@pytest.mark.parametrize("root", FUNCTIONS)
def test_empty(root, shape):
    a = torch.zeros(shape, requires_grad=True)
    found = FUNCTIONS[root](a)
    found = found if root == "both" else (found,)
    assert all(x.shape == shape for x in found)
    sum(x.sum() for x in found).backward()
    assert a.grad.shape == shape


@pytest.mark.parametrize(("method", "backend"), calls(METHOD_OBJECTS, interpreted=True))
def test_memory_layouts(method, backend):
    a, options = random_spd(5, 3, cond=5), {"method": method, "backend": backend}
    expected = matroot.sqrtm(a, **options)
    layouts = {
        "transposed": a.mT,
        "strided": torch.stack([a, a], -1)[..., 0],
        "fortran": a.mT.contiguous().mT,
    }
    for name, layout in layouts.items():
        assert relative_error(matroot.sqrtm(layout, **options), expected).max() < 1e-14, name
    expanded = a[0].expand(4, 5, 5)
    assert relative_error(matroot.sqrtm(expanded, **options), expected[:1]).max() < 1e-14


@pytest.mark.parametrize("n", [192, 512])
@pytest.mark.parametrize("method", [Eigh(), Svd(), NewtonSchulz(20), Pade(5), Pade(12)], ids=repr)
def test_large_batched_matrices_with_two_threads(method, n, two_threads):
    """PyTorch's batched LU returns garbage from n = 150 with two threads (pytorch #142815)."""
    a = random_spd(n, 4, cond=4, dtype=torch.float64)
    x = a / torch.linalg.matrix_norm(a, keepdim=True)
    sqrt, inv_sqrt = matroot.sqrtm_pair(a, method=method)
    if isinstance(method, Pade):
        # The approximant itself, eigenvalue by eigenvalue: √x·coth((2m+1) artanh √x).
        values, q = torch.linalg.eigh(x)
        roots = values.sqrt()
        factor = 1 / torch.tanh((2 * method.order + 1) * torch.atanh(roots))
        norm = torch.linalg.matrix_norm(a)[:, None, None].sqrt()
        expected = (q * (roots * factor)[:, None, :]) @ q.mT * norm
        inverse = (q / (roots * factor)[:, None, :]) @ q.mT / norm
    else:
        expected, inverse = exact(a), exact(a, "inv_sqrt")
    # By powers an order costs a factor of 4, the condition number of the numerator.
    growth = 4**5 if method == Pade(5) else 1
    assert relative_error(sqrt, expected).max() < growth * tolerance(a.dtype, 4, "sqrt")
    assert relative_error(inv_sqrt, inverse).max() < growth * tolerance(a.dtype, 4, "inv_sqrt")


@pytest.mark.parametrize("eps", [1e-5, 0.5, 1e3])
@pytest.mark.parametrize(("method", "backend"), calls(METHOD_OBJECTS, interpreted=True))
def test_eps_is_a_ridge(method, backend, eps):
    a = random_spd(5, 2, cond=5)
    ridged = a + eps * torch.eye(5, dtype=a.dtype)
    x, y = matroot.sqrtm_pair(a, method=method, backend=backend, eps=eps)
    s, z = matroot.sqrtm_pair(ridged, method=method, backend=backend)
    assert relative_error(x, s).max() < 1e-13
    assert relative_error(y, z).max() < 1e-13


def test_rounding_asymmetry_is_averaged_away():
    a = random_spd(5, cond=5, dtype=torch.float32)
    skewed = a + 1e-5 * torch.triu(torch.ones(5, 5), 1)
    symmetric = (skewed + skewed.mT) / 2
    assert relative_error(matroot.sqrtm(skewed), matroot.sqrtm(symmetric)).max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_autocast_does_not_reach_inside(dtype):
    a = random_spd(16, 3, cond=100, dtype=torch.float32)
    expected = matroot.sqrtm(a, method="newton_schulz")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = matroot.sqrtm(a.to(dtype), method="newton_schulz")
    assert found.dtype == dtype
    assert relative_error(found, expected).max() < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("method", "backend", "dtype"),
    calls(METHOD_OBJECTS, torch.float32, torch.float64, torch.complex64, interpreted=True),
)
def test_zero_matrix(method, backend, dtype):
    zero, options = torch.zeros(2, 3, 3, dtype=dtype), {"method": method, "backend": backend}
    assert torch.equal(matroot.sqrtm(zero, **options), zero)
    with pytest.raises(torch.linalg.LinAlgError, match="singular"):
        matroot.inv_sqrtm(zero, **options)
    assert matroot.inv_sqrtm(zero, check_errors=False, **options).isnan().all()


@pytest.mark.parametrize("value", [1e-44, 1e-38, 1e30, 3e38])
@pytest.mark.parametrize(
    ("method", "backend", "dtype"), calls(METHOD_OBJECTS, torch.float32, interpreted=True)
)
def test_denormal_and_huge_entries(method, backend, dtype, value):
    a, options = torch.eye(3, dtype=dtype) * value, {"method": method, "backend": backend}
    expected = matroot.sqrtm(torch.eye(3), **options) * a[0, 0].double().sqrt()
    assert relative_error(matroot.sqrtm(a, **options), expected) < 1e-6


@pytest.mark.parametrize(("method", "backend"), calls(m for m in CONVERGED if m.spectral))
def test_pseudo_inverse_root(method, backend):
    a = random_spd(8, 2, spectrum="half_zero", cond=10)
    z = matroot.inv_sqrtm(a, method=method, backend=backend, singular="pinv")
    assert relative_error(z @ z, torch.linalg.pinv(a, hermitian=True)).max() < 1e-12
    assert torch.equal(matroot.inv_sqrtm(torch.zeros(2, 2), singular="pinv"), torch.zeros(2, 2))
