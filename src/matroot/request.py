"""A call, all but its numbers: what methods, gradient rules and kernels are given."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from matroot import screen
from matroot.functions import InvSqrt
from matroot.gradients import ExplicitRule, GradientRule, Kept
from matroot.methods import Method
from matroot.roots import BOTH, Functions, only_roots
from matroot.screen import Thresholds

Singular = Literal["raise", "pinv"]


@dataclass(frozen=True)
class Request:
    """What is to be computed of Hermitian matrices, and how.

    Attributes:
        functions: what was asked for.
        method: the forward method, with its options.
        rule: the gradient rule; None where no derivative is wanted.
        eps: the ridge.
        singular: ``"raise"`` where a singular matrix has no inverse root, ``"pinv"`` where its
            null eigenvalues are left out.
        input_dtype: the dtype that the user gave, whose rounding A has.
        computing_dtype: what it is computed in.
        solved: what is computed, that which was asked for last: the derivative of the inverse root
            may need the root too.
        definite: whether matrices with negative eigenvalues have no result.
        regular: whether singular matrices have no result.
        roots_only: whether ``solved`` are the two roots, of which there is more than eigenpairs.
    """

    functions: Functions
    method: Method
    rule: GradientRule | None
    eps: float
    singular: Singular
    input_dtype: torch.dtype
    computing_dtype: torch.dtype
    # Made once, and read by tracers, which know no cached properties.
    solved: Functions = field(init=False)
    definite: bool = field(init=False)
    regular: bool = field(init=False)
    roots_only: bool = field(init=False)

    def __post_init__(self) -> None:
        rule, solved, regular, definite = self.rule, self.functions, False, True
        for function in self.functions:
            regular = regular or function.domain in ("definite", "regular")
            definite = definite and function.domain in ("definite", "semidefinite")
        if isinstance(rule, ExplicitRule) and len(solved) == 1 and type(solved[0]) is InvSqrt:
            spared = rule.takes_eigenpairs and self.method.spectral and self.singular == "raise"
            if rule.needs_sqrt and not spared:
                solved = BOTH
        object.__setattr__(self, "solved", solved)
        object.__setattr__(self, "definite", definite)
        object.__setattr__(self, "roots_only", only_roots(solved))
        object.__setattr__(self, "regular", regular and self.singular == "raise")

    @property
    def rounded(self) -> bool:
        """Whether A has the rounding of a lower precision than it is computed in."""
        return self.input_dtype != self.computing_dtype

    def thresholds(self, n: int) -> Thresholds:
        """What decides whether n×n matrices have a result."""
        return screen.thresholds(
            n,
            self.input_dtype,
            self.computing_dtype,
            definite=self.definite,
            regular=self.regular,
        )

    def without_derivative(self) -> Request:
        """The same where no derivative is wanted."""
        return replace(self, rule=None)

    def kept(self, saved: tuple[Tensor, ...]) -> Kept:
        """What the forward pass saved, by name.

        Of the roots the values and the constants of the derivative, which is made of both; of
        other functions A and the constants.
        """
        pseudo = self.singular == "pinv"
        if not self.roots_only:
            return Kept(self.solved, (), saved[1:], pseudo, saved[0])
        count = len(self.solved)
        return Kept(self.solved, saved[:count], saved[count:], pseudo)
