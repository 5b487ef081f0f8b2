"""What a call runs: names to objects, ``"auto"`` decided by fixed rules, combinations checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from matroot import autodiff, checks, spd
from matroot.backends import Backend, reasons, select
from matroot.gradients import GRADIENTS, ExplicitRule, GradientRule, Lyapunov, Roots, Spectral
from matroot.methods import METHODS, Eigh, Method, Minimax
from matroot.registry import name_of
from matroot.solution import Root

Singular = Literal["raise", "pinv"]


@dataclass(frozen=True)
class Plan:
    """Everything about one call but the numbers.

    Attributes:
        solved: the roots to compute: the derivative of the inverse root may need the root too.
        kept: how many roots are computed.
        asked: how many were asked for: the last ones of those computed.
    """

    root: Root
    eps: float
    method: Method
    rule: GradientRule
    ops: Backend
    singular: Singular
    input_dtype: torch.dtype
    solved: Root = field(init=False)
    kept: int = field(init=False)
    asked: int = field(init=False)

    def __post_init__(self) -> None:
        rule, needed = self.rule, False
        if isinstance(rule, ExplicitRule):
            spared = rule.takes_eigenpairs and self.method.spectral and self.singular == "raise"
            needed = rule.needs_sqrt and not spared
        solved: Root = "both" if self.root == "inv_sqrt" and needed else self.root
        object.__setattr__(self, "solved", solved)
        object.__setattr__(self, "kept", 2 if solved == "both" else 1)
        object.__setattr__(self, "asked", 2 if self.root == "both" else 1)

    def roots(self, saved: tuple[Tensor, ...]) -> Roots:
        """What the forward pass saved, by name."""
        return Roots(
            sqrt=None if self.solved == "inv_sqrt" else saved[0],
            inv_sqrt=None if self.solved == "sqrt" else saved[self.kept - 1],
            constants=tuple(saved[self.kept :]),
            pseudo=self.singular == "pinv",
        )


@dataclass(frozen=True)
class Explanation:
    """What a call would run, and why; ``print`` it, or read the fields.

    Attributes:
        method: the forward method.
        gradient: the backward rule.
        backend: the name of the backend.
        dtype: what it computes in.
        reasons: a sentence for each of them.
    """

    method: Method
    gradient: GradientRule
    backend: str
    dtype: torch.dtype
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        """The fields, one a line, then the reasons."""
        lines = [
            f"method    {self.method!r}",
            f"gradient  {self.gradient!r}",
            f"backend   {self.backend}",
            f"dtype     {str(self.dtype).removeprefix('torch.')}",
        ]
        return "\n".join(lines + [f"- {reason}" for reason in self.reasons])


def resolve(
    root: Root,
    a: Tensor,
    eps: float,
    method: str | Method,
    gradient: str | GradientRule,
    backend: str,
    singular: Singular,
) -> Plan:
    """The plan of a call.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: no square matrices, an unknown name, or things that do not go together.
    """
    checks.square_matrices("a", a)
    checks.one_of("singular", singular, ("raise", "pinv"))
    eps = checks.ridge(eps, a.dtype)
    ops = select(backend, a)
    method = _method(a, singular, ops)[0] if method == "auto" else METHODS.resolve(method)
    rule = _gradient(method)[0] if gradient == "auto" else GRADIENTS.resolve(gradient)
    _check_fit(method, rule)
    if singular == "pinv" and not method.spectral:
        raise ValueError(f'singular="pinv" needs a spectral method, got {name_of(method)!r}')
    if checks.jit_tracing() and checks.onnx_export_running():
        raise ValueError("matroot goes to ONNX by torch.onnx.export(..., dynamo=True) only")
    if method.factorises and checks.onnx_export_running():
        raise ValueError(
            f"method {name_of(method)!r} factorises matrices, for which ONNX has no operator; "
            "export with method='auto', or Minimax(max_cond=…) if a bound is known"
        )
    return Plan(root, eps, method, rule, ops, singular, a.dtype)


def check_names(method: str | Method, gradient: str | GradientRule) -> None:
    """Raise as ``resolve`` does, where there is no tensor yet: for layers."""
    if method != "auto":
        method = METHODS.resolve(method)
    if gradient != "auto":
        _check_fit(method, GRADIENTS.resolve(gradient))


def _check_fit(method: str | Method, rule: GradientRule) -> None:
    if isinstance(method, Method) and rule.needs_eigenpairs and not method.spectral:
        raise ValueError(
            f"gradient {name_of(rule)!r} needs the eigenpairs of a spectral method "
            f"({', '.join(repr(m) for m in METHODS if METHODS[m].spectral)}), "
            f"got method {name_of(method)!r}"
        )


def explain(
    a: Tensor,
    *,
    root: Root = "sqrt",
    method: str | Method = "auto",
    gradient: str | GradientRule = "auto",
    backend: str = "auto",
    singular: Singular = "raise",
) -> Explanation:
    """What ``sqrtm(a)`` and its kin would run, and why; nothing is computed.

    The choice rests on the kind of call alone, never on the values or the batch: the digits of a
    matrix must not depend on its company.

    Args:
        a: shape (..., n, n); see ``sqrtm``.
        root: ``"sqrt"``, ``"inv_sqrt"`` or ``"both"``.
        method: as it would be given to ``sqrtm``.
        gradient: as it would be given to ``sqrtm``.
        backend: as it would be given to ``sqrtm``.
        singular: as it would be given to ``inv_sqrtm``.

    Returns:
        The choice, with a sentence for each part.

    Raises:
        TypeError: see ``sqrtm``.
        ValueError: see ``sqrtm``.

    Example:
        >>> import torch, matroot
        >>> print(matroot.explain(torch.eye(3, dtype=torch.float16)).dtype)
        torch.float32
    """
    checks.one_of("root", root, ("sqrt", "inv_sqrt", "both"))
    plan = resolve(root, a, 0.0, method, gradient, backend, singular)
    asked = "asked for"
    dtype = checks.computing_dtype(a.dtype)
    name = str(dtype).removeprefix("torch.")
    return Explanation(
        plan.method,
        plan.rule,
        plan.ops.name,
        dtype,
        (
            f"{plan.method!r}: {_method(a, singular, plan.ops)[1] if method == 'auto' else asked}",
            f"{plan.rule!r}: {_gradient(plan.method)[1] if gradient == 'auto' else asked}",
            *(f"backend {other!r} {why}" for other, why in reasons(a).items()),
            f"{name}: {'wider sums than half precision has' if dtype != a.dtype else 'as given'}",
        ),
    )


def _method(a: Tensor, singular: Singular, ops: Backend) -> tuple[Method, str]:
    """The method that ``"auto"`` means, and why."""
    if singular == "pinv":
        return Eigh(), "the pseudo-inverse root needs eigenvalues"
    if autodiff.exporting():
        return Minimax(), "products only, which every exporter knows"
    if ops.method is not None:
        measured = "by the compiled kernels the fastest and the most accurate"
        counted = "one launch by a fused kernel, and what it computes stays on the device"
        return METHODS.resolve(ops.method), counted if spd.on_accelerator(a) else measured
    if not spd.on_accelerator(a):
        return Eigh(), "on a CPU faster than some 25 products by PyTorch's operations"
    return Minimax(), "products only; an eigendecomposition would wait for the device"


def _gradient(method: Method) -> tuple[GradientRule, str]:
    """The gradient rule that ``"auto"`` means, and why."""
    if method.spectral:
        return Spectral(), "the eigenpairs are there; finite where they repeat"
    return Lyapunov(), "products only, and the bounds of the spectrum are there"
