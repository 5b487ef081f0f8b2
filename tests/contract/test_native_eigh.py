"""QL and divide and conquer in the compiled kernels: hard tridiagonal matrices, shared matrices.

A tridiagonal matrix passes the reduction to tridiagonal form as it is, but for signs.
"""

import numpy as np
import pytest
import torch

import matroot
from matroot.kernels import native
from matroot.screen import Thresholds
from matroot.testing import random_spd

pytestmark = pytest.mark.skipif(
    not native.tasks.available(), reason="no C++ compiler at installation"
)


def glued(n, random):
    """Wilkinson matrices of 21 rows, coupled by 1e-8: clusters of eigenvalues."""
    i = np.arange(n) % 21
    return np.abs(i - 10.0), np.where(i == 20, 1e-8, 1.0)


def fading(n, random):
    """Couplings of all sizes between equal entries."""
    return np.ones(n), 10.0 ** (-20 * random.random(n))


FAMILIES = {
    "random": lambda n, random: (random.standard_normal(n), random.standard_normal(n)),
    "wilkinson": lambda n, random: (np.abs(np.arange(n) - (n - 1) / 2), np.ones(n)),
    "glued": glued,
    "toeplitz": lambda n, random: (np.full(n, 2.0), np.ones(n)),
    "graded": lambda n, random: (2.0 ** (-0.3 * np.arange(n)), 0.4 * 2.0 ** (-0.3 * np.arange(n))),
    "graded upwards": lambda n, random: (
        2.0 ** (-0.3 * np.arange(n, 0, -1)),
        0.3 * 2.0 ** (-0.3 * np.arange(n, 0, -1)),
    ),
    "threefold": lambda n, random: (
        np.arange(n) % 3 + 1e-13 * random.standard_normal(n),
        0.01 * random.standard_normal(n) * (random.random(n) < 0.7),
    ),
    "fading": fading,
    "all scales": lambda n, random: (
        10.0 ** (-100 * random.random(n)),
        10.0 ** (-100 * random.random(n)),
    ),
    "spikes": lambda n, random: (
        np.where(random.random(n) < 0.1, 1.0, 1e-9 * random.standard_normal(n)),
        np.where(random.random(n) < 0.1, 1.0, 1e-9),
    ),
    "diagonal": lambda n, random: (random.standard_normal(n), np.zeros(n)),
    "zero": lambda n, random: (np.zeros(n), np.zeros(n)),
}


def eigenpairs(a):
    """Eigenvalues in double precision and eigenvectors by the compiled kernel."""
    vectors, info = torch.empty_like(a), native.tasks.info(a)
    values = a.new_empty(a.shape[:-1], dtype=torch.float64)
    limits = Thresholds(skew=1.0, indefinite=None, singular=None, null=0.0)
    native.tasks.eigh(a, [], info, limits, vectors=vectors, values=values)
    assert (info[..., 0] == 0).all()
    return values, vectors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_tridiagonal(family, dtype):
    unit = torch.finfo(dtype).eps
    for n in (25, 33, 48, 49, 57, 64, 65, 100, 129, 256):
        d, e = FAMILIES[family](n, np.random.default_rng(n))
        full = torch.tensor(np.diag(d) + np.diag(e[:-1], 1) + np.diag(e[:-1], -1))
        a = full.to(dtype)[None]
        values, q = eigenpairs(a)
        a, q = a[0].double(), q[0].double()
        size = torch.linalg.matrix_norm(a, 2)
        assert torch.linalg.matrix_norm(q.mT @ q - torch.eye(n), 2) < 8 * unit
        residual = torch.linalg.matrix_norm(a @ q - q * values, 2)
        assert residual <= 16 * unit * size
        expected = torch.linalg.eigvalsh(a)
        # Eigenvalues of float matrices are known beyond the precision of float; QL splits at 2⁻³⁴.
        single = 2**-32 if n <= 48 else 2**-38
        beyond = single if dtype == torch.float32 else 2**-47
        assert (values[0].sort().values - expected).abs().max() <= beyond * size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [25, 40, 100, 129, 200, 256])
def test_bits_depend_on_the_matrix_alone(n, dtype):
    """On neither threads nor neighbours, also where threads share one matrix."""
    a = random_spd(n, 19, cond=1e3, dtype=dtype)
    g = torch.randn(a.shape, dtype=dtype, generator=torch.Generator().manual_seed(n))

    def whole(a, g):
        x = a.clone().requires_grad_()
        roots = matroot.sqrtm_pair(x)
        return *(r.detach() for r in roots), *torch.autograd.grad(roots, x, (g, g))

    threads = torch.get_num_threads()
    try:
        found = {}
        for many in (1, 2, 3, 8):
            torch.set_num_threads(many)
            found[many] = [whole(a, g), whole(a[3:4], g[3:4]), whole(a[3:5], g[3:5])]
    finally:
        torch.set_num_threads(threads)
    expected = found[1][0]
    for batch, lone, two in found.values():
        for x, y, z, same in zip(batch, lone, two, expected, strict=True):
            assert torch.equal(x, same)
            assert torch.equal(y, same[3:4])
            assert torch.equal(z, same[3:5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [24, 48, 64, 200, 256, 300, 512])
def test_sums_of_one_sign(n, dtype):
    """Equal correlations and a matrix of ones, whose rounding would add up in a product's sums."""
    a = torch.full((n, n), 0.5, dtype=dtype) + 0.5 * torch.eye(n, dtype=dtype)
    mean = torch.full((n, n), 1 / n, dtype=torch.float64)
    identity = torch.eye(n, dtype=torch.float64)
    unit = torch.finfo(dtype).eps
    for p in (0.5, 1.7):
        expected = 0.5**p * (identity - mean) + (0.5 + 0.5 * n) ** p * mean
        found = matroot.powm(a, p)
        # LAPACK's are off by up to 23 units (n = 257, double precision).
        assert (found - expected).norm() < 32 * unit * expected.norm()
    ones = torch.ones(n, n, dtype=dtype)
    root = matroot.sqrtm(ones).double()
    assert (root @ root - ones).norm() < 32 * unit * n
