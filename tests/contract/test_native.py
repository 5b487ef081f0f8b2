"""What only the compiled kernels have: products, caches, threads, forks, instruction sets.

That they do what the reference does is for test_backends.py, and all that every method must do for
the other contract tests.
"""

import os
import subprocess
import sys
import threading
from contextlib import nullcontext

import pytest
import torch

import matroot
from matroot import spd
from matroot.gradients import Spectral
from matroot.kernels import NATIVE, native
from matroot.methods import Eigh
from matroot.testing import exact, exact_gradient, random_spd, relative_error, tolerance

built = pytest.mark.skipif(not native.tasks.available(), reason="no C++ compiler at installation")
SIZES = [1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 48, 64, 65, 100, 129, 255, 256]
FUNCTIONS = {"sqrt": matroot.sqrtm, "inv_sqrt": matroot.inv_sqrtm}


def run(a, g, quantity, method, rule, *, backend="native", **options):
    x = a.clone().requires_grad_()
    root = FUNCTIONS[quantity](x, method=method, gradient=rule, backend=backend, **options)
    return root.detach(), torch.autograd.grad(root, x, g)[0]


def test_built_where_it_is_required():
    if os.environ.get("MATROOT_NATIVE") == "require":
        assert native.tasks.available()


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [*SIZES, *range(18, 30), 47, 49, 80, 96])
def test_products(n, dtype):
    a, b = torch.randn(2, 5, n, n, dtype=dtype, generator=torch.Generator().manual_seed(n))
    c = torch.full_like(a, torch.nan)
    for symmetric in (False, True):
        right = a.mT.contiguous() if symmetric else b
        task = native.tasks.MODULE.ProductTask(
            batch=native.tasks.MODULE.Batch(
                is_double=dtype == torch.float64, count=5, n=n, threads=2
            ),
            a=a.data_ptr(),
            b=right.data_ptr(),
            c=c.data_ptr(),
            symmetric=symmetric,
            repeats=2,
        )
        native.tasks.MODULE.product(task)
        expected = a.double() @ right.double()
        assert relative_error(c, expected).max() < 4 * torch.finfo(dtype).eps
        assert not symmetric or torch.equal(c, c.mT)


@built
@pytest.mark.parametrize("quantity", FUNCTIONS)
@pytest.mark.parametrize("n", [4, 9, 24, 40])
def test_pade_is_as_accurate_as_by_cholesky(n, quantity):
    """A few large eigenvalues: an inverse by sweeping alone is ten times as far off."""
    a = random_spd(n, 100, cond=1e4, spectrum="outlier", dtype=torch.float32)
    golden = FUNCTIONS[quantity](a.double(), method="pade", backend="torch")
    found, expected = (
        relative_error(FUNCTIONS[quantity](a, method="pade", backend=backend), golden)
        for backend in ("native", "torch")
    )
    assert found.max() < 2 * expected.max()


@built
@pytest.mark.parametrize("method", ["eigh", "minimax", "pade"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 25])
def test_neighbours_without_a_root_change_no_bit(n, dtype, method):
    """In one vector with them: small matrices, and some so large that the sum of two overflows."""
    good = random_spd(n, 20, cond=10.0, dtype=dtype)
    large = good[1::2] / good[1::2].amax((-2, -1), keepdim=True)
    good[1::2] = large * (0.9 * torch.finfo(dtype).max)
    places = [2, 9, 10]
    for eps in (0.0, 1.0):
        alone = matroot.sqrtm_ex(good, method=method, backend="native", eps=eps)
        for wrong in (torch.nan, -torch.inf, torch.finfo(dtype).max):
            a = good.clone()
            a[places, 0, -1] = -wrong  # asymmetric, but for n = 1, which is negative then
            found = matroot.sqrtm_ex(a, method=method, backend="native", eps=eps)
            a[places], alone.sqrt[places] = good[places], found.sqrt[places]
            assert found.sqrt[places].isnan().all()
            torch.testing.assert_close(found.sqrt, alone.sqrt, rtol=0, atol=0, equal_nan=True)


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [2, 8, 30, 60])
def test_thresholds_to_a_twentieth(n, dtype):
    """Of diagonal matrices, whose eigenvalues are exact."""
    a = torch.eye(n, dtype=dtype)
    unit, null = torch.finfo(dtype).eps, spd.null_share(n, dtype)
    for function, limit, wrong in (
        (matroot.sqrtm, -n * unit, "indefinite"),
        (matroot.inv_sqrtm, null, "singular"),
    ):
        for factor in (0.95, 1.05):
            a[-1, -1] = factor * limit
            is_wrong = factor < 1 if limit > 0 else factor > 1
            fails = pytest.raises(torch.linalg.LinAlgError, match=wrong)
            with fails if is_wrong else nullcontext():
                assert function(a, method="eigh", backend="native").isfinite().all()
    with pytest.raises(torch.linalg.LinAlgError, match="singular"):
        matroot.inv_sqrtm(torch.zeros(n, n, dtype=dtype), method="eigh", backend="native")


@built
@pytest.mark.parametrize("n", [3, 40, 514])
def test_matrices_near_overflow(n):
    """Where the sum of two entries overflows; large ones are scaled by another kernel."""
    a = random_spd(n, 1, cond=10.0, dtype=torch.float64)
    a = a / a.amax() * (0.9 * torch.finfo(torch.float64).max)
    found = matroot.sqrtm_ex(a, method="eigh", backend="native")
    assert found.converged.all()
    assert found.residual.max() < 1e-13


@built
def test_what_declines_says_why():
    with pytest.raises(ValueError, match="real numbers"):
        matroot.sqrtm(torch.eye(3, dtype=torch.complex64), backend="native")
    assert "CPU" in NATIVE.declines(torch.empty(2, 2, device="meta"))
    for backend in ("auto", "native"):
        text = str(matroot.explain(torch.eye(3), backend=backend))
        assert "by the compiled kernels" in text
        assert "forward   native" in text
    assert "forward   torch" in str(matroot.explain(torch.eye(3, dtype=torch.complex64)))


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [257, 300])
@pytest.mark.parametrize("largest", [256, 512], ids=["by LAPACK", "by kernels"])
def test_beyond_the_caches(n, dtype, largest, monkeypatch):
    """Either by the kernels, or by LAPACK and PyTorch's products with kernels between them."""
    monkeypatch.setattr(native.tasks, "LARGEST_BY_EIGENPAIRS", dict.fromkeys([dtype], largest))
    a = random_spd(n, 2, 3, cond=1e2, dtype=dtype)
    g = torch.randn(a.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for quantity in FUNCTIONS:
        root, gradient = run(a, g, quantity, Eigh(), Spectral())
        assert relative_error(root, exact(a, quantity)).max() < tolerance(dtype, 1e2, quantity)
        error = relative_error(gradient, exact_gradient(a, g, quantity)).max()
        assert error < tolerance(dtype, 1e2, "gradient")
        assert torch.equal(root, root.mT)
        assert torch.equal(gradient, gradient.mT)
    a[0, 1], a[1, 0], a[1, 2, :5], a[1, 2, :, :5] = torch.nan, -a[1, 0], 0, 0
    a[0, 2, 0, n - 1] += 1
    for quantity, function in FUNCTIONS.items():
        found = function(a, eps=0.0, check_errors=False, backend="native").isnan().flatten(2).all(2)
        singular = quantity == "inv_sqrt"
        assert found.tolist() == [[False, True, True], [True, False, singular]]
    ridged = matroot.inv_sqrtm(4.0**30 * a[1, 2], eps=4.0**30 * 0.1)
    shifted = exact(a[1, 2].double() + 0.1 * torch.eye(n).double(), "inv_sqrt") * 2.0**-30
    assert relative_error(ridged, shifted) < tolerance(dtype, 1e2, "inv_sqrt")


@built
@pytest.mark.parametrize("quantity", FUNCTIONS)
def test_what_backward_keeps(quantity):
    """The root, the eigenvectors and the eigenvalues: two matrices a matrix."""
    a = random_spd(16, 10, cond=5, dtype=torch.float32).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        FUNCTIONS[quantity](a)
    assert sum(t.numel() for t in kept) == 10 * (2 * 16 * 16 + 16)


@built
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_large_batch():
    code = (
        SOLVE
        + """
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
assert good()
a = torch.eye(8).expand(100_000, 8, 8).contiguous()
before = peak()
with torch.no_grad():
    s = matroot.sqrtm(a)
print((peak() - before) / (a.numel() * a.element_size()))
"""
    )
    assert float(python(code)) <= 2


@built
def test_in_the_workers_of_a_data_loader():
    # In a process of its own: JAX, which other tests may have started here, warns of any fork.
    code = """
import torch, matroot
class Whitened(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, i):
        return matroot.inv_sqrtm((i + 1.0) * torch.eye(24).expand(40, 24, 24))
whiten = Whitened()
assert whiten[0].isfinite().all()  # The parent's threads have run before it forks.
loader = torch.utils.data.DataLoader(
    whiten, num_workers=2, timeout=60, multiprocessing_context="fork"
)
for i, found in enumerate(loader):
    expected = (i + 1) ** -0.5 * torch.eye(24).expand(1, 40, 24, 24)
    torch.testing.assert_close(found, expected)
print(i + 1)
"""
    assert python(code) == "8"


@built
def test_eight_threads_at_once():
    a = random_spd(24, 40, cond=100, dtype=torch.float32)
    expected = matroot.sqrtm(a, backend="native")
    wrong = []

    def work():
        for _ in range(20):
            if not torch.equal(matroot.sqrtm(a, backend="native"), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    return done.stdout.strip()


SOLVE = """
import os, torch, matroot
torch.set_num_threads(2)
a = torch.diag(torch.arange(1.0, 21)).expand(64, 20, 20)
def good():
    s = matroot.sqrtm(a, backend="native")
    return bool((s @ s - a).abs().max() < 1e-4)
"""


@built
def test_after_a_bare_fork():
    # PyTorch's own parallel operations hang in such a child, so it makes none.
    code = (
        SOLVE
        + """
assert good()
child = os.fork()
if child == 0:
    s = matroot.sqrtm(a, backend="native")
    found = s[63].diagonal().tolist()
    os._exit(0 if all(abs(x * x - i) < 1e-4 for i, x in enumerate(found, 1)) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    )
    assert python(code, OMP_NUM_THREADS="2") == "0"


@built
def test_loaded_in_a_fork():
    """The parent's threads have run, and the kernels are there only in the child."""
    code = """
import os, signal, torch, matroot
torch.set_num_threads(2)
a = 4 * torch.eye(300)
(2 * torch.randn(4_000_000)).sin()
child = os.fork()
if child == 0:
    signal.alarm(40)  # PyTorch's own parallel operations would hang.
    os._exit(0 if matroot.sqrtm(a)[0, 0].item() == 2 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert python(code, OMP_NUM_THREADS="2") == "0"


@built
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa):
    code = (
        SOLVE
        + """
from matroot.kernels import _native as m
from matroot.methods import Eigh, Minimax, Pade, Taylor
a = torch.diag(torch.linspace(1, 4, 40)) + 0.1 * torch.sin(torch.arange(1600.0)).view(40, 40)
a = (a + a.mT)[None]
def same(method, dtype):
    s, t = (matroot.sqrtm(a.to(dtype), method=method, backend=b) for b in ("native", "torch"))
    return bool((s - t).abs().max() < 1e4 * torch.finfo(dtype).eps)
methods = Eigh(), Minimax(), Pade(), Taylor()
ok = all(same(x, dtype) for x in methods for dtype in (torch.float32, torch.float64))
print(m.instruction_set(), good() and ok)
"""
    )
    name, verdict = python(code, MATROOT_ISA=isa).split()
    assert verdict == "True"
    # What the machine lacks falls back to the baseline.
    assert name in (isa, "baseline")


def test_an_instruction_set_that_is_not_there_is_told():
    def load(isa):
        return subprocess.run(
            [sys.executable, "-c", "import matroot.kernels.native.tasks"],
            env={**os.environ, "MATROOT_ISA": isa},
            capture_output=True,
            text=True,
        )

    found = load("AVX2")
    assert found.returncode != 0
    assert "MATROOT_ISA must be one of 'baseline', 'avx2', 'avx512', got 'AVX2'" in found.stderr
    for isa in ("", "avx512") if native.tasks.available() else ():
        found = load(isa)
        assert found.returncode == 0
        lacking = isa and native.tasks.MODULE.instruction_set() != isa
        assert ("kernels run in 'baseline'" in found.stderr) == bool(lacking)
