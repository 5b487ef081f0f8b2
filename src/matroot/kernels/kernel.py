"""What a kernel is, and a family of them, which sees a whole request and says what it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from torch import Tensor

from matroot.evaluated import by_solver
from matroot.gradients import GradientRule, Kept
from matroot.gradients.rule import Cotangents
from matroot.methods import Method
from matroot.request import Request
from matroot.roots import Functions
from matroot.solution import Solution

# What ``backend=`` takes: ``FAMILIES`` by name.
BackendName = Literal[
    "auto",
    "torch",
    "native",
    "triton",
    "triton-tf32",
    "triton-double",
]


@dataclass(frozen=True)
class Declined:
    """No kernel runs, and why: a clause about the family."""

    why: str


@dataclass(frozen=True)
class Solved:
    """What a kernel for values has found of matrices (..., n, n).

    Attributes:
        info: status, steps, whether converged (0 no, 1 yes, 2 where it cannot tell), (..., 3),
            int64.
        values: those of ``request.solved``, exactly Hermitian, NaN where the status is not OK;
            memory of their own, not views.
        constants: what the rule's ``prepare`` returns.
        all_ok: whether the host knows that every status is OK.
        left: matrices that are left to the method, (...), bool; None where there are none.
    """

    info: Tensor
    values: tuple[Tensor, ...]
    constants: tuple[Tensor, ...] = ()
    all_ok: bool = False
    left: Tensor | None = None


@dataclass(frozen=True)
class ValueKernel:
    """All of one call on A, (..., n, n) in the computing dtype.

    Nothing is done before it or after it. It adds the ridge ``request.eps``, takes the Hermitian
    part, scales so that nothing overflows, finds the matrices that have no result by
    ``request.thresholds(n)``, says so in their status, and gives them NaN. A kernel that is handed
    scaled matrices, and only evaluates the functions, is made into one by ``screened``.

    Attributes:
        name: what ``explain`` calls it.
        declines: None where it takes this request for this tensor, else why not.
        run: the results; None where something that only numbers tell is against it.
    """

    name: str
    declines: Callable[[Request, Tensor], str | None]
    run: Callable[[Request, Tensor], Solved | None]


def screened(
    name: str,
    declines: Callable[[Request, Tensor], str | None],
    solve: Callable[[Request, Tensor, Functions], Solution],
) -> ValueKernel:
    """A kernel out of one that does what ``Method.solve`` does, and no more.

    What comes before and after it is done by PyTorch's operations, as for a method: the ridge, the
    scale, the statuses, NaN, and the constants of the gradient rule.

    Args:
        name: what ``explain`` calls it.
        declines: None where it takes this request for this tensor, else why not.
        solve: from the request, matrices and functions as ``Method.solve`` is given them to what
            that returns; for functions other than the roots, and for rules that need them,
            with the eigenpairs.
    """

    def run(request: Request, a: Tensor) -> Solved:
        found = by_solver(request, a, partial(solve, request))
        return Solved(found.info, found.values, found.constants)

    return ValueKernel(name, declines, run)


@dataclass(frozen=True)
class GradientKernel:
    """The gradient by A, Hermitian, (..., n, n), from what was kept and the cotangents.

    Attributes:
        name: what ``explain`` calls it.
        declines: None where it takes this request for this tensor, else why not.
        run: the gradient; None where something that only numbers tell is against it.
    """

    name: str
    declines: Callable[[Request, Tensor], str | None]
    run: Callable[[Request, Kept, Cotangents], Tensor | None]


@dataclass(frozen=True)
class Family:
    """Kernels that run in one place, in tables by the type of method and rule.

    By the type itself: a user's subclass has a ``solve`` of its own.

    Attributes:
        name: what ``backend=`` calls it.
        declines: None where the family takes this tensor, else why not.
        values: kernels for values by method, the best first.
        gradients: kernels for gradients by rule, the best first.
        method: the method whose kernel is the best; None: there is none.
        on_request: why ``"auto"`` passes it by for this tensor; None: it does not.
        note: what is to be said of it beside that it takes this tensor.
    """

    name: BackendName
    declines: Callable[[Tensor], str | None]
    values: Mapping[type[Method], tuple[ValueKernel, ...]] = field(default_factory=dict)
    gradients: Mapping[type[GradientRule], tuple[GradientKernel, ...]] = field(default_factory=dict)
    method: Method | None = None
    on_request: Callable[[Tensor], str | None] = lambda a: None
    note: Callable[[Tensor], str] | None = None

    def accepts(self, request: Request, a: Tensor) -> ValueKernel | Declined:
        """The kernel for the values of this request."""
        why = "no kernel for that method"
        for kernel in self.values.get(type(request.method), ()):
            declined = kernel.declines(request, a)
            if declined is None:
                return kernel
            why = declined
        return Declined(why)

    def accepts_gradient(self, request: Request, a: Tensor) -> GradientKernel | Declined:
        """The kernel for first derivatives of this request."""
        rule = request.rule
        if rule is None:
            return Declined("no derivative is wanted")
        if request.singular == "pinv":
            return Declined("no kernel knows the derivative of a pseudo-inverse")
        why = "no kernel for that gradient"
        for kernel in self.gradients.get(type(rule), ()):
            declined = kernel.declines(request, a)
            if declined is None:
                return kernel
            why = declined
        return Declined(why)
