"""Upper bounds of the error of gradients, wherever they come from."""

from __future__ import annotations

import torch
from torch import Tensor

from matroot import checks, context, screen, spd
from matroot.dtensors import per_matrix
from matroot.error_bounds import enlarged, rounding
from matroot.functional import sqrtm_ex
from matroot.lyapunov import solve_lyapunov
from matroot.overrides import overridable
from matroot.screen import Status


@overridable
@per_matrix()
def gradient_error_bound(
    a: Tensor,
    gradient: Tensor,
    *,
    g_sqrt: Tensor | None = None,
    g_inv_sqrt: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """An upper bound of the error of a gradient of the root, the inverse root, or both.

    At least ‖X − X₀‖_F/‖X₀‖_F for a computed gradient X and the exact one, the X₀ with
    S X₀ + X₀ S = herm(G_S) − Z herm(G_Z) Z for S = (A + eps·I)^{1/2} and Z = S⁻¹.

    Args:
        a: symmetric (Hermitian) positive semi-definite matrices, shape (..., n, n), float16,
            bfloat16, float32, float64, complex64 or complex128. The Hermitian part is used; half
            precision is computed in float32.
        gradient: X, as autograd gives it, the shape and dtype of ``a``.
        g_sqrt: the cotangent G_S of the root, the same shape and dtype; None for 0.
        g_inv_sqrt: the cotangent G_Z of the inverse root; None for 0.
        eps: the ridge with which the roots were taken, at least 0 (the default).

    Returns:
        Shape (...), real, no derivative. NaN where nothing can be said: A is singular to rounding,
        or double precision does not find the gradient to one digit.

    Raises:
        TypeError: a matrix is not a tensor of a supported dtype, dtypes differ, or ``eps`` is no
            number.
        ValueError: ``a`` is not (..., n, n), shapes or devices differ, no cotangent is given, or
            ``eps`` is out of range.

    Note:
        A decomposition in double precision, a Lyapunov equation and up to eight products: from
        ‖S X + X S − G‖_F, the error bounds of S and Z, and the least eigenvalue of S (see the
        numerics page). In single precision it is within a small factor of the error; in double
        precision, whose own rounding it cannot tell from errors, it is some hundred n·u for the
        root and some ten thousand for the inverse root at κ = 10, and grows with κ.

    Example:
        >>> import torch, matroot
        >>> a = torch.tensor([[4.0, 0.0], [0.0, 9.0]], requires_grad=True)
        >>> g = torch.ones(2, 2)
        >>> matroot.sqrtm(a).backward(g)
        >>> bool(matroot.gradient_error_bound(a, a.grad, g_sqrt=g) < 1e-6)
        True
    """
    checks.square_matrices("a", a)
    given = {"gradient": gradient, "g_sqrt": g_sqrt, "g_inv_sqrt": g_inv_sqrt}
    for name, x in given.items():
        if x is None and name != "gradient":
            continue
        same = checks.square_matrices(name, x)
        checks.same_kind("a", a, name, same)
    if g_sqrt is None and g_inv_sqrt is None:
        raise ValueError(
            "gradient_error_bound: give the cotangent, g_sqrt= or g_inv_sqrt=, or both"
        )
    eps = checks.ridge(eps, a.dtype)
    real = spd.real_dtype(spd.computing_dtype(a.dtype))
    if a.numel() == 0:
        return a.new_zeros(a.shape[:-2], dtype=real)
    skew = screen.thresholds(a.shape[-1], a.dtype).skew
    with torch.no_grad(), context.no_autocast(a):
        wide = spd.in_double(a)
        nothing = torch.zeros_like(wide)
        g_s, g_z = (
            nothing if g is None else spd.hermitian_part(spd.in_double(g))
            for g in (g_sqrt, g_inv_sqrt)
        )
        return _bound(wide, spd.in_double(gradient), g_s, g_z, eps, skew).to(real)


def _bound(a: Tensor, x: Tensor, g_s: Tensor, g_z: Tensor, eps: float, skew: float) -> Tensor:
    """The same in double precision, with Hermitian cotangents; see Thresholds for ``skew``."""
    n, shape = a.shape[-1], a.shape[:-2]
    flat, k, status = screen.normalized(a.reshape(-1, n, n), skew, eps)
    a, k = flat.reshape(a.shape), k.reshape(shape)
    s, z, _, _, of_s, of_z, _, _ = sqrtm_ex(a, root="both")

    def norm(value: Tensor) -> Tensor:
        return spd.frobenius_norm(value)[..., 0, 0]

    # In units in which nothing overflows: A/2ᵏ, so 2^{k/2} X, G_Z/2ᵏ; and these over 2ʲ.
    least = -4000  # Of no cotangent, or of one that is not finite.
    j = torch.maximum(
        *(
            torch.where((spd.max_abs(g) > 0) & spd.max_abs(g).isfinite(), power, least)
            for g, power in ((g_s, spd.exponent(g_s)), (g_z, spd.exponent(g_z) - k))
        )
    )
    j = torch.where(j == least, 0, j)
    x = spd.times_power_of_two(x, torch.div(k, 2, rounding_mode="floor") - j)
    g_s, g_z = spd.times_power_of_two(g_s, -j), spd.times_power_of_two(g_z, -j - k)

    s_norm, z_norm, x_norm = norm(s), norm(z), norm(x)
    # ‖S − S₀‖_F and ‖Z − Z₀‖_F, from bounds relative to the exact roots.
    of_s = of_s / (1 - of_s) * s_norm
    of_z = of_z / (1 - of_z) * z_norm
    z_most = spd.upper_bound(z)[..., 0, 0] + of_z
    unit = rounding(n, a.dtype, a)
    if eps:
        # A + eps·I was rounded: by less than twice what it is to first order.
        lost = spd.real_eps(a.dtype) * norm(a)
        of_s = torch.where(lost * z_most.square() < 0.1, of_s + lost * z_most, torch.nan)
        of_z = of_z + lost * z_most**3
        z_most = z_most + lost * z_most**3
    constant = g_s - z @ g_z @ z  # of the equation S X + X S = G
    rounded = unit * norm(g_s) + norm(g_z) * (2 * of_z * z_most + 4 * unit * z_norm.square())

    def absolute(x: Tensor) -> tuple[Tensor, Tensor]:
        """At least ‖X − X₀‖_F, and the residual."""
        rest = s @ x + x @ s - constant
        error = norm(rest) + norm(x) * (2 * of_s + 4 * unit * s_norm) + rounded
        # λ_min of the exact root is 1/‖Z₀‖_2.
        return error * z_most / 2, rest

    # A better gradient, in double precision, says how far off X is, and how large X₀ is at least.
    error, rest = absolute(x)
    change = solve_lyapunov(s, rest, check_errors=False)
    better = x - change
    of_better, _ = absolute(better)
    error = torch.minimum(error, norm(change) + of_better)
    # Of an X that is far too large nothing is left but the rounding of both norms.
    size = torch.maximum(x_norm * (1 - 4 * unit) - error, norm(better) - of_better)
    bound = enlarged(error / size)
    known = (size > 0) & (of_s >= 0) & (of_z >= 0) & (status == Status.OK).reshape(shape)
    exact = (spd.max_abs(x) == 0) & (spd.max_abs(g_s) == 0) & (spd.max_abs(g_z) == 0)
    return torch.where(exact, 0.0, torch.where(known, bound, torch.nan))
