// Runs a kernel on a whole batch: shares its matrices among threads, and gives each its memory.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "isa.hpp"

namespace matroot {

// In a forked process OpenMP's threads no longer exist, and a parallel region would never end.
inline std::atomic<bool> forked{false};

// A MemoryError in Python.
struct NoMemory : std::bad_alloc {
  const char* what() const noexcept override {
    return "matroot's kernels found no memory to work in; fewer or smaller matrices need less";
  }
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

using Memory = std::unique_ptr<void, Free>;

inline Memory allocated(std::size_t bytes) {
  return Memory(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
}

// Calls f with working memory, null if there is none. Each thread keeps some from call to call to
// avoid page faults, which take little of the time of large matrices.
template <class F>
void with_memory(std::size_t bytes, F f) {
#ifdef MATROOT_GUARDED
  constexpr std::size_t most = 0;
#else
  constexpr std::size_t most = 32 << 20;
#endif
  if (bytes > most) return f(allocated(bytes).get());
  thread_local Memory memory;
  thread_local std::size_t size = 0;
  if (bytes > size) {
    memory.reset();
    memory = allocated(bytes);
    size = memory ? bytes : 0;
  }
  f(memory.get());
}

// The number of parts of a task: matrices, or rows of tiles of all matrices.
template <class Task>
std::int64_t parts(const Task& task) {
  return task.batch.count;
}
inline std::int64_t parts(const SymmetriseTask& task) {
  return task.batch.count * tile_rows(task.batch.n);
}

template <class Task>
void run(const Task& task, const Kernel<Task>& kernel) {
  const std::int64_t many = parts(task);
  int threads = task.batch.threads;
  std::int64_t step = kernel.matrices;
  if (kernel.divisible && threads > 1)
    step = std::clamp<std::int64_t>((many + threads - 1) / threads, 1, step);
  const std::int64_t packs = (many + step - 1) / step;
  // Threads share matrices where there are at least twice as many.
  const int team = forked || 2 * packs > threads ? 1 : threads;
  std::atomic<bool> failed{false};
  auto one = [&](std::int64_t pack) {
    const std::int64_t first = pack * step;
    const auto count = std::min<std::int64_t>(step, many - first);
    with_memory(kernel.bytes, [&](void* memory) {
      if (memory != nullptr || kernel.bytes == 0)
        kernel.solve(task, first, static_cast<int>(count), memory, team);
      else
        failed = true;
    });
  };
  threads = static_cast<int>(std::min<std::int64_t>(threads, packs));
  if (threads <= 1 || team > 1 || forked) {
    for (std::int64_t pack = 0; pack < packs; ++pack) one(pack);
  } else {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (std::int64_t pack = 0; pack < packs; ++pack) one(pack);
  }
  if (failed) throw NoMemory();
}

}  // namespace matroot
