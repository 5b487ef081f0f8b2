"""The compiled module, and what its tasks are made of."""

from __future__ import annotations

import functools
import importlib.util
import os
import struct
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from matroot import _process, context, spd
from matroot.functions import Exp, InvSqrt, Log, OnRange, Power, SpectralFunction, Sqrt
from matroot.roots import Functions
from matroot.screen import Thresholds

if TYPE_CHECKING:
    from matroot.kernels import _native as MODULE

    _WHY_NOT: str

__all__ = [
    "LARGEST",
    "LARGEST_BY_EIGENPAIRS",
    "MODULE",
    "address",
    "available",
    "batch",
    "declines",
    "eigh",
    "have_memory",
    "in_memory",
    "info",
    "known",
    "lookup",
    "outputs",
    "symmetric_product",
    "symmetrise",
    "thresholds",
]

# See native/isa.hpp.
INTERFACE = 1
# What MATROOT_ISA may ask for, for comparisons.
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
# Beyond, one matrix no longer fits the caches.
LARGEST = 256
# For the kernels by eigenpairs. Beyond, LAPACK and PyTorch's products take no longer, and kernels
# make only the passes between.
LARGEST_BY_EIGENPAIRS = {torch.float32: 1024, torch.float64: 512}


def _load() -> tuple[ModuleType | None, str]:
    """The compiled module; or None, and why there is none.

    Where there is one that cannot be loaded, a warning says so: PyTorch's operations are slower.
    """
    wish = os.environ.get("MATROOT_ISA", "")
    if wish not in ("", *INSTRUCTION_SETS):
        known = ", ".join(map(repr, INSTRUCTION_SETS))
        raise ValueError(f"MATROOT_ISA must be one of {known}, got {wish!r}")
    name = "matroot.kernels._native"
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return None, _not_found()
    try:
        _check_whole(Path(spec.origin))
        module = importlib.import_module(name)
        if getattr(module, "INTERFACE", None) != INTERFACE:
            raise ImportError(f"{spec.origin} was compiled from other sources than this package")
    except (ImportError, OSError) as error:
        why = f"its kernels cannot be loaded ({' '.join(str(error).split())})"
        warnings.warn(
            f"matroot's compiled CPU kernels are not used: {why}; PyTorch's operations are used in "
            "their place. Install matroot again",
            RuntimeWarning,
            stacklevel=2,
        )
        return None, why
    if wish and module.instruction_set() != wish:
        warnings.warn(
            f"MATROOT_ISA={wish}: not known to this processor or not built; matroot's kernels run "
            f"in {module.instruction_set()!r}",
            RuntimeWarning,
            stacklevel=2,
        )
    if os.getpid() != _process.PID:
        module.forked()  # Before it was loaded, so that it cannot know.
    return module, ""


def _not_found() -> str:
    folders = map(Path, sys.modules["matroot.kernels"].__path__)
    built = [file.name for folder in folders for file in folder.glob("_native.*[!i]")]
    if built:
        return f"its kernels were built for another Python: {', '.join(sorted(built))}"
    return "its kernels were not built: installation found no C++ compiler that could build them"


def _check_whole(file: Path) -> None:
    """Raise ImportError for a library of Linux that was cut off: loading it would end the process.

    The table of its sections, at the end, must lie within the file.
    """
    with file.open("rb") as opened:
        head = opened.read(64)
    if len(head) == 64 and head.startswith(b"\x7fELF\2\1"):
        (start,) = struct.unpack_from("<Q", head, 40)
        size, count = struct.unpack_from("<HH", head, 58)
        if file.stat().st_size < start + size * count:
            raise ImportError(f"{file} was cut off")


# Type checkers read its stub.
if not TYPE_CHECKING:
    MODULE, _WHY_NOT = _load()


def available() -> bool:
    """Whether there are kernels."""
    return MODULE is not None


def declines(a: Tensor) -> str | None:
    """Why no compiled kernel takes this tensor, None if some may."""
    if MODULE is None:
        return _WHY_NOT
    if context.on_accelerator(a):
        return f"its kernels run on a CPU, not on {a.device.type}"
    if spd.computing_dtype(a.dtype) not in (torch.float32, torch.float64):
        return f"its kernels know real numbers, not {a.dtype}"
    if context.jit_tracing():
        return "torch.jit.trace records PyTorch's operations"
    if torch.compiler.is_compiling():
        return "torch.compile and torch.export trace PyTorch's operations"
    return context.operations_are_watched(a)


def have_memory(*tensors: Tensor | None) -> bool:
    """Whether a kernel can be given these."""
    for t in tensors:
        if t is None:
            continue
        # PyTorch offers no public question for storage; what vmap wraps has none.
        if not (t.device.type == "cpu" and context.is_plain(t) and torch._C._has_storage(t)):
            return False
    return True


def in_memory(a: Tensor) -> Tensor:
    """A with its numbers one after the other as they are: no lazy sign, no unwritten zeros."""
    if a._is_zerotensor():
        return torch.zeros_like(a, memory_format=torch.contiguous_format)
    return a.resolve_neg().contiguous()


def address(a: Tensor | None) -> int:
    """Where its numbers begin; 0 for None."""
    return 0 if a is None else a.data_ptr()


def batch(a: Tensor) -> MODULE.Batch:
    """The matrices (..., n, n) of a task, and the threads for them."""
    n = a.shape[-1]
    return MODULE.Batch(
        is_double=a.dtype == torch.float64,
        count=a.numel() // (n * n),
        n=n,
        threads=torch.get_num_threads(),
    )


@functools.lru_cache(1024)
def thresholds(limits: Thresholds) -> MODULE.Thresholds:
    """As the kernels take them, below 0 for None."""
    return MODULE.Thresholds(**{k: -1.0 if x is None else x for k, x in limits._asdict().items()})


@functools.lru_cache(1024)
def lookup(function: SpectralFunction) -> MODULE.Function | None:
    """As the kernels know it; None where they do not."""
    kinds = MODULE.Kind
    if type(function) is OnRange:
        # They leave null eigenvalues out wherever singular matrices are not refused.
        return None if function.function.domain == "semidefinite" else lookup(function.function)
    if type(function) is Power:
        return MODULE.Function(kind=kinds.POWER, exponent=function.p)
    by_type = {Sqrt: kinds.SQRT, InvSqrt: kinds.INV_SQRT, Log: kinds.LOG, Exp: kinds.EXP}
    kind = by_type.get(type(function))
    return None if kind is None else MODULE.Function(kind=kind)


def known(function: SpectralFunction) -> MODULE.Function:
    """As the kernels know it, where they do."""
    found = lookup(function)
    assert found is not None
    return found


def info(a: Tensor) -> Tensor:
    """Memory for the status, the steps and whether they converged, of each matrix."""
    return a.new_empty((*a.shape[:-2], 3), dtype=torch.int64)


def outputs(functions: Functions, values: Iterable[Tensor]) -> list[MODULE.Output]:
    """Where the functions go."""
    return [
        MODULE.Output(function=known(function), x=value.data_ptr())
        for function, value in zip(functions, values, strict=True)
    ]


def symmetric_product(a: Tensor, b: Tensor) -> Tensor:
    """A B, shape (b, n, n), that is symmetric but for rounding: five eighths of it are computed."""
    x = torch.empty_like(a)
    _fill(x, a, b, halvings=2)
    symmetrise(x)
    return x


def _fill(x: Tensor, a: Tensor, b: Tensor, halvings: int) -> None:
    """X = A B where that is symmetric, for rows A and columns B."""
    if not halvings:
        torch.bmm(a, b, out=x)
        return
    h = x.shape[-1] // 2
    _fill(x[:, :h, :h], a[:, :h], b[:, :, :h], halvings - 1)
    _fill(x[:, h:, h:], a[:, h:], b[:, :, h:], halvings - 1)
    torch.bmm(a[:, h:], b[:, :, :h], out=x[:, h:, :h])
    x[:, :h, h:] = x[:, h:, :h].mT


def symmetrise(x: Tensor) -> None:
    """X becomes (X + Xᵀ)/2."""
    MODULE.symmetrise(MODULE.SymmetriseTask(batch=batch(x), x=x.data_ptr()))


def eigh(
    a: Tensor,
    outputs: list[MODULE.Output],
    info: Tensor,
    limits: Thresholds,
    *,
    roots: Tensor | None = None,
    vectors: Tensor | None = None,
    values: Tensor | None = None,
    of_root: bool = False,
    eps: float = 0.0,
) -> int:
    """The kernel by eigendecomposition; see EighTask in native/isa.hpp."""
    task = MODULE.EighTask(
        batch=batch(a),
        a=a.data_ptr(),
        outputs=outputs,
        roots=address(roots),
        vectors=address(vectors),
        values=address(values),
        of_root=of_root,
        info=info.data_ptr(),
        eps=eps,
        thresholds=thresholds(limits),
    )
    statuses: int = MODULE.eigh(task)
    return statuses
