// The kernels; compiled once for each instruction set, with its MATROOT_ISA and MATROOT_BYTES.

#include "isa.hpp"

#include "distance.hpp"
#include "eigh.hpp"
#include "frechet.hpp"
#include "measure.hpp"
#include "minimax.hpp"
#include "passes.hpp"
#include "published.hpp"
#include "spectral.hpp"

namespace matroot {
namespace MATROOT_ISA {

// Matrices up to this size are solved one per lane, so that no lane is idle.
constexpr int kLanesUpTo = 24;
static_assert(kLanesUpTo <= kQlUpTo);

template <class K>
static void product(const ProductTask& task, std::int64_t first, int count, void* memory) {
  using T = typename K::Real;
  using V = typename K::Vector;
  const int n = task.batch.n, w = K::width(n);
  const std::int64_t size = std::int64_t(n) * n, offset = first * size;
  V *a = static_cast<V*>(memory), *b = a + n * w, *c = b + n * w;
  K::load(a, task.a.as<const T>() + offset, n, size, count);
  K::load(b, task.b.as<const T>() + offset, n, size, count);
  for (int i = 0; i < task.repeats; ++i) {
    if (task.symmetric) multiply_symmetric<K>(n, c, a, b);
    else multiply<K>(n, n, w, c, nullptr, a, w, 0, b);
  }
  K::store(task.c.as<T>() + offset, c, n, size, count);
}

constexpr int kNumbers = 256;  // in one call of the kernel `function`
static void function(const FunctionTask& task, std::int64_t first, int count, void*) {
  constexpr int lanes = Simd<double>::lanes;
  const double* x = task.x.as<const double>() + first;
  for (int i = 0; i < count; i += lanes) {
    const int many = std::min(lanes, count - i);
    Doubles y{};
    for (int l = 0; l < many; ++l) y[l] = x[i + l];
    y = value(as_power(task.function), y);
    for (int l = 0; l < many; ++l) task.y.as<double>()[first + i + l] = y[l];
  }
}

// A kernel whose products of matrices are shared by a team.
template <auto solve, class Task>
static void by_team(const Task& task, std::int64_t first, int count, void* memory, int threads) {
  const Team scope(threads);
  solve(task, first, count, memory);
}

template <class K>
static Kernels kernels_of(int n) {
  constexpr bool rows = K::matrices == 1;
  using Double = std::conditional_t<rows, Rows<double>, Lanes<double>>;
  const std::size_t products = sizeof(typename K::Vector) * Solver<K>::vectors(n) +
                               sizeof(double) * Solver<K>::doubles(n);
  return {{by_team<solve_minimax<K>, MinimaxTask>, products, K::matrices, false},
          {by_team<solve_eigh<K>, EighTask>, bytes_of<EighSolver<K>>(n), EighSolver<K>::matrices(n), rows},
          {by_team<solve_spectral<K>, SpectralTask>, bytes_of<SpectralMemory<K>>(n), K::matrices, false},
          {by_team<solve_frechet<K>, FrechetTask>, bytes_of<FrechetMemory<K>>(n), K::matrices, false},
          {by_team<solve_distance<Double>, DistanceTask>, bytes_of<DistanceMemory<Double>>(n),
           EighMemory<Double>::together, rows},
          {by_team<solve_published<K>, PublishedTask>, products, K::matrices, false},
          {by_team<solve_measure<Double, typename K::Real>, MeasureTask>, bytes_of<MeasureMemory<Double>>(n),
           Double::matrices, rows},
          {by_team<prepare<typename K::Real>, PrepareTask>, 0, 1, false},
          {by_team<symmetrise<typename K::Real>, SymmetriseTask>, 0, 1, false},
          {by_team<divide<typename K::Real>, DivideTask>, 0, 1, false},
          {by_team<weigh<typename K::Real>, WeighTask>, bytes_of<Differences<Rows<typename K::Real>>>(n), 1, false},
          {by_team<product<K>, ProductTask>, 3 * sizeof(typename K::Vector) * n * K::width(n), K::matrices, false},
          {by_team<function, FunctionTask>, 0, kNumbers, false}};
}

template <class T>
static Kernels kernels_for(int n) {
  if (n <= kLanesUpTo) return kernels_of<Lanes<T>>(n);
  return kernels_of<Rows<T>>(n);
}

Kernels select(bool is_double, int n) {
  return is_double ? kernels_for<double>(n) : kernels_for<float>(n);
}

}  // namespace MATROOT_ISA
}  // namespace matroot
