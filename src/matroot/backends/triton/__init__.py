"""Whole solves on a GPU by fused kernels in Triton: one launch, one matrix a program.

Each program is tested at its first use, see ``selftest``. In Triton's interpreter
(``TRITON_INTERPRET=1``) the kernels run on a CPU, for tests.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from matroot import autodiff, checks, spd
from matroot.backends import large
from matroot.backends.backend import Backend, FusedRoots, GradientProblem, RootProblem, kind
from matroot.backends.passes import ByOperations, Passes
from matroot.backends.torch_ops import TORCH
from matroot.backends.triton import launch, selftest
from matroot.backends.triton.launch import BOUNDS, DOUBLE, LARGEST, NORM, NOTHING
from matroot.backends.triton.passes import ByKernels
from matroot.backends.triton.selftest import PASSES, passed
from matroot.schedules import STEPS

_BY_KERNELS, _BY_OPERATIONS = ByKernels(), ByOperations()
_INSTALLED = importlib.util.find_spec("triton") is not None


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


_GPU_DECLINES: dict[torch.device, str | None] = {}


def _gpu_declines(device: torch.device) -> str | None:
    """Why kernels do not run on this GPU; asked once, since PyTorch takes its time."""
    if device not in _GPU_DECLINES:
        why = None
        if torch.version.hip is not None:
            why = "its kernels are made for NVIDIA GPUs"
        else:
            capability = torch.cuda.get_device_capability(device)
            if capability < (8, 0):
                found = ".".join(map(str, capability))
                why = f"its kernels need compute capability 8.0, this GPU has {found}"
        _GPU_DECLINES[device] = why
    return _GPU_DECLINES[device]


# As torch.compiler.assume_constant_result does: asked while tracing, not traced.
_gpu_declines._dynamo_marked_constant = True  # type: ignore[attr-defined]


_ROOM: dict[torch.device, int] = {}


def _room(device: torch.device) -> int:
    """The largest n in float64: a product of 128×128 takes 128 KiB that a multiprocessor shares."""
    if device.type != "cuda":
        return LARGEST
    if device not in _ROOM:
        found: Any = torch.cuda.get_device_properties(device)
        enough = found.shared_memory_per_block_optin >= 2**17
        _ROOM[device] = LARGEST if enough else LARGEST // 2
    return _ROOM[device]


# As torch.compiler.assume_constant_result does: asked while tracing, not traced.
_room._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _declines(precision: str, a: Tensor) -> str | None:
    if not (_INSTALLED or spd.pretending()):
        return "Triton is not installed"
    if a.device.type == "cuda":
        why = _gpu_declines(a.device)
        if why is not None:
            return why
    elif not (a.device.type == "cpu" and (_interpreting() or spd.pretending())):
        return f"its kernels run on a CUDA GPU, not on {a.device.type}"
    if a.is_complex():
        return f"its kernels know real numbers, not {a.dtype}"
    if precision == DOUBLE:
        if a.dtype != torch.float64:
            return f"its kernels compute in float64, not in {a.dtype}"
        room = _room(a.device)
        if a.shape[-1] > room:
            return f"its kernels hold matrices up to {room}×{room}, not n = {a.shape[-1]}"
    if checks.stands_for_others(a):
        return f"its kernels take plain tensors, not the subclass {type(a).__name__}"
    if selftest.switch() == "off":
        return f"{selftest.SWITCH}=off"
    if autodiff.exporting() or checks.jit_tracing():
        return "an exported program holds PyTorch's operations"
    return None


def _auto_declines(a: Tensor) -> str | None:
    return None if spd.on_accelerator(a) else "Triton's interpreter is for tests"


def _fits(precision: str, a: Tensor) -> bool:
    """Whether one kernel does all of a call: up to LARGEST, in its own precision."""
    return (a.dtype == torch.float64) == (precision == DOUBLE) and a.shape[-1] <= LARGEST


def _passes(a: Tensor) -> Passes:
    """What comes between the products of a library where no kernel does all of it."""
    precision = DOUBLE if a.dtype == torch.float64 else "tf32x3"  # Of the test's tolerances.
    return _BY_KERNELS if passed("passes", PASSES, (), precision, a.device) else _BY_OPERATIONS


def _callable(name: str, *tensors: Tensor | None) -> Callable[..., Any] | None:
    """The kernel's function, its operator where operations are traced or watched.

    None for what a torch.func transform has wrapped, which neither can be given.
    """
    if torch.compiler.is_compiling():
        return launch.OPERATORS[name]
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    plain = not torch._C._len_torch_dispatch_stack()
    for t in tensors:
        if t is not None:
            if wrapped(t):
                return None
            plain = plain and type(t) in checks.PLAIN
    return launch.FUNCTIONS[name] if plain else launch.OPERATORS[name]


def _roots(precision: str, problem: RootProblem, a: Tensor) -> FusedRoots | None:
    kernel = _ROOTS.get(kind(problem.method)) if _fits(precision, a) else None
    found = None if kernel is None else kernel(precision, problem, a)
    if found is None and large.takes_roots(problem, a):
        found = large.roots(_passes(a), problem, a)
    return found


def _constants(rule: Any, *, bounds: bool) -> int | None:
    """What the gradient wants to know: see NOTHING. None if there is no kernel of this rule.

    Args:
        rule: None if no gradient is wanted.
        bounds: whether the method knows them.
    """
    if rule is None:
        return NOTHING
    if kind(rule) != "Lyapunov":
        return None
    if rule.steps is None:
        return BOUNDS if bounds else NOTHING
    return NORM


def _found(problem: RootProblem, constants: int, tensors: tuple[Tensor, ...]) -> FusedRoots:
    info, sqrt, inv_sqrt, known = tensors
    return FusedRoots(
        info,
        sqrt if problem.sqrt else None,
        inv_sqrt if problem.inv_sqrt else None,
        (known,) if constants != NOTHING else (),
    )


def _by_minimax(precision: str, problem: RootProblem, a: Tensor) -> FusedRoots | None:
    method, dtype = problem.method, problem.input_dtype
    constants = _constants(problem.rule, bounds=True)
    if method.step_degree != 5 or method.max_cond is not None or constants is None:
        return None
    run, size = _callable("minimax", a), launch.size_of(a.shape[-1])
    if run is None or not passed("minimax", size, (dtype != a.dtype,), precision, a.device):
        return None
    found = run(
        a,
        dtype,
        problem.eps,
        problem.sqrt,
        problem.inv_sqrt,
        problem.regular,
        constants,
        2 * spd.real_eps(a.dtype) if method.tol is None else method.tol,
        method.max_steps or STEPS[5],
        precision,
    )
    return _found(problem, constants, found)


def _by_published(precision: str, problem: RootProblem, a: Tensor) -> FusedRoots | None:
    polynomials, constants = problem.method.polynomials, _constants(problem.rule, bounds=False)
    if polynomials is None or constants is None:
        return None
    p, q = polynomials
    pade, dtype = kind(problem.method) == "Pade", problem.input_dtype
    run, size = _callable("published", a), launch.size_of(a.shape[-1])
    if run is None or not passed("published", size, (dtype != a.dtype, pade), precision, a.device):
        return None
    found = run(
        a,
        dtype,
        problem.eps,
        problem.sqrt,
        problem.inv_sqrt,
        problem.regular,
        constants,
        list(p),
        list(q),
        pade,
        precision,
    )
    return _found(problem, constants, found)


_ROOTS = {"Minimax": _by_minimax, "Pade": _by_published, "Taylor": _by_published}


def _gradient(precision: str, problem: GradientProblem) -> Tensor | None:
    found = _by_lyapunov(precision, problem)
    if found is None and large.takes_gradient(problem):
        assert problem.sqrt is not None
        found = large.gradient(_passes(problem.sqrt), problem)
    return found


def _by_lyapunov(precision: str, problem: GradientProblem) -> Tensor | None:
    rule, s = problem.rule, problem.sqrt
    if s is None or kind(rule) != "Lyapunov" or not _fits(precision, s):
        return None
    constants = problem.constants[0] if problem.constants else None
    z = problem.inv_sqrt if problem.g_inv is not None else None
    run = _callable("lyapunov", s, z, constants, problem.g_sqrt, problem.g_inv)
    steps, size = rule.steps or 0, launch.size_of(s.shape[-1])
    if run is None or not passed("lyapunov", size, (steps > 0,), precision, s.device):
        return None
    # A matrix that has an inverse root has no null space.
    regular = problem.inv_sqrt is not None
    x: Tensor = run(s, z, constants, problem.g_sqrt, problem.g_inv, regular, steps, precision)
    return x


def _backend(name: str, precision: str, on_request: Callable[[Tensor], str | None]) -> Backend:
    return replace(
        TORCH,
        name=name,
        declines=partial(_declines, precision),
        roots=partial(_roots, precision),
        gradient=partial(_gradient, precision),
        method="minimax",
        on_request=on_request,
        note=lambda a: selftest.verdicts(a.device),
    )


TRITON = _backend("triton", "tf32x3", _auto_declines)
"""Products of float32 by three products of TF32, as exact to a digit or two of the last bits."""
TRITON_TF32 = _backend("triton-tf32", "tf32", lambda a: "three digits")
"""Plain TF32: three digits, a third of the work. Only when asked for."""
TRITON_DOUBLE = _backend("triton-double", DOUBLE, lambda a: "float64 is slow on many GPUs")
"""The same in float64, at full rate on data-centre GPUs. For whitening, and when asked for."""
