// The Bures–Wasserstein distance of A and B and its gradients, for matrices in single precision,
// computed in double precision. The reference is transport.py, which also computes the pairs that
// are left here because they may be singular.
//
// With the Cholesky factorisation B = L Lᵀ and the eigendecomposition Lᵀ A L = V Σ² Vᵀ, let T = L V
// and F = A T Σ⁻¹. Then T Tᵀ = B, F Fᵀ = A and Fᵀ T = Σ, so that
//   d² = ‖T − F‖_F²,  gradients I − M and I − M⁻¹ with M = T Σ⁻¹ Tᵀ and M⁻¹ = F Σ⁻¹ Fᵀ.
// Squaring Σ costs half the digits of its small entries. Double precision has enough of them where
// the eigenvalues of A and B are at least some units of single precision times the largest.

#pragma once

#include "cholesky.hpp"
#include "eigh.hpp"
#include "isa.hpp"
#include "matrix.hpp"
#include "screen.hpp"

namespace matroot {
namespace MATROOT_ISA {

template <class K>
struct DistanceMemory {
  using V = typename K::Vector;
  static constexpr int groups = EighMemory<K>::groups;
  EighMemory<K> eigh;
  Collected<K> rotations;
  V *a, *r;      // A and R = Lᵀ of each group
  V* columns;    // for the Cholesky factor
  double* wide;  // matrices in the caller's layout: A, B, Lᵀ A L, gradients
  typename K::Number* inverse;  // 1/σ
  DistanceMemory(Arena& arena, int n) : eigh(arena, n), rotations(arena, n) {
    const std::size_t size = std::size_t(n) * K::width(n);
    a = arena.take<V>(groups * size), r = arena.take<V>(groups * size);
    columns = arena.take<V>(std::size_t(n) * kPivotVectors<K>);
    inverse = arena.take<typename K::Number>(n);
    wide = arena.take<double>(std::size_t(eigh.together) * n * n);
  }
};

// Pairs first … first + count − 1 of a task, in groups of K::matrices.
template <class K>
struct DistanceRun {
  using V = typename K::Vector;
  using N = typename K::Number;
  static constexpr int groups = DistanceMemory<K>::groups;

  const DistanceTask& task;
  const std::int64_t first;
  const int count, n = task.batch.n, w = K::width(n);
  const std::int64_t size = std::int64_t(n) * n;
  DistanceMemory<K>& m;
  EighRun<K>& eigh;
  Status status_a[kMost] = {}, status_b[kMost] = {};
  int exponent_a[kMost] = {}, exponent_b[kMost] = {};
  N regular[kMost] = {}, same[kMost] = {};  // for each group: whether A and B are; whether A = B

  V* a(int group) const { return m.a + group * n * w; }
  V* r(int group) const { return m.r + group * n * w; }

  // Room for the matrices of a group in double precision and in the caller's layout.
  double* wide(int group) const { return m.wide + group * size; }

  void load(Pointer from, int group, V* to, Status* status, int* exponent) const {
    std::copy_n(from.as<const float>() + (first + group) * size, eigh.here * size, wide(group));
    normalise<K>(wide(group), n, count, task.eps, task.thresholds.skew, m.eigh.x, m.eigh.y,
                 m.eigh.work, status + group, exponent + group,
                 [&](int i, const V* row) { std::copy_n(row, w, to + i * w); });
  }

  // Σ f(i) over all vectors and their columns.
  template <class F>
  N total(F f) const {
    V sums[4] = {};
    by_fours(n * w, [&](int i, int k) { sums[k] += f(i); });
    return K::total(sums[0] + sums[1] + sums[2] + sums[3]);
  }

  // Whether the scaled matrix X is certainly regular: its least eigenvalue is above null · ‖X‖_F.
  N is_regular(const V* x) {
    V* shifted = m.eigh.x;
    std::copy_n(x, n * w, shifted);
    const N shift = task.thresholds.null * root(total([&](int i) { return x[i] * x[i]; }));
    for (int i = 0; i < n; ++i) K::set(shifted, w, i, i, K::at(x, w, i, i) - shift);
    return factorises<K>(n, shifted, m.columns);
  }

  // Computes Lᵀ A L for a group and reduces it to tridiagonal form.
  void cross(int group) {
    V *x = a(group), *y = r(group), *lower = m.eigh.x, *product = m.eigh.y;
    load(task.a, group, x, status_a, exponent_a);
    load(task.b, group, y, status_b, exponent_b);
    const N apart = total([&](int i) { return magnitude(x[i] - y[i]); });
    same[group] = each(group, [&](int l, int within) {
      return lane<double>(apart, within) == 0 && exponent_a[l] == exponent_b[l];
    });
    regular[group] = is_regular(x) * is_regular(y);
    factorises<K>(n, y, m.columns);
    finish_factor<K>(n, y);
    K::transpose(lower, y, n);
    multiply<K>(n, n, w, product, nullptr, x, w, 0, lower);
    multiply_symmetric<K>(n, lower, y, product);
    K::store(wide(group), lower, n, size, eigh.here);
    eigh.reduce(group);
    eigh.form(group);
  }

  // Reverses the order of rows and columns of T. Like L, both Lᵀ A L and T are graded from large to
  // small, but QL keeps the digits of small eigenvalues where these come first.
  void reverse() {
    std::reverse(m.eigh.d, m.eigh.d + n);
    std::reverse(m.eigh.e, m.eigh.e + n - 1);
    for (int group = 0; group < eigh.present; ++group)
      for (int i = 0; i < n / 2; ++i) {
        V* row = eigh.vectors(group) + i * w;
        std::swap_ranges(row, row + w, eigh.vectors(group) + (n - 1 - i) * w);
      }
  }

  // A number for each matrix of a group: f(index in the pack, index in the group).
  template <class F>
  N each(int group, F f) const {
    N x{};
    for (int l = 0; l < K::matrices; ++l) put(x, l, double(f(group + l, l)));
    return x;
  }

  // Sets m.inverse to 1/σ for a group; returns whether all σ were found.
  N invert_sigma(int group) {
    const N unit =
        each(group, [&](int l, int) { return std::ldexp(1.0, -eigh.exponent[l] / 2); });
    N found = each(group, [&](int l, int) {
      return eigh.status[l] == Status::Ok && lane<double>(eigh.unsolved, l) == 0;
    });
    for (int i = 0; i < n; ++i) {
      const N square = eigh.number(m.eigh.d + i, group);
      const auto positive = square > 0.0;
      m.inverse[i] = unit / root(select(positive, square, N{} + 1.0));
      found = select(positive, found, N{});
    }
    return found;
  }

  // d² and the gradients for a group; d² is NaN where the pair is left to transport.py.
  void finish(int group) {
    V *t = m.eigh.x, *f = m.eigh.y;  // Tᵀ and Fᵀ
    const N solved = invert_sigma(group) * regular[group] * each(group, [&](int l, int) {
      return status_a[l] == Status::Ok && status_b[l] == Status::Ok;
    });
    multiply<K>(n, n, w, t, nullptr, eigh.vectors(group), w, 0, r(group));
    multiply<K>(n, n, w, f, nullptr, t, w, 0, a(group));
    const N up_a = each(group, [&](int l, int) { return std::ldexp(1.0, exponent_a[l] / 2); });
    const N up_b = each(group, [&](int l, int) { return std::ldexp(1.0, exponent_b[l] / 2); });
    for (int i = 0; i < n; ++i)
      for (int v = i * w; v < (i + 1) * w; ++v) f[v] *= m.inverse[i];
    const N apart = total([&](int i) {
      const V rest = t[i] * up_b - f[i] * up_a;
      return rest * rest;
    });
    N square = select(same[group] > 0.0, N{}, apart);
    square = select(solved > 0.0, square, N{} + kNaN);
    for (int l = 0; l < eigh.here; ++l)
      task.square.as<double>()[first + group + l] = lane<double>(square, l);
    store_gradient(task.by_a, group, t, up_b / up_a);
    store_gradient(task.by_b, group, f, up_a / up_b);
  }

  // Stores I − scale · X Σ⁻¹ Xᵀ, given Xᵀ; 0 where A = B.
  void store_gradient(Pointer to, int group, const V* x, const N& scale) {
    if (!to) return;
    V *columns = m.eigh.scratch, *weighed = m.eigh.spare, *product = eigh.vectors(group);
    K::transpose(columns, x, n);
    for (int i = 0; i < n; ++i) {
      const N factor = -(scale * m.inverse[i]);
      for (int v = i * w; v < (i + 1) * w; ++v) weighed[v] = factor * x[v];
    }
    multiply_symmetric<K>(n, product, columns, weighed);
    for (int i = 0; i < n; ++i)
      K::set(product, w, i, i, 1.0 + K::at(product, w, i, i));
    const auto is_same = same[group] > 0.0;
    for (int i = 0; i < n * w; ++i) product[i] = select(is_same, V{}, product[i]);
    K::store(wide(group), product, n, size, eigh.here);
    std::copy_n(wide(group), eigh.here * size, to.as<float>() + (first + group) * size);
  }
};

template <class K>
static void solve_distance(const DistanceTask& task, std::int64_t first, int count, void* memory) {
  const int n = task.batch.n;
  Arena arena{static_cast<char*>(memory)};
  DistanceMemory<K> m(arena, n);
  EighTask crossed;
  crossed.batch = {true, count, n, 1}, crossed.a = {std::uintptr_t(m.wide)};
  EighRun<K> eigh{.task = crossed, .first = 0, .count = count, .m = m.eigh};
  DistanceRun<K> run{.task = task, .first = first, .count = count, .m = m, .eigh = eigh};
  eigh.start();
  for (int group = 0; group < eigh.present; ++group) run.cross(group);
  run.reverse();
  eigh.diagonalise(m.rotations);
  for (int group = 0; group < eigh.present; ++group) run.finish(group);
}
}  // namespace MATROOT_ISA
}  // namespace matroot
