"""What only the fused kernels in float64 have, and whitening, which goes by them.

In Triton's interpreter, or on a GPU. That they do what the reference does is for test_backends.py.
"""

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
from matroot.methods import Minimax
from matroot.nn import DecorrelatedBatchNorm1d, functional
from matroot.request import Request
from matroot.roots import BOTH
from matroot.testing import exact, random_spd, relative_error

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
INTERPRETED = DEVICE.type == "cpu"
pytestmark = [
    pytest.mark.skipif(not triton._INSTALLED, reason="Triton is not installed"),
    # Elimination of what has no factor overflows, of which GPUs say nothing and NumPy does.
    pytest.mark.filterwarnings("ignore:.*(overflow|invalid value) encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
    pytest.mark.skipif(INTERPRETED and not interpreting(), reason="TRITON_INTERPRET is not 1"),
]
# A fault is planted, and operations are counted, in the Python that the interpreter runs.
interpreted = pytest.mark.skipif(not INTERPRETED, reason="compiled kernels cannot be patched")
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


@pytest.mark.parametrize("n", [5, 33])
def test_numbers_that_float32_does_not_hold(n):
    """A ridge that is rounded to float32 would be off by 1e-8; entries are beyond its range."""
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
    # Far within what is promised, so that another compiler's rounding is no failure.
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
    """What the choice of a backend asks a tensor, on a GPU that need not be there."""

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
    # What comes in double stays with the products of a library, as every public call.
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
        [1e30, 1.0, 0.0],  # Regular with the ridges, but beside 1e30 nothing else counts.
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
    # As where numbers cannot be looked at.
    monkeypatch.setattr(matroot.context, "host_reads_are_free", lambda a: False)
    monkeypatch.setattr(plan, "_PLANS", {})
    expected = whitened(a.cpu(), eps)
    assert torch.equal(found.isnan(), expected.isnan())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.0, equal_nan=True)


def whitened(a, eps):
    """Without an error for what is bad: as on a GPU, where nobody looks."""
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
    # 677 and 191 by PyTorch's operations; now 50 and 3, most of them to choose the ridges.
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
