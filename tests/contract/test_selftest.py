"""The self-test of the fused GPU kernels passes correct kernels and catches faults."""

import importlib
import warnings

import pytest
import torch

import matroot
from matroot import schedules, spd
from matroot.kernels import TORCH, TRITON, passes, triton
from matroot.kernels.triton import launch, operators, selftest
from matroot.kernels.triton.launch import Variant
from matroot.kernels.triton.passes import ByKernels
from matroot.methods import Minimax, Pade
from matroot.request import Request
from matroot.roots import BOTH
from matroot.testing import random_spd, relative_error

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
INTERPRETED = DEVICE.type == "cpu"
pytestmark = [
    pytest.mark.skipif(not triton._INSTALLED, reason="Triton is not installed"),
    # Elimination overflows where there is no factor: GPUs are silent, NumPy warns.
    pytest.mark.filterwarnings("ignore:.*(overflow|invalid value) encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
    pytest.mark.skipif(
        INTERPRETED and not launch.interpreting(), reason="TRITON_INTERPRET is not 1"
    ),
]
# Faults are planted in the Python code that the interpreter runs.
planted = pytest.mark.skipif(not INTERPRETED, reason="compiled kernels cannot be patched")
KERNELS = [
    ("minimax", (False,)),
    ("minimax", (True,)),
    ("published", (False, True)),
    ("published", (False, False)),
    ("lyapunov", (False,)),
    ("lyapunov", (True,)),
]


@pytest.fixture(autouse=True)
def nothing_tested_yet(monkeypatch):
    monkeypatch.setattr(selftest, "_VERDICTS", {})
    monkeypatch.delenv("MATROOT_TRITON", raising=False)


def verdict(kernel, option=(False,), size=16):
    return selftest._verdict(Variant(kernel, size, option, "tf32x3"), DEVICE)


def kernels_of(name):
    """The module of a kernel, where a fault is planted."""
    module = "gradients" if name == "lyapunov" else name
    return importlib.import_module(f"matroot.kernels.triton.{module}")


@pytest.mark.parametrize("size", [16, *(pytest.param(n, marks=pytest.mark.slow) for n in (32, 64))])
@pytest.mark.parametrize(("kernel", "option"), KERNELS, ids=str)
def test_right_kernels_pass(kernel, option, size):
    found = verdict(kernel, option, size)
    assert found.passed, found.said
    # Far within the tolerance, so that another compiler's rounding does not fail.
    assert int(found.said.split("%")[0].split()[-1]) < 40


@pytest.mark.parametrize("double", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_passes_between_products_pass(double, monkeypatch):
    precision = launch.DOUBLE if double else "tf32x3"
    found = selftest._verdict(Variant("passes", 40, (), precision), DEVICE)
    assert found.passed, found.said
    right = ByKernels.combination
    monkeypatch.setattr(
        ByKernels, "combination", lambda self, d, c, *rest: right(self, d, c * 1.001, *rest)
    )
    assert not selftest._verdict(Variant("passes", 40, (), precision), DEVICE).passed


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["minimax", "lyapunov"])
def test_plain_tf32_passes_by_its_own_measure(kernel):
    found = selftest._verdict(Variant(kernel, 16, (False,), "tf32"), DEVICE)
    assert found.passed, found.said


@planted
@pytest.mark.parametrize("kernel", ["minimax", "published", "lyapunov"])
def test_a_wrong_coefficient_is_caught(kernel, monkeypatch):
    module = kernels_of(kernel)
    right = module.plus_diagonal
    monkeypatch.setattr(module, "plus_diagonal", lambda a, d, n: right(a, d * 1.001, n))
    option = (False, True) if kernel == "published" else (False,)
    assert not verdict(kernel, option).passed


@planted
def test_a_doubling_too_few_is_caught(monkeypatch):
    import triton.language as tl

    from matroot.kernels.triton import gradients

    monkeypatch.setattr(gradients, "DOUBLINGS", tl.constexpr(gradients.DOUBLINGS.value - 1))
    assert "gradient" in verdict("lyapunov").said


@planted
def test_a_swapped_operand_is_caught(monkeypatch):
    """All iterates are symmetric and commute: the order of a product only affects stability."""
    import triton.language as tl

    from matroot.kernels.triton import gradients, minimax, published

    right = minimax.product
    with monkeypatch.context() as patch:
        patch.setattr(minimax, "product", lambda a, b, N, P: right(a, tl.trans(b), N, P))
        assert not verdict("minimax").passed
    with monkeypatch.context() as patch:
        solved = published.solved
        patch.setattr(published, "solved", lambda a, b, *rest: solved(b, a, *rest))
        assert not verdict("published", (False, True)).passed
    with monkeypatch.context() as patch:
        # B (C B − B C) in place of B (B C − C B).
        minus = tl.trans
        patch.setattr(gradients.tl, "trans", lambda x: -minus(x))
        assert not verdict("lyapunov", (True,)).passed


@planted
@pytest.mark.parametrize("kernel", ["minimax", "lyapunov"])
def test_what_a_lost_barrier_leaves_is_caught(kernel, monkeypatch):
    """Occasionally a matrix is read before it is written, and the old content is used."""
    module = kernels_of(kernel)
    right, held = module.put, []

    def stale(a, memory):
        held.append(right(a, memory))
        return held[-2] if len(held) % 23 == 0 else held[-1]

    monkeypatch.setattr(module, "put", stale)
    assert not verdict(kernel).passed


@pytest.mark.parametrize("bit", [13, 17, 22, 23, 26, 30, 31])
@pytest.mark.parametrize("place", [(0, 0, 0), (640, 3, 2), (1500, 5, 1), (3328, 15, 0), (64, 0, 3)])
def test_a_flip_in_the_table_is_caught(bit, place, monkeypatch):
    table = schedules.schedules(5, torch.float32, DEVICE).clone()
    assert schedules.checksum(table) == schedules.CHECKSUM
    bits = table.view(torch.int32)
    bits[place] = bits[place] ^ (1 << bit if bit < 31 else -(2**31))
    assert schedules.checksum(table) != schedules.CHECKSUM


def test_the_test_looks_at_the_table_that_is_used(monkeypatch):
    table = schedules.schedules(5, torch.float32, DEVICE).clone()
    table[1500, 5, 1] *= 1.002
    monkeypatch.setitem(schedules._MADE, (5, torch.float32, DEVICE), table)
    assert verdict("minimax").said.startswith("the table of steps")


def test_the_checksum_stands_on_digits_that_all_machines_agree_on():
    """Another order of arithmetic changes the table slightly: no entry is at the edge of a step."""
    table = schedules.schedules(5, torch.float64, torch.device("cpu"))
    for change in (1e-9, -1e-9):
        assert schedules.checksum((table * (1 + change)).float()) == schedules.CHECKSUM


@planted
def test_a_failure_is_said_once_and_operations_take_over(monkeypatch):
    from matroot.kernels.triton import minimax

    right = minimax.plus_diagonal
    monkeypatch.setattr(minimax, "plus_diagonal", lambda a, d, n: right(a, d * 1.01, n))
    a = random_spd(6, 2, cond=20, dtype=torch.float32).to(DEVICE)
    with pytest.warns(RuntimeWarning, match="'minimax' for matrices up to 16×16 fails its self-t"):
        root = matroot.sqrtm(a, method="minimax", backend="triton")
    expected = matroot.sqrtm(a, method="minimax", backend="torch")
    assert relative_error(root, expected).max() < 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = matroot.sqrtm(a, method="minimax", backend="triton")
    assert torch.equal(root, again)
    said = str(matroot.explain(a, backend="triton"))
    assert "self-test of 'minimax' up to 16×16 FAILED: " in said


@planted
def test_what_a_compiler_raises_is_a_failure(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(operators, "run", broken)
    passed, said = verdict("minimax")
    assert not passed
    assert said.startswith("RuntimeError: no such instruction (Triton ")


def test_once_for_each_program(monkeypatch):
    tested = []

    def passing(variant, device):
        tested.append(variant)
        return selftest.Verdict(True, "as it should be")

    monkeypatch.setattr(selftest, "_verdict", passing)
    a = random_spd(5, 2, cond=5, dtype=torch.float32).to(DEVICE)
    for x in (a, a[:1], torch.cat([a, a]), random_spd(9, 1, dtype=torch.float32).to(DEVICE)):
        x = x.clone().requires_grad_()
        matroot.sqrtm(x, method="minimax", backend="triton").sum().backward()
        matroot.inv_sqrtm(x, method="minimax", backend="triton", eps=0.1).sum().backward()
    assert [(v.kernel, v.size, v.option) for v in tested] == [
        ("minimax", 16, (False,)),
        ("lyapunov", 16, (False,)),
    ]
    matroot.sqrtm(a, method=Pade(3), backend="triton")
    matroot.sqrtm(a.half(), method=Minimax(), backend="triton")
    assert [(v.kernel, v.option) for v in tested[2:]] == [
        ("published", (False, True)),
        ("minimax", (True,)),
    ]
    said = str(matroot.explain(a, backend="triton"))
    assert "self-test of 'lyapunov' up to 16×16 passed: as it should be" in said


def test_the_switch(monkeypatch):
    tested = []
    monkeypatch.setattr(
        selftest, "_verdict", lambda *key: tested.append(key) or selftest.Verdict(False, "broken")
    )
    a = random_spd(5, 2, cond=5, dtype=torch.float32).to(DEVICE)

    def root():
        return matroot.sqrtm(a, method="minimax", backend="triton")

    monkeypatch.setenv("MATROOT_TRITON", "on")
    fused = root()
    assert not tested
    assert "without a self-test (MATROOT_TRITON=on)" in str(matroot.explain(a, backend="triton"))
    monkeypatch.setenv("MATROOT_TRITON", "test")
    with pytest.warns(RuntimeWarning, match="broken"):
        assert relative_error(root(), fused).max() < 1e-6
    assert len(tested) == 1
    # Despite the failed test, for debugging.
    monkeypatch.setenv("MATROOT_TRITON", "on")
    assert torch.equal(root(), fused)
    monkeypatch.setenv("MATROOT_TRITON", "off")
    assert TRITON.declines(a) == "MATROOT_TRITON=off"
    with pytest.raises(ValueError, match="cannot run this: MATROOT_TRITON=off"):
        root()
    monkeypatch.setenv("MATROOT_TRITON", "yes")
    with pytest.raises(ValueError, match=r"MATROOT_TRITON must be 'off' .* got 'yes'"):
        root()


@planted
def test_tested_while_torch_compile_traces(monkeypatch):
    """The test runs before a program is compiled, which contains operations or a kernel."""
    seen = []

    def passing(variant, device):
        x = torch.eye(2, device=device) @ torch.ones(2, 2, device=device)
        seen.append((variant.kernel, float(x.sum())))
        return selftest.Verdict(True, "")

    monkeypatch.setattr(selftest, "_verdict", passing)
    a = random_spd(5, 2, cond=5, dtype=torch.float32).to(DEVICE).requires_grad_()
    compiled = torch.compile(
        lambda a: matroot.sqrtm(a, method="minimax", backend="triton"),
        fullgraph=True,
        backend="aot_eager",
    )
    root = compiled(a)
    root.sum().backward()
    assert seen == [("minimax", 4.0), ("lyapunov", 4.0)]
    torch.testing.assert_close(root, matroot.sqrtm(a, backend="torch"), rtol=1e-5, atol=1e-6)


def test_capture_before_any_use_is_an_error(monkeypatch):
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="run it once before the capture, forward and backward"):
        selftest.passed("minimax", 16, (False,), "tf32x3", device)
    with pytest.raises(RuntimeError, match="a warm-up"):
        schedules.schedules(5, torch.float64, torch.device("cuda", 1))
    with pytest.raises(RuntimeError, match="a warm-up"):
        schedules.steps_of_five(torch.float32, device, 1e-6, None, 7, 1e5, None)
    with pytest.raises(RuntimeError, match="a warm-up"):
        passes.constant((1.25,), torch.float32, device)
    selftest._VERDICTS[Variant("minimax", 16, (False,), "tf32x3"), device] = selftest.Verdict(
        True, ""
    )
    assert selftest.passed("minimax", 16, (False,), "tf32x3", device)


@pytest.mark.gpu
def test_capture_after_a_warm_up():
    a = random_spd(5, 2, cond=5, dtype=torch.float32).to(DEVICE).requires_grad_()

    def both():
        root = matroot.sqrtm(a)
        return root, torch.autograd.grad(root.sum(), a)[0]

    expected = both()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both()
    graph.replay()
    assert all(map(torch.equal, found, expected))


class OnGpu:
    """The part of a tensor that the choice of a backend reads, on a GPU that need not exist."""

    def __init__(self, n, dtype=torch.float32):
        self.device, self.dtype, self.shape = torch.device("cuda", 0), dtype, (2, n, n)

    def is_complex(self):
        return self.dtype.is_complex


def test_auto_takes_the_kernels_on_a_gpu(monkeypatch):
    monkeypatch.setattr(triton.context, "stands_for_others", lambda a: False)
    monkeypatch.setattr(triton, "_GPU_DECLINES", {torch.device("cuda", 0): None})
    select = matroot.kernels.select
    for a in (OnGpu(128), OnGpu(64, torch.bfloat16), OnGpu(129), OnGpu(8, torch.float64)):
        assert select("auto", a)[0] is TRITON
    # One kernel for a whole call up to n = 128 in single precision; else those between products.
    fits = []
    for a in (OnGpu(128), OnGpu(129), OnGpu(8, torch.float64)):
        request = Request(
            BOTH, Minimax(), None, 0.0, "raise", a.dtype, spd.computing_dtype(a.dtype)
        )
        fits.append(triton._unfit("tf32x3", request, a) is None)
    assert fits == [True, False, False]
    assert select("auto", OnGpu(8, torch.complex64)) == (TORCH,)
    monkeypatch.setenv("MATROOT_TRITON", "off")
    assert select("auto", OnGpu(8)) == (TORCH,)


@planted
@pytest.mark.parametrize(
    "transform", ["vmap", "grad", "vmap of grad", "inference", "default device"]
)
def test_whatever_is_going_on_around(transform):
    """The first call may be inside a transform, or where tensors are created on another device."""
    a = random_spd(5, 2, cond=5, dtype=torch.float32).to(DEVICE)

    def total(a):
        return matroot.sqrtm(a, method="minimax", backend="triton").sum()

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*fails its self-test")
        if transform == "vmap":
            torch.func.vmap(total)(a)
        elif transform == "grad":
            torch.func.grad(total)(a)
        elif transform == "vmap of grad":
            torch.func.vmap(torch.func.grad(total))(a)
        elif transform == "inference":
            with torch.inference_mode():
                total(a)
        else:
            with torch.device("meta"):
                total(a)
    assert selftest._VERDICTS
    assert all(verdict.passed for verdict in selftest._VERDICTS.values())
