// The kernels for one instruction set: compiled once for each, with MATROOT_ISA and MATROOT_BYTES.

#include "isa.hpp"

#include "solve.hpp"

namespace matroot {
namespace MATROOT_ISA {

// Small matrices go a matrix a lane, so that no lane idles.
constexpr int kLanesUpTo = 16;

template <class K>
static Kernels kernels_of(int n) {
  size_t bytes = sizeof(typename K::Vector) * Solver<K>::vectors(n) +
                 sizeof(double) * Solver<K>::doubles(n);
  return {K::matrices, bytes, solve_roots<K>, solve_lyapunov<K>};
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
