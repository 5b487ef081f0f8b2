"""Whole calls on an accelerator: the products of a library, and few passes between them.

What a device does between two products is short, and a launch costs as much as some of them. So
``Minimax`` and the exact ``Lyapunov`` gradient, which is what ``auto`` takes there, are written a
second time here, on ``passes.Passes``. The methods and rules define what is right.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from matroot import context, spd, spectrum
from matroot.gradients import GradientRule, Kept, Lyapunov
from matroot.gradients.rule import Cotangents
from matroot.kernels.kernel import GradientKernel, Solved, ValueKernel
from matroot.kernels.passes import Chosen, Passes, Scaled, constant
from matroot.methods import Minimax
from matroot.request import Request
from matroot.roots import root_pair, roots_in_order, wanted_roots
from matroot.schedules import CONSTANT, steps_of_five
from matroot.screen import Status


def _unfit(a: Tensor, *others: Tensor | None) -> str | None:
    """Why this is not for these tensors; None: they are an accelerator's, and nothing traces them.

    A program for torch.compile is made of single operations, which the compiler joins by itself.
    """
    if not context.on_accelerator(a) or a.device.type == "meta":
        return f"few passes are for accelerators, not for {a.device.type}"
    if a.is_complex():
        return "few passes are for real numbers"
    if torch.compiler.is_compiling() or context.jit_tracing():
        return "operations are traced"
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    for t in (a, *others):
        if t is not None and (wrapped(t) or context.stands_for_others(t)):
            return "few passes are for plain tensors"
    return None


def _solves_exactly(rule: GradientRule | None) -> bool:
    return type(rule) is Lyapunov and rule.steps is None


def _method(request: Request) -> Minimax:
    method = request.method
    assert isinstance(method, Minimax)
    return method


def declines(request: Request, a: Tensor) -> str | None:
    """Why ``values`` is not for this call, None if it is."""
    method = _method(request)
    if method.step_degree != 5:
        return "few passes are for steps of degree 5"
    if request.rule is not None and not _solves_exactly(request.rule):
        return "few passes are for the exact gradient by the Lyapunov equation"
    return _unfit(a)


def values(passes: Passes, request: Request, a: Tensor) -> Solved:
    """The roots by ``Minimax`` of degree 5; see ``Minimax.solve`` and ``solve.evaluate``."""
    method = _method(request)
    n, batch = a.shape[-1], a.shape[:-2]
    scaled = passes.scaled(a.reshape(-1, n, n), request.eps)
    begun = _begun(passes, request, scaled)
    flag = None if method.max_cond is not None else Flag.of(begun.chosen.interval[:, 0])
    regular = flag is not None and flag.known_to_hold()
    if request.rounded and not regular:
        clipped = spectrum.without_rounded_negatives(scaled.x, request.input_dtype)
        begun = _begun(passes, request, replace(scaled, x=clipped))
        flag, regular = None, False
    y, z, p = _iterated(passes, request, begun)
    chosen = begun.chosen
    if method.max_cond is not None:
        scale = chosen.steps[:, -2, 1]
        rest = passes.combination(
            constant((-1.0,), scale.dtype, scale.device).expand_as(scale), scale, p
        )
        chosen = _with_promise(request, chosen, rest)
        flag = Flag.of(chosen.bounds[:, 0])
    elif flag is None or not flag.known_to_hold():
        chosen = _checked(passes, request, begun, y, z)
    sqrt, inv_sqrt = (
        None if t is None else _own(passes.finished(t, chosen.factors[:, i]), a.shape)
        for i, t in enumerate((y, z))
    )
    bounds = chosen.bounds.reshape(*batch, 2)
    if flag is not None:
        flag.remember(bounds)
    return Solved(
        info=chosen.info.reshape(*batch, 3),
        values=roots_in_order(request.solved, sqrt, inv_sqrt),
        constants=() if request.rule is None else (bounds,),
    )


def _own(x: Tensor, shape: torch.Size) -> Tensor:
    """X as of this shape, and not as a view, which could not be changed in place."""
    whole: Tensor = torch.ops.aten._unsafe_view.default(x, shape)
    return whole


@dataclass(frozen=True)
class _Begun:
    """X, X², the identity, where X has no Cholesky factor (None: not asked), and the steps."""

    x: Tensor
    square: Tensor
    identity: Tensor
    failed: Tensor | None
    chosen: Chosen


def _begun(passes: Passes, request: Request, scaled: Scaled) -> _Begun:
    """All that comes before the iteration."""
    x, method = scaled.x, _method(request)
    max_cond = method.max_cond
    n, unit = x.shape[-1], spd.real_eps(x.dtype)
    square, identity = torch.bmm(x, x), spd.identity_like(x)
    inverse, failed = (None, None) if max_cond is not None else _inverse(x, identity)
    steps = steps_of_five(
        x.dtype,
        x.device,
        2 * unit if method.tol is None else method.tol,
        method.max_steps,
        n,
        # Designing a singular matrix for more would let rounding's negative eigenvalues grow.
        1 / (max(n, spd.NULL_UNITS) * unit) if max_cond is None else 1.0,
        # Bounds of λ_max are at most n^{1/4} times too high and n^{1/2} times too low.
        None if max_cond is None else 1.01 * max_cond * n**0.75,
    )
    limits = request.thresholds(n)
    chosen = passes.chosen(scaled, square, inverse, failed, limits, max_cond, steps)
    return _Begun(x, square, identity, failed, chosen)


def _inverse(x: Tensor, identity: Tensor) -> tuple[Tensor, Tensor]:
    """X⁻¹, anything where X has no Cholesky factor, and 0 where it has one."""
    factor, failed = torch.linalg.cholesky_ex(x)
    inverse_factor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return torch.bmm(inverse_factor.mT, inverse_factor), failed


def _iterated(
    passes: Passes, request: Request, begun: _Begun
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Y and Z of ``Steps``, the wanted ones, and P before the last step."""
    h, identity = begun.chosen.steps, begun.identity
    z = passes.combination(h[:, 0, 0], h[:, 0, 1], begun.x, h[:, 0, 2], begun.square)
    y = torch.bmm(begun.x, z)
    p, count, wanted = begun.x, h.shape[1] - 2, wanted_roots(request.solved)
    for step in range(1, count):
        p = torch.bmm(z, y)
        rest = passes.combination(h[:, step, 1], h[:, step, 2], p)
        d = torch.baddbmm(identity, p, rest, beta=CONSTANT)
        last = step == count - 1
        new_y = torch.baddbmm(y, y, d) if wanted.sqrt or not last else y
        z = torch.baddbmm(z, d, z) if wanted.inv_sqrt or not last else z
        y = new_y
    return y if wanted.sqrt else None, z if wanted.inv_sqrt else None, p


def _with_promise(request: Request, chosen: Chosen, rest: Tensor) -> Chosen:
    """By P − I before the last step, which is the caller's: whether a promised condition held.

    Where it did, P is near I, and A regular. Where it did not, P = Z A Z tells by a Cholesky
    factorisation whether A is indefinite; or singular, if that is asked: an eigenvalue of A at that
    limit is multiplied by at least ``max_cond`` in P.
    """
    n, unit, limits = rest.shape[-1], spd.real_eps(rest.dtype), request.thresholds(rest.shape[-1])
    deviation = torch.linalg.vector_norm(rest, dim=(-2, -1))
    kept = deviation <= chosen.steps[:, -1, 0]
    p = spd.add_to_diagonal_(rest, 1 + 2 * (n * unit) ** 0.5)
    tests, kinds = [p], [Status.INDEFINITE]
    max_cond = _method(request).max_cond
    if limits.singular is not None and max_cond is not None:
        shift = 2 * (n * unit) ** 0.5 + min(limits.singular * max_cond, 0.5)
        tests, kinds = [p, spd.add_to_diagonal_(p.clone(), -shift)], [*kinds, Status.SINGULAR]
    together = p if len(tests) == 1 else torch.cat(tests)
    failed = torch.linalg.cholesky_ex(together).info.reshape(len(tests), -1) != 0
    status = (failed & ~kept) * constant(tuple(kinds), torch.int64, p.device)[:, None]
    # A promise that proves no more than rounding allows proves nothing.
    chosen.bounds[:, 0].mul_(kept & (chosen.steps[:, -1, 1] > 0))
    chosen.info[:, 2].mul_(kept)
    return _with_status(chosen, status.amax(0))


def _checked(
    passes: Passes, request: Request, begun: _Begun, y: Tensor | None, z: Tensor | None
) -> Chosen:
    """With the status of matrices that have no Cholesky factor.

    See ``screen.definiteness`` and ``methods.coupled.grown``. Both factorisations are one call.
    """
    chosen, x, n = begun.chosen, begun.x, begun.x.shape[-1]
    c = chosen.interval[:, 1]
    one, unit = torch.ones_like(c), spd.real_eps(x.dtype)
    trace = spd.trace(x)
    limit = request.thresholds(n).indefinite
    assert limit is not None
    tests = [passes.combination(limit * c, one, x)]
    if y is not None:
        root = passes.finished(y, chosen.steps[:, -2, 0] / c.sqrt())
        size = torch.linalg.vector_norm(root, dim=(-2, -1))
        tests.append(passes.combination(2 * unit**0.5 * size, one, root))
    failed = torch.linalg.cholesky_ex(torch.cat(tests)).info.reshape(len(tests), -1) != 0
    # In half precision n·u may exceed 1, and a shift by it hide a negative matrix.
    indefinite = failed[0] | ((trace <= 0) & (spd.max_abs(x) > 0))
    if y is not None:
        # A step that is not the last leaves eigenvalues of Y too large.
        most = (1 + 20 * unit**0.5) * trace * c.square() * chosen.steps[:, -2, 2]
        diverged = (failed[1] & (size != 0)) | ~(size.square() <= most)
    else:
        assert z is not None
        diverged = ~spd.max_abs(z).isfinite()
    assert begun.failed is not None
    wrong = torch.stack([indefinite, diverged]) & (begun.failed != 0)
    kinds = constant((Status.INDEFINITE, Status.DIVERGED), torch.int64, x.device)
    return _with_status(chosen, (wrong * kinds[:, None]).amax(0))


def _with_status(chosen: Chosen, status: Tensor) -> Chosen:
    """With these statuses, where they are worse than those that are known."""
    torch.maximum(chosen.info[:, 0], status, out=chosen.info[:, 0])
    ok = chosen.info[:, 0] == Status.OK
    chosen.info[:, 2].mul_(ok)
    nan = constant((torch.nan,), chosen.bounds.dtype, chosen.bounds.device)
    return replace(
        chosen,
        factors=torch.where(ok[:, None], chosen.factors, nan),
        bounds=torch.where(ok[:, None], chosen.bounds, nan),
    )


class Flag:
    """Whether something holds for a whole batch, on its way to the host, which never waits for it.

    What depends on it must give the same digits either way.
    """

    def __init__(self, holds: Tensor) -> None:
        on_gpu = holds.device.type == "cuda"
        self.host: Tensor = torch.empty((), dtype=torch.bool, device="cpu", pin_memory=on_gpu)
        self.host.copy_(holds, non_blocking=True)
        # PyTorch leaves it without types.
        self.arrived: Any = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        if self.arrived is not None:
            self.arrived.record(torch.cuda.current_stream(holds.device))

    @classmethod
    def of(cls, numbers: Tensor) -> Flag | None:
        """Whether none of the numbers is 0; None where that cannot be known in time."""
        if numbers.device.type not in ("cpu", "cuda") or _capturing(numbers.device):
            return None
        return cls(numbers.all())

    def known_to_hold(self) -> bool:
        """Whether it holds and the host knows."""
        if self.arrived is not None and (_capturing(self.host.device) or not self.arrived.query()):
            return False
        # By its byte: the operation that reads a number is the one that waits elsewhere.
        return ctypes.c_bool.from_address(self.host.data_ptr()).value

    def remember(self, tensor: Tensor) -> None:
        """For ``recalled`` with a tensor that has the same memory, as one saved for backward has.

        An autograd function that knows transforms hands on tensors alone.
        """
        # PyTorch keeps the Python object of a storage, with what is written on it.
        tensor.untyped_storage().matroot_flag = self  # type: ignore[attr-defined]

    @staticmethod
    def recalled(tensor: Tensor) -> Flag | None:
        """What was remembered with the memory of this tensor."""
        return getattr(tensor.untyped_storage(), "matroot_flag", None)


def _capturing(device: torch.device) -> bool:
    """Whether operations are being recorded for a CUDA graph, where no value can be read."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def gradient_declines(request: Request, a: Tensor) -> str | None:
    """Why ``gradient`` is not for this call, None if it is."""
    if not _solves_exactly(request.rule):
        return "few passes are for the exact gradient by the Lyapunov equation"
    return _unfit(a)


def fits_gradient(kept: Kept, g: Cotangents) -> bool:
    """Whether what was kept and the cotangents are such that ``gradient`` is for them."""
    s, constants = kept.sqrt, kept.constants
    return s is not None and len(constants) > 0 and _unfit(s, *kept.values, *constants, *g) is None


def gradient(passes: Passes, kept: Kept, g: Cotangents) -> Tensor:
    """X of S X + X S = G_S − Z G_Z Z, Hermitian, by Smith's squaring with one shift.

    With U = (S/μ + I)⁻¹ and W = I − 2U = (S − μ)(S + μ)⁻¹,

        X₀ = U R U;  X ← X + W X W,  W ← W²;  lyap(S, R) = 2 X/μ.

    ``lyapunov_solvers.BySmith`` has two shifts, for fewer products and one more inverse, which
    takes as long as twenty of them. As many doublings as any matrix may need do no harm to others:
    where W has vanished, X stays.
    """
    s, z = kept.sqrt, kept.inv_sqrt
    assert s is not None
    g_sqrt, g_inv = root_pair(kept.functions, g)
    shape, n = s.shape, s.shape[-1]
    flag = Flag.recalled(kept.constants[0])
    bounds = kept.constants[0].reshape(-1, 2)
    s = s.reshape(-1, n, n)
    right, negative = g_sqrt, False
    if right is not None:
        right = right.reshape(-1, n, n)
    if g_inv is not None:
        assert z is not None
        z = z.reshape(-1, n, n)
        left = torch.bmm(z, g_inv.reshape(-1, n, n))
        if right is None:
            right, negative = torch.bmm(left, z), True
        else:
            right = torch.baddbmm(right, left, z, alpha=-1.0)
    assert right is not None

    share = math.sqrt(spd.null_share(n, s.dtype))
    least = share / n**0.5
    null, like = None, (s.dtype, s.device)
    # A matrix that has an inverse root has no null space.
    if z is None and (flag is None or not flag.known_to_hold()):
        null = _null_space(s, bounds, share)
        # The range begins above the share. What is below grows with every doubling.
        singular = bounds[:, :1] == 0
        bounds = torch.where(singular, bounds[:, 1:] * constant((share, 1.0), *like), bounds)
    identity, inverse_shift = spd.identity_like(s), passes.shift(bounds, least)
    one = constant((1.0,), *like).expand_as(inverse_shift)
    shifted = passes.combination(one, inverse_shift, s)
    u, failed = _inverse(shifted, identity)
    w = torch.sub(identity, u, alpha=2.0)
    x = torch.bmm(torch.bmm(u, spd.minimum_norm(right, null)), u)
    enough = doublings(s.dtype, share)
    for doubling in range(count := doublings(s.dtype, least)):
        new_x = torch.baddbmm(x, torch.bmm(w, x), w)
        still = null is not None and doubling >= enough
        x = torch.where(singular[:, :, None], x, new_x) if still else new_x
        if doubling < count - 1:
            w = torch.bmm(w, w)
    # Again, since what rounding leaves on null × null space was divided by next to 0.
    scale = -inverse_shift if negative else inverse_shift
    return passes.finished(spd.minimum_norm(x, null), scale, failed).reshape(shape)


def _null_space(s: Tensor, bounds: Tensor, share: float) -> Tensor:
    """The projector on the null space of S where the lower bound is 0, else 0."""
    low, high = bounds.unbind(-1)
    safe = torch.where(high > 0, high, 1.0)[:, None, None]
    projector = spd.null_projector(s / safe, share)
    return torch.where((low == 0)[:, None, None], projector, 0.0)


def doublings(dtype: torch.dtype, ratio: float) -> int:
    """Doublings q that leave |w|^{2^{q+1}} < eps, |w| ≤ (1 − t)/(1 + t) with t² = s_min/s_max."""
    rate = math.atanh(math.sqrt(min(ratio, 0.81)))
    return max(1, math.ceil(math.log2(-math.log(spd.real_eps(dtype)) / (4 * rate))))


def kernels(passes: Callable[[Tensor], Passes]) -> tuple[ValueKernel, GradientKernel]:
    """The kernels for values and for gradients, on the passes for a tensor."""

    def solve(request: Request, a: Tensor) -> Solved:
        return values(passes(a), request, a)

    def differentiate(request: Request, kept: Kept, g: Cotangents) -> Tensor | None:
        return gradient(passes(kept.values[0]), kept, g) if fits_gradient(kept, g) else None

    return (
        ValueKernel("large", declines, solve),
        GradientKernel("large", gradient_declines, differentiate),
    )
