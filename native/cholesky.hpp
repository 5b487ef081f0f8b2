// Cholesky factors of symmetric matrices, by blocks of rows.

#pragma once

#include "matrix.hpp"

namespace matroot {
namespace MATROOT_ISA {

constexpr int kPivots = 8;  // rows at a time
template <class K>
constexpr int kPivotVectors = (kPivots + K::lanes - 1) / K::lanes;

// Returns nonzero where the symmetric matrix A has a Cholesky factor R, A = Rᵀ R. From the diagonal
// on, row i of A becomes r_ii times row i of R. `columns` is n · kPivotVectors vectors.
template <class K>
typename K::Number factorises(int n, typename K::Vector* a, typename K::Vector* columns) {
  using T = typename K::Real;
  using N = typename K::Number;
  constexpr int block = kPivots, depth = kPivotVectors<K>;
  constexpr int step = K::lanes == 1 ? kRows : K::lanes;
  const int w = K::width(n);
  N good = N{} + 1;
  for (int p = 0; p < n; p += block) {
    const int m = std::min(block, n - p), next = p + m;
    N inverse[block];
    for (int k = 0; k < m; ++k) {
      const N pivot = K::at(a, w, p + k, p + k);
      good = select(pivot > 0, good, N{});
      inverse[k] = T(1) / select(pivot > 0, pivot, N{} + 1);
      for (int r = k + 1; r < m; ++r) {
        const N factor = K::at(a, w, p + k, p + r) * inverse[k];
        for (int v = p / K::lanes; v < w; ++v)
          a[(p + r) * w + v] -= factor * a[(p + k) * w + v];
      }
    }
    for (int i = next; i < n; ++i)
      for (int k = 0; k < m; ++k)
        K::set(columns, depth, i, k, K::at(a, w, p + k, i) * inverse[k]);
    for (int i = next; i < n; i += step)
      panels(i / K::lanes, w, [&](int v, auto count) {
        typename K::Vector* c = a + i * w + v;
        panel<K, decltype(count)::value>(std::min(step, n - i), c, w, c, w, columns + i * depth,
                                         depth, 0, a + p * w + v, w, m, T(-1));
      });
  }
  return good;
}

// Turns the result of `factorises` into R, in place; meaningless where A has no factor.
template <class K>
void finish_factor(int n, typename K::Vector* a) {
  using T = typename K::Real;
  using V = typename K::Vector;
  using N = typename K::Number;
  const int w = K::width(n);
  for (int i = 0; i < n; ++i) {
    V* row = a + i * w;
    const N pivot = K::at(row, w, 0, i);
    const N inverse = T(1) / root(select(pivot > 0, pivot, N{} + 1));
    const int start = i / K::lanes;
    for (int v = 0; v < start; ++v) row[v] = V{};
    row[start] = K::zero_before(row[start], i - start * K::lanes);
    for (int v = start; v < w; ++v) row[v] *= inverse;
  }
}
}  // namespace MATROOT_ISA
}  // namespace matroot
