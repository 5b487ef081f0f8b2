"""Every check of an argument, in one place."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from matroot import context, spd

DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)


def square_matrices(name: str, a: object) -> Tensor:
    """``a`` itself if it is a tensor of square matrices of a supported dtype.

    Raises:
        TypeError: not a tensor, or not of a supported dtype.
        ValueError: fewer than two dimensions, or the last two differ.
    """
    a = _dense(name, a)
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"{name} must have shape (..., n, n), got {tuple(a.shape)}")
    return a


def vectors(name: str, v: object) -> Tensor:
    """``v`` itself if it is a tensor of vectors of a supported dtype.

    Raises:
        TypeError: see ``square_matrices``.
        ValueError: no dimension.
    """
    v = _dense(name, v)
    if v.ndim < 1:
        raise ValueError(f"{name} must have shape (..., n), got {tuple(v.shape)}")
    return v


def _dense(name: str, a: object) -> Tensor:
    if not isinstance(a, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(a).__name__}")
    if a.dtype not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(
            f"{name} must have dtype {known}; got {str(a.dtype).removeprefix('torch.')}"
        )
    if context.is_dtensor(a):
        raise TypeError(
            f"{name} must be an ordinary tensor, got a DTensor: give its to_local(), where only "
            "batch dimensions are sharded, or its full_tensor()"
        )
    if a.layout is not torch.strided:
        raise TypeError(f"{name} must be dense (strided), got {a.layout}")
    return a


def same_kind(name: str, a: Tensor, other: str, b: Tensor) -> None:
    """Raise unless both tensors have one dtype (TypeError), shape and device (ValueError)."""
    _one_dtype_and_device(name, a, other, b)
    if a.shape != b.shape:
        raise ValueError(
            f"{name} and {other} must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}"
        )


def broadcastable(matrices: dict[str, Tensor], vectors: dict[str, Tensor] | None = None) -> None:
    """Raise unless the tensors go together, pair by pair: see ``same_kind``, but for the batch.

    Args:
        matrices: tensors (..., n, n) by name.
        vectors: tensors (..., n) by name.
    """
    tensors = matrices | (vectors or {})
    for (name, a), (other, b) in itertools.combinations(tensors.items(), 2):
        _one_dtype_and_device(name, a, other, b)
        if a.shape[-1] != b.shape[-1]:
            raise ValueError(
                f"{name} and {other} must have one n, got shapes {tuple(a.shape)} "
                f"and {tuple(b.shape)}"
            )
        p, q = (t.shape[: -2 if k in matrices else -1] for k, t in ((name, a), (other, b)))
        # Loops, not generators: the compiler of PyTorch 2.8 does not look into any().
        for i in range(1, min(len(p), len(q)) + 1):
            if p[-i] != q[-i] and 1 not in (p[-i], q[-i]):
                raise ValueError(
                    f"batch dimensions of {name} and {other} must be equal or 1, got "
                    f"{tuple(p)} and {tuple(q)}"
                )


def _one_dtype_and_device(name: str, a: Tensor, other: str, b: Tensor) -> None:
    if a.dtype != b.dtype:
        raise TypeError(f"{name} and {other} must have one dtype, got {a.dtype} and {b.dtype}")
    if a.device != b.device:
        raise ValueError(f"{name} and {other} must be on one device, got {a.device} and {b.device}")


def flag(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def ridge(eps: object, dtype: torch.dtype, name: str = "eps") -> float:
    """``eps`` as a float if it is not below zero and a finite number of the computing dtype."""
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"{name} must be a float, got {type(eps).__name__}")
    # Comparisons alone: torch.compile makes a float a symbol, which isfinite does not take.
    if not 0 <= eps <= torch.finfo(spd.computing_dtype(dtype)).max:
        raise ValueError(f"{name} must be finite in {dtype} and at least 0, got {eps}")
    return eps


def finite_at_least_zero(name: str, value: object) -> None:
    """Raise unless ``value`` is a number (TypeError), finite and at least 0 (ValueError)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {value}")


def is_share(value: object) -> bool:
    """Whether ``value`` is a number between 0 and 1."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value <= 1  # type: ignore[operator]  # It is a number.


def cut_off(name: str, rtol: object) -> None:
    """Raise unless ``rtol`` is None or a share of the largest eigenvalue: a number in [0, 1)."""
    if rtol is None:
        return
    finite_at_least_zero(name, rtol)
    if not rtol < 1:  # type: ignore[operator]  # It is a number, as has just been seen.
        raise ValueError(f"{name} must be below 1, which would leave no eigenvalue, got {rtol}")


def whole(name: str, value: object, least: int = 1, most: int | None = None) -> None:
    """Raise unless ``value`` is an int (TypeError) within its bounds (ValueError)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least or (most is not None and value > most):
        bound = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ValueError(f"{name} must be {bound}, got {value}")


def floating(name: str, x: object) -> None:
    """Raise TypeError unless ``x`` is a dense tensor of real floating-point numbers."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES or x.is_complex():
        raise TypeError(
            f"{name} must be of real floating-point numbers (float16, bfloat16, float32 or "
            f"float64), got {x.dtype}"
        )
    if x.layout is not torch.strided:
        raise TypeError(f"{name} must be dense (strided), got {x.layout}")


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {known}; got {value!r}")


def count(owner: object, field: str, *, least: int, most: int | None = None) -> None:
    """Raise unless the option ``field`` of ``owner`` is an int within its bounds."""
    whole(f"{type(owner).__name__}({field}=…)", getattr(owner, field), least, most)


def positive(owner: object, field: str) -> None:
    """Raise unless the option ``field`` of ``owner`` is a finite number above zero."""
    value: Any = getattr(owner, field)
    name = f"{type(owner).__name__}({field}=…)"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, got {value}")


def checking(check_errors: bool | None, *tensors: Tensor) -> bool:
    """Whether to look at the status of each matrix on the host and raise.

    Where nothing is said the answer is yes in eager mode on a CPU, the one place where looking
    costs no device synchronisation.

    Raises:
        TypeError: ``check_errors`` is neither None nor a bool.
        ValueError: ``check_errors=True`` under torch.compile, torch.export or a batching torch.func
            transform, where values cannot be looked at.
    """
    if check_errors is not None and not isinstance(check_errors, bool):
        raise TypeError(f"check_errors must be None or a bool, got {type(check_errors).__name__}")
    traced = torch.compiler.is_compiling() or context.transforms_active()
    if check_errors and traced:
        raise ValueError(
            "check_errors=True needs the values on the host, which torch.compile and torch.func "
            "transforms do not give; leave it out there: a bad matrix comes back as NaN"
        )
    if check_errors is not None:
        return check_errors
    return not torch.compiler.is_compiling() and all(map(context.host_reads_are_free, tensors))
