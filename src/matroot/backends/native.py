"""Whole solves on a CPU by compiled kernels, one matrix at a time in its caches."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from matroot import checks
from matroot.backends.backend import Backend, FusedRoots, RootProblem
from matroot.backends.torch_ops import TORCH
from matroot.registry import name_of
from matroot.schedules import OCTAVE, OCTAVES, schedules

LARGEST = 256  # Beyond, one matrix no longer fits the caches, nor the work one thread.


def _load() -> ModuleType | None:
    """The compiled module; None where it was not built."""
    name = "matroot.backends._native"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


_MODULE = _load()


def available() -> bool:
    """Whether the kernels were built."""
    return _MODULE is not None


def _declines(a: Tensor) -> str | None:
    if _MODULE is None:
        return "its kernels were not built: there was no C++ compiler at installation"
    if a.device.type != "cpu":
        return f"its kernels run on a CPU, not on {a.device.type}"
    if checks.computing_dtype(a.dtype) not in (torch.float32, torch.float64):
        return f"its kernels know real numbers, not {a.dtype}"
    if a.shape[-1] > LARGEST:
        return f"its kernels are for n up to {LARGEST}, not {a.shape[-1]}"
    if torch.compiler.is_compiling():
        return "torch.compile and torch.export trace PyTorch's operations"
    return None


def _has_memory(*tensors: Tensor) -> bool:
    """Whether a kernel can be given these."""
    # PyTorch offers no public question for storage; what vmap wraps has none.
    return all(checks.host_reads_are_free(t) and torch._C._has_storage(t) for t in tensors)


def _address(a: Tensor | None) -> int:
    return 0 if a is None else a.data_ptr()


def _roots(problem: RootProblem, a: Tensor) -> FusedRoots | None:
    method: Any = problem.method
    if (
        _MODULE is None
        or name_of(method) != "minimax"
        or method.step_degree != 5
        or method.max_cond is not None
        or problem.input_dtype != a.dtype
        or not _has_memory(a)
    ):
        return None
    batch, n = a.shape[0], a.shape[-1]
    a = a.contiguous()
    table = schedules(5, a.dtype, a.device)
    info = a.new_empty(batch, 3, dtype=torch.int64)
    sqrt = torch.empty_like(a) if problem.sqrt else None
    inv_sqrt = torch.empty_like(a) if problem.inv_sqrt else None
    bounds = a.new_empty(batch, 2) if problem.bounds else None
    _MODULE.roots(
        a.dtype == torch.float64,
        a.data_ptr(),
        _address(sqrt),
        _address(inv_sqrt),
        _address(bounds),
        info.data_ptr(),
        batch,
        n,
        problem.eps,
        checks.max_skew(a.dtype),
        table.data_ptr(),
        table.shape[1],
        OCTAVE,
        OCTAVES,
        2 * torch.finfo(a.dtype).eps if method.tol is None else method.tol,
        method.max_steps or 0,
        torch.get_num_threads(),
    )
    return FusedRoots(info, sqrt, inv_sqrt, bounds)


def _gradient(
    s: Tensor, z: Tensor | None, g_s: Tensor | None, g_z: Tensor | None, bounds: Tensor
) -> Tensor | None:
    given = [t for t in (s, z, g_s, g_z, bounds) if t is not None]
    if _MODULE is None or _declines(s) is not None or not _has_memory(*given):
        return None
    s, bounds = s.contiguous(), bounds.contiguous()
    z = z.contiguous() if z is not None and g_z is not None else None
    g_s = None if g_s is None else g_s.contiguous()
    g_z = None if g_z is None else g_z.contiguous()
    x = torch.empty_like(s)
    _MODULE.lyapunov(
        s.dtype == torch.float64,
        s.data_ptr(),
        _address(z),
        _address(g_s),
        _address(g_z),
        bounds.data_ptr(),
        x.data_ptr(),
        len(s),
        s.shape[-1],
        torch.get_num_threads(),
    )
    return x


NATIVE = Backend(
    name="native",
    matmul=TORCH.matmul,
    addmm=TORCH.addmm,
    declines=_declines,
    roots=_roots,
    gradient=_gradient,
)
