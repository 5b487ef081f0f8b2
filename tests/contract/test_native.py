"""The compiled kernels do what the reference does, on every size and in every use."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import matroot
from matroot.gradients import Lyapunov, Spectral
from matroot.kernels import NATIVE, native
from matroot.methods import Eigh, Minimax, Pade, Taylor
from matroot.testing import exact, exact_gradient, random_spd, relative_error, tolerance

built = pytest.mark.skipif(not native.tasks.available(), reason="no C++ compiler at installation")
SIZES = [1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 48, 64, 65, 100, 129, 255, 256]
FUNCTIONS = {"sqrt": matroot.sqrtm, "inv_sqrt": matroot.inv_sqrtm}
PAIRS = [(Eigh(), Spectral()), (Minimax(), Lyapunov())]
kernels = pytest.mark.parametrize(("method", "rule"), PAIRS, ids=["eigh", "minimax"])
PUBLISHED = [
    *((Taylor(degree), steps) for degree, steps in ((1, 1), (2, 8), (5, 8), (10, 8), (16, 12))),
    *((Pade(order), steps) for order, steps in ((1, 12), (2, 1), (3, 8), (4, None), (5, 8))),
]
all_kernels = pytest.mark.parametrize(
    ("method", "rule"),
    [*PAIRS, (Taylor(), Lyapunov(steps=8)), (Pade(), Lyapunov(steps=8))],
    ids=["eigh", "minimax", "taylor", "pade"],
)


def run(a, g, quantity, method, rule, *, backend="native", **options):
    x = a.clone().requires_grad_()
    root = FUNCTIONS[quantity](x, method=method, gradient=rule, backend=backend, **options)
    return root.detach(), torch.autograd.grad(root, x, g)[0]


def test_built_where_it_is_required():
    if os.environ.get("MATROOT_NATIVE") == "require":
        assert native.tasks.available()


@built
@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("cond", [1e1, 1e4])
def test_values_and_gradients(n, dtype, cond, method, rule):
    a = random_spd(n, 3 if n > 64 else 19, cond=cond, dtype=dtype)
    g = torch.randn(a.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    # Fresh memory is filled with NaN: what is not written shows.
    torch.use_deterministic_algorithms(True)
    try:
        found = {quantity: run(a, g, quantity, method, rule) for quantity in FUNCTIONS}
        x = a.clone().requires_grad_()
        s, z = matroot.sqrtm_pair(x, method=method, gradient=rule, backend="native")
        (of_both,) = torch.autograd.grad((s, z), x, (g, g))
    finally:
        torch.use_deterministic_algorithms(False)
    for quantity, (root, gradient) in found.items():
        assert relative_error(root, exact(a, quantity)).max() < tolerance(dtype, cond, quantity)
        error = relative_error(gradient, exact_gradient(a, g, quantity)).max()
        assert error < tolerance(dtype, cond, "gradient")
        assert torch.equal(root, root.mT)
        assert torch.equal(gradient, gradient.mT)
    assert torch.equal(s, found["sqrt"][0])
    assert torch.equal(z, found["inv_sqrt"][0])
    expected = found["sqrt"][1] + found["inv_sqrt"][1]
    assert relative_error(of_both, expected).max() < tolerance(dtype, cond, "gradient")


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 16, 17, 24, 25, 33, 64, 100])
@pytest.mark.parametrize("cond", [1e1, 1e4])
@pytest.mark.parametrize(("method", "steps"), PUBLISHED, ids=str)
def test_published_values_and_gradients(n, dtype, cond, method, steps):
    a = random_spd(n, 3 if n > 64 else 19, cond=cond, dtype=dtype)
    g = torch.randn(a.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    rule = Lyapunov(steps=steps)
    # Powers lose a factor cond(P) = 4^m in the reference, too.
    bound = tolerance(dtype, max(cond, 4.0 ** getattr(method, "order", 0)), "gradient")
    torch.use_deterministic_algorithms(True)
    try:
        found = {quantity: run(a, g, quantity, method, rule) for quantity in FUNCTIONS}
        pair = matroot.sqrtm_pair(a, method=method, gradient=rule, backend="native")
        z = matroot.inv_sqrtm(a, method=method, gradient="unrolled", backend="native")
    finally:
        torch.use_deterministic_algorithms(False)
    for i, (quantity, (root, gradient)) in enumerate(found.items()):
        expected = run(a, g, quantity, method, rule, backend="torch")
        assert relative_error(root, expected[0]).max() < bound
        assert relative_error(gradient, expected[1]).max() < bound
        assert torch.equal(root, root.mT)
        assert torch.equal(gradient, gradient.mT)
        assert torch.equal(pair[i], root)
    assert torch.equal(z, pair[1])


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
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", [Taylor(), Pade()], ids=str)
def test_published_in_half_precision(dtype, method):
    a = random_spd(12, 8, cond=20, dtype=torch.float32)
    a[3, :4], a[3, :, :4] = 0, 0
    a[5] = random_spd(12, cond=1e5, dtype=torch.float32)  # below zero once rounded
    roots = [
        matroot.sqrtm(a.to(dtype), method=method, backend=backend).float()
        for backend in ("native", "torch")
    ]
    assert relative_error(*roots).max() < 2 * torch.finfo(dtype).eps


@built
@pytest.mark.parametrize("method", [Taylor(), Pade()], ids=str)
@pytest.mark.parametrize("n", [8, 40])
def test_published_tells_what_the_reference_tells(n, method):
    a = random_spd(n, 8, cond=20, dtype=torch.float32)
    a[1], a[2], a[3] = 0, 1, -a[3]
    a[4, 0, 1] += 1
    a[5] = torch.nan
    a[6] = random_spd(n, cond=1e6, dtype=torch.float32)
    for root in ("sqrt", "inv_sqrt", "both"):
        found, expected = (
            matroot.sqrtm_ex(a, root=root, method=method, backend=backend)
            for backend in ("native", "torch")
        )
        assert torch.equal(found.steps, expected.steps)
        assert torch.equal(found.converged, expected.converged)
        for x, y in zip(found[:2], expected[:2], strict=True):
            assert x is y is None or torch.equal(x.isnan(), y.isnan())


@built
@pytest.mark.parametrize("n", [8, 40])
def test_steps_where_the_root_is_singular(n):
    a = random_spd(n, 4, cond=20, spectrum="half_zero")
    a[1], a[2] = 0, random_spd(n, cond=20)
    g = torch.randn(a.shape, dtype=a.dtype, generator=torch.Generator().manual_seed(0))
    found, expected = (
        run(a, g, "sqrt", Eigh(), Lyapunov(steps=8), backend=backend)[1]
        for backend in ("native", "torch")
    )
    # The null space is known to the square root of rounding.
    assert relative_error(found, expected).max() < 1e-6
    assert not found[1].any()


@built
@all_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [3, 8, 17, 40, 130])
def test_bits_do_not_depend_on_batch_or_position(n, dtype, method, rule):
    a = torch.cat([random_spd(n, 20, cond=k, dtype=dtype) for k in (3.0, 1e3, 1e5)])
    g = torch.randn(a.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    root, gradient = run(a, g, "sqrt", method, rule)
    for rows in ([0], [1], [19], [33], [59], [59, 3, 40], list(range(7, 40))):
        few = run(a[rows], g[rows], "sqrt", method, rule)
        assert torch.equal(few[0], root[rows])
        assert torch.equal(few[1], gradient[rows])


@built
@all_kernels
@pytest.mark.parametrize("quantity", FUNCTIONS)
@pytest.mark.parametrize("n", [8, 20])
def test_bad_and_singular_matrices_beside_good_ones(n, quantity, method, rule):
    a = random_spd(n, 64, cond=20, dtype=torch.float32)
    g = torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    regular, _ = run(a, g, quantity, method, rule)
    a[5], a[6], a[7] = torch.nan, -a[6], torch.inf
    a[8, 0, 1] += 1
    a[9, :3], a[9, :, :3] = 0, 0  # singular
    options = {"method": method, "check_errors": False}
    found = FUNCTIONS[quantity](a, backend="native", **options)
    expected = FUNCTIONS[quantity](a, backend="torch", **options)
    assert torch.equal(found.isnan(), expected.isnan())
    good = [i for i in range(64) if i not in range(5, 10)]
    assert torch.equal(found[good], regular[good])
    if quantity == "sqrt":
        torch.testing.assert_close(found[9], expected[9], rtol=1e-4, atol=1e-4)
        gradients = []
        for backend in ("native", "torch"):
            x = a[[0, 9, 10]].clone().requires_grad_()
            root = matroot.sqrtm(x, backend=backend, **options)
            gradients.append(torch.autograd.grad(root, x, g[:3])[0])
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@built
@kernels
def test_scales_eps_and_strides(method, rule):
    a = random_spd(6, 4, cond=50, dtype=torch.float32)
    root = matroot.sqrtm(a, method=method, backend="native")
    for power in (-60, -2, 2, 60):
        scaled = matroot.sqrtm(a * 2.0**power, method=method, backend="native")
        assert torch.equal(scaled, root * 2.0 ** (power // 2))
    ridged = matroot.inv_sqrtm(a, eps=0.1, method=method, backend="native")
    shifted = exact(a.double() + 0.1 * torch.eye(6), "inv_sqrt")
    assert relative_error(ridged, shifted).max() < 1e-6
    wide = torch.randn(4, 6, 12)
    wide[..., ::2] = a
    assert torch.equal(matroot.sqrtm(wide[..., ::2], method=method, backend="native"), root)
    expanded = a[:1].expand(3, 2, 6, 6)
    found = matroot.sqrtm(expanded, method=method, backend="native")
    assert torch.equal(found[2, 1], root[0])


@built
@kernels
def test_transforms_and_higher_derivatives(method, rule):
    a = random_spd(4, 3, cond=5)

    def root(a):
        return matroot.sqrtm((a + a.mT) / 2, method=method, backend="native")

    x = a.clone().requires_grad_()
    assert torch.autograd.gradcheck(root, x, check_batched_grad=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(root, x)
    torch.testing.assert_close(torch.func.vmap(root)(a), root(a))

    def total(a):
        return root(a).sin().sum()

    reference = torch.func.hessian(lambda a: matroot.sqrtm((a + a.mT) / 2).sin().sum())(a[0])
    torch.testing.assert_close(torch.func.hessian(total)(a[0]), reference)
    y = matroot.sqrtm(x, method=method, gradient="unrolled", backend="native")
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()


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
def test_beyond_the_caches(n, dtype):
    """LAPACK's eigensolver and PyTorch's products, with kernels between them."""
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
        timeout=60,
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


@built
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_runtime():
    code = (
        SOLVE
        + """
assert good()
names = {line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.split("/")[-1]}
print(len(names))
"""
    )
    assert python(code) == "1"
