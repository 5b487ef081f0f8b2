// What is measured of matrices and their roots, in double precision. The reference is residuals.py.

#pragma once

#include "cholesky.hpp"
#include "isa.hpp"
#include "screen.hpp"
#include "solver.hpp"

namespace matroot {
namespace MATROOT_ISA {

template <class K>
struct MeasureMemory {
  using V = typename K::Vector;
  V *solver, *columns;
  double* wide;  // matrices in the caller's layout
  MeasureMemory(Arena& arena, int n)
      : solver(arena.take<V>(Solver<K>::vectors(n))),
        columns(arena.take<V>(std::size_t(n) * kPivotVectors<K>)),
        wide(arena.take<double>(std::size_t(K::matrices) * n * n)) {}
};

// K is of double precision, T that of the caller's matrices.
template <class K, class T>
struct MeasureRun {
  using V = typename K::Vector;
  using N = typename K::Number;

  const MeasureTask& task;
  const std::int64_t first;
  const int count;
  const MeasureMemory<K> m;
  const int n = task.batch.n, w = K::width(n);
  const std::int64_t size = std::int64_t(n) * n;
  const Solver<K> s{n, w, m.solver};
  V *a = s.matrix(0), *x = s.matrix(1), *product = s.matrix(2), *p = s.matrix(3),
    *copy = s.matrix(4);
  Status status[kMost] = {};
  int exponent[kMost] = {};

  const double* widened(Pointer from) const {
    std::copy_n(from.as<const T>() + first * size, count * size, m.wide);
    return m.wide;
  }
  // X in units of the scaled matrix.
  void load(Pointer from, int sign) const {
    K::load(x, widened(from), n, size, count);
    N scale{};
    for (int l = 0; l < K::matrices; ++l) put(scale, l, std::ldexp(1.0, sign * exponent[l] / 2));
    s.map(x, [&](int i) { return x[i] * scale; });
  }
  void store(int which, const N& number) const {
    for (int l = 0; l < count; ++l)
      task.numbers.as<double>()[(first + l) * kMeasures + which] =
          status[l] == Status::Ok ? lane<double>(number, l) : kNaN;
  }
  N norm(const V* matrix) const { return root(s.square_norm(matrix)); }

  void run() {
    // Two rows are more than a matrix where n = 1; those after `copy` are not in use.
    normalise<K>(widened(task.a), n, count, task.eps, 1.0, x, p, copy, status, exponent,
                 [&](int i, const V* row) { std::copy_n(row, w, a + i * w); });
    store(0, norm(a));
    store(1, s.trace(a));
    if (task.sqrt) of_sqrt();
    if (task.inv_sqrt) of_inv_sqrt();
  }
  void of_sqrt() const {
    load(task.sqrt, -1);
    s.multiply(p, x, x);
    s.map(p, [&](int i) { return p[i] - a[i]; });
    const N size = norm(x);
    store(2, size);
    store(3, norm(p));
    std::copy_n(x, n * w, copy);
    const N found = s.invert(copy), inverse = s.upper_bound(copy);
    const auto proposed = (found > 0.0) & (inverse < std::numeric_limits<double>::max());
    with_inverse(select(proposed, N{} + 1.0, N{}));
    // The inverse proposes a bound of the least eigenvalue, and a factorisation proves it.
    const N least = select(proposed, 0.9 / inverse, N{});
    const N proved = is_above(least);
    if (all_of(proved)) return store(4, least);
    const N below = -task.shift * size, semidefinite = is_above(below);
    store(4, select(proved > 0.0, least, select(semidefinite > 0.0, below, N{} + kNaN)));
  }
  // Of S⁻¹ and R = S² − A, in `copy` and `p`.
  void with_inverse(const N& regular) const {
    const N infinite = N{} + std::numeric_limits<double>::infinity();
    s.multiply(product, copy, p);
    N square{};
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) square += K::at(product, w, i, j) * K::at(product, w, j, i);
    store(5, select(regular > 0.0, norm(product), infinite));
    store(6, select(regular > 0.0, square, infinite));
    s.multiply(p, product, copy);
    store(7, select(regular > 0.0, norm(p), infinite));
  }
  // Nonzero where X − bound · I has a Cholesky factor.
  N is_above(const N& bound) const {
    std::copy_n(x, n * w, copy);
    s.add_diagonal(copy, -bound);
    return factorises<K>(n, copy, m.columns);
  }
  bool all_of(const N& flags) const {
    for (int l = 0; l < count; ++l)
      if (lane<double>(flags, l) == 0) return false;
    return true;
  }
  void of_inv_sqrt() const {
    load(task.inv_sqrt, 1);
    store(8, norm(x));
    store(9, s.upper_bound(x));
    s.multiply(product, x, a);
    store(10, norm(product));
    s.multiply(p, product, x);
    s.add_diagonal(p, s.number(-1));
    store(11, norm(p));
    std::copy_n(x, n * w, copy);
    store(12, select(factorises<K>(n, copy, m.columns) > 0.0, N{} + 1.0, N{} + kNaN));
  }
};

template <class K, class T>
static void solve_measure(const MeasureTask& task, std::int64_t first, int count, void* memory) {
  Arena arena{static_cast<char*>(memory)};
  MeasureRun<K, T>{task, first, count, MeasureMemory<K>(arena, task.batch.n)}.run();
}
}  // namespace MATROOT_ISA
}  // namespace matroot
