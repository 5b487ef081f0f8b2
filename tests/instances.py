"""The tables that the contract tests run through: methods, rules, backends and functions.

All that is registered is in them, with its default options. What needs others has a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor

import matroot
from matroot import call, errors, functions, spd
from matroot.functions import Exp, InvSqrt, Log, OnRange, Power, SpectralFunction, Sqrt
from matroot.gradients import GRADIENTS, ExplicitRule, GradientRule, ImplicitRule
from matroot.kernels import FAMILIES, Declined
from matroot.methods import METHODS, Method, NewtonSchulz, Pade, Taylor
from matroot.plan import resolve
from matroot.request import Request
from matroot.roots import BOTH

# Options with which a method converges at condition numbers up to 10, where its default does not.
CONVERGING: dict[type[Method], Method] = {
    Taylor: Taylor(600),
    Pade: Pade(28),
    NewtonSchulz: NewtonSchulz(16),
}
CONVERGED: list[Method] = [CONVERGING.get(cls) or cls() for cls in METHODS.values()]
# Cheaper to differentiate: at condition numbers up to 4.
DIFFERENTIABLE: dict[type[Method], Method] = {Taylor: Taylor(150)}
DIFFERENTIATED: list[Method] = [DIFFERENTIABLE.get(type(m), m) for m in CONVERGED]
# As published.
PUBLISHED: list[Method] = [cls() for cls in METHODS.values() if cls in CONVERGING]
METHOD_OBJECTS = PUBLISHED + CONVERGED

RULES: list[GradientRule] = [cls() for cls in GRADIENTS.values()]
IMPLICIT: list[GradientRule] = [rule for rule in RULES if isinstance(rule, ImplicitRule)]
ANY_ORDER: list[GradientRule] = [rule for rule in RULES if rule.max_derivative is None]

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


# Options of functions that have no default.
OPTIONS: dict[type[SpectralFunction], list[SpectralFunction]] = {
    Power: [Power(p) for p in (0.25, -0.25, 1 / 3, -1 / 3, 0.125, 2.5, -1.0, 2.0, 3.0)],
}
SPECTRAL: list[SpectralFunction] = [
    function for cls in functions.FUNCTIONS for function in OPTIONS.get(cls) or [cls()]
]


def public(function: SpectralFunction) -> Callable[..., Tensor]:
    """The public function that computes this one; for one that has none, what it would be."""
    if isinstance(function, Power):
        return lambda a, **options: matroot.powm(a, function.p, **options)
    known = {
        Sqrt: matroot.sqrtm,
        InvSqrt: matroot.inv_sqrtm,
        Log: matroot.logm,
        Exp: matroot.expm,
    }
    return known.get(type(function)) or _called(function)


def _called(function: SpectralFunction) -> Callable[..., Tensor]:
    def run(
        a: Tensor,
        *,
        eps: float = 0.0,
        relative_eps: float = 0.0,
        method: str | Method = "auto",
        gradient: str | GradientRule = "auto",
        backend: str = "auto",
        check_errors: bool | None = None,
        singular: str = "raise",
    ) -> Tensor:
        wanted = OnRange(function) if singular == "pinv" else function
        plan = resolve((wanted,), a, eps, method, gradient, backend, singular)
        named = errors.Named("a")
        return call.values(plan, a, check_errors, relative_eps, named=named)[0]

    return run


# Three digits, on request only.
INEXACT = ("triton-tf32",)


def runs(
    backend: str,
    method: Method,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    rule: GradientRule | None = None,
) -> bool:
    """Whether a kernel of the backend does a call by this method, or its gradient by this rule."""
    family, a = FAMILIES[backend], torch.empty(2, 2, dtype=dtype, device=device)
    if backend in INEXACT or family.declines(a) is not None:
        return False
    if rule is not None and not isinstance(rule, ExplicitRule):
        return False  # Autograd goes through the method's own operations.
    a = a.to(spd.computing_dtype(dtype))
    request = Request(BOTH, method, rule, 0.0, "raise", dtype, a.dtype)
    kernels = family.accepts(request, a), family.accepts_gradient(request, a)
    return not all(isinstance(kernel, Declined) for kernel in kernels)


def backends(method: Method, *dtypes: torch.dtype) -> list[str]:
    """PyTorch's operations, and those that have a kernel for the method in some of the dtypes.

    What ``"auto"`` takes on a CPU is one of them, see test_info.py.
    """
    dtypes = dtypes or (torch.float32, torch.float64)
    return [b for b in FAMILIES if b == "torch" or any(runs(b, method, d) for d in dtypes)]


def calls(
    what: Iterable[Method | tuple[Method, GradientRule]],
    *dtypes: torch.dtype,
    interpreted: bool = False,
) -> list[ParameterSet]:
    """All method × backend × dtype, as what "method", "backend" and "dtype" are parametrised by.

    Args:
        what: the methods; or methods and rules, for "method", "rule", "backend" and "dtype".
        dtypes: the dtypes; none: double precision, which is no parameter then.
        interpreted: whether kernels for GPUs come too, by Triton's interpreter, which takes a tenth
            of a second for a matrix.
    """
    found = []
    for one in what:
        method, rule = one if isinstance(one, tuple) else (one, None)
        for dtype in dtypes or (torch.float64,):
            for backend in FAMILIES:
                if backend != "torch" and not runs(backend, method, dtype, rule=rule):
                    continue
                if interpreted or not backend.startswith("triton"):
                    values = (
                        method,
                        *([rule] if rule else []),
                        backend,
                        *([dtype] if dtypes else []),
                    )
                    name = "-".join(map(str, values))
                    found.append(pytest.param(*values, id=name, marks=marks(backend)))
    return found


def marks(backend: str) -> list[pytest.MarkDecorator]:
    """What the tests of a backend need."""
    if not backend.startswith("triton"):
        return []
    return [
        pytest.mark.filterwarnings(f"ignore:{text}")
        for text in (
            # Elimination of what has no factor overflows, of which GPUs say nothing and NumPy does.
            ".*(overflow|invalid value) encountered:RuntimeWarning",
            "All-NaN slice encountered:RuntimeWarning",
            # The interpreter of Triton 3.6 and before takes arrays of one number for numbers.
            "Conversion of an array with ndim > 0:DeprecationWarning",
        )
    ]
