// Passes over matrices that are too large for the caches of one core. The eigensolver and products
// are a library's; these kernels combine what is done between them into few passes.

#pragma once

#include "isa.hpp"
#include "screen.hpp"

namespace matroot {
namespace MATROOT_ISA {

// Calls f(lower, upper, diagonal) for every pair of entries of a that mirror each other, for one
// row of tiles up to the diagonal and their mirror images. The tiles are copied, changed by f and
// stored in x, because the columns of a large matrix share few sets of a cache.
template <class T, class F>
inline void pairs(int n, const T* a, T* x, int tile_row, F f) {
  constexpr int side = kSide;
  const int top = tile_row * side;
  T lower[side][side], upper[side][side];
  for (int left = 0; left <= top; left += side) {
    const int rows = std::min(side, n - top), columns = std::min(side, n - left);
    const std::int64_t below = std::int64_t(top) * n + left, above = std::int64_t(left) * n + top;
    for (int i = 0; i < rows; ++i) std::copy_n(a + below + std::int64_t(i) * n, columns, lower[i]);
    for (int j = 0; j < columns; ++j) std::copy_n(a + above + std::int64_t(j) * n, rows, upper[j]);
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < (top == left ? i + 1 : columns); ++j)
        f(lower[i][j], upper[j][i], top + i == left + j);
    for (int j = 0; j < columns; ++j) {
      // For the tile on the diagonal, f has changed the lower half in the other copy.
      if (top == left) std::copy_n(lower[j], j, upper[j]);
      std::copy_n(upper[j], rows, x + above + std::int64_t(j) * n);
    }
    for (int i = 0; i < rows && top != left; ++i)
      std::copy_n(lower[i], columns, x + below + std::int64_t(i) * n);
  }
}

// As `normalise`, but for one matrix and stored in T.
template <class T>
static void prepare(const PrepareTask& task, std::int64_t matrix, int, void*) {
  const int n = task.batch.n;
  const double skew = task.thresholds.skew;
  const std::int64_t size = std::int64_t(n) * n;
  const T* a = task.a.as<const T>() + matrix * size;
  T* x = task.x.as<T>() + matrix * size;
  using V = typename Simd<T>::vector;
  constexpr int lanes = Simd<T>::lanes;
  V top[4] = {}, wrong[4] = {};
  by_fours(int(size / lanes), [&](int i, int way) {
    V y;
    std::memcpy(&y, a + std::int64_t(i) * lanes, sizeof(V));
    top[way] = larger(magnitude(y), top[way]), wrong[way] += y - y;
  });
  double largest = Rows<T>::most(larger(larger(top[0], top[1]), larger(top[2], top[3])));
  T nonfinite = Rows<T>::total(wrong[0] + wrong[1] + wrong[2] + wrong[3]);
  for (std::int64_t i = size / lanes * lanes; i < size; ++i)
    largest = std::max<double>(largest, std::abs(a[i])), nonfinite += a[i] - a[i];
  Status status = nonfinite == 0 ? Status::Ok : Status::Nonfinite;
  int k = 0;
  largest = std::max(largest, task.eps);
  if (status == Status::Ok && largest > 0) std::frexp(largest, &k);
  k = std::clamp(k + (k & 1), -1020, 1020);
  const double half = std::ldexp(0.5, -k), ridge = task.eps * std::ldexp(1.0, -k);
  double symmetric = 0, skewed = 0;
  for (int row = 0; row < tile_rows(n); ++row)
    pairs(n, a, x, row, [&](T& lower, T& upper, bool diagonal) {
      // Each half by itself, since the sum may overflow.
      const double b = lower * half, c = upper * half, mean = b + c, off = b - c;
      const double weight = diagonal ? 1 : 2;
      symmetric += weight * mean * mean, skewed += weight * off * off;
      lower = upper = T(diagonal ? mean + ridge : mean);
    });
  if (status == Status::Ok && skewed > skew * skew * (symmetric + skewed)) status = Status::Asymmetric;
  if (status != Status::Ok) {
    k = 0;
    for (std::int64_t i = 0; i < size; ++i) x[i] = T(i % (n + 1) == 0);
  }
  std::int64_t* info = task.info.as<std::int64_t>() + 2 * matrix;
  info[0] = std::int64_t(status), info[1] = k;
}

// X ← (X + Xᵀ)/2, one row of tiles.
template <class T>
static void symmetrise(const SymmetriseTask& task, std::int64_t index, int, void*) {
  const int n = task.batch.n, rows = tile_rows(n);
  T* x = task.x.as<T>() + index / rows * n * n;
  pairs(n, x, x, int(index % rows),
        [](T& lower, T& upper, bool) { lower = upper = lower * T(0.5) + upper * T(0.5); });
}

// R_ij ← (R_ij − Q_ij/(s_i s_j))/(s_i + s_j), 0 on null × null space; Q may be null.
template <class T>
static void divide(const DivideTask& task, std::int64_t matrix, int, void*) {
  const int n = task.batch.n;
  const std::int64_t size = std::int64_t(n) * n;
  T* r = task.r.as<T>() + matrix * size;
  const T *q = task.q ? task.q.as<const T>() + matrix * size : nullptr,
          *s = task.roots.as<const T>() + matrix * n;
  const T null = T(task.null) * *std::max_element(s, s + n);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) {
      T& x = r[std::int64_t(i) * n + j];
      const T over = q ? x - q[std::int64_t(i) * n + j] / (s[i] * s[j]) : x;
      x = s[i] <= null && s[j] <= null ? T(0) : over / (s[i] + s[j]);
    }
}
}  // namespace MATROOT_ISA
}  // namespace matroot
