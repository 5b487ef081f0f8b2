// The arithmetic of one matrix, or of one matrix a SIMD lane. Included once for each instruction
// set, with MATROOT_ISA its name and MATROOT_BYTES the width of its vectors.
//
// A matrix of n rows is a row-major array of vectors. `Rows` holds one matrix, its columns padded
// with zeros to whole vectors; `Lanes` holds as many matrices as a vector has lanes, entry (i, j) of
// all of them in one vector. The product is the same code for both: only what multiplies a row of B
// is a number of A there and a vector of A here.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace matroot {
namespace MATROOT_ISA {

template <class T>
struct Simd {
  static constexpr int lanes = MATROOT_BYTES / sizeof(T);
  typedef T vector __attribute__((vector_size(MATROOT_BYTES)));
};

// One matrix: numbers are of type T, and scale whole vectors.
template <class T>
struct Rows {
  using Real = T;
  using Vector = typename Simd<T>::vector;
  using Number = T;
  static constexpr int lanes = Simd<T>::lanes;
  static constexpr int matrices = 1;
  static int width(int n) { return (n + lanes - 1) / lanes; }  // vectors in a row
  static Number at(const Vector* a, int w, int i, int j) {
    return reinterpret_cast<const T*>(a + i * w)[j];
  }
  static void set(Vector* a, int w, int i, int j, Number x) {
    reinterpret_cast<T*>(a + i * w)[j] = x;
  }
  // The entry of one of the matrices, here the only one.
  static T entry(const Vector* a, int w, int i, int j, int) { return at(a, w, i, j); }
  static void set_entry(Vector* a, int w, int i, int j, int, T x) { set(a, w, i, j, x); }
  static Number total(Vector v) {
    T sum = 0;
    for (int l = 0; l < lanes; ++l) sum += v[l];
    return sum;
  }
};

// One matrix a lane: numbers are vectors.
template <class T>
struct Lanes {
  using Real = T;
  using Vector = typename Simd<T>::vector;
  using Number = Vector;
  static constexpr int lanes = Simd<T>::lanes;
  static constexpr int matrices = lanes;
  static int width(int n) { return n; }
  static Number at(const Vector* a, int w, int i, int j) { return a[i * w + j]; }
  static void set(Vector* a, int w, int i, int j, Number x) { a[i * w + j] = x; }
  static T entry(const Vector* a, int w, int i, int j, int l) { return a[i * w + j][l]; }
  static void set_entry(Vector* a, int w, int i, int j, int l, T x) { a[i * w + j][l] = x; }
  static Number total(Vector v) { return v; }
};

// acc += A B on MR rows and NV vectors of columns, over `depth` columns of A.
template <class K, int MR, int NV>
inline __attribute__((always_inline)) void tile(typename K::Vector* c, int wc,
                                                const typename K::Vector* from, int wf,
                                                const typename K::Vector* a, int wa, int column,
                                                const typename K::Vector* b, int wb, int depth,
                                                typename K::Real sign) {
  using Vector = typename K::Vector;
  Vector acc[MR][NV];
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) acc[r][v] = Vector{};
  for (int k = 0; k < depth; ++k) {
    Vector row[NV];
    for (int v = 0; v < NV; ++v) row[v] = b[k * wb + v];
    for (int r = 0; r < MR; ++r) {
      auto x = K::at(a, wa, r, column + k);
      for (int v = 0; v < NV; ++v) acc[r][v] += x * row[v];
    }
  }
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v)
      c[r * wc + v] = from ? from[r * wf + v] + sign * acc[r][v] : acc[r][v];
}

#if MATROOT_BYTES == 64
constexpr int kRows = 6, kVectors = 4;  // 24 accumulators of 32 registers
#else
constexpr int kRows = 4, kVectors = 2;  // 8 of 16, and room for a row and a number
#endif

template <class K, int NV>
inline void panel(int rows, typename K::Vector* c, int wc, const typename K::Vector* from, int wf,
                  const typename K::Vector* a, int wa, int column, const typename K::Vector* b,
                  int wb, int depth, typename K::Real sign) {
  int i = 0;
  for (; i + kRows <= rows; i += kRows)
    tile<K, kRows, NV>(c + i * wc, wc, from ? from + i * wf : nullptr, wf, a + i * wa, wa, column,
                       b, wb, depth, sign);
  for (; i + 2 <= rows; i += 2)
    tile<K, 2, NV>(c + i * wc, wc, from ? from + i * wf : nullptr, wf, a + i * wa, wa, column, b,
                   wb, depth, sign);
  for (; i < rows; ++i)
    tile<K, 1, NV>(c + i * wc, wc, from ? from + i * wf : nullptr, wf, a + i * wa, wa, column, b,
                   wb, depth, sign);
}

// C = from + sign · A B, or A B where from is null; A is rows × depth from its column on.
template <class K>
void multiply(int rows, int depth, int w, typename K::Vector* c, const typename K::Vector* from,
              const typename K::Vector* a, int wa, int column, const typename K::Vector* b,
              typename K::Real sign = 1) {
  int v = 0;
  for (; v + kVectors <= w; v += kVectors)
    panel<K, kVectors>(rows, c + v, w, from ? from + v : nullptr, w, a, wa, column, b + v, w,
                       depth, sign);
  for (; v + 2 <= w; v += 2)
    panel<K, 2>(rows, c + v, w, from ? from + v : nullptr, w, a, wa, column, b + v, w, depth,
                sign);
  for (; v < w; ++v)
    panel<K, 1>(rows, c + v, w, from ? from + v : nullptr, w, a, wa, column, b + v, w, depth,
                sign);
}
}  // namespace MATROOT_ISA
}  // namespace matroot
