// What the bindings and the kernels of every instruction set share.

#pragma once

#include <cstddef>
#include <cstdint>

namespace matroot {

// The roots of contiguous matrices (batch, n, n); see attach.evaluate and methods/minimax.py.
struct RootTask {
  const void* a;
  void *sqrt, *inv_sqrt;    // (batch, n, n), or null
  void* bounds;             // (batch, 2) of S, the lower one 0 where it may be singular; or null
  std::int64_t* info;       // (batch, 3): status (1: not solved), steps, converged
  std::int64_t batch;
  int n;
  double eps, skew;         // ridge; largest skew part that is rounding
  const void* table;        // (grid, steps, 4); see minimax.schedules
  int table_steps, octave, octaves;
  double tol;
  int max_steps;
};

// S X + X S = herm(G_S) − Z herm(G_Z) Z, the gradient of both roots; all (batch, n, n).
struct LyapunovTask {
  const void *s, *z;             // Z, or null where there is no G_Z
  const void *g_sqrt, *g_inv;    // one of them may be null
  const void* bounds;            // (batch, 2) of S, the lower one above 0
  void* x;
  std::int64_t batch;
  int n;
};

// The kernels of one dtype, size and instruction set. They solve `count` ≤ `matrices` matrices of a
// task from `first` on, in `bytes` of memory aligned to a cache line.
struct Kernels {
  int matrices;
  std::size_t bytes;
  void (*roots)(const RootTask&, std::int64_t first, int count, void* memory);
  void (*lyapunov)(const LyapunovTask&, std::int64_t first, int count, void* memory);
};

#define MATROOT_DECLARE(isa) \
  namespace isa {            \
  Kernels select(bool is_double, int n); \
  }
MATROOT_DECLARE(baseline)
MATROOT_DECLARE(avx2)
MATROOT_DECLARE(avx512)
#undef MATROOT_DECLARE

}  // namespace matroot
