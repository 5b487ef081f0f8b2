"""What is computed: functions of Hermitian matrices, f(A) = Q diag(f(λ)) Qᴴ, by their eigenvalues.

A function is known by its values on eigenvalues and by its divided differences, which are all that
derivatives need (Daleckii and Krein 1965):

    f[x, y] = (f(x) − f(y))/(x − y),    f[x, y, z] = (f[x, y] − f[y, z])/(x − z),

and their limits at ties. As written they lose all digits where points are close; here they are
accurate to a few units of rounding, relatively, at any distance.

Everything is made of elementwise PyTorch operations on real tensors of single or double precision
that broadcast together; nothing looks at values on the host. NaN gives NaN.
"""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from matroot import spd

# What matrices a function takes: every Hermitian one; every regular one; positive semi-definite
# ones; positive definite ones.
Domain = Literal["real", "regular", "semidefinite", "definite"]


@dataclass(frozen=True)
class SpectralFunction(ABC):
    """A real function f of eigenvalues: a frozen dataclass, so that it can be compared and hashed.

    A new one needs ``values``, ``slope`` and the attributes ``domain`` and ``bounded_slope``. The
    default of ``difference`` integrates the slope between close points. It is accurate to ten units
    where f grows like a power of x; not where f is nearly constant beside its size, or varies a lot
    between x and 3x/4, so that a function's own formula is better wherever there is one.
    """

    @property
    @abstractmethod
    def domain(self) -> Domain:
        """Which matrices it takes: see ``Domain``."""

    @property
    @abstractmethod
    def bounded_slope(self) -> bool:
        """Whether f' is bounded at 0, so that f can be differentiated at a singular matrix.

        Else the block of the derivative on null × null space is left out (minimum norm).
        """

    @property
    def bounded_curvature(self) -> bool:
        """Whether f'' is bounded at 0: the same for the second derivative."""
        return self.bounded_slope

    @property
    def degree(self) -> float | None:
        """The p of f(c x) = cᵖ f(x) for all c > 0; None for a function that has none."""
        return None

    @abstractmethod
    def values(self, x: Tensor) -> Tensor:
        """f(x), elementwise."""

    @abstractmethod
    def slope(self, x: Tensor) -> Tensor:
        """f'(x), elementwise."""

    def curvature(self, x: Tensor) -> Tensor:
        """f''(x), elementwise; by default the derivative of ``slope``."""
        # In reverse mode: forward mode cannot be nested in PyTorch's own, outside of torch.func.
        pulled: Tensor = torch.func.vjp(self.slope, x)[1](torch.ones_like(x))[0]
        return pulled

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        """f[x, y], the first divided difference: f'(x) where x = y."""
        apart = x - y
        near = apart.abs() * 4 <= torch.maximum(x.abs(), y.abs())
        start = torch.where(near, y, 1.0)
        along = torch.where(near, apart, 0.0)
        integral = torch.zeros_like(apart)
        for node, weight in _GAUSS_LEGENDRE:
            integral = integral + weight * self.slope(start + node * along)
        far = (self.values(x) - self.values(y)) / torch.where(near, 1.0, apart)
        return torch.where(near, integral, far)

    def second_difference(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """f[x, y, z], the second divided difference: f''(x)/2 where x = y = z.

        The default integrates ``curvature`` between close points (Hermite and Genocchi), by 64
        values for each triple, and is as accurate as ``difference`` but for a factor of some ten.
        """
        a, b, c = _descending(x, y, z)
        apart = a - c
        near = apart * 4 <= torch.maximum(a.abs(), c.abs())
        start = torch.where(near, c, 1.0)
        first, second = torch.where(near, b - c, 0.0), torch.where(near, a - b, 0.0)
        integral = torch.zeros_like(apart)
        for s, w in _GAUSS_LEGENDRE:
            for t, v in _GAUSS_LEGENDRE:
                point = start + s * (first + t * second)
                integral = integral + w * v * s * self.curvature(point)
        return torch.where(near, integral, _recursion(self, a, b, c, near))


# Nodes and weights of the eight-point rule on [0, 1]. Over an interval [3x/4, x] it is exact to
# double precision for what is analytic away from 0: its error falls like (7 + √48)^-16.
_GAUSS_LEGENDRE = tuple(
    ((1 + sign * node) / 2, weight / 2)
    for node, weight in (
        (0.18343464249564980, 0.36268378337836198),
        (0.52553240991632899, 0.31370664587788729),
        (0.79666647741362674, 0.22238103445337447),
        (0.96028985649753623, 0.10122853629037626),
    )
    for sign in (-1, 1)
)


@dataclass(frozen=True)
class Sqrt(SpectralFunction):
    """f(x) = √x;  f[x, y] = 1/(√x + √y)."""

    domain = "semidefinite"
    bounded_slope = False
    degree = 0.5

    def values(self, x: Tensor) -> Tensor:
        """See SpectralFunction.values."""
        return x.sqrt()

    def slope(self, x: Tensor) -> Tensor:
        """See SpectralFunction.slope."""
        return 0.5 / x.sqrt()

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        """See SpectralFunction.difference."""
        return 1 / (x.sqrt() + y.sqrt())

    def second_difference(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """See SpectralFunction.second_difference."""
        a, b, c = x.sqrt(), y.sqrt(), z.sqrt()
        return -1 / (a + b) / (b + c) / (c + a)


@dataclass(frozen=True)
class InvSqrt(SpectralFunction):
    """f(x) = 1/√x;  f[x, y] = −1/(√x √y (√x + √y))."""

    domain = "definite"
    bounded_slope = False
    degree = -0.5

    def values(self, x: Tensor) -> Tensor:
        """See SpectralFunction.values."""
        # Not rsqrt, which is an approximation on some devices.
        return 1 / x.sqrt()

    def slope(self, x: Tensor) -> Tensor:
        """See SpectralFunction.slope."""
        return -0.5 / x.sqrt() / x

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        """See SpectralFunction.difference."""
        a, b = torch.maximum(x, y).sqrt(), torch.minimum(x, y).sqrt()
        return -1 / (a + b) / a / b

    def second_difference(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """See SpectralFunction.second_difference."""
        a, b, c = x.sqrt(), y.sqrt(), z.sqrt()
        return (a + b + c) / (a + b) / (b + c) / (c + a) / a / b / c


@dataclass(frozen=True)
class Power(SpectralFunction):
    """f(x) = xᵖ for a real p, also of indefinite matrices where p is whole.

    With x ≥ y > 0 and t = log(x/y), for p > 0 and for p < 0

        f[x, y] = x^(p−1) (1 − e^(−p t))/(1 − y/x)    and    y^(p−1) (e^(p t) − 1)/(x/y − 1).

    Args:
        p: the exponent, a finite real number. 0⁰ = 1.

    Raises:
        TypeError: ``p`` is not a real number.
        ValueError: ``p`` is not finite.
    """

    p: float

    def __post_init__(self) -> None:
        # Plus zero, so that there is one p = 0.
        object.__setattr__(self, "p", _real("p", self.p) + 0.0)

    @property
    def whole(self) -> bool:
        """Whether p is a whole number."""
        return self.p.is_integer()

    @property
    def domain(self) -> Domain:
        """See SpectralFunction.domain."""
        if self.whole:
            return "real" if self.p >= 0 else "regular"
        return "semidefinite" if self.p > 0 else "definite"

    @property
    def bounded_slope(self) -> bool:
        """See SpectralFunction.bounded_slope."""
        return self.p == 0 or self.p >= 1

    @property
    def bounded_curvature(self) -> bool:
        """See SpectralFunction.bounded_curvature."""
        return self.p in (0, 1) or self.p >= 2

    @property
    def degree(self) -> float:
        """See SpectralFunction.degree."""
        return self.p

    def values(self, x: Tensor) -> Tensor:
        """See SpectralFunction.values."""
        if self.p == 0:
            return torch.where(x.isnan(), x, 1.0)
        return _power(x, self.p)

    def slope(self, x: Tensor) -> Tensor:
        """See SpectralFunction.slope."""
        if self.p in (0, 1):
            return torch.where(x.isnan(), x, self.p)
        if self.whole:
            return self.p * x.pow(self.p - 1)
        return _lowered(self.p, x, self.p, 1)

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        """See SpectralFunction.difference."""
        if self.p in (0, 1):
            return torch.where((x + y).isnan(), x + y, self.p)
        if self.p == 2:
            return x + y
        if not self.whole:
            return _power_difference(self.p, torch.maximum(x, y), torch.minimum(x, y))
        return self._whole_difference(x, y)

    def _whole_difference(self, x: Tensor, y: Tensor) -> Tensor:
        """f[x, y] for eigenvalues of any sign, from that of |x| and |y|."""
        p = self.p
        high, low = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
        total = spd.positive_or_one(high + low)
        if p % 2 == 0:
            # The quotient is ±1 exactly where the signs are equal.
            return _power_difference(p, high, low, torch.where(high > 0, (x + y) / total, 1.0))
        opposite = (x > 0) & (y < 0) | (x < 0) & (y > 0)
        # |x|ᵖ + |y|ᵖ is the larger of them times this.
        ratio = (1 + (low / spd.positive_or_one(high)).pow(abs(p))) / total
        half = (high if p > 0 else low).pow(p / 2)
        return torch.where(opposite, half * ratio * half, _power_difference(p, high, low))

    def second_difference(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """See SpectralFunction.second_difference."""
        p = self.p
        if p in (0, 1, 2):
            total = x + y + z
            return torch.where(total.isnan(), total, float(p == 2))
        a, b, c = _descending(x, y, z)
        # Beyond, terms of the series would grow before they fall.
        reach = min(1 / 3, 2 / abs(p))
        near, series = _series(_binomials(p, a.dtype), a, b, c, reach)
        middle = torch.where(near, 0.5 * a + 0.5 * c, 1.0)
        close = middle.pow(p - 2) * series if self.whole else _lowered(series, middle, p, 2)
        far = self._far(a, b, c, near) if 0.5 < p < 2 else _recursion(self, a, b, c, near)
        return torch.where(near, close, far)

    def _far(self, a: Tensor, b: Tensor, c: Tensor, near: Tensor) -> Tensor:
        """f[a, b, c] = (a g[a, b] − c g[b, c])/(a − c) with g(x) = x^(p−1), for a > c ≥ 0.

        Where p is close to 1 all of f[x, y] are close to 1 and their differences lose digits.
        """
        g = Power(self.p - 1)
        to_low = torch.where(c == 0, 0.0, c * g.difference(b, torch.where(c == 0, b, c)))
        return (a * g.difference(a, b) - to_low) / torch.where(near, 1.0, a - c)


@dataclass(frozen=True)
class Log(SpectralFunction):
    """f(x) = log x;  f[x, y] = log(x/y)/(x − y)."""

    domain = "definite"
    bounded_slope = False

    def values(self, x: Tensor) -> Tensor:
        """See SpectralFunction.values."""
        return x.log()

    def slope(self, x: Tensor) -> Tensor:
        """See SpectralFunction.slope."""
        return 1 / x

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        """See SpectralFunction.difference."""
        high, low = torch.maximum(x, y), torch.minimum(x, y)
        _, apart, unit = _distance(high, low)
        tie = apart == 0
        ratio = _log_ratio(high, low) / torch.where(tie, 1.0, apart)
        return torch.where(tie, 1.0, ratio) / unit

    def second_difference(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """See SpectralFunction.second_difference."""
        a, b, c = _descending(x, y, z)
        coefficients = [(-1.0) ** (k + 1) / k for k in range(2, 2 + _terms(a.dtype))]
        near, series = _series(coefficients, a, b, c, 1 / 3)
        middle = torch.where(near, 0.5 * a + 0.5 * c, 1.0)
        return torch.where(near, series / middle / middle, _recursion(self, a, b, c, near))


@dataclass(frozen=True)
class Exp(SpectralFunction):
    """f(x) = eˣ;  f[x, y] = eˣ (1 − e^(y−x))/(x − y). Overflows to infinity, as eˣ does."""

    domain = "real"
    bounded_slope = True

    def values(self, x: Tensor) -> Tensor:
        """See SpectralFunction.values."""
        return x.exp()

    def slope(self, x: Tensor) -> Tensor:
        """See SpectralFunction.slope."""
        return x.exp()

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        """See SpectralFunction.difference."""
        high, low = torch.maximum(x, y), torch.minimum(x, y)
        return _times_exp(high, _falling(high - low))

    def second_difference(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """See SpectralFunction.second_difference.

        From the smallest point on all terms of the series are positive.
        """
        a, b, c = _descending(x, y, z)
        apart = a - c
        near = apart <= 2
        u, v = torch.where(near, apart, 0.0), torch.where(near, b - c, 0.0)
        power = torch.ones_like(u)
        term = power
        series = 0.5 * term
        for k in range(1, 16 if a.dtype == torch.float32 else 28):
            power = power * u
            term = torch.addcmul(power, v, term)
            series = torch.add(series, term, alpha=1 / math.factorial(k + 2))
        fall = _falling(a - b) - torch.exp(b - a) * _falling(b - c)
        far = _times_exp(a, fall / torch.where(near, 1.0, apart))
        return torch.where(near, c.exp() * series, far)


@dataclass(frozen=True)
class OnRange(SpectralFunction):
    """f on the range of A and 0 on its null space (x exactly 0), as in the pseudo-inverse.

    Its divided differences are those of a function that is f where there are eigenvalues, and flat
    about 0. They are exact along directions that keep the rank (for the inverse: Golub and Pereyra
    1973), and 0 on null × null space.

    Args:
        function: f.
    """

    function: SpectralFunction

    @property
    def domain(self) -> Domain:
        """See SpectralFunction.domain."""
        wider: dict[Domain, Domain] = {"definite": "semidefinite", "regular": "real"}
        return wider.get(self.function.domain, self.function.domain)

    @property
    def bounded_slope(self) -> bool:
        """See SpectralFunction.bounded_slope."""
        return True

    @property
    def degree(self) -> float | None:
        """See SpectralFunction.degree."""
        return self.function.degree

    def values(self, x: Tensor) -> Tensor:
        """See SpectralFunction.values."""
        null = x == 0
        return torch.where(null, 0.0, self.function.values(torch.where(null, 1.0, x)))

    def slope(self, x: Tensor) -> Tensor:
        """See SpectralFunction.slope."""
        null = x == 0
        return torch.where(null, 0.0, self.function.slope(torch.where(null, 1.0, x)))

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        """See SpectralFunction.difference: f(x)/x where y = 0."""
        either, both = (x == 0) | (y == 0), (x == 0) & (y == 0)
        inside = self.function.difference(torch.where(either, 1.0, x), torch.where(either, 1.0, y))
        return torch.where(either, self._to_null(torch.where(both, 0.0, x + y)), inside)

    def second_difference(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """See SpectralFunction.second_difference: f(x)/x² where y = z = 0."""
        of_x, of_y, of_z = x == 0, y == 0, z == 0
        any_null = of_x | of_y | of_z
        inside = self.function.second_difference(
            *(torch.where(any_null, 1.0, t) for t in (x, y, z))
        )
        # What is left beside one that is null; the larger is divided by.
        u, v = torch.where(of_x, y, x), torch.where(of_z & ~of_x, y, z)
        swap = u.abs() < v.abs()
        u, v = torch.where(swap, v, u), torch.where(swap, u, v)
        safe = torch.where(u == 0, 1.0, u)
        one_null = (self.difference(u, v) - self._to_null(v)) / safe
        return torch.where(any_null, torch.where(u == 0, 0.0, one_null), inside)

    def _to_null(self, x: Tensor) -> Tensor:
        """f[x, 0] = f(x)/x, 0 at 0."""
        return self.values(x) / torch.where(x == 0, 1.0, x)


# Every function there is: a new one is a class and its name here.
FUNCTIONS: tuple[type[SpectralFunction], ...] = (Sqrt, InvSqrt, Power, Log, Exp)


def power(p: float) -> SpectralFunction:
    """xᵖ as the function that knows it best: Sqrt for 1/2, InvSqrt for −1/2, else Power.

    Args:
        p: the exponent, a finite real number.

    Raises:
        TypeError: ``p`` is not a real number.
        ValueError: ``p`` is not finite.
    """
    p = _real("p", p)
    if p == 0.5:
        return Sqrt()
    return InvSqrt() if p == -0.5 else Power(p)


def _real(name: str, value: object) -> float:
    """The number as a float, if it is a finite real one."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not -math.inf < number < math.inf:
        raise ValueError(f"{name} must be a finite number, got {value}")
    return number


def _power(x: Tensor, p: float) -> Tensor:
    """xᵖ to a unit of rounding.

    An exponent that single precision does not hold would cost log(xᵖ)/4 units: what it leaves out
    is made good by x^(p−q) = 1 + (p − q) log x.
    """
    if x.dtype != torch.float32:
        return x.pow(p)
    # The nearest number of 24 digits (Veltkamp 1968).
    wide = p * (2.0**29 + 1)
    q = wide - (wide - p)
    if q == p or not math.isfinite(q):
        return x.pow(p)
    known = (x > 0) & x.isfinite()
    return x.pow(q) * (1 + (p - q) * torch.where(known, x, 1.0).log())


def _lowered(factor: Tensor | float, x: Tensor, p: float, by: int) -> Tensor:
    """x^(p − by) · factor, for x ≥ 0 and by = 1 or 2, p other than by.

    By two factors x^(p/2): p − by may round, which costs log(x)/4 units, and xᵖ may overflow.
    """
    half = _power(x, p / 2)
    found = (half * factor / x) * (half if by == 1 else half / x)
    return torch.where(x == 0, factor * (math.inf if p < by else 0.0), found)


def _descending(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three numbers in descending order, elementwise."""
    high, low = torch.maximum(x, y), torch.minimum(x, y)
    middle = torch.maximum(low, torch.minimum(high, z))
    return torch.maximum(high, z), middle, torch.minimum(low, z)


def _distance(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(near, apart, unit) with high − low = apart · unit, where neither overflows nor underflows.

    Numbers within a factor of two are near and measured by the lower one, others by 1.
    """
    near = high <= 2 * low
    unit = torch.where(near & (low != 0), low, 1.0)
    return near, (high - low) / unit, torch.where(near, low, 1.0)


def _log_ratio(high: Tensor, low: Tensor) -> Tensor:
    """log(high/low) for high ≥ low ≥ 0, to a few units relatively: 0 at ties, ∞ for low = 0."""
    near, apart, _ = _distance(high, low)
    quotient = high / torch.where(low > 0, low, 1.0)
    # Numbers whose quotient is out of range have logarithms that are far apart.
    by_quotient = (low > 0) & quotient.isfinite()
    far = torch.where(by_quotient, quotient.log(), high.log() - low.log())
    return torch.where(near, torch.where(near, apart, 0.0).log1p(), far)


def _power_difference(p: float, high: Tensor, low: Tensor, factor: Tensor | float = 1.0) -> Tensor:
    """f[x, y] · factor of xᵖ for high ≥ low ≥ 0 and p other than 0 and 1: see Power."""
    t = _log_ratio(high, low)
    if p > 0:
        apart = (high - low) / spd.positive_or_one(high)
        tie = apart == 0
        ratio = -torch.expm1(-p * t) / torch.where(tie, 1.0, apart)
        return _lowered(torch.where(tie, p, ratio) * factor, high, p, 1)
    _, apart, unit = _distance(high, low)
    tie = apart == 0
    ratio = torch.expm1(p * t) / torch.where(tie, 1.0, apart)
    half = _power(low, p / 2)
    return half * torch.where(tie, p, ratio) * factor / unit * half


def _recursion(function: SpectralFunction, a: Tensor, b: Tensor, c: Tensor, near: Tensor) -> Tensor:
    """f[a, b, c] = (f[a, b] − f[b, c])/(a − c), for points that are not near."""
    apart = torch.where(near, 1.0, a - c)
    return (function.difference(a, b) - function.difference(b, c)) / apart


def _terms(dtype: torch.dtype) -> int:
    """How many terms of a power series are needed up to a third of its radius of convergence."""
    return 18 if dtype == torch.float32 else 36


def _binomials(p: float, dtype: torch.dtype) -> list[float]:
    """The binomial coefficients C(p, k) from k = 2 on."""
    found = [p * (p - 1) / 2]
    for k in range(2, 1 + _terms(dtype)):
        found.append(found[-1] * (p - k) / (k + 1))
    return found


def _series(
    coefficients: list[float], a: Tensor, b: Tensor, c: Tensor, reach: float
) -> tuple[Tensor, Tensor]:
    """Which triples are near, and their second difference of Σ c_k (x/m − 1)ᵏ, m = (a + c)/2.

    With h = a/m − 1 = 1 − c/m and g = b/m − 1 it is Σ c_k H_(k−2)/m² (the caller divides by m²),
    where the sums H of all products of so many of g, h and −h satisfy H_k = g H_(k−1) + hᵏ for even
    k and g H_(k−1) for odd ones.

    Args:
        coefficients: c_2, c_3, …
        a: the largest.
        b: the middle one.
        c: the smallest.
        reach: the largest h that is near; elsewhere the result is of no use.
    """
    middle = 0.5 * a + 0.5 * c
    half = 0.5 * a - 0.5 * c
    near = half <= reach * middle.abs()
    safe = torch.where(near & (middle != 0), middle, 1.0)
    g = torch.where(near, b - middle, 0.0) / safe
    square = (torch.where(near, half, 0.0) / safe).square()
    power = torch.ones_like(square)
    term = power
    total = coefficients[0] * term
    for k, coefficient in enumerate(coefficients[1:], start=1):
        if k % 2 == 0:
            power = power * square
            term = torch.addcmul(power, g, term)
        else:
            term = g * term
        total = torch.add(total, term, alpha=coefficient)
    return near, total


def _falling(d: Tensor) -> Tensor:
    """(1 − e^(−d))/d for d ≥ 0, 1 at 0."""
    tie = d == 0
    return torch.where(tie, 1.0, -torch.expm1(-d) / torch.where(tie, 1.0, d))


def _times_exp(x: Tensor, factor: Tensor) -> Tensor:
    """eˣ · factor, in two steps since eˣ alone may overflow."""
    half = (0.5 * x).exp()
    return half * factor * half
