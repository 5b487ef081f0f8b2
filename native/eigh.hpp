// Functions of matrices by the symmetric eigendecomposition A = U diag(λ) Uᵀ. The reference is
// methods/eigh.py.
//
// Householder reflections give A = Q T Qᵀ with T tridiagonal. Implicit QL gives the rotations that
// make a small T diagonal; a larger one is solved by divide and conquer. The eigenvalues are
// computed in double precision for float matrices, too: errors of T would be divided by s_i + s_j.
// Reflections and eigenvectors of T are applied in the precision of A, since their errors are
// relative to the norm of the root.

#pragma once

#include "conquer.hpp"
#include "functions.hpp"
#include "isa.hpp"
#include "matrix.hpp"
#include "ql.hpp"
#include "screen.hpp"
#include "tridiagonal.hpp"

namespace matroot {
namespace MATROOT_ISA {

// Working memory, for `matrices` in one run: one per lane, or one after the other.
template <class K>
struct EighMemory {
  using T = typename K::Real;
  using V = typename K::Vector;
  using D = typename K::Double;
  using Wide = typename Convert<T>::Wide;
  static constexpr int together = Simd<T>::lanes;        // matrices in one run of QL
  static constexpr int groups = together / K::matrices;  // of K::matrices each
  Strips<D> a;
  typename D::Vector* work;
  V *x, *y, *scratch;
  V* spare;  // one more matrix, for double matrices only
  V* vectors;  // of each group: reflections after three rows of zeros, then Uᵀ
  Wide *d, *e;

  EighMemory(Arena& arena, int n, int matrices = together) {
    const int w = K::width(n), dw = D::width(n);
    a = {arena.take<typename D::Vector>(std::size_t(n) * dw), n, dw};
    work = arena.take<typename D::Vector>(4 * dw + n);
    x = arena.take<V>(std::size_t(n) * w);
    y = arena.take<V>(std::size_t(n) * w);
    scratch = arena.take<V>(std::size_t(n) * w);
    spare = arena.take<V>(std::is_same_v<T, double> ? std::size_t(n) * w : 0);
    vectors = arena.take<V>(std::size_t(matrices) / K::matrices * (n + 3) * w);
    d = arena.take<Wide>(n);
    e = arena.take<Wide>(n);
  }
};

// For one run of QL where matrices are not one per lane: their rotations.
template <class K>
struct Collected {
  using R = Rotations<typename K::Real>;
  R of[kMost];
  Collected() = default;
  Collected(Arena& arena, int n) {
    if (EighMemory<K>::groups == 1) return;
    for (int l = 0; l < EighMemory<K>::together; ++l)
      of[l] = {arena.take<typename R::Pair>(R::capacity(n)),
               arena.take<typename R::Sweep>(R::capacity(n)), 0, 0};
  }
};

// For divide and conquer, which takes one matrix at a time, but the leaves of all of them.
template <class K>
struct Conquest {
  using Matrix = Tridiagonal<typename K::Real>;
  Matrix of[kMost];
  MergeMemory merge;
  Conquest() = default;
  Conquest(Arena& arena, int n, int matrices) : merge(arena, n) {
    for (int l = 0; l < matrices; ++l) of[l] = Matrix(arena, n);
  }
};

// One run of QL: matrices first … first + count − 1 of a task, in groups of K::matrices.
template <class K>
struct EighRun {
  using T = typename K::Real;
  using V = typename K::Vector;
  using D = typename K::Double;
  using N = typename K::Number;
  using Wide = typename Convert<T>::Wide;
  static constexpr int groups = EighMemory<K>::groups;

  const EighTask& task;
  const std::int64_t first;
  const int count, n = task.batch.n, w = K::width(n);
  const std::int64_t size = std::int64_t(n) * n;
  EighMemory<K>& m;
  const int present = groups == 1 ? 1 : count;  // groups in use
  const int here = groups == 1 ? count : 1;     // matrices in each of them
  Status status[kMost] = {};
  int exponent[kMost] = {};
  Wide unsolved{}, up{}, null{};

  const T* given(int group) const { return task.a.as<const T>() + (first + group) * size; }
  V* vectors(int group) const { return m.vectors + group * (n + 3) * w; }

  // Fills all lanes with the identity, since some may stay unused.
  void start() {
    for (int i = 0; i < n; ++i) m.d[i] = Wide{} + 1.0, m.e[i] = Wide{};
  }

  // Sets m.d and m.e to T for a group, and its vectors to the reflections.
  void reduce(int group) {
    auto store = [&](int i, const typename D::Vector* row) {
      for (int v = i / D::lanes / m.a.wide * m.a.wide; v < m.a.w; v += m.a.wide) {
        typename D::Vector* to = m.a.at(i, v);
        for (int c = 0; c < m.a.wide; ++c)
          if (v + c < m.a.w) to[c] = row[v + c];
      }
    };
    normalise<K>(given(group), n, count, task.eps, task.thresholds.skew, m.x, m.y, m.work,
                 status + group, exponent + group, store);
    std::memset(static_cast<void*>(vectors(group)), 0, sizeof(V) * 3 * w);
    V* reflections = vectors(group) + 3 * w;
    if constexpr (groups == 1) {
      tridiagonalise<K>(m.a, m.d, m.e, reflections, m.work);
    } else {
      double *d = reinterpret_cast<double*>(m.x), *e = d + n;
      tridiagonalise<K>(m.a, d, e, reflections, m.work);
      for (int i = 0; i < n; ++i) reinterpret_cast<double*>(m.d + i)[group] = d[i];
      for (int i = 0; i < n - 1; ++i) reinterpret_cast<double*>(m.e + i)[group] = e[i];
    }
  }

  // Replaces a group's reflections by Qᵀ.
  void form(int group) {
    set_identity<K>(n, m.x);
    reflect<K>(n, vectors(group) + 3 * w, m.x, true);
    K::transpose(vectors(group), m.x, n);
  }

  // Replaces d by the eigenvalues of T, and Qᵀ by Uᵀ, by QL.
  void diagonalise(Collected<K>& rotations) {
    const int capacity = Rotations<T>::capacity(n);
    auto apply = [&] {
      for (int l = 0; l < count; ++l) rotations.of[l].apply(n, vectors(l), w, m.y);
    };
    auto begin = [&](const Wide& start, const Wide& end) {
      if constexpr (groups > 1) {
        for (int k = 0; k < count; ++k)
          if (rotations.of[k].used + n > capacity) {
            apply();
            break;
          }
        for (int k = 0; k < count; ++k) {
          const int top = int(lane<double>(end, k)), turns = top - int(lane<double>(start, k));
          if (turns > 0) rotations.of[k].sweeps[rotations.of[k].many++] = {top, turns};
        }
      }
    };
    auto rotate = [&](int i, const Wide& c, const Wide& s, const auto& on) {
      if constexpr (groups == 1) {
        N cosine = Convert<T>::narrow(select(on, c, Wide{} + 1.0));
        N sine = Convert<T>::narrow(select(on, s, Wide{}));
        V *upper = m.vectors + i * n, *lower = upper + n;
        for (int j = 0; j < n; ++j) turn(upper[j], lower[j], cosine, sine);
      } else {
        V cosine = Convert<T>::narrow(c), sine = Convert<T>::narrow(s);
        Wide off = select(on, Wide{}, Wide{} + 1.0);
        for (int k = 0; k < count; ++k)
          if (lane<double>(off, k) == 0)
            rotations.of[k].pairs[rotations.of[k].used++] = {cosine[k], sine[k]};
      }
    };
    auto failed = implicit_ql(n, m.d, m.e, kSplit<T>, begin, rotate);
    if constexpr (groups > 1) apply();
    unsolved = select(failed, Wide{} + 1.0, Wide{});
  }

  // Replaces d by the eigenvalues of T, and the reflections by Uᵀ, by divide and conquer: faster,
  // and as exact relative to the largest eigenvalue. QL often keeps the digits of small ones, too.
  void conquer(Conquest<K>& conquest) {
    for (int k = 0; k < count; ++k) {
      for (int i = 0; i < n; ++i) conquest.of[k].d[i] = lane<double>(m.d[i], k);
      for (int i = 0; i + 1 < n; ++i) conquest.of[k].e[i] = lane<double>(m.e[i], k);
      conquest.of[k].tear(n);
    }
    const int each = leaves(n), all = count * each;
    for (int start = 0; start < all; start += Simd<T>::lanes) {
      auto leaf = [&](int l) {
        const int k = (start + l) / each;
        return Leaf<T>{&conquest.of[k], k, (start + l) % each};
      };
      solve_leaves<T>(n, std::min(all - start, Simd<T>::lanes), leaf, unsolved);
    }
    for (int k = 0; k < count; ++k) {
      Merges<K> merges{conquest.merge, conquest.of[k], n, w, m.scratch, m.x, m.y};
      if (!merges.all()) put(unsolved, k, 1.0);
      K::transpose(m.x, m.scratch, n);
      reflect<K>(n, vectors(k) + 3 * w, m.x, false);
      K::transpose(vectors(k), m.x, n);
      for (int i = 0; i < n; ++i) put(m.d[i], k, conquest.of[k].d[i]);
    }
  }

  // For double matrices, where T and its rotations are no more exact than the results have to be:
  // one step of perturbation theory, v_i + Σ_j v_j R_ij/(λ_i − λ_j) with R = Uᵀ A U, where the
  // eigenvalues are well separated. Leaves A, scaled and made symmetric, in m.y.
  void perturb(int group, const N& scale) {
    V *u = vectors(group), *better = m.scratch, *spare = m.spare;
    K::load(better, given(group), n, size, here);
    K::transpose(spare, better, n);
    for (int i = 0; i < n * w; ++i) m.y[i] = (better[i] * scale + spare[i] * scale) * 0.5;
    K::transpose(m.x, u, n);
    multiply<K>(n, n, w, better, nullptr, u, w, 0, m.y);
    multiply_symmetric<K>(n, spare, better, m.x);
    N* values = reinterpret_cast<N*>(m.work);
    for (int i = 0; i < w * K::lanes; ++i) {
      if constexpr (groups == 1) values[i] = m.d[i];
      else values[i] = i < n ? lane<double>(m.d[i], group) : 0;
    }
    const V* columns = reinterpret_cast<const V*>(values);
    for (int i = 0; i < n; ++i)
      for (int v = 0; v < w; ++v) {
        const V gap = values[i] - columns[v], r = spare[i * w + v];
        const auto apart = magnitude(r) < 1e-4 * magnitude(gap);
        spare[i * w + v] = select(apart, r / select(apart, gap, V{} + 1.0), V{});
      }
    multiply<K>(n, n, w, better, u, spare, w, 0, u);
    std::memcpy(static_cast<void*>(u), better, sizeof(V) * n * w);
  }

  // The rounding of U leaves it not quite orthogonal; the Newton step
  // Uᵀ − ½ (Uᵀ U − I) Uᵀ corrects that. It leaves matrices alone where `wanted` is 0. Returns the
  // largest entry of Uᵀ U − I.
  N orthogonalise(int group, V* spare, const N& wanted) {
    V *u = vectors(group), *better = m.scratch;
    K::transpose(m.x, u, n);
    multiply_symmetric<K>(n, spare, u, m.x);
    // Terms of one sign, whose sum one after the other would be off by some n units.
    for (int i = 0; i < n; ++i) {
      V sums[4] = {};
      by_fours(w, [&](int v, int k) { sums[k] += u[i * w + v] * u[i * w + v]; });
      K::set(spare, w, i, i, K::total((sums[0] + sums[1]) + (sums[2] + sums[3])) - T(1));
    }
    V most{};
    for (int i = 0; i < n * w; ++i) {
      spare[i] = spare[i] * wanted;
      most = larger(magnitude(spare[i]), most);
    }
    multiply<K>(n, n, w, better, u, spare, w, 0, u, T(-0.5));
    std::memcpy(static_cast<void*>(u), better, sizeof(V) * n * w);
    return K::most(most);
  }

  void refine(int group) {
    if constexpr (std::is_same_v<T, double>) {
      N scale{};
      for (int l = 0; l < K::matrices; ++l) put(scale, l, std::ldexp(1.0, -exponent[group + l]));
      perturb(group, scale);
      const N one = N{} + 1, off = orthogonalise(group, m.spare, one);
      // Steps of perturbation theory between close eigenvalues can be large enough for a second.
      const N again = select(off > T(1e-8), one, N{});
      if (any(again > T(0))) orthogonalise(group, m.spare, again);
      // The eigenvalues again, as Rayleigh quotients.
      const V *u = vectors(group), *better = m.scratch;
      multiply<K>(n, n, w, m.scratch, nullptr, u, w, 0, m.y);
      for (int i = 0; i < n; ++i) {
        V sum{};
        for (int v = 0; v < w; ++v) sum += better[i * w + v] * u[i * w + v];
        const N value = K::total(sum) + T(task.eps) * scale;
        for (int l = 0; l < here; ++l) put(m.d[i], group + l, lane<double>(value, l));
      }
    } else {
      orthogonalise(group, m.y, N{} + 1);
    }
  }

  // Sets the statuses; `up`, which is 2^(k/2) for a matrix that was scaled by 2^−k and NaN for one
  // that was not solved; and `null`, the size up to which an eigenvalue counts as null.
  void judge() {
    Wide low = m.d[0], high = m.d[0], most = magnitude(m.d[0]), least = most;
    for (int i = 1; i < n; ++i) {
      const Wide size = magnitude(m.d[i]);
      low = smaller(low, m.d[i]), high = larger(high, m.d[i]);
      least = smaller(least, size), most = larger(most, size);
    }
    const Thresholds thresholds = task.thresholds;
    null = thresholds.null * most;
    for (int l = 0; l < count; ++l) {
      const double lowest = lane<double>(low, l), highest = std::max(lane<double>(high, l), 0.0);
      const bool singular = thresholds.is_real()
                                ? lane<double>(least, l) <= thresholds.singular * lane<double>(most, l)
                                : lowest <= thresholds.singular * highest;
      if (status[l] == Status::Ok) {
        if (lane<double>(unsolved, l) > 0) status[l] = Status::Left;
        else if (!thresholds.is_real() && lowest < -thresholds.indefinite * highest)
          status[l] = Status::Indefinite;
        else if (thresholds.singular >= 0 && singular) status[l] = Status::Singular;
      }
      const bool ok = status[l] == Status::Ok;
      put(up, l, ok ? std::ldexp(1.0, exponent[l] / 2) : kNaN);
      task.info.as<Info>()[first + l] = {std::int64_t(status[l]), 1, ok};
    }
  }

  // f at eigenvalue i; NaN where there is no result. Where the eigenvalue is null, functions
  // without a value at 0, like the inverse root, are 0.
  Wide value_at(const Function& f, int i) const {
    const Wide d = m.d[i], zero{}, one = zero + 1.0;
    if (f.kind == Kind::Sqrt || f.kind == Kind::InvSqrt) {
      const Wide positive = larger(d, zero);
      const Wide s = task.of_root ? positive * up * up : MATROOT_ISA::root(positive) * up;
      if (f.kind == Kind::Sqrt) return s;
      const auto there = d > null;
      return select(there, 1.0 / select(there, s, one), up - up);
    }
    const Wide nothing = up - up, x = d * up * up;
    if (!is_singular_at_zero(f)) return value(f, x) + nothing;
    const auto there = (task.thresholds.is_real() ? magnitude(d) : d) > null;
    return select(there, value(f, select(there, x, one)), zero) + nothing;
  }

  // Stores the numbers f(i), one matrix per lane, in the caller's memory.
  template <class To, class F>
  void put_numbers(Pointer to, F f) const {
    if (!to) return;
    for (int i = 0; i < n; ++i) {
      const Wide x = f(i);
      for (int l = 0; l < count; ++l) to.as<To>()[(first + l) * n + i] = To(lane<double>(x, l));
    }
  }

  N number(const Wide* x, int group) const {
    if constexpr (groups == 1) return Convert<T>::narrow(*x);
    else return T(reinterpret_cast<const double*>(x)[group]);
  }

  // Forms U in m.x, and stores it in the caller's memory unless that is null.
  void form_vectors(int group, Pointer to) {
    K::transpose(m.x, vectors(group), n);
    if (to) K::store(to.as<T>() + (first + group) * size, m.x, n, size, here);
  }

  // Stores U diag(f) Uᵀ, where m.e holds f and m.x holds U.
  void assemble(int group, Pointer to) {
    const V* u = vectors(group);
    V *scaled = m.scratch, *product = m.y;
    for (int i = 0; i < n; ++i) {
      const N factor = number(m.e + i, group);
      for (int v = 0; v < w; ++v) scaled[i * w + v] = factor * u[i * w + v];
    }
    multiply_symmetric<K>(n, product, m.x, scaled);
    K::store(to.as<T>() + (first + group) * size, product, n, size, here);
  }
};

// Up to this size QL is faster where its lanes are full, and slower where they are not. (64: one
// matrix 2.3 times as fast by divide and conquer, 16 of them 0.8 times.)
constexpr int kQlUpTo = 48;

template <class K>
struct EighSolver {
  EighMemory<K> m;
  Collected<K> rotations;
  Conquest<K> conquest;
  // In one run: as many as have leaves for all lanes, or each a lane of QL.
  static int matrices(int n) {
    constexpr int together = EighMemory<K>::together;
    return n <= kQlUpTo ? together : std::max(together / leaves(n), 1);
  }
  EighSolver(Arena& arena, int n) : m(arena, n, matrices(n)) {
    if (n <= kQlUpTo) rotations = Collected<K>(arena, n);
    else conquest = Conquest<K>(arena, n, matrices(n));
  }
};

template <class K>
static void solve_eigh(const EighTask& task, std::int64_t first, int count, void* memory) {
  const int n = task.batch.n;
  Arena arena{static_cast<char*>(memory)};
  EighSolver<K> solver(arena, n);
  EighMemory<K>& m = solver.m;
  EighRun<K> run{.task = task, .first = first, .count = count, .m = m};
  run.start();
  for (int group = 0; group < run.present; ++group) run.reduce(group);
  if (n <= kQlUpTo) {
    for (int group = 0; group < run.present; ++group) run.form(group);
    run.diagonalise(solver.rotations);
  } else if constexpr (EighMemory<K>::groups > 1) {
    run.conquer(solver.conquest);
  }
  for (int group = 0; group < run.present; ++group) run.refine(group);
  run.judge();
  run.template put_numbers<typename K::Real>(
      task.roots, [&](int i) { return run.value_at({Kind::Sqrt}, i); });
  run.template put_numbers<double>(task.values, [&](int i) { return m.d[i] * run.up * run.up; });
  Pointer unwritten = task.vectors;
  for (const Output& output : task.outputs) {
    for (int i = 0; i < n; ++i) m.e[i] = run.value_at(output.function, i);
    for (int group = 0; group < run.present; ++group) {
      run.form_vectors(group, unwritten);
      run.assemble(group, output.x);
    }
    unwritten = {};
  }
  for (int group = 0; unwritten && group < run.present; ++group)
    run.form_vectors(group, unwritten);
}
}  // namespace MATROOT_ISA
}  // namespace matroot
