// Bindings: plain addresses in, whole batches out. Which instruction set runs is decided once;
// threads are OpenMP's, of the runtime that PyTorch has loaded.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>

#include "isa.hpp"

namespace nb = nanobind;
using namespace matroot;

namespace {

struct InstructionSet {
  const char* name;
  Kernels (*select)(bool is_double, int n);
};

const InstructionSet& instruction_set() {
  static const InstructionSet found = [] {
    const char* wish = std::getenv("MATROOT_ISA");  // to compare them; not more than there is
    [[maybe_unused]] auto wanted = [&](const char* name) {
      return wish == nullptr || *wish == 0 || std::string(wish) == name;
    };
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (wanted("avx512") && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
      return InstructionSet{"avx512", avx512::select};
    if (wanted("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      return InstructionSet{"avx2", avx2::select};
#endif
    return InstructionSet{"baseline", baseline::select};
  }();
  return found;
}

// After a fork OpenMP's threads are gone but not forgotten, and waiting for them hangs.
std::atomic<bool> forked{false};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Working memory that a thread keeps, so that a call does not fault fresh pages in.
void* working_memory(std::size_t bytes) {
  thread_local std::unique_ptr<void, Free> memory;
  thread_local std::size_t size = 0;
  if (bytes > size) {
    memory.reset();
    size = 0;
    std::size_t whole = (bytes + 63) / 64 * 64;
    memory.reset(std::aligned_alloc(64, whole));
    if (memory) size = whole;
  }
  return memory.get();
}

template <class Task>
void run(const Task& task, const Kernel<Task>& kernel, int threads) {
  std::int64_t step = kernel.matrices;
  if (kernel.divisible && threads > 1)
    step = std::clamp<std::int64_t>((task.batch + threads - 1) / threads, 1, step);
  const std::int64_t packs = (task.batch + step - 1) / step;
  std::atomic<bool> failed{false};
  auto one = [&](std::int64_t pack) {
    void* memory = working_memory(kernel.bytes);
    if (memory == nullptr && kernel.bytes > 0) {
      failed = true;
      return;
    }
    const std::int64_t first = pack * step;
    const auto count = std::min<std::int64_t>(step, task.batch - first);
    kernel.solve(task, first, static_cast<int>(count), memory);
  };
  threads = static_cast<int>(std::min<std::int64_t>(threads, packs));
  if (threads <= 1 || forked) {
    for (std::int64_t pack = 0; pack < packs; ++pack) one(pack);
  } else {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (std::int64_t pack = 0; pack < packs; ++pack) one(pack);
  }
  if (failed) throw std::bad_alloc();
}

// Which statuses occur, status k as bit k.
int statuses(const std::int64_t* info, std::int64_t batch) {
  int found = 0;
  for (std::int64_t i = 0; i < batch; ++i) found |= 1 << info[3 * i];
  return found;
}

template <class T = void>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

int minimax(bool is_double, std::uintptr_t a, std::uintptr_t sqrt, std::uintptr_t inv_sqrt,
               std::uintptr_t bounds, std::uintptr_t info, std::int64_t batch, int n, double eps,
             double skew, std::uintptr_t table, int table_steps, int octave, int octaves,
             double tol, int max_steps, int threads) {
  const MinimaxTask task{at(a),   at(sqrt), at(inv_sqrt), at(bounds), at<std::int64_t>(info), batch,
                      n,       eps,      skew,         at(table),
                      table_steps, octave, octaves, tol, max_steps};
  run(task, instruction_set().select(is_double, n).minimax, threads);
  return statuses(task.info, batch);
}

int published(bool is_double, std::uintptr_t a, std::uintptr_t sqrt, std::uintptr_t inv_sqrt,
              std::uintptr_t norms, std::uintptr_t info, std::int64_t batch, int n, double eps,
              double skew, double shift, std::uintptr_t coefficients, int degree, bool quotient,
              int threads) {
  const double* p = at<const double>(coefficients);
  const PublishedTask task{at(a), at(sqrt), at(inv_sqrt), at(norms), at<std::int64_t>(info), batch,
                           n, eps, skew, shift, p, p + degree + 1, degree, quotient};
  run(task, instruction_set().select(is_double, n).published, threads);
  return statuses(task.info, batch);
}

int eigh(bool is_double, std::uintptr_t a, std::uintptr_t sqrt, std::uintptr_t inv_sqrt,
         std::uintptr_t s, std::uintptr_t vectors, bool of_root, std::uintptr_t info,
         std::int64_t batch, int n, double eps, double skew, double below, double above,
         double kept, int threads) {
  const EighTask task{at(a), at(sqrt), at(inv_sqrt), at(s), at(vectors), of_root,
                      at<std::int64_t>(info), batch, n, eps, skew, below, above, kept};
  run(task, instruction_set().select(is_double, n).eigh, threads);
  return statuses(task.info, batch);
}

void spectral(bool is_double, std::uintptr_t s, std::uintptr_t vectors, std::uintptr_t z,
              std::uintptr_t g_sqrt, std::uintptr_t g_inv, std::uintptr_t x, std::int64_t batch,
              int n, double null, std::uintptr_t norms, int steps, int threads) {
  const SpectralTask task{at(s), at(vectors), at(z), at(g_sqrt), at(g_inv), at(x), batch, n, null,
                          at(norms), steps};
  run(task, instruction_set().select(is_double, n).spectral, threads);
}

void prepare(bool is_double, std::uintptr_t a, std::uintptr_t x, std::uintptr_t info,
             std::int64_t batch, int n, double eps, double skew, int threads) {
  const PrepareTask task{at(a), at(x), at<std::int64_t>(info), batch, n, eps, skew};
  run(task, instruction_set().select(is_double, n).prepare, threads);
}

void symmetrise(bool is_double, std::uintptr_t x, std::int64_t batch, int n, int threads) {
  const SymmetriseTask task{at(x), batch * tile_rows(n), n};
  run(task, instruction_set().select(is_double, n).symmetrise, threads);
}

void divide(bool is_double, std::uintptr_t r, std::uintptr_t q, std::uintptr_t s,
            std::int64_t batch, int n, double null, int threads) {
  run(DivideTask{at(r), at(q), at(s), batch, n, null},
      instruction_set().select(is_double, n).divide, threads);
}

void product(bool is_double, std::uintptr_t a, std::uintptr_t b, std::uintptr_t c,
             std::int64_t batch, int n, bool symmetric, int repeats, int threads) {
  run(ProductTask{at(a), at(b), at(c), batch, n, symmetric, repeats},
      instruction_set().select(is_double, n).product, threads);
}

}  // namespace

NB_MODULE(_native, m) {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  m.def("minimax", &minimax, nb::call_guard<nb::gil_scoped_release>());
  m.def("published", &published, nb::call_guard<nb::gil_scoped_release>());
  m.def("eigh", &eigh, nb::call_guard<nb::gil_scoped_release>());
  m.def("spectral", &spectral, nb::call_guard<nb::gil_scoped_release>());
  m.def("prepare", &prepare, nb::call_guard<nb::gil_scoped_release>());
  m.def("symmetrise", &symmetrise, nb::call_guard<nb::gil_scoped_release>());
  m.def("divide", &divide, nb::call_guard<nb::gil_scoped_release>());
  m.def("product", &product, nb::call_guard<nb::gil_scoped_release>());
  m.def("instruction_set", [] { return std::string(instruction_set().name); });
}
