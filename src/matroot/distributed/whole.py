"""Roots of one matrix that no process holds: by products of blocks alone.

The coupled iteration of ``matroot.methods.Minimax`` with the products of ``Grid``. It needs a lower
bound of the eigenvalues, which no factorisation finds here: a ridge, or a promise.

A process holds six blocks at a time at most, the argument's included, and some panels. So blocks
are handed over in lists, from which they are taken out to be freed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.linalg import LinAlgError

from matroot import autodiff, checks, context, screen, spd
from matroot.distributed.blocks import Grid
from matroot.dtensors import agreed, check_member
from matroot.methods import METHODS, Method, Minimax
from matroot.roots import Wanted
from matroot.schedules import OCTAVE, OCTAVES, schedules


@dataclass
class Whole:
    """What was found, the same numbers in all processes.

    Attributes:
        sqrt: A^{1/2}, a block of it, and then a DTensor; None if not asked for, as what follows.
        inv_sqrt: A^{-1/2}.
        residual: see ``matroot.SqrtmResult``, as what follows.
        inv_residual: …
        error_bound: NaN, since nothing is said of matrices in blocks (0 for n = 0).
        inv_error_bound: …
        steps: …
        converged: …
        bad: why there is no result; empty where there is one.
    """

    sqrt: Any = None
    inv_sqrt: Any = None
    residual: Any = None
    inv_residual: Any = None
    error_bound: Any = None
    inv_error_bound: Any = None
    steps: Any = 0
    converged: Any = False
    bad: str = ""


def roots(
    name: str,
    a: Any,
    wanted: Wanted,
    *,
    further: int = 0,
    measured: bool = False,
    eps: float = 0.0,
    relative_eps: float = 0.0,
    method: str | Method = "auto",
    gradient: object = "auto",
    backend: str = "auto",
    check_errors: bool | None = None,
    singular: str = "raise",
    rtol: float | None = None,
) -> Whole:
    """The roots of a DTensor (n, n) that is sharded by rows, by columns, or by both.

    Args:
        name: the public function.
        a: the DTensor.
        wanted: which of the roots.
        further: how many times the root of the result is taken, where one is wanted.
        measured: whether the fields beside the roots are wanted; nothing is raised then.
        eps: see ``matroot.sqrtm``, as what follows.
        relative_eps: …
        method: ``"auto"`` or ``"minimax"``, or ``Minimax`` with its options.
        gradient: …
        backend: …
        check_errors: …
        singular: …
        rtol: …

    Returns:
        DTensors: the roots placed as A is, numbers on every process.

    Raises:
        TypeError: an argument of the wrong type, a complex matrix.
        ValueError: options that a matrix in blocks does not know, or nothing is known of its least
            eigenvalue.
        torch.linalg.LinAlgError: see ``matroot.sqrtm``, in all processes.
    """
    check_member(name, a.device_mesh)

    def checked() -> tuple[Grid, Minimax]:
        grid = Grid.of(a)
        known = _method(name, a, method, backend, singular, rtol)
        checks.ridge(eps, a.dtype)
        checks.ridge(relative_eps, a.dtype, "relative_eps")
        if not (eps or relative_eps or known.max_cond):
            raise ValueError(
                f"{name}: a is sharded on its own dimensions, and products alone do not find its "
                "least eigenvalue: add a ridge with eps= or relative_eps=, or promise a bound of "
                "λ_max/λ_min with method=Minimax(max_cond=…)"
            )
        return grid, known

    # A process that raised alone would leave the others waiting for its blocks.
    grid, known = agreed(a.device_mesh, checked)
    if grid.n == 0:
        empty = torch.empty_like(a.to_local())
        zero = 0.0 if measured else None
        found = Whole(empty, empty.clone(), zero, zero, zero, zero, 0, True)
        return _placed(_only(found, wanted, further), a)
    with torch.no_grad(), context.no_autocast(a):
        found = _found(a, grid, known, eps, relative_eps, wanted, further, measured)
        if found.bad:
            if not measured and checks.checking(check_errors, a.to_local()):
                raise LinAlgError(f"a is {found.bad}")
            nan = torch.full_like(a.to_local(), torch.nan)
            no = math.nan
            found = Whole(nan, nan.clone(), no, no, no, no, found.steps)
            found = _only(found, wanted, further)
        return _placed(found, a)


def _method(
    name: str, a: Any, method: str | Method, backend: str, singular: str, rtol: float | None
) -> Minimax:
    """The method; an error where the matrix or an option is none that blocks go with."""
    if not a.is_floating_point():
        raise TypeError(f"{name}: a matrix that is sharded must be real, got {a.dtype}")
    method = Minimax() if method == "auto" else METHODS.resolve(method)
    if isinstance(method, Minimax) and method.step_degree == 5:
        why = None
        if method.max_steps == 1:
            why = "max_steps=1; whether the bounds hold shows in the second step"
        elif backend not in ("auto", "torch"):
            why = f"backend={backend!r}; the products are PyTorch's"
        elif singular != "raise" or rtol is not None:
            why = f"singular={singular!r}, which needs eigenvalues"
        elif autodiff.differentiated(a):
            why = "requires_grad: no derivative is known here; what helps: a.detach()"
        if why is None:
            return method
    else:
        why = f"method={method!r}; Minimax() with step_degree=5 alone is made of products"
    raise ValueError(f"{name}: a is sharded on its own dimensions, which does not go with {why}")


def _only(found: Whole, wanted: Wanted, further: int) -> Whole:
    """Of roots that are all one number those that are wanted."""
    sqrt, inv_sqrt = wanted.sqrt or bool(further), wanted.inv_sqrt and not further
    return Whole(
        found.sqrt if sqrt else None,
        found.inv_sqrt if inv_sqrt else None,
        found.residual if sqrt else None,
        found.inv_residual if inv_sqrt else None,
        found.error_bound if sqrt else None,
        found.inv_error_bound if inv_sqrt else None,
        found.steps,
        found.converged,
    )


def _placed(found: Whole, a: Any) -> Whole:
    """The same as DTensors on the mesh of a."""
    from torch.distributed.tensor import DTensor, Replicate

    mesh, stride = a.device_mesh, torch.empty(a.shape, device="meta").stride()

    def matrix(x: Tensor | None) -> Any:
        if x is None:
            return None
        return DTensor.from_local(
            x, mesh, a.placements, run_check=False, shape=a.shape, stride=stride
        )

    def number(x: float | bool | None) -> Any:
        if x is None:
            return None
        dtype = spd.computing_dtype(a.dtype) if isinstance(x, float) else None
        local = torch.tensor(x, dtype=dtype, device=a.device)
        return DTensor.from_local(local, mesh, [Replicate()] * mesh.ndim, run_check=False)

    return Whole(
        matrix(found.sqrt),
        matrix(found.inv_sqrt),
        number(found.residual),
        number(found.inv_residual),
        number(found.error_bound),
        number(found.inv_error_bound),
        number(found.steps),
        number(found.converged),
    )


def _found(
    a: Any,
    grid: Grid,
    method: Minimax,
    eps: float,
    relative_eps: float,
    wanted: Wanted,
    further: int,
    measured: bool,
) -> Whole:
    """The roots as blocks, and with ``measured`` how good they are."""
    local = a.to_local()
    count = 2 ** (1 + further)  # The result is scaled by the root of this order.
    k, bad = _exponent(grid, local, eps, count)
    if bad:
        return Whole(bad=bad)
    h, skew = _hermitian(grid, local, k)
    limit = screen.thresholds(grid.n, a.dtype).skew
    if skew > limit:
        why = f"not symmetric: the skew part is {skew:.1e} of the norm, tolerance {limit:g}"
        return Whole(bad=why)
    norm, trace = grid.sizes(h)
    ridge = math.ldexp(eps, -k) + relative_eps * norm
    if norm == ridge == 0:
        if wanted.inv_sqrt:
            return Whole(bad="zero, which has no inverse root")
        return Whole(torch.zeros_like(local), residual=0.0, error_bound=0.0, converged=True)
    low = ridge
    if method.max_cond is not None and trace > 0:
        low = max(low, norm**2 / trace / method.max_cond)
    grid.diagonal(h).add_(ridge)
    blocks = [h]
    del h
    run = _iterated(grid, method, blocks, low, wanted)
    steps, enough, kept = run.steps, run.enough, run.kept
    sign = -1 if wanted.inv_sqrt and further else 1
    for _ in range(further):
        # In these bounds the eigenvalues of the root, or of the inverse root, are.
        low = math.sqrt(run.low) if wanted.sqrt else 1 / math.sqrt(run.high)
        blocks = [x for x in (run.sqrt, run.inv_sqrt) if x is not None]
        wanted = Wanted(True, False)
        del run
        run = _iterated(grid, method, blocks, low, wanted)
        steps, enough, kept = steps + run.steps, enough and run.enough, kept and run.kept
    if not kept:
        return Whole(steps=steps, bad=_broken(method, run))
    found = Whole(steps=steps, converged=enough)
    for root in ("sqrt", "inv_sqrt"):
        x = getattr(run, root)
        setattr(run, root, None)
        if x is not None:
            # Hermitian to the bit.
            y = grid.transposed(x).mul_(0.5).add_(x, alpha=0.5)
            del x
            setattr(found, root, y)
            del y
    if measured:
        h = _hermitian(grid, local, k)[0]
        grid.diagonal(h).add_(ridge)
        blocks = [h]
        del h
        _measure(grid, blocks, found, a.dtype)
    for root, power in (("sqrt", sign * k // count), ("inv_sqrt", -k // count)):
        x = getattr(found, root)
        if x is not None:
            setattr(found, root, _times_power_of_two_(x, power).to(a.dtype))
    return found


def _exponent(grid: Grid, local: Tensor, eps: float, multiple: int) -> tuple[int, str]:
    """The k with max(|a_ij|, eps)/2ᵏ below 1, and what is wrong where a number is not finite."""
    finite = local.isfinite().all()
    size = spd.max_abs(local).double() if local.numel() else local.new_zeros((), dtype=torch.double)
    rank = -1 if bool(finite) else distributed.get_world_size() - distributed.get_rank()
    largest, bad = grid.largest(
        torch.where(finite, size, 0.0), torch.tensor(rank, device=size.device)
    )
    if bad > 0:
        culprit = distributed.get_world_size() - int(bad)
        return 0, f"not finite (NaN or infinity), first in the block of rank {culprit}"
    k = math.frexp(max(largest, eps))[1]
    return -(-k // multiple) * multiple, ""


def _times_power_of_two_(x: Tensor, k: int) -> Tensor:
    """X · 2ᵏ in place, in two factors since 2ᵏ alone may overflow."""
    return x.mul_(2.0 ** (k // 2)).mul_(2.0 ** (k - k // 2))


def _hermitian(grid: Grid, local: Tensor, k: int) -> tuple[Tensor, float]:
    """(A + Aᵀ)/2ᵏ⁺¹, and the share that the skew part has of the norm."""
    x = local.to(spd.computing_dtype(local.dtype), copy=True)
    _times_power_of_two_(x, -k)
    other = grid.transposed(x)
    norm = grid.norm(x)
    skew = 0.5 * grid.norm(x, other)
    return other.mul_(0.5).add_(x, alpha=0.5), skew / norm if norm > 0 else 0.0


def _broken(method: Minimax, run: _Run) -> str:
    """What is said where eigenvalues are not in the bounds that the steps are made for."""
    promise = f"method={method!r}" if method.max_cond is not None else "the ridge"
    remedy = "a larger eps= or max_cond="
    if run.low <= 2 * run.unit * run.high:
        promise, remedy = "its precision", "a larger eps=, or double precision"
    return (
        f"not a positive definite matrix of the condition that {promise} stands for: an eigenvalue "
        f"is negative, or smaller than that; what helps: {remedy}"
    )


@dataclass
class _Run:
    """A run of the iteration on H: the roots that are wanted, and what the steps were made for."""

    sqrt: Tensor | None
    inv_sqrt: Tensor | None
    high: float
    low: float
    steps: int
    enough: bool
    kept: bool
    unit: float


def _iterated(
    grid: Grid, method: Minimax, blocks: list[Tensor], low: float, wanted: Wanted
) -> _Run:
    """The coupled iteration; see ``matroot.methods.minimax``.

    Args:
        grid: …
        method: …
        blocks: H, which is taken out.
        low: what no eigenvalue of H is below.
        wanted: which of the roots.
    """
    h = blocks.pop()
    n, unit = grid.n, spd.real_eps(h.dtype)
    square = grid.product(h, h)
    high = min(_upper_bound(grid, h), _upper_bound(grid, square) ** 0.5)
    if not 0 < high < math.inf:
        high = 1.0
    # Steps for less would let negative eigenvalues that rounding left of zeros grow.
    low = min(max(low, unit * high), high)
    schedule = _schedule(high / low)
    tol = 2 * unit if method.tol is None else method.tol
    # Two at least: whether the bounds hold shows in the second.
    enough = max(1 + sum(error > tol for *_, error in schedule), 2)
    steps = enough if method.max_steps is None else min(enough, method.max_steps)

    first = schedule[0]
    z = square.mul_(first[2] / high**2).add_(h, alpha=first[1] / high)
    del square
    grid.diagonal(z).add_(first[0])
    # See Minimax: in this product single precision loses what later steps do not restore.
    y = grid.product(h, z, in_double=h.dtype == torch.float32 and not context.on_accelerator(h))
    del h
    kept = False
    for step in range(1, steps):
        # With h(s) = a + b s + c s² and P = Z Y/c̄, c̄ ≥ λ_max, D = h(P) − I by (P − I)², which
        # shows whether all eigenvalues have come near 1.
        a, b, c, _ = schedule[step]
        p = grid.product(z, y)
        d = grid.product(p, p)
        d.div_(high**2).add_(p, alpha=-2 / high)
        grid.diagonal(d).add_(1)
        final = step == steps - 1
        if final:
            # Eigenvalues in the bounds are as far from 1 as the step before left them, but for
            # rounding; one below zero, or far below the bound, is farther from 1 than half.
            left = 2.1 * schedule[step - 1][3] + 4 * unit * (max(n, 100) * high / low) ** 0.5
            kept = grid.norm(d) <= min(n**0.5 * (left**2 + 10 * unit), 0.5)
        d.mul_(c).add_(p, alpha=(2 * c + b) / high)
        del p
        grid.diagonal(d).add_(a - 1 - c)
        if wanted.sqrt or not final:
            y = grid.product(y, d).add_(y)
        if wanted.inv_sqrt or not final:
            z = grid.product(d, z).add_(z)
        del d
    return _Run(
        y.div_(high**0.5) if wanted.sqrt else None,
        z.div_(high**0.5) if wanted.inv_sqrt else None,
        high,
        low,
        steps,
        steps == enough,
        kept,
        unit,
    )


def _upper_bound(grid: Grid, x: Tensor) -> float:
    """See ``spd.upper_bound``."""
    norm, trace = grid.sizes(x)
    row = grid.largest_row(x)
    f, r, t = (torch.tensor(size, dtype=torch.float64) for size in (norm, row, trace))
    return float(spd.upper_bound_by(f, r, t, grid.n, spd.real_eps(x.dtype)))


def _schedule(ratio: float) -> list[list[float]]:
    """a, b, c and the error of each step, for a ratio λ_max/λ_min."""
    table = schedules(5, torch.float64, torch.device("cpu"))
    rows: list[list[float]] = table[
        math.ceil(math.log2(min(max(ratio, 1.0), 2.0**OCTAVES)) * OCTAVE)
    ].tolist()
    return rows


def _measure(grid: Grid, blocks: list[Tensor], found: Whole, dtype: torch.dtype) -> None:
    """Put in the residuals of ``matroot.SqrtmResult``, of roots that are to be of a dtype.

    Args:
        grid: …
        blocks: H, which is taken out.
        found: its roots.
        dtype: …
    """
    h = blocks.pop()
    n, norm, unit = grid.n, grid.norm(h), spd.real_eps(h.dtype)
    input_unit, ratio = spd.real_eps(dtype) if dtype != h.dtype else 0.0, 0.0
    if found.sqrt is not None:
        s = found.sqrt.to(dtype).to(h.dtype)
        found.error_bound = math.nan
        found.residual = grid.norm(grid.product(s, s).sub_(h)) / norm
        ratio = found.residual / (16 * n**0.5 * unit + input_unit)
        del s
    if found.inv_sqrt is not None:
        z = found.inv_sqrt.to(dtype).to(h.dtype)
        p = grid.product(z, h)
        del h
        p = grid.product(p, z)
        grid.diagonal(p).sub_(1)
        found.inv_error_bound = math.nan
        found.inv_residual = grid.norm(p) / n**0.5
        level = (2 * unit + input_unit) * norm * grid.norm(z) ** 2 / n**0.5
        ratio = max(ratio, found.inv_residual / level)
    # As ``matroot.sqrtm_ex`` takes the word of a method that reports it itself.
    found.converged = found.converged and ratio <= 100
