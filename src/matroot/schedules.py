"""The best polynomial steps for the matrix sign and root: composed, and tabulated by interval.

A step t ← p(t) with p odd of degree 3 or 5 is the best approximation of 1 on the interval that the
steps before left, which is optimal for the composition (Amsel, Persson, Musco and Gower, "The Polar
Express", arXiv 2505.16932). The cubic has a closed form (Grishina, Smirnov and Rakhuba, "CANS",
arXiv 2506.10935); the quintic is found by Remez exchange.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from matroot import spd


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
    # Shields the cached table from the modes of whoever asks first: it must be an ordinary tensor.
    with torch.inference_mode(False), _disable_current_modes():
        return _schedules(step_degree, dtype, device)


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
