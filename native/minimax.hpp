// The coupled minimax iteration. The reference is methods/minimax.py.

#pragma once

#include "cholesky.hpp"
#include "isa.hpp"
#include "screen.hpp"
#include "solver.hpp"

namespace matroot {
namespace MATROOT_ISA {

template <class K>
static void solve_minimax(const MinimaxTask& task, std::int64_t first, int count, void* memory) {
  using T = typename K::Real;
  using V = typename K::Vector;
  using N = typename K::Number;
  const int n = task.batch.n, w = K::width(n), many = K::matrices;
  Solver<K> s{n, w, static_cast<V*>(memory)};
  double* doubles = reinterpret_cast<double*>(s.memory + Solver<K>::vectors(n));
  V *a = s.matrix(0), *y = s.matrix(1), *z = s.matrix(2), *p = s.matrix(3), *d = s.matrix(4),
    *t = s.matrix(5), *u = s.matrix(6);
  const std::int64_t size = std::int64_t(n) * n;
  Status status[kMost] = {};
  int exponent[kMost] = {};
  // Four vectors for n = 1, where a matrix is one: y, z, p and d, which are not in use yet.
  auto* two_rows = reinterpret_cast<typename K::Double::Vector*>(y);
  normalise<K>(task.a.as<const T>() + first * size, n, count, task.eps, task.thresholds.skew, t, u,
               two_rows, status, exponent, [&](int i, const typename K::Double::Vector* row) {
                 K::narrow_row(a + i * w, row, n);
               });

  // Bounds of the spectrum.
  s.multiply(t, a, a);
  N high = smaller(s.upper_bound(a), root(s.upper_bound(t)));
  high = high > 0 ? high : s.number(1);
  std::memcpy(u, a, sizeof(V) * n * w);
  N definite = s.invert(u);
  N most = s.upper_bound(u), least = s.largest_at_least(u);
  const T huge = std::numeric_limits<T>::max();
  auto found = (definite > 0) & (most <= huge) & (least <= huge) & (least > 0);
  N low = found ? T(1) / most : s.number(0), low_at_most = found ? T(1) / least : s.number(0);
  // The inverse of a matrix that is nearly singular may look like that of a regular one: its blocks
  // of pivots are inverted, which loses more than the elimination that has the last word.
  const N margin = (2 * T(task.thresholds.null) + T(n) / 8 * eps<T>()) * high;
  std::memcpy(u, a, sizeof(V) * n * w);
  s.add_diagonal(u, -margin);
  const N regular = factorises<K>(n, u, s.memory + Solver<K>::kMatrices * n * w);
  N design = larger(low, 4 * eps<T>() * high);
  N at_least = s.largest_at_least(a);

  // The number of steps for each matrix.
  const T* rows[16];
  int needed[16], wanted[16], longest = 1, shortest = task.table_steps;
  for (int l = 0; l < many; ++l) {
    T ratio = lane<T>(high, l) / lane<T>(design, l);
    ratio = std::min(std::max(ratio, T(1)), T(std::ldexp(1.0, task.octaves)));
    auto row = static_cast<std::int64_t>(std::ceil(std::log2(ratio) * task.octave));
    rows[l] = task.table.as<const T>() + row * task.table_steps * 4;
    wanted[l] = 1;
    for (int i = 0; i < task.table_steps; ++i) wanted[l] += rows[l][4 * i + 3] > T(task.tol);
    int limit = task.max_steps ? std::min(task.max_steps, task.table_steps) : task.table_steps;
    needed[l] = std::min(wanted[l], limit);
    longest = std::max(longest, needed[l]), shortest = std::min(shortest, needed[l]);
  }
  auto coefficient = [&](int step, int which) {
    N x = s.number(0);
    for (int l = 0; l < many; ++l)
      put(x, l, rows[l][4 * std::min(step, needed[l] - 1) + which]);
    return x;
  };

  N h0 = coefficient(0, 0), h1 = coefficient(0, 1) / high, h2 = coefficient(0, 2) / (high * high);
  s.map(z, [&](int i) { return h1 * a[i] + h2 * t[i]; });
  s.add_diagonal(z, h0);
  s.multiply_in_double(y, a, z, doubles);
  for (int step = 1; step < longest; ++step) {
    h0 = coefficient(step, 0), h1 = coefficient(step, 1) / high;
    h2 = coefficient(step, 2) / (high * high);
    s.multiply(p, z, y);
    s.map(t, [&](int i) { return h2 * p[i]; });
    s.add_diagonal(t, h1);
    s.multiply(d, p, t);
    s.add_diagonal(d, h0 - 1);
    bool last = step == longest - 1;
    auto freeze = [&](V* next, const V* now) {
      if constexpr (K::matrices > 1) {
        if (step < shortest) return;
        N active = s.number(0);
        for (int l = 0; l < many; ++l) active[l] = needed[l] > step;
        for (int i = 0; i < n * w; ++i) next[i] = active > 0 ? next[i] : now[i];
      }
    };
    if (!last || task.inv_sqrt) {
      s.multiply(t, d, z, z);
      freeze(t, z);
      std::swap(t, z);
    }
    if (!last || task.sqrt || task.inv_sqrt) {
      s.multiply(t, y, d, y);
      freeze(t, y);
      std::swap(t, y);
    }
  }

  // Stores the symmetric parts: the roots are symmetric but for rounding.
  N scale = T(1) / root(high);
  const T null = T(task.thresholds.null);
  for (int l = 0; l < count; ++l) {
    // Singular to rounding, or indefinite: left to the reference, which distinguishes them.
    if (status[l] == Status::Ok &&
        !(lane<T>(regular, l) > 0 && lane<T>(low_at_most, l) > null * lane<T>(at_least, l)))
      status[l] = Status::Left;
    std::int64_t m = first + l;
    bool good = status[l] == Status::Ok;
    task.info.as<Info>()[m] = {std::int64_t(status[l]), needed[l], good && needed[l] == wanted[l]};
    const int half = exponent[l] / 2;
    if (task.bounds) {
      T* out = task.bounds.as<T>() + 2 * m;
      bool singular = lane<T>(low_at_most, l) <= 2 * null * lane<T>(at_least, l);
      T unit = good ? std::ldexp(T(1), half) : std::numeric_limits<T>::quiet_NaN();
      out[0] = singular ? 0 * unit : std::sqrt(lane<T>(low, l)) * unit;
      out[1] = std::sqrt(lane<T>(high, l)) * unit;
    }
    auto store = [&](Pointer to, const V* x, T factor) {
      if (!to) return;
      T* out = to.as<T>() + m * size;
      if (!good) factor = std::numeric_limits<T>::quiet_NaN();
      s.store_symmetric(out, x, l, factor);
    };
    store(task.sqrt, y, lane<T>(scale, l) * std::ldexp(T(1), half));
    store(task.inv_sqrt, z, lane<T>(scale, l) * std::ldexp(T(1), -half));
  }
}
}  // namespace MATROOT_ISA
}  // namespace matroot
