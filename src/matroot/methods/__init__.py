"""Forward algorithms for the root and the inverse root, one file each."""

from matroot.methods.eigh import Eigh, Svd
from matroot.methods.method import Method
from matroot.methods.minimax import Minimax
from matroot.methods.newton_schulz import NewtonSchulz
from matroot.methods.pade import Pade
from matroot.methods.taylor import Taylor
from matroot.registry import Registry

__all__ = [
    "METHODS",
    "Eigh",
    "Method",
    "Minimax",
    "NewtonSchulz",
    "Pade",
    "Svd",
    "Taylor",
]

# mypy cannot see that an abstract base may stand for its concrete classes.
METHODS: Registry[Method] = Registry(
    "method",
    # Never instantiated: the registry only asks what is an instance of it.
    Method,  # type: ignore[type-abstract]
    Taylor,
    Pade,
    NewtonSchulz,
    Minimax,
    Eigh,
    Svd,
)
