"""The best polynomial steps for the matrix sign and root: composed, and tabulated by interval.

A step t ← p(t) with p odd of degree 3 or 5 is the best approximation of 1 on the interval that the
steps before left, which is optimal for the composition (Amsel, Persson, Musco and Gower, "The Polar
Express", arXiv 2505.16932). The cubic has a closed form (Grishina, Smirnov and Rakhuba, "CANS",
arXiv 2506.10935); the quintic is found by Remez exchange.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from matroot import context, spd


def best_cubic(low: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients (a, b, 0) of the best a t + b t³ ≈ 1 on [low, 1], and its error."""
    mean = (1 + low + low.square()) / 3
    scale = 2 / (2 * mean**1.5 + low + low.square())
    coefficients = torch.stack([3 * mean * scale, -scale, torch.zeros_like(low)], -1)
    return coefficients, (2 * mean**1.5 - low - low.square()) * scale / 2


def best_quintic(low: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients (a, b, c) of the best a t + b t³ + c t⁵ ≈ 1 on [low, 1], and its error.

    Remez exchange: the error takes its extreme value with alternating sign at low, two points
    between, and 1; the points between are where the derivative vanishes. Near low = 1, where the
    four points meet, Newton and Schulz's (15 t − 10 t³ + 3 t⁵)/8 is as good to rounding.
    """
    flat = low > 0.99
    left = torch.where(flat, 0.5, low)
    inner = torch.stack([(3 * left + 1) / 4, (left + 3) / 4], -1)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=low.dtype, device=low.device).expand(
        *low.shape, 4
    )
    for _ in range(12):
        t = torch.cat([left[..., None], inner, torch.ones_like(left)[..., None]], -1)
        system = torch.stack([t, t**3, t**5, signs], -1)
        solution = torch.linalg.solve(system, torch.ones_like(t))
        a, b, c = solution[..., 0], solution[..., 1], solution[..., 2]
        root = (9 * b.square() - 20 * a * c).clamp(min=0).sqrt()
        squares = torch.stack([(-3 * b - root) / (10 * c), (-3 * b + root) / (10 * c)], -1)
        inner = squares.clamp(min=0).sqrt()
    newton = torch.tensor([1.875, -1.25, 0.375], dtype=low.dtype, device=low.device)
    coefficients = torch.where(flat[..., None], newton, solution[..., :3])
    return coefficients, torch.where(flat, (1 - low.square()) ** 3, solution[..., 3].abs())


OCTAVE = 64  # Schedules are tabulated for c/λ_min = 2^(i/64) …
OCTAVES = 52  # … up to the rounding of float64,
STEPS = {3: 40, 5: 16}  # which takes so many steps.


def schedules(step_degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The best steps for every interval: a, b, c of h(s) = a + b s + c s² and the error after it.

    Returns:
        Shape (grid, steps, 4), made once for a dtype and device.
    """
    made = _MADE.get((step_degree, dtype, device))
    if made is None:
        context.refuse_capture(device)
        # Without the modes that are active at the first call: the table must be an ordinary tensor.
        with torch.inference_mode(False), _disable_current_modes():
            made = _MADE[step_degree, dtype, device] = _schedules(step_degree, dtype, device)
    return made


_MADE: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}


# Of schedules(5, torch.float32, …).
CHECKSUM = 1178195627331201


def checksum(table: Tensor) -> int:
    """Σ i·b_i over the entries of a table in float32, b_i their sign, exponent and ten bits.

    The digits below differ from machine to machine, as do errors below 1e-6, which count as 0.
    """
    bits = (table.cpu().view(torch.int32).long() + (1 << 12)) >> 13
    small = table[..., 3].cpu() < 2.0**-20
    bits[..., 3] = torch.where(small, 0, bits[..., 3])
    places = torch.arange(1, bits.numel() + 1, device="cpu")
    return int((places * bits.flatten()).sum())


def fixed_schedule(
    step_degree: int, ratio: float, tol: float, most: int | None
) -> list[tuple[float, float, float]]:
    """The best steps for c/λ_min up to ``ratio``: (a, b, c) of each, up to an error of ``tol``.

    Args:
        step_degree: 3 or 5.
        ratio: at least 1.
        tol: the error that is small enough.
        most: at most so many steps; None is as many as ``tol`` needs.
    """
    with torch.inference_mode(False), _disable_current_modes(), torch._C._DisableFuncTorch():
        place = math.ceil(math.log2(min(max(ratio, 1.0), 2.0**OCTAVES)) * OCTAVE)
        rows: list[list[float]] = _schedules(step_degree, torch.float64, torch.device("cpu"))[
            place
        ].tolist()
    count = 1 + sum(error > tol for *_, error in rows)
    return [(a, b, c) for a, b, c, _ in rows[: min(count, most or count)]]


def largest_errors(
    step_degree: int, dtype: torch.dtype, ratio: float | None = None
) -> tuple[float, ...]:
    """What each step of ``schedules`` leaves at most, for every c/λ_min up to ``ratio``.

    Args:
        step_degree: 3 or 5.
        dtype: of the iterates.
        ratio: no more than 1/(4 e), e the rounding unit of the dtype, is taken; None is that.
    """
    # Where a transform runs, PyTorch 2.8 wraps a part of a table, and it has no values then.
    with torch.inference_mode(False), _disable_current_modes(), torch._C._DisableFuncTorch():
        table = _schedules(step_degree, dtype, torch.device("cpu"))
        to_rounding = 1 / (spd.NULL_UNITS * spd.real_eps(dtype))
        ratio = to_rounding if ratio is None else min(ratio, to_rounding)
        place = math.ceil(math.log2(min(ratio, 2.0**OCTAVES)) * OCTAVE)
        return tuple(table[place, :, 3].tolist())


# What torch.compiler.assume_constant_result does, less the import of the compiler: the table is
# taken for what it is instead of being traced. No argument may be a number that a compiled program
# does not know: with dynamic=True all floats are such, those of modules too.
schedules._dynamo_marked_constant = True  # type: ignore[attr-defined]
fixed_schedule._dynamo_marked_constant = True  # type: ignore[attr-defined]
largest_errors._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache
@context.one_thread_in_a_fork()
def _schedules(step_degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    best = best_cubic if step_degree == 3 else best_quintic
    grid = torch.arange(OCTAVES * OCTAVE + 1, dtype=torch.float64, device="cpu")
    low, high = torch.exp2(-grid / (2 * OCTAVE)), torch.ones_like(grid)
    powers = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64, device="cpu")
    coefficients, errors = [], []
    for _ in range(STEPS[step_degree]):
        p, error = best(low / high)
        coefficients.append(p / high[:, None] ** powers)
        errors.append(error)
        low, high = 1 - error, 1 + error
    table = torch.cat([torch.stack(coefficients, 1), torch.stack(errors, 1)[..., None]], -1)
    return table.to(device=device, dtype=dtype)


# Every step of ``Steps`` but the first is D = 7/8 I + …, as in Newton and Schulz's.
CONSTANT = 0.875


class Steps(NamedTuple):
    """Steps of degree 5, a fixed number of them, for ratios ρ = λ_min/c by ``bounds``.

    Row 0 is for ρ = 0, where λ_min is unknown; row j for ρ from ``bounds[j − 1]`` on. With
    Z₀ = I, Y₀ = A the first step is Z = a I + b A + c A², Y = A Z, and all others

        P = Z Y,  D = 7/8 I + P (b I + c P),  Y ← Y + Y D,  Z ← Z + D Z,

    which is the step of ``schedules``, or H = I, times what makes its constant 15/8 for every
    matrix, so that a product of the library can add it. In the end Y = √c A^{1/2}/(2 f) and Z =
    √c A^{-1/2}/(2 f). A is taken in units of c: b and c are still to be divided by c and c².

    Attributes:
        bounds: shape (rows − 1,), ascending.
        rows: a, b, c of each step; then f, what makes the P of the last step go to I, and by what
            factor Y² may be too large in the end; then ‖P − I‖_F before the last step at most,
            whether ρ is far above rounding, and 0; shape (rows, steps + 2, 3).
        info: 0, how many steps a matrix needs, whether so many are taken, (rows, 3), int64.
    """

    bounds: Tensor
    rows: Tensor
    info: Tensor


def steps_of_five(
    dtype: torch.dtype,
    device: torch.device,
    tol: float,
    max_steps: int | None,
    n: int,
    unknown: float,
    ratio: float | None,
) -> Steps:
    """The steps that leave ``tol``, at most ``max_steps``, made once for all arguments.

    Args:
        dtype: of the iterates.
        device: of the table.
        tol: the error that is small enough.
        max_steps: None is as many as it takes.
        n: rows of a matrix.
        unknown: c/λ_min to design for where λ_min is unknown.
        ratio: see ``largest_errors``.
    """
    with torch.inference_mode(False), _disable_current_modes():
        return _steps_of_five(dtype, device, tol, max_steps, n, unknown, ratio)


@lru_cache(maxsize=32)
def _steps_of_five(
    dtype: torch.dtype,
    device: torch.device,
    tol: float,
    max_steps: int | None,
    n: int,
    unknown: float,
    ratio: float | None,
) -> Steps:
    context.refuse_capture(device)
    table = _schedules(5, torch.float64, torch.device("cpu"))
    errors = largest_errors(5, dtype, ratio)
    count = min(1 + sum(error > tol for error in errors), max_steps or len(errors))
    # Beyond rounding no row is needed: the last one is that of largest_errors, the first the other.
    to_rounding = 1 / (spd.NULL_UNITS * spd.real_eps(dtype))
    last = math.ceil(math.log2(to_rounding) * OCTAVE)
    first = math.ceil(math.log2(min(unknown, to_rounding)) * OCTAVE)
    places = [first, last, *range(last, -1, -1)]
    table = table[places]

    h, error = table[:, :count, :3].clone(), table[..., 3]
    wanted = 1 + (error > tol).sum(-1)
    needed = wanted.clamp(max=count)
    # Converged matrices stay fixed (H = I): negative eigenvalues that rounding left of zeros
    # would grow.
    done = torch.arange(count, device="cpu") >= needed[:, None]
    h[done] = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, device="cpu")
    scale, before = torch.ones_like(error[:, 0]), torch.ones_like(error[:, 0])
    exponents = torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64, device="cpu")
    for step in range(1, count):
        before, factor = scale, (1 + CONSTANT) / h[:, step, 0]
        h[:, step] *= factor[:, None] / scale[:, None] ** exponents
        scale = scale * factor

    def left(steps: Tensor) -> Tensor:
        return error.gather(1, steps[:, None] - 1)[:, 0]

    ratios = torch.exp2(-torch.tensor(places, dtype=torch.float64, device="cpu") / OCTAVE)
    # Before a first step P is A/c, with eigenvalues from λ_min/c to 1.
    away = 2.1 * left(needed.clamp(max=count - 1)) if count > 1 else 1 - ratios
    away = n**0.5 * (away + 10 * spd.real_eps(dtype) / ratios.sqrt())
    far = (ratios * to_rounding > 4).double()
    too_large = (1 + left(needed)) ** 2
    end = torch.stack([0.5 / scale, before**-2, too_large, away, far, 0 * far], -1)
    info = torch.stack([0 * needed, needed, (wanted <= count).long()], -1)
    bounds = ratios[1:].clone()
    bounds[0] = torch.finfo(dtype).tiny
    return Steps(
        bounds.to(device, dtype),
        torch.cat([h, end.reshape(-1, 2, 3)], 1).to(device, dtype),
        info.to(device),
    )
