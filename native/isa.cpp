// The kernels; compiled once for each instruction set, with its MATROOT_ISA and MATROOT_BYTES.

#include "isa.hpp"

#include "distance.hpp"
#include "eigh.hpp"
#include "frechet.hpp"
#include "minimax.hpp"
#include "passes.hpp"
#include "published.hpp"
#include "spectral.hpp"

namespace matroot {
namespace MATROOT_ISA {

// Matrices up to this size are solved one per lane, so that no lane is idle.
constexpr int kLanesUpTo = 24;

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

template <class K>
static Kernels kernels_of(int n) {
  constexpr bool rows = K::matrices == 1;
  using Double = std::conditional_t<rows, Rows<double>, Lanes<double>>;
  const std::size_t products = sizeof(typename K::Vector) * Solver<K>::vectors(n) +
                               sizeof(double) * Solver<K>::doubles(n);
  return {{solve_minimax<K>, products, K::matrices, false},
          {solve_eigh<K>, bytes_of<EighMemory<K>>(n), EighMemory<K>::together, rows},
          {solve_spectral<K>, bytes_of<SpectralMemory<K>>(n), K::matrices, false},
          {solve_frechet<K>, bytes_of<FrechetMemory<K>>(n), K::matrices, false},
          {solve_distance<Double>, bytes_of<DistanceMemory<Double>>(n),
           EighMemory<Double>::together, rows},
          {solve_published<K>, products, K::matrices, false},
          {prepare<typename K::Real>, 0, 1, false},
          {symmetrise<typename K::Real>, 0, 1, false},
          {divide<typename K::Real>, 0, 1, false},
          {weigh<typename K::Real>, bytes_of<Differences<Rows<typename K::Real>>>(n), 1, false},
          {product<K>, 3 * sizeof(typename K::Vector) * n * K::width(n), K::matrices, false},
          {function, 0, kNumbers, false}};
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
