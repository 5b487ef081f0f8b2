// Before a matrix is solved it is scaled, made symmetric, and tested for entries that are not
// finite and for asymmetry.

#pragma once

#include "isa.hpp"
#include "matrix.hpp"

namespace matroot {
namespace MATROOT_ISA {

// Calls f(i, k) for i < count with k = i mod 4 (0 for the last few), for four independent sums.
template <class F>
inline void by_fours(int count, F f) {
  int i = 0;
  for (; i + 4 <= count; i += 4) f(i, 0), f(i + 1, 1), f(i + 2, 2), f(i + 3, 3);
  for (; i < count; ++i) f(i, 0);
}

// Tests whether all entries of x are finite, and finds the exponent k for which the entries of
// x/2^k are below 1; k is even, so that the root of 2^k is exact.
template <class K>
void measure(const typename K::Vector* x, int n, double eps, Status* status, int* exponent) {
  using T = typename K::Real;
  using V = typename K::Vector;
  V top[4] = {}, wrong[4] = {};
  by_fours(n * K::width(n), [&](int i, int k) {
    top[k] = larger(magnitude(x[i]), top[k]);
    wrong[k] += x[i] - x[i];
  });
  auto most = K::most(larger(larger(top[0], top[1]), larger(top[2], top[3])));
  auto nonfinite = K::total(wrong[0] + wrong[1] + wrong[2] + wrong[3]);
  for (int l = 0; l < K::matrices; ++l) {
    status[l] = lane<T>(nonfinite, l) == 0 ? Status::Ok : Status::Nonfinite;
    int k = 0;
    const double largest = std::max<double>(lane<T>(most, l), eps);
    if (status[l] == Status::Ok && largest > 0) std::frexp(largest, &k);
    // 2^k and 2^−k must be normal numbers.
    exponent[l] = std::clamp(k + (k & 1), -1020, 1020);
  }
}

// Calls store(i, row) with each row of (A + eps·I)/2ᵏ, made symmetric, in double precision; the
// entries of A/2ᵏ are below 1. For a bad matrix, the rows are those of the identity. x and y are
// matrices of working memory, `rows` two rows of it.
template <class K, class Store>
void normalise(const typename K::Real* from, int n, int count, double eps, double skew,
               typename K::Vector* x, typename K::Vector* y, typename K::Double::Vector* rows,
               Status* status, int* exponent, Store store) {
  using D = typename K::Double;
  using DV = typename D::Vector;
  using DN = typename D::Number;
  const int w = K::width(n), dw = D::width(n);
  K::load(x, from, n, std::int64_t(n) * n, count);
  K::transpose(y, x, n);
  measure<K>(x, n, eps, status, exponent);
  DN half{}, ridge{};
  for (int l = 0; l < K::matrices; ++l) {
    put(half, l, std::ldexp(0.5, -exponent[l]));
    put(ridge, l, eps * std::ldexp(1.0, -exponent[l]));
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
  for (int i = 0; bad && i < n; ++i) {  // a second pass, since few matrices are bad
    K::widen_row(rows, x + i * w, n);
    K::widen_row(rows + dw, y + i * w, n);
    for (int j = 0; j < n; ++j) {
      // As above, to the bit: the sum of the two may overflow.
      DN entry = D::at(rows, dw, 0, j) * half + D::at(rows + dw, dw, 0, j) * half;
      if (i == j) entry += ridge;
      for (int l = 0; l < K::matrices; ++l)
        if (status[l] != Status::Ok) put(entry, l, double(i == j));
      D::set(rows, dw, 0, j, entry);
    }
    store(i, rows);
  }
}

}  // namespace MATROOT_ISA
}  // namespace matroot
