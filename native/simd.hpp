// Vectors of numbers, and operations with the same notation for a T, a vector of T (one matrix per
// lane), or two vectors of doubles (for as many matrices as a vector of floats has lanes). Included
// once for each instruction set: MATROOT_ISA is its name, MATROOT_BYTES the width of its vectors.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace matroot {
namespace MATROOT_ISA {

template <class T>
struct Simd {
  static constexpr int lanes = MATROOT_BYTES / sizeof(T);
  typedef T vector __attribute__((vector_size(MATROOT_BYTES)));
};

// Two vectors as one number. (Compilers have vectors of twice the width, but compare and select
// them element by element.)
template <class V>
struct Twice {
  V a, b;
};
#define MATROOT_OPERATOR(op)                                                        \
  template <class V>                                                                \
  inline auto operator op(const Twice<V>& x, const Twice<V>& y) {                   \
    return Twice<decltype(x.a op y.a)>{x.a op y.a, x.b op y.b};                     \
  }                                                                                 \
  template <class V>                                                                \
  inline auto operator op(const Twice<V>& x, double y) {                            \
    return Twice<decltype(x.a op y)>{x.a op y, x.b op y};                           \
  }                                                                                 \
  template <class V>                                                                \
  inline auto operator op(double x, const Twice<V>& y) {                            \
    return Twice<decltype(x op y.a)>{x op y.a, x op y.b};                           \
  }
MATROOT_OPERATOR(+)
MATROOT_OPERATOR(-)
MATROOT_OPERATOR(*)
MATROOT_OPERATOR(/)
MATROOT_OPERATOR(<)
MATROOT_OPERATOR(>)
MATROOT_OPERATOR(<=)
MATROOT_OPERATOR(==)
#undef MATROOT_OPERATOR
template <class V>
inline Twice<V> operator-(const Twice<V>& x) { return {-x.a, -x.b}; }
template <class V>
inline Twice<V> operator&(const Twice<V>& x, const Twice<V>& y) { return {x.a & y.a, x.b & y.b}; }
template <class V>
inline Twice<V>& operator+=(Twice<V>& x, const Twice<V>& y) { return x = x + y; }
template <class V>
inline Twice<V>& operator-=(Twice<V>& x, const Twice<V>& y) { return x = x - y; }
template <class V, class F>
inline Twice<V>& operator*=(Twice<V>& x, const F& y) { return x = x * y; }

// mask ? x : y. Masks are bool, a vector of integers, or two of them.
template <class M, class V>
inline V select(const M& mask, const V& x, const V& y) { return mask ? x : y; }
template <class M, class V>
inline Twice<V> select(const Twice<M>& mask, const Twice<V>& x, const Twice<V>& y) {
  return {select(mask.a, x.a, y.a), select(mask.b, x.b, y.b)};
}
inline bool any(bool mask) { return mask; }
template <class M>
inline bool any(const M& mask) {
  decltype(+mask[0]) found = 0;
  for (unsigned l = 0; l < sizeof(M) / sizeof(mask[0]); ++l) found |= mask[l];
  return found != 0;
}
template <class M>
inline bool any(const Twice<M>& mask) { return any(mask.a | mask.b); }

inline float root(float x) { return std::sqrt(x); }
inline double root(double x) { return std::sqrt(x); }
template <class V>
inline V root(const V& x) {
  V y;
  for (unsigned l = 0; l < sizeof(V) / sizeof(x[0]); ++l) y[l] = std::sqrt(x[l]);
  return y;
}
template <class V>
inline Twice<V> root(const Twice<V>& x) { return {root(x.a), root(x.b)}; }

// 1/√x for x > 0, within 2 units of rounding.
template <class V>
inline V inverse_root(const V& x) {
#ifdef __AVX512F__
  if constexpr (std::is_same_v<V, typename Simd<double>::vector>) {
    // 14 bits and two Newton steps take half the time of a root and a division.
    V y = _mm512_rsqrt14_pd(x);
    for (int i = 0; i < 2; ++i) {
      V late = x * y, rest = 1.0 - late * y, half = 0.5 * y;
      y = y + half * rest;
    }
    return y;
  }
#endif
  return 1.0 / root(x);
}
template <class V>
inline Twice<V> inverse_root(const Twice<V>& x) { return {inverse_root(x.a), inverse_root(x.b)}; }

// 1/x for x ≠ 0, within 2 units of rounding.
template <class V>
inline V reciprocal(const V& x) {
#ifdef __AVX512F__
  if constexpr (std::is_same_v<V, typename Simd<double>::vector>) {
    V y = _mm512_rcp14_pd(x);
    for (int i = 0; i < 2; ++i) y = y + y * (1.0 - x * y);
    return y;
  }
#endif
  return 1.0 / x;
}

template <class V>
inline V larger(const V& x, const V& y) { return select(x > y, x, y); }
template <class V>
inline V smaller(const V& x, const V& y) { return select(x < y, x, y); }
template <class V>
inline V magnitude(const V& x) { return larger(x, -x); }

// One lane of a number, for T the type of a lane.
template <class T, class V>
inline T lane(const V& x, int l) {
  if constexpr (std::is_same_v<T, V>) return x;
  else return x[l];
}
template <class T, class V>
inline T lane(const Twice<V>& x, int l) {
  constexpr int half = sizeof(V) / sizeof(T);
  return l < half ? x.a[l] : x.b[l - half];
}
template <class V, class T>
inline void put(V& x, int l, T y) {
  if constexpr (std::is_same_v<T, V>) x = y;
  else x[l] = y;
}
template <class V, class T>
inline void put(Twice<V>& x, int l, T y) {
  constexpr int half = sizeof(V) / sizeof(T);
  if (l < half) x.a[l] = y;
  else x.b[l - half] = y;
}

// Rounding of doubles to T, lane by lane, and back.
template <class T>
struct Convert {  // T is double
  using Wide = typename Simd<double>::vector;
  static double narrow(double x) { return x; }
  static double widen(double x) { return x; }
  static Wide narrow(const Wide& x) { return x; }
  static Wide widen(const Wide& x) { return x; }
};
template <>
struct Convert<float> {
  using Half = Simd<double>::vector;
  using Wide = Twice<Half>;
  using Vector = Simd<float>::vector;
  static constexpr int half = Simd<double>::lanes;
  typedef float Short __attribute__((vector_size(MATROOT_BYTES / 2)));
  static float narrow(double x) { return static_cast<float>(x); }
  static double widen(float x) { return x; }
  // For what is one instruction with AVX-512, compilers emit two conversions and a merge.
#ifdef __AVX512F__
  static Vector narrow(const Wide& x) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(x.a)), _mm512_cvtpd_ps(x.b),
                              1);
  }
  static Wide widen(const Vector& x) {
    return {_mm512_cvtps_pd(_mm512_castps512_ps256(x)),
            _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1))};
  }
#else
  static Vector narrow(const Wide& x) {
    return join(__builtin_convertvector(x.a, Short), __builtin_convertvector(x.b, Short),
                std::make_integer_sequence<int, 2 * half>());
  }
  static Wide widen(const Vector& x) {
    return {__builtin_convertvector(part<0>(x, std::make_integer_sequence<int, half>()), Half),
            __builtin_convertvector(part<half>(x, std::make_integer_sequence<int, half>()), Half)};
  }

 private:
  template <int... l>
  static Vector join(Short x, Short y, std::integer_sequence<int, l...>) {
    return __builtin_shufflevector(x, y, l...);
  }
  template <int from, int... l>
  static Short part(Vector x, std::integer_sequence<int, l...>) {
    return __builtin_shufflevector(x, x, (from + l)...);
  }
#endif
};

// Transposes the square block of rows x[0] … x[lanes − 1] in place: blocks of 1, 2, 4 … are
// exchanged across the diagonal.
template <int step, class V, int... l>
inline __attribute__((always_inline)) void exchange(V& x, V& y, std::integer_sequence<int, l...>) {
  constexpr int many = sizeof...(l);
  V first = __builtin_shufflevector(x, y, ((l & step) ? many + l - step : l)...);
  y = __builtin_shufflevector(x, y, ((l & step) ? many + l : l + step)...);
  x = first;
}
template <class T, int step = 1>
inline __attribute__((always_inline)) void transpose_block(typename Simd<T>::vector* x) {
  constexpr int many = Simd<T>::lanes;
  if constexpr (step < many) {
    for (int i = 0; i < many; ++i)
      if (!(i & step))
        exchange<step>(x[i], x[i + step], std::make_integer_sequence<int, many>());
    transpose_block<T, 2 * step>(x);
  }
}

// A vector with all lanes of x combined by f, such as a sum, in every lane.
template <int step, class V, int... l>
inline V swapped(const V& x, std::integer_sequence<int, l...>) {
  return __builtin_shufflevector(x, x, (l ^ step)...);
}
template <class T, class F, int step = Simd<T>::lanes / 2>
inline typename Simd<T>::vector fold(const typename Simd<T>::vector& x, F f) {
  if constexpr (step == 0) {
    return x;
  } else {
    auto lanes = std::make_integer_sequence<int, Simd<T>::lanes>();
    return fold<T, F, step / 2>(f(x, swapped<step>(x, lanes)), f);
  }
}
}  // namespace MATROOT_ISA
}  // namespace matroot
