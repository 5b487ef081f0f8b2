// Logarithm, exponential and power of vectors of doubles, within about an ulp on the whole range.
//
// log x = e ln 2 + 2 artanh s with x = 2^e m, √½ < m ≤ √2 and s = (m − 1)/(m + 1): the leading
// terms in pairs of doubles (Dekker, Numer. Math. 18, 1971), the others by Taylor's series. exp x:
// Cody and Waite's reduction (Software Manual for the Elementary Functions, 1980), then Taylor's
// series. x^p = exp(p log x) needs the pairs, since a relative error of log x is multiplied by
// p log x, which may be 745.

#pragma once

#include "simd.hpp"

namespace matroot {
namespace MATROOT_ISA {

using Doubles = typename Simd<double>::vector;
typedef std::int64_t Integers __attribute__((vector_size(MATROOT_BYTES)));
typedef std::uint64_t Naturals __attribute__((vector_size(MATROOT_BYTES)));

template <class To, class From>
inline To bits_of(const From& x) {
  To y;
  static_assert(sizeof(To) == sizeof(From));
  std::memcpy(&y, &x, sizeof(To));
  return y;
}

// An unevaluated sum; `high` is the rounded sum.
template <class V>
struct Pair {
  V high, low;
};

// x + y exactly.
inline Pair<Doubles> exact_sum(const Doubles& x, const Doubles& y) {
  const Doubles sum = x + y, late = sum - x;
  return {sum, (x - (sum - late)) + (y - late)};
}

// x y exactly, if neither overflows nor underflows.
inline Pair<Doubles> exact_product(const Doubles& x, const Doubles& y) {
  const Doubles product = x * y;
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  Doubles rest;
  for (int l = 0; l < Simd<double>::lanes; ++l) rest[l] = __builtin_fma(x[l], y[l], -product[l]);
  return {product, rest};
#else
  const Integers upper = Integers{} - (std::int64_t(1) << 27);  // 26 bits of the significand
  const Doubles a = bits_of<Doubles>(bits_of<Integers>(x) & upper), b = x - a;
  const Doubles c = bits_of<Doubles>(bits_of<Integers>(y) & upper), d = y - c;
  return {product, ((a * c - product) + a * d + b * c) + b * d};
#endif
}

// Σ c_k x^k.
template <class V, std::size_t many>
inline V horner(const double (&c)[many], const V& x) {
  V sum = V{} + c[many - 1];
  for (int k = int(many) - 2; k >= 0; --k) sum = sum * x + c[k];
  return sum;
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// ln 2 in two parts, the first of 42 bits, so that its multiples by exponents are exact.
constexpr double kLn2High = 0x1.62e42fefa38p-1, kLn2Low = 0x1.ef35793c7673p-45;

// Added to an integer, it leaves the integer in the low bits.
constexpr double kShift = 0x1.8p52;

// log x as a pair whose relative error is about 2^−65.
inline Pair<Doubles> log_pair(const Doubles& given) {
  const Doubles one = Doubles{} + 1.0;
  const auto tiny = given < 0x1p-1022;
  const Doubles x = select(tiny, given * 0x1p54, given);
  const Naturals bits = bits_of<Naturals>(x);
  const Naturals field = (bits >> 52) | 0x4330000000000000u;  // 2^52 + the exponent's field
  Doubles e = bits_of<Doubles>(field) - (0x1p52 + 1023) - select(tiny, one * 54.0, Doubles{});
  Doubles m = bits_of<Doubles>((bits & 0xfffffffffffffu) | 0x3ff0000000000000u);
  const auto above = m > 0x1.6a09e667f3bcdp0;
  m = select(above, m * 0.5, m), e = select(above, e + 1.0, e);

  const Doubles f = m - 1.0, d = f + 2.0, d_rest = f - (d - 2.0), inverse = 1.0 / d;
  const Doubles s = f * inverse;
  const Pair<Doubles> back = exact_product(s, d);
  const Doubles s_rest = ((f - back.high) - back.low - s * d_rest) * inverse;

  const Pair<Doubles> square = exact_product(s, s);
  const Doubles square_rest = square.low + 2.0 * s * s_rest;
  const Pair<Doubles> cube = exact_product(s, square.high);
  const Doubles cube_rest = cube.low + s * square_rest + s_rest * square.high;
  constexpr double third = 0x1.5555555555555p-1, third_rest = 0x1.5555555555555p-55;  // 2/3
  const Pair<Doubles> term = exact_product(cube.high, Doubles{} + third);
  const Doubles term_rest = term.low + third * cube_rest + third_rest * cube.high;
  constexpr double series[] = {2. / 5,  2. / 7,  2. / 9,  2. / 11, 2. / 13, 2. / 15,
                               2. / 17, 2. / 19, 2. / 21, 2. / 23, 2. / 25};
  const Doubles tail = horner(series, square.high) * (cube.high * square.high);

  const Pair<Doubles> whole = exact_sum(e * kLn2High, 2.0 * s), sum = exact_sum(whole.high, term.high);
  const Doubles rest = whole.low + sum.low + (term_rest + (2.0 * s_rest + (e * kLn2Low + tail)));
  Doubles high = sum.high + rest, low = rest - (high - sum.high);
  const auto positive = given > 0.0, finite = given < kInfinity;
  const Doubles special =
      select(positive, given, select(given == 0.0, one * -kInfinity, one * kNaN));
  return {select(positive & finite, high, special), select(positive & finite, low, Doubles{})};
}

// 2^k for integers −1022 ≤ k ≤ 1023.
inline Doubles power_of_two(const Doubles& k) {
  return bits_of<Doubles>(bits_of<Naturals>(k + (kShift + 1023)) << 52);
}

// exp(high + low), |low| below an ulp of high.
inline Doubles exp_pair(const Doubles& high, const Doubles& low) {
  const Doubles x = smaller(larger(high, Doubles{} - 746.0), Doubles{} + 710.0);
  const Doubles k = (x * 0x1.71547652b82fep0 + kShift) - kShift;
  const Doubles early = x - k * kLn2High, late = low - k * kLn2Low;
  const Doubles r = early + late, rest = late - (r - early);
  constexpr double series[] = {1. / 2,        1. / 6,         1. / 24,         1. / 120,
                               1. / 720,      1. / 5040,      1. / 40320,      1. / 362880,
                               1. / 3628800,  1. / 39916800,  1. / 479001600,  1. / 6227020800};
  // exp(r + rest) = exp r + rest (1 + r) to rounding.
  const Doubles y = 1.0 + (r + (horner(series, r) * (r * r) + rest * (1.0 + r)));
  // In two factors, since 2^k alone may be out of range.
  const Doubles half = (k * 0.5 + kShift) - kShift;
  return select(high == high, y * power_of_two(half) * power_of_two(k - half), high);
}

inline Doubles logarithm(const Doubles& x) { return log_pair(x).high; }
inline Doubles exponential(const Doubles& x) { return exp_pair(x, Doubles{}); }

// x^(p + rest) = exp((p + rest) log x) for x ≥ 0, rest below an ulp of p.
inline Doubles power(const Pair<Doubles>& log, double p, double rest = 0) {
  if (p == 0) return Doubles{} + 1.0;
  const Pair<Doubles> product = exact_product(log.high, Doubles{} + p);
  const auto finite = magnitude(product.high) < kInfinity;
  return exp_pair(product.high, select(finite, product.low + (p * log.low + rest * log.high), Doubles{}));
}

template <class V>
inline Pair<Twice<V>> log_pair(const Twice<V>& x) {
  const Pair<V> a = log_pair(x.a), b = log_pair(x.b);
  return {{a.high, b.high}, {a.low, b.low}};
}
template <class V>
inline Twice<V> logarithm(const Twice<V>& x) { return {logarithm(x.a), logarithm(x.b)}; }
template <class V>
inline Twice<V> exponential(const Twice<V>& x) { return {exponential(x.a), exponential(x.b)}; }
template <class V>
inline Twice<V> power(const Pair<Twice<V>>& log, double p, double rest = 0) {
  return {power(Pair<V>{log.high.a, log.low.a}, p, rest),
          power(Pair<V>{log.high.b, log.low.b}, p, rest)};
}
}  // namespace MATROOT_ISA
}  // namespace matroot
