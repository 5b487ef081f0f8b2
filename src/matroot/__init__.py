"""Square roots and inverse square roots of symmetric positive semi-definite matrices."""

from matroot import gradients, methods, nn
from matroot.distances import bures_wasserstein_distance, frechet_distance
from matroot.functional import SqrtmResult, inv_sqrtm, sqrtm, sqrtm_ex, sqrtm_pair
from matroot.lyapunov import solve_lyapunov
from matroot.plan import explain

__all__ = [
    "SqrtmResult",
    "bures_wasserstein_distance",
    "explain",
    "frechet_distance",
    "gradients",
    "inv_sqrtm",
    "methods",
    "nn",
    "solve_lyapunov",
    "sqrtm",
    "sqrtm_ex",
    "sqrtm_pair",
]
__version__ = "0.1.0.dev0"
