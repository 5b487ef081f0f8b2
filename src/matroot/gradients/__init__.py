"""Backward rules, one file each; any of them goes with any method that can feed it.

A rule is registered by its import here, and public by its name in ``__all__``.
"""

from typing import Literal

from matroot.gradients.rule import ExplicitRule, GradientRule, ImplicitRule, Kept
from matroot.registry import Registry

# In the order of tables and messages.
# isort: off
from matroot.gradients.lyapunov import Lyapunov
from matroot.gradients.spectral import Spectral
from matroot.gradients.unrolled import Unrolled
from matroot.gradients.published import SpectralNaive
from matroot.gradients.published import SpectralClipped
from matroot.gradients.published import SpectralTaylor
from matroot.gradients.published import SpectralPade
from matroot.gradients.published import PowerIteration

# isort: on

__all__ = [
    "GRADIENTS",
    "ExplicitRule",
    "GradientName",
    "GradientRule",
    "ImplicitRule",
    "Kept",
    "Lyapunov",
    "PowerIteration",
    "Spectral",
    "SpectralClipped",
    "SpectralNaive",
    "SpectralPade",
    "SpectralTaylor",
    "Unrolled",
]

GRADIENTS: Registry[GradientRule] = Registry("gradient", GradientRule, globals())

# What ``gradient=`` takes, for type checkers: "auto" and the names of GRADIENTS.
GradientName = Literal[
    "auto",
    "lyapunov",
    "spectral",
    "unrolled",
    "spectral_naive",
    "spectral_clipped",
    "spectral_taylor",
    "spectral_pade",
    "power_iteration",
]


def __dir__() -> list[str]:
    return __all__
