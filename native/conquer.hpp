// The eigendecomposition of a tridiagonal matrix T by divide and conquer (M. Gu, S. C. Eisenstat,
// A divide-and-conquer algorithm for the symmetric tridiagonal eigenproblem, SIAM J. Matrix Anal.
// Appl. 16, 1995).
//
// T is torn into leaves, which implicit QL solves one per lane. Two neighbouring blocks are then
// merged: in the basis of their eigenvectors T is diag(d) + ρ z zᵀ, whose eigenvalues λ are the
// roots of the secular equation 1/ρ + Σ z_i²/(d_i − λ) = 0, and whose eigenvectors have the
// components z_i/(d_i − λ). All of that is done for a vector of eigenvalues at a time, so that one
// matrix fills all lanes.
//
// Eigenvalues and what they depend on are in double precision, eigenvectors in the precision of A.

#pragma once

#include <atomic>
#include <numeric>

#include "matrix.hpp"
#include "ql.hpp"

namespace matroot {
namespace MATROOT_ISA {

constexpr int kLeaf = 8;
inline int leaves(int n) { return (n + kLeaf - 1) / kLeaf; }

// What is left out of a pair of blocks, relative to their largest number.
template <class T>
constexpr double kLeftOut = std::is_same_v<T, double> ? 0x1p-50 : 0x1p-44;

// One matrix T, and the eigenpairs of its diagonal blocks as far as they are known.
template <class T>
struct Tridiagonal {
  double* d;      // the diagonal, then the eigenvalues of the blocks
  double* e;      // the off-diagonal: e[i] between rows i and i + 1
  double* first;  // the first component of each eigenvector of a block
  double* last;   // the last one
  int* order;     // the rows of each block by ascending eigenvalue
  T* leaf;        // the eigenvectors of leaves, kLeaf numbers each

  Tridiagonal() = default;
  Tridiagonal(Arena& arena, int n)
      : d(arena.take<double>(n)), e(arena.take<double>(n)), first(arena.take<double>(n)),
        last(arena.take<double>(n)), order(arena.take<int>(n)),
        leaf(arena.take<T>(std::size_t(leaves(n)) * kLeaf * kLeaf)) {}

  // Takes the coupling between leaves out of their diagonals.
  void tear(int n) const {
    for (int i = kLeaf; i < n; i += kLeaf) d[i - 1] -= std::abs(e[i - 1]), d[i] -= std::abs(e[i - 1]);
  }
};

// Where a leaf is.
template <class T>
struct Leaf {
  Tridiagonal<T>* matrix;
  int place;   // of the matrix, among those solved together
  int number;  // of the leaf, in the matrix
};

// The eigenpairs of `count` leaves, one per lane: lane l has which(l). Sets `unsolved` to 1 in the
// places of matrices for which QL did not converge.
template <class T, class Which>
void solve_leaves(int n, int count, Which which, typename Convert<T>::Wide& unsolved) {
  using V = typename Simd<T>::vector;
  using Wide = typename Convert<T>::Wide;
  constexpr int lanes = Simd<T>::lanes;
  V x[kLeaf * kLeaf] = {};
  Wide d[kLeaf] = {}, e[kLeaf] = {}, first[kLeaf] = {}, last[kLeaf] = {};
  for (int i = 0; i < kLeaf; ++i) x[i * kLeaf + i] = V{} + T(1);
  for (int l = 0; l < count; ++l) {
    const auto [matrix, place, number] = which(l);
    const int start = number * kLeaf, size = std::min(kLeaf, n - start);
    for (int i = 0; i < size; ++i) put(d[i], l, matrix->d[start + i]);
    for (int i = 0; i + 1 < size; ++i) put(e[i], l, matrix->e[start + i]);
    put(first[0], l, 1.0), put(last[size - 1], l, 1.0);
  }
  auto rotate = [&](int i, const Wide& c, const Wide& s, const auto& on) {
    const Wide wide_cosine = select(on, c, Wide{} + 1.0), wide_sine = select(on, s, Wide{});
    const V cosine = Convert<T>::narrow(wide_cosine), sine = Convert<T>::narrow(wide_sine);
    V *upper = x + i * kLeaf, *lower = upper + kLeaf;
    for (int j = 0; j < kLeaf; ++j) turn(upper[j], lower[j], cosine, sine);
    turn(first[i], first[i + 1], wide_cosine, wide_sine);
    turn(last[i], last[i + 1], wide_cosine, wide_sine);
  };
  auto failed = implicit_ql(kLeaf, d, e, kLeftOut<T> / 8, [](const Wide&, const Wide&) {}, rotate);
  const Wide wrong = select(failed, Wide{} + 1.0, Wide{});
  for (int l = 0; l < count; ++l) {
    const auto [matrix, place, number] = which(l);
    const int start = number * kLeaf, size = std::min(kLeaf, n - start);
    if (lane<double>(wrong, l) > 0) put(unsolved, place, 1.0);
    for (int i = 0; i < size; ++i) {
      matrix->d[start + i] = lane<double>(d[i], l);
      matrix->first[start + i] = lane<double>(first[i], l);
      matrix->last[start + i] = lane<double>(last[i], l);
    }
    std::iota(matrix->order + start, matrix->order + start + size, start);
    std::sort(matrix->order + start, matrix->order + start + size,
              [&](int i, int j) { return matrix->d[i] < matrix->d[j]; });
  }
  for (int i = 0; i < kLeaf * kLeaf; i += lanes) {
    transpose_block<T>(x + i);
    for (int l = 0; l < count; ++l) {
      const auto [matrix, place, number] = which(l);
      std::memcpy(matrix->leaf + number * kLeaf * kLeaf + i, &x[i + l], sizeof(V));
    }
  }
}

// The blocks whose columns an eigenvector occupies.
enum Part { Upper, Both, Lower };

// Numbers that merges of blocks need.
struct MergeMemory {
  double *d, *square;             // the poles, ascending, and z²
  double *origin, *offset;        // eigenvalue j is origin[j] + offset[j], origin[j] a pole near it
  double *pole, *weight;          // d and z ordered by Part
  double *first, *last;           // those of Tridiagonal, ordered by Part
  double* z;                      // by row of T
  double* entries;                // of an eigenvector, for each thread
  int whole;                      // n in whole vectors
  Part* part;                     // by row of T
  int *sorted, *kept, *deflated;  // rows of T
  MergeMemory() = default;
  MergeMemory(Arena& arena, int n) {
    constexpr int lanes = Simd<double>::lanes;
    whole = (n + lanes - 1) / lanes * lanes;
    for (double** x : {&d, &square, &origin, &offset, &pole, &weight, &first, &last, &z})
      *x = arena.take<double>(whole);
    entries = arena.take<double>(kMostTeam * whole);
    for (int** x : {&sorted, &kept, &deflated}) *x = arena.take<int>(n);
    part = arena.take<Part>(n);
  }
};

// The merges of the blocks of one matrix; see the head of this file.
template <class K>
struct Merges : MergeMemory {
  using T = typename K::Real;
  using V = typename K::Vector;
  using W = typename Simd<double>::vector;
  static constexpr int lanes = Simd<double>::lanes;
  static constexpr double unit = kLeftOut<T>;

  const Tridiagonal<T>& t;
  const int n, w;
  V* vectors;   // the eigenvectors of blocks, in rows
  V* gathered;  // the same rows, those that are combined first, ordered by Part
  V* factors;   // the eigenvectors of diag(d) + ρ z zᵀ, in rows, their entries ordered by Part

  static W& at(double* x, int i) { return *reinterpret_cast<W*>(x + i); }

  // Replaces the eigenvalues of T's leaves by those of T, and sets `vectors` to its eigenvectors.
  // Returns whether all were found.
  bool all() const {
    std::memset(static_cast<void*>(vectors), 0, sizeof(V) * n * w);
    for (int i = 0; i < n; ++i) {
      const int start = i / kLeaf * kLeaf;
      std::memcpy(reinterpret_cast<T*>(vectors + i * w) + start, t.leaf + i * kLeaf,
                  sizeof(T) * std::min(kLeaf, n - start));
    }
    return range(0, leaves(n));
  }
  bool range(int low, int high) const {
    if (high - low < 2) return true;
    const int middle = (low + high) / 2;
    const bool upper = range(low, middle), lower = range(middle, high);
    return pair(low * kLeaf, middle * kLeaf, std::min(high * kLeaf, n)) && upper && lower;
  }

  // Merges the blocks of rows low … middle − 1 and middle … high − 1.
  bool pair(int low, int middle, int high) const {
    const int count = high - low;
    auto ascending = [&](int i, int j) { return t.d[i] < t.d[j]; };
    std::merge(t.order + low, t.order + middle, t.order + middle, t.order + high, sorted,
               ascending);
    double rho = std::abs(t.e[middle - 1]), norm = 0;
    for (int i = low; i < high; ++i) {
      z[i] = i < middle ? t.last[i] : std::copysign(t.first[i], t.first[i] * t.e[middle - 1]);
      (i < middle ? t.last : t.first)[i] = 0;
      part[i] = i < middle ? Upper : Lower;
      norm += z[i] * z[i];
    }
    int exponent = 0;
    std::frexp(std::max({-t.d[sorted[0]], t.d[sorted[count - 1]], rho * norm}), &exponent);
    const double up = std::ldexp(1.0, std::max(exponent, -1000)), down = 1 / up;
    const double length = std::sqrt(norm);
    rho *= norm * down;
    for (int i = low; i < high; ++i) t.d[i] *= down, z[i] /= length;

    const int many = deflate(low, high, rho);
    if (many == 0) {
      for (int i = low; i < high; ++i) t.d[i] *= up;
      std::copy_n(sorted, count, t.order + low);
      return true;
    }
    const bool found = solve_secular(many, rho);
    const auto [upper, both] = gather(many, low, high);
    find_weights(many);
    find_vectors(many, low);
    combine(many, upper, both, low, middle, high);
    for (int i = 0; i < count; ++i) {
      t.d[low + i] = (i < many ? origin[i] + offset[i] : d[i]) * up;
      if (i >= many) t.first[low + i] = first[i], t.last[low + i] = last[i];
    }
    std::iota(sorted, sorted + count, low);
    std::sort(sorted + many, sorted + count, ascending);
    std::merge(sorted, sorted + many, sorted + many, sorted + count, t.order + low, ascending);
    return found;
  }

  // Finds the rows that are eigenvectors of both blocks together, where z is 0 or can be made so by
  // rotating two rows whose eigenvalues are the same. Returns how many are left.
  int deflate(int low, int high, double rho) const {
    const int from = low / K::lanes, end = K::width(high);
    int many = 0, gone = 0, before = -1;
    for (int c = 0; c < high - low; ++c) {
      const int i = sorted[c];
      if (rho * std::abs(z[i]) <= unit) {
        deflated[gone++] = i;
        continue;
      }
      if (before >= 0) {
        const int p = before;
        const double size = std::sqrt(z[p] * z[p] + z[i] * z[i]);
        const double cosine = z[i] / size, sine = z[p] / size, gap = t.d[i] - t.d[p];
        if (std::abs(gap * cosine * sine) <= unit) {
          z[i] = size;
          if (part[p] != part[i]) part[p] = part[i] = Both;
          V *x = vectors + p * w, *y = vectors + i * w;
          for (int v = from; v < end; ++v) turn(x[v], y[v], T(cosine), T(sine));
          turn(t.first[p], t.first[i], cosine, sine);
          turn(t.last[p], t.last[i], cosine, sine);
          const double one = t.d[p] * cosine * cosine, two = t.d[p] * sine * sine;
          t.d[p] = one + t.d[i] * sine * sine, t.d[i] = two + t.d[i] * cosine * cosine;
          deflated[gone++] = p;
        } else {
          kept[many++] = p;
        }
      }
      before = i;
    }
    if (before >= 0) kept[many++] = before;
    for (int j = 0; j < many; ++j) d[j] = t.d[kept[j]], square[j] = z[kept[j]] * z[kept[j]];
    for (int j = 0; j < gone; ++j) d[many + j] = t.d[deflated[j]];
    return many;
  }

  // The sums of t_i = z_i²/(d_i − λ), and of their derivatives, for the poles below and above λ.
  struct Secular {
    W below, above, slope_below, slope_above;
  };
  // λ = origin + offset of lane l lies between poles first + l and first + l + 1.
  Secular secular(int many, int first, const W& origin, const W& offset) const {
    Secular f = {};
    auto term = [&](int i, auto add) {
      const W inverse = reciprocal((d[i] - origin) - offset), t = square[i] * inverse;
      add(t, t * inverse);
    };
    const int mixed = std::min(first + lanes, many);
    int i = 0;
    for (; i < first; ++i)
      term(i, [&](const W& t, const W& slope) { f.below += t, f.slope_below += slope; });
    for (; i < mixed; ++i)
      term(i, [&](const W& t, const W& slope) {
        const W zero{};
        const auto up = t > 0.0;
        f.above += select(up, t, zero), f.slope_above += select(up, slope, zero);
        f.below += select(up, zero, t), f.slope_below += select(up, zero, slope);
      });
    for (; i < many; ++i)
      term(i, [&](const W& t, const W& slope) { f.above += t, f.slope_above += slope; });
    return f;
  }

  // Finds the roots of the secular equation, each between two poles d_j and d_{j+1}, the last one
  // between the last pole and that plus ρ. Returns whether all were found.
  bool solve_secular(int many, double rho) const {
    std::atomic<bool> all{true};
    share((many + lanes - 1) / lanes, 8.0 * many * many / lanes, [&](int part) {
      if (!find_roots(many, lanes * part, rho)) all = false;
    });
    return all;
  }

  // The same for a vector of roots from `begin` on. The equation is replaced by one with two poles
  // alone, which has the same value and slope and the pole at the origin (R.-C. Li, Solving secular
  // equations stably and efficiently, LAPACK Working Note 89, 1993); where that is slow, the slopes
  // of the terms below and above are kept.
  bool find_roots(int many, int begin, double rho) const {
    constexpr int most = 60;
    const W zero{}, one = zero + 1.0;
    W lower, upper, at_lower, at_upper, is_last = zero;
    for (int l = 0; l < lanes; ++l) {
      const int i = std::min(begin + l, many - 1);
      const bool end = i == many - 1;
      lower[l] = d[i], upper[l] = end ? d[i] + rho : d[i + 1];
      at_lower[l] = square[i], at_upper[l] = end ? 0.0 : square[i + 1], is_last[l] = end;
    }
    const W gap = upper - lower, half = 0.5 * gap;
    Secular f = secular(many, begin, lower, half);
    W value = 1 / rho + (f.below + f.above);
    const auto before_half = value >= 0.0, left = before_half | (is_last > 0.0);
    const W start = select(left, lower, upper), sign = select(left, one, -one);
    W low = select(left, select(before_half, zero, half), -half);
    W high = select(left, select(before_half, half, gap), zero);
    auto quadratic = [&](const W& a, const W& b, const W& c) {
      const W r = root(larger(a * a - 4.0 * b * c, zero));
      return select(a > 0.0, 2.0 * b / (a + r), (a - r) / (2.0 * c));
    };
    auto inside = [&](const W& y) { return (y > low) & (y < high); };
    // The first guess takes all other terms for constant.
    const W rest = value + (at_lower - at_upper) / half;
    W x = quadratic(at_lower + at_upper + sign * rest * gap,
                    sign * select(left, at_lower, at_upper) * gap, rest);
    x = select(inside(x), x, 0.5 * (low + high));
    W done = zero, error = magnitude(value), slow = zero;
    for (int step = 0; step < most; ++step) {
      f = secular(many, begin, start, x);
      value = 1 / rho + (f.below + f.above);
      const W slope = f.slope_below + f.slope_above, before = error;
      const W size = 1 / rho + (f.above - f.below);
      error = magnitude(value);
      const auto exact = error <= unit * size, narrow = high - low <= 0x1p-51 * magnitude(x);
      done = select(exact | narrow, one, done);
      if (!any(done < 1.0)) break;
      low = select(value < 0.0, x, low), high = select(value < 0.0, high, x);
      slow = select(error > 0.1 * before, one - slow, slow);
      const W to_lower = (lower - start) - x, to_upper = (upper - start) - x;
      const W product = to_lower * to_upper;
      const W c_left = value - to_upper * slope + gap * at_lower / (to_lower * to_lower);
      const W c_right = value - to_lower * slope - gap * at_upper / (to_upper * to_upper);
      const W c_slow = value - to_lower * f.slope_below - to_upper * f.slope_above;
      const W c = select(slow > 0.0, c_slow, select(left, c_left, c_right));
      W change = quadratic((to_lower + to_upper) * value - product * slope, product * value, c);
      change = select(change * value < 0.0, change, -value / slope);
      W next = x + change;
      next = select(inside(next), next, 0.5 * (low + high));
      if (step % 8 == 7) next = 0.5 * (low + high);
      x = select(done < 1.0, next, x);
    }
    at(origin, begin) = start, at(offset, begin) = x;
    return !any(done < 1.0);
  }

  // Orders what is left by Part, and what is not after it. Returns how many are Upper and Both.
  std::pair<int, int> gather(int many, int low, int high) const {
    const int from = low / K::lanes, end = K::width(high);
    int place = 0, counts[3] = {};
    auto take = [&](int i) {
      first[place] = t.first[i], last[place] = t.last[i];
      std::memcpy(static_cast<void*>(gathered + place * w + from), vectors + i * w + from,
                  sizeof(V) * (end - from));
      ++place;
    };
    for (Part which : {Upper, Both, Lower})
      for (int j = 0; j < many; ++j)
        if (part[kept[j]] == which) {
          pole[place] = d[j], weight[place] = z[kept[j]];
          take(kept[j]);
          ++counts[which];
        }
    for (int i = many; i < (many + lanes - 1) / lanes * lanes; ++i) pole[i] = 8, weight[i] = 0;
    for (int j = 0; j < high - low - many; ++j) take(deflated[j]);
    // Their weight is 0, which times NaN would be NaN.
    for (; place < (many + lanes - 1) / lanes * lanes; ++place) first[place] = last[place] = 0;
    return {counts[Upper], counts[Both]};
  }

  // Replaces the weights z by those for which the computed eigenvalues are exact, so that the
  // eigenvectors are orthogonal: ẑ_i² = Π_j (λ_j − d_i) / Π_{j≠i} (d_j − d_i), but for a factor that
  // all of them have.
  void find_weights(int many) const {
    const W one = W{} + 1.0;
    for (int i = 0; i < many; i += lanes) {
      const W x = at(pole, i);
      W result = one;
      for (int j = 0; j < many;) {
        W above = one, below = one;
        for (const int end = std::min(j + 8, many); j < end; ++j) {
          const W gap = x - d[j];
          above = above * ((x - origin[j]) - offset[j]);
          below = below * select(gap == 0.0, one, gap);
        }
        result = result * (above / below);
      }
      const W size = root(magnitude(result)), z = at(weight, i);
      at(weight, i) = select(z > 0.0, size, select(z < 0.0, -size, z));
    }
  }

  // The eigenvectors ẑ_i/(d_i − λ_j) of length 1, and the ends of those of T.
  void find_vectors(int many, int low) const {
    const int parts = std::min(team, many);
    share(parts, 2.0 * many * many / lanes, [&](int part) {
      for (int j = many * part / parts; j < many * (part + 1) / parts; ++j)
        find_vector(many, low, j, entries + part * whole);
    });
  }
  void find_vector(int many, int low, int j, double* entry) const {
    const double near = origin[j], apart = offset[j];
    W squares{}, begin{}, end{};
    for (int i = 0; i < many; i += lanes) {
      const W x = at(weight, i) * reciprocal((at(pole, i) - near) - apart);
      at(entry, i) = x;
      squares += x * x, begin += x * at(first, i), end += x * at(last, i);
    }
    const double scale = 1 / std::sqrt(Rows<double>::total(squares));
    for (int i = 0; i < many; i += lanes) at(entry, i) = at(entry, i) * scale;
    K::narrow_row(factors + j * w, &at(entry, 0), many);
    t.first[low + j] = Rows<double>::total(begin) * scale;
    t.last[low + j] = Rows<double>::total(end) * scale;
  }

  // Sets the rows of both blocks: first the combined ones, then those that were left out.
  void combine(int many, int upper, int both, int low, int middle, int high) const {
    const int from = low / K::lanes, between = middle / K::lanes, end = K::width(high);
    const int tiles = (many + kRows - 1) / kRows, parts = std::min(team, tiles);
    share(parts, 0.5 * many * many * (end - from), [&](int part) {
      const int start = tiles * part / parts * kRows;
      const int rows = std::min(tiles * (part + 1) / parts * kRows, many) - start;
      auto columns = [&](int v, int stop, int column, int depth) {
        panels(v, stop, [&](int v, auto count) {
          panel<K, decltype(count)::value>(rows, vectors + (low + start) * w + v, w, nullptr, w,
                                           factors + start * w, w, column,
                                           gathered + column * w + v, w, depth, 1);
        });
      };
      if (middle % K::lanes == 0) {
        columns(from, between, 0, upper + both);
        columns(between, end, upper, many - upper);
      } else {
        columns(from, end, 0, many);
      }
    });
    for (int i = many; i < high - low; ++i)
      std::memcpy(static_cast<void*>(vectors + (low + i) * w + from), gathered + i * w + from,
                  sizeof(V) * (end - from));
  }
};

}  // namespace MATROOT_ISA
}  // namespace matroot
