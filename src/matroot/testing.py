"""Matrices with a known spectrum, the one table of tolerances, and counters of operations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from matroot import context
from matroot.accuracy import Quantity, tolerance

__all__ = [
    "Launches",
    "Products",
    "Quantity",
    "Spectrum",
    "assert_root",
    "by_eigh",
    "count_launches",
    "eigenvalues",
    "exact",
    "exact_gradient",
    "random_spd",
    "relative_error",
    "tolerance",
]


def __dir__() -> list[str]:
    return __all__


Spectrum = Literal["log", "clustered", "outlier", "half_zero"]


def random_spd(
    n: int,
    *batch: int,
    cond: float = 1e2,
    spectrum: Spectrum = "log",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Tensor:
    """Random symmetric (Hermitian) matrices Q diag(λ) Qᴴ with largest eigenvalue 1.

    Args:
        n: size.
        batch: leading dimensions, one after the other; none by default.
        cond: λ_max/λ_min of the eigenvalues that are not zero, 100 by default.
        spectrum: ``"log"`` (the default) spaces λ evenly in the logarithm; ``"clustered"`` has half
            at 1, half at 1/cond; ``"outlier"`` has one at 1, the rest at 1/cond; ``"half_zero"`` is
            ``"log"`` for the upper half and 0 below (to the rounding of the product).
        dtype: of the result, float64 by default; everything is computed in double precision and
            rounded once.
        device: of the result, the CPU by default.
        seed: of the generator, 0 by default; the same arguments give the same matrices.

    Returns:
        Shape ``(*batch, n, n)``.
    """
    generator = torch.Generator().manual_seed(seed)
    double = torch.complex128 if dtype.is_complex else torch.float64
    q = torch.linalg.qr(torch.randn(*batch, n, n, dtype=double, generator=generator)).Q
    a = (q * eigenvalues(n, cond, spectrum)) @ q.mH
    symmetric: Tensor = (a + a.mH) / 2
    return symmetric.to(device=device, dtype=dtype)


def eigenvalues(n: int, cond: float, spectrum: Spectrum) -> Tensor:
    """The eigenvalues that ``random_spd`` prescribes, the largest first.

    Args:
        n: their number.
        cond: λ_max/λ_min of those that are not zero.
        spectrum: ``"log"``, ``"clustered"``, ``"outlier"`` or ``"half_zero"``, see ``random_spd``.

    Returns:
        Shape (n,), float64.

    Raises:
        ValueError: an unknown spectrum.
    """
    if spectrum == "log":
        return torch.logspace(0, -math.log10(cond), n, dtype=torch.float64)
    if spectrum == "half_zero":
        upper = eigenvalues((n + 1) // 2, cond, "log")
        return torch.cat([upper, upper.new_zeros(n // 2)])
    if spectrum == "clustered":
        low = n // 2
    elif spectrum == "outlier":
        low = n - 1
    else:
        raise ValueError(
            f"spectrum must be 'log', 'clustered', 'outlier' or 'half_zero', got {spectrum!r}"
        )
    ones = torch.ones(n, dtype=torch.float64)
    return torch.where(torch.arange(n) >= n - low, ones / cond, ones)


def exact(a: Tensor, quantity: Literal["sqrt", "inv_sqrt"] = "sqrt") -> Tensor:
    """The root in double precision by ``torch.linalg.eigh``, of A promoted without rounding.

    Args:
        a: symmetric (Hermitian) matrices, shape (..., n, n), of any floating-point dtype.
        quantity: ``"sqrt"`` (the default) or ``"inv_sqrt"``.

    Returns:
        The shape and device of ``a``, float64 or complex128; eigenvalues below 0 count as 0.
    """
    double = torch.complex128 if a.is_complex() else torch.float64
    values, q = torch.linalg.eigh(a.detach().to(double))
    roots = values.clamp(min=0).sqrt()
    root: Tensor = (q * (roots if quantity == "sqrt" else 1 / roots)[..., None, :]) @ q.mH
    return root


def exact_gradient(a: Tensor, g: Tensor, quantity: Literal["sqrt", "inv_sqrt"] = "sqrt") -> Tensor:
    """The gradient by A for the cotangent G, in double precision, by division by s_i + s_j.

    Args:
        a: symmetric (Hermitian) matrices, shape (..., n, n), of any floating-point dtype.
        g: the cotangent of the root, the shape of ``a``; its Hermitian part is used.
        quantity: ``"sqrt"`` (the default) or ``"inv_sqrt"``.

    Returns:
        The shape and device of ``a``, float64 or complex128, Hermitian.
    """
    double = torch.complex128 if a.is_complex() else torch.float64
    values, q = torch.linalg.eigh(a.detach().to(double))
    s = values.clamp(min=0).sqrt()
    sums = s[..., :, None] + s[..., None, :]
    if quantity == "inv_sqrt":
        sums = -sums * s[..., :, None] * s[..., None, :]
    g = g.detach().to(double)
    gradient: Tensor = q @ ((q.mH @ ((g + g.mH) / 2) @ q) / sums) @ q.mH
    return gradient


def by_eigh(
    a: Tensor, g: Tensor, quantity: Literal["sqrt", "inv_sqrt"] = "sqrt"
) -> tuple[Tensor, Tensor]:
    """A plain reference: root and gradient by torch.linalg.eigh in the dtype of A.

    Division by s_i + s_j; eigenvalues below zero count as zero.

    Args:
        a: symmetric (Hermitian) matrices, shape (..., n, n), of a dtype that eigh takes.
        g: the cotangent of the root, the shape and dtype of ``a``.
        quantity: ``"sqrt"`` (the default) or ``"inv_sqrt"``.

    Returns:
        (root, gradient), each of the shape, dtype and device of ``a``.
    """
    values, q = torch.linalg.eigh(a.detach())
    s = values.clamp(min=0).sqrt()
    sums = s[..., :, None] + s[..., None, :]
    if quantity == "inv_sqrt":
        sums = -sums * s[..., :, None] * s[..., None, :]
    root: Tensor = (q * (s if quantity == "sqrt" else 1 / s)[..., None, :]) @ q.mH
    gradient: Tensor = q @ ((q.mH @ ((g + g.mH) / 2) @ q) / sums) @ q.mH
    return root, gradient


def relative_error(x: Tensor, reference: Tensor) -> Tensor:
    """‖X − X₀‖_F/‖X₀‖_F of each matrix in double precision; ‖X‖_F where X₀ = 0.

    Args:
        x: matrices, shape (..., n, n), of any floating-point dtype.
        reference: X₀, a shape that broadcasts with that of ``x``.

    Returns:
        Shape (...), float64.
    """
    double = torch.complex128 if x.is_complex() else torch.float64
    difference: Tensor = torch.linalg.matrix_norm(x.detach().to(double) - reference.to(double))
    scale = torch.linalg.matrix_norm(reference.to(double))
    ratio: Tensor = difference / torch.where(scale > 0, scale, 1.0)
    return ratio


def assert_root(
    a: Tensor, root: Tensor, *, cond: float, quantity: Literal["sqrt", "inv_sqrt"] = "sqrt"
) -> None:
    """Raise AssertionError unless ``root`` is the (inverse) root of ``a`` within ``tolerance``.

    Args:
        a: symmetric (Hermitian) matrices, shape (..., n, n), of any floating-point dtype.
        root: the root that is examined, the shape and dtype of ``a``.
        cond: λ_max/λ_min of ``a``, by which the tolerance is chosen.
        quantity: ``"sqrt"`` (the default) or ``"inv_sqrt"``.

    Raises:
        AssertionError: with the largest relative error and the tolerance.
    """
    error = relative_error(root, exact(a, quantity))
    bound = tolerance(a.dtype, cond, quantity)
    worst = float(error.max()) if error.numel() else 0.0
    # Written so that NaN fails too.
    assert worst <= bound, f"relative error {worst:.2e} of {quantity} exceeds {bound:.2e}"


# PyTorch leaves the base class without types.
class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the matrix products that PyTorch computes inside a ``with`` block.

    Attributes:
        count: how many there were.
    """

    count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and pass on."""
        self.count += func.overloadpacket.__name__ in ("mm", "bmm", "addmm", "baddbmm")
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Launches:
    """The operations that a call and its gradient start on a device: see ``count_launches``.

    Attributes:
        forward: the operations of the call, by name.
        backward: those of its gradient.
    """

    forward: Counter[str] = field(default_factory=Counter)
    backward: Counter[str] = field(default_factory=Counter)

    @property
    def counts(self) -> tuple[int, int]:
        """Their numbers: (forward, backward)."""
        return self.forward.total(), self.backward.total()


def count_launches(function: Callable[..., Any], *tensors: Tensor) -> Launches:
    """The operations that a call and its gradient would start on an NVIDIA GPU, counted on a CPU.

    An operation of PyTorch counts as one, and so does a fused kernel; views and allocations start
    nothing. (A library may start more than one kernel for an operation.)

    Args:
        function: returns a tensor or a tuple of tensors.
        tensors: its arguments, on the CPU, treated as tensors on a GPU. If one of them requires a
            gradient, all results that depend on it are differentiated.

    Returns:
        The operations of the call and of its gradient.

    Raises:
        RuntimeError: an operation would have waited for the device.

    Example:
        >>> import torch, matroot
        >>> a = torch.eye(200, requires_grad=True)
        >>> matroot.testing.count_launches(torch.trace, a).counts
        (1, 3)
    """
    launches = Launches()
    with context.pretended_accelerator():
        with _Counting(launches.forward):
            found = function(*tensors)
        outputs = [x for x in (found if isinstance(found, tuple) else (found,)) if x.requires_grad]
        inputs = [x for x in tensors if x.requires_grad]
        if outputs and inputs:
            g = [torch.ones_like(x) for x in outputs]
            with _Counting(launches.backward):
                torch.autograd.grad(outputs, inputs, g)
    return launches


# Operations for which the host waits: it reads their result, or copies its own numbers.
_WAITING = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "_linalg_check_errors",
    "lift_fresh",
}
# Allocations, and views that are not declared as such.
_STARTING_NOTHING = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "detach",
    "_unsafe_view",
}


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that start something on a device, and refuses those that wait for it."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in _WAITING or by_mask:
            raise RuntimeError(f"{name} waits for the device")
        if not func.is_view and name not in _STARTING_NOTHING:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))
