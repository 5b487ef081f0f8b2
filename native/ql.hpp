// The eigenvalues of a tridiagonal matrix by implicit QL, and the rotations for its eigenvectors
// (Golub and Van Loan, Matrix Computations, 8.3).
//
// Each rotation of QL depends on the one before, with a latency of some hundred cycles. So QL runs
// for as many matrices at once as a vector of T has lanes, even where all other steps take one
// matrix at a time.

#pragma once

#include "matrix.hpp"

namespace matroot {
namespace MATROOT_ISA {

// Rotates entries of two neighbouring rows by the angle with cosine c and sine s.
template <class V, class F>
inline void turn(V& upper, V& lower, const F& c, const F& s) {
  // The next rotation depends on `upper`, whose last operation fuses the product with `lower`.
  V late = s * lower, x = upper, early = c * x;
  upper = early - late;
  lower = s * x + c * lower;
}

// Splitting T where |e| ≤ kSplit (|d_i| + |d_{i+1}|) changes an eigenvalue by no more than that
// fraction of it: by e²/gap if its neighbour is far, by |e| if it is near. So the larger unit is
// enough for float.
template <class T>
constexpr double kSplit = std::is_same_v<T, double> ? 0x1p-53 : 0x1p-34;

// Replaces d by the eigenvalues of T, by implicit QL with Wilkinson's shift, for one matrix per
// lane; each lane sweeps its own block. Calls begin(l, m) before a sweep of rotations m − 1, …, l,
// where l and m have a number per lane and are equal in a lane without rotations, and
// rotate(i, c, s, on) for each rotation. Returns the mask of the lanes that did not converge.
template <class N, class Begin, class Rotate>
auto implicit_ql(int n, N* d, N* e, double unit, Begin begin, Rotate rotate) {
  constexpr double least = 1e-150;
  constexpr int lanes = sizeof(N) / sizeof(double);
  const N zero{}, one = zero + 1.0;
  N done = zero;  // e is negligible before this index
  int bottom = 0, top = n - 1;
  e[n - 1] = zero;
  for (int sweep = 0; sweep < 30 * n; ++sweep) {
    // The first block that is not diagonal: from l to m, the index of its first negligible e.
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

// Rotations of one matrix, collected until there are enough for a pass over its rows.
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

  // Applies each sweep from row `top` upwards, to one strip of columns after another. A strip is
  // copied to contiguous memory, since its rows share few sets of the cache if n is a power of two.
  void apply(int n, typename Simd<T>::vector* x, int w, typename Simd<T>::vector* strip) {
    int v = 0;
    auto part = [&](auto count) {
      constexpr int NV = decltype(count)::value;
      for (int i = 0; i < n; ++i)
        for (int c = 0; c < NV; ++c) strip[i * NV + c] = x[i * w + v + c];
      turn_strip<NV>(strip);
      for (int i = 0; i < n; ++i)
        for (int c = 0; c < NV; ++c) x[i * w + v + c] = strip[i * NV + c];
      return NV;
    };
    while (v < w) {
      // 4 vectors, to keep the arithmetic units busy; 2 where 4 would exceed the first-level cache.
      if (w - v >= 4 && n <= 128) v += part(std::integral_constant<int, 4>());
      else if (w - v >= 2) v += part(std::integral_constant<int, 2>());
      else v += part(std::integral_constant<int, 1>());
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

}  // namespace MATROOT_ISA
}  // namespace matroot
