// Derivatives of functions of matrices by divided differences of their eigenvalues.

#pragma once

#include "functions.hpp"
#include "matrix.hpp"

namespace matroot {
namespace MATROOT_ISA {

template <class K>
struct FrechetMemory {
  using V = typename K::Vector;
  using Wide = typename Convert<typename K::Real>::Wide;
  V *u, *vt, *g, *t, *r;
  Wide* values;
  Points<Wide>* points;
  FrechetMemory(Arena& arena, int n) {
    const std::size_t size = std::size_t(n) * K::width(n);
    u = arena.take<V>(size), vt = arena.take<V>(size), g = arena.take<V>(size);
    t = arena.take<V>(size), r = arena.take<V>(size);
    values = arena.take<Wide>(K::width(n));
    points = arena.take<Points<Wide>>(K::width(n));
  }
};

template <class K>
struct FrechetRun {
  using T = typename K::Real;
  using V = typename K::Vector;
  using DN = typename K::Double::Number;
  using Wide = typename Convert<T>::Wide;

  const FrechetTask& task;
  const std::int64_t first;
  const int count, n = task.batch.n, w = K::width(n);
  const std::int64_t size = std::int64_t(n) * n;
  FrechetMemory<K>& m;
  Wide null{};  // the size up to which an eigenvalue is null

  // Eigenvalue i: a vector of matrices, or a number.
  static DN at(const Wide& of, int i) {
    if constexpr (K::matrices > 1) return of;
    else return lane<double>(of, i % K::lanes);
  }
  static Points<DN> at(const Points<Wide>& p, int i) {
    return {at(p.x, i),     at(p.f, i),    at(p.half, i), at(p.half_rest, i),
            at(p.slope, i), at(p.root, i), at(p.null, i)};
  }

  void load() {
    K::load(m.u, task.vectors.as<const T>() + first * size, n, size, count);
    K::transpose(m.vt, m.u, n);
    double most[kMost] = {};
    for (int v = 0; v < w; ++v)
      for (int l = 0; l < int(sizeof(Wide) / sizeof(double)); ++l) {
        // Lanes beyond the batch and columns beyond n repeat the last that is there.
        const int matrix = K::matrices > 1 ? std::min(l, count - 1) : 0;
        const int i = K::matrices > 1 ? v : std::min(v * K::lanes + l, n - 1);
        const double x = task.values.as<const double>()[(first + matrix) * n + i];
        put(m.values[v], l, x);
        double& so_far = most[K::matrices > 1 ? l : 0];
        so_far = std::max(so_far, std::abs(x));
      }
    for (int l = 0; l < int(sizeof(Wide) / sizeof(double)); ++l)
      put(null, l, task.thresholds.null * most[K::matrices > 1 ? l : 0]);
  }

  // m.g = Uᵀ herm(G) U
  void rotate(Pointer g) {
    K::load(m.g, g.as<const T>() + first * size, n, size, count);
    K::transpose(m.t, m.g, n);
    for (int i = 0; i < n * w; ++i) m.g[i] = m.g[i] * T(0.5) + m.t[i] * T(0.5);
    multiply<K>(n, n, w, m.t, nullptr, m.vt, w, 0, m.g);
    multiply_symmetric<K>(n, m.g, m.t, m.u);
  }

  // m.r += m.g times divided differences, in the upper triangle.
  template <class F>
  void weigh(F difference) {
    for (int i = 0; i < n; ++i) {
      const Points<DN> x = at(m.points[i / K::lanes], i);
      for (int v = i / K::lanes; v < w; ++v)
        m.r[i * w + v] += m.g[i * w + v] * Convert<T>::narrow(difference(x, m.points[v]));
    }
  }

  void add(const Cotangent& cotangent) {
    const Function f = as_power(cotangent.function);
    for (int v = 0; v < w; ++v) {
      const Wide x = m.values[v], size = task.thresholds.is_real() ? magnitude(x) : x;
      m.points[v] = points_of(f, x, size <= null);
    }
    rotate(cotangent.g);
    using P = Points<Wide>;
    using PN = Points<DN>;
    switch (f.kind) {
      case Kind::Exp:
        weigh([](const PN& x, const P& y) { return difference_of_exponentials(x, y); });
        break;
      case Kind::Log:
        weigh([](const PN& x, const P& y) { return difference_of_logarithms(x, y); });
        break;
      default:
        weigh([p = f.exponent](const PN& x, const P& y) { return difference_of_powers(p, x, y); });
    }
  }
};

template <class K>
static void solve_frechet(const FrechetTask& task, std::int64_t first, int count, void* memory) {
  const int n = task.batch.n, w = K::width(n);
  Arena arena{static_cast<char*>(memory)};
  FrechetMemory<K> m(arena, n);
  FrechetRun<K> run{.task = task, .first = first, .count = count, .m = m};
  run.load();
  std::memset(static_cast<void*>(m.r), 0, sizeof(*m.r) * n * w);
  for (const Cotangent& cotangent : task.cotangents) run.add(cotangent);
  K::mirror(m.r, n);
  multiply<K>(n, n, w, m.t, nullptr, m.u, w, 0, m.r);
  multiply_symmetric<K>(n, m.g, m.t, m.vt);
  K::store(task.x.as<typename K::Real>() + first * run.size, m.g, n, run.size, count);
}
}  // namespace MATROOT_ISA
}  // namespace matroot
