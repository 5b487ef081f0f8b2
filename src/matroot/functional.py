"""The functions: check → resolve → normalise → solve → attach the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from matroot import autodiff, checks, normalize, spd
from matroot.backends import Backend, select
from matroot.checks import Status
from matroot.gradients import (
    GRADIENTS,
    ExplicitRule,
    GradientRule,
    Lyapunov,
    Roots,
    Spectral,
    Unrolled,
)
from matroot.methods import METHODS, Eigh, Method
from matroot.registry import name_of
from matroot.solution import Root

Singular = Literal["raise", "pinv"]


@dataclass(frozen=True)
class _Plan:
    """Everything about one call but the numbers."""

    root: Root
    eps: float
    method: Method
    rule: GradientRule
    ops: Backend
    singular: Singular
    input_dtype: torch.dtype

    @property
    def solved(self) -> Root:
        """The roots to compute: an implicit derivative of the inverse root needs the root too."""
        implicit = isinstance(self.rule, ExplicitRule) and self.rule.needs_sqrt
        return "both" if self.root == "inv_sqrt" and implicit else self.root

    @property
    def kept(self) -> int:
        """How many roots are computed."""
        return 2 if self.solved == "both" else 1

    def roots(self, saved: tuple[Tensor, ...]) -> Roots:
        """What the forward pass saved, by name."""
        return Roots(
            sqrt=None if self.solved == "inv_sqrt" else saved[0],
            inv_sqrt=None if self.solved == "sqrt" else saved[self.kept - 1],
            constants=tuple(saved[self.kept :]),
            pseudo=self.singular == "pinv",
        )


def sqrtm(
    a: Tensor,
    *,
    eps: float = 0.0,
    method: str | Method = "auto",
    gradient: str | GradientRule = "auto",
    backend: str = "auto",
    check_errors: bool | None = None,
) -> Tensor:
    """The principal square root of symmetric (Hermitian) positive semi-definite matrices.

    S = (A + eps·I)^{1/2}: the one positive semi-definite S with S S = A + eps·I.

    Args:
        a: shape (..., n, n), float16, bfloat16, float32, float64, complex64 or complex128. The
            Hermitian part is used; half precision is computed in float32.
        eps: ridge added to the diagonal, at least 0, in the units of ``a``.
        method: a name from ``matroot.methods.METHODS`` or an object such as ``Pade(order=5)``;
            ``"auto"`` is ``Eigh()``.
        gradient: a name from ``matroot.gradients.GRADIENTS`` or an object; ``"auto"`` is
            ``Spectral()`` for the spectral methods and ``Lyapunov()`` for the others.
        backend: ``"auto"`` or ``"torch"``.
        check_errors: whether to raise for a bad matrix. None does so in eager mode on a CPU, where
            looking costs nothing; elsewhere a bad matrix comes back as NaN, its neighbours intact.

    Returns:
        S, the shape, dtype and device of ``a``, exactly Hermitian.

    Raises:
        TypeError: ``a`` is not a tensor of a supported dtype, or an option has the wrong type.
        ValueError: ``a`` is not (..., n, n), a name is unknown, an option is out of range, or the
            gradient rule cannot work with the method.
        torch.linalg.LinAlgError: where errors are checked: NaN or infinity, a skew part above 1e-3
            (half: 1e-2) of the norm, or an eigenvalue below −n·u·λ_max, u the rounding unit of the
            input's dtype.

    Note:
        One eigendecomposition and one product by default; see ``matroot.methods`` for the others.
        The backward pass keeps S (and eigenpairs). Where A is singular the gradient is the one of
        minimum norm: 0 on null × null space, finite everywhere, also at A = 0 (for the methods that
        regularise, Taylor and Padé, that of the regularised root).

    References:
        N. J. Higham, Functions of Matrices, SIAM 2008, chapter 6.

    Example:
        >>> import torch, matroot
        >>> matroot.sqrtm(torch.tensor([[2.0, 0.0], [0.0, 9.0]])).square()
        tensor([[2.0000, 0.0000],
                [0.0000, 9.0000]])
    """
    return _roots("sqrt", a, eps, method, gradient, backend, check_errors, "raise")[0]


def inv_sqrtm(
    a: Tensor,
    *,
    eps: float = 0.0,
    method: str | Method = "auto",
    gradient: str | GradientRule = "auto",
    backend: str = "auto",
    check_errors: bool | None = None,
    singular: Singular = "raise",
) -> Tensor:
    """The inverse square root of symmetric (Hermitian) positive definite matrices.

    Z = (A + eps·I)^{-1/2}: the one positive definite Z with Z (A + eps·I) Z = I.

    Args:
        a: shape (..., n, n); see ``sqrtm``.
        eps: ridge added to the diagonal, at least 0, in the units of ``a``.
        method: see ``sqrtm``.
        gradient: see ``sqrtm``.
        backend: see ``sqrtm``.
        check_errors: see ``sqrtm``.
        singular: what to do with eigenvalues up to 4·e·λ_max, e the rounding unit of the computing
            dtype: ``"raise"`` makes them an error (NaN where errors are not checked); ``"pinv"``
            leaves them out, which gives the root of the pseudo-inverse (spectral methods only).

    Returns:
        Z, the shape, dtype and device of ``a``, exactly Hermitian.

    Raises:
        TypeError: see ``sqrtm``.
        ValueError: see ``sqrtm``; or ``singular="pinv"`` with a method that has no eigenvalues.
        torch.linalg.LinAlgError: see ``sqrtm``; or a matrix is singular.

    Note:
        The derivative of the pseudo-inverse root is that along directions which keep the rank.

    References:
        N. J. Higham, Functions of Matrices, SIAM 2008, chapter 6.

    Example:
        >>> import torch, matroot
        >>> matroot.inv_sqrtm(torch.tensor([[4.0, 0.0], [0.0, 0.25]]))
        tensor([[0.5000, 0.0000],
                [0.0000, 2.0000]])
    """
    return _roots("inv_sqrt", a, eps, method, gradient, backend, check_errors, singular)[0]


def sqrtm_pair(
    a: Tensor,
    *,
    eps: float = 0.0,
    method: str | Method = "auto",
    gradient: str | GradientRule = "auto",
    backend: str = "auto",
    check_errors: bool | None = None,
    singular: Singular = "raise",
) -> tuple[Tensor, Tensor]:
    """The square root and the inverse square root together, for little more than one of them.

    S = (A + eps·I)^{1/2} and Z = S⁻¹. Their gradients share one Lyapunov solve.

    Args:
        a: shape (..., n, n); see ``sqrtm``.
        eps: ridge added to the diagonal, at least 0, in the units of ``a``.
        method: see ``sqrtm``.
        gradient: see ``sqrtm``.
        backend: see ``sqrtm``.
        check_errors: see ``sqrtm``.
        singular: see ``inv_sqrtm``.

    Returns:
        (S, Z), each of the shape, dtype and device of ``a``. A matrix too singular for Z is NaN in
        both where errors are not checked.

    Raises:
        TypeError: see ``inv_sqrtm``.
        ValueError: see ``inv_sqrtm``.
        torch.linalg.LinAlgError: see ``inv_sqrtm``.

    Example:
        >>> import torch, matroot
        >>> s, z = matroot.sqrtm_pair(torch.tensor([[4.0, 0.0], [0.0, 0.25]]))
        >>> s @ z
        tensor([[1., 0.],
                [0., 1.]])
    """
    sqrt, inv_sqrt = _roots("both", a, eps, method, gradient, backend, check_errors, singular)
    return sqrt, inv_sqrt


def _roots(
    root: Root,
    a: Tensor,
    eps: float,
    method: str | Method,
    gradient: str | GradientRule,
    backend: str,
    check_errors: bool | None,
    singular: Singular,
) -> tuple[Tensor, ...]:
    """The one path behind every public root; the roots asked for, in the order S, Z."""
    checks.square_matrices("a", a)
    checks.one_of("singular", singular, ("raise", "pinv"))
    plan = _resolve(root, a, checks.ridge(eps, a.dtype), method, gradient, backend, singular)
    check = checks.checking(check_errors, a)
    if a.numel() == 0:
        return tuple(a.clone() for _ in range(2 if root == "both" else 1))
    if not _differentiated(a):
        plan = replace(plan, rule=Unrolled())  # Nothing to attach, nothing to keep.
    with autodiff.no_autocast(a):
        x = a.to(checks.computing_dtype(a.dtype))
        outputs = _apply(plan, x) if isinstance(plan.rule, ExplicitRule) else _evaluate(plan, x)
        if check:
            checks.raise_if_bad("a", outputs[0], a.dtype)
        roots = outputs[1 : 1 + plan.kept]
        if root == "inv_sqrt":
            roots = roots[-1:]
        return tuple(value.to(a.dtype) for value in roots)


def _resolve(
    root: Root,
    a: Tensor,
    eps: float,
    method: str | Method,
    gradient: str | GradientRule,
    backend: str,
    singular: Singular,
) -> _Plan:
    """Names to objects, ``"auto"`` decided, combinations checked."""
    method = Eigh() if method == "auto" else METHODS.resolve(method)
    if gradient == "auto":
        gradient = Spectral() if method.spectral else Lyapunov()
    rule = GRADIENTS.resolve(gradient)
    if rule.needs_eigenpairs and not method.spectral:
        raise ValueError(
            f"gradient {name_of(rule)!r} needs the eigenpairs of a spectral method "
            f"({', '.join(repr(m) for m in METHODS if METHODS[m].spectral)}), "
            f"got method {name_of(method)!r}"
        )
    if singular == "pinv" and not method.spectral:
        raise ValueError(f'singular="pinv" needs a spectral method, got {name_of(method)!r}')
    return _Plan(root, eps, method, rule, select(backend, a), singular, a.dtype)


def _differentiated(a: Tensor) -> bool:
    """Whether a derivative may be asked of the result."""
    if torch.compiler.is_compiling() or checks.transforms_active():
        return True
    if torch.is_grad_enabled() and a.requires_grad:
        return True
    return autodiff.tangent(a) is not None


def _evaluate(plan: _Plan, x: Tensor) -> tuple[Tensor, ...]:
    """(status, the roots of ``plan.solved``, the constants of the derivative), batch first.

    Args:
        plan: the call.
        x: shape (..., n, n), in the computing dtype.
    """
    batch, n = x.shape[:-2], x.shape[-1]
    flat = x.reshape(math.prod(batch), n, n)
    a, k, status = normalize.normalized(flat, plan.input_dtype, plan.eps)
    if plan.input_dtype != x.dtype and not plan.method.spectral:
        a = normalize.without_rounded_negatives(a, plan.input_dtype)
    solution = plan.method.solve(a, plan.solved, plan.ops)
    seen = None if solution.eigenvalues is None else solution.eigenvalues.detach()
    inverse = plan.root != "sqrt" and plan.singular == "raise"
    found = normalize.definiteness(
        a.detach(), plan.input_dtype, inverse=inverse, eigenvalues=seen, bounds=solution.bounds
    )
    status = torch.maximum(status, found)
    if solution.diverged is not None:
        status = torch.where(solution.diverged & (status == Status.OK), Status.DIVERGED, status)
    ok = (status == Status.OK)[:, None, None]
    half = torch.div(k, 2, rounding_mode="floor")
    wanted = [
        spd.times_power_of_two(spd.hermitian_part(value), power).reshape(x.shape)
        for value, power in ((solution.sqrt, half), (solution.inv_sqrt, -half))
        if value is not None
    ]
    # Reshaped before the last operation: an output that is a view could not be changed in place.
    good = ok.reshape((*batch, 1, 1))
    roots = [torch.where(good, value, spd.nan_where(~good, x)) for value in wanted]
    constants: tuple[Tensor, ...] = ()
    if isinstance(plan.rule, ExplicitRule):
        if solution.sqrt is not None:
            safe = torch.where(ok, solution.sqrt, spd.identity_like(a))
            solution = replace(solution, sqrt=spd.hermitian_part(safe))
        scale = spd.power_of_two(half, a)
        constants = tuple(
            torch.where(ok.reshape((-1,) + (1,) * (c.ndim - 1)), c, torch.nan)
            for c in plan.rule.prepare(a.detach(), solution, scale, plan.ops)
        )
    rest = (t.reshape((*batch, *t.shape[1:])) for t in constants)
    return (status.reshape(batch), *roots, *rest)


def _apply(plan: _Plan, x: Tensor) -> tuple[Tensor, ...]:
    """``_evaluate`` with the derivative of the plan's ExplicitRule attached."""
    function = _Root if torch.compiler.is_compiling() else _ForwardRoot
    outputs: tuple[Tensor, ...] = function.apply(plan, x)
    return outputs


class _Root(torch.autograd.Function):
    """The roots of A with the derivative of an ExplicitRule."""

    @staticmethod
    def forward(plan: _Plan, x: Tensor) -> tuple[Tensor, ...]:
        return _evaluate(plan, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[_Plan, Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.plan = inputs[0]
        status, *rest = output
        ctx.mark_non_differentiable(status, *rest[ctx.plan.kept :])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*rest)

    @staticmethod
    def backward(ctx: Any, _status: None, *g: Tensor | None) -> tuple[None, Tensor | None]:
        plan: _Plan = ctx.plan
        g_roots = g[: plan.kept]
        if all(value is None for value in g_roots):
            return None, None
        g_sqrt = g_roots[0] if plan.solved != "inv_sqrt" else None
        g_inv = g_roots[-1] if plan.solved != "sqrt" else None
        saved = ctx.saved_tensors  # Once: activation checkpointing allows no second look.
        assert isinstance(plan.rule, ExplicitRule)
        with autodiff.no_autocast(saved[0]):
            return None, plan.rule.vjp(plan.roots(saved), g_sqrt, g_inv, plan.ops)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[None, int], plan: _Plan, x: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        outputs = _apply(plan, x.movedim(in_dims[1], 0))
        return outputs, (0,) * len(outputs)


class _ForwardRoot(_Root):
    """The same with a forward-mode rule, which torch.compile does not take."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[_Plan, Tensor], output: tuple[Tensor, ...]) -> None:
        _Root.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*output[1:])

    @staticmethod
    def jvp(ctx: Any, _plan: None, e: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        assert isinstance(plan.rule, ExplicitRule)
        saved = autodiff.primals(ctx.saved_tensors)
        with autodiff.nested_forward_mode(), autodiff.no_autocast(e):
            tangents = plan.rule.jvp(plan.roots(saved), e, plan.ops)
        wanted = [t for t in tangents if t is not None]
        return (None, *wanted, *(None for _ in saved[plan.kept :]))
