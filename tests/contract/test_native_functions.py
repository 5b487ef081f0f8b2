"""The compiled kernels of powers, logarithm and exponential, and of their gradients."""

import ast
import math
import os
import subprocess
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

from matroot import spd
from matroot.kernels import native
from matroot.screen import Status

if not native.tasks.available():
    pytest.skip("no C++ compiler at installation", allow_module_level=True)
M = native.tasks.MODULE
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
    here = {k: v for k, v in vars(Status).items() if k.isupper()}
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
    steep = 1.0 if name in REAL else max(SPECTRA[spectrum]) / min(SPECTRA[spectrum])
    if name == "exp":
        steep = max(SPECTRA[spectrum])  # exp(λ(1 + δ)) = exp(λ)(1 + λδ)
    # Eigenvalues of float matrices are found in double precision.
    bound = 4 * unit * (1 + (0.3 * steep if dtype == torch.float64 else 0))
    expected = reference.of(f)
    if expected.norm() > 0.1:  # log of a matrix near I has no digits to compare
        assert relative(found[0], expected) < bound
    if name == "power 0":
        assert not x.any()
    else:
        assert relative(x[0], reference.gradient(f, g)) < bound


def weights(f, values, limits):
    """f[x_i, x_j]: the gradient with U = I and G of ones."""
    n = len(values)
    eye, ones = torch.eye(n, dtype=torch.float64)[None], torch.ones(1, n, n, dtype=torch.float64)
    return gradient(values[None], eye, [(f, ones)], limits)[0]


def units_off(found, expected):
    """The largest error, in units of rounding of each number."""
    off = [
        abs((mpmath.mpf(x) - y) / y) if y else mpmath.mpf(abs(x))
        for x, y in zip(found.flatten().tolist(), expected, strict=True)
    ]
    return float(max(off)) * 2.0**52


def clustered():
    x = [1.0]
    for k in range(28):  # gaps of 1 … 2⁻⁵², the last an ulp, and then a tie
        x.append(x[-1] * (1 + 4.0**-k))
    return [*x, x[-1]]


POINTS = {
    "log": [10.0**-k for k in range(15)],
    "clustered": clustered(),
    "tiny": [1e-60 * x for x in clustered()],
    "huge": [1e60 * x for x in clustered()],
    "far": [1e-80, 1e-30, 1e-3, 1.0, 1e3, 1e30, 1e80],
    "signed": [s * x for x in (0.3, 0.7, 1.0, 1.0 + 2e-16, 1.9) for s in (1, -1)],
}


@functions
@pytest.mark.parametrize("points", POINTS)
def test_divided_differences(name, points):
    """Each of them within 5 units, wherever the eigenvalues are."""
    f, x = FUNCTIONS[name], POINTS[points]
    if points == "signed" and name not in (*REAL, "power -1", "power -2"):
        pytest.skip("of positive eigenvalues")
    if name == "exp" and points in ("tiny", "huge", "far"):
        pytest.skip("beyond what doubles, or 60 digits, tell apart")
    limits = M.Thresholds(indefinite=-1.0)
    found = weights(f, torch.tensor(x, dtype=torch.float64), limits)
    reference = Reference.__new__(Reference)
    reference.pinv = False
    with mpmath.workdps(60):
        exact = [mpmath.mpf(v) for v in x]
        expected = [reference.difference(f, v, w) for v in exact for w in exact]
        assert units_off(found, expected) < 5
    assert torch.equal(found, found.mT)


def evaluate(f, x):
    y = poisoned(len(x), dtype=torch.float64)
    task = M.FunctionTask(
        batch=M.Batch(is_double=True, count=len(x), n=1),
        function=f,
        x=x.data_ptr(),
        y=y.data_ptr(),
    )
    M.function(task)
    return y


def ulps(found, expected):
    """Errors in units of the last place of the exact results."""
    off = []
    for y, exact in zip(found.tolist(), expected, strict=True):
        rounded = float(exact)
        if math.isinf(rounded):
            off.append(0.0 if y == rounded else math.inf)
        else:
            off.append(float(abs(mpmath.mpf(y) - exact) / mpmath.mpf(math.ulp(rounded))))
    return max(off)


def random_doubles(count, seed):
    """Positive doubles of random bits, and those where logarithms and roundings change."""
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 0x7FF0000000000000, count).view(np.float64)
    x[:200] = 1 + np.arange(-100, 100) * 2.0**-53
    x[200:400] = np.linspace(0.6, 1.6, 200)
    x[400:600] = rng.integers(1, 1 << 52, 200).view(np.float64)
    return torch.from_numpy(x)


@pytest.mark.parametrize("case", ["log", "exp", 0.25, -0.7, 1 / 3, -1.0, 3.0, 300.5, 1e-3])
def test_elementary_functions(case):
    """Within an ulp on 10⁵ random doubles in all, subnormal ones as well."""
    x = random_doubles(12_000, 0)
    if case == "log":
        f, exact = FUNCTIONS["log"], mpmath.log
    elif case == "exp":
        f, exact = FUNCTIONS["exp"], mpmath.exp
        x = torch.cat([torch.linspace(-750, 712, 6000, dtype=torch.float64), x.log() * 1e-4])
    else:
        f = M.Function(kind=M.Kind.POWER, exponent=case)
        finite = torch.linspace(-744, 709, 6000, dtype=torch.float64) / abs(case)
        x = torch.cat([x[:6000], finite.clamp(-740, 709).exp()])

        def exact(v):
            return v ** mpmath.mpf(case)

    with mpmath.workprec(140):
        assert ulps(evaluate(f, x), [exact(mpmath.mpf(v)) for v in x.tolist()]) < 1


def test_elementary_functions_at_the_edges():
    inf, nan, least, most = math.inf, math.nan, 5e-324, 1.7976931348623157e308
    expected = {
        "log": [-inf, -inf, inf, nan, nan, math.log(least), math.log(most)],
        "exp": [1, 1, inf, nan, math.exp(-1), 1, inf],
        "power 0.25": [0, 0, inf, nan, 0, least**0.25, most**0.25],
        "power -0.5": [inf, inf, 0, nan, inf, least**-0.5, most**-0.5],
        "power 3": [0, 0, inf, nan, -1, 0, inf],
        "power -2": [inf, inf, 0, nan, 1, inf, 0],
        "power 0": [1] * 7,
    }
    x = torch.tensor([0.0, -0.0, inf, nan, -1.0, least, most], dtype=torch.float64)
    for name, values in expected.items():
        wanted = torch.tensor(values, dtype=torch.float64)
        found = evaluate(FUNCTIONS[name], x)
        torch.testing.assert_close(found, wanted, rtol=1e-15, atol=0, equal_nan=True)


@DTYPES
@pytest.mark.parametrize("n", [2, 5, 8, 24, 40])
def test_null_eigenvalues(n, dtype):
    """An inverse and the logarithm need every eigenvalue, or leave the null ones out."""
    rank = n - n // 2
    values = torch.cat([torch.linspace(1.5, 3, rank), torch.zeros(n // 2)]).double()
    a = matrix_of(values, dtype)[None]
    g = torch.randn(n, n, dtype=dtype, generator=seeded(3))[None]
    for name in ("power -0.25", "power -2", "log"):
        f, real = FUNCTIONS[name], name == "power -2"
        (x,), *_, info = solve(a, [f], thresholds(n, dtype, real=real))
        assert info[0].tolist() == [Status.SINGULAR, 1, 0]
        assert x.isnan().all()
        limits = thresholds(n, dtype, real=real, pinv=True)
        (x,), eigenvalues, vectors, info = solve(a, [f], limits)
        assert info[0].tolist() == [0, 1, 1]
        reference = Reference(a[0], null=spd.null_share(n, dtype)) if n <= 8 else None
        dx = gradient(eigenvalues, vectors, [(f, g)], limits)
        assert dx.isfinite().all()
        bound = 40 * torch.finfo(dtype).eps
        if reference:
            assert relative(x[0], reference.of(f)) < bound
            assert relative(dx[0], reference.gradient(f, g[0])) < bound
    # A root's derivative is of minimum norm; of a smooth function nothing is null.
    for name, block in (("power 0.25", 0.0), ("power 1.5", 0.0), ("exp", 1.0)):
        zeros = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        found = weights(FUNCTIONS[name], zeros, thresholds(3, torch.float64, real=name == "exp"))
        assert found[:2, :2].tolist() == [[block] * 2] * 2
        torch.testing.assert_close(
            found[0, 2].item(), math.e - 1 if name == "exp" else 1.0, rtol=1e-15, atol=0
        )


@DTYPES
def test_domains(dtype):
    a = matrix_of(torch.tensor([-2.0, 0.5, 1.0], dtype=torch.float64), dtype)[None]
    for name, f in FUNCTIONS.items():
        (x,), *_, info = solve(a, [f], thresholds(3, dtype))
        assert info[0, 0] == Status.INDEFINITE
        assert x.isnan().all()
        if name in (*REAL, "power -1", "power -2"):
            (x,), values, vectors, info = solve(a, [f], thresholds(3, dtype, real=True))
            assert info[0, 0] == Status.OK
            reference = Reference(a[0])
            assert relative(x[0], reference.of(f)) < 8 * torch.finfo(dtype).eps
            if name != "power 0":
                limits = thresholds(3, dtype, real=True)
                dx = gradient(values, vectors, [(f, a)], limits)[0]
                expected = reference.gradient(f, a[0])
                assert relative(dx, expected) < 16 * torch.finfo(dtype).eps
    for name in REAL:
        zero = torch.zeros(1, 3, 3, dtype=dtype)
        (x,), *_ = solve(zero, [FUNCTIONS[name]], thresholds(3, dtype, real=True, pinv=True))
        one = name in ("exp", "power 0")
        torch.testing.assert_close(x[0], (torch.eye(3) * one).to(dtype))
    # Overflow is no error.
    (x,), *_, info = solve(
        1e4 * torch.eye(3, dtype=dtype)[None], [FUNCTIONS["exp"]], thresholds(3, dtype, real=True)
    )
    assert info[0, 0] == Status.OK
    assert not x.isfinite().all()


@DTYPES
@pytest.mark.parametrize("n", [3, 8, 24, 25, 64, 70])
def test_batches(n, dtype):
    """Bits of a matrix do not depend on its neighbours, its place, or what else is asked for."""
    many = 37
    spread = -4 * torch.rand(many, n, dtype=torch.float64, generator=seeded(n))
    a = matrix_of(10**spread, dtype)
    a[4], a[9] = torch.nan, -a[9]
    g = torch.randn(a.shape, dtype=dtype, generator=seeded(5))
    wanted = [FUNCTIONS[k] for k in ("power 0.25", "log", "exp")]
    limits = thresholds(n, dtype)
    found, values, vectors, info = solve(a, wanted, limits, threads=2)
    assert info[4, 0] == Status.NONFINITE
    assert info[9, 0] == Status.INDEFINITE
    good = [i for i in range(many) if i not in (4, 9)]
    assert all(x[[4, 9]].isnan().all() and x[good].isfinite().all() for x in found)
    dx = gradient(values, vectors, [(f, g) for f in wanted], limits, threads=2)
    assert dx[good].isfinite().all()
    for rows in ([0], [36], [20, 3, 11], good):
        for k, f in enumerate(wanted):
            (one,), some, u, _ = solve(a[rows], [f], limits)
            assert torch.equal(one, found[k][rows])
            assert torch.equal(some, values[rows])
            assert torch.equal(u, vectors[rows])
        again = gradient(some, u, [(f, g[rows]) for f in wanted], limits)
        assert torch.equal(again, dx[rows])
    parts = sum(gradient(values, vectors, [(f, g)], limits)[good].double() for f in wanted)
    error = (dx[good] - parts).norm(dim=(1, 2)) / parts.norm(dim=(1, 2))
    assert error.max() < 8 * torch.finfo(dtype).eps


@DTYPES
@pytest.mark.parametrize("n", [24, 64, 129, 256])
def test_sizes(n, dtype):
    """By LAPACK and weights in double precision; for n up to 256 as the kernels go."""
    values = torch.logspace(0, -2, n, dtype=torch.float64)
    a = matrix_of(values, dtype)
    g = torch.randn(n, n, dtype=dtype, generator=seeded(5))
    exact, q = torch.linalg.eigh(a.double())
    h = q.mT @ (g + g.mT).double() @ q / 2
    limits = thresholds(n, dtype)
    # Four products in the dtype, as in the kernel of the roots; in double also the eigenvalues'.
    units = 2 + n**0.5 / 2 if dtype == torch.float32 else 100
    bound = units * torch.finfo(dtype).eps
    for name in ("power 0.25", "log", "exp"):
        f = FUNCTIONS[name]
        (x,), found, vectors, _ = solve(a[None], [f], limits)
        y = evaluate(f, exact)
        assert relative(x[0], (q * y) @ q.mT) < bound
        expected = q @ (h * weights(f, exact, limits)) @ q.mT
        dx = gradient(found, vectors, [(f, g[None])], limits)
        assert relative(dx[0], expected) < bound
        assert torch.equal(dx, dx.mT)


@DTYPES
@pytest.mark.parametrize("power", [-100, 100])
def test_scales(power, dtype):
    """(4ᵏ A)^p = 4^(k p) A^p and log(4ᵏ A) = log A + 2k log 2 · I."""
    a = matrix_of(torch.tensor([1.0, 0.7, 0.01, 0.3], dtype=torch.float64), dtype)[None]
    limits = thresholds(4, dtype)
    wanted = [FUNCTIONS["power 0.25"], FUNCTIONS["log"]]
    (root, log), *_ = solve(a, wanted, limits)
    scale = 2.0**power
    (scaled, shifted), values, vectors, _ = solve(a * scale, wanted, limits)
    unit = torch.finfo(dtype).eps
    assert relative(scaled, (root * scale**0.25).double()) < 4 * unit
    expected = log.double() + power * math.log(2) * torch.eye(4, dtype=torch.float64)
    assert relative(shifted, expected) < 4 * unit
    dx = gradient(values, vectors, [(wanted[0], a)], limits)  # homogeneous of degree p
    # ⟨dx(G = A), A⟩ = p ⟨A^p, A⟩
    left = (dx.double() * a.double() * scale).sum()
    right = 0.25 * (scaled.double() * a.double()).sum()
    assert abs(left / right - 1) < 8 * unit
    ridge = 0.125 * scale
    (ridged,), *_ = solve(a * scale, [wanted[1]], limits, eps=ridge)
    whole = a * scale + ridge * torch.eye(4, dtype=dtype)
    assert relative(ridged, solve(whole, [wanted[1]], limits)[0][0].double()) < 8 * unit


@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_other_instruction_sets(isa):
    # Where the processor lacks one the baseline runs again.
    lacking = "ignore:MATROOT_ISA:RuntimeWarning"
    chosen = "divided_differences and (clustered or far) or elementary and (log or 0.25) or edges"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-qW", lacking, "-p", "no:xdist", "-k", chosen, __file__],
        env={**os.environ, "MATROOT_ISA": isa},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


@DTYPES
@pytest.mark.parametrize("n", [1, 17, 300])
def test_weights_of_large_matrices(n, dtype):
    """R times divided differences, in place, as the whole kernel has them."""
    values = torch.logspace(0, -3, n, dtype=torch.float64).repeat(2, 1)
    values[1] *= 3
    r = torch.randn(2, n, n, dtype=dtype, generator=seeded(0))
    limits = thresholds(n, torch.float64)
    for name in ("power 0.25", "log", "exp"):
        x, given = within(r), within(values)
        task = M.WeighTask(
            batch=M.Batch(is_double=dtype == torch.float64, count=2, n=n, threads=2),
            r=x.data_ptr(),
            values=given.data_ptr(),
            function=FUNCTIONS[name],
            thresholds=limits,
        )
        M.weigh(task)
        whole = torch.tensor([], dtype=dtype).set_(x.untyped_storage())
        assert whole[:128].isnan().all()
        assert whole[-128:].isnan().all()
        v, f = values[:, :, None], FUNCTIONS[name]
        y = torch.stack([evaluate(f, row.contiguous()) for row in values])[:, :, None]
        gap = v - v.mT
        far = gap.abs() > 0.5 * torch.maximum(v, v.mT)
        plain = (y - y.mT) / torch.where(gap == 0, 1.0, gap) * r.double()
        torch.testing.assert_close(x.double()[far], plain[far], rtol=1e-6, atol=0)
        assert not torch.equal(x, r)
        if n <= 256:
            expected = torch.stack([weights(f, row, limits) for row in values]).to(dtype) * r
            torch.testing.assert_close(x, expected, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_stub_is_of_this_module():
    """Names and fields as generated; `cmake --build build/native --target stub` makes it again."""
    stub = ast.parse((Path(native.__file__).parents[1] / "_native.pyi").read_text())
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
    names = set(classes) | {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    names |= {node.target.id for node in stub.body if isinstance(node, ast.AnnAssign)}
    assert names == {name for name in dir(M) if not name.startswith("_")}
    for name, node in classes.items():
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                fields = {arg.arg for arg in method.args.kwonlyargs}
                assert fields == {k for k in vars(getattr(M, name)) if not k.startswith("_")}
