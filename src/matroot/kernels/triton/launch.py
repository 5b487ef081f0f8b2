"""How a fused kernel is compiled and launched. Triton is imported when the first one runs."""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from matroot import context

# What a kernel for roots writes for the gradient by the Lyapunov equation, as
# gradients.Lyapunov.prepare does: nothing, bounds of the spectrum of the root, or √‖A‖_F.
NOTHING, BOUNDS, NORM = 0, 1, 2

LARGEST = 128
"""The largest n: beyond it the products of a library fill the device by themselves."""


def interpreting() -> bool:
    """Whether the kernels run in Triton's interpreter, on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class Launch(NamedTuple):
    """How a kernel runs on matrices padded to N×N.

    Attributes:
        warps: of 32 threads, for one matrix.
        resident: programs that one multiprocessor holds at once, where they need memory of their
            own; None where they do not, and each matrix has a program.
    """

    warps: int
    resident: int | None


LAUNCHES = {
    16: Launch(warps=1, resident=None),
    32: Launch(warps=2, resident=None),
    64: Launch(warps=4, resident=4),
    128: Launch(warps=8, resident=2),
}


# In float64 a matrix takes twice the registers; and layers have few matrices at a time, which more
# warps finish sooner.
DOUBLE_LAUNCHES = {
    16: Launch(warps=2, resident=None),
    32: Launch(warps=4, resident=None),
    64: Launch(warps=8, resident=2),
    128: Launch(warps=16, resident=1),
}
DOUBLE = "ieee"
"""The precision of products of float64."""


class Variant(NamedTuple):
    """One compiled program: everything that a kernel is compiled for.

    Attributes:
        kernel: ``"minimax"``, ``"published"`` or ``"lyapunov"``; in the self-test also
            ``"passes"``, those between the products of a library.
        size: N, the power of 2 that matrices are padded to.
        option: what else distinguishes the programs of a kernel: for the roots, whether the matrix
            was given in half precision (and, of ``"published"``, whether the polynomials are
            Padé's); for the gradient, whether it takes steps of the matrix sign function.
        precision: of products, as tl.dot names it; DOUBLE exactly if the matrices are float64.
    """

    kernel: str
    size: int
    option: tuple[bool, ...]
    precision: str


def size_of(n: int) -> int:
    """The N that n×n matrices are padded to."""
    # Comparisons, since n may be a symbol under torch.compile.
    return 16 if n <= 16 else 32 if n <= 32 else 64 if n <= 64 else 128


SIZES = [size_of(n) for n in range(LARGEST + 1)]  # A table for known n.


@functools.cache
def _kernel(name: str) -> Any:
    from matroot.kernels.triton import gradients, minimax, published

    found = {
        "minimax": minimax.minimax_kernel,
        "published": published.published_kernel,
        "lyapunov": gradients.lyapunov_kernel,
    }
    return found[name]


# How many matrices of memory a program needs, and the names of its options.
_NEEDS = {
    "minimax": (4, ("HALF",)),
    "published": (5, ("HALF", "PADE")),
    "lyapunov": (4, ("SIGN",)),
}

# What Triton has compiled, by variant, warps and device.
_COMPILED: dict[tuple[Variant, int, int], _Compiled] = {}


class _Compiled:
    """A program on a device, launched without Triton's search for it, which takes 20 µs.

    Integers and addresses are not specialised, so that one program serves every batch.
    """

    def __init__(self, program: Any, device: int) -> None:
        from triton import knobs
        from triton.runtime import driver

        self._program, self._device, self._knobs = program, device, knobs.runtime
        self._launch, self._function = program.run, program.function
        self._packed, self._stream = program.packed_metadata, driver.active.get_current_stream

    def __call__(self, programs: int, *told: Any) -> None:
        enter, leave = self._knobs.launch_enter_hook, self._knobs.launch_exit_hook
        # Where a profiler has set hooks, Triton launches the program and calls them.
        if enter is None or (
            not getattr(enter, "calls", enter) and not getattr(leave, "calls", leave)
        ):
            stream = self._stream(self._device)
            nothing = (None, None, None)
            self._launch(programs, 1, 1, stream, self._function, self._packed, *nothing, *told)
        else:
            self._program[programs, 1, 1](*told)


def run(variant: Variant, like: Tensor, **arguments: Any) -> None:
    """Run a kernel on a batch (..., n, n).

    Args:
        variant: the program.
        like: of the batch's shape.
        arguments: the kernel's arguments by name and in its order, without ``memory_ptr``,
            ``batch`` and ``n``, which come first, and its constants, which come last.

    Raises:
        RuntimeError: the kernel would have to be compiled while a CUDA graph is captured.
    """
    if context.pretending():
        return  # Launches are only counted.
    n, size, device = like.shape[-1], variant.size, like.device
    batch = like.numel() // n**2
    warps, resident = (DOUBLE_LAUNCHES if variant.precision == DOUBLE else LAUNCHES)[size]
    needs, options = _NEEDS[variant.kernel]
    programs, numbers = batch, 0
    if resident is not None:
        programs = min(batch, _programs(device, resident))
        numbers = programs * needs * size**2
    memory, constants = like.new_empty(numbers), (size, *variant.option, variant.precision)
    told = (memory, batch, n, *arguments.values())
    on_gpu = device.type == "cuda"
    if on_gpu and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            run(variant, like, **arguments)
        return
    key = (variant, warps, device.index if on_gpu else -1)
    compiled = _COMPILED.get(key)
    if compiled is not None:
        compiled(programs, *told, *constants)
        return
    context.refuse_capture(device)
    named = dict(zip(("N", *options, "PRECISION"), constants, strict=True))
    kernel = _kernel(variant.kernel)
    expected = ("memory_ptr", "batch", "n", *arguments, *named)
    if tuple(kernel.arg_names) != expected:
        raise TypeError(f"{variant.kernel} takes {tuple(kernel.arg_names)}, got {expected}")
    program = kernel[(programs,)](*told, num_warps=warps, **named)
    if program is not None:  # The interpreter compiles nothing.
        _COMPILED[key] = _Compiled(program, key[-1])


@functools.cache
def _programs(device: torch.device, resident: int) -> int:
    """How many programs a device holds at once; the interpreter holds one."""
    if device.type == "cpu":
        return 1
    multiprocessors: int = torch.cuda.get_device_properties(device).multi_processor_count
    return resident * multiprocessors
