// Functions of eigenvalues, and their divided differences f[x, y] = (f(x) − f(y))/(x − y), by which
// derivatives of functions of symmetric matrices are made (Daleckii and Krein; Higham, Functions of
// Matrices, 3.2). In double precision, vectors V of it.

#pragma once

#include "elementary.hpp"
#include "isa.hpp"

namespace matroot {
namespace MATROOT_ISA {

inline bool is_integer(double p) { return p == std::trunc(p); }
inline bool is_odd(double p) { return is_integer(p) && std::fmod(p, 2) != 0; }

// Roots are powers; their own kernels are for their own bits.
inline Function as_power(const Function& f) {
  if (f.kind == Kind::Sqrt) return {Kind::Power, 0.5};
  if (f.kind == Kind::InvSqrt) return {Kind::Power, -0.5};
  return f;
}
// Whether f(0) does not exist, so that a pseudo-inverse function is 0 there.
inline bool is_singular_at_zero(const Function& f) {
  return f.kind == Kind::Log || (f.kind == Kind::Power && f.exponent < 0);
}
// Whether f'(0) does not: the derivative is then taken for 0 on null × null space.
inline bool is_steep_at_zero(const Function& f) {
  return is_singular_at_zero(f) ||
         (f.kind == Kind::Power && f.exponent < 1 && !is_integer(f.exponent));
}

// Whether it takes eigenvalues of any sign. For others those below 0 are 0.
inline bool takes_any_sign(const Function& f) {
  return f.kind == Kind::Exp || (f.kind == Kind::Power && is_integer(f.exponent));
}

// An eigenvalue that is not positive is zero to rounding, unless the exponent is an integer.
template <class V>
inline V value(const Function& f, const V& x) {
  if (f.kind == Kind::Log) return logarithm(x);
  if (f.kind == Kind::Exp) return exponential(x);
  if (!is_integer(f.exponent)) return power(log_pair(select(x < 0.0, V{}, x)), f.exponent);
  const V size = power(log_pair(magnitude(x)), f.exponent);
  return is_odd(f.exponent) ? select(x < 0.0, -size, size) : size;
}

// sinh(z)/z for |z| ≤ ½, by Taylor's series in z².
template <class V>
inline V sinh_ratio(const V& z) {
  constexpr double series[] = {1,           1. / 6,        1. / 120,       1. / 5040,
                               1. / 362880, 1. / 39916800, 1. / 6227020800};
  return horner(series, z * z);
}

// What divided differences need of each eigenvalue.
template <class V>
struct Points {
  V x, f;                // both 0 for a null eigenvalue that f leaves out
  V half, half_rest;     // ½ log |x| as a pair
  V slope;               // |x|^½(p − 1) with the sign of x (p = 0 for the logarithm); e^½x
  V root;                // |f|^½ with the sign of f, of powers
  V null;                // 1 where f' does not exist, else 0
};

// The points of eigenvalues x, null where `null` says so.
template <class V, class M>
inline Points<V> points_of(const Function& f, const V& given, const M& null) {
  const V zero{}, one = zero + 1.0;
  Points<V> to{};
  if (f.kind == Kind::Exp) {
    to.x = given, to.f = exponential(given), to.slope = exponential(given * 0.5);
    return to;
  }
  const bool left_out = is_singular_at_zero(f), is_log = f.kind == Kind::Log;
  const double p = is_log ? 0 : f.exponent;
  const V positive = takes_any_sign(f) ? given : select(given < 0.0, zero, given);
  const V x = is_steep_at_zero(f) && !takes_any_sign(f) ? select(null, zero, positive) : positive;
  const auto negative = x < 0.0;
  const auto log = log_pair(magnitude(x));
  const double less = p - 1;  // and what its rounding leaves
  const double rest = std::abs(p) < 1 ? p - (less + 1) : -1 - (less - p);
  const V size = power(log, p), root = power(log, p * 0.5);
  const V slope = power(log, less * 0.5, rest * 0.5);
  to.x = x, to.f = is_log ? log.high : size, to.root = root;
  if (is_odd(p)) to.f = select(negative, -size, size), to.root = select(negative, -root, root);
  to.slope = select(negative, -slope, slope);
  to.half = log.high * 0.5, to.half_rest = log.low * 0.5;
  if (is_steep_at_zero(f)) to.null = select(null, one, zero);
  if (left_out) {
    to.x = select(null, zero, to.x), to.f = select(null, zero, to.f);
    to.slope = select(null, zero, to.slope);
    // Not near anything; the logarithm's own difference is then that of f.
    to.half = select(null, is_log ? zero : one * -kInfinity, to.half);
    to.half_rest = select(null, zero, to.half_rest);
  }
  return to;
}

// f[x, y] for one x, of type N, and a vector of y. Where they are far apart, differences of numbers
// are exact enough. Near each other, with h = ½ log |x/y| and s(z) = sinh(z)/z,
//   x − y = 2h √(x y) s(h)   and   x^p − y^p = 2h p √(x y)^p s(p h),
// where neither difference cancels, and of which 2h is left out where one is divided by the other.
template <class V, class N>
inline V difference_of_powers(double p, const Points<N>& x, const Points<V>& y) {
  const V h = (x.half - y.half) + (x.half_rest - y.half_rest), u = p * h;
  const V dx = x.x - y.x, slopes = x.slope * y.slope, roots = x.root * y.root;
  const auto near_f = magnitude(u) <= 0.5;
  const auto near = near_f & (magnitude(h) <= 0.5) & (slopes > 0.0);
  const V ratio = p * sinh_ratio(u);
  // Signs of x^(p − 1) and x^p, the same for y where these terms are taken.
  const double even = is_integer(p) && !is_odd(p) ? -1 : 1;
  const N sign = select(x.x < 0.0, N{} + even, N{} + 1.0);
  const N sign_f = select(x.f < 0.0, N{} - 1.0, N{} + 1.0);
  const V df = select(near_f & (roots > 0.0), sign_f * roots * ratio * (h + h), x.f - y.f);
  const V found = select(near, sign * slopes * ratio, df) / select(near, sinh_ratio(h), dx);
  // Two zeros have f'(0), which is 0 or, for p = 1, 1. It is 0 between null eigenvectors.
  const V at_zero = V{} + double(p == 1);
  const V zero_or_found = select(near, found, select(dx == 0.0, at_zero, found));
  return select(x.null + y.null > 1.5, V{}, zero_or_found);
}
template <class V, class N>
inline V difference_of_logarithms(const Points<N>& x, const Points<V>& y) {
  const V h = (x.half - y.half) + (x.half_rest - y.half_rest);
  const V dx = x.x - y.x, slopes = x.slope * y.slope;
  const auto near = (magnitude(h) <= 0.5) & (slopes > 0.0);
  const V found = select(near, slopes, h + h) / select(near, sinh_ratio(h), dx);
  return select(x.null + y.null > 1.5, V{}, found);
}
template <class V, class N>
inline V difference_of_exponentials(const Points<N>& x, const Points<V>& y) {
  const V dx = x.x - y.x;
  const auto near = magnitude(dx) <= 1.0;
  const V one = V{} + 1.0;
  return select(near, x.slope * y.slope * sinh_ratio(dx * 0.5), x.f - y.f) / select(near, one, dx);
}
}  // namespace MATROOT_ISA
}  // namespace matroot
