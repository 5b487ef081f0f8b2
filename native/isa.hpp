// Declarations shared by the bindings and the kernels of every instruction set.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace matroot {

// Another number where a task, a constant or their meaning changes; tasks.py has it too, so that a
// module which was compiled from other sources is not called.
constexpr int kInterface = 1;

// The outcome for a matrix: see Status in screen.py. No caller of the library gets Left.
enum class Status : std::int64_t {
  Ok,
  Diverged,
  Singular,
  Indefinite,
  Asymmetric,
  Nonfinite,
  Left,  // to the reference, which decides
};

// Thresholds for the tests of a matrix; a negative `indefinite` or `singular` turns its test off.
struct Thresholds {
  double skew = 1;         // asymmetric where ‖skew part‖_F > skew · ‖A‖_F
  double indefinite = -1;  // where an eigenvalue is below −indefinite · λ_max
  double singular = -1;    // where an eigenvalue is at most singular · λ_max
  double null = 0;         // eigenvalues up to null · max|λ| are 0 to rounding
  // A negative `indefinite` allows negative eigenvalues; `singular` and `null` then apply to |λ|.
  bool is_real() const { return indefinite < 0; }
};

// An address in the caller's memory, in Python an integer; null (0) if absent or not wanted.
struct Pointer {
  std::uintptr_t address = 0;
  explicit operator bool() const { return address != 0; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(address);
  }
};

// Common to all tasks: contiguous matrices (count, n, n), float or double; the most threads to use.
struct Batch {
  bool is_double = false;
  std::int64_t count = 0;
  int n = 0;
  int threads = 1;
};

// The rows of `info`, (count, 3), int64.
struct Info {
  std::int64_t status, steps, converged;  // converged: 0 no, 1 yes, 2 unknown
};

// The roots of A + eps·I by the coupled iteration; see methods/minimax.py.
struct MinimaxTask {
  Batch batch;
  Pointer a;
  Pointer sqrt, inv_sqrt;  // (count, n, n), or null
  Pointer bounds;          // (count, 2), of the eigenvalues of S, the lower one 0 where S may be
                           // singular; or null
  Pointer info;
  double eps = 0;
  Thresholds thresholds;
  Pointer table;  // (grid, table_steps, 4); see schedules.py
  int table_steps = 0, octave = 0, octaves = 0;
  double tol = 0;
  int max_steps = 0;  // 0: all in the table
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
  double shift = 0;      // A is solved where A + shift · λ_max I has a Cholesky factor
  Pointer coefficients;  // double: those of Z⁰ … Z^degree in P, then in Q
  int degree = 0;
  bool quotient = false;  // whether the roots are Q⁻¹P and P⁻¹Q; otherwise P and Q
};

// A function of a symmetric matrix, by its eigenvalues: x^½, x^−½, x^exponent, log x or e^x.
// Integer exponents and exp take eigenvalues of any sign; for the others null and negative ones
// count as 0.
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
  Pointer roots;         // (count, n), the eigenvalues of S in any order; or null
  Pointer vectors;       // (count, n, n), eigenvectors in columns; or null
  Pointer values;        // double, (count, n), the eigenvalues of A + eps·I; or null
  bool of_root = false;  // whether `a` is S itself, so that `roots` are its eigenvalues
  Pointer info;
  double eps = 0;
  Thresholds thresholds;
};

// S X + X S = R = herm(G_S) − Z herm(G_Z) Z by X = U [(Uᵀ R U)/(s_i + s_j)] Uᵀ; all (count, n, n).
struct SpectralTask {
  Batch batch;
  Pointer roots, vectors;  // as in EighTask
  Pointer z;               // if null, Z is exact, and Uᵀ Z G Z U is (Uᵀ G U)_ij / (s_i s_j)
  Pointer g_sqrt, g_inv;   // one of them may be null
  Pointer x;
  double null = 0;  // X is 0 between eigenvectors whose s are at most null · max s
  Pointer norms;    // (count,), for X by `steps` steps of the sign iteration of S/norm; or null
  int steps = 0;
};

// The squared Bures–Wasserstein distance of A + eps·I and B + eps·I, float, and its gradients.
// Where one of them may be singular or has no root, d² is NaN and the gradients are meaningless.
struct DistanceTask {
  Batch batch;
  Pointer a, b;
  Pointer square;      // double, (count,)
  Pointer by_a, by_b;  // (count, n, n), or null
  double eps = 0;
  Thresholds thresholds;
};

// What is measured of A + eps·I, in units in which its entries are below 1, and of its roots:
// ‖A‖_F, tr A; ‖S‖_F, ‖S² − A‖_F, what S has no eigenvalue below, but for rounding (−shift · ‖S‖_F
// if not a positive number, NaN if not even that), and for R = S² − A ‖S⁻¹ R‖_F, tr (S⁻¹ R)² and
// ‖S⁻¹ R S⁻¹‖_F (infinite where S is not regular); ‖Z‖_F, a bound of ‖Z‖_2, ‖Z A‖_F, ‖Z A Z − I‖_F,
// 1 where Z has a Cholesky factor, else NaN. All are NaN where A is not finite.
constexpr int kMeasures = 13;
struct MeasureTask {
  Batch batch;
  Pointer a;
  Pointer sqrt, inv_sqrt;  // (count, n, n), or null
  Pointer numbers;         // double, (count, kMeasures)
  double eps = 0;
  double shift = 0;
};

// X = Σ_f U [f[λ_i, λ_j] (Uᵀ herm(G_f) U)_ij] Uᵀ, the derivative of Σ_f ⟨f(A), G_f⟩ with respect to
// A; see functions.hpp.
struct FrechetTask {
  Batch batch;
  Pointer values, vectors;  // as in EighTask
  std::vector<Cotangent> cotangents;
  Pointer x;
  Thresholds thresholds;
};

// y = f(x) for `count` numbers in double precision, to test the functions.
struct FunctionTask {
  Batch batch;
  Function function;
  Pointer x, y;
};

// X = (A + eps·I)/2ᵏ, made symmetric, the entries of A/2ᵏ below 1; the identity for a bad matrix.
struct PrepareTask {
  Batch batch;
  Pointer a, x;
  Pointer info;  // (count, 2), int64: status, k
  double eps = 0;
  Thresholds thresholds;
};

constexpr int kSide = 32;  // of the tiles in passes over large matrices
inline int tile_rows(int n) { return (n + kSide - 1) / kSide; }

// X ← (X + Xᵀ)/2.
struct SymmetriseTask {
  Batch batch;
  Pointer x;
};

// R_ij ← (R_ij − Q_ij/(s_i s_j))/(s_i + s_j), 0 where both s are at most null · max s.
struct DivideTask {
  Batch batch;
  Pointer r, q, roots;  // q may be null
  double null = 0;
};

// R_ij ← f[λ_i, λ_j] R_ij, with λ in double precision as in EighTask.
struct WeighTask {
  Batch batch;
  Pointer r, values;
  Function function;
  Thresholds thresholds;
};

// C = A B, computed `repeats` times within the caches: to test and to time the products that the
// other kernels consist of. With `symmetric`, only the upper triangle is computed and mirrored.
struct ProductTask {
  Batch batch;
  Pointer a, b, c;
  bool symmetric = false;
  int repeats = 1;
};

// A kernel for one dtype, size and instruction set. A call solves `count` matrices (or rows of
// tiles) of a task from `first` on, at most `matrices`, with at most `team` threads. `memory` is
// `bytes` of working memory, aligned to a cache line.
template <class Task>
struct Kernel {
  void (*solve)(const Task&, std::int64_t first, int count, void* memory, int team);
  std::size_t bytes;
  int matrices;
  bool divisible;  // whether a call with fewer matrices takes less time
};

struct Kernels {
  Kernel<MinimaxTask> minimax;
  Kernel<EighTask> eigh;
  Kernel<SpectralTask> spectral;
  Kernel<FrechetTask> frechet;
  Kernel<DistanceTask> distance;
  Kernel<PublishedTask> published;
  Kernel<MeasureTask> measure;
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
