// Roots by the published polynomials in Z = I − A/‖A‖_F. The references are methods/taylor.py and
// methods/pade.py. All factors are functions of one symmetric matrix, so that every product is
// symmetric and costs half.

#pragma once

#include "cholesky.hpp"
#include "isa.hpp"
#include "screen.hpp"
#include "solver.hpp"

namespace matroot {
namespace MATROOT_ISA {

// The number of powers that makes Paterson and Stockmeyer's scheme cheapest for two polynomials
// (see methods/polynomial.py), at most kPowers, for which there is memory. It is the same for a
// single polynomial, so that the bits of a root do not depend on whether both are computed.
constexpr int kPowers = 5;
inline int block_size(int degree) {
  auto products = [&](int s) { return s - 1 + 2 * ((degree + s - 1) / s - 1); };
  int best = 1;
  for (int s = 2; s <= std::min(degree, kPowers); ++s)
    if (products(s) < products(best)) best = s;
  return best;
}

template <class K>
static void solve_published(const PublishedTask& task, std::int64_t first, int count,
                            void* memory) {
  using T = typename K::Real;
  using V = typename K::Vector;
  using N = typename K::Number;
  using DV = typename K::Double::Vector;
  const int n = task.batch.n, w = K::width(n);
  const std::int64_t size = std::int64_t(n) * n, offset = first * size;
  const Solver<K> s{n, w, static_cast<V*>(memory)};
  V* power[kPowers + 1];  // power[k] is Z^k, k ≥ 1
  for (int k = 1; k <= kPowers; ++k) power[k] = s.matrix(k - 1);
  V *p = s.matrix(kPowers), *q = s.matrix(kPowers + 1), *spare = s.matrix(kPowers + 2);
  static_assert(kPowers + 3 <= Solver<K>::kMatrices);

  V* z = power[1];
  Status status[kMost] = {};
  int exponent[kMost] = {};
  normalise<K>(task.a.as<const T>() + offset, n, count, task.eps, task.thresholds.skew, p, q,
               reinterpret_cast<DV*>(power[2]), status, exponent,
               [&](int i, const DV* row) { K::narrow_row(z + i * w, row, n); });
  std::memcpy(static_cast<void*>(spare), z, sizeof(V) * n * w);
  s.add_diagonal(spare, T(task.shift) * s.upper_bound(z));
  const N definite = factorises<K>(n, spare, p);
  const N trace = s.trace(z), norm = root(s.square_norm(z));
  const N divisor = select(norm > 0, norm, N{} + 1);
  s.map(z, [&](int i) { return -(z[i] / divisor); });
  s.add_diagonal(z, N{} + 1);

  const int degree = task.degree, block = block_size(degree);
  for (int k = 2; k <= block; ++k)
    multiply_symmetric<K>(n, power[k], power[k / 2], power[k - k / 2]);
  // A block of the scheme: Σ c_{start + k} Z^k, up to c_last.
  auto part = [&](V* to, const double* c, int start, int last) {
    const T linear = T(c[start + 1]);
    s.map(to, [&](int i) { return linear * z[i]; });
    for (int k = 2; start + k <= last; ++k) {
      const T factor = T(c[start + k]);
      const V* x = power[k];
      s.map(to, [&](int i) { return to[i] + factor * x[i]; });
    }
    s.add_diagonal(to, N{} + T(c[start]));
  };
  auto evaluate = [&](V*& result, const double* c) {
    int start = (degree - 1) / block * block;
    part(result, c, start, degree);
    while ((start -= block) >= 0) {
      if (block > 1) {
        part(spare, c, start, start + block - 1);
      } else {
        std::memset(static_cast<void*>(spare), 0, sizeof(V) * n * w);
        s.add_diagonal(spare, N{} + T(c[start]));
      }
      multiply_symmetric<K>(n, spare, result, power[block], spare);
      std::swap(spare, result);
    }
  };
  if (task.sqrt || task.quotient) evaluate(p, task.coefficients.as<const double>());
  if (task.inv_sqrt || task.quotient) evaluate(q, task.coefficients.as<const double>() + degree + 1);

  N scale{}, inverse{};
  for (int l = 0; l < K::matrices; ++l) {
    if (status[l] == Status::Ok && !(lane<T>(definite, l) > 0 && lane<T>(trace, l) > 0))
      status[l] = Status::Left;  // perhaps indefinite
    const T size = std::sqrt(lane<T>(norm, l)), unit = std::ldexp(T(1), exponent[l] / 2);
    const bool good = status[l] == Status::Ok;
    put(scale, l, good ? size * unit : std::numeric_limits<T>::quiet_NaN());
    put(inverse, l, good ? T(1) / size / unit : std::numeric_limits<T>::quiet_NaN());
    if (l >= count) continue;
    task.info.as<Info>()[first + l] = {std::int64_t(status[l]), degree, good ? 2 : 0};
    if (task.norms) task.norms.as<T>()[first + l] = lane<T>(scale, l);
  }
  auto store = [&](Pointer to, V* x, const N& factor) {
    s.map(x, [&](int i) { return factor * x[i]; });
    K::store(to.as<T>() + offset, x, n, size, count);
  };
  if (!task.quotient) {
    if (task.sqrt) store(task.sqrt, p, scale);
    if (task.inv_sqrt) store(task.inv_sqrt, q, inverse);
    return;
  }
  // P and Q are positive definite. An inverse by sweeping may be ten times less accurate than a
  // Cholesky solve, so the quotient is refined once. The memory of the powers is free by now.
  auto divided = [&](const V* numerator, const V* denominator) {
    V *inverse = power[1], *x = power[2], *refined = power[3];
    std::memcpy(static_cast<void*>(inverse), denominator, sizeof(V) * n * w);
    s.invert(inverse);
    multiply_symmetric<K>(n, x, inverse, numerator);
    multiply<K>(n, n, w, spare, numerator, denominator, w, 0, x, T(-1));
    multiply_symmetric<K>(n, refined, inverse, spare, x);
    return refined;
  };
  if (task.sqrt) store(task.sqrt, divided(p, q), scale);
  if (task.inv_sqrt) store(task.inv_sqrt, divided(q, p), inverse);
}
}  // namespace MATROOT_ISA
}  // namespace matroot
