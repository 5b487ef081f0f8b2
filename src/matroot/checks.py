"""Every check of an argument and every error text, in one place."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
    LEFT = 6  # by a kernel to the reference; not what a caller sees


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
    if type(a).__name__ == "DTensor":
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
    if not 0 <= eps <= torch.finfo(computing_dtype(dtype)).max:
        raise ValueError(f"{name} must be finite in {dtype} and at least 0, got {eps}")
    return eps


def finite_at_least_zero(name: str, value: object) -> None:
    """Raise unless ``value`` is a number (TypeError), finite and at least 0 (ValueError)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {value}")


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
    given once a transform has been dealt with has. Subclasses that stand for other tensors
    (DTensor, fake tensors) may have none, or ask other processes for them.
    """
    if spd.on_accelerator(a) or torch.compiler.is_compiling() or jit_tracing():
        return False
    if stands_for_others(a):
        return False
    # PyTorch offers no public question for these; its own transforms ask the same way.
    if torch._C._len_torch_dispatch_stack() and _tracing_mode_active():
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(a)


# Types whose memory is their values.
PLAIN = (Tensor, torch.nn.Parameter)


def stands_for_others(a: Tensor) -> bool:
    """Whether this is of a subclass that says itself what operations do, such as DTensor."""
    if type(a) in PLAIN:
        return False
    return type(a).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl


def _tracing_mode_active() -> bool:
    """Whether a dispatch mode records operations (make_fx) or has no values (fake tensors)."""
    keys = torch._C._TorchDispatchModeKey
    modes = (keys.PROXY, keys.FAKE, keys.FUNCTIONAL)
    return any(torch._C._get_dispatch_mode(key) is not None for key in modes)


def fake_mode_active() -> bool:
    """Whether tensors are made without values: within tracers a fake tensor may be wrapped."""
    fake = torch._C._TorchDispatchModeKey.FAKE
    return bool(torch._C._len_torch_dispatch_stack()) and (
        torch._C._get_dispatch_mode(fake) is not None
    )


# As torch.compiler.assume_constant_result does: asked while tracing, not traced.
fake_mode_active._dynamo_marked_constant = True  # type: ignore[attr-defined]


def operations_are_watched(*tensors: Tensor) -> str | None:
    """Why PyTorch's operations must run and no plain function: for whom; None where nobody looks.

    A TorchDispatchMode (make_fx, FlopCounterMode) sees operations alone, and a tensor subclass may
    be made of other tensors and have no memory of its own.
    """
    if torch._C._len_torch_dispatch_stack():
        return "a TorchDispatchMode is active, which sees PyTorch's operations alone"
    for a in tensors:
        if type(a) not in PLAIN:
            return f"its kernels take plain tensors, not the subclass {type(a).__name__}"
    return None


def onnx_export_running() -> bool:
    """Whether torch.onnx.export is tracing."""
    return torch.onnx.is_in_onnx_export()


# As torch.compiler.assume_constant_result does: asked while tracing, not traced.
onnx_export_running._dynamo_marked_constant = True  # type: ignore[attr-defined]


def jit_tracing() -> bool:
    """Whether torch.jit.trace is recording operations."""
    # As torch.jit.is_tracing asks, after more questions.
    return torch._C._is_tracing()


# As torch.compiler.assume_constant_result does: asked while tracing, not traced.
jit_tracing._dynamo_marked_constant = True  # type: ignore[attr-defined]


def transforms_active() -> bool:
    """Whether a torch.func transform (vmap, grad, jvp …) is running."""
    # PyTorch offers no public question for this; autograd.Function.apply asks the same way.
    return bool(torch._C._are_functorch_transforms_active())


def differentiated(*inputs: Tensor) -> bool:
    """Whether a derivative may be asked of what is made of these.

    Not of an exported program, which holds operations and no rules of ours.
    """
    if torch.compiler.is_compiling():
        return not autodiff.exporting()
    if transforms_active():
        return True
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return True
    return any(autodiff.tangent(x) is not None for x in inputs)


@dataclass(frozen=True)
class Named:
    """What an error text calls an argument, and what the function at hand has against a bad one.

    Attributes:
        name: the argument's name in the function that the user called.
        ridge: how a ridge is added there: "add …".
        relative: how a ridge relative to the matrix is.
        otherwise: what else helps there, a clause.
        things: what a batch is made of.
    """

    name: str
    ridge: str = "a multiple of the identity"
    relative: str = ""
    otherwise: str = ""
    things: str = "matrices"


def raise_if_bad(
    named: Named, status: Tensor, a: Tensor, dtype: torch.dtype, eps: float = 0.0
) -> None:
    """Raise LinAlgError if any matrix of the batch has a status other than OK.

    Args:
        named: the argument.
        status: shape (...), the Status of each matrix.
        a: the argument, shape (..., n, n).
        dtype: the dtype that the user gave, which sets what counts as rounding.
        eps: the ridge that was added.

    Raises:
        torch.linalg.LinAlgError: with how many matrices are bad, the first few indices, why, by how
            much, and what helps.
    """
    worst = int(status.max()) if status.numel() else 0
    if worst == Status.OK:
        return
    bad = status == worst
    total, many = status.numel(), int(bad.sum())
    reason = _reason(worst, named, a.detach()[bad], dtype, eps)
    if total == 1:
        raise torch.linalg.LinAlgError(f"{named.name} is {reason}")
    indices = [tuple(index) if len(index) > 1 else index[0] for index in bad.nonzero()[:4].tolist()]
    where = ", ".join(map(str, indices)) + (", …" if many > len(indices) else "")
    verb = "are" if many > 1 else "is"
    raise torch.linalg.LinAlgError(
        f"{many} of the {total} {named.things} in {named.name} {verb} {reason} "
        f"(batch index {where})"
    )


def _reason(status: int, named: Named, bad: Tensor, dtype: torch.dtype, eps: float) -> str:
    """What is wrong with matrices (b, n, n) or vectors, by how much, and what helps."""
    if status == Status.NONFINITE:
        return "not finite (NaN or infinity)"
    if status == Status.DIVERGED:
        return (
            "out of reach of this method, which diverged: too close to singular, or too badly "
            f"scaled; take fewer steps or another method, or add {named.ridge}{named.relative}"
        )
    first = "the first: " if len(bad) > 1 else ""
    ridge = f"add {named.ridge}{named.relative}"
    a = spd.in_double(bad[0])
    n = a.shape[-1]
    cancelled = "covariances summed as E[xxᵀ] − μμᵀ lose digits: centre the samples first"
    if status == Status.ASYMMETRIC:
        skew = float(torch.linalg.matrix_norm(a - a.mH) / 2 / torch.linalg.matrix_norm(a))
        return (
            f"not symmetric (Hermitian): {first}the skew part is {skew:.1e} of the norm, "
            f"tolerance {max_skew(dtype):g}; if that is rounding, give (A + Aᴴ)/2 ({cancelled})"
        )
    try:
        values = torch.linalg.eigvalsh(spd.hermitian_part(a)) + eps
    except torch.linalg.LinAlgError:
        values = torch.full((n,), math.nan)
    ratio = float(values[0] / values[-1]) if values[-1] > 0 else -math.inf
    if status == Status.INDEFINITE:
        if ratio == -math.inf:
            return f"indefinite: {first}no eigenvalue is positive, λ_min = {float(values[0]):.1e}"
        tolerance = -n * spd.real_eps(dtype)
        return (
            f"indefinite: {first}λ_min/λ_max = {ratio:.1e}, tolerance {tolerance:.1e}; if that "
            f"is rounding, {ridge}, here more than {-float(values[0]):.1e} in the units "
            f"of the matrix ({cancelled})"
        )
    computing = computing_dtype(bad.dtype)
    share = spd.null_share(n, computing)
    rank = int((values > share * values[-1]).sum())
    how = f"λ_min/λ_max = {ratio:.1e}, zero up to {share:.1e}"
    if not values[-1] > 0:
        how, ridge = "no eigenvalue is above zero", f"add {named.ridge}"
    remedies = ridge + (f", {named.otherwise}" if named.otherwise else "")
    return (
        f"singular ({first}rank {rank} of {n}, {how}), so "
        f"{'they have' if len(bad) > 1 else 'it has'} no inverse root; {remedies}"
    )
