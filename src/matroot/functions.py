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
from typing import ClassVar, Literal

import torch
from torch import Tensor

from matroot import elementary, spd

__all__ = ["Exp", "InvSqrt", "Log", "OnRange", "Power", "SpectralFunction", "Sqrt"]


def __dir__() -> list[str]:
    return __all__


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
        a, b, c = elementary.descending(x, y, z)
        apart = a - c
        near = apart * 4 <= torch.maximum(a.abs(), c.abs())
        start = torch.where(near, c, 1.0)
        first, second = torch.where(near, b - c, 0.0), torch.where(near, a - b, 0.0)
        integral = torch.zeros_like(apart)
        for s, w in _GAUSS_LEGENDRE:
            for t, v in _GAUSS_LEGENDRE:
                point = start + s * (first + t * second)
                integral = integral + w * v * s * self.curvature(point)
        return torch.where(near, integral, _recursion(self, x, y, z, near))


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
    degree: ClassVar[float] = 0.5

    def values(self, x: Tensor) -> Tensor:
        """√x."""
        return x.sqrt()

    def slope(self, x: Tensor) -> Tensor:
        """1/(2√x)."""
        return 0.5 / x.sqrt()

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        """1/(√x + √y)."""
        return 1 / (x.sqrt() + y.sqrt())

    def second_difference(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """−1/((√x + √y)(√y + √z)(√z + √x))."""
        a, b, c = x.sqrt(), y.sqrt(), z.sqrt()
        return -1 / (a + b) / (b + c) / (c + a)


@dataclass(frozen=True)
class InvSqrt(SpectralFunction):
    """f(x) = 1/√x;  f[x, y] = −1/(√x √y (√x + √y))."""

    domain = "definite"
    bounded_slope = False
    degree: ClassVar[float] = -0.5

    def values(self, x: Tensor) -> Tensor:
        """1/√x."""
        # Not rsqrt, which is an approximation on some devices.
        return 1 / x.sqrt()

    def slope(self, x: Tensor) -> Tensor:
        """−1/(2x√x)."""
        return -0.5 / x.sqrt() / x

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        """−1/(√x √y (√x + √y))."""
        a, b = torch.maximum(x, y).sqrt(), torch.minimum(x, y).sqrt()
        return -1 / (a + b) / a / b

    def second_difference(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """(a + b + c)/((a + b)(b + c)(c + a) a b c) for a, b, c = √x, √y, √z."""
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
        """Real or (p < 0) regular for a whole p, else semidefinite or (p < 0) definite."""
        if self.whole:
            return "real" if self.p >= 0 else "regular"
        return "semidefinite" if self.p > 0 else "definite"

    @property
    def bounded_slope(self) -> bool:
        """Whether p xᵖ⁻¹ is bounded at 0: for p = 0 and p ≥ 1."""
        return self.p == 0 or self.p >= 1

    @property
    def bounded_curvature(self) -> bool:
        """Whether p (p − 1) xᵖ⁻² is bounded at 0: for p = 0, p = 1 and p ≥ 2."""
        return self.p in (0, 1) or self.p >= 2

    @property
    def degree(self) -> float:
        """The exponent p."""
        return self.p

    def values(self, x: Tensor) -> Tensor:
        """xᵖ."""
        return elementary.integer_power(x, self.p) if self.whole else elementary.power(x, self.p)

    def slope(self, x: Tensor) -> Tensor:
        """f'(x) = p xᵖ⁻¹."""
        if self.p in (0, 1):
            return torch.where(x.isnan(), x, self.p)
        if self.whole:
            return self.p * elementary.integer_power(x, self.p - 1)
        return elementary.lowered_power(self.p, x, elementary.power(x, self.p / 2), self.p, 1)

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        """(xᵖ − yᵖ)/(x − y), p xᵖ⁻¹ where x = y."""
        if self.p in (0, 1):
            return torch.where((x + y).isnan(), x + y, self.p)
        if self.p == 2:
            return x + y
        if not self.whole:
            return elementary.power_difference(self.p, x, y)
        return self._whole_difference(x, y)

    def _whole_difference(self, x: Tensor, y: Tensor) -> Tensor:
        """f[x, y] for eigenvalues of any sign, from that of |x| and |y|."""
        p, u, v = self.p, x.abs(), y.abs()
        high, low = torch.maximum(u, v), torch.minimum(u, v)
        total = spd.positive_or_one(high + low)
        if p % 2 == 0:
            # The quotient is ±1 exactly where the signs are equal.
            return elementary.power_difference(p, u, v, torch.where(high > 0, (x + y) / total, 1.0))
        opposite = (x > 0) & (y < 0) | (x < 0) & (y > 0)
        # |x|ᵖ + |y|ᵖ is the larger of them times this.
        ratio = (1 + elementary.power(low / spd.positive_or_one(high), abs(p))) / total
        half = elementary.half_power(p, u, v)
        return torch.where(opposite, half * ratio * half, elementary.power_difference(p, u, v))

    def second_difference(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """f[x, y, z] of f(x) = xᵖ, p (p − 1) xᵖ⁻²/2 where x = y = z."""
        p = self.p
        if p in (0, 1, 2):
            total = x + y + z
            return torch.where(total.isnan(), total, float(p == 2))
        a, b, c = elementary.descending(x, y, z)
        # Beyond, terms of the series would grow before they fall.
        reach = min(1 / 3, 2 / abs(p))
        near, series = elementary.near_series(elementary.binomials(p, a.dtype), a, b, c, reach)
        middle = torch.where(near, 0.5 * a + 0.5 * c, 1.0)
        if self.whole:
            close = elementary.integer_power(middle, p - 2) * series
        else:
            close = elementary.lowered_power(series, middle, elementary.power(middle, p / 2), p, 2)
        far = self._far(x, y, z, near) if 0.5 < p < 2 else _recursion(self, x, y, z, near)
        return torch.where(near, close, far)

    def _far(self, x: Tensor, y: Tensor, z: Tensor, near: Tensor) -> Tensor:
        """f[a, b, c] = (a g[a, b] − c g[b, c])/(a − c) with g(x) = x^(p−1), for a > c ≥ 0.

        Where p is close to 1 all of f[x, y] are close to 1 and their differences lose digits.
        """
        a, _, c = elementary.descending(x, y, z)
        high, low = _outer_differences(Power(self.p - 1), x, y, z)
        return (a * high - torch.where(c == 0, 0.0, c * low)) / torch.where(near, 1.0, a - c)


@dataclass(frozen=True)
class Log(SpectralFunction):
    """f(x) = log x;  f[x, y] = log(x/y)/(x − y)."""

    domain = "definite"
    bounded_slope = False

    def values(self, x: Tensor) -> Tensor:
        """The natural logarithm of x."""
        return x.log()

    def slope(self, x: Tensor) -> Tensor:
        """1/x."""
        return 1 / x

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        """log(x/y)/(x − y), 1/x where x = y."""
        high, low = torch.maximum(x, y), torch.minimum(x, y)
        _, apart, unit = elementary.gap(high, low)
        tie = apart == 0
        ratio = elementary.log_ratio(high, low) / torch.where(tie, 1.0, apart)
        return torch.where(tie, 1.0, ratio) / unit

    def second_difference(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """f[x, y, z] of the logarithm, −1/(2x²) where x = y = z."""
        a, b, c = elementary.descending(x, y, z)
        coefficients = [(-1.0) ** (k + 1) / k for k in range(2, 2 + elementary.terms(a.dtype))]
        near, series = elementary.near_series(coefficients, a, b, c, 1 / 3)
        middle = torch.where(near, 0.5 * a + 0.5 * c, 1.0)
        return torch.where(near, series / middle / middle, _recursion(self, x, y, z, near))


@dataclass(frozen=True)
class Exp(SpectralFunction):
    """f(x) = eˣ;  f[x, y] = eˣ (1 − e^(y−x))/(x − y). Overflows to infinity, as eˣ does."""

    domain = "real"
    bounded_slope = True

    def values(self, x: Tensor) -> Tensor:
        """eˣ."""
        return x.exp()

    def slope(self, x: Tensor) -> Tensor:
        """eˣ."""
        return x.exp()

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        """(eˣ − eʸ)/(x − y), eˣ where x = y."""
        high, low = torch.maximum(x, y), torch.minimum(x, y)
        return elementary.times_exp(high, elementary.falling(high - low))

    def second_difference(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """f[x, y, z] of eˣ, eˣ/2 where x = y = z.

        From the smallest point on all terms of the series are positive.
        """
        a, b, c = elementary.descending(x, y, z)
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
        fall = elementary.falling(a - b) - torch.exp(b - a) * elementary.falling(b - c)
        far = elementary.times_exp(a, fall / torch.where(near, 1.0, apart))
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
        """That of ``function``, with singular matrices as well."""
        wider: dict[Domain, Domain] = {"definite": "semidefinite", "regular": "real"}
        return wider.get(self.function.domain, self.function.domain)

    @property
    def bounded_slope(self) -> bool:
        """True: it is flat about 0."""
        return True

    @property
    def degree(self) -> float | None:
        """That of ``function``."""
        return self.function.degree

    def values(self, x: Tensor) -> Tensor:
        """f(x), and 0 where x = 0."""
        null = x == 0
        return torch.where(null, 0.0, self.function.values(torch.where(null, 1.0, x)))

    def slope(self, x: Tensor) -> Tensor:
        """f'(x), and 0 where x = 0."""
        null = x == 0
        return torch.where(null, 0.0, self.function.slope(torch.where(null, 1.0, x)))

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        """f[x, y], f(x)/x where y = 0, and 0 where both are."""
        either, both = (x == 0) | (y == 0), (x == 0) & (y == 0)
        inside = self.function.difference(torch.where(either, 1.0, x), torch.where(either, 1.0, y))
        return torch.where(either, self._to_null(torch.where(both, 0.0, x + y)), inside)

    def second_difference(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """f[x, y, z], f(x)/x² where y = z = 0, and 0 where all three are."""
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


def _recursion(function: SpectralFunction, x: Tensor, y: Tensor, z: Tensor, near: Tensor) -> Tensor:
    """f[a, b, c] = (f[a, b] − f[b, c])/(a − c) of a ≥ b ≥ c, where they are not near."""
    a, _, c = elementary.descending(x, y, z)
    high, low = _outer_differences(function, x, y, z)
    return (high - low) / torch.where(near, 1.0, a - c)


def _outer_differences(
    function: SpectralFunction, x: Tensor, y: Tensor, z: Tensor
) -> tuple[Tensor, Tensor]:
    """f[a, b] and f[b, c] of the same numbers a ≥ b ≥ c.

    From differences of pairs, of which there are fewer than triples when x, y and z broadcast.
    """
    xy, yz, zx = function.difference(x, y), function.difference(y, z), function.difference(z, x)
    z_is_not_least = z > torch.minimum(x, y)
    z_is_not_largest = z < torch.maximum(x, y)
    high = torch.where(z_is_not_least, torch.where(x < y, yz, zx), xy)
    low = torch.where(z_is_not_largest, torch.where(x > y, yz, zx), xy)
    return high, low
