// One matrix, or one matrix per SIMD lane: their layouts in memory and their products.
//
// A matrix of n rows is a row-major array of vectors. `Rows` holds one matrix, each row padded with
// zeros to whole vectors; `Lanes` holds as many matrices as a vector has lanes, entry (i, j) of all
// of them in one vector. The same code serves both: the factor of a row is a number for `Rows` and
// a vector for `Lanes`.

#pragma once

#include <algorithm>
#include <cstddef>

#include "simd.hpp"
#include "team.hpp"
#ifdef MATROOT_GUARDED
#include <sanitizer/asan_interface.h>
#endif

namespace matroot {
namespace MATROOT_ISA {

constexpr int kMost = 16;  // matrices in one call, in lanes or one after the other

// Hands out pieces of working memory; where base is null, only counts their bytes.
struct Arena {
  char* base;
  std::size_t used = 0;
  template <class V>
  V* take(std::size_t count) {
    V* piece = base ? reinterpret_cast<V*>(base + used) : nullptr;
    used += (count * sizeof(V) + 63) / 64 * 64;
#ifdef MATROOT_GUARDED
    if (base) ASAN_POISON_MEMORY_REGION(base + used, 64);
    used += 64;
#endif
    return piece;
  }
};
template <class Memory>
std::size_t bytes_of(int n) {
  Arena arena{nullptr};
  Memory memory(arena, n);
  return arena.used;
}

// One matrix: a Number is a T, and scales whole vectors.
template <class T>
struct Rows {
  using Real = T;
  using Vector = typename Simd<T>::vector;
  using Number = T;
  using Double = Rows<double>;
  using Wide = typename Simd<double>::vector;
  static constexpr int lanes = Simd<T>::lanes;
  static constexpr int matrices = 1;
  static int width(int n) { return (n + lanes - 1) / lanes; }  // vectors in a row
  static Number at(const Vector* a, int w, int i, int j) {
    return reinterpret_cast<const T*>(a + i * w)[j];
  }
  static void set(Vector* a, int w, int i, int j, Number x) {
    reinterpret_cast<T*>(a + i * w)[j] = x;
  }
  static Number total(const Vector& v) {
    return fold<T>(v, [](const Vector& x, const Vector& y) { return x + y; })[0];
  }
  static Number most(const Vector& v) {
    return fold<T>(v, [](const Vector& x, const Vector& y) { return larger(x, y); })[0];
  }
  // By operations on whole vectors: loading a vector just after storing one of its numbers stalls.
  static Vector zero_before(const Vector& v, int j) { return select(columns() < T(j), Vector{}, v); }
  static Vector replace(const Vector& v, int j, Number x) {
    return select(columns() == T(j), Vector{} + x, v);
  }
  // The totals of `lanes` vectors.
  static Vector totals(const Vector* v) {
    Vector x[lanes];
    for (int l = 0; l < lanes; ++l) x[l] = v[l];
    transpose_block<T>(x);
    for (int step = lanes / 2; step > 0; step /= 2)
      for (int l = 0; l < step; ++l) x[l] = x[l] + x[l + step];
    return x[0];
  }

  // The arguments not named, the stride from matrix to matrix and their count, are those of Lanes.
  static void load(Vector* to, const T* from, int n, std::int64_t, int) {
    const int w = width(n), whole = n / lanes;
    for (int i = 0; i < n; ++i) {
      for (int v = 0; v < whole; ++v)
        std::memcpy(&to[i * w + v], from + i * n + v * lanes, sizeof(Vector));
      if (whole < w) {
        Vector rest{};
        std::memcpy(&rest, from + i * n + whole * lanes, sizeof(T) * (n - whole * lanes));
        to[i * w + whole] = rest;
      }
    }
  }
  static void store(T* to, const Vector* from, int n, std::int64_t, int) {
    const int w = width(n), whole = n / lanes;
    for (int i = 0; i < n; ++i) {
      std::memcpy(to + i * n, from + i * w, sizeof(Vector) * whole);
      if (whole < w)
        std::memcpy(to + i * n + whole * lanes, &from[i * w + whole],
                    sizeof(T) * (n - whole * lanes));
    }
  }

  // to = fromᵀ block by block; `to` and `from` must differ.
  static void transpose(Vector* to, const Vector* from, int n) {
    const int w = width(n);
    for (int r = 0; r < w; ++r)
      for (int v = 0; v < w; ++v) {
        Vector x[lanes];
        for (int i = 0; i < lanes; ++i)
          x[i] = r * lanes + i < n ? from[(r * lanes + i) * w + v] : Vector{};
        transpose_block<T>(x);
        for (int i = 0; i < lanes && v * lanes + i < n; ++i) to[(v * lanes + i) * w + r] = x[i];
      }
  }
  static Vector columns() {  // 0, 1, 2, …
    Vector numbers;
    for (int l = 0; l < lanes; ++l) numbers[l] = T(l);
    return numbers;
  }
  // Copies the upper triangle to the lower one.
  static void mirror(Vector* a, int n) {
    const int w = width(n);
    for (int r = 0; r < w; ++r)
      for (int v = r; v < w; ++v) {
        Vector x[lanes];
        for (int i = 0; i < lanes; ++i)
          x[i] = r * lanes + i < n ? a[(r * lanes + i) * w + v] : Vector{};
        transpose_block<T>(x);
        for (int i = 0; i < lanes && v * lanes + i < n; ++i) {
          Vector* to = &a[(v * lanes + i) * w + r];
          *to = r == v ? select(columns() < T(i), x[i], *to) : x[i];
        }
      }
  }
  static void narrow_row(Vector* to, const Wide* from, int n) {
    const int w = width(n);
    if constexpr (std::is_same_v<T, double>) {
      std::memcpy(static_cast<void*>(to), from, sizeof(Vector) * w);
    } else {
      const int wide = (n + Simd<double>::lanes - 1) / Simd<double>::lanes;
      for (int v = 0; v < w; ++v)
        to[v] = Convert<T>::narrow({from[2 * v], 2 * v + 1 < wide ? from[2 * v + 1] : Wide{}});
    }
  }
  static void widen_row(Wide* to, const Vector* from, int n) {
    const int w = width(n);
    if constexpr (std::is_same_v<T, double>) {
      std::memcpy(static_cast<void*>(to), from, sizeof(Vector) * w);
    } else {
      const int wide = (n + Simd<double>::lanes - 1) / Simd<double>::lanes;
      for (int v = 0; v < w; ++v) {
        auto both = Convert<T>::widen(from[v]);
        to[2 * v] = both.a;
        if (2 * v + 1 < wide) to[2 * v + 1] = both.b;
      }
    }
  }
};

// One matrix per lane: a Number is a V, which is two vectors where floats are computed in double.
template <class T, class V>
struct LanesOf {
  using Real = T;
  using Vector = V;
  using Number = V;
  static constexpr int lanes = 1;  // columns in a vector
  static constexpr int matrices = sizeof(V) / sizeof(T);
  static int width(int n) { return n; }
  static Number at(const Vector* a, int w, int i, int j) { return a[i * w + j]; }
  static void set(Vector* a, int w, int i, int j, const Number& x) { a[i * w + j] = x; }
  static Number total(const Vector& v) { return v; }
  static Number most(const Vector& v) { return v; }
  static Vector zero_before(const Vector& v, int j) { return j > 0 ? Vector{} : v; }
  static Vector replace(const Vector&, int, const Number& x) { return x; }
  static Vector totals(const Vector* v) { return v[0]; }
};

template <class T>
struct Lanes : LanesOf<T, typename Simd<T>::vector> {
  using Vector = typename Simd<T>::vector;
  using Double = LanesOf<double, typename Convert<T>::Wide>;
  static constexpr int many = Simd<T>::lanes;

  static void load(Vector* to, const T* from, int n, std::int64_t stride, int count) {
    const int size = n * n;
    blocks(size, [&](int start) {
      Vector x[many];
      for (int l = 0; l < many; ++l)
        std::memcpy(&x[l], from + std::min(l, count - 1) * stride + start, sizeof(Vector));
      transpose_block<T>(x);
      for (int i = 0; i < many; ++i) to[start + i] = x[i];
    });
    for (int i = 0; size < many && i < size; ++i)
      for (int l = 0; l < many; ++l) to[i][l] = from[std::min(l, count - 1) * stride + i];
  }
  static void store(T* to, const Vector* from, int n, std::int64_t stride, int count) {
    const int size = n * n;
    blocks(size, [&](int start) {
      Vector x[many];
      for (int i = 0; i < many; ++i) x[i] = from[start + i];
      transpose_block<T>(x);
      for (int l = 0; l < count; ++l) std::memcpy(to + l * stride + start, &x[l], sizeof(Vector));
    });
    for (int i = 0; size < many && i < size; ++i)
      for (int l = 0; l < count; ++l) to[l * stride + i] = from[i][l];
  }
  static void transpose(Vector* to, const Vector* from, int n) {
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) to[i * n + j] = from[j * n + i];
  }
  static void mirror(Vector* a, int n) {
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < i; ++j) a[i * n + j] = a[j * n + i];
  }
  static void narrow_row(Vector* to, const typename Double::Vector* from, int n) {
    for (int i = 0; i < n; ++i) to[i] = Convert<T>::narrow(from[i]);
  }
  static void widen_row(typename Double::Vector* to, const Vector* from, int n) {
    for (int i = 0; i < n; ++i) to[i] = Convert<T>::widen(from[i]);
  }

 private:
  // Calls f for blocks of as many entries as a vector has lanes; the last block may overlap the one
  // before.
  template <class F>
  static void blocks(int size, F f) {
    for (int start = 0; start + many <= size; start += many) f(start);
    if (size > many && size % many) f(size - many);
  }
};

#if MATROOT_BYTES == 64
constexpr int kRows = 8, kVectors = 3;  // 24 accumulators of 32 registers
#else
constexpr int kRows = 4, kVectors = 3;  // 12 of 16
#endif

constexpr int kPart = 64;  // terms of a sum

// MR rows and NV vectors of columns of C = from + sign · A B, where null stands for 0; A has
// `depth` columns, from column `column` on.
template <class K, int MR, int NV>
inline __attribute__((always_inline)) void tile(typename K::Vector* c, int wc,
                                                const typename K::Vector* from, int wf,
                                                const typename K::Vector* a, int wa, int column,
                                                const typename K::Vector* b, int wb, int depth,
                                                typename K::Real sign) {
  using Vector = typename K::Vector;
  // The sum in parts: rounding of many terms of one sign would add up.
  for (int first = 0; first == 0 || first < depth; first += kPart) {
    const int end = std::min(first + kPart, depth);
    Vector acc[MR][NV];
    for (int r = 0; r < MR; ++r)
      for (int v = 0; v < NV; ++v) acc[r][v] = Vector{};
    for (int k = first; k < end; ++k) {
      Vector row[NV];
      for (int v = 0; v < NV; ++v) row[v] = b[k * wb + v];
      for (int r = 0; r < MR; ++r) {
        auto x = K::at(a, wa, r, column + k);
        for (int v = 0; v < NV; ++v) acc[r][v] += x * row[v];
      }
    }
    for (int r = 0; r < MR; ++r)
      for (int v = 0; v < NV; ++v)
        c[r * wc + v] = from ? from[r * wf + v] + sign * acc[r][v] : sign * acc[r][v];
    from = c, wf = wc;
  }
}

template <class K, int NV>
void panel(int rows, typename K::Vector* c, int wc, const typename K::Vector* from, int wf,
           const typename K::Vector* a, int wa, int column, const typename K::Vector* b, int wb,
           int depth, typename K::Real sign) {
  int i = 0;
  auto next = [&](auto count) {
    constexpr int MR = decltype(count)::value;
    tile<K, MR, NV>(c + i * wc, wc, from ? from + i * wf : nullptr, wf, a + i * wa, wa, column, b,
                    wb, depth, sign);
    i += MR;
  };
  while (i + kRows <= rows) next(std::integral_constant<int, kRows>());
  if (i + 4 <= rows) next(std::integral_constant<int, 4>());
  if (i + 2 <= rows) next(std::integral_constant<int, 2>());
  if (i < rows) next(std::integral_constant<int, 1>());
}

// Panels of columns from vector v on, of 3 vectors each; but 4 vectors are taken as 2 and 2.
template <class F>
inline void panels(int v, int w, F f) {
  while (v < w) {
    const int left = w - v;
    if (left == 1) {
      f(v, std::integral_constant<int, 1>());
      v += 1;
    } else if (left == 2 || left == 4) {
      f(v, std::integral_constant<int, 2>());
      v += 2;
    } else {
      f(v, std::integral_constant<int, kVectors>());
      v += kVectors;
    }
  }
}

// C = from + sign · A B, where null stands for 0; A is rows × depth, from column `column` on.
template <class K>
void multiply(int rows, int depth, int w, typename K::Vector* c, const typename K::Vector* from,
              const typename K::Vector* a, int wa, int column, const typename K::Vector* b,
              typename K::Real sign = 1) {
  // Parts of whole tiles, so that they do not depend on how many there are.
  const int tiles = (rows + kRows - 1) / kRows, parts = std::min(team, tiles);
  share(parts, double(rows) * depth * w, [&](int part) {
    const int start = tiles * part / parts * kRows;
    const int end = std::min(tiles * (part + 1) / parts * kRows, rows);
    panels(0, w, [&](int v, auto count) {
      panel<K, decltype(count)::value>(end - start, c + start * w + v, w,
                                       from ? from + start * w + v : nullptr, w, a + start * wa,
                                       wa, column, b + v, w, depth, sign);
    });
  });
}

// C = from + A B, or A B where from is null, for a C that is known to be symmetric: only its upper
// triangle is computed. C may be `from`.
template <class K>
void multiply_symmetric(int n, typename K::Vector* c, const typename K::Vector* a,
                        const typename K::Vector* b, const typename K::Vector* from = nullptr) {
  const int w = K::width(n), step = K::lanes == 1 ? kRows : K::lanes;
  share((n + step - 1) / step, 0.5 * n * n * w, [&](int part) {
    const int i = part * step;
    panels(i / K::lanes, w, [&](int v, auto count) {
      panel<K, decltype(count)::value>(std::min(step, n - i), c + i * w + v, w,
                                       from ? from + i * w + v : nullptr, w, a + i * w, w, 0,
                                       b + v, w, n, 1);
    });
  });
  K::mirror(c, n);
}
}  // namespace MATROOT_ISA
}  // namespace matroot
