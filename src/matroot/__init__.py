"""Square roots and other functions of symmetric positive semi-definite matrices."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matroot import gradients, methods, nn
    from matroot.distances import (
        bures_wasserstein_distance,
        frechet_distance,
        geometric_mean,
        transport_map,
    )
    from matroot.functional import (
        SqrtmResult,
        expm,
        inv_sqrtm,
        logm,
        powm,
        sqrtm,
        sqrtm_ex,
        sqrtm_pair,
    )
    from matroot.lyapunov import solve_lyapunov
    from matroot.plan import explain

__all__ = [
    "SqrtmResult",
    "bures_wasserstein_distance",
    "explain",
    "expm",
    "frechet_distance",
    "geometric_mean",
    "gradients",
    "inv_sqrtm",
    "logm",
    "methods",
    "nn",
    "powm",
    "solve_lyapunov",
    "sqrtm",
    "sqrtm_ex",
    "sqrtm_pair",
    "transport_map",
]
__version__ = "0.1.0.dev0"

# The module of each name; a module is its own. They are loaded when they are first asked for, and
# PyTorch with them: ``matroot --version`` and ``--help`` need neither.
_MODULES = {
    "SqrtmResult": "functional",
    "bures_wasserstein_distance": "distances",
    "explain": "plan",
    "expm": "functional",
    "frechet_distance": "distances",
    "geometric_mean": "distances",
    "gradients": "gradients",
    "inv_sqrtm": "functional",
    "logm": "functional",
    "methods": "methods",
    "nn": "nn",
    "powm": "functional",
    "solve_lyapunov": "lyapunov",
    "sqrtm": "functional",
    "sqrtm_ex": "functional",
    "sqrtm_pair": "functional",
    "transport_map": "distances",
}

# Type checkers see the imports above, and so still find misspelt names.
if not TYPE_CHECKING:

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f"{__name__}.{_MODULES[name]}")
        found = module if name == _MODULES[name] else getattr(module, name)
        # Once: the next access finds it here, and so does torch.compile, which guards it.
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
