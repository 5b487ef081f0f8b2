"""The fused kernels as functions of tensors, and as operators of PyTorch's.

Eager programs call the functions; torch.compile, and modes that watch operations, are given the
operators (``torch.ops.matroot``), which take PyTorch twice as long to call.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from matroot import context, screen, spd
from matroot.kernels.triton.launch import BOUNDS, NORM, SIZES, Variant, run
from matroot.schedules import schedules


def _outputs(
    a: Tensor, sqrt: bool, inv_sqrt: bool, constants: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory for info, both roots and the constants of the gradient; empty what is not wanted."""
    batch = a.shape[:-2]
    found = (
        a.new_empty((*batch, 3), dtype=torch.int64),
        a.new_empty(a.shape if sqrt else 0),
        a.new_empty(a.shape if inv_sqrt else 0),
        a.new_empty((*batch, 2) if constants == BOUNDS else batch if constants == NORM else 0),
    )
    if context.pretending():
        for numbers in found[1:]:
            numbers.fill_(math.nan)  # Where launches are counted no kernel writes them.
    return found


@functools.cache
def _limits(n: int, dtype: torch.dtype, regular: bool) -> dict[str, float]:
    """``screen.thresholds`` as the kernels take them."""
    found = screen.thresholds(n, dtype, regular=regular)
    assert found.indefinite is not None
    return {
        "skew_limit": found.skew,
        "indefinite_limit": found.indefinite,
        "singular_limit": -1.0 if found.singular is None else found.singular,
        "null_limit": found.null,
    }


@functools.lru_cache(1024)
def _words(eps: float) -> tuple[int, int]:
    """The two halves of its bits in float64: Triton passes floats in single precision."""
    low, high = struct.unpack("<ii", struct.pack("<d", eps))
    return high, low


def minimax(
    a: Tensor,
    dtype: torch.dtype,
    eps: float,
    sqrt: bool,
    inv_sqrt: bool,
    regular: bool,
    constants: int,
    tol: float,
    max_steps: int,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Info, A^{1/2}, A^{-1/2} and the constants of the gradient: see minimax.minimax_kernel.

    Args:
        a: shape (..., n, n), float32, or float64 if the precision is DOUBLE.
        dtype: the dtype that the user gave.
        eps: the ridge.
        sqrt: whether A^{1/2} is wanted.
        inv_sqrt: whether A^{-1/2} is wanted.
        regular: whether a singular matrix has no result.
        constants: NOTHING, BOUNDS or NORM.
        tol: see Minimax.
        max_steps: see Minimax.
        precision: of products, as tl.dot names it.
    """
    a = a.contiguous()
    info, s, z, known = found = _outputs(a, sqrt, inv_sqrt, constants)
    n, (eps_high, eps_low) = a.shape[-1], _words(eps)
    run(
        Variant("minimax", SIZES[n], (dtype != a.dtype,), precision),
        a,
        a_ptr=a,
        sqrt_ptr=s,
        inv_sqrt_ptr=z,
        constants_ptr=known,
        info_ptr=info,
        table_ptr=schedules(5, a.dtype, a.device),
        eps=eps,
        eps_high=eps_high,
        eps_low=eps_low,
        **_limits(n, dtype, regular),
        tol=tol,
        max_steps=max_steps,
        sqrt=int(sqrt),
        inv=int(inv_sqrt),
        constants=constants,
    )
    return found


def published(
    a: Tensor,
    dtype: torch.dtype,
    eps: float,
    sqrt: bool,
    inv_sqrt: bool,
    regular: bool,
    constants: int,
    p: list[float],
    q: list[float],
    pade: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same by the published polynomials: see published.published_kernel.

    Args:
        a: see ``minimax``, also for the arguments that are not listed here.
        p: the coefficients of P.
        q: the coefficients of Q.
        pade: whether they are Padé's.
    """
    a = a.contiguous()
    info, s, z, known = found = _outputs(a, sqrt, inv_sqrt, constants)
    n, (eps_high, eps_low) = a.shape[-1], _words(eps)
    degree = len(p) - 1
    run(
        Variant("published", SIZES[n], (dtype != a.dtype, pade), precision),
        a,
        a_ptr=a,
        sqrt_ptr=s,
        inv_sqrt_ptr=z,
        constants_ptr=known,
        info_ptr=info,
        table_ptr=schedules(5, a.dtype, a.device),
        coefficients_ptr=_coefficients(tuple(p), tuple(q), a.dtype, a.device),
        eps=eps,
        eps_high=eps_high,
        eps_low=eps_low,
        **_limits(n, dtype, regular),
        blocks=-(-degree // 3),
        degree=degree,
        sqrt=int(sqrt),
        inv=int(inv_sqrt),
        constants=constants,
    )
    return found


@functools.cache
def _coefficients(
    p: tuple[float, ...], q: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Both polynomials, each with zeros up to the next multiple of 3."""
    context.refuse_capture(device)
    degree = len(p) - 1
    zeros = (0.0,) * (-degree % 3)
    return torch.tensor([*p, *zeros, *q, *zeros], dtype=dtype, device=device)


def lyapunov(
    s: Tensor,
    z: Tensor | None,
    constants: Tensor | None,
    g_sqrt: Tensor | None,
    g_inv: Tensor | None,
    regular: bool,
    steps: int,
    precision: str,
) -> Tensor:
    """X of S X + X S = G_S − Z G_Z Z: see gradients.lyapunov_kernel.

    Args:
        s: S, shape (..., n, n), float32, or float64 if the precision is DOUBLE.
        z: Z, where G_Z is given.
        constants: what the root's kernel wrote, or None.
        g_sqrt: G_S, or None.
        g_inv: G_Z, or None.
        regular: whether S is known to have no null space.
        steps: of the matrix sign function, 0 to solve to rounding.
        precision: of products, as tl.dot names it.
    """
    s = s.contiguous()
    n = s.shape[-1]
    x = torch.empty_like(s)
    run(
        Variant("lyapunov", SIZES[n], (steps > 0,), precision),
        s,
        s_ptr=s,
        z_ptr=s if z is None else z.contiguous(),
        constants_ptr=s if constants is None else constants.contiguous(),
        g_sqrt_ptr=s if g_sqrt is None else g_sqrt.contiguous(),
        g_inv_ptr=s if g_inv is None else g_inv.contiguous(),
        x_ptr=x,
        share=_null_share(n, s.dtype),
        steps=steps,
        sqrt=int(g_sqrt is not None),
        inv=int(g_inv is not None),
        regular=int(regular),
        known=int(constants is not None),
    )
    return x


@functools.cache
def _null_share(n: int, dtype: torch.dtype) -> float:
    """Eigenvalues of S up to this share of the largest are zero."""
    return math.sqrt(spd.null_share(n, dtype))


def _no_roots(
    a: Tensor,
    _dtype: Any,
    _eps: float,
    sqrt: bool,
    inv_sqrt: bool,
    _: bool,
    constants: int,
    *__: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs of the right shapes, without values, for torch.compile."""
    return _outputs(a, sqrt, inv_sqrt, constants)


def _no_gradient(s: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(s, memory_format=torch.contiguous_format)


# By the low-level interface: an operator of torch.library.custom_op takes longer to call than some
# kernels take to run.
_LIBRARY = torch.library.Library("matroot", "DEF")


def _operator(run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """``torch.ops.matroot.NAME``, which calls ``run``; torch.compile traces ``fake``."""
    name = run.__name__
    _LIBRARY.define(name + torch.library.infer_schema(run, mutates_args=()))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"matroot::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.matroot, name).default


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "minimax": minimax,
    "published": published,
    "lyapunov": lyapunov,
}
OPERATORS: dict[str, Callable[..., Any]] = {
    "minimax": _operator(minimax, _no_roots),
    "published": _operator(published, _no_roots),
    "lyapunov": _operator(lyapunov, _no_gradient),
}
