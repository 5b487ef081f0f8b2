// Roots by the symmetric eigendecomposition A = U diag(λ) Uᵀ, and their gradient by division by
// s_i + s_j: see methods/eigh.py and gradients/spectral.py, which define what is correct.
//
// Householder reflections give A = Q T Qᵀ with T tridiagonal, implicit QL the rotations that make T
// diagonal (Golub and Van Loan, Matrix Computations, 8.3). What decides the eigenvalues runs in
// double precision also for float: errors of rounded reflections and rotations of Uᵀ, which are made
// in T, are relative to the norm of the root, whereas errors of T would be divided by s_i + s_j.
//
// A rotation of QL waits for the one before, some hundred cycles each. So QL runs for as many
// matrices at once as a vector of T has lanes, also where everything else goes matrix by matrix.

#pragma once

#include <cstddef>

#include "isa.hpp"
#include "kernels.hpp"

namespace matroot {
namespace MATROOT_ISA {

constexpr int kMost = 16;      // matrices at once

// Pieces of working memory, or where base is null only how much they are.
struct Arena {
  char* base;
  std::size_t used = 0;
  template <class V>
  V* take(std::size_t count) {
    V* piece = base ? reinterpret_cast<V*>(base + used) : nullptr;
    used += (count * sizeof(V) + 63) / 64 * 64;
    return piece;
  }
};
template <class Memory>
std::size_t bytes_of(int n) {
  Arena arena{nullptr};
  Memory memory(arena, n);
  return arena.used;
}

// f(i, i mod 4) for i < count, for sums that should not wait for one another.
template <class F>
inline void by_fours(int count, F f) {
  int i = 0;
  for (; i + 4 <= count; i += 4) f(i, 0), f(i + 1, 1), f(i + 2, 2), f(i + 3, 3);
  for (; i < count; ++i) f(i, 0);
}

// (A + eps·I)/2ᵏ, symmetric, with entries below 1, in double, row by row to store(i, row); the
// identity for a bad matrix. x and y are matrices, rows two rows of working memory.
template <class K, class Store>
void normalise(const typename K::Real* from, int n, int count, double eps, double skew,
               typename K::Vector* x, typename K::Vector* y, typename K::Double::Vector* rows,
               Status* status, int* exponent, Store store) {
  using T = typename K::Real;
  using V = typename K::Vector;
  using D = typename K::Double;
  using DV = typename D::Vector;
  using DN = typename D::Number;
  const int w = K::width(n), dw = D::width(n);
  K::load(x, from, n, std::int64_t(n) * n, count);
  K::transpose(y, x, n);
  V top[4] = {}, wrong[4] = {};
  by_fours(n * w, [&](int i, int k) {
    top[k] = larger(magnitude(x[i]), top[k]);
    wrong[k] += x[i] - x[i];
  });
  auto most = K::most(larger(larger(top[0], top[1]), larger(top[2], top[3])));
  auto nonfinite = K::total(wrong[0] + wrong[1] + wrong[2] + wrong[3]);
  DN half{}, ridge{};
  for (int l = 0; l < K::matrices; ++l) {
    status[l] = lane<T>(nonfinite, l) == 0 ? Status::Ok : Status::Nonfinite;
    int k = 0;
    const double largest = std::max<double>(lane<T>(most, l), eps);
    if (status[l] == Status::Ok && largest > 0) std::frexp(largest, &k);
    // 2^k is to be a normal number; no entry that counts is beyond.
    exponent[l] = k = std::clamp(k + (k & 1), -1020, 1020);
    put(half, l, std::ldexp(0.5, -k)), put(ridge, l, eps * std::ldexp(1.0, -k));
  }
  DV sums[4] = {};
  for (int i = 0; i < n; ++i) {
    DV *p = rows, *q = rows + dw;
    K::widen_row(p, x + i * w, n);
    K::widen_row(q, y + i * w, n);
    for (int v = 0; v < dw; ++v) {
      DV b = p[v] * half, c = q[v] * half, mean = b + c, skewed = b - c;
      sums[v & 1] += mean * mean, sums[2 + (v & 1)] += skewed * skewed;
      p[v] = mean;
    }
    D::set(p, dw, 0, i, D::at(p, dw, 0, i) + ridge);
    store(i, p);
  }
  auto symmetric = D::total(sums[0] + sums[1]), skewed = D::total(sums[2] + sums[3]);
  bool bad = false;
  for (int l = 0; l < K::matrices; ++l) {
    const double part = lane<double>(skewed, l), whole = lane<double>(symmetric, l) + part;
    if (status[l] == Status::Ok && part > skew * skew * whole) status[l] = Status::Asymmetric;
    if (status[l] != Status::Ok) exponent[l] = 0, bad = true;
  }
  for (int i = 0; bad && i < n; ++i) {  // again, since few matrices are
    K::widen_row(rows, x + i * w, n);
    K::widen_row(rows + dw, y + i * w, n);
    for (int j = 0; j < n; ++j) {
      DN entry = (D::at(rows, dw, 0, j) + D::at(rows + dw, dw, 0, j)) * half;
      if (i == j) entry += ridge;
      for (int l = 0; l < K::matrices; ++l)
        if (status[l] != Status::Ok) put(entry, l, double(i == j));
      D::set(rows, dw, 0, j, entry);
    }
    store(i, rows);
  }
}

// A symmetric matrix in strips of 4 vectors of columns, each with its rows one after the other: so
// is every pass through it in order of memory.
template <class D>
struct Strips {
  using V = typename D::Vector;
  static constexpr int wide = 4;
  V* memory;
  int n, w;
  int width(int v) const { return std::min(wide, w - v); }  // v a multiple of 4
  V* at(int i, int v) const {
    const int start = v / wide * wide;
    return memory + std::size_t(start) * n + i * width(start) + v - start;
  }
};

// A −= q pᵀ + p qᵀ and y = A u, on rows from `first` on of NV vectors of columns from vector v on,
// which end a strip. Where these rows are above the strip's block on the diagonal it also stands for
// what is below: dots has a vector a row whose total is its share of A u.
template <class D, int NV>
void pass(typename D::Vector* strip, int stride, int first, int n, const typename D::Vector* p,
          const typename D::Vector* q, const typename D::Vector* u, typename D::Vector* y,
          typename D::Vector* dots, int v) {
  using V = typename D::Vector;
  constexpr int wide = Strips<D>::wide;
  V left[NV], right[NV], factor[NV], sum[NV] = {};
  for (int c = 0; c < NV; ++c) left[c] = p[v + c], right[c] = q[v + c], factor[c] = u[v + c];
  auto rows = [&](int i, int stop, auto dotted, auto begun) {
    for (; i < stop; ++i) {
      auto pi = D::at(p, 0, 0, i), qi = D::at(q, 0, 0, i), ui = D::at(u, 0, 0, i);
      V* row = strip + i * stride;
      V dot = begun ? dots[i] : V{};
      for (int c = 0; c < NV; ++c) {
        V x = row[c] - pi * right[c] - qi * left[c];
        row[c] = x;
        sum[c] += ui * x;
        if constexpr (dotted) dot += x * factor[c];
      }
      if constexpr (dotted) dots[i] = dot;
    }
  };
  const int block = v / wide * wide * D::lanes, end = std::min(n, block + wide * D::lanes);
  const int mirrored = std::max(block, first), begun = std::max(block - wide * D::lanes, first);
  rows(first, begun, std::true_type(), std::true_type());
  rows(begun, mirrored, std::true_type(), std::false_type());
  rows(mirrored, end, std::false_type(), std::false_type());
  for (int c = 0; c < NV; ++c) y[v + c] = sum[c];
}

// A = Q T Qᵀ: T has the diagonal d and e beside it, Q is the product of I − u uᵀ for the n − 2 rows
// u of `reflections`, from the first on. `work` is 4 + n rows.
template <class K>
void tridiagonalise(const Strips<typename K::Double>& a, typename K::Double::Number* d,
                    typename K::Double::Number* e, typename K::Vector* reflections,
                    typename K::Double::Vector* work) {
  using D = typename K::Double;
  using V = typename D::Vector;
  using N = typename D::Number;
  const int n = a.n, w = a.w;
  V *p = work, *q = p + w, *u = q + w, *y = u + w, *dots = y + w;
  std::memset(static_cast<void*>(work), 0, sizeof(V) * 2 * w);
  for (int k = 0; k < n; ++k) {
    // What the reflection before still has to do to this row.
    const N pk = D::at(p, w, 0, k), qk = D::at(q, w, 0, k);
    for (int v = k / D::lanes; v < w;) {
      const V* row = a.at(k, v);
      const int start = v / a.wide * a.wide, end = start + a.width(start);
      for (; v < end; ++v) u[v] = *row++ - pk * q[v] - qk * p[v];
    }
    d[k] = D::at(u, w, 0, k);
    if (k + 1 >= n) break;
    const N beside = D::at(u, w, 0, k + 1);
    if (k + 2 >= n) {
      e[k] = beside;
      continue;  // A reflection of one entry is none; the last row is updated next.
    }
    const int from = (k + 1) / D::lanes;
    V head = D::zero_before(u[from], k + 1 - from * D::lanes), squares = head * head;
    for (int v = from + 1; v < w; ++v) squares += u[v] * u[v];
    const N square = D::total(squares);
    const auto there = square > 1e-290;
    const N norm = root(square), beta = select(beside > 0.0, -norm, norm);
    const N h = select(there, square - beside * beta, N{} + 1.0);
    e[k] = select(there, beta, beside);
    u[from] = D::replace(head, k + 1 - from * D::lanes, select(there, beside - beta, N{}));
    for (int v = from; v < w;) {
      const int start = v / a.wide * a.wide, width = a.width(start), count = start + width - v;
      auto go = [&](auto fixed) {
        pass<D, decltype(fixed)::value>(a.at(0, v), width, k + 1, n, p, q, u, y, dots, v);
      };
      switch (count) {
        case 4: go(std::integral_constant<int, 4>()); break;
        case 3: go(std::integral_constant<int, 3>()); break;
        case 2: go(std::integral_constant<int, 2>()); break;
        default: go(std::integral_constant<int, 1>());
      }
      v += count;
    }
    const N inverse = 1.0 / h, scale = root(inverse);
    for (int v = from; v < (w - 1) / a.wide * a.wide; ++v)
      y[v] += D::totals(dots + v * D::lanes);
    y[from] = D::zero_before(y[from], k + 1 - from * D::lanes);
    V products{};
    for (int v = from; v < w; ++v) products += y[v] * u[v];
    const N kappa = D::total(products) * inverse * 0.5;
    for (int v = from; v < w; ++v) q[v] = (y[v] - kappa * u[v]) * inverse;
    for (int v = 0; v < w; ++v) y[v] = v < from ? V{} : u[v] * scale;
    K::narrow_row(reflections + k * K::width(n), y, n);
    std::swap(p, u);
  }
}

// Q of the reflections that tridiagonalise found: I − u uᵀ for each row u, before which there are to
// be 3 rows of zeros. Four of them go through the matrix together, to load it half as often:
// H₁ H₂ … X = X − Σ u_b z_b with z_b = u_bᵀ X − Σ_{c > b} (u_b·u_c) z_c.
template <class K>
void form(int n, const typename K::Vector* reflections, typename K::Vector* x) {
  using V = typename K::Vector;
  using N = typename K::Number;
  constexpr int block = 4;
  const int w = K::width(n);
  std::memset(static_cast<void*>(x), 0, sizeof(V) * n * w);
  for (int i = 0; i < n; ++i) K::set(x, w, i, i, N{} + 1);
  for (int last = n - 3; last >= 0; last -= block) {
    const int start = std::max(last - block + 2, 0);  // the first row that they change
    const V* u = reflections + (last - block + 1) * w;
    N between[block][block];
    for (int b = 0; b < block; ++b)
      for (int c = b + 1; c < block; ++c) {
        V sum{};
        for (int v = 0; v < w; ++v) sum += u[b * w + v] * u[c * w + v];
        between[b][c] = K::total(sum);
      }
    panels(start / K::lanes, w, [&](int v, auto count) {
      constexpr int NV = decltype(count)::value;
      V z[block][NV] = {};
      for (int i = start; i < n; ++i)
        for (int c = 0; c < NV; ++c) {
          V entry = x[i * w + v + c];
          for (int b = 0; b < block; ++b) z[b][c] += K::at(u, w, b, i) * entry;
        }
      for (int b = block - 2; b >= 0; --b)
        for (int d = b + 1; d < block; ++d)
          for (int c = 0; c < NV; ++c) z[b][c] -= between[b][d] * z[d][c];
      for (int i = start; i < n; ++i)
        for (int c = 0; c < NV; ++c) {
          V entry = x[i * w + v + c];
          for (int b = 0; b < block; ++b) entry -= K::at(u, w, b, i) * z[b][c];
          x[i * w + v + c] = entry;
        }
    });
  }
}

// Rows i and i + 1 of x turned by the angle of cosine c and sine s.
template <class V, class F>
inline void turn(V& upper, V& lower, const F& c, const F& s) {
  // `upper` is what the next rotation waits for: its last operation fuses the product with `lower`.
  V late = s * lower, x = upper, early = c * x;
  upper = early - late;
  lower = s * x + c * lower;
}

// The eigenvalues of T, in d, by implicit QL with Wilkinson's shift, a matrix a lane, each at its own
// pace. Calls begin(l, m) before a sweep of rotations m − 1, …, l, two numbers a lane, equal where a
// lane has none, and rotate(i, c, s, on) for each of them. Returns where it did not converge.
template <class N, class Begin, class Rotate>
auto implicit_ql(int n, N* d, N* e, double unit, Begin begin, Rotate rotate) {
  constexpr double least = 1e-150;
  constexpr int lanes = sizeof(N) / sizeof(double);
  const N zero{}, one = zero + 1.0;
  N done = zero;  // e is negligible before this index
  int bottom = 0, top = n - 1;
  e[n - 1] = zero;
  for (int sweep = 0; sweep < 30 * n; ++sweep) {
    // The first block, from l to m, that is not diagonal: m is where its first negligible e is.
    N l = zero + double(n), m = l, last = zero + double(n - 1), end = d[n - 1];
    N first = one, second = one, beside = one, at_end = one;
    for (int i = n - 2; i >= bottom; --i) {
      auto coupled = magnitude(e[i]) > unit * (magnitude(d[i]) + magnitude(d[i + 1])) + least;
      auto found = coupled & (done <= double(i));
      l = select(found, zero + double(i), l), m = select(found, last, m);
      first = select(found, d[i], first), second = select(found, d[i + 1], second);
      beside = select(found, e[i], beside), at_end = select(found, end, at_end);
      last = select(coupled, last, zero + double(i)), end = select(coupled, end, d[i]);
    }
    if (!any(l < double(n))) return zero > zero;
    done = l;
    bottom = n, top = 0;
    for (int k = 0; k < lanes; ++k) {
      const int start = int(lane<double>(l, k));
      bottom = std::min(bottom, start);
      if (start < n) top = std::max(top, int(lane<double>(m, k)));
    }
    begin(l, m);

    N g = (second - first) / (2.0 * beside);
    N r = root(g * g + 1.0);
    g = at_end - first + beside / (g + select(g < 0.0, -r, r));
    N s = one, c = one, p = zero;
    for (int i = top - 1; i >= bottom; --i) {
      auto on = (m > double(i)) & (l <= double(i));
      N f = s * e[i], b = c * e[i];
      N square = f * f + g * g;
      auto turned = square > 0.0;
      N inverse = inverse_root(select(turned, square, one));
      r = select(m == double(i + 1), zero, square * inverse);
      e[i + 1] = select(on, r, e[i + 1]);
      s = select(on, f * inverse, s);
      c = select(on, select(turned, g * inverse, one), c);
      N shifted = d[i + 1] - p;
      r = (d[i] - shifted) * s + 2.0 * c * b;
      p = select(on, s * r, p);
      d[i + 1] = select(on, shifted + p, d[i + 1]);
      g = select(on, c * r - b, g);
      rotate(i, c, s, on);
      auto finished = l == double(i);
      d[i] = select(finished, d[i] - p, d[i]);
      e[i] = select(finished, g, e[i]);
    }
  }
  return done < double(n);
}

// Rotations of one matrix, kept until there are enough to go through its rows with.
template <class T>
struct Rotations {
  struct Sweep {
    int top, count;
  };
  struct Pair {
    T c, s;
  };
  Pair* pairs;
  Sweep* sweeps;
  int used, many;
  static int capacity(int n) { return std::min(n * n / 2, 1 << 13) + n; }

  // Each sweep from row `top` upwards, in one strip of columns after the other, copied to where
  // its rows lie together: they would share few sets of the cache where n is a power of two.
  void apply(int n, typename Simd<T>::vector* x, int w, typename Simd<T>::vector* strip) {
    for (int v = 0; v < w;) {
      auto part = [&](auto count) {
        constexpr int NV = decltype(count)::value;
        for (int i = 0; i < n; ++i)
          for (int c = 0; c < NV; ++c) strip[i * NV + c] = x[i * w + v + c];
        turn_strip<NV>(strip);
        for (int i = 0; i < n; ++i)
          for (int c = 0; c < NV; ++c) x[i * w + v + c] = strip[i * NV + c];
        v += NV;
      };
      // 4 vectors to keep the units busy, 2 where 4 would not fit the first cache.
      if (w - v >= 4 && n <= 128) part(std::integral_constant<int, 4>());
      else if (w - v >= 2) part(std::integral_constant<int, 2>());
      else part(std::integral_constant<int, 1>());
    }
    used = many = 0;
  }
  template <int NV>
  void turn_strip(typename Simd<T>::vector* x) const {
    using V = typename Simd<T>::vector;
    const Pair* pair = pairs;
    for (int k = 0; k < many; ++k) {
      V* row = x + sweeps[k].top * NV;
      V lower[NV];
      for (int c = 0; c < NV; ++c) lower[c] = row[c];
      for (int i = 0; i < sweeps[k].count; ++i, ++pair) {
        V* above = row - NV;
        for (int c = 0; c < NV; ++c) {
          V upper = above[c];
          turn(upper, lower[c], pair->c, pair->s);
          row[c] = lower[c];
          lower[c] = upper;
        }
        row = above;
      }
      for (int c = 0; c < NV; ++c) row[c] = lower[c];
    }
  }
};

// The memory of both solvers below, for one matrix or a matrix a lane.
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

template <class K>
static void solve_eigh(const EighTask& task, std::int64_t first, int count, void* memory) {
  using T = typename K::Real;
  using V = typename K::Vector;
  using D = typename K::Double;
  using N = typename K::Number;
  using Wide = typename Convert<T>::Wide;
  const Thresholds thresholds = task.thresholds;
  const int n = task.batch.n, w = K::width(n);
  const std::int64_t size = std::int64_t(n) * n;
  Arena arena{static_cast<char*>(memory)};
  EighMemory<K> m(arena, n);
  constexpr int groups = m.groups;
  const int present = groups == 1 ? 1 : count;
  Status status[kMost];
  int exponent[kMost];

  for (int i = 0; i < n; ++i) m.d[i] = Wide{} + 1.0, m.e[i] = Wide{};
  for (int group = 0; group < present; ++group) {
    const T* from = task.a.as<const T>() + (first + group) * size;
    normalise<K>(from, n, count, task.eps, task.thresholds.skew, m.x, m.y, m.work, status + group,
                 exponent + group, [&](int i, const typename D::Vector* row) {
                   for (int v = i / D::lanes / m.a.wide * m.a.wide; v < m.a.w; v += m.a.wide) {
                     typename D::Vector* to = m.a.at(i, v);
                     for (int c = 0; c < m.a.wide; ++c)
                       if (v + c < m.a.w) to[c] = row[v + c];
                   }
                 });
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
    K::transpose(m.vectors + group * n * w, m.x, n);
  }

  auto turn_all = [&] {
    for (int l = 0; l < count; ++l) m.rotations[l].apply(n, m.vectors + l * n * w, w, m.y);
  };
  const int capacity = Rotations<T>::capacity(n);
  auto begin = [&](const Wide& start, const Wide& end) {
    if constexpr (groups > 1) {
      for (int k = 0; k < count; ++k)
        if (m.rotations[k].used + n > capacity) {
          turn_all();
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
  // Cutting T where |e| ≤ unit (|d_i| + |d_{i+1}|) moves an eigenvalue by no more than that share of
  // itself: e²/gap where its neighbour is far, |e| where it is near. So float needs no more.
  constexpr double unit = std::is_same_v<T, double> ? 0x1p-53 : 0x1p-34;
  auto failed = implicit_ql(n, m.d, m.e, unit, begin, rotate);
  if constexpr (groups > 1) turn_all();
  const Wide unsolved = select(failed, Wide{} + 1.0, Wide{});

  for (int group = 0; group < present; ++group) {
    V *vectors = m.vectors + group * n * w, *better = m.reflections, *spare = m.y;
    const int here = groups == 1 ? count : 1;
    N scale{};
    for (int l = 0; l < K::matrices; ++l) put(scale, l, T(std::ldexp(1.0, -exponent[group + l])));
    if constexpr (std::is_same_v<T, double>) {
      // T and its rotations are no more exact here than the results are to be. One step of
      // perturbation theory, v_i + Σ_j v_j R_ij/(λ_i − λ_j) with R = Uᵀ A U, where λ are apart.
      spare = m.spare;
      K::load(better, task.a.as<const T>() + (first + group) * size, n, size, here);
      K::transpose(spare, better, n);
      for (int i = 0; i < n * w; ++i) m.y[i] = (better[i] * scale + spare[i] * scale) * 0.5;
      K::transpose(m.x, vectors, n);
      multiply<K>(n, n, w, better, nullptr, vectors, w, 0, m.y);
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
      multiply<K>(n, n, w, better, vectors, spare, w, 0, vectors);
      std::memcpy(static_cast<void*>(vectors), better, sizeof(V) * n * w);
    }
    // Rounded rotations leave Uᵀ a little off orthogonal; a Newton step, Uᵀ − ½ (Uᵀ U − I) Uᵀ, is not.
    K::transpose(m.x, vectors, n);
    multiply_symmetric<K>(n, spare, vectors, m.x);
    for (int i = 0; i < n; ++i) K::set(spare, w, i, i, K::at(spare, w, i, i) - T(1));
    multiply<K>(n, n, w, better, vectors, spare, w, 0, vectors, T(-0.5));
    std::memcpy(static_cast<void*>(vectors), better, sizeof(V) * n * w);
    if constexpr (std::is_same_v<T, double>) {
      // And the eigenvalues as Rayleigh quotients.
      multiply<K>(n, n, w, better, nullptr, vectors, w, 0, m.y);
      for (int i = 0; i < n; ++i) {
        V sum{};
        for (int v = 0; v < w; ++v) sum += better[i * w + v] * vectors[i * w + v];
        const N value = K::total(sum) + T(task.eps) * scale;
        for (int l = 0; l < here; ++l) put(m.d[i], group + l, lane<double>(value, l));
      }
    }
  }

  Wide low = m.d[0], high = m.d[0], most = magnitude(m.d[0]), up{};
  for (int i = 1; i < n; ++i) {
    low = smaller(low, m.d[i]), high = larger(high, m.d[i]);
    most = larger(most, magnitude(m.d[i]));
  }
  for (int l = 0; l < count; ++l) {
    const double least = lane<double>(low, l), largest = std::max(lane<double>(high, l), 0.0);
    if (status[l] == Status::Ok) {
      if (lane<double>(unsolved, l) > 0) status[l] = Status::Left;
      else if (thresholds.indefinite >= 0 && least < -thresholds.indefinite * largest) status[l] = Status::Indefinite;
      else if (thresholds.singular >= 0 && least <= thresholds.singular * largest) status[l] = Status::Singular;
    }
    put(up, l, status[l] == Status::Ok ? std::ldexp(1.0, exponent[l] / 2)
                                : std::numeric_limits<double>::quiet_NaN());
    task.info.as<Info>()[first + l] = {std::int64_t(status[l]), 1, status[l] == Status::Ok};
  }
  // The eigenvalues of S, and of its inverse where they are not zero to rounding; NaN where there
  // is no root. They take the place of d and e.
  Wide *s = m.d, *inverse = m.e;
  const Wide kept = thresholds.null * most;
  for (int i = 0; i < n; ++i) {
    const auto there = m.d[i] > kept;
    const Wide positive = larger(m.d[i], Wide{});
    s[i] = task.of_root ? positive * up * up : root(positive) * up;
    inverse[i] = select(there, 1.0 / select(there, s[i], Wide{} + 1.0), up - up);
  }
  auto number = [&](const Wide* x, int group) {
    if constexpr (groups == 1) return Convert<T>::narrow(*x);
    else return T(reinterpret_cast<const double*>(x)[group]);
  };
  if (task.roots)
    for (int l = 0; l < count; ++l)
      for (int i = 0; i < n; ++i)
        task.roots.as<T>()[(first + l) * n + i] = T(reinterpret_cast<const double*>(s + i)[l]);

  for (int group = 0; group < present; ++group) {
    const int here = groups == 1 ? count : 1;
    const std::int64_t offset = (first + group) * size;
    const V* vectors = m.vectors + group * n * w;
    K::transpose(m.x, vectors, n);
    if (task.vectors) K::store(task.vectors.as<T>() + offset, m.x, n, size, here);
    auto assemble = [&](Pointer out, const Wide* values) {
      V *scaled = m.reflections, *product = m.y;
      for (int i = 0; i < n; ++i) {
        const N factor = number(values + i, group);
        for (int v = 0; v < w; ++v) scaled[i * w + v] = factor * vectors[i * w + v];
      }
      multiply_symmetric<K>(n, product, m.x, scaled);
      K::store(out.as<T>() + offset, product, n, size, here);
    };
    for (const Output& output : task.outputs)
      assemble(output.x, output.function == Function::Sqrt ? s : inverse);
  }
}

template <class K>
struct SpectralMemory {
  using V = typename K::Vector;
  V *u, *vt, *g, *t, *r;
  typename K::Number* s;
  SpectralMemory(Arena& arena, int n) {
    const std::size_t size = std::size_t(n) * K::width(n);
    u = arena.take<V>(size), vt = arena.take<V>(size), g = arena.take<V>(size);
    t = arena.take<V>(size), r = arena.take<V>(size);
    s = arena.take<typename K::Number>(K::width(n) * K::lanes);
  }
};

// What steps of the sign iteration make of R, both in the basis of the eigenvectors of S; s is lost.
// See BySign in lyapunov.py: with B₀ = S/norm and C₀ = R/norm,
//   b_i ← ½ b_i (3 − b_i²),  C_ij ← ½ (3 − b_i² − b_j² + b_i b_j) C_ij,  X = C/2.
template <class K>
void iterate_sign(int n, typename K::Vector* r, typename K::Number* s,
                  const typename K::Number& null, const typename K::Number& norm, int steps) {
  using T = typename K::Real;
  using V = typename K::Vector;
  using N = typename K::Number;
  const int w = K::width(n);
  const V* columns = reinterpret_cast<const V*>(s);
  const N divisor = select(norm == T(0), N{} + 1, norm), half = T(0.5) / divisor;
  for (int i = 0; i < n; ++i)
    for (int v = 0; v < w; ++v) {
      // Minimum norm. The steps give R/(2 s_j) where s_i = 0, whereas R/s_j is wanted.
      const V zero = V{}, one = zero + half, twice = one + one;
      auto row = s[i] + zero <= null, column = columns[v] <= null;
      r[i * w + v] *= select(row & column, zero, select(row | column, twice, one));
    }
  V* b = reinterpret_cast<V*>(s);
  for (int v = 0; v < w; ++v) b[v] = b[v] / divisor;
  for (int step = 0; step < steps; ++step) {
    for (int i = 0; i < n; ++i) {
      const N bi = s[i], rest = T(1.5) - T(0.5) * bi * bi, bh = T(0.5) * bi;
      for (int v = 0; v < w; ++v) r[i * w + v] *= rest - b[v] * (T(0.5) * b[v] - bh);
    }
    for (int v = 0; v < w; ++v) b[v] = b[v] * (T(1.5) - T(0.5) * b[v] * b[v]);
  }
}

// X = U [(Uᵀ R U) / (s_i + s_j)] Uᵀ, 0 on null × null space; see SpectralTask.
template <class K>
static void solve_spectral(const SpectralTask& task, std::int64_t first, int count, void* memory) {
  using T = typename K::Real;
  using V = typename K::Vector;
  using N = typename K::Number;
  const int n = task.batch.n, w = K::width(n);
  const std::int64_t size = std::int64_t(n) * n, offset = first * size;
  Arena arena{static_cast<char*>(memory)};
  SpectralMemory<K> m(arena, n);

  K::load(m.u, task.vectors.as<const T>() + offset, n, size, count);
  K::transpose(m.vt, m.u, n);
  N most{};
  for (int i = 0; i < w * K::lanes; ++i) {
    N s{};
    for (int l = 0; l < K::matrices && i < n; ++l)
      put(s, l, task.roots.as<const T>()[(first + std::min(l, count - 1)) * n + i]);
    m.s[i] = s;
    most = larger(s, most);
  }
  const N null = T(task.null) * most;

  // The symmetric part of a cotangent, in m.g.
  auto load = [&](Pointer g) {
    K::load(m.g, g.as<const T>() + offset, n, size, count);
    K::transpose(m.t, m.g, n);
    for (int i = 0; i < n * w; ++i) m.g[i] = m.g[i] * T(0.5) + m.t[i] * T(0.5);
  };
  // to = left G right where that is symmetric; right is not m.t.
  auto between = [&](V* to, const V* left, const V* right) {
    multiply<K>(n, n, w, m.t, nullptr, left, w, 0, m.g);
    multiply_symmetric<K>(n, to, m.t, right);
  };
  const V* columns = reinterpret_cast<const V*>(m.s);
  if (task.g_inv && task.z) {
    load(task.g_inv);
    K::load(m.r, task.z.as<const T>() + offset, n, size, count);
    between(m.g, m.r, m.r);
    std::swap(m.g, m.r);
    if (task.g_sqrt) load(task.g_sqrt);
    else std::memset(static_cast<void*>(m.g), 0, sizeof(V) * n * w);
    for (int i = 0; i < n * w; ++i) m.g[i] -= m.r[i];
    between(m.r, m.vt, m.u);
  } else {
    if (task.g_inv) {
      load(task.g_inv);
      between(m.r, m.vt, m.u);
      for (int i = 0; i < n; ++i)
        for (int v = 0; v < w; ++v) m.r[i * w + v] = -m.r[i * w + v] / (m.s[i] * columns[v]);
    }
    if (task.g_sqrt) {
      load(task.g_sqrt);
      between(m.g, m.vt, m.u);
      if (task.g_inv)
        for (int i = 0; i < n * w; ++i) m.r[i] += m.g[i];
      else
        std::swap(m.g, m.r);
    }
  }
  if (task.norms) {
    N norm{};
    for (int l = 0; l < K::matrices; ++l)
      put(norm, l, task.norms.as<const T>()[first + std::min(l, count - 1)]);
    iterate_sign<K>(n, m.r, m.s, null, norm, task.steps);
  } else {
    for (int i = 0; i < n; ++i) {
      const N s = m.s[i];
      for (int v = 0; v < w; ++v) {
        V x = m.r[i * w + v] / (s + columns[v]);
        auto both = (columns[v] <= null) & (s + V{} <= null);
        m.r[i * w + v] = select(both, V{}, x);
      }
    }
  }
  multiply<K>(n, n, w, m.t, nullptr, m.u, w, 0, m.r);
  multiply_symmetric<K>(n, m.g, m.t, m.vt);
  K::store(task.x.as<T>() + offset, m.g, n, size, count);
}
}  // namespace MATROOT_ISA
}  // namespace matroot
