"""What only the fused GPU kernels have: compiled programs, CUDA graphs, choice, compilation.

In Triton's interpreter, or on a GPU. That they do what the reference does is for test_backends.py.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

import matroot
from matroot.gradients import Lyapunov, Spectral
from matroot.kernels import TRITON, triton
from matroot.kernels.triton import launch, operators
from matroot.methods import Eigh, Minimax, NewtonSchulz, Pade
from matroot.testing import (
    by_eigh,
    exact,
    exact_gradient,
    random_spd,
    relative_error,
    tolerance,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.skipif(not triton._INSTALLED, reason="Triton is not installed"),
    # Elimination of what has no factor overflows, of which GPUs say nothing and NumPy does.
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning"),
    # The interpreter of Triton 3.6 and before takes arrays of one number for numbers.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
    pytest.mark.skipif(
        DEVICE == "cpu" and not launch.interpreting(), reason="TRITON_INTERPRET is not 1"
    ),
]
FUNCTIONS = {"sqrt": matroot.sqrtm, "inv_sqrt": matroot.inv_sqrtm}


def cotangent(a):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(a.shape, dtype=a.dtype, generator=generator).to(a.device)


def run(a, g, quantity, method="minimax", rule="auto", *, backend="triton", **options):
    x = a.clone().requires_grad_()
    root = FUNCTIONS[quantity](x, method=method, gradient=rule, backend=backend, **options)
    return root.detach(), torch.autograd.grad(root, x, g)[0]


@pytest.fixture(autouse=True)
def fresh_memory_is_nan(monkeypatch):
    if DEVICE == "cpu":
        # The interpreter's self-tests take seconds: see test_selftest.py.
        monkeypatch.setenv("MATROOT_TRITON", "on")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("spectrum", ["log", "clustered", "outlier"])
@pytest.mark.parametrize(
    ("n", "cond"),
    [
        *((16, cond) for cond in (1e2, 1e4, 1e6)),
        (48, 1e4),
        pytest.param(48, 1e2, marks=pytest.mark.slow),
        pytest.param(48, 1e6, marks=pytest.mark.slow),
    ],
)
def test_more_accurate_than_eigh(n, cond, spectrum):
    a = random_spd(n, 2, cond=cond, spectrum=spectrum, dtype=torch.float32).to(DEVICE)
    g = cotangent(a)
    for quantity in FUNCTIONS:
        # LAPACK's eigh, the same one with and without a GPU.
        by_hand = (x.to(DEVICE) for x in by_eigh(a.cpu(), g.cpu(), quantity))
        found = run(a, g, quantity)
        golden = exact(a, quantity), exact_gradient(a, g, quantity)
        for x, other, truth in zip(found, by_hand, golden, strict=True):
            assert relative_error(x, truth).max() < 1.1 * relative_error(other, truth).max()


def test_the_published_gradient_of_an_accurate_root():
    a = random_spd(12, 2, cond=10, dtype=torch.float32).to(DEVICE)
    g = cotangent(a)
    for quantity in FUNCTIONS:
        found, expected = (
            run(a, g, quantity, "minimax", Lyapunov(steps=8), backend=backend)[1]
            for backend in ("triton", "torch")
        )
        assert relative_error(found, expected).max() < tolerance(a.dtype, 10, "gradient")


@pytest.mark.parametrize("method", [Minimax(), Pade()], ids=str)
def test_compiled_programs_hold_the_kernels(method):
    a = random_spd(5, 2, cond=5, dtype=torch.float32).to(DEVICE)
    operators = []

    def compiler(graph, inputs):
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    def root(a):
        return matroot.inv_sqrtm(a, method=method, backend="triton")

    x = a.clone().requires_grad_()
    compiled = torch.compile(root, fullgraph=True, backend=aot_autograd(fw_compiler=compiler))
    found = compiled(x)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    expected = run(a, torch.ones_like(a), "inv_sqrt", method)
    assert torch.equal(found, expected[0])
    assert torch.equal(gradient, expected[1])
    kernel = "minimax" if isinstance(method, Minimax) else "published"
    assert {f"matroot.{kernel}.default", "matroot.lyapunov.default"} <= set(operators)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("n", [12, 32, 64, 128])
def test_a_cuda_graph_holds_a_root_and_its_gradient(n):
    a = random_spd(n, 6, cond=1e3, dtype=torch.float32).to(DEVICE)
    g, stream = cotangent(a), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(a, g, "sqrt")  # Compiles the kernels and makes their tables.
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            found = run(a, g, "sqrt")
    torch.cuda.synchronize()
    a.copy_(random_spd(n, 6, cond=1e4, seed=1, dtype=torch.float32))
    expected = run(a, g, "sqrt")
    for _ in range(3):
        graph.replay()
        assert all(map(torch.equal, found, expected))


def test_the_operators_keep_what_they_promise_torch():
    a = random_spd(3, 2, cond=5, dtype=torch.float32).to(DEVICE)
    told = (a, torch.float32, 0.0, True, True, False)
    precision = "tf32x3"
    of_minimax = (*told, launch.BOUNDS, 1e-6, 16, precision)
    torch.library.opcheck(operators.OPERATORS["minimax"], of_minimax, rtol=0, atol=0)
    published = (*told, launch.NORM, [1.0, -0.5], [1.0, 0.5], False, precision)
    torch.library.opcheck(operators.OPERATORS["published"], published)
    torch.library.opcheck(
        operators.OPERATORS["lyapunov"], (a, None, None, a, None, False, 0, precision)
    )


def test_what_goes_to_the_reference():
    """Other methods and rules run by PyTorch's operations on the same backend."""
    a = random_spd(5, 2, cond=5, dtype=torch.float32).to(DEVICE)
    pairs = [
        (Eigh(), Spectral()),
        (Minimax(max_cond=10), Lyapunov()),
        (Minimax(step_degree=3), Lyapunov()),
        (Minimax(), Spectral()),
        (NewtonSchulz(16), Lyapunov()),
        (Pade(8), Lyapunov()),
        (Minimax(), matroot.gradients.Unrolled()),
    ]
    g = cotangent(a)
    for method, rule in pairs:
        found = run(a, g, "sqrt", method, rule)
        expected = run(a, g, "sqrt", method, rule, backend="torch")
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
    pseudo = matroot.inv_sqrtm(a, singular="pinv", backend="triton")
    torch.testing.assert_close(pseudo, matroot.inv_sqrtm(a, method="eigh"), rtol=1e-4, atol=1e-5)


def test_plain_tf32_only_when_asked_for():
    a = random_spd(5, 2, cond=5, dtype=torch.float32).to(DEVICE)
    root = matroot.sqrtm(a, backend="triton-tf32")
    assert relative_error(root, exact(a)).max() < 1e-2
    assert matroot.explain(a).backend != "triton-tf32"


def test_who_takes_what_and_why(monkeypatch):
    a = torch.eye(3, device=DEVICE)
    explanation = matroot.explain(a, backend="triton")
    assert (explanation.method, explanation.gradient) == (Minimax(), Lyapunov())
    # By default on a GPU, and never by the interpreter.
    assert (matroot.explain(a).backend == "triton") == (DEVICE == "cuda")
    assert "backend 'triton' takes the tensor" in str(explanation)
    for tensor, why in (
        (torch.eye(3, dtype=torch.complex64, device=DEVICE), "real numbers, not torch.complex64"),
        (torch.eye(3, device="meta"), "on a CUDA GPU, not on meta"),
    ):
        with pytest.raises(ValueError, match=why):
            matroot.explain(tensor, backend="triton")
    monkeypatch.setattr(triton, "_INSTALLED", False)
    assert TRITON.declines(a) == "Triton is not installed"
    with pytest.raises(ValueError, match="known: 'auto', 'torch', 'native', 'triton'"):
        matroot.sqrtm(a, backend="tritn")


def test_old_gpus_decline(monkeypatch):
    class Old:
        device = torch.device("cuda:7")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(triton, "_GPU_DECLINES", {})
    assert "compute capability 8.0, this GPU has 7.5" in TRITON.declines(Old())


def test_without_triton_there_is_the_rest():
    program = (
        "import sys; sys.modules['triton'] = None; import torch, matroot; "
        "print(matroot.sqrtm(torch.eye(2)).sum()); "
        "from matroot.kernels import TRITON; print(TRITON.declines(torch.eye(2)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "tensor(2.)" in done.stdout, done.stderr
    assert "Triton is not installed" in done.stdout


GPU = Path(__file__).parents[2] / "benchmarks/gpu.py"


@pytest.mark.parametrize(
    "capability", [90, *(pytest.param(c, marks=pytest.mark.slow) for c in (80, 100))]
)
def test_kernels_compile_for_gpus(capability):
    """Through Triton's compiler and NVIDIA's assembler, which need no GPU: the smallest ones."""
    found = find_spec("triton")
    tools = Path(found.origin).parent / "backends/nvidia/bin"
    if capability >= 100 and not (tools / "ptxas-blackwell").exists():
        pytest.skip("this Triton brings no assembler for it")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(GPU), "compile", str(capability), "--size", "16"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count(" registers") == 5, done.stdout
