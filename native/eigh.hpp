// Functions of matrices by the symmetric eigendecomposition A = U diag(λ) Uᵀ: see methods/eigh.py,
// which defines what is correct.
//
// Householder reflections give A = Q T Qᵀ with T tridiagonal, implicit QL the rotations that make T
// diagonal. What decides the eigenvalues runs in double precision also for float: errors of rounded
// reflections and rotations of Uᵀ, which are made in T, are relative to the norm of the root, whereas
// errors of T would be divided by s_i + s_j.

#pragma once

#include "functions.hpp"
#include "isa.hpp"
#include "matrix.hpp"
#include "ql.hpp"
#include "screen.hpp"
#include "tridiagonal.hpp"

namespace matroot {
namespace MATROOT_ISA {

// Working memory, for one matrix or a matrix a lane.
template <class K>
struct EighMemory {
  using T = typename K::Real;
  using V = typename K::Vector;
  using D = typename K::Double;
  using Wide = typename Convert<T>::Wide;
  static constexpr int together = Simd<T>::lanes;            // matrices in one run of QL
  static constexpr int groups = together / K::matrices;      // of them as many as K holds
  Strips<D> a;
  typename D::Vector* work;
  V *x, *y, *reflections;
  V* spare;  // one matrix more, in double precision
  V* vectors;  // Uᵀ of each group
  Wide *d, *e;
  Rotations<T> rotations[kMost];

  EighMemory(Arena& arena, int n) {
    const int w = K::width(n), dw = D::width(n);
    a = {arena.take<typename D::Vector>(std::size_t(n) * dw), n, dw};
    work = arena.take<typename D::Vector>(4 * dw + n);
    x = arena.take<V>(std::size_t(n) * w);
    y = arena.take<V>(std::size_t(n) * w);
    reflections = arena.take<V>(std::size_t(n + 3) * w);
    spare = arena.take<V>(std::is_same_v<T, double> ? std::size_t(n) * w : 0);
    vectors = arena.take<V>(std::size_t(groups) * n * w);
    d = arena.take<Wide>(n);
    e = arena.take<Wide>(n);
    if (groups == 1) return;
    for (int l = 0; l < together; ++l)
      rotations[l] = {
          arena.take<typename Rotations<T>::Pair>(Rotations<T>::capacity(n)),
          arena.take<typename Rotations<T>::Sweep>(Rotations<T>::capacity(n)), 0, 0};
  }
};

// One run of QL: matrices first … first + count − 1 of a task, in groups of as many as K holds.
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
  const int present = groups == 1 ? 1 : count;  // groups that are there
  const int here = groups == 1 ? count : 1;     // matrices in each
  Status status[kMost] = {};
  int exponent[kMost] = {};
  Wide unsolved{}, up{}, null{};

  const T* given(int group) const { return task.a.as<const T>() + (first + group) * size; }
  V* vectors(int group) const { return m.vectors + group * n * w; }  // Uᵀ

  // Identities for the lanes that stay empty.
  void start() {
    for (int i = 0; i < n; ++i) m.d[i] = Wide{} + 1.0, m.e[i] = Wide{};
  }

  // T of a group to m.d and m.e, Qᵀ to its vectors.
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
    V* reflections = m.reflections + 3 * w;
    std::memset(static_cast<void*>(m.reflections), 0, sizeof(V) * 3 * w);
    if constexpr (groups == 1) {
      tridiagonalise<K>(m.a, m.d, m.e, reflections, m.work);
    } else {
      double *d = reinterpret_cast<double*>(m.x), *e = d + n;  // x is free until Q is formed
      tridiagonalise<K>(m.a, d, e, reflections, m.work);
      for (int i = 0; i < n; ++i) reinterpret_cast<double*>(m.d + i)[group] = d[i];
      for (int i = 0; i < n - 1; ++i) reinterpret_cast<double*>(m.e + i)[group] = e[i];
    }
    form<K>(n, reflections, m.x);
    K::transpose(vectors(group), m.x, n);
  }

  void apply_rotations() {
    for (int l = 0; l < count; ++l) m.rotations[l].apply(n, vectors(l), w, m.y);
  }

  // The eigenvalues of T in the place of d, its eigenvectors' part in Uᵀ.
  void diagonalise() {
    const int capacity = Rotations<T>::capacity(n);
    auto begin = [&](const Wide& start, const Wide& end) {
      if constexpr (groups > 1) {
        for (int k = 0; k < count; ++k)
          if (m.rotations[k].used + n > capacity) {
            apply_rotations();
            break;
          }
        for (int k = 0; k < count; ++k) {
          const int top = int(lane<double>(end, k)), turns = top - int(lane<double>(start, k));
          if (turns > 0) m.rotations[k].sweeps[m.rotations[k].many++] = {top, turns};
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
            m.rotations[k].pairs[m.rotations[k].used++] = {cosine[k], sine[k]};
      }
    };
    // Cutting T where |e| ≤ unit (|d_i| + |d_{i+1}|) moves an eigenvalue by no more than that share
    // of itself: e²/gap where its neighbour is far, |e| where it is near. So float needs no more.
    constexpr double unit = std::is_same_v<T, double> ? 0x1p-53 : 0x1p-34;
    auto failed = implicit_ql(n, m.d, m.e, unit, begin, rotate);
    if constexpr (groups > 1) apply_rotations();
    unsolved = select(failed, Wide{} + 1.0, Wide{});
  }

  // Of double matrices: T and its rotations are no more exact than the results are to be. One step
  // of perturbation theory, v_i + Σ_j v_j R_ij/(λ_i − λ_j) with R = Uᵀ A U, where λ are apart.
  // Leaves A, scaled and symmetric, in m.y.
  void perturb(int group, const N& scale) {
    V *u = vectors(group), *better = m.reflections, *spare = m.spare;
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

  // Rounded rotations leave Uᵀ a little off orthogonal; a Newton step, Uᵀ − ½ (Uᵀ U − I) Uᵀ, is not.
  void orthogonalise(int group, V* spare) {
    V *u = vectors(group), *better = m.reflections;
    K::transpose(m.x, u, n);
    multiply_symmetric<K>(n, spare, u, m.x);
    for (int i = 0; i < n; ++i) K::set(spare, w, i, i, K::at(spare, w, i, i) - T(1));
    multiply<K>(n, n, w, better, u, spare, w, 0, u, T(-0.5));
    std::memcpy(static_cast<void*>(u), better, sizeof(V) * n * w);
  }

  void refine(int group) {
    if constexpr (std::is_same_v<T, double>) {
      N scale{};
      for (int l = 0; l < K::matrices; ++l) put(scale, l, std::ldexp(1.0, -exponent[group + l]));
      perturb(group, scale);
      orthogonalise(group, m.spare);
      // And the eigenvalues as Rayleigh quotients.
      const V *u = vectors(group), *better = m.reflections;
      multiply<K>(n, n, w, m.reflections, nullptr, u, w, 0, m.y);
      for (int i = 0; i < n; ++i) {
        V sum{};
        for (int v = 0; v < w; ++v) sum += better[i * w + v] * u[i * w + v];
        const N value = K::total(sum) + T(task.eps) * scale;
        for (int l = 0; l < here; ++l) put(m.d[i], group + l, lane<double>(value, l));
      }
    } else {
      orthogonalise(group, m.y);
    }
  }

  // The statuses; also 2^(k/2) for a matrix that was scaled by 2^−k, NaN for one not solved, and the
  // size up to which an eigenvalue is null.
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

  // f of eigenvalue i; NaN where there is no result. Of the inverse root, 0 where it is null.
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

  // The numbers of an array of Wide, a matrix a lane, as the caller's.
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

  // U in m.x, and in the caller's memory where that is not null.
  void form_vectors(int group, Pointer to) {
    K::transpose(m.x, vectors(group), n);
    if (to) K::store(to.as<T>() + (first + group) * size, m.x, n, size, here);
  }

  // U diag(f) Uᵀ with f in m.e and U in m.x.
  void assemble(int group, Pointer to) {
    const V* u = vectors(group);
    V *scaled = m.reflections, *product = m.y;
    for (int i = 0; i < n; ++i) {
      const N factor = number(m.e + i, group);
      for (int v = 0; v < w; ++v) scaled[i * w + v] = factor * u[i * w + v];
    }
    multiply_symmetric<K>(n, product, m.x, scaled);
    K::store(to.as<T>() + (first + group) * size, product, n, size, here);
  }
};

template <class K>
static void solve_eigh(const EighTask& task, std::int64_t first, int count, void* memory) {
  const int n = task.batch.n;
  Arena arena{static_cast<char*>(memory)};
  EighMemory<K> m(arena, n);
  EighRun<K> run{.task = task, .first = first, .count = count, .m = m};
  run.start();
  for (int group = 0; group < run.present; ++group) run.reduce(group);
  run.diagonalise();
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
