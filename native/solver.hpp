// Operations on matrices, apart from products, for the iterations and the published polynomials:
// bounds of the spectrum, an inverse, products in double precision.

#pragma once

#include <type_traits>

#include "matrix.hpp"

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
  // Stores the symmetric part of the matrix in lane l, times a factor.
  void store_symmetric(T* out, const V* a, int l, T factor) const {
    for (int i = 0; i < n; ++i)
      for (int j = 0; j <= i; ++j) {
        T mean = (lane<T>(K::at(a, w, i, j), l) + lane<T>(K::at(a, w, j, i), l)) * T(0.5);
        out[i * n + j] = out[j * n + i] = mean * factor;
      }
  }

  // Replaces A by A⁻¹, sweeping blocks of pivots; returns whether all pivots were positive. One
  // that is not is replaced by 1, and the result is meaningless.
  N invert(V* a) const {
    V* strip = memory + size_t(kMatrices) * n * w;  // kBlock rows of A
    V* columns = strip + kBlock * w;                // kBlock columns of A, `depth` vectors per row
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

}  // namespace MATROOT_ISA
}  // namespace matroot
