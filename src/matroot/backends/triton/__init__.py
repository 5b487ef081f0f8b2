"""Whole solves on a GPU by fused kernels in Triton: one launch, one matrix a program.

The kernels are operators of PyTorch's (``torch.ops.matroot``), which torch.compile takes as they
are. Triton is imported when the first of them runs. In Triton's interpreter
(``TRITON_INTERPRET=1``) they run on a CPU, for tests.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from matroot import autodiff, checks, spd
from matroot.backends import large
from matroot.backends.backend import Backend, FusedRoots, GradientProblem, RootProblem, kind
from matroot.backends.torch_ops import TORCH
from matroot.backends.triton.passes import ByKernels
from matroot.schedules import STEPS, schedules

# What a gradient by the Lyapunov equation may be told: see gradients.Lyapunov.prepare.
NOTHING, BOUNDS, NORM = 0, 1, 2

LARGEST = 128
"""Beyond, the products of a library fill the device by themselves, and kernels do the rest."""

_PASSES = ByKernels()


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


_INSTALLED = importlib.util.find_spec("triton") is not None


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _declines(a: Tensor) -> str | None:
    if not (_INSTALLED or spd.pretending()):
        return "Triton is not installed"
    if a.device.type == "cuda":
        if torch.version.hip is not None:
            return "its kernels are made for NVIDIA GPUs"
        capability = torch.cuda.get_device_capability(a.device)
        if capability < (8, 0):
            found = ".".join(map(str, capability))
            return f"its kernels need compute capability 8.0, this GPU has {found}"
    elif not (a.device.type == "cpu" and (_interpreting() or spd.pretending())):
        return f"its kernels run on a CUDA GPU, not on {a.device.type}"
    if a.is_complex():
        return f"its kernels know real numbers, not {a.dtype}"
    if checks.stands_for_others(a):
        return f"its kernels take plain tensors, not the subclass {type(a).__name__}"
    if autodiff.exporting() or checks.jit_tracing():
        return "an exported program holds PyTorch's operations"
    return None


def _whole(a: Tensor) -> bool:
    """Whether one kernel does all of it: up to LARGEST, in single precision."""
    return a.dtype == torch.float32 and a.shape[-1] <= LARGEST


def _takes(*tensors: Tensor | None) -> bool:
    """Whether an operator can be given these: not what a torch.func transform has wrapped."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return torch.compiler.is_compiling() or not any(t is not None and wrapped(t) for t in tensors)


def _roots(precision: str, problem: RootProblem, a: Tensor) -> FusedRoots | None:
    if not _whole(a):
        return large.roots(_PASSES, problem, a)
    kernel = _ROOTS.get(kind(problem.method))
    return kernel(precision, problem, a) if kernel is not None and _takes(a) else None


def _told(problem: RootProblem, a: Tensor) -> tuple[float, float, float, bool, bool, bool, bool]:
    """What all methods are told: ridge, thresholds and what is wanted."""
    return (
        problem.eps,
        checks.max_skew(problem.input_dtype),
        a.shape[-1] * spd.real_eps(problem.input_dtype),
        problem.sqrt,
        problem.inv_sqrt,
        problem.regular,
        problem.input_dtype != a.dtype,
    )


def _steps(rule: Any) -> int | None:
    """Steps of the gradient, 0 for the exact one; None if there is no kernel of this rule."""
    return (rule.steps or 0) if kind(rule) == "Lyapunov" else None


def _constants(rule: Any, *, bounds: bool) -> int | None:
    """What the gradient wants to know: see NOTHING. None if there is no kernel of this rule.

    Args:
        rule: None if no gradient is wanted.
        bounds: whether the method knows them.
    """
    if rule is None:
        return NOTHING
    steps = _steps(rule)
    if steps == 0:
        return BOUNDS if bounds else NOTHING
    return None if steps is None else NORM


def _found(problem: RootProblem, constants: int, tensors: tuple[Tensor, ...]) -> FusedRoots:
    info, sqrt, inv_sqrt, known = tensors
    return FusedRoots(
        info,
        sqrt if problem.sqrt else None,
        inv_sqrt if problem.inv_sqrt else None,
        (known,) if constants != NOTHING else (),
    )


def _by_minimax(precision: str, problem: RootProblem, a: Tensor) -> FusedRoots | None:
    method = problem.method
    constants = _constants(problem.rule, bounds=True)
    if method.step_degree != 5 or method.max_cond is not None or constants is None:
        return None
    tol = 2 * spd.real_eps(a.dtype) if method.tol is None else method.tol
    told = _told(problem, a)
    found = _minimax_op(a, *told, constants, tol, method.max_steps or STEPS[5], precision)
    return _found(problem, constants, found)


def _by_published(precision: str, problem: RootProblem, a: Tensor) -> FusedRoots | None:
    polynomials, constants = problem.method.polynomials, _constants(problem.rule, bounds=False)
    if polynomials is None or constants is None:
        return None
    p, q = polynomials
    pade = kind(problem.method) == "Pade"
    told = _told(problem, a)
    found = _published_op(a, *told, constants, list(p), list(q), pade, precision)
    return _found(problem, constants, found)


_ROOTS = {"Minimax": _by_minimax, "Pade": _by_published, "Taylor": _by_published}


def _gradient(precision: str, problem: GradientProblem) -> Tensor | None:
    if problem.sqrt is not None and not _whole(problem.sqrt):
        return large.gradient(_PASSES, problem)
    steps = _steps(problem.rule)
    given = (problem.sqrt, problem.inv_sqrt, *problem.constants, problem.g_sqrt, problem.g_inv)
    if steps is None or problem.sqrt is None or not _takes(*given):
        return None
    constants = problem.constants[0] if problem.constants else None
    x: Tensor = _lyapunov_op(
        problem.sqrt,
        problem.inv_sqrt if problem.g_inv is not None else None,
        constants,
        problem.g_sqrt,
        problem.g_inv,
        steps,
        precision,
    )
    return x


def _launch(kernel: Any, like: Tensor, memory: int, *arguments: Any, **constants: Any) -> None:
    """Run a kernel on a batch (..., n, n).

    Args:
        kernel: one of the kernels.
        like: of the batch's shape.
        memory: how many matrices a program needs memory for.
        arguments: the kernel's, but for ``memory_ptr``, ``batch`` and ``n``, which come first.
        constants: the kernel's, but for ``N``.
    """
    n = like.shape[-1]
    batch = like.numel() // n**2
    size = max(16, 1 << (n - 1).bit_length())
    warps, resident = LAUNCHES[size]
    programs, numbers = batch, 0
    if resident is not None:
        programs = min(batch, _programs(like.device, resident))
        numbers = programs * memory * size**2
    with torch.cuda.device_of(like):
        kernel[(programs,)](
            like.new_empty(numbers), batch, n, *arguments, N=size, num_warps=warps, **constants
        )


@functools.cache
def _programs(device: torch.device, resident: int) -> int:
    """How many programs a device holds at once; the interpreter one."""
    if device.type == "cpu":
        return 1
    multiprocessors: int = torch.cuda.get_device_properties(device).multi_processor_count
    return resident * multiprocessors


def _outputs(
    a: Tensor, sqrt: bool, inv_sqrt: bool, constants: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory for what a kernel finds: info, the roots, what the gradient wants; or empty."""
    batch = a.shape[:-2]
    return (
        a.new_empty((*batch, 3), dtype=torch.int64),
        a.new_empty(a.shape if sqrt else 0),
        a.new_empty(a.shape if inv_sqrt else 0),
        a.new_empty({NOTHING: (0,), BOUNDS: (*batch, 2), NORM: batch}[constants]),
    )


def _minimax(
    a: Tensor,
    eps: float,
    max_skew: float,
    below: float,
    sqrt: bool,
    inv_sqrt: bool,
    regular: bool,
    half: bool,
    constants: int,
    tol: float,
    max_steps: int,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Info, A^{1/2}, A^{-1/2} and what the gradient wants to know: see roots.minimax_kernel."""
    from matroot.backends.triton.roots import minimax_kernel

    a = a.contiguous()
    info, s, z, known = found = _outputs(a, sqrt, inv_sqrt, constants)
    _launch(
        minimax_kernel,
        a,
        4,
        a,
        s,
        z,
        known,
        info,
        schedules(5, a.dtype, a.device),
        eps,
        max_skew,
        below,
        tol,
        max_steps,
        SQRT=sqrt,
        INV=inv_sqrt,
        REGULAR=regular,
        HALF=half,
        CONSTANTS=constants,
        PRECISION=precision,
    )
    return found


def _published(
    a: Tensor,
    eps: float,
    max_skew: float,
    below: float,
    sqrt: bool,
    inv_sqrt: bool,
    regular: bool,
    half: bool,
    constants: int,
    p: list[float],
    q: list[float],
    pade: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same: see roots.published_kernel."""
    from matroot.backends.triton.roots import published_kernel

    a = a.contiguous()
    info, s, z, known = found = _outputs(a, sqrt, inv_sqrt, constants)
    degree = len(p) - 1
    _launch(
        published_kernel,
        a,
        5,
        a,
        s,
        z,
        known,
        info,
        schedules(5, a.dtype, a.device),
        _coefficients(tuple(p), tuple(q), a.device),
        eps,
        max_skew,
        below,
        -(-degree // 3),
        degree,
        SQRT=sqrt,
        INV=inv_sqrt,
        REGULAR=regular,
        HALF=half,
        CONSTANTS=constants,
        PADE=pade,
        PRECISION=precision,
    )
    return found


def _no_roots(a: Tensor, *told: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Results without numbers, for torch.compile."""
    _, _, _, sqrt, inv_sqrt, _, _, constants, *_ = told
    return _outputs(a, sqrt, inv_sqrt, constants)


@functools.cache
def _coefficients(p: tuple[float, ...], q: tuple[float, ...], device: torch.device) -> Tensor:
    """Both polynomials with zeros up to the next multiple of 3."""
    degree = len(p) - 1
    zeros = (0.0,) * (-degree % 3)
    return torch.tensor([*p, *zeros, *q, *zeros], dtype=torch.float32, device=device)


def _lyapunov(
    s: Tensor,
    z: Tensor | None,
    constants: Tensor | None,
    g_sqrt: Tensor | None,
    g_inv: Tensor | None,
    steps: int,
    precision: str,
) -> Tensor:
    """X of S X + X S = G_S − Z G_Z Z: see gradients.lyapunov_kernel."""
    from matroot.backends.triton.gradients import lyapunov_kernel

    s = s.contiguous()
    z, constants, g_sqrt, g_inv = (
        None if t is None else t.contiguous() for t in (z, constants, g_sqrt, g_inv)
    )
    x = torch.empty_like(s)
    _launch(
        lyapunov_kernel,
        s,
        5,
        s,
        s if z is None else z,
        s if constants is None else constants,
        s if g_sqrt is None else g_sqrt,
        s if g_inv is None else g_inv,
        x,
        math.sqrt(spd.null_units(s.shape[-1], s.dtype) * spd.real_eps(s.dtype)),
        steps,
        SQRT=g_sqrt is not None,
        INV=g_inv is not None,
        SIGN=steps > 0,
        CONSTANTS=constants is not None,
        PRECISION=precision,
    )
    return x


def _no_gradient(s: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(s, memory_format=torch.contiguous_format)


# By the bare interface: torch.library.custom_op takes longer to call than some kernels run.
_LIBRARY = torch.library.Library("matroot", "DEF")


def _operator(name: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """``torch.ops.matroot.NAME``, which does ``run``, and under torch.compile ``fake``."""
    _LIBRARY.define(name + torch.library.infer_schema(run, mutates_args=()))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"matroot::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.matroot, name).default


_minimax_op = _operator("minimax", _minimax, _no_roots)
_published_op = _operator("published", _published, _no_roots)
_lyapunov_op = _operator("lyapunov", _lyapunov, _no_gradient)


def _backend(name: str, precision: str, on_request: str) -> Backend:
    return replace(
        TORCH,
        name=name,
        declines=_declines,
        roots=partial(_roots, precision),
        gradient=partial(_gradient, precision),
        method="minimax",
        on_request=on_request,
    )


# Taken away where benchmarks/gpu.py has run, and auto takes the kernels.
_UNMEASURED = "its kernels have run in Triton's interpreter, and on no GPU yet"
TRITON = _backend("triton", "tf32x3", _UNMEASURED)
"""Products of float32 by three products of TF32, as exact to a digit or two of the last bits."""
TRITON_TF32 = _backend("triton-tf32", "tf32", "three digits")
"""Plain TF32: three digits, a third of the work. Only when asked for."""
