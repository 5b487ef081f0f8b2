// Derivatives of functions of matrices by divided differences at the eigenvalues.

#pragma once

#include "functions.hpp"
#include "matrix.hpp"

namespace matroot {
namespace MATROOT_ISA {

// Divided differences of functions at the eigenvalues of one matrix, or of one matrix per lane.
template <class K>
struct Differences {
  using T = typename K::Real;
  using Number = typename K::Double::Number;
  using Wide = typename Convert<T>::Wide;
  static constexpr int many = sizeof(Wide) / sizeof(double);
  Wide* values;
  Points<Wide>* points;
  int n, w;
  bool is_real;
  Wide null{};  // the size up to which an eigenvalue counts as null

  Differences(Arena& arena, int n) : n(n), w(K::width(n)) {
    values = arena.take<Wide>(w);
    points = arena.take<Points<Wide>>(w);
  }

  // Loads eigenvalues (count, n). Lanes beyond the batch repeat the last matrix, columns beyond n
  // the last eigenvalue.
  void load(const double* from, int count, const Thresholds& thresholds) {
    constexpr bool lanes = K::matrices > 1;
    double most[many] = {};
    for (int v = 0; v < w; ++v)
      for (int l = 0; l < many; ++l) {
        const int matrix = lanes ? std::min(l, count - 1) : 0;
        const int i = lanes ? v : std::min(v * K::lanes + l, n - 1);
        const double x = from[std::int64_t(matrix) * n + i];
        put(values[v], l, x);
        double& so_far = most[lanes ? l : 0];
        so_far = std::max(so_far, std::abs(x));
      }
    for (int l = 0; l < many; ++l) put(null, l, thresholds.null * most[lanes ? l : 0]);
    is_real = thresholds.is_real();
  }

  // Calls use(i, v, f[λ_i, λ_j]), rounded to T, for the columns j of each vector v: all of them, or
  // those from the diagonal on.
  template <class Use>
  void visit(const Function& given, bool upper, Use use) {
    const Function f = as_power(given);
    for (int v = 0; v < w; ++v) {
      const Wide x = values[v], size = is_real ? magnitude(x) : x;
      points[v] = points_of(f, x, size <= null);
    }
    auto all = [&](auto difference) {
      for (int i = 0; i < n; ++i) {
        const Points<Number> x = point(i);
        for (int v = upper ? i / K::lanes : 0; v < w; ++v)
          use(i, v, Convert<T>::narrow(difference(x, points[v])));
      }
    };
    using Row = Points<Number>;
    using Columns = Points<Wide>;
    if (f.kind == Kind::Exp)
      all([](const Row& x, const Columns& y) { return difference_of_exponentials(x, y); });
    else if (f.kind == Kind::Log)
      all([](const Row& x, const Columns& y) { return difference_of_logarithms(x, y); });
    else
      all([&](const Row& x, const Columns& y) { return difference_of_powers(f.exponent, x, y); });
  }

 private:
  Points<Number> point(int i) const {
    if constexpr (K::matrices > 1) {
      return points[i];
    } else {
      const Points<Wide>& p = points[i / K::lanes];
      auto at = [&](const Wide& x) { return lane<double>(x, i % K::lanes); };
      return {at(p.x), at(p.f), at(p.half), at(p.half_rest), at(p.slope), at(p.root), at(p.null)};
    }
  }
};

template <class K>
struct FrechetMemory {
  using V = typename K::Vector;
  V *u, *vt, *g, *t, *r;
  Differences<K> differences;
  FrechetMemory(Arena& arena, int n) : differences(arena, n) {
    const std::size_t size = std::size_t(n) * K::width(n);
    u = arena.take<V>(size), vt = arena.take<V>(size), g = arena.take<V>(size);
    t = arena.take<V>(size), r = arena.take<V>(size);
  }
};

// X = Σ_f U [f[λ_i, λ_j] (Uᵀ herm(G_f) U)_ij] Uᵀ
template <class K>
static void solve_frechet(const FrechetTask& task, std::int64_t first, int count, void* memory) {
  using T = typename K::Real;
  using V = typename K::Vector;
  const int n = task.batch.n, w = K::width(n);
  const std::int64_t size = std::int64_t(n) * n, offset = first * size;
  Arena arena{static_cast<char*>(memory)};
  FrechetMemory<K> m(arena, n);
  m.differences.load(task.values.as<const double>() + first * n, count, task.thresholds);
  K::load(m.u, task.vectors.as<const T>() + offset, n, size, count);
  K::transpose(m.vt, m.u, n);
  std::memset(static_cast<void*>(m.r), 0, sizeof(V) * n * w);
  for (const Cotangent& cotangent : task.cotangents) {
    K::load(m.g, cotangent.g.as<const T>() + offset, n, size, count);
    K::transpose(m.t, m.g, n);
    for (int i = 0; i < n * w; ++i) m.g[i] = m.g[i] * T(0.5) + m.t[i] * T(0.5);
    multiply<K>(n, n, w, m.t, nullptr, m.vt, w, 0, m.g);
    multiply_symmetric<K>(n, m.g, m.t, m.u);
    m.differences.visit(cotangent.function, true, [&](int i, int v, const V& difference) {
      m.r[i * w + v] += m.g[i * w + v] * difference;
    });
  }
  K::mirror(m.r, n);
  multiply<K>(n, n, w, m.t, nullptr, m.u, w, 0, m.r);
  multiply_symmetric<K>(n, m.g, m.t, m.vt);
  K::store(task.x.as<T>() + offset, m.g, n, size, count);
}

// R_ij ← f[λ_i, λ_j] R_ij for a matrix that is too large for the kernel above.
template <class T>
static void weigh(const WeighTask& task, std::int64_t matrix, int, void* memory) {
  using V = typename Simd<T>::vector;
  constexpr int lanes = Simd<T>::lanes;
  const int n = task.batch.n;
  T* r = task.r.as<T>() + matrix * n * n;
  Arena arena{static_cast<char*>(memory)};
  Differences<Rows<T>> differences(arena, n);
  differences.load(task.values.as<const double>() + matrix * n, 1, task.thresholds);
  differences.visit(task.function, false, [&](int i, int v, const V& difference) {
    T* entries = r + std::int64_t(i) * n + v * lanes;
    const std::size_t bytes = sizeof(T) * std::min(lanes, n - v * lanes);
    V x{};
    std::memcpy(&x, entries, bytes);
    x *= difference;
    std::memcpy(entries, &x, bytes);
  });
}
}  // namespace MATROOT_ISA
}  // namespace matroot
