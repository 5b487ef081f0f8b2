// The gradient of the roots by division by s_i + s_j in the basis of the eigenvectors. The
// reference is gradients/spectral.py.

#pragma once

#include "isa.hpp"
#include "matrix.hpp"

namespace matroot {
namespace MATROOT_ISA {

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

// Replaces R by the result of `steps` steps of the sign iteration, in the basis of the eigenvectors
// of S; overwrites s. See BySign in lyapunov_solvers.py: with B₀ = S/norm and C₀ = R/norm,
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
      // Minimum norm. Where s_i = 0 the steps give R/(2 s_j), but the solution is R/s_j.
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

  // Sets m.g to the symmetric part of a cotangent.
  auto load = [&](Pointer g) {
    K::load(m.g, g.as<const T>() + offset, n, size, count);
    K::transpose(m.t, m.g, n);
    for (int i = 0; i < n * w; ++i) m.g[i] = m.g[i] * T(0.5) + m.t[i] * T(0.5);
  };
  // to = left · m.g · right, which must be symmetric; `right` must not be m.t.
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
