"""The fused kernels in float64, in Triton's interpreter or on a GPU; whitening uses them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import matroot
from matroot import call, plan
from matroot.gradients import Lyapunov
from matroot.kernels import TRITON, TRITON_DOUBLE, triton
from matroot.kernels.triton import selftest
from matroot.kernels.triton.launch import DOUBLE, Variant, interpreting
from matroot.methods import Eigh, Minimax, Pade, Taylor
from matroot.nn import DecorrelatedBatchNorm1d, functional
from matroot.request import Request
from matroot.roots import BOTH
from matroot.testing import exact, exact_gradient, random_spd, relative_error, tolerance

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
INTERPRETED = DEVICE.type == "cpu"
pytestmark = [
    pytest.mark.skipif(not triton._INSTALLED, reason="Triton is not installed"),
    # Elimination overflows where there is no factor: GPUs are silent, NumPy warns.
    pytest.mark.filterwarnings("ignore:.*(overflow|invalid value) encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
    pytest.mark.skipif(INTERPRETED and not interpreting(), reason="TRITON_INTERPRET is not 1"),
]
# Faults are planted, and operations counted, in the Python code that the interpreter runs.
interpreted = pytest.mark.skipif(not INTERPRETED, reason="compiled kernels cannot be patched")
FUNCTIONS = {"sqrt": matroot.sqrtm, "inv_sqrt": matroot.inv_sqrtm}
SIZES = [1, 5, 17, 33, *(pytest.param(n, marks=pytest.mark.slow) for n in (64, 100, 128))]
KERNELS = [
    ("minimax", (False,)),
    ("lyapunov", (False,)),
    *(
        pytest.param(*kernel, marks=pytest.mark.slow)
        for kernel in (
            ("published", (False, True)),
            ("published", (False, False)),
            ("lyapunov", (True,)),
        )
    ),
]


@pytest.fixture(autouse=True)
def untested_and_with_nan_for_memory(monkeypatch):
    if INTERPRETED:
        # The interpreter's self-tests take seconds.
        monkeypatch.setenv("MATROOT_TRITON", "on")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def cotangent(a):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(a.shape, dtype=a.dtype, generator=generator).to(a.device)


def run(a, g, quantity, method="minimax", rule="auto", *, backend="triton-double", **options):
    x = a.clone().requires_grad_()
    root = FUNCTIONS[quantity](x, method=method, gradient=rule, backend=backend, **options)
    return root.detach(), torch.autograd.grad(root, x, g)[0]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("cond", [1e2, 1e12, pytest.param(1e7, marks=pytest.mark.slow)])
def test_values_and_gradients(n, cond):
    a = random_spd(n, 2, cond=cond).to(DEVICE)
    g = cotangent(a)
    x = a.clone().requires_grad_()
    roots = matroot.sqrtm_pair(x, method="minimax", backend="triton-double")
    (of_both,) = torch.autograd.grad(roots, x, (g, g))
    expected = 0
    for quantity, of_pair in zip(FUNCTIONS, roots, strict=True):
        root, gradient = run(a, g, quantity)
        assert relative_error(root, exact(a, quantity)).max() < tolerance(a.dtype, cond, quantity)
        error = relative_error(gradient, exact_gradient(a, g, quantity)).max()
        assert error < tolerance(a.dtype, cond, "gradient")
        assert torch.equal(root, root.mT)
        assert torch.equal(gradient, gradient.mT)
        assert torch.equal(root, of_pair)
        expected = expected + gradient
    assert relative_error(of_both, expected).max() < tolerance(a.dtype, cond, "gradient")


@pytest.mark.parametrize(("method", "steps"), [(Taylor(3), None), (Pade(5), 8)], ids=str)
def test_published(method, steps):
    a = random_spd(5, 2, cond=20.0).to(DEVICE)
    for quantity in FUNCTIONS:
        found, expected = (
            run(a, cotangent(a), quantity, method, Lyapunov(steps=steps), backend=backend)
            for backend in ("triton-double", "torch")
        )
        for x, y in zip(found, expected, strict=True):
            # Powers lose a factor cond(P) = 4^m in the reference, too.
            assert relative_error(x, y).max() < tolerance(a.dtype, 4.0**5, "gradient")


@pytest.mark.parametrize("n", [5, 33])
def test_numbers_that_float32_does_not_hold(n):
    """A ridge rounded to float32 would be off by 1e-8; entries exceed the range of float32."""
    a = random_spd(n, 1, cond=1e6).to(DEVICE)
    identity = torch.eye(n, dtype=a.dtype, device=DEVICE)
    for scale in (1e-250, 1.0, 1e250):
        eps = 0.1 * scale
        ridged = exact(a + 0.1 * identity, "inv_sqrt") * scale**-0.5
        found = matroot.inv_sqrtm(a * scale, eps=eps, method="minimax", backend="triton-double")
        assert relative_error(found, ridged).max() < 1e-13
    zero = torch.zeros_like(a)
    found = matroot.sqrtm(zero, eps=0.1, method="minimax", backend="triton-double")
    torch.testing.assert_close(found, 0.1**0.5 * identity[None], rtol=1e-15, atol=0.0)


@pytest.mark.parametrize("quantity", FUNCTIONS)
@pytest.mark.parametrize("n", [8, 33])
def test_bad_and_singular_matrices_beside_good_ones(n, quantity):
    a = random_spd(n, 8, cond=20)
    a[1], a[2], a[3] = torch.nan, -a[2], torch.inf
    a[4, 0, 1] += 1
    a[5, :3], a[5, :, :3] = 0, 0  # singular
    a[6] = 0
    a = a.to(DEVICE)
    found, expected = (
        matroot.sqrtm_ex(a, root=quantity, method="minimax", backend=name)
        for name in ("triton-double", "torch")
    )
    x, y = getattr(found, quantity), getattr(expected, quantity)
    zero = quantity == "inv_sqrt"
    assert x.isnan().all((1, 2)).tolist() == [False, *4 * [True], zero, zero, False]
    assert torch.equal(x.isnan(), y.isnan())
    assert relative_error(x[[0, 7]], y[[0, 7]]).max() < 1e-13
    if quantity == "sqrt":
        torch.testing.assert_close(x[[5, 6]], y[[5, 6]], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n", [6, 33])
def test_gradient_where_the_root_is_singular(n):
    """Minimum norm: 0 on null × null space; at A = 0 altogether."""
    a = random_spd(n, 3, cond=20)
    a[0, : n // 2], a[0, :, : n // 2] = 0, 0
    a[1] = 0
    g = cotangent(a)
    _, gradient = run(a.to(DEVICE), g.to(DEVICE), "sqrt", Minimax())
    _, expected = run(a, g, "sqrt", Eigh(), Lyapunov(), backend="torch")
    assert not gradient[1].any()
    # The error of the null space is the square root of rounding.
    assert relative_error(gradient, expected).max() < 1e-7


@pytest.mark.parametrize("n", [5, 33])
def test_bits_do_not_depend_on_batch_or_position(n):
    a = torch.cat([random_spd(n, 2, cond=k) for k in (3.0, 1e11)]).to(DEVICE)
    g = cotangent(a)
    root, gradient = run(a, g, "inv_sqrt")
    for rows in ([0], [3, 0]):
        few = run(a[rows], g[rows], "inv_sqrt")
        assert torch.equal(few[0], root[rows])
        assert torch.equal(few[1], gradient[rows])


def test_who_takes_what_and_why(monkeypatch):
    a = torch.eye(3, dtype=torch.float64, device=DEVICE)
    explanation = matroot.explain(a, backend="triton-double")
    assert (explanation.method, explanation.gradient) == (Minimax(), Lyapunov())
    assert matroot.explain(a).backend != "triton-double"
    assert "if asked for: float64 is slow on many GPUs" in str(explanation)
    for tensor, why in (
        (torch.eye(129, dtype=torch.float64, device=DEVICE), "up to 128×128, not n = 129"),
        (torch.eye(3, device=DEVICE), "compute in float64, not in torch.float32"),
        (torch.eye(3, dtype=torch.complex128, device=DEVICE), "real numbers, not torch.complex128"),
    ):
        with pytest.raises(ValueError, match=why):
            matroot.explain(tensor, backend="triton-double")

    class Small:
        shared_memory_per_block_optin = 99 * 1024

    monkeypatch.setattr(triton, "_GPU_DECLINES", {torch.device("cuda", 7): None})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Small())
    monkeypatch.setattr(triton, "_ROOM", {})
    assert "up to 64×64, not n = 65" in TRITON_DOUBLE.declines(OnGpu(65, index=7))


@pytest.mark.parametrize("size", [16, *(pytest.param(n, marks=pytest.mark.slow) for n in (32, 64))])
@pytest.mark.parametrize(("kernel", "option"), KERNELS, ids=str)
def test_right_kernels_pass_the_self_test(kernel, option, size):
    found = selftest._verdict(Variant(kernel, size, option, DOUBLE), DEVICE)
    assert found.passed, found.said
    # Far within the tolerance, so that another compiler's rounding does not fail.
    assert int(found.said.split("%")[0].split()[-1]) < 40


@interpreted
@pytest.mark.parametrize("kernel", ["minimax", "lyapunov"])
def test_digits_of_single_precision_are_caught(kernel, monkeypatch):
    from matroot.kernels.triton import gradients, minimax

    module = gradients if kernel == "lyapunov" else minimax
    right = module.plus_diagonal
    monkeypatch.setattr(module, "plus_diagonal", lambda a, d, n: right(a, d * (1 + 1e-8), n))
    found = selftest._verdict(Variant(kernel, 16, (False,), DOUBLE), DEVICE)
    assert not found.passed
    assert "is off by" in found.said


@interpreted
def test_a_doubling_too_few_is_caught(monkeypatch):
    import triton.language as tl

    from matroot.kernels.triton import gradients

    fewer = tl.constexpr(gradients.DOUBLINGS_IN_DOUBLE.value - 1)
    monkeypatch.setattr(gradients, "DOUBLINGS_IN_DOUBLE", fewer)
    found = selftest._verdict(Variant("lyapunov", 16, (False,), DOUBLE), DEVICE)
    assert "gradient" in found.said


class OnGpu:
    """The part of a tensor that the choice of a backend reads, on a GPU that need not exist."""

    def __init__(self, n, dtype=torch.float64, index=0):
        self.device, self.dtype, self.shape = torch.device("cuda", index), dtype, (2, n, n)

    def is_complex(self):
        return self.dtype.is_complex


def test_whitening_in_single_precision_asks_for_them_on_a_gpu(monkeypatch):
    monkeypatch.setattr(triton.context, "stands_for_others", lambda a: False)
    monkeypatch.setattr(triton, "_GPU_DECLINES", {torch.device("cuda", 0): None})
    monkeypatch.setattr(triton, "_ROOM", {torch.device("cuda", 0): 128})
    assert functional._fused(OnGpu(64, torch.float32), OnGpu(64)) is TRITON_DOUBLE
    assert functional._fused(OnGpu(64, torch.bfloat16), OnGpu(64)) is TRITON_DOUBLE
    # Input in double precision stays with a library's products, as in every public call.
    assert functional._fused(OnGpu(64), OnGpu(64)) is None
    assert matroot.kernels.select("auto", OnGpu(64))[0] is TRITON
    request = Request(BOTH, Minimax(), None, 0.0, "raise", torch.float64, torch.float64)
    assert "do not compute in torch.float64" in triton._unfit("tf32x3", request, OnGpu(64))
    assert functional._fused(OnGpu(129, torch.float32), OnGpu(129)) is None
    on_cpu = torch.eye(3)
    assert functional._fused(on_cpu, on_cpu.double()) is None
    monkeypatch.setenv("MATROOT_TRITON", "off")
    assert functional._fused(OnGpu(64, torch.float32), OnGpu(64)) is None


@pytest.fixture
def whitening_by_kernels(monkeypatch):
    """As on a GPU, also where there is none."""
    monkeypatch.setattr(functional, "_fused", lambda covariance, wide: TRITON_DOUBLE)


def far_apart(n, *batch, decades=12.0):
    """Covariances in float32 of features whose variances are that far apart."""
    correlations = random_spd(n, *batch, cond=20)
    spread = 10.0 ** (-torch.linspace(0, decades / 2, n, dtype=torch.float64))
    return (correlations * spread[:, None] * spread).float()


@pytest.mark.usefixtures("whitening_by_kernels")
@pytest.mark.parametrize("n", [2, 5, 17, 33])
def test_whitening_of_features_far_apart(n):
    a = far_apart(n, 2)
    g = cotangent(a)
    found, expected = [], []
    for results, device in ((found, DEVICE), (expected, torch.device("cpu"))):
        with pytest.MonkeyPatch.context() as patch:
            if results is expected:
                patch.setattr(functional, "_fused", lambda covariance, wide: None)
            x = a.to(device).requires_grad_()
            root = functional.inverse_root(x, 0.0)
            assert root.dtype == torch.float32
            results += [root.detach().cpu(), torch.autograd.grad(root, x, g.to(device))[0].cpu()]
    assert relative_error(found[0], expected[0]).max() < 1e-6
    assert relative_error(found[1], expected[1]).max() < 1e-5
    # Each feature in its own units: none is lost beside the others.
    units = a.diagonal(dim1=-2, dim2=-1).sqrt()
    for x, y in zip(found[:1], expected[:1], strict=True):
        x, y = (z * units[..., :, None] * units[..., None, :] for z in (x, y))
        assert relative_error(x, y).max() < 1e-5


@pytest.mark.usefixtures("whitening_by_kernels")
@pytest.mark.parametrize(
    "variances",
    [
        [1.0, 1e-12],
        [1e30, 1.0, 0.0],  # Regular with the ridges, but beside 1e30 all else is rounding.
        [1.0, 1e-14, 1e-16, 1e-18, 0.0],
        [0.0, 0.0],
        [1.0, torch.nan],
        [1.0, -1.0],
    ],
)
@pytest.mark.parametrize("eps", [0.0, 1e-20, 1e-5])
def test_whitening_of_hard_covariances(variances, eps, monkeypatch):
    a = torch.diag_embed(torch.tensor([variances])).to(DEVICE)
    found = functional.inverse_root(a, eps).cpu() if not INTERPRETED else whitened(a, eps)
    monkeypatch.setattr(functional, "_fused", lambda covariance, wide: None)
    # As where values cannot be read.
    monkeypatch.setattr(matroot.context, "host_reads_are_free", lambda a: False)
    monkeypatch.setattr(plan, "_PLANS", {})
    expected = whitened(a.cpu(), eps)
    assert torch.equal(found.isnan(), expected.isnan())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.0, equal_nan=True)


def whitened(a, eps):
    """Without errors for bad matrices, as on a GPU, where values are not read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call, "_checking", lambda *_: False)
        return functional.inverse_root(a, eps, method="minimax")


@pytest.mark.usefixtures("whitening_by_kernels")
def test_a_layer_trains_by_them():
    samples = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    samples = (samples * 10.0 ** -torch.arange(6.0)).to(DEVICE).requires_grad_()
    layer = DecorrelatedBatchNorm1d(6, eps=0.0, affine=False).to(DEVICE)
    y = layer(samples)
    # Of singular ridges 1e-6 of each variance is left.
    torch.testing.assert_close(y.T @ y / len(y), torch.eye(6, device=DEVICE), rtol=1e-4, atol=1e-4)
    assert torch.autograd.grad(y.sin().sum(), samples)[0].isfinite().all()


GPU = Path(__file__).parents[2] / "benchmarks/gpu.py"


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_gpus(capability):
    """See test_triton.py: here with float64 in the place of float32."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [str(GPU), "compile", str(capability), "--size", "16", "--double", "--jobs", "1"]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count(" registers") == 5, done.stdout


class Launches(TorchDispatchMode):
    """Counts operations that make numbers."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += not (func.is_view or "empty" in name or name in ("detach", "scalar_tensor"))
        return func(*args, **(kwargs or {}))


@interpreted
@pytest.mark.usefixtures("whitening_by_kernels")
def test_operations_of_a_forward_and_backward():
    a = far_apart(8).requires_grad_()
    with Launches() as forward:
        root = functional.inverse_root(a, 1e-5)
    g = torch.ones_like(root)
    with Launches() as backward:
        torch.autograd.grad(root, a, g)
    # 677 and 191 with PyTorch's operations; here 50 and 3, most of them to choose the ridges.
    assert forward.count <= 55
    assert backward.count <= 4


@pytest.mark.usefixtures("whitening_by_kernels")
def test_compiled_whitening():
    a = far_apart(5, 2).to(DEVICE).requires_grad_()
    compiled = torch.compile(
        lambda a: functional.inverse_root(a, 1e-5), fullgraph=True, backend="aot_eager"
    )
    found, expected = compiled(a), functional.inverse_root(a, 1e-5)
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(root.sum(), a)[0] for root in (found, expected))
    torch.testing.assert_close(*gradients)
