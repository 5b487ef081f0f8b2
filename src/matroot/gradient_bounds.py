"""Upper bounds of the error of gradients, wherever they come from."""

from __future__ import annotations

import torch
from torch import Tensor

from matroot import checks, context, spd
from matroot.dtensors import per_matrix
from matroot.error_bounds import enlarged, rounding
from matroot.functional import sqrtm_ex
from matroot.overrides import overridable


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
        or X is not known to one digit.

    Raises:
        TypeError: a matrix is not a tensor of a supported dtype, or dtypes differ.
        ValueError: ``a`` is not (..., n, n), shapes or devices differ, or no cotangent is given.

    Note:
        A decomposition in double precision and two to six products: from ‖S X + X S − G‖_F, the
        error bounds of S and Z, and the least eigenvalue of S (see the numerics page). In single
        precision it is within a small factor of the error where rounding of X is most of it; in
        double precision it is some n·u·κ.

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
    real = spd.real_dtype(spd.computing_dtype(a.dtype))
    if a.numel() == 0:
        return a.new_zeros(a.shape[:-2], dtype=real)
    with torch.no_grad(), context.no_autocast(a):
        x = spd.in_double(gradient.detach())
        return _bound(spd.in_double(a.detach()), x, g_sqrt, g_inv_sqrt, eps).to(real)


def _bound(
    a: Tensor, x: Tensor, g_sqrt: Tensor | None, g_inv_sqrt: Tensor | None, eps: float
) -> Tensor:
    """The same of matrices in double precision."""
    n = a.shape[-1]
    s, z, _, _, of_s, of_z, _, _ = sqrtm_ex(a, root="both", eps=eps)
    assert s is not None
    assert z is not None
    assert of_s is not None
    assert of_z is not None

    def norm(value: Tensor) -> Tensor:
        return spd.frobenius_norm(value)[..., 0, 0]

    s_norm, z_norm, x_norm = norm(s), norm(z), norm(x)
    # ‖S − S₀‖_F and ‖Z − Z₀‖_F, from bounds relative to the exact roots.
    of_s = of_s / (1 - of_s) * s_norm
    of_z = of_z / (1 - of_z) * z_norm
    z_most = spd.upper_bound(z)[..., 0, 0] + of_z
    unit = rounding(n, a.dtype, a)
    rest = s @ x + x @ s
    error = 2 * of_s * x_norm + unit * 4 * s_norm * x_norm
    if g_sqrt is not None:
        g = spd.hermitian_part(spd.in_double(g_sqrt.detach()))
        rest = rest - g
        error = error + unit * norm(g)
    if g_inv_sqrt is not None:
        g = spd.hermitian_part(spd.in_double(g_inv_sqrt.detach()))
        rest = rest + z @ g @ z
        error = error + norm(g) * (2 * of_z * z_most + 4 * unit * z_norm.square())
    # X₀ is not less than X but for its error; λ_min of the exact root is 1/‖Z₀‖_2.
    absolute = (norm(rest) + error) * z_most / 2
    bound = enlarged(absolute / (x_norm - absolute))
    known = (absolute < x_norm) & (of_s >= 0) & (of_z >= 0)
    zero = (absolute == 0) & (x_norm == 0)
    return torch.where(zero, 0.0, torch.where(known, bound, torch.nan))
