"""Screen, solve, finish: what is done around a method's ``solve``, and around kernels like it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from matroot import context, screen, spd, spectrum
from matroot.functions import Sqrt
from matroot.gradients import ExplicitRule
from matroot.methods import Eigh
from matroot.request import Request
from matroot.roots import Functions
from matroot.screen import Converged, Status
from matroot.solution import Solution


@dataclass
class Evaluated:
    """What a call has found.

    Attributes:
        info: shape (..., 3), int64: the Status of each matrix; the steps taken; whether the method
            says that they converged, see Converged.
        values: those of ``request.solved``, each (..., n, n).
        constants: those of the derivative, batch first.
        all_ok: whether it is known that every Status is OK.
    """

    info: Tensor
    values: tuple[Tensor, ...]
    constants: tuple[Tensor, ...] = ()
    all_ok: bool = False

    def flat(self) -> tuple[Tensor, ...]:
        """All tensors, as an autograd function returns them."""
        return (self.info, *self.values, *self.constants)


def by_solver(
    request: Request, x: Tensor, solve: Callable[[Tensor, Functions], Solution]
) -> Evaluated:
    """The values, and the constants of the derivative by the rule, by PyTorch's operations.

    Args:
        request: the call.
        x: shape (..., n, n), in the computing dtype.
        solve: does what ``Method.solve`` does.
    """
    batch, n = x.shape[:-2], x.shape[-1]
    limits = request.thresholds(n)
    flat = x.reshape(math.prod(batch), n, n)
    a, k, status = screen.normalized(flat, limits.skew, request.eps)
    products_only = context.exporting() and not request.method.factorises
    # Eigh counts them as 0 itself.
    if request.rounded and request.definite and not (type(request.method) is Eigh or products_only):
        a = spectrum.without_rounded_negatives(a, request.input_dtype)
    # Of functions other than the roots a method is asked for eigenpairs alone.
    solution = solve(a, request.solved if request.roots_only else ())
    if not products_only:
        pairs = solution.spectrum
        seen = None if pairs is None else pairs.values.detach()
        found = screen.definiteness(a.detach(), limits, eigenvalues=seen, bounds=solution.bounds)
        status = torch.maximum(status, found)
    if solution.diverged is not None:
        status = torch.where(solution.diverged & (status == Status.OK), Status.DIVERGED, status)
    ok = (status == Status.OK)[:, None, None]
    if not request.roots_only:
        solution = _by_eigenpairs(request, solution, k)
        k = torch.zeros_like(k)
    values = _scaled_back(solution, k, ok, x)
    constants: tuple[Tensor, ...] = ()
    if request.rule is not None:
        constants = _constants(request, a, solution, k, ok)
    steps = solution.steps
    if not isinstance(steps, Tensor):
        # Filled there: a number that is copied to a device waits for it.
        steps = torch.full((), steps, device=x.device)
    steps = steps.expand_as(status)
    reported = solution.converged
    reported = Converged.UNKNOWN * torch.ones_like(status) if reported is None else reported.long()
    info = torch.stack([status, steps, torch.where(ok[:, 0, 0], reported, Converged.NO)], -1)
    info, *rest = (t.reshape((*batch, *t.shape[1:])) for t in (info, *constants))
    return Evaluated(info, values, tuple(rest))


def _by_eigenpairs(request: Request, solution: Solution, k: Tensor) -> Solution:
    """The functions of A = 2ᵏ X by the eigenpairs of X, which are scaled back first."""
    assert solution.spectrum is not None
    pairs = solution.spectrum.scaled(k)
    values = tuple([pairs.assembled(function) for function in request.solved])
    return replace(solution, functions=request.solved, values=values, spectrum=pairs)


def _scaled_back(solution: Solution, k: Tensor, ok: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """The values of A = 2ᵏ X from those of X, Hermitian, NaN where not ``ok``."""
    half = torch.div(k, 2, rounding_mode="floor")
    wanted = [
        spd.times_power_of_two(
            spd.hermitian_part(value), half if type(function) is Sqrt else -half
        ).reshape(x.shape)
        for function, value in zip(solution.functions, solution.values, strict=True)
    ]
    # Reshaped before the last operation: an output that is a view could not be changed in place.
    good = ok.reshape((*x.shape[:-2], 1, 1))
    return tuple([torch.where(good, value, spd.nan_where(~good, x)) for value in wanted])


def _constants(
    request: Request, a: Tensor, solution: Solution, k: Tensor, ok: Tensor
) -> tuple[Tensor, ...]:
    """Those of the derivative, batch first, NaN where not ``ok``."""
    assert isinstance(request.rule, ExplicitRule)
    if solution.sqrt is not None:
        safe = torch.where(ok, solution.sqrt, spd.identity_like(a))
        solution = solution.with_sqrt(spd.hermitian_part(safe))
    scale = spd.power_of_two(torch.div(k, 2, rounding_mode="floor"), a)
    return tuple(
        torch.where(ok.reshape((-1,) + (1,) * (c.ndim - 1)), c, torch.nan)
        for c in request.rule.prepare(a.detach(), solution, scale)
    )
