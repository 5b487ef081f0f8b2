"""The functions: check → resolve → normalise → solve → attach the gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Generic, Literal, NamedTuple, overload

import torch
from torch import Tensor
from typing_extensions import TypeVar

from matroot import call, checks, context, error_bounds, errors, residuals, spd
from matroot.dtensors import per_matrix
from matroot.functions import Exp, InvSqrt, Log, OnRange, power
from matroot.gradients import GradientName, GradientRule
from matroot.kernels import BackendName
from matroot.methods import Method, MethodName
from matroot.overrides import overridable
from matroot.plan import ROOTS_OF_ROOTS, resolve, roots_of_roots
from matroot.request import Singular
from matroot.roots import BOTH, INV_SQRT, ROOTS, SQRT, Root, Wanted, root_pair, wanted_roots
from matroot.screen import Converged

_NAMED = errors.Named(
    "a",
    ridge="a ridge with eps=",
    relative=" or relative_eps=",
    otherwise='or ask for the pseudo-inverse root with singular="pinv" (method "eigh" or "svd")',
)
_OF_FUNCTION = replace(_NAMED, otherwise='or take it on its range with singular="pinv"')


def _whole_sqrtm(a: Any, **options: Any) -> Any:
    """``sqrtm`` of one matrix in blocks."""
    return _whole("sqrtm", a, Wanted(True, False), **options).sqrt


def _whole_inv_sqrtm(a: Any, **options: Any) -> Any:
    return _whole("inv_sqrtm", a, Wanted(False, True), **options).inv_sqrt


def _whole_sqrtm_pair(a: Any, **options: Any) -> Any:
    found = _whole("sqrtm_pair", a, Wanted(True, True), **options)
    return found.sqrt, found.inv_sqrt


def _whole_powm(a: Any, p: float, **options: Any) -> Any:
    count = ROOTS_OF_ROOTS.get(abs(p))
    if count is None:
        raise ValueError(
            f"powm: a is sharded on its own dimensions; the powers ±1/2, ±1/4 and ±1/8 are made "
            f"of products alone, got {p}"
        )
    wanted = Wanted(p > 0, p < 0)
    found = _whole("powm", a, wanted, further=count, **options)
    return found.inv_sqrt if p == -0.5 else found.sqrt


def _whole_sqrtm_ex(a: Any, root: Root = "sqrt", **options: Any) -> SqrtmResult:
    checks.one_of("root", root, tuple(ROOTS))
    found = _whole("sqrtm_ex", a, wanted_roots(ROOTS[root]), measured=True, **options)
    return SqrtmResult(
        found.sqrt,
        found.inv_sqrt,
        found.residual,
        found.inv_residual,
        found.error_bound,
        found.inv_error_bound,
        found.steps,
        found.converged,
    )


# PyTorch leaves it without types. (Its numbers decide how many steps there are.)
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _whole(*args: Any, **options: Any) -> Any:
    """Loaded when it is needed: PyTorch's DTensor takes half a second."""
    from matroot.distributed import whole

    return whole.roots(*args, **options)


@overridable
@per_matrix(_whole_sqrtm)
def sqrtm(
    a: Tensor,
    *,
    eps: float = 0.0,
    relative_eps: float = 0.0,
    method: MethodName | Method = "auto",
    gradient: GradientName | GradientRule = "auto",
    backend: BackendName = "auto",
    check_errors: bool | None = None,
) -> Tensor:
    """The principal square root of symmetric (Hermitian) positive semi-definite matrices.

    S = (A + eps·I)^{1/2}: the one positive semi-definite S with S S = A + eps·I.

    Args:
        a: symmetric (Hermitian) positive semi-definite matrices, shape (..., n, n), float16,
            bfloat16, float32, float64, complex64 or complex128. The Hermitian part is used; half
            precision is computed in float32. A DTensor is taken as ``matroot.distributed`` says, as
            by every function.
        eps: ridge added to the diagonal, at least 0 (the default), in the units of ``a``.
        relative_eps: ridge relative to the norm, at least 0 (the default): relative_eps·‖A‖_F·I is
            added too. ‖A‖_F lies between λ_max and √rank times that. It is part of the function
            that is differentiated.
        method: a name from ``matroot.methods.METHODS``, such as ``"pade"``, or an object with
            options, such as ``Pade(order=5)``; ``"auto"`` (the default) is ``Eigh()`` on a CPU and
            ``Minimax()`` elsewhere. ``matroot.explain`` says what runs.
        gradient: a name from ``matroot.gradients.GRADIENTS`` or an object; ``"auto"`` (the default)
            is ``Spectral()`` for the spectral methods and ``Lyapunov()`` for the others.
        backend: ``"native"``, compiled kernels for real matrices on a CPU; ``"triton"``, fused
            kernels on NVIDIA GPUs, each tested at its first use (the environment's
            ``MATROOT_TRITON=off`` does without, ``on`` does not test): up to n = 128 in float32 and
            half precision one does all of a call, else they do what comes between the products;
            ``"triton-tf32"`` with three digits and ``"triton-double"``, all of a call in float64,
            which is slow on many GPUs, only when asked for; ``"torch"``, PyTorch's operations,
            which do what the others do not know; ``"auto"`` (the default) is ``"native"``,
            ``"triton"`` or ``"torch"``, the first of them that can be.
        check_errors: whether to raise for a bad matrix. None (the default) does so in eager mode on
            a CPU, where looking costs nothing; elsewhere a bad matrix comes back as NaN, its
            neighbours intact.

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
    plan = resolve((SQRT,), a, eps, method, gradient, backend, "raise")
    return call.values(plan, a, check_errors, relative_eps, named=_NAMED)[0]


@overridable
@per_matrix(_whole_inv_sqrtm)
def inv_sqrtm(
    a: Tensor,
    *,
    eps: float = 0.0,
    relative_eps: float = 0.0,
    method: MethodName | Method = "auto",
    gradient: GradientName | GradientRule = "auto",
    backend: BackendName = "auto",
    check_errors: bool | None = None,
    singular: Singular = "raise",
    rtol: float | None = None,
) -> Tensor:
    """The inverse square root of symmetric (Hermitian) positive definite matrices.

    Z = (A + eps·I)^{-1/2}: the one positive definite Z with Z (A + eps·I) Z = I.

    Args:
        a: symmetric (Hermitian) positive definite matrices, shape (..., n, n), float16, bfloat16,
            float32, float64, complex64 or complex128. The Hermitian part is used; half precision is
            computed in float32.
        eps: ridge added to the diagonal, at least 0 (the default), in the units of ``a``.
        relative_eps: ridge relative to the norm, at least 0 (the default): relative_eps·‖A‖_F·I is
            added too. It is part of the function that is differentiated.
        method: a name from ``matroot.methods.METHODS``, such as ``"pade"``, or an object with
            options, such as ``Pade(order=5)``; ``"auto"`` (the default) is ``Eigh()`` on a CPU and
            ``Minimax()`` elsewhere.
        gradient: a name from ``matroot.gradients.GRADIENTS`` or an object; ``"auto"`` (the default)
            is ``Spectral()`` for the spectral methods and ``Lyapunov()`` for the others.
        backend: who computes: ``"native"`` (compiled kernels, on a CPU), ``"triton"``,
            ``"triton-tf32"`` or ``"triton-double"`` (fused kernels, on NVIDIA GPUs) or ``"torch"``
            (PyTorch's operations); ``"auto"`` (the default) is the first of native, triton and
            torch that can. ``sqrtm`` says more of each.
        check_errors: whether to raise for a bad matrix. None (the default) does so in eager mode on
            a CPU, where looking costs nothing; elsewhere a bad matrix comes back as NaN, its
            neighbours intact.
        singular: what to do with eigenvalues that are zero to rounding, up to 4·e·λ_max in single
            and max(8, n)·e·λ_max in double precision, e the rounding unit of the computing dtype:
            ``"raise"`` (the default) makes them an error (NaN where errors are not checked);
            ``"pinv"`` leaves them out, which gives the root of the pseudo-inverse (spectral methods
            only).
        rtol: with ``singular="pinv"``, the share of λ_max up to which eigenvalues are left out, as
            that of ``torch.linalg.pinv``; None (the default): what is zero to rounding. At least
            that in any case.

    Returns:
        Z, the shape, dtype and device of ``a``, exactly Hermitian.

    Raises:
        TypeError: ``a`` is not a tensor of a supported dtype, or an option has the wrong type.
        ValueError: ``a`` is not (..., n, n), a name is unknown, an option is out of range, or the
            gradient rule cannot work with the method; or ``singular="pinv"`` with a method that has
            no eigenvalues, or ``rtol`` without it.
        torch.linalg.LinAlgError: where errors are checked: NaN or infinity, a skew part above 1e-3
            (half: 1e-2) of the norm, or an eigenvalue below −n·u·λ_max, u the rounding unit of the
            input's dtype; or a matrix is singular.

    Note:
        The derivative of the pseudo-inverse root is that along directions which keep the rank; with
        ``rtol`` it is that of the root of what is kept, also where noise is left out. ``rtol``
        costs a second eigendecomposition.

    References:
        N. J. Higham, Functions of Matrices, SIAM 2008, chapter 6.

    Example:
        >>> import torch, matroot
        >>> matroot.inv_sqrtm(torch.tensor([[4.0, 0.0], [0.0, 0.25]]))
        tensor([[0.5000, 0.0000],
                [0.0000, 2.0000]])
    """
    _checked_cut_off(rtol, singular)
    plan = resolve((INV_SQRT,), a, eps, method, gradient, backend, singular)
    return call.values(plan, a, check_errors, relative_eps, rtol, named=_NAMED)[0]


@overridable
@per_matrix(_whole_sqrtm_pair)
def sqrtm_pair(
    a: Tensor,
    *,
    eps: float = 0.0,
    relative_eps: float = 0.0,
    method: MethodName | Method = "auto",
    gradient: GradientName | GradientRule = "auto",
    backend: BackendName = "auto",
    check_errors: bool | None = None,
    singular: Singular = "raise",
    rtol: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The square root and the inverse square root together, for little more than one of them.

    S = (A + eps·I)^{1/2} and Z = S⁻¹. Their gradients share one Lyapunov solve.

    Args:
        a: symmetric (Hermitian) positive definite matrices, shape (..., n, n), float16, bfloat16,
            float32, float64, complex64 or complex128. The Hermitian part is used; half precision is
            computed in float32.
        eps: ridge added to the diagonal, at least 0 (the default), in the units of ``a``.
        relative_eps: ridge relative to the norm, at least 0 (the default): relative_eps·‖A‖_F·I is
            added too. It is part of the function that is differentiated.
        method: a name from ``matroot.methods.METHODS``, such as ``"pade"``, or an object with
            options, such as ``Pade(order=5)``; ``"auto"`` (the default) is ``Eigh()`` on a CPU and
            ``Minimax()`` elsewhere.
        gradient: a name from ``matroot.gradients.GRADIENTS`` or an object; ``"auto"`` (the default)
            is ``Spectral()`` for the spectral methods and ``Lyapunov()`` for the others.
        backend: who computes: ``"native"`` (compiled kernels, on a CPU), ``"triton"``,
            ``"triton-tf32"`` or ``"triton-double"`` (fused kernels, on NVIDIA GPUs) or ``"torch"``
            (PyTorch's operations); ``"auto"`` (the default) is the first of native, triton and
            torch that can. ``sqrtm`` says more of each.
        check_errors: whether to raise for a bad matrix. None (the default) does so in eager mode on
            a CPU, where looking costs nothing; elsewhere a bad matrix comes back as NaN, its
            neighbours intact.
        singular: what to do with eigenvalues that are zero to rounding, up to 4·e·λ_max in single
            and max(8, n)·e·λ_max in double precision, e the rounding unit of the computing dtype:
            ``"raise"`` (the default) makes them an error (NaN where errors are not checked);
            ``"pinv"`` leaves them out, which gives the root of the pseudo-inverse (spectral methods
            only).
        rtol: with ``singular="pinv"``, the share of λ_max up to which eigenvalues are left out, as
            that of ``torch.linalg.pinv``; None (the default): what is zero to rounding. At least
            that in any case.

    Returns:
        (S, Z), each of the shape, dtype and device of ``a``. A matrix too singular for Z is NaN in
        both where errors are not checked.

    Raises:
        TypeError: ``a`` is not a tensor of a supported dtype, or an option has the wrong type.
        ValueError: ``a`` is not (..., n, n), a name is unknown, an option is out of range, or the
            gradient rule cannot work with the method; or ``singular="pinv"`` with a method that has
            no eigenvalues, or ``rtol`` without it.
        torch.linalg.LinAlgError: where errors are checked: NaN or infinity, a skew part above 1e-3
            (half: 1e-2) of the norm, or an eigenvalue below −n·u·λ_max, u the rounding unit of the
            input's dtype; or a matrix is singular.

    Example:
        >>> import torch, matroot
        >>> s, z = matroot.sqrtm_pair(torch.tensor([[4.0, 0.0], [0.0, 0.25]]))
        >>> s @ z
        tensor([[1., 0.],
                [0., 1.]])
    """
    _checked_cut_off(rtol, singular)
    plan = resolve(BOTH, a, eps, method, gradient, backend, singular)
    sqrt, inv_sqrt = call.values(plan, a, check_errors, relative_eps, rtol, named=_NAMED)
    return sqrt, inv_sqrt


@overridable
@per_matrix(_whole_powm)
def powm(
    a: Tensor,
    p: float,
    *,
    eps: float = 0.0,
    relative_eps: float = 0.0,
    method: MethodName | Method = "auto",
    gradient: GradientName | GradientRule = "auto",
    backend: BackendName = "auto",
    check_errors: bool | None = None,
    singular: Singular = "raise",
) -> Tensor:
    """A real power of symmetric (Hermitian) matrices.

    P = (A + eps·I)^p = Q diag(λ^p) Qᴴ for A + eps·I = Q diag(λ) Qᴴ. For a p that is not whole A is
    positive semi-definite, and definite where p < 0; for a whole p it may be indefinite. An
    eigenvalue of 0 that rounding has made one of size u·λ_max becomes (u·λ_max)^p: 2 % of λ_max^p
    at p = 1/4 in single precision.

    Args:
        a: symmetric (Hermitian) matrices, shape (..., n, n), float16, bfloat16, float32, float64,
            complex64 or complex128. The Hermitian part is used; half precision is computed in
            float32.
        p: the exponent, a finite number. ±1/2 are ``sqrtm`` and ``inv_sqrtm``, to the bit.
        eps: ridge added to the diagonal, at least 0 (the default), in the units of ``a``.
        relative_eps: ridge relative to the norm, at least 0 (the default): relative_eps·‖A‖_F·I is
            added too. It is part of the function that is differentiated.
        method: a spectral one (``"eigh"``, ``"svd"``) for any p; the others, which are made of
            products, for ±1/4 and ±1/8: roots of roots. ``"auto"`` (the default) is ``Eigh()``, but
            for the roots of roots on an accelerator and under ``torch.export`` ``Minimax()``.
        gradient: ``"spectral"``, by divided differences; ``"unrolled"`` (wrong or not finite at
            repeated eigenvalues); for ±1/4 and ±1/8 any of ``matroot.gradients.GRADIENTS``, and
            they are then roots of roots. ``"auto"`` (the default) is ``Spectral()`` for the
            spectral methods and ``Lyapunov()`` for the others.
        backend: who computes: ``"native"`` (compiled kernels, on a CPU), ``"triton"``,
            ``"triton-tf32"`` or ``"triton-double"`` (fused kernels, on NVIDIA GPUs) or ``"torch"``
            (PyTorch's operations); ``"auto"`` (the default) is the first of native, triton and
            torch that can. ``sqrtm`` says more of each.
        check_errors: whether to raise for a bad matrix. None (the default) does so in eager mode on
            a CPU, where looking costs nothing; elsewhere a bad matrix comes back as NaN, its
            neighbours intact.
        singular: for p < 0, what to do with eigenvalues that are zero to rounding, up to 4·e·λ_max
            in single and max(8, n)·e·λ_max in double precision, e the rounding unit of the
            computing dtype: ``"raise"`` (the default) makes them an error (NaN where errors are not
            checked); ``"pinv"`` leaves them out.

    Returns:
        P, the shape, dtype and device of ``a``, exactly Hermitian.

    Raises:
        TypeError: ``a`` is not a tensor of a supported dtype, or an option has the wrong type, or
            ``p`` is not a real number.
        ValueError: ``a`` is not (..., n, n), a name is unknown, an option is out of range, or the
            gradient rule cannot work with the method; ``p`` is not finite, or the method or rule
            does not know it.
        torch.linalg.LinAlgError: where errors are checked: NaN or infinity, or a skew part above
            1e-3 (half: 1e-2) of the norm; for a p that is not whole an eigenvalue below −n·u·λ_max,
            u the rounding unit of the input's dtype; for p < 0 a singular matrix.

    Note:
        One eigendecomposition and a product. The gradient by divided differences is exact at
        repeated eigenvalues; there are two derivatives, of ±1/2 and by products any number. Where A
        is singular and p < 1, the derivative is 0 on null × null space (minimum norm).
        ``torch.compile`` compiles anew for each p.

    References:
        N. J. Higham, Functions of Matrices, SIAM 2008, chapters 3 and 7.

    Example:
        >>> import torch, matroot
        >>> matroot.powm(torch.tensor([[16.0, 0.0], [0.0, 81.0]]), -1 / 4)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.3333]])
    """
    p = context.number(p)
    function = power(p)
    named = replace(_OF_FUNCTION, lacks=f"power {float(p):g}")
    checks.one_of("singular", singular, ("raise", "pinv"))
    if p > 0:
        singular = "raise"  # There is nothing to leave out.
    if singular == "pinv" and not isinstance(function, InvSqrt):
        function = OnRange(function)
    count = roots_of_roots(p, a, method, gradient, singular)
    if not count:
        plan = resolve((function,), a, eps, method, gradient, backend, singular)
        return call.values(plan, a, check_errors, relative_eps, named=named)[0]
    # The inverse root first: there a singular matrix shows, in a root of a root no longer. Half
    # precision is rounded once, at the end.
    first = SQRT if p > 0 else INV_SQRT
    x, dtype = a.to(spd.computing_dtype(a.dtype)), a.dtype
    plan = resolve((first,), x, eps, method, gradient, backend, singular, input_dtype=dtype)
    (x,) = call.values(plan, x, check_errors, relative_eps, named=named)
    for _ in range(count):
        plan = resolve((SQRT,), x, 0.0, method, gradient, backend, singular)
        (x,) = call.values(plan, x, False, named=named)
    return x.to(dtype)


@overridable
@per_matrix()
def logm(
    a: Tensor,
    *,
    eps: float = 0.0,
    relative_eps: float = 0.0,
    method: MethodName | Method = "auto",
    gradient: GradientName | GradientRule = "auto",
    backend: BackendName = "auto",
    check_errors: bool | None = None,
    singular: Singular = "raise",
) -> Tensor:
    """The logarithm of symmetric (Hermitian) positive definite matrices.

    L = log(A + eps·I) = Q diag(log λ) Qᴴ: the one Hermitian L with exp(L) = A + eps·I.

    Args:
        a: symmetric (Hermitian) positive definite matrices, shape (..., n, n), float16, bfloat16,
            float32, float64, complex64 or complex128. The Hermitian part is used; half precision is
            computed in float32.
        eps: ridge added to the diagonal, at least 0 (the default), in the units of ``a``.
        relative_eps: ridge relative to the norm, at least 0 (the default): relative_eps·‖A‖_F·I is
            added too. It is part of the function that is differentiated.
        method: a spectral one, ``"eigh"`` or ``"svd"``, by name or as an object; ``"auto"`` (the
            default) is ``Eigh()``.
        gradient: ``"spectral"``, by divided differences, which ``"auto"`` (the default) is; or
            ``"unrolled"`` (wrong or not finite at repeated eigenvalues).
        backend: who computes: ``"native"`` (compiled kernels, on a CPU), ``"triton"``,
            ``"triton-tf32"`` or ``"triton-double"`` (fused kernels, on NVIDIA GPUs) or ``"torch"``
            (PyTorch's operations); ``"auto"`` (the default) is the first of native, triton and
            torch that can. ``sqrtm`` says more of each.
        check_errors: whether to raise for a bad matrix. None (the default) does so in eager mode on
            a CPU, where looking costs nothing; elsewhere a bad matrix comes back as NaN, its
            neighbours intact.
        singular: what to do with eigenvalues that are zero to rounding, up to 4·e·λ_max in single
            and max(8, n)·e·λ_max in double precision, e the rounding unit of the computing dtype:
            ``"raise"`` (the default) makes them an error (NaN where errors are not checked);
            ``"pinv"`` takes the logarithm on the range of A and 0 on its null space.

    Returns:
        L, the shape, dtype and device of ``a``, exactly Hermitian.

    Raises:
        TypeError: ``a`` is not a tensor of a supported dtype, or an option has the wrong type.
        ValueError: ``a`` is not (..., n, n), a name is unknown, an option is out of range, or the
            method or rule does not know the logarithm.
        torch.linalg.LinAlgError: where errors are checked: NaN or infinity, a skew part above 1e-3
            (half: 1e-2) of the norm, or an eigenvalue below −n·u·λ_max, u the rounding unit of the
            input's dtype; or a matrix is singular.

    Note:
        One eigendecomposition and a product; two derivatives, exact at repeated eigenvalues. Small
        eigenvalues decide: an error of rounding in A is multiplied by up to κ/‖L‖.

    References:
        N. J. Higham, Functions of Matrices, SIAM 2008, chapter 11.

    Example:
        >>> import torch, matroot
        >>> matroot.logm(torch.tensor([[2.0, 0.0], [0.0, 0.5]]))
        tensor([[ 0.6931,  0.0000],
                [ 0.0000, -0.6931]])
    """
    named = replace(_OF_FUNCTION, lacks="logarithm")
    function = OnRange(Log()) if singular == "pinv" else Log()
    plan = resolve((function,), a, eps, method, gradient, backend, singular)
    return call.values(plan, a, check_errors, relative_eps, named=named)[0]


@overridable
@per_matrix()
def expm(
    a: Tensor,
    *,
    method: MethodName | Method = "auto",
    gradient: GradientName | GradientRule = "auto",
    backend: BackendName = "auto",
    check_errors: bool | None = None,
) -> Tensor:
    """The exponential of symmetric (Hermitian) matrices.

    E = exp(A) = Q diag(exp λ) Qᴴ, positive definite.

    Args:
        a: any symmetric (Hermitian) matrices, shape (..., n, n), float16, bfloat16, float32,
            float64, complex64 or complex128. The Hermitian part is used; half precision is computed
            in float32.
        method: a spectral one, ``"eigh"`` or ``"svd"``, by name or as an object; ``"auto"`` (the
            default) is ``Eigh()``.
        gradient: ``"spectral"``, by divided differences, which ``"auto"`` (the default) is; or
            ``"unrolled"`` (wrong or not finite at repeated eigenvalues).
        backend: who computes: ``"native"`` (compiled kernels, on a CPU), ``"triton"``,
            ``"triton-tf32"`` or ``"triton-double"`` (fused kernels, on NVIDIA GPUs) or ``"torch"``
            (PyTorch's operations); ``"auto"`` (the default) is the first of native, triton and
            torch that can. ``sqrtm`` says more of each.
        check_errors: whether to raise for a bad matrix. None (the default) does so in eager mode on
            a CPU, where looking costs nothing; elsewhere a bad matrix comes back as NaN, its
            neighbours intact.

    Returns:
        E, the shape, dtype and device of ``a``, exactly Hermitian. Where exp λ overflows entries
        are infinite or NaN.

    Raises:
        TypeError: ``a`` is not a tensor of a supported dtype, or an option has the wrong type.
        ValueError: ``a`` is not (..., n, n), a name is unknown, or the method or rule does not know
            the exponential.
        torch.linalg.LinAlgError: where errors are checked: NaN or infinity, or a skew part above
            1e-3 (half: 1e-2) of the norm.

    Note:
        One eigendecomposition and a product; two derivatives, exact at repeated eigenvalues.

    References:
        N. J. Higham, Functions of Matrices, SIAM 2008, chapter 10.

    Example:
        >>> import torch, matroot
        >>> matroot.expm(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
        tensor([[1.0000, 0.0000],
                [0.0000, 2.7183]])
    """
    plan = resolve((Exp(),), a, 0.0, method, gradient, backend, "raise")
    return call.values(plan, a, check_errors, named=_NAMED)[0]


# The types of what belongs to the root and to the inverse root: None where it was not asked for.
S = TypeVar("S", bound=Tensor | None, default=Tensor | None, covariant=True)
Z = TypeVar("Z", bound=Tensor | None, default=Tensor | None, covariant=True)


class SqrtmResult(NamedTuple, Generic[S, Z]):
    """What ``sqrtm_ex`` found, for matrices of shape (..., n, n); what was not asked for is None.

    Attributes:
        sqrt: S = (A + eps·I)^{1/2}, shape (..., n, n).
        inv_sqrt: Z = (A + eps·I)^{-1/2}, shape (..., n, n).
        residual: ‖S² − A‖_F/‖A‖_F (0 at A = 0), shape (...), real, no derivative.
        inv_residual: ‖Z A Z − I‖_F/√n; for the pseudo-inverse root ‖P² − P‖_F/√n, P = Z A Z.
        error_bound: at least ‖S − S₀‖_F/‖S₀‖_F, S₀ the exact root (of the part without negative
            eigenvalues, where they count as 0), shape (...), real, no derivative. NaN where nothing
            can be said.
        inv_error_bound: at least ‖Z − Z₀‖_F/‖Z₀‖_F; NaN too where ‖Z A Z − I‖_F is not below 1, as
            with every matrix that is singular to rounding.
        steps: steps, terms or shifts that the method took, shape (...), int64.
        converged: whether the method reached what it aims at, which is the level of rounding unless
            its options say otherwise, shape (...), bool.
    """

    sqrt: S
    inv_sqrt: Z
    residual: S
    inv_residual: Z
    error_bound: S
    inv_error_bound: Z
    steps: Tensor
    converged: Tensor


@overload
def sqrtm_ex(
    a: Tensor,
    *,
    root: Literal["sqrt"] = "sqrt",
    eps: float = 0.0,
    relative_eps: float = 0.0,
    method: MethodName | Method = "auto",
    gradient: GradientName | GradientRule = "auto",
    backend: BackendName = "auto",
    singular: Singular = "raise",
    rtol: float | None = None,
) -> SqrtmResult[Tensor, None]: ...
@overload
def sqrtm_ex(
    a: Tensor,
    *,
    root: Literal["inv_sqrt"],
    eps: float = 0.0,
    relative_eps: float = 0.0,
    method: MethodName | Method = "auto",
    gradient: GradientName | GradientRule = "auto",
    backend: BackendName = "auto",
    singular: Singular = "raise",
    rtol: float | None = None,
) -> SqrtmResult[None, Tensor]: ...
@overload
def sqrtm_ex(
    a: Tensor,
    *,
    root: Literal["both"],
    eps: float = 0.0,
    relative_eps: float = 0.0,
    method: MethodName | Method = "auto",
    gradient: GradientName | GradientRule = "auto",
    backend: BackendName = "auto",
    singular: Singular = "raise",
    rtol: float | None = None,
) -> SqrtmResult[Tensor, Tensor]: ...
@overload
def sqrtm_ex(
    a: Tensor,
    *,
    root: Root,
    eps: float = 0.0,
    relative_eps: float = 0.0,
    method: MethodName | Method = "auto",
    gradient: GradientName | GradientRule = "auto",
    backend: BackendName = "auto",
    singular: Singular = "raise",
    rtol: float | None = None,
) -> SqrtmResult[Tensor | None, Tensor | None]: ...
@overridable
@per_matrix(_whole_sqrtm_ex)
def sqrtm_ex(
    a: Tensor,
    *,
    root: Root = "sqrt",
    eps: float = 0.0,
    relative_eps: float = 0.0,
    method: MethodName | Method = "auto",
    gradient: GradientName | GradientRule = "auto",
    backend: BackendName = "auto",
    singular: Singular = "raise",
    rtol: float | None = None,
) -> SqrtmResult:
    """The roots, and how good each of them is; never raises for a hard matrix.

    A matrix that has no such root (one that is not finite, not symmetric or indefinite, or singular
    for the inverse) comes back as NaN, with residuals NaN and ``converged`` False, its neighbours
    intact. Nothing is read on the host.

    Args:
        a: symmetric (Hermitian) positive semi-definite matrices, shape (..., n, n), float16,
            bfloat16, float32, float64, complex64 or complex128. The Hermitian part is used; half
            precision is computed in float32.
        root: which of the roots: ``"sqrt"`` (the default), ``"inv_sqrt"`` or ``"both"``. What is
            not asked for is None.
        eps: ridge added to the diagonal, at least 0 (the default), in the units of ``a``.
        relative_eps: ridge relative to the norm, at least 0 (the default): relative_eps·‖A‖_F·I is
            added too. It is part of the function that is differentiated.
        method: a name from ``matroot.methods.METHODS``, such as ``"pade"``, or an object with
            options, such as ``Pade(order=5)``; ``"auto"`` (the default) is ``Eigh()`` on a CPU and
            ``Minimax()`` elsewhere.
        gradient: a name from ``matroot.gradients.GRADIENTS`` or an object; ``"auto"`` (the default)
            is ``Spectral()`` for the spectral methods and ``Lyapunov()`` for the others.
        backend: who computes: ``"native"`` (compiled kernels, on a CPU), ``"triton"``,
            ``"triton-tf32"`` or ``"triton-double"`` (fused kernels, on NVIDIA GPUs) or ``"torch"``
            (PyTorch's operations); ``"auto"`` (the default) is the first of native, triton and
            torch that can. ``sqrtm`` says more of each.
        singular: what to do with eigenvalues that are zero to rounding, up to 4·e·λ_max in single
            and max(8, n)·e·λ_max in double precision, e the rounding unit of the computing dtype,
            where the inverse root is wanted: ``"raise"`` (the default) makes such a matrix NaN;
            ``"pinv"`` leaves them out, which gives the root of the pseudo-inverse (spectral methods
            only).
        rtol: with ``singular="pinv"``, the share of λ_max up to which eigenvalues are left out, as
            that of ``torch.linalg.pinv``; None (the default): what is zero to rounding. At least
            that in any case.

    Returns:
        A named tuple; the roots are differentiable as those of ``sqrtm_pair``.

    Raises:
        TypeError: ``a`` is not a tensor of a supported dtype, or an option has the wrong type.
        ValueError: ``a`` is not (..., n, n), a name is unknown, an option is out of range, or the
            gradient rule cannot work with the method; or ``root`` is unknown, or
            ``singular="pinv"`` with a method that has no eigenvalues, or ``rtol`` without it.

    Note:
        In double precision one product more than ``sqrtm`` for the root's residual, two for the
        inverse's, and a Cholesky factorisation or two. The bounds follow from the residuals and
        hold whatever the method: see the numerics page. In single precision they are near the
        error or what the condition number allows; in double precision some n·u·κ_f.
        ``converged``: ``Eigh``, ``Svd`` and ``Minimax`` report it themselves; for the other methods
        the residual must be at the level of rounding: 16 √n e for the root, 2 e ‖A‖_F ‖Z‖_F²/√n for
        the inverse (+ u in place of e for a half dtype; e, u the units of the computing and the
        input dtype). Whatever a method reports, 100 times that is too much.

    Example:
        >>> import torch, matroot
        >>> result = matroot.sqrtm_ex(torch.diag(torch.tensor([4.0, 1.0, 0.0])), root="both")
        >>> result.converged, result.inv_sqrt.isnan().all()
        (tensor(False), tensor(True))
    """
    checks.one_of("root", root, tuple(ROOTS))
    _checked_cut_off(rtol, singular)
    plan = resolve(ROOTS[root], a, eps, method, gradient, backend, singular)
    checks.ridge(relative_eps, a.dtype, "relative_eps")
    if a.numel() == 0:
        values: tuple[Tensor, ...] = tuple(a.clone() for _ in plan.request.functions)
        sqrt, inv_sqrt = root_pair(plan.request.functions, values)
        zeros = a.new_zeros(a.shape[:-2], dtype=spd.real_dtype(plan.request.computing_dtype))
        of_sqrt = None if sqrt is None else zeros
        of_inv = None if inv_sqrt is None else zeros
        one = zeros.long() + 1
        return SqrtmResult(sqrt, inv_sqrt, of_sqrt, of_inv, of_sqrt, of_inv, one, one.bool())
    found, _ = call.evaluated(plan, a, relative_eps, rtol)
    sqrt, inv_sqrt = root_pair(plan.request.functions, found.values)
    with torch.no_grad(), context.no_autocast(a):
        measures = residuals.measure(plan, a, sqrt, inv_sqrt, relative_eps)
        rest = residuals.residuals(plan.request, measures, a.shape[-1])
        bounds = error_bounds.error_bounds(measures, a.shape[-1], plan.request.computing_dtype)
        reported = found.info[..., 2]
        told = reported == Converged.YES
        converged = (reported > Converged.NO) & (rest.ratio <= torch.where(told, 100.0, 1.0))
    return SqrtmResult(
        sqrt, inv_sqrt, rest.sqrt, rest.inv_sqrt, *bounds, found.info[..., 1], converged
    )


def _checked_cut_off(rtol: float | None, singular: Singular) -> None:
    checks.cut_off("rtol", rtol)
    if rtol is not None and singular != "pinv":
        raise ValueError(f'rtol= is the cut-off of singular="pinv"; got singular={singular!r}')
