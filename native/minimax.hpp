// The coupled minimax iteration: see methods/minimax.py, which defines what is correct.

#pragma once

#include <type_traits>

#include "eigh.hpp"

namespace matroot {
namespace MATROOT_ISA {

template <class T>
constexpr T eps() { return std::numeric_limits<T>::epsilon(); }

template <class K>
struct Solver {
  using T = typename K::Real;
  using V = typename K::Vector;
  using N = typename K::Number;
  static constexpr int many = K::matrices;

  int n, w;        // rows, and vectors in a row
  V* memory;       // kMatrices matrices of n × w vectors, then room for the sweep
  static constexpr int kMatrices = 8;
  static size_t vectors(int n) {
    return size_t(kMatrices) * n * K::width(n) + size_t(kBlock) * (K::width(n) + n);
  }
  static constexpr int kBlock = 8;

  V* matrix(int i) const { return memory + size_t(i) * n * w; }
  static N number(T x) { return N{} + x; }

  void multiply(V* c, const V* a, const V* b, const V* from = nullptr) const {
    MATROOT_ISA::multiply<K>(n, n, w, c, from, a, w, 0, b);
  }
  template <class F>
  void map(V* out, F f) const {  // out = f(index) for every vector
    for (int i = 0; i < n * w; ++i) out[i] = f(i);
  }
  void add_diagonal(V* a, N d) const {
    for (int i = 0; i < n; ++i) K::set(a, w, i, i, K::at(a, w, i, i) + d);
  }
  N trace(const V* a) const {
    N sum = number(0);
    for (int i = 0; i < n; ++i) sum += K::at(a, w, i, i);
    return sum;
  }
  N square_norm(const V* a) const {
    V sum{}, other{};
    int i = 0;
    for (; i + 2 <= n * w; i += 2) sum += a[i] * a[i], other += a[i + 1] * a[i + 1];
    if (i < n * w) sum += a[i] * a[i];
    return K::total(sum + other);
  }
  N row_norm(const V* a) const {  // ‖A‖_∞
    N most = number(0);
    for (int i = 0; i < n; ++i) {
      V sum{};
      for (int v = 0; v < w; ++v) sum += magnitude(a[i * w + v]);
      most = larger(most, K::total(sum));
    }
    return most;
  }
  N upper_bound(const V* a) const {  // see spd.upper_bound
    N square = square_norm(a), mean = trace(a) / T(n);
    N spread = larger(square / T(n) - mean * mean, number(0)) * T(n - 1);
    N bound = smaller(smaller(root(square), row_norm(a)), mean + root(spread));
    return bound * (1 + (8 + n) * eps<T>());
  }
  N largest_at_least(const V* a) const {
    N sum = trace(a), safe = sum > 0 ? sum : number(1);
    return sum > 0 ? square_norm(a) / safe : number(0);
  }
  // The symmetric part of one of the matrices, times a factor.
  void store_symmetric(T* out, const V* a, int l, T factor) const {
    for (int i = 0; i < n; ++i)
      for (int j = 0; j <= i; ++j) {
        T mean = (lane<T>(K::at(a, w, i, j), l) + lane<T>(K::at(a, w, j, i), l)) * T(0.5);
        out[i * n + j] = out[j * n + i] = mean * factor;
      }
  }

  // A becomes A⁻¹ by sweeping blocks of pivots; whether all of them were positive. Where one is not
  // it is taken for 1, and the result means nothing.
  N invert(V* a) const {
    V* strip = memory + size_t(kMatrices) * n * w;  // kBlock rows of A
    V* columns = strip + kBlock * w;                // kBlock columns of A, `depth` vectors a row
    constexpr int depth = (kBlock + K::lanes - 1) / K::lanes;
    N good = number(1);
    for (int p = 0; p < n; p += kBlock) {
      int m = std::min(kBlock, n - p);
      N d[kBlock][kBlock];
      for (int r = 0; r < m; ++r)
        for (int s = 0; s < m; ++s) d[r][s] = K::at(a, w, p + r, p + s);
      for (int k = 0; k < m; ++k) {
        N pivot = d[k][k];
        good = pivot > 0 ? good : number(0);
        pivot = T(1) / (pivot > 0 ? pivot : number(1));
        d[k][k] = number(1);
        for (int s = 0; s < m; ++s) d[k][s] *= pivot;
        for (int r = 0; r < m; ++r) {
          if (r == k) continue;
          N factor = d[r][k];
          d[r][k] = number(0);
          for (int s = 0; s < m; ++s) d[r][s] -= factor * d[k][s];
        }
      }
      for (int r = 0; r < m; ++r)
        for (int v = 0; v < w; ++v) {
          V sum = d[r][0] * a[p * w + v];
          for (int s = 1; s < m; ++s) sum += d[r][s] * a[(p + s) * w + v];
          strip[r * w + v] = sum;
        }
      for (int r = 0; r < m; ++r)
        for (int s = 0; s < m; ++s) K::set(strip, w, r, p + s, d[r][s]);
      for (int i = 0; i < n; ++i) {
        if (i >= p && i < p + m) continue;
        for (int s = 0; s < m; ++s) {
          K::set(columns, depth, i, s, K::at(a, w, i, p + s));
          K::set(a, w, i, p + s, number(0));
        }
      }
      sweep(a, columns, depth, strip, 0, p, m);
      sweep(a, columns, depth, strip, p + m, n, m);
      std::memcpy(a + p * w, strip, sizeof(V) * m * w);
    }
    return good;
  }
  void sweep(V* a, V* columns, int depth, V* strip, int first, int last, int m) const {
    if (first < last)
      MATROOT_ISA::multiply<K>(last - first, m, w, a + first * w, a + first * w,
                               columns + first * depth, depth, 0, strip, T(-1));
  }

  // C = A B in double precision, rounded once.
  void multiply_in_double(V* c, const V* a, const V* b, double* scratch) const {
    if constexpr (std::is_same_v<T, double>) {
      multiply(c, a, b);
    } else {
      using D = typename K::Double;
      const int dw = D::width(n);
      auto *x = reinterpret_cast<typename D::Vector*>(scratch), *y = x + n * dw, *z = y + n * dw;
      for (int i = 0; i < n; ++i) {
        K::widen_row(x + i * dw, a + i * w, n);
        K::widen_row(y + i * dw, b + i * w, n);
      }
      MATROOT_ISA::multiply<D>(n, n, dw, z, nullptr, x, dw, 0, y);
      for (int i = 0; i < n; ++i) K::narrow_row(c + i * w, z + i * dw, n);
    }
  }
  static size_t doubles(int n) {
    return std::is_same_v<T, double> ? 0 : size_t(6) * n * K::width(n) * Simd<double>::lanes;
  }
};

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
  auto* two_rows = reinterpret_cast<typename K::Double::Vector*>(p);
  normalise<K>(task.a.as<const T>() + first * size, n, count, task.eps, task.thresholds.skew, t, u,
               two_rows, status, exponent, [&](int i, const typename K::Double::Vector* row) {
                 K::narrow_row(a + i * w, row, n);
               });

  // The interval of the spectrum.
  s.multiply(t, a, a);
  N high = smaller(s.upper_bound(a), root(s.upper_bound(t)));
  high = high > 0 ? high : s.number(1);
  std::memcpy(u, a, sizeof(V) * n * w);
  N definite = s.invert(u);
  N most = s.upper_bound(u), least = s.largest_at_least(u);
  const T huge = std::numeric_limits<T>::max();
  auto found = (definite > 0) & (most <= huge) & (least <= huge) & (least > 0);
  N low = found ? T(1) / most : s.number(0), low_at_most = found ? T(1) / least : s.number(0);
  N design = larger(low, 4 * eps<T>() * high);
  N at_least = s.largest_at_least(a);

  // The steps of each matrix.
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

  // Store what is symmetric anyway but for rounding.
  N scale = T(1) / root(high);
  const T null = T(task.thresholds.null);
  for (int l = 0; l < count; ++l) {
    // Singular to rounding, or indefinite: which the reference tells apart.
    if (status[l] == Status::Ok && !(lane<T>(low_at_most, l) > null * lane<T>(at_least, l)))
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
