"""The one table of methods and rules that the contract tests run through."""

from __future__ import annotations

import matroot
from matroot.gradients import (
    GRADIENTS,
    GradientRule,
    ImplicitRule,
    Lyapunov,
    Spectral,
    Unrolled,
)
from matroot.methods import METHODS, Eigh, Method, Minimax, NewtonSchulz, Pade, Svd, Taylor

# Options with which a method has converged at condition numbers up to 10.
CONVERGED: list[Method] = [
    Taylor(600),
    Pade(28),
    NewtonSchulz(16),
    Minimax(),
    Eigh(),
    Svd(),
]
# The same, cheaper to differentiate: at condition numbers up to 4.
DIFFERENTIATED: list[Method] = [Taylor(150), *CONVERGED[1:]]
# As published.
PUBLISHED: list[Method] = [Taylor(), Pade(), NewtonSchulz()]
METHOD_OBJECTS = PUBLISHED + CONVERGED

IMPLICIT: list[GradientRule] = [Lyapunov(), Spectral()]
ANY_ORDER: list[GradientRule] = [*IMPLICIT, Unrolled()]
RULES: list[GradientRule] = [GRADIENTS[name]() for name in GRADIENTS]

FUNCTIONS = {
    "sqrt": matroot.sqrtm,
    "inv_sqrt": matroot.inv_sqrtm,
    "both": matroot.sqrtm_pair,
}


def fits(method: Method, rule: GradientRule) -> bool:
    """Whether the rule can work with the method."""
    return method.spectral or not rule.needs_eigenpairs


def pairs(methods: list[Method], rules: list[GradientRule]) -> list[tuple[Method, GradientRule]]:
    """All method × rule that fit."""
    return [(m, r) for m in methods for r in rules if fits(m, r)]


def test_every_registered_class_is_in_the_table() -> None:
    assert {type(m) for m in CONVERGED} == set(METHODS.values())
    assert {type(r) for r in RULES} == set(GRADIENTS.values())
    assert all(isinstance(r, ImplicitRule) for r in IMPLICIT)
