"""The compiled kernels of powers, logarithm and exponential, and of their gradients."""

import math
import os
import subprocess
import sys

import mpmath
import numpy as np
import pytest
import torch

from matroot import checks, spd
from matroot.backends import native

if not native.available():
    pytest.skip("no C++ compiler at installation", allow_module_level=True)
M = native._MODULE
POWERS = [0.25, -0.25, -0.5, 1 / 3, 0.9, 1.5, -2.0, 2.0, 3.0, 1.0, 0.0, 0.01, -1.0]
FUNCTIONS = {
    **{f"power {p:.3g}": M.Function(kind=M.Kind.POWER, exponent=p) for p in POWERS},
    "log": M.Function(kind=M.Kind.LOG),
    "exp": M.Function(kind=M.Kind.EXP),
}
REAL = ("exp", "power 2", "power 3", "power 0", "power 1")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
functions = pytest.mark.parametrize("name", FUNCTIONS)


def thresholds(n, dtype, *, real=False, pinv=False):
    null = spd.null_share(n, dtype)
    return M.Thresholds(
        skew=1e-3,
        indefinite=-1.0 if real else n * torch.finfo(dtype).eps,
        singular=-1.0 if pinv else null,
        null=null,
    )


def poisoned(*shape, dtype):
    """Memory full of NaN with NaN around it, to see what is not written, or read beyond."""
    count = math.prod(shape)
    return torch.full((count + 256,), torch.nan, dtype=dtype)[128 : 128 + count].view(shape)


def within(a):
    """A copy of a with NaN around it."""
    found = poisoned(*a.shape, dtype=a.dtype)
    return found.copy_(a)


def solve(a, wanted, limits, eps=0.0, threads=1):
    """The functions of a, the eigenvalues and vectors, and the statuses."""
    a = within(a)
    count, n = a.shape[:2]
    out = [poisoned(*a.shape, dtype=a.dtype) for _ in wanted]
    values, vectors = poisoned(count, n, dtype=torch.float64), poisoned(*a.shape, dtype=a.dtype)
    info = torch.full((count, 3), -1)
    task = M.EighTask(
        batch=M.Batch(is_double=a.dtype == torch.float64, count=count, n=n, threads=threads),
        a=a.data_ptr(),
        outputs=[M.Output(function=f, x=x.data_ptr()) for f, x in zip(wanted, out, strict=True)],
        values=values.data_ptr(),
        vectors=vectors.data_ptr(),
        info=info.data_ptr(),
        eps=eps,
        thresholds=limits,
    )
    seen = M.eigh(task)
    assert seen == sum(1 << k for k in set(info[:, 0].tolist()))
    for x in (*out, values, vectors):
        margins = x.untyped_storage()
        whole = torch.tensor([], dtype=x.dtype).set_(margins)
        assert whole[:128].isnan().all()
        assert whole[-128:].isnan().all()
    return out, values, vectors, info


def gradient(values, vectors, cotangents, limits, threads=1):
    """The gradient of Σ ⟨f(A), G⟩, of (f, G) in cotangents."""
    values, vectors = within(values), within(vectors)
    x = poisoned(*vectors.shape, dtype=vectors.dtype)
    given = [(f, within(g)) for f, g in cotangents]
    task = M.FrechetTask(
        batch=M.Batch(
            is_double=x.dtype == torch.float64, count=len(x), n=x.shape[-1], threads=threads
        ),
        values=values.data_ptr(),
        vectors=vectors.data_ptr(),
        cotangents=[M.Cotangent(function=f, g=g.data_ptr()) for f, g in given],
        x=x.data_ptr(),
        thresholds=limits,
    )
    M.frechet(task)
    whole = torch.tensor([], dtype=x.dtype).set_(x.untyped_storage())
    assert whole[:128].isnan().all()
    assert whole[-128:].isnan().all()
    return x


def matrix_of(values, dtype, seed=0):
    """Symmetric matrices of these eigenvalues and random eigenvectors, rounded to the dtype."""
    n = values.shape[-1]
    random = torch.randn(*values.shape, n, dtype=torch.float64, generator=seeded(seed))
    q = torch.linalg.qr(random)[0]
    a = (q * values[..., None, :]) @ q.mT
    return ((a + a.mT) / 2).to(dtype)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Reference:
    """f(A) and its derivative in 60 digits, of one matrix; null eigenvalues are left out."""

    def __init__(self, a, null=None):
        self.n = a.shape[-1]
        with mpmath.workdps(60):
            values, self.q = mpmath.eigsy(mpmath.matrix(a.double().tolist()))
            top = max(abs(v) for v in values)
            self.values = [
                mpmath.mpf(0) if null is not None and v <= null * top else v for v in values
            ]
        self.pinv = null is not None

    def value(self, f, x):
        if self.pinv and x == 0:
            return mpmath.mpf(0)
        if f.kind == M.Kind.LOG:
            return mpmath.log(x)
        if f.kind == M.Kind.EXP:
            return mpmath.exp(x)
        return mpmath.power(x, int(f.exponent) if f.exponent % 1 == 0 else mpmath.mpf(f.exponent))

    def slope(self, f, x):
        if self.pinv and x == 0:
            return mpmath.mpf(0)
        if f.kind == M.Kind.LOG:
            return 1 / x
        if f.kind == M.Kind.EXP:
            return mpmath.exp(x)
        p = mpmath.mpf(f.exponent)
        return p * mpmath.power(x, p - 1) if p else mpmath.mpf(0)

    def difference(self, f, x, y):
        if abs(x - y) <= mpmath.mpf(10) ** -30 * max(abs(x), abs(y)):
            return self.slope(f, x)
        return (self.value(f, x) - self.value(f, y)) / (x - y)

    def of(self, f):
        with mpmath.workdps(60):
            x = self.q * mpmath.diag([self.value(f, v) for v in self.values]) * self.q.T
        return torch.tensor(x.tolist(), dtype=torch.float64)

    def gradient(self, f, g):
        with mpmath.workdps(60):
            g = mpmath.matrix(((g + g.mT) / 2).double().tolist())
            r = self.q.T * g * self.q
            for i in range(self.n):
                for j in range(self.n):
                    r[i, j] *= self.difference(f, self.values[i], self.values[j])
            x = self.q * r * self.q.T
        return torch.tensor(x.tolist(), dtype=torch.float64)


def relative(x, reference):
    return float((x.double() - reference).norm() / reference.norm())


def test_statuses_are_those_of_python():
    here = {k: v for k, v in vars(checks.Status).items() if k.isupper()}
    assert here == {status.name: int(status) for status in M.Status}


SPECTRA = {
    "ties": [2.0, 2.0, 2.0, 0.5, 0.5],
    "an ulp apart": [1.0, 1.0 + 2e-16, 1.0 + 4e-16, 1.0 - 1e-16, 0.3],
    "near": [1.0, 1.0 + 1e-7, 1.0 - 1e-4, 1.01, 1.3, 2.0, 2.7, 7.3],
    "log": [10.0**-k for k in range(6)],
    "one": [3.0],
}


@DTYPES
@functions
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_values_and_gradients(name, spectrum, dtype):
    f, unit = FUNCTIONS[name], torch.finfo(dtype).eps
    values = torch.tensor(SPECTRA[spectrum], dtype=torch.float64)
    a, n = matrix_of(values, dtype), len(values)
    g = torch.randn(n, n, dtype=dtype, generator=seeded(1))
    limits = thresholds(n, dtype)
    (found,), eigenvalues, vectors, info = solve(a[None], [f], limits)
    assert info.tolist() == [[0, 1, 1]]
    x = gradient(eigenvalues, vectors, [(f, g[None])], limits)
    assert torch.equal(found, found.mT)
    assert torch.equal(x, x.mT)
    reference = Reference(a)
    # The conditions: of the function, and of its derivative, by a relative change of A.
    steep = max(SPECTRA[spectrum]) / min(SPECTRA[spectrum])
    smooth = name in REAL or name in ("power 1.5", "power 0.9")
    cond = 1.0 if smooth or dtype == torch.float32 else steep
    bound = 4 * unit * (1 + 0.1 * cond)
    expected = reference.of(f)
    if expected.norm() > 0.1:  # log of a matrix near I has no digits to compare
        assert relative(found[0], expected) < bound
    if name == "power 0":
        assert not x.any()
    else:
        assert relative(x[0], reference.gradient(f, g)) < bound
