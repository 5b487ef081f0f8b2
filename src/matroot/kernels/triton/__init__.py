"""Whole solves on a GPU by fused kernels in Triton: one launch, and one matrix per program.

Each program is tested at its first use: see ``selftest``. In Triton's interpreter
(``TRITON_INTERPRET=1``) the kernels run on a CPU, for tests.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from matroot import context, spd
from matroot.gradients import GradientRule, Kept, Lyapunov
from matroot.gradients.rule import Cotangents
from matroot.kernels import large
from matroot.kernels.kernel import BackendName, Family, GradientKernel, Solved, ValueKernel
from matroot.kernels.passes import ByOperations, Passes
from matroot.kernels.triton import launch, operators, selftest
from matroot.kernels.triton.launch import BOUNDS, DOUBLE, LARGEST, NORM, NOTHING, interpreting
from matroot.kernels.triton.passes import ByKernels
from matroot.kernels.triton.selftest import PASSES, passed
from matroot.methods import Minimax, Pade, Taylor
from matroot.request import Request
from matroot.roots import root_pair, roots_in_order, wanted_roots
from matroot.schedules import STEPS

_BY_KERNELS, _BY_OPERATIONS = ByKernels(), ByOperations()


def _installed() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except ValueError:  # Something else has put an empty module of that name in its place.
        return False


_INSTALLED = _installed()


_GPU_DECLINES: dict[torch.device, str | None] = {}


def _gpu_declines(device: torch.device) -> str | None:
    """Why kernels do not run on this GPU; asked once, since PyTorch is slow to answer."""
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
    if not (_INSTALLED or context.pretending()):
        return "Triton is not installed"
    if a.device.type == "cuda":
        why = _gpu_declines(a.device)
        if why is not None:
            return why
    elif not (a.device.type == "cpu" and (interpreting() or context.pretending())):
        return f"its kernels run on a CUDA GPU, not on {a.device.type}"
    if a.is_complex():
        return f"its kernels take real numbers, not {a.dtype}"
    if precision == DOUBLE:
        if a.dtype != torch.float64:
            return f"its kernels compute in float64, not in {a.dtype}"
        room = _room(a.device)
        if a.shape[-1] > room:
            return f"its kernels hold matrices up to {room}×{room}, not n = {a.shape[-1]}"
    if context.stands_for_others(a):
        return f"its kernels take plain tensors, not the subclass {type(a).__name__}"
    if selftest.switch() == "off":
        return f"{selftest.SWITCH}=off"
    if context.exporting() or context.jit_tracing():
        return "an exported program holds PyTorch's operations"
    return None


def _auto_declines(a: Tensor) -> str | None:
    return None if context.on_accelerator(a) else "Triton's interpreter is for tests"


def _passes(a: Tensor) -> Passes:
    """What comes between the products of a library where no kernel does all of it."""
    precision = DOUBLE if a.dtype == torch.float64 else "tf32x3"  # Which tolerances the test takes.
    tested = passed("passes", PASSES, (), precision, a.device)
    return _BY_KERNELS if tested else _BY_OPERATIONS


def _callable(name: str, *tensors: Tensor | None) -> Callable[..., Any] | None:
    """The kernel's function, or its operator where operations are traced or watched.

    None for tensors that a torch.func transform has wrapped, which neither of them takes.
    """
    if torch.compiler.is_compiling():
        return operators.OPERATORS[name]
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    plain = not torch._C._len_torch_dispatch_stack()
    for t in tensors:
        if t is not None:
            if wrapped(t):
                return None
            plain = plain and type(t) in context.PLAIN
    return operators.FUNCTIONS[name] if plain else operators.OPERATORS[name]


def _constants(rule: GradientRule | None, *, bounds: bool) -> int:
    """What the gradient is to be given: NOTHING, BOUNDS or NORM, see launch.py.

    Args:
        rule: None if no gradient is wanted.
        bounds: whether the method finds bounds of the spectrum.
    """
    if rule is None:
        return NOTHING
    assert isinstance(rule, Lyapunov)
    if rule.steps is None:
        return BOUNDS if bounds else NOTHING
    return NORM


def _unfit(precision: str, request: Request, a: Tensor) -> str | None:
    """Why no kernel does all of a call, None if one may."""
    if (request.computing_dtype == torch.float64) != (precision == DOUBLE):
        return f"its kernels for whole calls do not compute in {request.computing_dtype}"
    if a.shape[-1] > LARGEST:
        return f"its kernels for whole calls hold matrices up to n = {LARGEST}"
    if request.rule is not None and type(request.rule) is not Lyapunov:
        return "its kernels do not compute what that gradient needs"
    return None


# The fields of a Variant: torch.compile gives no named tuple to a function that it does not trace.
Fields = tuple[str, int, tuple[bool, ...], str]


def _minimax_variant(precision: str, request: Request, a: Tensor) -> Fields:
    return "minimax", launch.size_of(a.shape[-1]), (request.rounded,), precision


def _minimax_declines(precision: str, request: Request, a: Tensor) -> str | None:
    method = request.method
    assert isinstance(method, Minimax)
    if method.step_degree != 5 or method.max_cond is not None:
        return "its kernel for Minimax takes neither max_cond nor steps of degree 3"
    why = _unfit(precision, request, a)
    return why or selftest.failure(*_minimax_variant(precision, request, a), a.device)


def _by_minimax(precision: str, request: Request, a: Tensor) -> Solved | None:
    method, dtype = request.method, request.input_dtype
    assert isinstance(method, Minimax)
    run = _callable("minimax", a)
    if run is None or not passed(*_minimax_variant(precision, request, a), a.device):
        return None
    constants, wanted = _constants(request.rule, bounds=True), wanted_roots(request.solved)
    info, *roots, known = run(
        a,
        dtype,
        request.eps,
        *wanted,
        request.regular,
        constants,
        2 * spd.real_eps(a.dtype) if method.tol is None else method.tol,
        method.max_steps or STEPS[5],
        precision,
    )
    values = roots_in_order(request.solved, *roots)
    return Solved(info, values, (known,) if constants != NOTHING else ())


def _published_variant(precision: str, request: Request, a: Tensor) -> Fields:
    option = (request.rounded, type(request.method) is Pade)
    return "published", launch.size_of(a.shape[-1]), option, precision


def _published_declines(precision: str, request: Request, a: Tensor) -> str | None:
    method = request.method
    assert isinstance(method, (Pade, Taylor))
    if method.polynomials is None:
        return "its kernel evaluates polynomials, which lose too much at this order"
    why = _unfit(precision, request, a)
    return why or selftest.failure(*_published_variant(precision, request, a), a.device)


def _by_published(precision: str, request: Request, a: Tensor) -> Solved | None:
    method = request.method
    assert isinstance(method, (Pade, Taylor))
    run, polynomials = _callable("published", a), method.polynomials
    if run is None or polynomials is None:
        return None
    if not passed(*_published_variant(precision, request, a), a.device):
        return None
    constants, wanted = _constants(request.rule, bounds=False), wanted_roots(request.solved)
    info, *roots, known = run(
        a,
        request.input_dtype,
        request.eps,
        *wanted,
        request.regular,
        constants,
        *map(list, polynomials),
        type(method) is Pade,
        precision,
    )
    values = roots_in_order(request.solved, *roots)
    return Solved(info, values, (known,) if constants != NOTHING else ())


def _lyapunov_variant(precision: str, rule: Lyapunov, a: Tensor) -> Fields:
    return "lyapunov", launch.size_of(a.shape[-1]), (rule.steps is not None,), precision


def _lyapunov_declines(precision: str, request: Request, a: Tensor) -> str | None:
    rule = request.rule
    assert isinstance(rule, Lyapunov)
    why = _unfit(precision, request, a)
    return why or selftest.failure(*_lyapunov_variant(precision, rule, a), a.device)


def _by_lyapunov(precision: str, request: Request, kept: Kept, g: Cotangents) -> Tensor | None:
    rule, s = request.rule, kept.sqrt
    assert isinstance(rule, Lyapunov)
    if s is None:
        return None
    g_sqrt, g_inv = root_pair(kept.functions, g)
    constants = kept.constants[0] if kept.constants else None
    z = kept.inv_sqrt if g_inv is not None else None
    run = _callable("lyapunov", s, z, constants, g_sqrt, g_inv)
    if run is None or not passed(*_lyapunov_variant(precision, rule, s), s.device):
        return None
    # A matrix that has an inverse root has no null space.
    regular = kept.inv_sqrt is not None
    x: Tensor = run(s, z, constants, g_sqrt, g_inv, regular, rule.steps or 0, precision)
    return x


def _family(
    name: BackendName, precision: str, on_request: Callable[[Tensor], str | None]
) -> Family:
    def kernel(declines: Any, run: Any, name: str, kind: Any = ValueKernel) -> Any:
        return kind(name, partial(declines, precision), partial(run, precision))

    large_values, large_gradient = large.kernels(_passes)
    published = (kernel(_published_declines, _by_published, "published"),)
    return Family(
        name=name,
        declines=partial(_declines, precision),
        values={
            Minimax: (
                kernel(_minimax_declines, _by_minimax, "minimax"),
                large_values,
            ),
            Pade: published,
            Taylor: published,
        },
        gradients={
            Lyapunov: (
                kernel(_lyapunov_declines, _by_lyapunov, "lyapunov", GradientKernel),
                large_gradient,
            )
        },
        method=Minimax(),
        on_request=on_request,
        note=lambda a: selftest.verdicts(a.device),
    )


TRITON = _family("triton", "tf32x3", _auto_declines)
"""Products of float32 as three products of TF32, accurate up to the last bit or two."""
TRITON_TF32 = _family("triton-tf32", "tf32", lambda a: "three digits")
"""Plain TF32: three digits, a third of the work. Only when asked for."""
TRITON_DOUBLE = _family("triton-double", DOUBLE, lambda a: "float64 is slow on many GPUs")
"""The same in float64, at full rate on data-centre GPUs. For whitening, and when asked for."""
