"""Forward algorithms for the root and the inverse root, one file each.

A method is registered by its import here, and public by its name in ``__all__``.
"""

from typing import Literal

from matroot.methods.method import Method
from matroot.registry import Registry
from matroot.solution import Solution

# In the order of tables and messages.
# isort: off
from matroot.methods.taylor import Taylor
from matroot.methods.pade import Pade
from matroot.methods.newton_schulz import NewtonSchulz
from matroot.methods.minimax import Minimax
from matroot.methods.eigh import Eigh
from matroot.methods.eigh import Svd

# isort: on

__all__ = [
    "METHODS",
    "Eigh",
    "Method",
    "MethodName",
    "Minimax",
    "NewtonSchulz",
    "Pade",
    "Solution",
    "Svd",
    "Taylor",
]

# mypy cannot see that an abstract base may stand for its concrete classes.
METHODS: Registry[Method] = Registry("method", Method, globals())  # type: ignore[type-abstract]

# What ``method=`` takes, for type checkers: "auto" and the names of METHODS.
MethodName = Literal["auto", "taylor", "pade", "newton_schulz", "minimax", "eigh", "svd"]


def __dir__() -> list[str]:
    return __all__
