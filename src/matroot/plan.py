"""What a call runs: names to objects, ``"auto"`` decided by fixed rules, combinations checked."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from matroot import autodiff, checks, context, spd
from matroot.dtensors import per_matrix
from matroot.functions import Power, SpectralFunction, power
from matroot.gradients import (
    GRADIENTS,
    ExplicitRule,
    GradientName,
    GradientRule,
    Lyapunov,
    Spectral,
)
from matroot.kernels import (
    FAMILIES,
    TORCH,
    BackendName,
    Declined,
    Family,
    GradientKernel,
    ValueKernel,
    select,
)
from matroot.kernels.triton.selftest import switch
from matroot.methods import METHODS, Eigh, Method, MethodName, Minimax
from matroot.registry import name_of
from matroot.request import Request, Singular
from matroot.roots import INV_SQRT, ROOTS, SQRT, Functions, Root, only_roots


class Chosen(NamedTuple):
    """Kernels that take a call.

    Attributes:
        values: for the values where a derivative is wanted.
        plain: for the values where none is.
        gradients: for the gradient.
        readable: whether the host may look at values at no cost.
    """

    values: tuple[ValueKernel, ...]
    plain: tuple[ValueKernel, ...]
    gradients: tuple[GradientKernel, ...]
    readable: bool


@dataclass(frozen=True)
class Plan:
    """A call, and who is asked to run it.

    Attributes:
        request: the call.
        plain: the same where no derivative is wanted.
        families: the kernels that are asked, in this order; what none of them takes is done by the
            method and the rule.
        chosen: what they said, for plain tensors of one kind; None where it depends on the tensor.
    """

    request: Request
    plain: Request
    families: tuple[Family, ...]
    chosen: Chosen | None = None

    def value_kernels(self, request: Request, a: Tensor) -> tuple[ValueKernel, ...]:
        """The kernels to try for the values, the best first."""
        if self.chosen is not None:
            return self.chosen.plain if request is self.plain else self.chosen.values
        found = [family.accepts(request, a) for family in self.families]
        return tuple([kernel for kernel in found if isinstance(kernel, ValueKernel)])

    def gradient_kernels(self, a: Tensor) -> tuple[GradientKernel, ...]:
        """The kernels to try for the gradient, the best first."""
        if self.chosen is not None:
            return self.chosen.gradients
        found = [family.accepts_gradient(self.request, a) for family in self.families]
        return tuple([kernel for kernel in found if isinstance(kernel, GradientKernel)])

    def of(self, request: Request) -> Plan:
        """The same families for another request."""
        return Plan(request, request.without_derivative(), self.families)


@dataclass(frozen=True)
class Explanation:
    """What a call would run, and why; ``print`` it, or read the fields.

    Attributes:
        method: the forward method.
        gradient: the backward rule.
        backend: whose kernel runs the forward pass; ``"torch"``: PyTorch's operations do.
        gradient_backend: the same of the backward pass (of a first derivative).
        dtype: what it computes in.
        reasons: a sentence for each of them.
    """

    method: Method
    gradient: GradientRule
    backend: str
    gradient_backend: str
    dtype: torch.dtype
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        """The fields, one a line, then the reasons."""
        lines = [
            f"method    {self.method!r}",
            f"gradient  {self.gradient!r}",
            f"forward   {self.backend}",
            f"backward  {self.gradient_backend}",
            f"dtype     {str(self.dtype).removeprefix('torch.')}",
        ]
        return "\n".join(lines + [f"- {reason}" for reason in self.reasons])


def resolve(
    functions: Functions,
    a: Tensor,
    eps: float,
    method: MethodName | Method,
    gradient: GradientName | GradientRule,
    backend: BackendName,
    singular: Singular,
    *,
    input_dtype: torch.dtype | None = None,
) -> Plan:
    """The plan of a call.

    Args:
        functions: what is wanted.
        a: see ``sqrtm``, as what follows.
        eps: …
        method: …
        gradient: …
        backend: …
        singular: …
        input_dtype: of which dtype's rounding the matrices are; None: of their own.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: no square matrices, an unknown name, or things that do not go together.
    """
    arguments = (functions, a, eps, method, gradient, backend, singular, input_dtype)
    if not context.is_plain(a) or a.ndim < 2:
        return _resolved(*arguments)
    # What the environment says of Triton's kernels may change.
    asked_for = isinstance(backend, str) and backend.startswith("triton")
    tested = switch() if a.is_cuda or asked_for else None
    key = (functions, a.dtype, a.device, a.shape[-2:], tested, type(eps), *arguments[2:])
    try:
        plan = _PLANS.get(key)
    except TypeError:  # A method or rule of the user's that cannot be hashed.
        return _resolved(*arguments)
    if plan is None:
        plan = _resolved(*arguments)
        plan = replace(
            plan,
            chosen=Chosen(
                plan.value_kernels(plan.request, a),
                plan.value_kernels(plan.plain, a),
                plan.gradient_kernels(a),
                context.host_reads_are_free(a),
            ),
        )
        if len(_PLANS) >= _MOST_PLANS:
            _PLANS.clear()
        _PLANS[key] = plan
    return plan


# Plans of calls on plain tensors: making one takes longer than small matrices do.
_PLANS: dict[Hashable, Plan] = {}
_MOST_PLANS = 1024


def _resolved(
    functions: Functions,
    a: Tensor,
    eps: float,
    method: MethodName | Method,
    gradient: GradientName | GradientRule,
    backend: BackendName,
    singular: Singular,
    input_dtype: torch.dtype | None,
) -> Plan:
    """See ``resolve``."""
    checks.square_matrices("a", a)
    checks.one_of("singular", singular, ("raise", "pinv"))
    eps = checks.ridge(eps, a.dtype)
    families = select(backend, a)
    if method == "auto":
        method = _method(functions, a, singular, families)[0]
    else:
        method = METHODS.resolve(method)
    rule = _gradient(method)[0] if gradient == "auto" else GRADIENTS.resolve(gradient)
    _check_fit(method, rule)
    if singular == "pinv" and not method.spectral:
        raise ValueError(f'singular="pinv" needs a spectral method, got {name_of(method)!r}')
    _check_known(functions, method, rule)
    if context.jit_tracing() and context.onnx_export_running():
        raise ValueError("matroot goes to ONNX by torch.onnx.export(..., dynamo=True) only")
    if method.factorises and context.onnx_export_running():
        roots = only_roots(functions)
        remedy = "method='auto', or Minimax(max_cond=…) if a bound is known"
        raise ValueError(
            f"method {name_of(method)!r} factorises matrices, for which ONNX has no operator; "
            + (f"export with {remedy}" if roots else "only powers ±1/2, ±1/4 and ±1/8 do without")
        )
    dtypes = (input_dtype or a.dtype, spd.computing_dtype(a.dtype))
    request = Request(functions, method, rule, eps, singular, *dtypes)
    return Plan(request, request.without_derivative(), families)


# By |p|: how many roots of A^{±1/2} in a row make A^p, beyond that one.
ROOTS_OF_ROOTS = {0.5: 0, 0.25: 1, 0.125: 2}


def roots_of_roots(
    p: float,
    a: Tensor,
    method: MethodName | Method,
    gradient: GradientName | GradientRule,
    singular: Singular,
) -> int:
    """How many roots of A^{±1/2} in a row make A^p; 0 where it is made of eigenvalues.

    Args:
        p: the exponent.
        a: see ``powm``, as what follows.
        method: …
        gradient: …
        singular: …
    """
    count = ROOTS_OF_ROOTS.get(abs(p), 0)
    if not count or singular == "pinv":
        return 0
    checks.square_matrices("a", a)
    if method != "auto":
        return 0 if METHODS.resolve(method).spectral else count
    if gradient != "auto":
        rule = GRADIENTS.resolve(gradient)
        if rule.needs_eigenpairs:
            return 0
        if not rule.any_function:
            return count
    return count if context.on_accelerator(a) or context.exporting() else 0


def check_names(method: MethodName | Method, gradient: GradientName | GradientRule) -> None:
    """Raise as ``resolve`` does, where there is no tensor yet: for layers."""
    if method != "auto":
        method = METHODS.resolve(method)
    if gradient != "auto":
        _check_fit(method, GRADIENTS.resolve(gradient))


def _check_fit(method: MethodName | Method, rule: GradientRule) -> None:
    if isinstance(method, Method) and rule.needs_eigenpairs and not method.spectral:
        raise ValueError(
            f"gradient {name_of(rule)!r} needs the eigenpairs of a spectral method "
            f"({', '.join(repr(m) for m in METHODS if METHODS[m].spectral)}), "
            f"got method {name_of(method)!r}"
        )


def _check_known(functions: Functions, method: Method, rule: GradientRule) -> None:
    for function in functions:
        if not method.supports(function):
            known = ", ".join(repr(m) for m in METHODS if METHODS[m].spectral)
            raise ValueError(f"method {name_of(method)!r} does not know {function!r}; {known} do")
        if not rule.supports(function):
            known = ", ".join(repr(g) for g in GRADIENTS if GRADIENTS[g].any_function)
            raise ValueError(f"gradient {name_of(rule)!r} does not know {function!r}; {known} do")


@per_matrix()
def explain(
    a: Tensor,
    *,
    root: Root = "sqrt",
    function: SpectralFunction | None = None,
    method: MethodName | Method = "auto",
    gradient: GradientName | GradientRule = "auto",
    backend: BackendName = "auto",
    singular: Singular = "raise",
) -> Explanation:
    """What ``sqrtm(a)`` and the like would run, and why; nothing is computed.

    The choice rests on the kind of call alone, never on the values or the batch: the digits of a
    matrix must not depend on its batch.

    Args:
        a: matrices of the kind in question, shape (..., n, n), float16, bfloat16, float32, float64,
            complex64 or complex128; their values are not looked at.
        root: which of the roots: ``"sqrt"`` (the default), ``"inv_sqrt"`` or ``"both"``.
        function: instead of a root ``functions.Power(p)``, ``functions.Log()`` or
            ``functions.Exp()``: what ``powm``, ``logm`` and ``expm`` compute; None (the default):
            the root.
        method: a name from ``matroot.methods.METHODS``, such as ``"pade"``, or an object with
            options, such as ``Pade(order=5)``; ``"auto"`` (the default) is ``Eigh()`` on a CPU and
            ``Minimax()`` elsewhere.
        gradient: a name from ``matroot.gradients.GRADIENTS`` or an object; ``"auto"`` (the default)
            is ``Spectral()`` for the spectral methods and ``Lyapunov()`` for the others.
        backend: who computes: ``"native"`` (compiled kernels, on a CPU), ``"triton"``,
            ``"triton-tf32"`` or ``"triton-double"`` (fused kernels, on NVIDIA GPUs) or ``"torch"``
            (PyTorch's operations); ``"auto"`` (the default) is the first of native, triton and
            torch that can. ``sqrtm`` says more of each.
        singular: ``"raise"`` (the default) or ``"pinv"``: whether the inverse root of a singular
            matrix is an error or that of the pseudo-inverse.

    Returns:
        The choice, with a sentence for each part. Inside ``torch.func`` transforms, and for the
        gradient with ``create_graph=True``, PyTorch's operations run instead of the kernels.

    Raises:
        TypeError: ``a`` is not a tensor of a supported dtype, or an option has the wrong type.
        ValueError: ``a`` is not (..., n, n), a name is unknown, an option is out of range, or the
            gradient rule cannot work with the method.

    Example:
        >>> import torch, matroot
        >>> print(matroot.explain(torch.eye(3, dtype=torch.float16)).dtype)
        torch.float32
    """
    checks.one_of("root", root, tuple(ROOTS))
    functions, extra = ROOTS[root], []
    if isinstance(function, Power):
        function = power(function.p)
    if function is not None:
        functions = (function,)
    if isinstance(function, Power):
        count = roots_of_roots(function.p, a, method, gradient, singular)
        if count:
            functions = (SQRT if function.p > 0 else INV_SQRT,)
            extra = [f"{function!r}: {functions[0]!r} as here, and then Sqrt() {count} times"]
    plan = resolve(functions, a, 0.0, method, gradient, backend, singular)
    asked, rule = "asked for", plan.request.rule
    assert rule is not None
    auto = _method(plan.request.functions, a, singular, plan.families)
    method_why = auto[1] if method == "auto" else asked
    rule_why = _gradient(plan.request.method)[1] if gradient == "auto" else asked
    dtype = spd.computing_dtype(a.dtype)
    name = str(dtype).removeprefix("torch.")
    return Explanation(
        plan.request.method,
        rule,
        _who_runs(plan, a, _forward),
        _who_runs(plan, a, _backward),
        dtype,
        (
            *extra,
            f"{plan.request.method!r}: {method_why}",
            f"{rule!r}: {rule_why}",
            *(
                f"backend {other!r} {_answer(plan, family, a)}"
                for other, family in FAMILIES.items()
            ),
            f"{name}: {'wider sums than half precision has' if dtype != a.dtype else 'as given'}",
        ),
    )


def _forward(plan: Plan, family: Family, a: Tensor) -> ValueKernel | Declined:
    """The kernel of the forward pass."""
    if not autodiff.differentiated(a):
        return family.accepts(plan.plain, a)
    if not isinstance(plan.request.rule, ExplicitRule):
        return Declined("autograd goes through the method's own operations")
    return family.accepts(plan.request, a)


def _backward(plan: Plan, family: Family, a: Tensor) -> GradientKernel | Declined:
    """The kernel of the backward pass."""
    return family.accepts_gradient(plan.request, a)


def _who_runs(
    plan: Plan,
    a: Tensor,
    ask: Callable[[Plan, Family, Tensor], ValueKernel | GradientKernel | Declined],
) -> str:
    """The family whose kernel runs; else PyTorch's operations do."""
    for family in plan.families:
        if not isinstance(ask(plan, family, a), Declined):
            return family.name
    return TORCH.name


def _answer(plan: Plan, family: Family, a: Tensor) -> str:
    """What a family says to the call."""
    why = family.declines(a)
    if why is not None:
        return f"declines: {why}"
    parts = []
    for name, found in (
        ("forward", _forward(plan, family, a)),
        ("backward", _backward(plan, family, a)),
    ):
        said = found.why if isinstance(found, Declined) else f"kernel {found.name!r}"
        parts.append(f"{name}: {said}")
    asked = family.on_request(a)
    notes = [f"if asked for: {asked}"] if asked else []
    if family.note is not None:
        notes.append(family.note(a))
    return f"takes the tensor; {'; '.join(parts + notes)}"


def _method(
    functions: Functions, a: Tensor, singular: Singular, families: tuple[Family, ...]
) -> tuple[Method, str]:
    """The method that ``"auto"`` means, and why."""
    if singular == "pinv":
        return Eigh(), "the pseudo-inverse root needs eigenvalues"
    if not only_roots(functions):
        return Eigh(), "functions other than the two roots are made of eigenvalues"
    if context.exporting():
        return Minimax(), "products only, which every exporter knows"
    best = families[0].method
    if best is not None:
        measured = "by the compiled kernels the fastest and the most accurate"
        counted = "one launch by a fused kernel, and what it computes stays on the device"
        return best, counted if context.on_accelerator(a) else measured
    if not context.on_accelerator(a):
        return Eigh(), "on a CPU faster than some 25 products by PyTorch's operations"
    return Minimax(), "products only; an eigendecomposition would wait for the device"


def _gradient(method: Method) -> tuple[GradientRule, str]:
    """The gradient rule that ``"auto"`` means, and why."""
    if method.spectral:
        return Spectral(), "the eigenpairs are there; finite where they repeat"
    return Lyapunov(), "products only, as the method"
