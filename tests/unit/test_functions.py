"""Values and divided differences of every function against mpmath, in units of rounding."""

import dataclasses
import math

import mpmath
import pytest
import torch

from exact import difference, exactly
from matroot import functions
from matroot.functions import (
    FUNCTIONS,
    Exp,
    InvSqrt,
    Log,
    OnRange,
    Power,
    SpectralFunction,
    Sqrt,
    power,
)

EXPONENTS = (1 / 3, -1 / 3, 0.25, -0.25, 2.5, -2.5, 0.45, 0.55, 1.5, 1e-3, 0.999, 1.001)
WHOLE = (-1, 2, 3, 4, -2, -3, 5, 10)
ALL = [Sqrt(), InvSqrt(), Log(), Exp(), *map(Power, EXPONENTS + WHOLE)]
DTYPES = [torch.float32, torch.float64]
DIGITS = 200
PAIRS, TRIPLES = 600, 400


@dataclasses.dataclass(frozen=True)
class Saturation(SpectralFunction):
    """x/(x + 1): what a user has to write for a function of their own."""

    domain = "semidefinite"
    bounded_slope = True

    def values(self, x):
        return x / (x + 1)

    def slope(self, x):
        return 1 / (x + 1).square()

    def difference(self, x, y):
        return 1 / (x + 1) / (y + 1)


@dataclasses.dataclass(frozen=True)
class CubeRoot(SpectralFunction):
    """x^{1/3} from values and slope alone."""

    domain = "semidefinite"
    bounded_slope = False

    def values(self, x):
        return x.pow(1 / 3)

    def slope(self, x):
        return x.pow(-2 / 3) / 3


def points(function, count, many, dtype, low=-5.0, high=5.0, seed=0):
    """Tuples of points: far, within a factor of three, close by 1e-1 … 1e-17, and exact ties."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(least=0.0, most=1.0):
        return least + (most - least) * torch.rand(many, dtype=torch.float64, generator=generator)

    if isinstance(function, Exp):
        high = 1.5
    base = 10 ** uniform(low, high)
    found = [base]
    for _ in range(count - 1):
        kinds = [
            10 ** uniform(low, high),
            base * 3 ** uniform(-1, 1),
            base * (1 + 10 ** uniform(-17, -1) * uniform(-1, 1).sign()),
            base,
        ]
        which = torch.randint(4, (many,), generator=generator)
        found.append(torch.stack(kinds).gather(0, which[None])[0])
    if function.domain in ("real", "regular"):
        some = uniform() < 0.4
        found = [torch.where(some, x * uniform(-1, 1).sign(), x) for x in found]
    return [x.to(dtype) for x in found]


def worst(found, exact, dtype, sizes=None):
    """The largest error in units of rounding of the exact number, or of sizes."""
    unit, info = mpmath.mpf(torch.finfo(dtype).eps), torch.finfo(dtype)
    errors = [0.0]
    for i, (x, y) in enumerate(zip(found.tolist(), exact, strict=True)):
        # Where the exact number is out of range, or below it, units say nothing.
        if 4 * info.tiny < abs(y) < info.max / 4:
            errors.append(float(abs(x - y) / (unit * (sizes[i] if sizes else abs(y)))))
    assert len(errors) > len(found) / 2
    return max(math.inf if math.isnan(e) else e for e in errors)


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(DIGITS):
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", ALL, ids=repr)
def test_values_and_slopes(function, dtype):
    (x,) = points(function, 1, 200, dtype)
    f = exactly(function)
    assert worst(function.values(x), [f(mpmath.mpf(v)) for v in x.tolist()], dtype) <= 2
    slopes = [difference(f, v, v) for v in x.tolist()]
    assert worst(function.slope(x), slopes, dtype) <= 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", ALL, ids=repr)
def test_first_differences(function, dtype):
    x, y = points(function, 2, PAIRS, dtype)
    f = exactly(function)
    exact = [difference(f, *pair) for pair in zip(x.tolist(), y.tolist(), strict=True)]
    found = function.difference(x, y)
    assert found.dtype == dtype
    assert torch.equal(found, function.difference(y, x))
    assert worst(found, exact, dtype) <= 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", ALL, ids=repr)
def test_second_differences(function, dtype):
    # Larger ones overflow on the way in single precision.
    wide = 3.0 if isinstance(function, Power) and function.p > 5 else 5.0
    x, y, z = points(function, 3, TRIPLES, dtype, -wide, wide)
    f = exactly(function)
    triples = list(zip(x.tolist(), y.tolist(), z.tolist(), strict=True))
    exact = [difference(f, *triple) for triple in triples]
    found = function.second_difference(x, y, z)
    assert found.dtype == dtype
    sizes, bound = None, 24
    if isinstance(function, Power) and function.whole:
        # For points of different signs the sum of x^i y^j z^k may cancel; for others it cannot.
        sizes = [abs(difference(f, *map(abs, triple))) for triple in triples]
        sizes = [max(size, abs(y)) for size, y in zip(sizes, exact, strict=True)]
        bound = 100
    assert worst(found, exact, dtype, sizes) <= bound
    # The three are put in order first; closed formulas may round otherwise in another one.
    other = function.second_difference(z, x, y)
    torch.testing.assert_close(other, found, rtol=16 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", [f for f in ALL if not isinstance(f, Exp)], ids=repr)
def test_first_differences_over_the_whole_range(function, dtype):
    info = torch.finfo(dtype)
    least, most = math.log10(info.tiny * info.eps * 8), math.log10(info.max / 8)
    if isinstance(function, Power) and abs(function.p) > 1.1:
        # Else hardly any pair has a difference in range.
        least, most = least / abs(function.p) / 2, most / abs(function.p) / 2
    x, y = points(function, 2, PAIRS, dtype, least, most, seed=1)
    f = exactly(function)
    exact = [difference(f, *pair) for pair in zip(x.tolist(), y.tolist(), strict=True)]
    assert worst(function.difference(x, y), exact, dtype) <= 8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exponentials_up_to_overflow(dtype):
    most = math.log(torch.finfo(dtype).max)
    x = torch.tensor([most * 0.999, most + 2, most + 2, -50.0, 2 * most], dtype=dtype)
    y = torch.tensor([0.0, -most, -1e4, -1e4, 2 * most], dtype=dtype)
    found = Exp().difference(x, y)
    exact = [difference(mpmath.exp, *pair) for pair in zip(x.tolist(), y.tolist(), strict=True)]
    assert worst(found[:4], exact[:4], dtype) <= 4
    assert found[4] == torch.inf
    z = torch.tensor([1.0, 5.0, -3.0, -60.0, most], dtype=dtype)
    second = Exp().second_difference(x, y, z)
    triples = zip(x.tolist(), y.tolist(), z.tolist(), strict=True)
    exact = [difference(mpmath.exp, *triple) for triple in triples]
    assert worst(second[:4], exact[:4], dtype) <= 8


@pytest.mark.parametrize("p", [1 / 3, 0.25, 0.999, 1.001, 1.5, 2.5, 3.5, 3, 4])
def test_zeros(p):
    function, f = Power(p), exactly(Power(p))
    x = torch.logspace(-9, 3, 40, dtype=torch.float64)
    y, zero = x.flip(0) * 1.1, torch.zeros_like(x)
    first = [difference(f, v, 0.0) for v in x.tolist()]
    assert worst(function.difference(x, zero), first, torch.float64) <= 4
    assert worst(function.difference(zero, x), first, torch.float64) <= 4
    second = [difference(f, *t, 0.0) for t in zip(x.tolist(), y.tolist(), strict=True)]
    assert worst(function.second_difference(x, zero, y), second, torch.float64) <= 24
    at_zero = float(function.difference(zero, zero)[0])
    assert at_zero == (math.inf if p < 1 else 0)
    if function.bounded_slope:
        twice = [f(mpmath.mpf(v)) / mpmath.mpf(v) ** 2 for v in x.tolist()]
        assert worst(function.second_difference(zero, x, zero), twice, torch.float64) <= 8
    else:
        assert function.second_difference(zero, x, zero)[0] == -math.inf
    if function.bounded_curvature:
        assert not function.second_difference(zero, zero, zero).any()


def test_whole_powers_are_exact():
    x = torch.tensor([-3.0, -0.5, 0.0, 1.5, 7.0], dtype=torch.float64)
    y = torch.tensor([2.0, -0.25, 0.0, 1.5, -7.0], dtype=torch.float64)
    z = x + y
    for p, first, second in (
        (0, torch.zeros_like(x), torch.zeros_like(x)),
        (1, torch.ones_like(x), torch.zeros_like(x)),
        (2, x + y, torch.ones_like(x)),
    ):
        assert torch.equal(Power(p).values(x), x**p)
        assert torch.equal(Power(p).difference(x, y), first)
        assert torch.equal(Power(p).second_difference(x, y, z), second)
    assert torch.equal(Power(-1).values(x), 1 / x)
    # A pair that cancels has the difference 0, not one of rounding.
    assert Power(4).difference(x, y)[4] == 0
    assert Power(3).difference(x, y)[4] == pytest.approx(49, rel=1e-15)


@pytest.mark.parametrize("function", [*ALL, Saturation(), CubeRoot()], ids=repr)
def test_nan_stays_nan_and_alone(function):
    x = torch.tensor([torch.nan, 1.0, 2.0, 3.0], dtype=torch.float64)
    y = torch.tensor([1.0, torch.nan, 1.0, 3.0], dtype=torch.float64)
    z = torch.tensor([1.0, 1.0, torch.nan, 3.0], dtype=torch.float64)
    assert function.values(x).isnan().tolist() == [True, False, False, False]
    assert function.difference(x, y).isnan().tolist() == [True, True, False, False]
    assert function.second_difference(x, y, z).isnan().tolist() == [True, True, True, False]


@pytest.mark.parametrize("function", [*ALL, Saturation(), CubeRoot()], ids=repr)
def test_arguments_broadcast_and_batch(function):
    x = torch.tensor([0.5, 1.0, 1.0, 4.0], dtype=torch.float64)
    table = function.difference(x[:, None], x[None, :])
    assert table.shape == (4, 4)
    assert torch.equal(table, table.T)
    torch.testing.assert_close(table.diagonal(), function.slope(x))
    cube = function.second_difference(x[:, None, None], x[None, :, None], x)
    assert cube.shape == (4, 4, 4)
    mapped = torch.func.vmap(lambda t: function.second_difference(t, x[:, None], x))(x)
    torch.testing.assert_close(mapped, cube, rtol=1e-14, atol=0)


@pytest.mark.parametrize("function", [Exp(), Log(), Power(1 / 3), Power(-2)], ids=repr)
def test_compiles_without_a_break(function):
    x = torch.tensor([0.5, 1.0, 1.0, 4.0])
    torch._dynamo.reset()

    def both(x):
        return function.difference(x, x[:, None]), function.second_difference(x, x[:, None], x)

    found = torch.compile(both, fullgraph=True, backend="eager")(x)
    for left, right in zip(found, both(x), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=0)


def test_a_function_of_ones_own_needs_little():
    x, y, z = points(Saturation(), 3, 300, torch.float64, -3, 3)
    triples = list(zip(x.tolist(), y.tolist(), z.tolist(), strict=True))
    f = exactly(Saturation())
    exact = [difference(f, *triple) for triple in triples]
    # f[x, y] is exact to rounding, and so are its differences, relative to its size.
    sizes = [abs(difference(f, min(t), sorted(t)[1])) / max(t) for t in triples]
    sizes = [max(size, abs(y)) for size, y in zip(sizes, exact, strict=True)]
    found = Saturation().second_difference(x, y, z)
    assert worst(found, exact, torch.float64, sizes) <= 40


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_defaults_from_values_and_slope(dtype):
    f = exactly(CubeRoot())
    x, y, z = points(CubeRoot(), 3, 300, dtype, -3, 3)
    triples = list(zip(x.tolist(), y.tolist(), z.tolist(), strict=True))
    first = [difference(f, *t[:2]) for t in triples]
    assert worst(CubeRoot().difference(x, y), first, dtype) <= 10
    second = [difference(f, *t) for t in triples]
    assert worst(CubeRoot().second_difference(x, y, z), second, dtype) <= 120


@pytest.mark.parametrize("function", [InvSqrt(), Log(), Power(-1 / 3), Power(-1)], ids=repr)
def test_on_range_is_flat_about_zero(function):
    """Against a function that really is f above some c and 0 below it, in exact arithmetic."""
    kept, f = OnRange(function), exactly(function)
    x = torch.tensor([0.3, 1.0, 1.0, 2.5, 0.0, 0.0], dtype=torch.float64)
    index = torch.cartesian_prod(*[torch.arange(6)] * 3)
    a, b, c = x[index].unbind(1)

    def flat(point):
        return f(point) if point > 1e-3 else mpmath.mpf(0)

    triples = list(zip(a.tolist(), b.tolist(), c.tolist(), strict=True))
    first = [difference(flat, *t[:2]) for t in triples]
    second = [difference(flat, *t) for t in triples]
    for found, exact in (
        (kept.difference(a, b), first),
        (kept.second_difference(a, b, c), second),
    ):
        expected = torch.tensor([float(v) for v in exact], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    assert torch.equal(kept.values(x) == 0, (x == 0) | (function.values(x) == 0))
    assert kept.domain in ("semidefinite", "real")
    assert kept.degree == function.degree


@pytest.mark.parametrize("function", ALL, ids=repr)
def test_degree_is_that_of_the_values(function):
    x = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    if function.degree is None:
        assert isinstance(function, Log | Exp)
    else:
        scaled = 4.0**function.degree * function.values(x)
        torch.testing.assert_close(function.values(4 * x), scaled, rtol=1e-14, atol=0)


def test_bounded_slope_and_curvature_say_what_differences_do_at_zero():
    zero = torch.zeros(1, dtype=torch.float64)
    for function in [*ALL, Power(0), Power(1), Power(2), Power(1.5)]:
        if function.domain in ("semidefinite", "real"):
            assert bool(function.difference(zero, zero).isfinite()) == function.bounded_slope
            second = function.second_difference(zero, zero, zero)
            assert bool(second.isfinite()) == function.bounded_curvature
        else:
            assert not function.bounded_slope


def test_domains():
    assert Power(2).domain == Power(0).domain == Exp().domain == "real"
    assert Power(-1).domain == "regular"
    assert Power(0.3).domain == Sqrt().domain == "semidefinite"
    assert Power(-0.3).domain == InvSqrt().domain == Log().domain == "definite"


def test_functions_are_values():
    assert Power(2) == Power(2.0)
    assert hash(Power(2)) == hash(Power(2.0))
    assert Power(-0.0) == Power(0)
    assert math.copysign(1, Power(-0.0).p) == 1
    assert Power(0.5) != Sqrt()
    assert power(0.5) == Sqrt()
    assert power(-0.5) == InvSqrt()
    assert power(0.25) == Power(0.25)
    assert all(issubclass(cls, SpectralFunction) for cls in FUNCTIONS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Power(2).p = 3


@pytest.mark.parametrize("make", [power, Power])
def test_bad_exponents(make):
    for bad in (True, "2", None, 1j, torch.tensor(2.0)):
        with pytest.raises(TypeError, match=f"p must be a real number, got {type(bad).__name__}"):
            make(bad)
    for bad in (math.inf, math.nan, 10**400):
        with pytest.raises(ValueError, match="p must be a finite number, got"):
            make(bad)


def test_nodes_integrate_polynomials():
    for k in range(16):
        total = sum(weight * node**k for node, weight in functions._GAUSS_LEGENDRE)
        assert total == pytest.approx(1 / (k + 1), rel=1e-15)
