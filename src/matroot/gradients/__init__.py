"""Backward rules, one file each; any of them goes with any method that can feed it.

A rule is registered by its import here, ``import … as …`` so that type checkers let it pass on.
"""

from typing import Literal

from matroot.gradients.rule import ExplicitRule as ExplicitRule
from matroot.gradients.rule import GradientRule as GradientRule
from matroot.gradients.rule import ImplicitRule as ImplicitRule
from matroot.gradients.rule import Kept as Kept
from matroot.registry import Registry

# In the order of tables and messages.
# isort: off
from matroot.gradients.lyapunov import Lyapunov as Lyapunov
from matroot.gradients.spectral import Spectral as Spectral
from matroot.gradients.unrolled import Unrolled as Unrolled
from matroot.gradients.published import SpectralNaive as SpectralNaive
from matroot.gradients.published import SpectralClipped as SpectralClipped
from matroot.gradients.published import SpectralTaylor as SpectralTaylor
from matroot.gradients.published import SpectralPade as SpectralPade
from matroot.gradients.published import PowerIteration as PowerIteration

# isort: on

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
    own = ["GRADIENTS", "ExplicitRule", "GradientName", "GradientRule", "ImplicitRule", "Kept"]
    return [*own, *(cls.__name__ for cls in GRADIENTS.values())]
