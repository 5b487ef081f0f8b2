// What the bindings and the kernels of every instruction set share.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace matroot {

// What became of a matrix: see Status in screen.py, where Left does not leave its caller.
enum class Status : std::int64_t {
  Ok,
  Diverged,
  Singular,
  Indefinite,
  Asymmetric,
  Nonfinite,
  Left,  // by this kernel to the reference, which decides
};

// What a matrix is tested for. Where `indefinite` or `singular` is negative, it is not.
struct Thresholds {
  double skew = 1;         // asymmetric where ‖skew part‖_F > skew · ‖A‖_F
  double indefinite = -1;  // where an eigenvalue is below −indefinite · λ_max
  double singular = -1;    // where one is up to singular · λ_max
  double null = 0;         // eigenvalues up to null · max|λ| are 0 to rounding
  // Where `indefinite` is negative, so that eigenvalues may be, it is |λ| that is up to these.
  bool is_real() const { return indefinite < 0; }
};

// Memory of the caller's, from Python as an integer; 0 is null: not there, or not wanted.
struct Pointer {
  std::uintptr_t address = 0;
  explicit operator bool() const { return address != 0; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(address);
  }
};

// What all tasks have: contiguous matrices (count, n, n), float or double, and threads at most.
struct Batch {
  bool is_double = false;
  std::int64_t count = 0;
  int n = 0;
  int threads = 1;
};

// The rows of `info`, (count, 3), int64.
struct Info {
  std::int64_t status, steps, converged;  // 0 no, 1 yes, 2 cannot tell
};

// The roots of A + eps·I by the coupled iteration; see methods/minimax.py.
struct MinimaxTask {
  Batch batch;
  Pointer a;
  Pointer sqrt, inv_sqrt;  // (count, n, n), or null
  Pointer bounds;          // (count, 2) of S, the lower one 0 where it may be singular; or null
  Pointer info;
  double eps = 0;
  Thresholds thresholds;
  Pointer table;  // (grid, table_steps, 4); see schedules.py
  int table_steps = 0, octave = 0, octaves = 0;
  double tol = 0;
  int max_steps = 0;  // 0: as many as the table has
};

// The roots of A + eps·I by polynomials in Z = I − A/‖A‖_F; see methods/taylor.py and
// methods/pade.py.
struct PublishedTask {
  Batch batch;
  Pointer a;
  Pointer sqrt, inv_sqrt;  // (count, n, n), or null
  Pointer norms;           // (count,), √‖A‖_F; or null
  Pointer info;
  double eps = 0;
  Thresholds thresholds;
  double shift = 0;      // solved where A + shift · λ_max I has a Cholesky factor
  Pointer coefficients;  // double: of Z⁰ … Z^degree, of P and then of Q
  int degree = 0;
  bool quotient = false;  // the roots are Q⁻¹P and P⁻¹Q; else P and Q
};

// A function of a symmetric matrix, by its eigenvalues: x^½, x^−½, x^exponent, log x or e^x. Integer
// exponents take eigenvalues of any sign; else, and for log, null and negative ones count as 0.
enum class Kind : int { Sqrt, InvSqrt, Power, Log, Exp };
struct Function {
  Kind kind = Kind::Sqrt;
  double exponent = 0;
};

struct Output {
  Function function;
  Pointer x;  // (count, n, n)
};
struct Cotangent {
  Function function;
  Pointer g;  // (count, n, n)
};

// Functions of A + eps·I by one eigendecomposition; see methods/eigh.py.
struct EighTask {
  Batch batch;
  Pointer a;
  std::vector<Output> outputs;
  Pointer roots;         // (count, n), the eigenvalues of S in no order; or null
  Pointer vectors;       // (count, n, n), in columns; or null
  Pointer values;        // double, (count, n), the eigenvalues of A + eps·I; or null
  bool of_root = false;  // whether what is given is S itself, so that `roots` are its eigenvalues
  Pointer info;
  double eps = 0;
  Thresholds thresholds;
};

// S X + X S = R = herm(G_S) − Z herm(G_Z) Z by X = U [(Uᵀ R U) / (s_i + s_j)] Uᵀ; all (count, n, n).
struct SpectralTask {
  Batch batch;
  Pointer roots, vectors;  // as in EighTask
  Pointer z;               // null: Z is exact, and Uᵀ Z G Z U is (Uᵀ G U)_ij / (s_i s_j)
  Pointer g_sqrt, g_inv;   // one of them may be null
  Pointer x;
  double null = 0;  // X is 0 between eigenvectors whose s are up to null · max s
  Pointer norms;    // (count,), for X by `steps` of the sign iteration of S/norm; or null
  int steps = 0;
};

// The squared Bures–Wasserstein distance of A + eps·I and B + eps·I, float, and its gradients. NaN is
// d² where one of them may be singular or has no root; the gradients mean nothing there.
struct DistanceTask {
  Batch batch;
  Pointer a, b;
  Pointer square;      // double, (count,)
  Pointer by_a, by_b;  // (count, n, n), or null
  double eps = 0;
  Thresholds thresholds;
};

// X = Σ_f U [f[λ_i, λ_j] (Uᵀ herm(G_f) U)_ij] Uᵀ, the derivative of Σ_f ⟨f(A), G_f⟩ by A; see
// functions.hpp.
struct FrechetTask {
  Batch batch;
  Pointer values, vectors;  // as in EighTask
  std::vector<Cotangent> cotangents;
  Pointer x;
  Thresholds thresholds;
};

// y = f(x) of numbers in double precision, `count` of them: to test the functions.
struct FunctionTask {
  Batch batch;
  Function function;
  Pointer x, y;
};

// X = (A + eps·I)/2ᵏ, symmetric, with entries below 1; the identity for a bad matrix.
struct PrepareTask {
  Batch batch;
  Pointer a, x;
  Pointer info;  // (count, 2), int64: status, k
  double eps = 0;
  Thresholds thresholds;
};

constexpr int kSide = 32;  // of the tiles that passes over large matrices are made in
inline int tile_rows(int n) { return (n + kSide - 1) / kSide; }

// X ← (X + Xᵀ)/2.
struct SymmetriseTask {
  Batch batch;
  Pointer x;
};

// R_ij ← (R_ij − Q_ij/(s_i s_j))/(s_i + s_j), 0 where both s are up to null · max s.
struct DivideTask {
  Batch batch;
  Pointer r, q, roots;  // q may be null
  double null = 0;
};

// R_ij ← f[λ_i, λ_j] R_ij, the values in double precision as in EighTask.
struct WeighTask {
  Batch batch;
  Pointer r, values;
  Function function;
  Thresholds thresholds;
};

// C = A B made `repeats` times over in the caches: to test and to time the products that the other
// kernels are made of. `symmetric` where C is known to be, from its upper triangle.
struct ProductTask {
  Batch batch;
  Pointer a, b, c;
  bool symmetric = false;
  int repeats = 1;
};

// A kernel for one dtype, size and instruction set. It solves up to `matrices` matrices (or rows of
// tiles) of a task, `count` of them from `first` on, in `bytes` of memory aligned to a cache line.
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
  Kernel<FrechetTask> frechet;
  Kernel<DistanceTask> distance;
  Kernel<PublishedTask> published;
  Kernel<PrepareTask> prepare;
  Kernel<SymmetriseTask> symmetrise;
  Kernel<DivideTask> divide;
  Kernel<WeighTask> weigh;
  Kernel<ProductTask> product;
  Kernel<FunctionTask> function;
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
