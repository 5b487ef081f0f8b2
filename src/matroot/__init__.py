"""Square roots and other functions of symmetric positive semi-definite matrices."""

from importlib import import_module
from typing import TYPE_CHECKING

from matroot import _process as _process

# For type checkers, which so still find misspelt names.
if TYPE_CHECKING:
    from matroot import compat as compat
    from matroot import distributed as distributed
    from matroot import functions as functions
    from matroot import gradients as gradients
    from matroot import methods as methods
    from matroot import nn as nn
    from matroot import statistics as statistics
    from matroot import testing as testing
    from matroot.barycenters import barycenter as barycenter
    from matroot.distances import bures_wasserstein_distance as bures_wasserstein_distance
    from matroot.distances import frechet_distance as frechet_distance
    from matroot.distances import geometric_mean as geometric_mean
    from matroot.distances import transport_map as transport_map
    from matroot.features import (
        frechet_distance_from_features as frechet_distance_from_features,
    )
    from matroot.functional import SqrtmResult as SqrtmResult
    from matroot.functional import expm as expm
    from matroot.functional import inv_sqrtm as inv_sqrtm
    from matroot.functional import logm as logm
    from matroot.functional import powm as powm
    from matroot.functional import sqrtm as sqrtm
    from matroot.functional import sqrtm_ex as sqrtm_ex
    from matroot.functional import sqrtm_pair as sqrtm_pair
    from matroot.gradient_bounds import gradient_error_bound as gradient_error_bound
    from matroot.lyapunov import solve_lyapunov as solve_lyapunov
    from matroot.plan import explain as explain

__version__ = "0.1.0.dev0"

# The module of each public name; a module is its own. They are loaded when they are first asked
# for, and PyTorch with them: ``matroot --version`` and ``--help`` need neither.
_MODULES = {
    "SqrtmResult": "functional",
    "barycenter": "barycenters",
    "bures_wasserstein_distance": "distances",
    "compat": "compat",
    "distributed": "distributed",
    "explain": "plan",
    "expm": "functional",
    "frechet_distance": "distances",
    "frechet_distance_from_features": "features",
    "functions": "functions",
    "geometric_mean": "distances",
    "gradient_error_bound": "gradient_bounds",
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
    "statistics": "statistics",
    "testing": "testing",
    "transport_map": "distances",
}

if not TYPE_CHECKING:
    __all__ = [*_MODULES]

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f"{__name__}.{_MODULES[name]}")
        found = module if name == _MODULES[name] else getattr(module, name)
        # Once: the next access finds it here, and so does torch.compile, which guards it.
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return ["__version__", *_MODULES]
