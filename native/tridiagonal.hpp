// A = Q T Qᵀ with T tridiagonal by Householder reflections (Golub and Van Loan, Matrix
// Computations, 8.3).

#pragma once

#include "matrix.hpp"

namespace matroot {
namespace MATROOT_ISA {

// A symmetric matrix in strips of 4 vectors of columns, the rows of each contiguous: so every pass
// over the matrix is in the order of memory.
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

// A −= q pᵀ + p qᵀ and y = A u, for the rows from `first` on and NV vectors of columns from vector
// v on, the last ones of a strip. Entries above the strip's diagonal block also stand for those
// below: `dots` has a vector for each of these rows, whose total is their contribution to A u.
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

// A = Q T Qᵀ: T has the diagonal d and the off-diagonal e; Q is the product of I − u uᵀ for the
// n − 2 rows u of `reflections`, from the first on. `work` is 4 rows and n vectors.
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
    // Applies the previous reflection to this row; `pass` applies it to the rows below.
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
      continue;  // One entry needs no reflection; the last row is updated next.
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

// X ← Q X, where Q is the product of the reflections that `tridiagonalise` found, I − u uᵀ for each
// row u. The rows must be preceded by 3 rows of zeros. Four reflections are applied together, to
// load the matrix less often:
// H₁ H₂ … X = X − Σ u_b z_b with z_b = u_bᵀ X − Σ_{c > b} (u_b·u_c) z_c.
// Where X is the identity, so are the columns that no reflection has reached.
template <class K>
void reflect(int n, const typename K::Vector* reflections, typename K::Vector* x,
             bool is_identity) {
  using V = typename K::Vector;
  using N = typename K::Number;
  constexpr int block = 4;
  const int w = K::width(n), parts = std::min(team, (w + kVectors - 1) / kVectors);
  share(parts, double(n) * n * w, [&](int part) {
    const int first = w * part / parts, end = w * (part + 1) / parts;
    for (int last = n - 3; last >= 0; last -= block) {
      const int start = std::max(last - block + 2, 0);  // the first row that changes
      const V* u = reflections + (last - block + 1) * w;
      N between[block][block];
      for (int b = 0; b < block; ++b)
        for (int c = b + 1; c < block; ++c) {
          V sum{};
          for (int v = 0; v < w; ++v) sum += u[b * w + v] * u[c * w + v];
          between[b][c] = K::total(sum);
        }
      panels(is_identity ? std::max(first, start / K::lanes) : first, end, [&](int v, auto count) {
        constexpr int NV = decltype(count)::value;
        V z[block][NV] = {};
        // In parts: of many terms of one sign the sum would be off by a share of their number.
        for (int first = start; first < n; first += 32) {
          V part[block][NV] = {};
          for (int i = first; i < std::min(first + 32, n); ++i)
            for (int c = 0; c < NV; ++c) {
              V entry = x[i * w + v + c];
              for (int b = 0; b < block; ++b) part[b][c] += K::at(u, w, b, i) * entry;
            }
          for (int b = 0; b < block; ++b)
            for (int c = 0; c < NV; ++c) z[b][c] += part[b][c];
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
  });
}

// The identity.
template <class K>
void set_identity(int n, typename K::Vector* x) {
  const int w = K::width(n);
  std::memset(static_cast<void*>(x), 0, sizeof(typename K::Vector) * n * w);
  for (int i = 0; i < n; ++i) K::set(x, w, i, i, typename K::Number{} + 1);
}

}  // namespace MATROOT_ISA
}  // namespace matroot
