// What the bindings and the kernels of every instruction set share.

#pragma once

#include <cstddef>
#include <cstdint>

namespace matroot {

// The roots of contiguous matrices (batch, n, n); see attach.evaluate and methods/minimax.py.
struct MinimaxTask {
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

// The roots by polynomials in Z = I − A/‖A‖_F; see methods/taylor.py and methods/pade.py.
struct PublishedTask {
  const void* a;
  void *sqrt, *inv_sqrt;   // (batch, n, n), or null
  void* norms;             // (batch,), √‖A‖_F; or null
  std::int64_t* info;      // (batch, 3): status (1: not solved), degree, 2 (cannot tell) if solved
  std::int64_t batch;
  int n;
  double eps, skew;        // ridge; largest skew part that is rounding
  double shift;            // solved where A + shift · λ_max I has a Cholesky factor
  const double *p, *q;     // coefficients of Z⁰ … Z^degree
  int degree;
  bool quotient;           // the roots are Q⁻¹P and P⁻¹Q; else P and Q
};

// The roots by eigendecomposition; see methods/eigh.py.
struct EighTask {
  const void* a;
  void *sqrt, *inv_sqrt;   // (batch, n, n), or null
  void *s, *vectors;       // (batch, n), eigenvalues of S in no order; (batch, n, n), in columns
  bool of_root;            // whether what is given is S itself, so that s are its eigenvalues
  std::int64_t* info;      // (batch, 3): status (1: not solved), 1, whether solved
  std::int64_t batch;
  int n;
  double eps, skew;        // ridge; largest skew part that is rounding
  double below, above;     // indefinite below −below · λ_max; singular up to above · λ_max, or < 0
  double kept;             // eigenvalues above kept · max|λ| are inverted
};

// S X + X S = R = herm(G_S) − Z herm(G_Z) Z by X = U [(Uᵀ R U) / (s_i + s_j)] Uᵀ; all (batch, n, n).
struct SpectralTask {
  const void *s, *vectors;     // as in EighTask
  const void* z;               // null: Z is exact, and Uᵀ Z G Z U is (Uᵀ G U)_ij / (s_i s_j)
  const void *g_sqrt, *g_inv;  // one of them may be null
  void* x;
  std::int64_t batch;
  int n;
  double null;  // X is 0 between eigenvectors whose s are up to null · max s
  const void* norms;  // (batch,), for X by `steps` of the sign iteration of S/norm; or null
  int steps;
};

// X = (A + eps·I)/2ᵏ, symmetric, with entries below 1; the identity for a bad matrix.
struct PrepareTask {
  const void* a;
  void* x;             // (batch, n, n)
  std::int64_t* info;  // (batch, 2): status, k
  std::int64_t batch;
  int n;
  double eps, skew;
};

constexpr int kSide = 32;  // of the tiles that passes over large matrices are made in
inline int tile_rows(int n) { return (n + kSide - 1) / kSide; }

struct SymmetriseTask {
  void* x;             // (matrices, n, n)
  std::int64_t batch;  // rows of tiles, of all matrices
  int n;
};

struct DivideTask {
  void* r;
  const void *q, *s;
  std::int64_t batch;
  int n;
  double null;
};

// C = A B, (batch, n, n), made `repeats` times over in the caches: to test and to time the products
// that the other kernels are made of. `symmetric` where C is known to be, from its upper triangle.
struct ProductTask {
  const void *a, *b;
  void* c;
  std::int64_t batch;
  int n;
  bool symmetric;
  int repeats;
};

// A kernel for one dtype, size and instruction set. It solves up to `matrices` matrices of a task,
// `count` of them from `first` on, in `bytes` of memory aligned to a cache line.
template <class Task>
struct Kernel {
  void (*solve)(const Task&, std::int64_t first, int count, void* memory);
  std::size_t bytes;
  int matrices;
  bool divisible;  // whether fewer matrices take less time
};

struct Kernels {
  Kernel<MinimaxTask> minimax;
  Kernel<EighTask> eigh;
  Kernel<SpectralTask> spectral;
  Kernel<PublishedTask> published;
  Kernel<PrepareTask> prepare;
  Kernel<SymmetriseTask> symmetrise;
  Kernel<DivideTask> divide;
  Kernel<ProductTask> product;
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
