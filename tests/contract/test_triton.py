"""The fused GPU kernels do what the reference does: in Triton's interpreter, or on a GPU.

The interpreter runs a kernel's operations one after the other in NumPy. It shows that the
arithmetic and the addresses are right, and nothing of races, registers or speed.
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
from matroot.methods import Eigh, Minimax, NewtonSchulz, Pade, Taylor
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
# Every way to hold a matrix and to pad it: see kernels/triton/arithmetic.py.
SIZES = [1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 64, 128]
MORE_SIZES = [48, 65, 100]
PUBLISHED = [
    *((Taylor(degree), steps) for degree, steps in ((1, 1), (3, None), (10, 8))),
    *((Pade(order), steps) for order, steps in ((1, 2), (4, None), (5, 8))),
]


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


@pytest.mark.parametrize(
    ("n", "cond"),
    [
        *((n, 1e4) for n in SIZES),
        *(pytest.param(n, 1e1, marks=pytest.mark.slow) for n in SIZES),
        *(pytest.param(n, 1e4, marks=pytest.mark.slow) for n in MORE_SIZES),
    ],
)
def test_values_and_gradients(n, cond):
    a = random_spd(n, 2, cond=cond, dtype=torch.float32).to(DEVICE)
    g = cotangent(a)
    x = a.clone().requires_grad_()
    roots = matroot.sqrtm_pair(x, method="minimax", backend="triton")
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
    assert torch.equal(matroot.sqrtm(a, method="minimax", backend="triton"), roots[0])


@pytest.mark.parametrize("spectrum", ["log", "clustered", "outlier"])
@pytest.mark.parametrize("n", [16, 48])
@pytest.mark.parametrize("cond", [1e2, 1e4, 1e6])
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


@pytest.mark.parametrize("n", [1, 5, 17, 33, pytest.param(65, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("method", "steps"), PUBLISHED, ids=str)
def test_published(n, method, steps):
    cond = 20.0
    a = random_spd(n, 2, cond=cond, dtype=torch.float32).to(DEVICE)
    g, rule = cotangent(a), Lyapunov(steps=steps)
    # Powers lose a factor cond(P) = 4^m in the reference, too.
    bound = tolerance(a.dtype, max(cond, 4.0 ** getattr(method, "order", 0)), "gradient")
    pair = matroot.sqrtm_pair(a, method=method, backend="triton")
    for quantity, of_pair in zip(FUNCTIONS, pair, strict=True):
        found = run(a, g, quantity, method, rule)
        expected = run(a, g, quantity, method, rule, backend="torch")
        for x, y in zip(found, expected, strict=True):
            assert relative_error(x, y).max() < bound
            assert torch.equal(x, x.mT)
        assert torch.equal(found[0], of_pair)


def test_the_published_gradient_of_an_accurate_root():
    a = random_spd(12, 2, cond=10, dtype=torch.float32).to(DEVICE)
    g = cotangent(a)
    for quantity in FUNCTIONS:
        found, expected = (
            run(a, g, quantity, "minimax", Lyapunov(steps=8), backend=backend)[1]
            for backend in ("triton", "torch")
        )
        assert relative_error(found, expected).max() < tolerance(a.dtype, 10, "gradient")


@pytest.mark.parametrize("n", [5, 20, 40])
def test_bits_do_not_depend_on_batch_or_position(n):
    a = torch.cat([random_spd(n, 3, cond=k, dtype=torch.float32) for k in (3.0, 1e5)]).to(DEVICE)
    g = cotangent(a)
    root, gradient = run(a, g, "sqrt")
    for rows in ([0], [5], [5, 0, 3]):
        few = run(a[rows], g[rows], "sqrt")
        assert torch.equal(few[0], root[rows])
        assert torch.equal(few[1], gradient[rows])


@pytest.mark.parametrize("quantity", FUNCTIONS)
@pytest.mark.parametrize("n", [8, 40])
@pytest.mark.parametrize("method", [Minimax(), Pade(), Taylor()], ids=str)
def test_bad_and_singular_matrices_beside_good_ones(n, quantity, method):
    a = random_spd(n, 8, cond=20, dtype=torch.float32)
    a[1], a[2], a[3] = torch.nan, -a[2], torch.inf
    a[4, 0, 1] += 1
    a[5, :3], a[5, :, :3] = 0, 0  # singular
    a[6] = 0
    a = a.to(DEVICE)
    names = ("triton", "torch")
    options = {"root": quantity, "method": method}
    found, expected = (matroot.sqrtm_ex(a, backend=name, **options) for name in names)
    x, y = getattr(found, quantity), getattr(expected, quantity)
    assert torch.equal(x.isnan(), y.isnan())
    assert x.isnan().all((1, 2)).tolist() == [
        bad or (zero and quantity == "inv_sqrt")
        for bad, zero in zip([0, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 0], strict=True)
    ]
    # Powers lose a factor cond(P) = 4^m in the reference, too.
    bound = tolerance(a.dtype, max(20, 4.0 ** getattr(method, "order", 0)), "gradient")
    assert relative_error(x[[0, 7]], y[[0, 7]]).max() < bound
    if quantity == "sqrt":
        torch.testing.assert_close(x[[5, 6]], y[[5, 6]], rtol=1e-4, atol=1e-4)
    with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
        FUNCTIONS[quantity](a, method=method, backend="triton", check_errors=True)


@pytest.mark.parametrize("n", [6, 40])
@pytest.mark.parametrize("steps", [None, 8])
def test_gradient_where_the_root_is_singular(n, steps):
    """Minimum norm: 0 on null × null space; at A = 0 altogether."""
    a = random_spd(n, 3, cond=20, dtype=torch.float32)
    a[0, : n // 2], a[0, :, : n // 2] = 0, 0
    a[1] = 0
    g = cotangent(a)
    rule = Lyapunov(steps=steps)
    _, gradient = run(a.to(DEVICE), g.to(DEVICE), "sqrt", Minimax(), rule)
    _, expected = run(a.double(), g.double(), "sqrt", Eigh(), rule, backend="torch")
    assert not gradient[1].any()
    assert not gradient[0, : n // 2, : n // 2].abs().max() > 1e-4
    # The null space is known to the square root of rounding.
    assert relative_error(gradient.cpu(), expected).max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [12, 40])
@pytest.mark.parametrize("method", [Minimax(), Pade()], ids=str)
def test_half_precision(dtype, n, method):
    a = random_spd(n, 4, cond=20, dtype=torch.float32)
    a[1, :4], a[1, :, :4] = 0, 0
    # Below zero once rounded.
    a[2] = random_spd(n, cond=1e7, spectrum="clustered", dtype=torch.float32)
    a[3] = -a[3]
    a = a.to(dtype).to(DEVICE)
    assert torch.linalg.eigvalsh(a[2].double())[0] < 0
    found, expected = (
        matroot.sqrtm(a, method=method, backend=backend, check_errors=False)
        for backend in ("triton", "torch")
    )
    assert found.dtype == dtype
    assert torch.equal(found.isnan(), expected.isnan())
    assert found[3].isnan().all()
    unit = torch.finfo(dtype).eps
    assert relative_error(found[:3].float(), expected[:3].float()).max() < 2 * unit
    _, gradient = run(a[:1], cotangent(a[:1]), "sqrt", method)
    assert gradient.dtype == dtype


def test_scales_eps_and_strides():
    a = random_spd(6, 2, cond=50, dtype=torch.float32).to(DEVICE)
    options = {"method": "minimax", "backend": "triton"}
    root, inverse = matroot.sqrtm_pair(a, **options)
    for power in (-60, -2, 2, 60):
        scaled = matroot.sqrtm_pair(a * 2.0**power, **options)
        assert torch.equal(scaled[0], root * 2.0 ** (power // 2))
        assert torch.equal(scaled[1], inverse * 2.0 ** (-power // 2))
    ridged = matroot.inv_sqrtm(a, eps=0.1, **options)
    shifted = exact(a.double() + 0.1 * torch.eye(6, device=DEVICE), "inv_sqrt")
    assert relative_error(ridged, shifted).max() < 1e-6
    wide = torch.randn(2, 6, 12, device=DEVICE)
    wide[..., ::2] = a
    assert torch.equal(matroot.sqrtm(wide[..., ::2], **options), root)
    found = matroot.sqrtm(a[:1].expand(3, 2, 6, 6), **options)
    assert torch.equal(found[2, 1], root[0])
    assert matroot.sqrtm(a[:0], **options).shape == (0, 6, 6)


def test_options_of_minimax():
    a = random_spd(9, 2, cond=100, dtype=torch.float32).to(DEVICE)
    for method in (Minimax(tol=1e-2), Minimax(max_steps=2)):
        found, expected = (
            matroot.sqrtm_ex(a, root="both", method=method, backend=backend)
            for backend in ("triton", "torch")
        )
        assert torch.equal(found.steps, expected.steps)
        assert torch.equal(found.converged, expected.converged)
        for x, y in zip(found[:2], expected[:2], strict=True):
            assert relative_error(x, y).max() < 1e-5


def test_transforms_and_higher_derivatives():
    a = random_spd(4, 2, cond=5, dtype=torch.float32).to(DEVICE)

    def total(a, backend="triton"):
        root = matroot.sqrtm((a + a.mT) / 2, method="minimax", backend=backend)
        return root.sin().sum()

    calls = {
        "vmap": lambda f: torch.func.vmap(f)(a),
        "grad of vmap": lambda f: torch.func.grad(lambda a: torch.func.vmap(f)(a).sum())(a),
        "jvp": lambda f: torch.func.jvp(f, (a,), (cotangent(a),))[1],
        "hessian": lambda f: torch.func.hessian(f)(a[0]),
    }
    for name, call in calls.items():
        found, expected = call(total), call(lambda a: total(a, "torch"))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, msg=name)
    x = a.clone().requires_grad_()
    (first,) = torch.autograd.grad(total(x), x, create_graph=True)
    assert first.square().sum().backward() is None
    y = a.clone().requires_grad_()
    (other,) = torch.autograd.grad(total(y, "torch"), y, create_graph=True)
    other.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-4)


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


@pytest.mark.parametrize("capability", [80, 90, 100])
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
