"""Forward algorithms for the root and the inverse root, one file each.

A method is registered by its import here, ``import … as …`` so that type checkers let it pass on.
"""

from typing import Literal

from matroot.methods.method import Method as Method
from matroot.registry import Registry
from matroot.solution import Solution as Solution

# In the order of tables and messages.
# isort: off
from matroot.methods.taylor import Taylor as Taylor
from matroot.methods.pade import Pade as Pade
from matroot.methods.newton_schulz import NewtonSchulz as NewtonSchulz
from matroot.methods.minimax import Minimax as Minimax
from matroot.methods.eigh import Eigh as Eigh
from matroot.methods.eigh import Svd as Svd

# isort: on

# mypy cannot see that an abstract base may stand for its concrete classes.
METHODS: Registry[Method] = Registry("method", Method, globals())  # type: ignore[type-abstract]

# What ``method=`` takes, for type checkers: "auto" and the names of METHODS.
MethodName = Literal[
    "auto",
    "taylor",
    "pade",
    "newton_schulz",
    "minimax",
    "eigh",
    "svd",
]


def __dir__() -> list[str]:
    own = ["METHODS", "Method", "MethodName", "Solution"]
    return [*own, *(cls.__name__ for cls in METHODS.values())]
