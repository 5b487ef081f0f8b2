"""The Bures–Wasserstein barycentre: the covariance of least mean squared distance to others.

At the barycentre S the transport maps M_i to the covariances C_i = M_i S M_i have the mean
Σ w_i M_i = I. With S = Y Yᴴ, Y = Q diag(r) by its eigenvectors and the roots of its eigenvalues,
and the singular value decomposition C_i^{1/2} Y = U_i Σ_i V_iᴴ this reads

    Σ w_i K_i = diag(r²),    K_i = V_i Σ_i V_iᴴ = (Yᴴ C_i Y)^{1/2},

and its derivative by S, at X = Y⁻¹ dS Y⁻ᴴ, is −T(X), which is positive definite:

    T(X) = Σ w_i V_i [H_i ∘ (V_iᴴ X V_i)] V_iᴴ,    H_i = σ_a σ_b/(σ_a + σ_b).

The fixed-point iteration of Álvarez-Esteban et al. (2016), S ← M S M with M = Σ w_i M_i, is a step
of steepest descent, preconditioned by 1/r_a² + 1/r_b², with which T has eigenvalues in (0, 1] only.
Conjugate gradients with that preconditioner make a step of Newton's method of it, which takes 4 to
20 where the iteration takes from 16 to hundreds, and solve the adjoint equation of the gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from matroot import autodiff, checks, context, errors, screen, spd, spectrum
from matroot.dtensors import per_matrix
from matroot.overrides import overridable
from matroot.transport import Call, EigenRoot

# The most that condition numbers up to 1e12 took is 18, and 55 for the inner ones.
_STEPS = 30
_INNER_STEPS = 60
_ADJOINT_STEPS = 300
# A step of this relative size is the last, since the next would be its square.
_LAST = 1e-10
# From here on steps that do not halve are rounding.
_CLOSE = 1e-3
_ADJOINT_TOLERANCE = 1e-14


@overridable
@per_matrix(covariances=3, weights=1)
def barycenter(covariances: Tensor, weights: Tensor | None = None, *, eps: float = 0.0) -> Tensor:
    """The Bures–Wasserstein barycentre of symmetric (Hermitian) positive semi-definite matrices.

    S = argmin Σ w_i d²(S, C_i) with the distance of ``bures_wasserstein_distance`` and C_i + eps·I
    for C_i: the covariance of the 2-Wasserstein barycentre of centred Gaussians with these
    covariances, and the one positive definite S with S = Σ w_i (S^{1/2} C_i S^{1/2})^{1/2}.

    Args:
        covariances: C_i, shape (..., k, n, n), k at least 1, float16, bfloat16, float32, float64,
            complex64 or complex128; one with a positive weight must be positive definite, else
            there may be several barycentres.
        weights: w_i, at least 0, shape (k,) or (..., k), whose batch dimensions broadcast; real, on
            the device of ``covariances``. They are divided by their sum. None (the default): equal
            ones.
        eps: ridge added to all diagonals, at least 0 (the default), in the units of
            ``covariances``.

    Returns:
        S, shape (..., n, n), the dtype and device of ``covariances``; exactly Hermitian.

    Raises:
        TypeError: ``covariances`` is not a tensor of a supported dtype, the weights are not real
            floating-point numbers, or an option has the wrong type.
        ValueError: ``covariances`` is not (..., k, n, n), or ``eps`` is out of range; or the
            weights do not fit, or, in eager mode on a CPU, are negative, not finite or all 0.
        torch.linalg.LinAlgError: in eager mode on a CPU: a matrix is not finite, not symmetric or
            indefinite, in the sense of ``sqrtm``; no matrix with a positive weight is regular, in
            the sense of ``inv_sqrtm``; the iteration has not converged in 30 steps. Elsewhere the
            barycentre is NaN.

    Note:
        All in double precision, where the device has it: k eigendecompositions, then for each of 4
        to 10 steps of Newton's method (18 at condition number 1e12; 1 where the matrices commute) k
        singular value decompositions and some ten steps of conjugate gradients with 4 k products
        each; on an accelerator 60 of those, since ending earlier would wait for it.

        Results of single precision are exact to a unit of rounding. In double precision errors are
        up to 40 units of rounding at condition number 100, 500 at 1e4 and 2e4 at 1e6 (n = 4 and 6,
        against 50 digits), some times what the rounding of the matrices themselves makes.

        First derivatives by all arguments, by the implicit function theorem: a linear system of the
        same kind, k singular value decompositions more. Those by singular matrices are of minimum
        norm, 0 on null × null space. Second derivatives and forward mode are refused.

    References:
        P. C. Álvarez-Esteban, E. del Barrio, J. A. Cuesta-Albertos, C. Matrán, A fixed-point
        approach to barycenters in Wasserstein space, Journal of Mathematical Analysis and
        Applications 441 (2016); M. Agueh, G. Carlier, Barycenters in the Wasserstein space, SIAM
        Journal on Mathematical Analysis 43 (2011).

    Example:
        >>> import torch, matroot
        >>> a, b = torch.diag(torch.tensor([4.0, 9.0])), torch.eye(2)
        >>> matroot.barycenter(torch.stack([a, b]))  # ((2 + 1)/2)² and ((3 + 1)/2)²
        tensor([[2.2500, 0.0000],
                [0.0000, 4.0000]])
    """
    checks.square_matrices("covariances", covariances)
    if covariances.ndim < 3 or covariances.shape[-3] == 0:
        raise ValueError(
            "covariances must have shape (..., k, n, n) with k at least 1, got "
            f"{tuple(covariances.shape)}"
        )
    eps = checks.ridge(eps, covariances.dtype)
    k, n = covariances.shape[-3:-1]
    mps = covariances.device.type == "mps"  # Which has no double precision.
    with context.no_autocast(covariances):
        c = covariances.to(spd.computing_dtype(covariances.dtype))
        c = c if mps else spd.in_double(c)
        w, weighted = _weights(weights, c)
        batch = spd.broadcast_shapes(c.shape[:-3], w.shape[:-1])
        c, w = c.expand(*batch, k, n, n), w.expand(*batch, k)
        if c.numel() == 0:
            return c.sum(-3).to(covariances.dtype) * w.sum()
        found = _screened(covariances, c, w, weighted.expand(batch), eps)
        return found.to(covariances.dtype)


def _weights(weights: Tensor | None, c: Tensor) -> tuple[Tensor, Tensor]:
    """Those that sum to 1, shape (..., k), equal where they are bad, and whether they are good."""
    k, dtype = c.shape[-3], spd.real_dtype(c.dtype)
    if weights is None:
        return c.new_full((k,), 1 / k, dtype=dtype), c.new_ones((), dtype=torch.bool)
    checks.floating("weights", weights)
    if weights.ndim < 1 or weights.shape[-1] != k:
        raise ValueError(f"weights must have shape (..., {k}), got {tuple(weights.shape)}")
    if weights.device != c.device:
        raise ValueError(f"weights must be on the device {c.device}, got {weights.device}")
    for i, (p, q) in enumerate(zip(weights.shape[-2::-1], c.shape[-4::-1], strict=False)):
        if p != q and 1 not in (p, q):
            raise ValueError(
                "batch dimensions of weights and covariances must be equal or 1, got "
                f"{p} and {q}, the last but {i}"
            )
    w = weights.to(dtype)
    seen = w.detach()
    good = ((seen >= 0) & seen.isfinite()).all(-1) & (seen > 0).any(-1)
    if checks.checking(None, weights) and not good.all():
        bad = weights.detach()[~good]
        raise ValueError(
            "weights must be finite, at least 0 and not all 0, got "
            f"{[round(x, 6) for x in bad[0].tolist()]}"
        )
    w = torch.where(good[..., None], w, 1.0)
    return w / w.sum(-1, keepdim=True), good


def _screened(given: Tensor, c: Tensor, w: Tensor, weighted: Tensor, eps: float) -> Tensor:
    """S of matrices (..., k, n, n) and weights (..., k) in the precision of the computation."""
    n = c.shape[-1]
    roots = EigenRoot.of(Call(given.dtype, eps), c.detach())
    # Eigenvalues that the rounding of what was given left of zeros are zeros.
    share = spd.null_share(n, spd.computing_dtype(given.dtype)) ** 0.5
    values = torch.where(roots.roots > share * roots.roots.amax(-1, keepdim=True), roots.roots, 0.0)
    good = (roots.status == screen.Status.OK).all(-1) & weighted
    regular = ((values > 0).all(-1) & (w.detach() > 0)).any(-1)
    # In the units of the largest, by a power of two.
    k = roots.k.amax(-1, keepdim=True)
    f = (roots.vectors * values[..., None, :]) @ roots.vectors.mH
    f = spd.times_power_of_two(f, roots.k - k)
    usable = (good & regular)[..., None, None, None]
    f = torch.where(usable, f, spd.identity_like(f))
    rank = torch.where(usable[..., 0, 0], (values > 0).sum(-1), n)
    x = spd.hermitian_part(torch.where(usable, c, spd.nan_where(~usable, c)))
    x = spd.times_power_of_two(x, (-2 * k).expand(roots.k.shape))
    flat = [z.reshape(-1, *z.shape[len(w.shape) - 1 :]) for z in (x, w, f, rank)]
    s, converged, _ = autodiff.traceable(_Barycenter, _Barycenter).apply(*flat)
    s = spd.times_power_of_two(s.reshape(c.shape[:-3] + s.shape[1:]), 2 * k[..., 0])
    converged = converged.reshape(good.shape)
    if checks.checking(None, given, w):
        limits = screen.thresholds(n, given.dtype)
        named = errors.Named("covariances", ridge="a ridge with eps=")
        status = roots.status
        if status.shape != given.shape[:-2]:  # Broadcast by the weights.
            status = EigenRoot.of(Call(given.dtype, eps), given.detach().to(c.dtype)).status
        errors.raise_if_bad(named, status, given, limits, eps)
        _raise_where(
            ~regular,
            "no matrix with a positive weight is regular, so there may be several barycenters; "
            "add a ridge with eps=",
        )
        _raise_where(
            ~converged,
            f"the iteration has not converged in {_STEPS} steps; add a ridge with eps=",
        )
    bad = ~(good & regular & converged)[..., None, None]
    return torch.where(bad, spd.nan_where(bad, s), s)


def _raise_where(bad: Tensor, why: str) -> None:
    if bad.any():
        of = f" ({int(bad.sum())} of {bad.numel()} sets)" if bad.ndim else ""
        raise torch.linalg.LinAlgError(f"covariances have no barycenter{of}: {why}")


class _Point(NamedTuple):
    """S = Y Yᴴ in its own basis, b of them, and what its transport maps are made of.

    Attributes:
        y: Q diag(r), shape (b, n, n).
        r: the roots of its eigenvalues, shape (b, n).
        w: the weights, shape (b, k).
        sigma: Σ_i, shape (b, k, n).
        vh: V_iᴴ, shape (b, k, n, n).
        h: w_i H_i, shape (b, k, n, n).
    """

    y: Tensor
    r: Tensor
    w: Tensor
    sigma: Tensor
    vh: Tensor
    h: Tensor

    @classmethod
    def of(cls, f: Tensor, rank: Tensor, w: Tensor, y: Tensor) -> _Point:
        """S = Y Yᴴ for any Y, the roots C_i^{1/2}, shape (b, k, n, n), and their ranks, (b, k)."""
        q, r, _ = spectrum.svd(y)
        y = q * r[:, None, :]
        _, sigma, vh = spectrum.svd(f @ y[:, None])
        # Rounding of zeros is no divisor.
        sigma = torch.where(torch.arange(r.shape[-1], device=r.device) < rank[..., None], sigma, 0)
        h = _by_sums(sigma, sigma[..., :, None] * sigma[..., None, :])
        return cls(y, r, w, sigma, vh, w[..., None, None] * h)

    def mean(self) -> Tensor:
        """Σ w_i K_i."""
        return self._summed(torch.diag_embed(self.w[..., None] * self.sigma).to(self.vh.dtype))

    def curvature(self, x: Tensor) -> Tensor:
        """T(X)."""
        return self._summed(self.h * self.turned(x))

    def turned(self, x: Tensor) -> Tensor:
        """V_iᴴ X V_i."""
        return self.vh @ x[:, None] @ self.vh.mH

    def _summed(self, x: Tensor) -> Tensor:
        """Σ V_i X_i V_iᴴ, the sum by the second product."""
        right = (x @ self.vh).flatten(1, 2)
        return spd.hermitian_part(self.vh.flatten(1, 2).mH @ right)

    def solved(self, r: Tensor, tolerance: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """T⁻¹(R) by conjugate gradients, and whether the residual fell by ``tolerance``, (b,)."""
        inverse = 1 / self.r.square()
        weight = inverse[:, :, None] + inverse[:, None, :]
        x = torch.zeros_like(r)
        p = z = weight * r
        size = _inner(r, z)
        enough = tolerance.square() * size
        for _ in range(steps):
            live = size > enough
            if context.host_reads_are_free(live) and not live.any():
                break
            t = self.curvature(p)
            step = torch.where(live, size / spd.positive_or_one(_inner(p, t)), 0.0)
            x = x + step[:, None, None] * p
            r = r - step[:, None, None] * t
            z = weight * r
            new = _inner(r, z)
            turn = torch.where(live, new / spd.positive_or_one(size), 0.0)
            p = torch.where(live[:, None, None], z + turn[:, None, None] * p, p)
            size = torch.where(live, new, size)
        return x, size <= enough


def _by_sums(sigma: Tensor, x: Tensor) -> Tensor:
    """X_ab/(σ_a + σ_b), 0 where both are 0."""
    sums = sigma[..., :, None] + sigma[..., None, :]
    return torch.where(sums > 0, x / spd.positive_or_one(sums), 0.0)


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """Re tr XᴴY, shape (b,)."""
    return (x.conj() * y).real.sum(-1).sum(-1)


def _newton(f: Tensor, rank: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """(Y with S = Y Yᴴ, whether it is S) for the roots C_i^{1/2} and weights, by Newton's method.

    From (Σ w_i C_i^{1/2})², which is S where the matrices commute.

    Args:
        f: shape (b, k, n, n).
        rank: their ranks, shape (b, k).
        w: shape (b, k).
    """
    b, _, n, _ = f.shape
    y = (w.to(f.dtype)[:, None] @ f.flatten(2)).reshape(b, n, n)
    last = w.new_full((b,), torch.inf)
    done = torch.zeros_like(last, dtype=torch.bool)
    for _ in range(_STEPS):
        # The singular value decompositions wait for a device in any case.
        if context.is_plain(done) and bool(done.all()):
            break
        point = _Point.of(f, rank, w, y)
        r = point.r[:, :, None] * point.r[:, None, :]
        rest = point.mean() - torch.diag_embed(point.r.square()).to(f.dtype)
        first = spd.frobenius_norm(rest / r)[:, 0, 0]  # ‖M − I‖, the step of the fixed point.
        x, _ = point.solved(rest, first.clamp(max=0.1), _INNER_STEPS)
        squares = point.r.square()
        # S ← (I + E) S (I + E), the geodesic towards dS = E S + S E.
        e = x * r / (squares[:, :, None] + squares[:, None, :])
        size = spd.frobenius_norm(e)[:, 0, 0]
        found = size.isfinite()
        e = torch.where(found[:, None, None], e, 0.0)
        value, u = spectrum.eigh(e)
        # Far away I + E would be indefinite or leap: −e/(1 − e) > −1 and a factor of 16 at most.
        value = torch.where(value < 0, value / (1 - value), value.clamp(max=3))
        e = (u * value[:, None, :]) @ u.mH
        y = torch.where((done | ~found)[:, None, None], y, point.y + point.y @ _over(e, point.r))
        done = done | (size < _LAST) | ((size < _CLOSE) & (size > 0.5 * last))
        last = size
    return y, done


def _over(e: Tensor, r: Tensor) -> Tensor:
    """diag(r)⁻¹ E diag(r)."""
    return e * r[:, None, :] / r[:, :, None]


def _adjoint(f: Tensor, rank: Tensor, w: Tensor, y: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients by C_i, shape (b, k, n, n), and by w, (b, k), for the gradient G by S."""
    point = _Point.of(f, rank, w, y)
    g = point.y.mH @ spd.hermitian_part(g) @ point.y
    x, solved = point.solved(g, torch.full_like(w[:, 0], _ADJOINT_TOLERANCE), _ADJOINT_STEPS)
    x = torch.where(solved[:, None, None], x, torch.nan)
    turned = point.turned(x)
    inner = point.vh.mH @ _by_sums(point.sigma, turned) @ point.vh
    by_c = w[..., None, None] * (point.y[:, None] @ inner @ point.y[:, None].mH)
    by_w = (point.sigma * turned.diagonal(dim1=-2, dim2=-1).real).sum(-1)
    return spd.hermitian_part(by_c), by_w


# As operators: torch.compile would unroll the loops. PyTorch's class has no annotations.
_LIBRARY: Any = torch.library.Library("matroot", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("barycenter(Tensor f, Tensor rank, Tensor w) -> (Tensor, Tensor)")
_LIBRARY.define(
    "barycenter_adjoint(Tensor f, Tensor rank, Tensor w, Tensor y, Tensor g) -> (Tensor, Tensor)"
)
_LIBRARY.impl("barycenter", _newton, "CompositeExplicitAutograd")
_LIBRARY.impl("barycenter_adjoint", _adjoint, "CompositeExplicitAutograd")


def _fake(f: Tensor, rank: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(f[:, 0]), torch.empty_like(w[:, 0], dtype=torch.bool)


def _fake_adjoint(
    f: Tensor, rank: Tensor, w: Tensor, y: Tensor, g: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(f), torch.empty_like(w)


torch.library.register_fake("matroot::barycenter", _fake, lib=_LIBRARY)
torch.library.register_fake("matroot::barycenter_adjoint", _fake_adjoint, lib=_LIBRARY)


class _Barycenter(torch.autograd.Function):
    """(S, converged) with its derivative by C_i and w; the roots f of C_i only tell the values."""

    @staticmethod
    def forward(_c: Tensor, w: Tensor, f: Tensor, rank: Tensor) -> tuple[Tensor, ...]:
        y, converged = torch.ops.matroot.barycenter(f, rank, w)
        return spd.hermitian_part(y @ y.mH), converged, y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, output[2])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        by_c, by_w = _Adjoint.apply(*ctx.saved_tensors, g)
        return by_c, by_w, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _batched(_Barycenter, info.batch_size, in_dims, inputs)


class _Adjoint(torch.autograd.Function):
    """The gradients, whose own derivative is refused and not taken for 0: they depend on C_i."""

    @staticmethod
    def forward(
        _c: Tensor, w: Tensor, f: Tensor, rank: Tensor, y: Tensor, g: Tensor
    ) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = torch.ops.matroot.barycenter_adjoint(f, rank, w, y, g)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise NotImplementedError("second derivatives of barycenter")

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _batched(_Adjoint, info.batch_size, in_dims, inputs)


def _batched(
    function: type[torch.autograd.Function],
    size: int,
    in_dims: tuple[int | None, ...],
    inputs: tuple[Tensor, ...],
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """A vmap rule for functions of one batch: one of both dimensions."""
    flat = [z.flatten(0, 1) for z in autodiff.batch_first(size, in_dims, inputs)]
    outputs = function.apply(*flat)
    return tuple(z.unflatten(0, (size, -1)) for z in outputs), (0,) * len(outputs)
