"""The matrices of the self-test, whose answers are known, and how far off them a program is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from matroot import schedules, spd
from matroot.accuracy import Quantity, tolerance
from matroot.gradients import Kept, Lyapunov
from matroot.kernels import large
from matroot.kernels.triton import operators
from matroot.kernels.triton.launch import BOUNDS, DOUBLE, NORM, NOTHING, Variant
from matroot.methods import Minimax
from matroot.request import Request
from matroot.roots import BOTH
from matroot.screen import Status

# What is measured, its error, and how large that may be.
Findings = Iterator[tuple[str, float, float]]


class _Case(NamedTuple):
    """One matrix of the test: its eigenvalues, and what is expected of it."""

    name: str
    values: Tensor
    cond: float
    status: int


# Whitening needs inverse roots in float64 at κ = 1e12.
_CONDS = {"tf32": (1e1,), DOUBLE: (1e2, 1e6, 1e12)}


def _cases(n: int, precision: str) -> list[_Case]:
    line = torch.linspace(0.0, 1.0, n, dtype=torch.float64, device="cpu")
    conds = _CONDS.get(precision, (1e2, 1e4, 1e6))
    found = [_Case(f"κ = {cond:.0e}", cond**-line, cond, Status.OK) for cond in conds]
    two = torch.where(line < 0.5, 2.0**60, 2.0**60 / 8)
    zero = torch.where(line < 0.5, 1.0, 0.0)
    negative = torch.where(line < 0.9, 1.0, -0.5)
    return [
        *found,
        _Case("repeated eigenvalues", two, 8.0, Status.OK),
        _Case("a singular matrix", zero, math.inf, Status.OK),
        _Case("an indefinite matrix", negative, 1.0, Status.INDEFINITE),
        _Case("a skew matrix", torch.ones_like(line), 1.0, Status.ASYMMETRIC),
        _Case("a NaN", torch.ones_like(line), 1.0, Status.NONFINITE),
    ]


class _Known(NamedTuple):
    """The matrices, on the device, and their eigenpairs in float64 on the CPU."""

    cases: list[_Case]
    a: Tensor
    values: Tensor
    vectors: Tensor

    @property
    def good(self) -> list[int]:
        """The indices of those that have a root."""
        return [i for i, case in enumerate(self.cases) if case.status == Status.OK]


def _known(variant: Variant, device: torch.device) -> _Known:
    """Matrices Q diag(λ) Q with the symmetric orthogonal Q of the fourth cosine transform."""
    n = variant.size - 1  # So that there is padding.
    cases = _cases(n, variant.precision)
    line = torch.arange(n, dtype=torch.float64, device="cpu") + 0.5
    q = (line[:, None] * line * (math.pi / n)).cos() * math.sqrt(2 / n)
    a = torch.stack([(q * case.values) @ q for case in cases])
    a = ((a + a.mT) / 2).to(_computed(variant.precision))
    values, vectors = torch.linalg.eigh(a.double())
    bad = {case.status: i for i, case in enumerate(cases)}
    a[bad[Status.ASYMMETRIC], 0, -1] += 10.0
    a[bad[Status.NONFINITE], -1, -1] = math.nan
    zero = next(i for i, case in enumerate(cases) if case.cond == math.inf)
    values[zero] = values[zero].round()  # ±1e-7 is a rounded zero.
    return _Known(cases, a.to(device), values, vectors)


def _off(x: Tensor, expected: Tensor) -> float:
    """‖X − X₀‖_F/‖X₀‖_F."""
    return float((x - expected).norm() / expected.norm())


def _allowed(case: _Case, n: int, quantity: Quantity, precision: str) -> float:
    """The error that the numerics page allows."""
    dtype = _computed(precision)
    if case.cond == math.inf:
        # There eigenvalues of the root are known to the root of rounding only.
        return math.sqrt(max(n, 4) * spd.real_eps(dtype))
    # Plain TF32 lacks digits; in float64 the known answers are rounded, too.
    plain = {"tf32": 2.0**13, DOUBLE: 2.0}.get(precision, 1.0)
    return plain * tolerance(dtype, case.cond, quantity)


def _same(what: str, first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> Findings:
    """Whether all bits are the same."""
    equal = all(
        torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0))
        for x, y in zip(first, second, strict=True)
    )
    yield f"the same call again ({what})", 0.0 if equal else math.inf, 0.0


def _computed(precision: str) -> torch.dtype:
    """The dtype of the kernel's matrices."""
    return torch.float64 if precision == DOUBLE else torch.float32


def _dtype(variant: Variant) -> torch.dtype:
    """The dtype that the user gave."""
    return torch.float16 if variant.option[0] else _computed(variant.precision)


def _minimax(variant: Variant, device: torch.device) -> Findings:
    known = _known(variant, device)
    tol = 2 * spd.real_eps(known.a.dtype)
    dtype, end = _dtype(variant), (tol, 16, variant.precision)

    def solved(sqrt: bool, inv_sqrt: bool, regular: bool, constants: int) -> tuple[Tensor, ...]:
        found = operators.minimax(known.a, dtype, 0.0, sqrt, inv_sqrt, regular, constants, *end)
        return tuple(t.cpu() for t in found)

    s, z = known.values.clamp(min=0).sqrt(), known.values.abs().clamp(min=1e-30).rsqrt()
    yield from _roots_are_right(known, variant, solved, s, z, BOUNDS)


def _published(variant: Variant, device: torch.device) -> Findings:
    known = _known(variant, device)
    # Padé's of order 2, or Taylor's of degree 4: any would do.
    p, q = [1.0, -1.25, 0.3125], [1.0, -0.75, 0.0625]
    pade = variant.option[1]
    if not pade:
        p, q = [1.0, -0.5, -0.125, -0.0625, -0.0390625], [1.0, 0.5, 0.375, 0.3125, 0.2734375]
    dtype, end = _dtype(variant), (p, q, pade, variant.precision)

    def solved(sqrt: bool, inv_sqrt: bool, regular: bool, constants: int) -> tuple[Tensor, ...]:
        found = operators.published(known.a, dtype, 0.0, sqrt, inv_sqrt, regular, constants, *end)
        return tuple(t.cpu() for t in found)

    size = known.values.norm(dim=-1, keepdim=True)
    z = 1 - known.values / size
    above = sum(c * z**k for k, c in enumerate(p))
    below = sum(c * z**k for k, c in enumerate(q))
    s, inverse = (above / below, below / above) if pade else (above, below)
    yield from _roots_are_right(
        known, variant, solved, s * size.sqrt(), inverse / size.sqrt(), NORM
    )


def _roots_are_right(
    known: _Known, variant: Variant, solved: object, s: Tensor, z: Tensor, constants: int
) -> Findings:
    """The findings of a kernel for roots, whose eigenvalues are to be ``s`` and ``z``."""
    assert callable(solved)
    table = schedules.schedules(5, known.a.dtype, known.a.device)
    right = schedules.checksum(table.float()) == schedules.CHECKSUM
    yield "the table of steps", 0.0 if right else math.inf, 0.0
    n = known.a.shape[-1]
    info, roots, inverses, told = both = solved(True, True, True, constants)
    yield from _same("both roots", both, solved(True, True, True, constants))
    alone, root, _, _ = solved(True, False, False, NOTHING)
    for i, case in enumerate(known.cases):
        singular = case.cond == math.inf
        found, wanted = int(info[i, 0]), Status.SINGULAR if singular else case.status
        yield f"the status of {case.name}", abs(found - wanted), 0.0
        yield f"the status of {case.name}, one root", abs(int(alone[i, 0]) - case.status), 0.0
        if case.status != Status.OK:
            gone = root[i].isnan().all() and roots[i].isnan().all() and inverses[i].isnan().all()
            yield f"{case.name}, which is no NaN,", 0.0 if gone else math.inf, 0.0
            continue
        q = known.vectors[i]
        expected = (q * s[i]) @ q.mT
        allowed = _allowed(case, n, "sqrt", variant.precision)
        yield f"the root of {case.name}", _off(root[i].double(), expected), allowed
        if singular:
            continue
        # (A library may multiply in another order for each batch and shape.)
        exact = allowed if variant.kernel == "passes" else 0.0
        yield f"the root beside the inverse of {case.name}", _off(roots[i], root[i]), exact
        inverse = (q * z[i]) @ q.mT
        allowed = _allowed(case, n, "inv_sqrt", variant.precision)
        yield f"the inverse root of {case.name}", _off(inverses[i].double(), inverse), allowed
        if constants == NORM:
            norm = float(known.values[i].norm() ** 0.5)
            yield f"‖A‖ of {case.name}", abs(float(told[i]) / norm - 1), 1e-5
        else:
            low, high = known.values[i, 0] ** 0.5, known.values[i, -1] ** 0.5
            kept = float(told[i, 0]) <= low * 1.0001 and float(told[i, 1]) >= high * 0.9999
            yield f"a bound of the spectrum of {case.name}", 0.0 if kept else math.inf, 0.0


def _lyapunov(variant: Variant, device: torch.device) -> Findings:
    steps = 8 if variant.option[0] else 0

    def solved(
        s: Tensor,
        z: Tensor | None,
        constants: Tensor | None,
        g_sqrt: Tensor | None,
        g_inv: Tensor | None,
    ) -> Tensor:
        regular = g_inv is not None
        end = (steps, variant.precision)
        return operators.lyapunov(s, z, constants, g_sqrt, g_inv, regular, *end)

    calls = [(True, False, True), (True, True, True), (True, False, False)]
    yield from _gradients_are_right(variant, device, steps, solved, calls)


def _passes(variant: Variant, device: torch.device) -> Findings:
    """Roots and gradients by the products of a library and the passes between: see large.py."""
    from matroot.kernels.triton.passes import ByKernels

    known, kernels = _known(variant, device), ByKernels()
    nothing = known.a.new_empty(0)

    def roots(sqrt: bool, inv_sqrt: bool, regular: bool, constants: int) -> tuple[Tensor, ...]:
        functions = BOTH if inv_sqrt else BOTH[:1]
        rule = None if constants == NOTHING else Lyapunov()
        request = Request(functions, Minimax(), rule, 0.0, "raise", known.a.dtype, known.a.dtype)
        found = large.values(kernels, request, known.a)
        # Empty tensors stand for what was not asked for.
        values = (*found.values, nothing)[:2]
        return tuple(t.cpu() for t in (found.info, *values, *found.constants, nothing)[:4])

    s, z = known.values.clamp(min=0).sqrt(), known.values.abs().clamp(min=1e-30).rsqrt()
    yield from _roots_are_right(known, variant, roots, s, z, BOUNDS)

    def gradient(
        s: Tensor,
        z: Tensor | None,
        constants: Tensor | None,
        g_sqrt: Tensor | None,
        g_inv: Tensor | None,
    ) -> Tensor:
        assert constants is not None
        values, g = ((s,), (g_sqrt,)) if z is None else ((s, z), (g_sqrt, g_inv))
        kept = Kept(BOTH[: len(values)], values, (constants,), False)
        return large.gradient(kernels, kept, g)

    calls = [(True, False, True), (True, True, True)]
    yield from _gradients_are_right(variant, device, 0, gradient, calls)


class _Problem(NamedTuple):
    """A Lyapunov equation for each good matrix of the test, and one for a NaN at the end.

    Attributes:
        known: the matrices of the test.
        s: the eigenvalues of the good roots.
        vectors: their eigenvectors.
        symmetric: the symmetric part of the cotangent in these bases.
        norms: √‖A‖_F of each.
        given: S, Z, the constants and the cotangent, on the device.
    """

    known: _Known
    s: Tensor
    vectors: Tensor
    symmetric: Tensor
    norms: Tensor
    given: list[Tensor]


def _problem(variant: Variant, device: torch.device, steps: int) -> _Problem:
    known = _known(variant, device)
    n, dtype = known.a.shape[-1], known.a.dtype
    values, q = known.values[known.good].clamp(min=0), known.vectors[known.good]
    s = values.sqrt()
    line = torch.arange(n, dtype=torch.float64, device="cpu")
    g = (line[:, None] * 1.7 + line.square() * 0.3).sin() + torch.eye(n, device="cpu")
    roots = ((q * s[:, None, :]) @ q.mT).to(dtype)
    inverses = ((q * s.clamp(min=1e-30).reciprocal()[:, None, :]) @ q.mT).to(dtype)
    bad = torch.full_like(roots[:1], math.nan)
    bounds = torch.stack([s[:, 0], s[:, -1]], -1).to(dtype)
    norms = values.norm(dim=-1).sqrt().to(dtype)
    constants = norms if steps else bounds
    given = (
        torch.cat([roots, bad]),
        torch.cat([inverses, bad]),
        torch.cat([constants, constants[:1]]),
        g.to(dtype).expand(len(s) + 1, n, n).contiguous(),
    )
    symmetric = q.mT @ ((g + g.mT) / 2) @ q
    return _Problem(known, s, q, symmetric, norms, [t.to(device) for t in given])


def _gradients_are_right(
    variant: Variant,
    device: torch.device,
    steps: int,
    solve: Callable[..., Tensor],
    calls: list[tuple[bool, bool, bool]],
) -> Findings:
    """The findings of a kernel for gradients.

    Args:
        variant: the program.
        device: where it runs.
        steps: of the matrix sign function, 0 for the exact solution.
        solve: S, Z, constants, G_S and G_Z to the gradient.
        calls: whether there is G_S, whether G_Z, and whether the constants are given.
    """
    problem = _problem(variant, device, steps)
    known, s, q = problem.known, problem.s, problem.vectors

    def solved(of_sqrt: bool, of_inv: bool, with_constants: bool) -> Tensor:
        root, inverse, constants, cotangent = problem.given
        return solve(
            root,
            inverse if of_inv else None,
            constants if with_constants else None,
            cotangent if of_sqrt else None,
            cotangent if of_inv else None,
        ).cpu()

    for of_sqrt, of_inv, told in calls:
        x = solved(of_sqrt, of_inv, told)
        what = "of both roots" if of_inv else "of the root" + ("" if told else ", nothing given")
        yield from _same(what, (x,), (solved(of_sqrt, of_inv, told),))
        yield f"a NaN, the gradient {what} of which is none,", float(not x[-1].isnan().all()), 0.0
        right = problem.symmetric.clone()
        if of_inv:
            z = s.clamp(min=1e-30).reciprocal()
            right -= z[:, :, None] * problem.symmetric * z[:, None, :]
        norm = problem.norms.double() if told else s.norm(dim=-1)
        expected = _divided(s, right, norm, steps)
        for i, place in enumerate(known.good):
            case = known.cases[place]
            if of_inv and case.cond == math.inf:
                continue
            off = _off(x[i].double(), q[i] @ expected[i] @ q[i].mT)
            allowed = _allowed(case, known.a.shape[-1], "gradient", variant.precision)
            yield f"the gradient {what} of {case.name}", off, allowed


def _divided(s: Tensor, right: Tensor, norm: Tensor, steps: int) -> Tensor:
    """The solution in the basis of eigenvectors, of minimum norm: exact, or by the steps."""
    null = (s[:, :, None] == 0) & (s[:, None, :] == 0)
    sums = s[:, :, None] + s[:, None, :]
    if steps:
        b, c = s / norm[:, None], right / norm[:, None, None]
        one = (s[:, :, None] == 0) ^ (s[:, None, :] == 0)
        for _ in range(steps):
            left, other = b[:, :, None], b[:, None, :]
            c = 0.5 * c * (3 - other**2 - left**2 + left * other)
            b = 0.5 * b * (3 - b**2)
        # The steps give R/(2 s) on range × null space, where the solution is R/s.
        return torch.where(null, 0.0, torch.where(one, c, 0.5 * c))
    return torch.where(null, 0.0, right / torch.where(null, 1.0, sums))


TESTS = {
    "minimax": _minimax,
    "published": _published,
    "lyapunov": _lyapunov,
    "passes": _passes,
}
