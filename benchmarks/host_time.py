"""What a call of the fused GPU kernels costs on the host; needs no GPU.

python benchmarks/host_time.py            microseconds and Python function calls
python benchmarks/host_time.py --calls    the functions that are called, the most frequent first

Eager forward and backward of 64×48×48 through ``sqrtm``, with a driver that launches nothing. What
remains is what a GPU would wait for where its own work is shorter: arguments checked, a plan made,
memory allocated, Triton's and autograd's own ways. PyTorch's allocator of CUDA memory and the
driver's launch (some 3 µs each) come on top.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

os.environ.pop("TRITON_INTERPRET", None)
os.environ.pop("MATROOT_TRITON", None)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
import triton
import triton.language as tl
import typer
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver

import matroot
from matroot import context
from matroot.kernels import triton as kernels
from matroot.kernels.triton import launch, selftest

TARGET = GPUTarget("cuda", 90, 32)


class _Utilities:
    """What Triton asks before it launches, as an H100 would answer."""

    def load_binary(self, *_: Any) -> tuple[int, ...]:
        return 0, 0, 0, 0, 1024

    def unload_module(self, *_: Any) -> None:
        pass

    def get_device_properties(self, _: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}


class _Driver:
    """Launches nothing, and counts."""

    utils = _Utilities()
    launches = 0

    def launcher_cls(self, *_: Any) -> Callable[..., None]:
        def launcher(*_: Any) -> None:
            _Driver.launches += 1

        return launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return TARGET


@triton.jit
def _nothing(x_ptr):  # type: ignore[no-untyped-def]  # Triton compiles it.
    tl.store(x_ptr, 0.0)


def _on_a_gpu_that_is_not_there() -> None:
    """From here on CPU tensors take the path that CUDA tensors do."""
    compiled = triton.compile(
        ASTSource(fn=_nothing, signature={"x_ptr": "*fp32"}, constexprs={}), target=TARGET
    )
    driver.set_active(_Driver())
    kernels.interpreting = lambda: True
    context.host_reads_are_free = lambda _: False
    selftest._verdict = lambda *_: selftest.Verdict(True, "not run")

    class First:
        def __init__(self, name: str) -> None:
            self.arg_names = real(name).arg_names

        def __getitem__(self, _: Any) -> Callable[..., Any]:
            return lambda *_, **__: compiled

    real = launch._kernel
    launch._kernel = First


def calls(function: Callable[[], object]) -> Counter[str]:
    """Python functions that it calls: the call events of sys.setprofile."""
    found: Counter[str] = Counter()

    def seen(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            place = Path(frame.f_code.co_filename)
            found["/".join((*place.parts[-2:], frame.f_code.co_name))] += 1

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        function()
    finally:
        sys.setprofile(before)
    return found


def forward_and_backward() -> Callable[[], object]:
    """The call that is measured; the fused path is taken, or it raises."""
    _on_a_gpu_that_is_not_there()
    a = torch.eye(48).repeat(64, 1, 1).requires_grad_()
    g = torch.ones(64, 48, 48)

    def run() -> object:
        root = matroot.sqrtm(a, method="minimax", gradient="lyapunov", backend="triton")
        return torch.autograd.grad(root, a, g)

    for _ in range(20):
        run()
    before = _Driver.launches
    run()
    if _Driver.launches - before != 2:
        raise SystemExit(f"host_time.py: {_Driver.launches - before} launches, not 1 + 1")
    return run


def main(
    repeats: Annotated[int, typer.Option(help="Times the call is timed.")] = 3000,
    by_function: Annotated[bool, typer.Option("--calls", help="List the functions.")] = False,
) -> None:
    """What a call of the fused GPU kernels costs on the host; needs no GPU."""
    torch.set_num_threads(1)
    run = forward_and_backward()
    found = calls(run)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    low, middle = sorted(times)[repeats // 20], sorted(times)[repeats // 2]
    print(
        f"forward and backward: {1e6 * middle:.0f} µs (median; 5 % take less than {1e6 * low:.0f})"
        f", {found.total()} Python function calls"
    )
    if by_function:
        print("\n".join(f"{count:4} {name}" for name, count in found.most_common()))


if __name__ == "__main__":
    typer.run(main)
