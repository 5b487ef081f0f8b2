"""Every check of an argument and every error text, in one place."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from matroot import autodiff, spd

DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)
# Half precision is computed in float32: sums of n products need the wider mantissa, and the
# eigensolvers and factorisations have no half kernels.
_COMPUTING_DTYPE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}

# A skew part below this share of the Frobenius norm is rounding, and is averaged away.
_MAX_SKEW = {torch.float16: 1e-2, torch.bfloat16: 1e-2}


class Status:
    """Why one matrix of a batch has no root; the larger number wins where several hold.

    Plain ints: torch.compile takes the comparison of a tensor with an enum for a constant.
    """

    OK = 0
    DIVERGED = 1
    SINGULAR = 2
    INDEFINITE = 3
    ASYMMETRIC = 4
    NONFINITE = 5


_REASONS = {
    Status.DIVERGED: "too close to singular for this method, which diverged; take fewer steps or "
    "another method, or add a ridge with eps=",
    Status.SINGULAR: "singular ({rank}), so {they} no inverse root; add a ridge with eps=, or "
    'ask for the pseudo-inverse root with singular="pinv" (method "eigh" or "svd")',
    Status.INDEFINITE: "indefinite: an eigenvalue lies below the rounding level of zero",
    Status.ASYMMETRIC: "not symmetric (Hermitian): the skew part is above {skew:g} of the norm",
    Status.NONFINITE: "not finite (NaN or infinity)",
}


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that an input dtype is computed in: float32 for the half types, else itself."""
    return _COMPUTING_DTYPE.get(dtype, dtype)


def max_skew(dtype: torch.dtype) -> float:
    """The largest skew part, relative to the Frobenius norm, that counts as rounding."""
    return _MAX_SKEW.get(dtype, 1e-3)


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


def ridge(eps: object, dtype: torch.dtype) -> float:
    """``eps`` as a float if it is not below zero and a finite number of the computing dtype."""
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"eps must be a float, got {type(eps).__name__}")
    # Comparisons alone: torch.compile makes a float a symbol, which isfinite does not take.
    if not 0 <= eps <= torch.finfo(computing_dtype(dtype)).max:
        raise ValueError(f"eps must be finite in {dtype} and at least 0, got {eps}")
    return eps


def finite_at_least_zero(name: str, value: object) -> None:
    """Raise unless ``value`` is a number (TypeError), finite and at least 0 (ValueError)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {value}")


def whole(name: str, value: object, least: int = 1, most: int | None = None) -> None:
    """Raise unless ``value`` is an int (TypeError) within its bounds (ValueError)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least or (most is not None and value > most):
        bound = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ValueError(f"{name} must be {bound}, got {value}")


def floating(name: str, x: object) -> None:
    """Raise TypeError unless ``x`` is a tensor of real floating-point numbers."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be of real floating-point numbers, got {x.dtype}")


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
    traced = torch.compiler.is_compiling() or transforms_active()
    if check_errors and traced:
        raise ValueError(
            "check_errors=True needs the values on the host, which torch.compile and torch.func "
            "transforms do not give; leave it out there: a bad matrix comes back as NaN"
        )
    if check_errors is not None:
        return check_errors
    return not torch.compiler.is_compiling() and all(map(host_reads_are_free, tensors))


def host_reads_are_free(a: Tensor) -> bool:
    """Whether values of ``a`` can be looked at without a device synchronisation or graph break.

    Tensors that torch.func transforms have wrapped have no values; what an autograd function is
    given once a transform has been dealt with has.
    """
    if a.device.type != "cpu" or torch.compiler.is_compiling() or isinstance(a, FakeTensor):
        return False
    if jit_tracing():
        return False
    # PyTorch offers no public question for this; its own transforms ask the same way.
    return not torch._C._functorch.is_functorch_wrapped_tensor(a)


def onnx_export_running() -> bool:
    """Whether torch.onnx.export is tracing."""
    return torch.onnx.is_in_onnx_export()


# As torch.compiler.assume_constant_result does: asked while tracing, not traced.
onnx_export_running._dynamo_marked_constant = True  # type: ignore[attr-defined]


def jit_tracing() -> bool:
    """Whether torch.jit.trace is recording operations."""
    # PyTorch leaves it without types.
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing


def transforms_active() -> bool:
    """Whether a torch.func transform (vmap, grad, jvp …) is running."""
    # PyTorch offers no public question for this; autograd.Function.apply asks the same way.
    return bool(torch._C._are_functorch_transforms_active())


def differentiated(*inputs: Tensor) -> bool:
    """Whether a derivative may be asked of what is made of these.

    Not of an exported program, which holds operations and no rules of ours.
    """
    if autodiff.exporting():
        return False
    if torch.compiler.is_compiling() or transforms_active():
        return True
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return True
    return any(autodiff.tangent(x) is not None for x in inputs)


def raise_if_bad(
    name: str, status: Tensor, a: Tensor, eps: float = 0.0, things: str = "matrices"
) -> None:
    """Raise LinAlgError if any matrix of the batch has a status other than OK.

    Args:
        name: the argument's name.
        status: shape (...), the Status of each matrix.
        a: the argument, shape (..., n, n).
        eps: the ridge that was added.
        things: what the batch is made of.

    Raises:
        torch.linalg.LinAlgError: with how many matrices are bad, the first few indices, and why.
    """
    worst = int(status.max()) if status.numel() else 0
    if worst == Status.OK:
        return
    bad = status == worst
    total, many = status.numel(), int(bad.sum())
    reason = _REASONS[worst].format(
        they="they have" if many > 1 else "it has",
        skew=max_skew(a.dtype),
        rank=("the first: " if many > 1 else "") + _rank(a.detach()[bad][0], eps)
        if worst == Status.SINGULAR
        else "",
    )
    if status.ndim == 0:
        raise torch.linalg.LinAlgError(f"{name} is {reason}")
    indices = [tuple(index) if len(index) > 1 else index[0] for index in bad.nonzero()[:4].tolist()]
    where = ", ".join(map(str, indices)) + (", …" if many > len(indices) else "")
    verb = "are" if many > 1 else "is"
    raise torch.linalg.LinAlgError(
        f"{many} of the {total} {things} in {name} {verb} {reason} (batch index {where})"
    )


def _rank(a: Tensor, eps: float) -> str:
    """The rank of one matrix to the rounding of its computing dtype, in words."""
    double = torch.complex128 if a.is_complex() else torch.float64
    values = torch.linalg.eigvalsh(spd.hermitian_part(a.to(double))) + eps
    unit = spd.real_eps(computing_dtype(a.dtype))
    rank = int((values > spd.NULL_UNITS * unit * values[-1]).sum())
    ratio = float(values[0] / values[-1]) if values[-1] > 0 else 0.0
    return f"rank {rank} of {len(values)}, λ_min/λ_max = {ratio:.1e}"
