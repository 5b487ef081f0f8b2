"""``matroot bench hard``: millions of hard matrices, each result judged.

A block is some thousand matrices of one family, size, dtype, method and backend, all of which
follow from its number and the seed. A block is a row; rows hold counts and histograms.

What is judged, in units of rounding u of the dtype (of float32 for the half types, whose results
are rounded once more), and where the limits come from:

- LAPACK's ratios ‖S² − A‖_F/(‖A‖_F n u) and ‖Z A Z − I‖_F/(κ n u): 60, the largest threshold of
  LAPACK's own tests of its eigensolvers. For methods that find eigenpairs; what others promise is
  an error.
- The forward error of a result that calls itself converged: 64 n u max(κ_f, 1), where κ_f is the
  relative condition number in Frobenius norm, ‖A‖/(2 λ_min^{1/2} ‖S‖) of the root and
  ‖A‖/(2 λ_min^{3/2} ‖Z‖) of the inverse root: the error of the exact root of a matrix 64 n u away,
  about LAPACK's threshold. Near singular matrices the root of such a matrix is off by no more than
  (64 n^{3/2} u ‖A‖)^{1/2} (Powers and Størmer), which then is the limit. Gradients likewise, by the
  second derivative.
- A result where none is due, and none where one is: see ``due``.
- Neighbours: the block is run again in another order and in two parts; the compiled kernels must
  give the same bits, others the same to rounding.
- The input is as it was, the results are exactly Hermitian, the residual returned is true, and a
  bound of the error is not below the error.

The published polynomials (Taylor, Padé, a few steps of Newton–Schulz) promise no accuracy. They may
be inaccurate or NaN, but must say so: ``converged`` False, or the residual they return.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import matroot
from matroot import screen, spd
from matroot.bench.hard_families import FAMILIES, Draw, matrices
from matroot.bench.hard_truth import Results, Truth, by_eigh, by_residuals, norm
from matroot.bench.rows import Row
from matroot.kernels import BackendName
from matroot.methods import Method, MethodName, NewtonSchulz
from matroot.roots import Root

LAPACK_THRESHOLD = 60.0
FORWARD_THRESHOLD = 64.0
# How far inside a threshold of eigenvalues a matrix must lie for its result to be due: what is
# closer than a factor of 4 may be decided by rounding.
MARGIN = 4.0
# Bins of a histogram in a decade.
BINS = 10
# The gradients of one matrix in so many are bounded.
_BOUNDED = 16
# A second-order term that small leaves a thousandth of the error to the third order.
_KNOWN = 0.03
# 70 bits are enough for a hundredth of n·u·κ_f of the inverse root's gradient up to this κ.
_SURE = 1e10
# Entries of a batch, few enough for intermediate results to stay in a processor's cache.
_BATCH = 2**17

# Size, and the share of matrices of that size: log-uniform up to 32 for nine in ten; above, the
# share falls with n⁻⁴, faster than the cost of a matrix rises; one in 100,000 has 1000 rows.
_SMALL = {n: 0.9 * (1 / n) / sum(1 / m for m in range(1, 33)) for n in range(1, 33)}
_LARGE = {n: 0.1 * n**-4.0 / sum(m**-4.0 for m in range(33, 257)) for n in range(33, 257)}
SIZES: dict[int, float] = {**_SMALL, **_LARGE, 1000: 1e-5}

METHOD_OPTIONS: dict[str, MethodName | Method] = {
    "auto": "auto",
    "minimax": "minimax",
    "svd": "svd",
    # Enough for condition numbers up to some 1e4; beyond it must not call itself converged.
    "newton_schulz": NewtonSchulz(steps=16),
    "pade": "pade",
    "taylor": "taylor",
}
# Those that promise a result for every matrix that has one, and an error for every other.
RELIABLE = ("auto", "minimax", "svd")
# Those that find eigenpairs, whose residual is small whatever the matrix; the others' is not where
# A is nearly singular, and says nothing there of the error.
SPECTRAL = ("auto", "svd")


# The quantity of each field of ``Computed``.
_ERRORS = {
    "sqrt": "sqrt_error",
    "inv_sqrt": "inv_error",
    "gradient": "gradient_error",
    "inv_gradient": "inv_gradient_error",
}


@dataclass(frozen=True)
class Subject:
    """What is examined.

    Attributes:
        method: a key of ``METHOD_OPTIONS``.
        backend: ``"native"`` or ``"torch"``.
        seed: of the cotangent.
    """

    method: str
    backend: BackendName
    seed: int


@dataclass(frozen=True)
class Block:
    """The matrices of one row.

    Attributes:
        number: of the block.
        family: a key of ``FAMILIES``.
        draw: how many, of which size and dtype.
        subject: what they are given to.
    """

    number: int
    family: str
    draw: Draw
    subject: Subject

    def matrices(self) -> Tensor:
        """Shape (count, n, n), in the dtype."""
        return matrices(self.family, self.draw)


def count_of(n: int, most: int) -> int:
    """Matrices in a block of this size: ``most``, or fewer where they would take seconds."""
    return max(2, min(most, int(4096 * (24 / n) ** 2.5)))


def block(seed: int, number: int, most: int = 4096) -> Block:
    """The block of that number: the same for the same seed, whatever was run before."""
    rng = random.Random(f"{seed}/{number}")
    sizes = list(SIZES)
    # By share of matrices, so larger blocks are drawn less often.
    n = rng.choices(sizes, [SIZES[n] / count_of(n, most) for n in sizes])[0]
    family = rng.choice(list(FAMILIES))
    method = "auto"
    backend: BackendName = "native"
    dtype = rng.choice((torch.float32, torch.float64))
    if rng.random() >= 0.8:
        dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
        dtype = rng.choice((*dtypes, torch.complex64, torch.complex128))
        method = rng.choices(list(METHOD_OPTIONS), (8, 6, 2, 2, 1, 1))[0]
        # The compiled kernels know real numbers alone.
        backend = "torch" if dtype.is_complex else rng.choice(("native", "torch"))
    inner = int(hashlib.sha256(f"{seed}/{number}".encode()).hexdigest()[:12], 16)
    draw = Draw(count_of(n, most), n, dtype, inner)
    return Block(number, family, draw, Subject(method, backend, inner))


def blocks(seed: int, total: int) -> Iterator[Block]:
    """Blocks from number 0 on until they hold ``total`` matrices; the last one is cut.

    Some 128 at least, so that few matrices are of many kinds too.
    """
    number, left = 0, total
    most = min(4096, max(32, total // 128))
    while left > 0:
        found = block(seed, number, most)
        yield replace(found, draw=replace(found.draw, count=min(found.draw.count, left)))
        left -= found.draw.count
        number += 1


@dataclass
class Computed:
    """What a call returned and the gradients, in the dtype of A, NaN where there is no result."""

    sqrt: Tensor
    inv_sqrt: Tensor
    gradient: Tensor
    inv_gradient: Tensor
    residual: Tensor
    inv_residual: Tensor
    converged: Tensor
    inv_converged: Tensor
    error_bound: Tensor | None
    inv_error_bound: Tensor | None
    mutated: bool
    gradient_bound: Tensor | None = None
    inv_gradient_bound: Tensor | None = None


def cotangent(n: int, dtype: torch.dtype, seed: int) -> Tensor:
    """A Hermitian cotangent of norm about n, the same for all matrices of a block."""
    double = torch.complex128 if dtype.is_complex else torch.float64
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(n, n, dtype=double, generator=generator)
    return spd.hermitian_part(g).to(dtype)


def compute(a: Tensor, subject: Subject) -> Computed:
    """Both roots and their gradients; where there are none, the root alone."""
    g = cotangent(a.shape[-1], a.dtype, subject.seed)
    x = a.clone().requires_grad_()
    method = METHOD_OPTIONS[subject.method]

    def call(x: Tensor, root: Root) -> tuple[matroot.SqrtmResult, list[Tensor]]:
        result = matroot.sqrtm_ex(x, root=root, method=method, backend=subject.backend)
        roots = [r for r in (result.sqrt, result.inv_sqrt) if r is not None]
        gradients = [
            torch.autograd.grad(r, x, g.expand_as(r), retain_graph=r is not roots[-1])[0]
            for r in roots
        ]
        return result, gradients

    result, (gradient, inv_gradient) = call(x, "both")
    assert result.sqrt is not None
    assert result.inv_sqrt is not None
    assert result.residual is not None
    assert result.inv_residual is not None
    found = Computed(
        result.sqrt.detach(),
        result.inv_sqrt.detach(),
        gradient,
        inv_gradient,
        result.residual,
        result.inv_residual,
        result.converged,
        result.converged.clone(),
        result.error_bound,
        result.inv_error_bound,
        not torch.equal(_bits(x.detach()), _bits(a)),
    )
    # Of both, a singular matrix has none.
    lone = found.sqrt.isnan().any(-1).any(-1)
    if lone.any():
        result, (gradient,) = call(a[lone].requires_grad_(), "sqrt")
        assert result.sqrt is not None
        assert result.residual is not None
        found.sqrt[lone] = result.sqrt.detach()
        found.gradient[lone] = gradient
        found.residual[lone] = result.residual
        found.converged[lone] = result.converged
        assert result.error_bound is not None
        assert found.error_bound is not None
        found.error_bound[lone] = result.error_bound
    return found


def _bound_gradients(a: Tensor, found: Computed, subject: Subject) -> None:
    """Bounds of some gradients, which take longer than the gradients."""
    k = max(2, len(a) // _BOUNDED)
    a = a[:k]
    g = cotangent(a.shape[-1], a.dtype, subject.seed).expand_as(a)
    found.gradient_bound = matroot.gradient_error_bound(a, found.gradient[:k], g_sqrt=g)
    found.inv_gradient_bound = matroot.gradient_error_bound(a, found.inv_gradient[:k], g_inv_sqrt=g)


def _bits(a: Tensor) -> Tensor:
    """As whole numbers, NaN all alike."""
    a = spd.real_parts(a)
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.where(a.isnan(), torch.nan, a).contiguous().view(whole)


@dataclass
class Findings:
    """What was seen, matrix by matrix.

    Attributes:
        quantities: numbers for histograms, each (b,), NaN where there is none.
        violations: which matrices break a rule, each (b,), by its name.
    """

    quantities: dict[str, Tensor]
    violations: dict[str, Tensor]


def truth(a: Tensor, found: Computed, seed: int) -> Truth:
    """What is so, in units in which A is about 1."""
    dtype, n = a.dtype, a.shape[-1]
    x = spd.in_double(a)
    g = spd.in_double(cotangent(n, dtype, seed))
    k = spd.even_exponent(x)
    half = torch.div(k, 2, rounding_mode="floor")

    def scaled(r: Tensor, power: Tensor) -> Tensor:
        return spd.times_power_of_two(spd.in_double(r), power)

    results = Results(
        sqrt=scaled(found.sqrt, -half),
        inv_sqrt=scaled(found.inv_sqrt, half),
        gradient=scaled(found.gradient, half),
        inv_gradient=scaled(found.inv_gradient, 3 * half),
    )
    double = spd.real_dtype(dtype) == torch.float64
    return (by_residuals if double else by_eigh)(scaled(x, -k), g, results)


def due(t: Truth, n: int, dtype: torch.dtype, spectral: bool) -> dict[str, Tensor]:
    """Which matrices must have a result, and which must not, each (b,).

    By the thresholds of ``matroot.screen``, with ``MARGIN`` on either side. Methods without
    eigenvalues judge by bounds of λ_max, on the side where a matrix at the threshold passes: ‖A‖_F
    for the indefinite, ‖A‖_F²/tr A and twice λ_min for the singular.
    """
    limits = screen.thresholds(n, dtype, regular=True)
    assert limits.indefinite is not None
    assert limits.singular is not None
    zero = t.norm == 0
    most = t.high.clamp(min=0)
    above = most if spectral else t.norm
    below = most if spectral else 0.5 * t.norm.square() / spd.positive_or_one(t.trace)
    negative = (t.low < -MARGIN * limits.indefinite * above) & (t.low < 0)
    return {
        "sqrt": (t.low >= -limits.indefinite * most / MARGIN) | zero,
        "inv_sqrt": t.low > MARGIN * limits.singular * most,
        "no sqrt": negative & ~zero,
        "no inv_sqrt": negative | zero | (t.low < limits.singular * below / MARGIN),
        # Gradients are of minimum norm below.
        "gradient": t.low > MARGIN * limits.null * most,
    }


@dataclass(frozen=True)
class Units:
    """Relative errors that rounding explains, each (b,): n u max(κ_f, 1)."""

    sqrt: Tensor
    inv_sqrt: Tensor
    gradient: Tensor
    inv_gradient: Tensor


def units(t: Truth, n: int, rounding: float) -> Units:
    """The products n u max(κ_f, 1) of both roots and their gradients, u given: see above."""
    unit = n * rounding
    low = t.low.clamp(min=0)

    def of(condition: Tensor) -> Tensor:
        return unit * condition.nan_to_num(nan=math.inf, posinf=math.inf).clamp(min=1)

    # Powers and Størmer: ‖√A − √B‖_F² ≤ ‖A − B‖_* ≤ √n ‖A − B‖_F, here for 64 n u ‖A‖_F.
    scale = spd.positive_or_one(t.sqrt_norm)
    most = (n**0.5 * unit * t.norm / FORWARD_THRESHOLD).sqrt() / scale
    return Units(
        sqrt=torch.minimum(of(t.norm / (2 * low.sqrt() * t.sqrt_norm)), most.clamp(min=unit)),
        inv_sqrt=of(t.norm / (2 * low**1.5 * t.inv_norm)),
        # The second derivatives of x^{1/2} and x^{-1/2} at λ_min, over the size of the first.
        gradient=of(t.norm / (4 * low**1.5 * t.gradient_size)),
        inv_gradient=of(0.75 * t.norm / (low**2.5 * t.inv_gradient_size)),
    )


def examine(a: Tensor, subject: Subject, *, again: int | None = None) -> Findings:
    """Compute and judge matrices of shape (b, n, n).

    Args:
        a: the matrices.
        subject: what computes.
        again: how many of them to compute a second time in other company; None: all.
    """
    try:
        found = compute(a, subject)
        _bound_gradients(a, found, subject)
    # sqrtm_ex never raises for a hard matrix, and whatever it raises is a finding.
    except Exception as error:
        return Findings(
            {}, {f"raised {type(error).__name__}": torch.ones(len(a), dtype=torch.bool)}
        )
    return judged(a, subject, found, again=len(a) if again is None else min(again, len(a)))


def judged(a: Tensor, subject: Subject, found: Computed, *, again: int = 0) -> Findings:
    """Judge what was computed; ``again`` as above, 0: none."""
    n, dtype = a.shape[-1], a.dtype
    t = truth(a, found, subject.seed)
    spectral = subject.method in SPECTRAL
    wanted = due(t, n, dtype, spectral)
    rounded, reliable = spd.real_eps(dtype), subject.method in RELIABLE
    # Others call a residual at the rounding of the input's dtype converged.
    unit = units(t, n, spd.real_eps(spd.computing_dtype(dtype)) if reliable else rounded)
    half = rounded if dtype in (torch.float16, torch.bfloat16) else 0.0
    ranges = _ranges(a, t, float(norm(spd.in_double(cotangent(n, dtype, subject.seed)))))

    def excess(error: Tensor, name: str) -> Tensor:
        """Without what rounding of the output explains, in half precision and by underflow."""
        size: Tensor = getattr(unit, name)
        return (error - half - ranges[name].lost).clamp(min=0) / size

    has = {
        name: getattr(found, name).isfinite().all(-1).all(-1)
        for name in ("sqrt", "inv_sqrt", "gradient", "inv_gradient")
    }
    nan = {name: getattr(found, name).isnan().any(-1).any(-1) for name in ("sqrt", "inv_sqrt")}
    double = spd.real_dtype(dtype) == torch.float64
    regular = wanted["gradient"]
    condition = t.high / t.low.clamp(min=0)
    quantities = {
        "sqrt_ratio": t.sqrt_residual / (n * rounded),
        "inv_ratio": t.inv_residual / (condition * n * rounded),
        # In double precision the error near singular matrices is not known: see Truth.
        "sqrt_error": excess(t.sqrt_error, "sqrt"),
        "inv_error": excess(t.inv_error, "inv_sqrt"),
        "gradient_error": excess(t.gradient_error, "gradient"),
        "inv_gradient_error": excess(t.inv_gradient_error, "inv_gradient"),
    }
    kept = {
        "sqrt_ratio": has["sqrt"],
        "inv_ratio": has["inv_sqrt"] & (t.low > 0),
        "sqrt_error": has["sqrt"] & (regular | (not double)),
        "inv_error": has["inv_sqrt"] & regular,
        "gradient_error": has["gradient"] & regular,
        "inv_gradient_error": has["inv_gradient"] & regular,
    }
    quantities = {k: torch.where(kept[k], v, torch.nan) for k, v in quantities.items()}
    says = {"sqrt": found.converged, "inv": found.inv_converged}

    def filled(x: Tensor, fill: float) -> Tensor:
        return torch.cat([x, x.new_full((len(a) - len(x),), fill)])

    violations = {
        "root wrong": says["sqrt"] & (quantities["sqrt_error"] > FORWARD_THRESHOLD),
        "inverse root wrong": says["inv"] & (quantities["inv_error"] > FORWARD_THRESHOLD),
        "gradient wrong": says["sqrt"] & (quantities["gradient_error"] > FORWARD_THRESHOLD),
        "gradient of the inverse wrong": says["inv"]
        & (quantities["inv_gradient_error"] > FORWARD_THRESHOLD),
        "root not positive": says["sqrt"]
        & has["sqrt"]
        & (t.least < -((FORWARD_THRESHOLD * n**1.5 * rounded) ** 0.5)),
        "root where there is none": wanted["no sqrt"] & ~nan["sqrt"],
        "inverse root where there is none": wanted["no inv_sqrt"] & ~nan["inv_sqrt"],
        "root not Hermitian": has["sqrt"] & _not_hermitian(found.sqrt),
        "inverse root not Hermitian": has["inv_sqrt"] & _not_hermitian(found.inv_sqrt),
        "residual untrue": has["sqrt"]
        & (t.sqrt_residual > 2 * found.residual.double() + FORWARD_THRESHOLD * n * rounded),
        "input changed": torch.full_like(nan["sqrt"], found.mutated),
    }
    if spectral:
        for name, which in (("root", "sqrt"), ("inverse root", "inv")):
            beyond = quantities[f"{which}_ratio"] > LAPACK_THRESHOLD
            violations[f"{name} beyond LAPACK's threshold"] = beyond & says[which]
    if reliable:
        lost = says["sqrt"] & has["sqrt"] & ranges["gradient"].fits & ~has["gradient"]
        violations["gradient not finite"] = lost
        violations["no root"] = wanted["sqrt"] & ~has["sqrt"]
        violations["no inverse root"] = (
            wanted["inv_sqrt"] & ranges["inv_sqrt"].fits & ~has["inv_sqrt"]
        )
        violations["no gradient of the inverse"] = (
            wanted["inv_sqrt"]
            & has["inv_sqrt"]
            & ranges["inv_gradient"].fits
            & ~has["inv_gradient"]
        )
    # Where the truth is known to a thousandth: see ``by_residuals``.
    root_known = t.sqrt_change < _KNOWN
    # Of gradients no second order is known.
    gradient_known = t.sqrt_change < _KNOWN**2
    exact = gradient_known & (condition < _SURE) if double else gradient_known
    bounds = {
        "S": (found.error_bound, "sqrt", t.sqrt_error, root_known),
        "Z": (found.inv_error_bound, "inv_sqrt", t.inv_error, t.inv_change < _KNOWN),
        "∇S": (found.gradient_bound, "gradient", t.gradient_error, gradient_known),
        "∇Z": (found.inv_gradient_bound, "inv_gradient", t.inv_gradient_error, exact),
    }
    for name, (bound, quantity, error, known) in bounds.items():
        if bound is None:
            continue
        # Fewer gradients than matrices are bounded.
        k = len(bound)
        here = (kept[_ERRORS[quantity]] & known)[:k]
        error, size = error[:k], getattr(unit, quantity)[:k]
        bound = torch.where(here, bound.double(), torch.nan)
        finite = torch.where(here, bound.isfinite().double(), torch.nan)
        ratio = bound / torch.maximum(error, size)
        quantities[f"bound of {name} / error"] = filled(ratio, math.nan)
        quantities[f"bound of {name} finite"] = filled(finite, math.nan)
        low = bound < error * (1 - 1e-3) - 1e-3 * size
        violations[f"bound of {name} below error"] = filled(low, 0)
    if again:
        violations["other company, other result"] = _differs(a, subject, found, again, unit)
    return Findings(quantities, {k: v for k, v in violations.items() if v.any()})


@dataclass(frozen=True)
class Range:
    """How a true result lies in the range of the dtype, each (b,).

    Attributes:
        fits: its norm is well below the largest number.
        lost: the relative error that underflow of its entries explains.
    """

    fits: Tensor
    lost: Tensor


def _ranges(a: Tensor, t: Truth, g: float) -> dict[str, Range]:
    """Of both roots and gradients, for a cotangent of norm g."""
    info, n = torch.finfo(a.dtype), a.shape[-1]
    half = torch.div(spd.even_exponent(spd.in_double(a)), 2, rounding_mode="floor")

    def of(size: Tensor, power: Tensor) -> Range:
        # By logarithms: the number itself may be beyond double precision.
        logarithm = size.log2() + power
        lost = torch.exp2(math.log2(n * info.tiny) + math.log2(info.eps) - logarithm)
        return Range(logarithm < math.log2(info.max) - 4, lost.nan_to_num(nan=0.0))

    return {
        "sqrt": of(t.sqrt_norm, half),
        "inv_sqrt": of(t.inv_norm, -half),
        "gradient": of(g * t.gradient_size, -half),
        "inv_gradient": of(g * t.inv_gradient_size, -3 * half),
    }


def _not_hermitian(x: Tensor) -> Tensor:
    return (x != x.mH).any(-1).any(-1)


def _differs(a: Tensor, subject: Subject, found: Computed, part: int, unit: Units) -> Tensor:
    """Which matrices have another result in another batch, (b,)."""
    b = len(a)
    plan = matroot.explain(a, method=METHOD_OPTIONS[subject.method], backend=subject.backend)
    # The kernels of the published polynomials leave nearly singular matrices to PyTorch.
    kernels = plan.backend == plan.gradient_backend == "native"
    exactly = kernels and subject.method in RELIABLE
    order = torch.arange(part).roll(max(part // 2, 1))
    cut, threads = part // 3, torch.get_num_threads()
    differs = torch.zeros(b, dtype=torch.bool)
    for piece in (order[:cut], order[cut:]):
        if not len(piece):
            continue
        # In a new thread, which has working memory of its own: what is left there from other
        # matrices must not matter either.
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            other = pool.submit(compute, a[piece], subject).result()
        for name in ("sqrt", "inv_sqrt", "gradient", "inv_gradient"):
            first, second = getattr(found, name)[piece], getattr(other, name)
            same = (_bits(first) == _bits(second)).all(-1).all(-1)
            if not exactly:
                # An entry that overflows counts as the largest number.
                x, y = (spd.in_double(r.nan_to_num(nan=math.nan)) for r in (first, second))
                allowed = FORWARD_THRESHOLD * getattr(unit, name)[piece] + spd.real_eps(a.dtype)
                # What is not determined by the matrix need not agree.
                same |= (norm(x - y) <= allowed * norm(x)) | (allowed > 0.1)
                # Whether there is a result is judged elsewhere, away from the thresholds.
                same |= norm(x + y).isnan()
            differs[piece] |= ~same
    return differs


def histogram(x: Tensor) -> dict[str, object]:
    """Count, largest number and bins of a tenth of a decade of the numbers that are not NaN."""
    x = x[~x.isnan()]
    if not len(x):
        return {"count": 0, "max": None, "bins": {}}
    bins = (x.clamp(1e-30, 1e30).log10() * BINS).floor().long()
    keys, counts = torch.unique(bins, return_counts=True)
    largest = float(x.max())
    return {
        "count": len(x),
        "max": largest if math.isfinite(largest) else None,
        "bins": dict(zip(map(str, keys.tolist()), counts.tolist(), strict=True)),
    }


def joined(parts: list[Findings], lengths: list[int]) -> Findings:
    """The findings of batches as those of all."""

    def column(tables: list[dict[str, Tensor]], name: str, fill: float) -> Tensor:
        pairs = zip(tables, lengths, strict=True)
        return torch.cat([t[name] if name in t else torch.full((k,), fill) for t, k in pairs])

    quantities = [part.quantities for part in parts]
    violations = [part.violations for part in parts]
    return Findings(
        {name: column(quantities, name, math.nan) for name in _names(quantities)},
        {name: column(violations, name, 0.0) > 0 for name in _names(violations)},
    )


def _names(tables: list[dict[str, Tensor]]) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table))


def measured(found: Block) -> tuple[Row, Tensor, Findings]:
    """The fields of a block's row, its matrices, and what was found of each."""
    draw, subject = found.draw, found.subject
    a = found.matrices()
    parts = torch.split(a, max(2, _BATCH // draw.n**2))
    # A second time all of the small ones, some of the large ones, which cost most.
    seen = joined(
        [
            examine(part, subject, again=None if draw.n <= 32 else max(2, len(part) // 8))
            for part in parts
        ],
        [len(part) for part in parts],
    )
    row: Row = {
        "block": found.number,
        "family": found.family,
        "n": draw.n,
        "dtype": str(draw.dtype).removeprefix("torch."),
        "method": subject.method,
        "backend": subject.backend,
        "matrices": draw.count,
        "ratios": {name: histogram(x) for name, x in seen.quantities.items()},
        "violations": {name: int(x.sum()) for name, x in seen.violations.items()},
    }
    return row, a, seen
