// The threads that work on one matrix, where a call has fewer matrices than threads.

#pragma once

namespace matroot {
namespace MATROOT_ISA {

constexpr int kMostTeam = 8;

// How many there are for this call of a kernel, itself included.
inline thread_local int team = 1;

struct Team {
  explicit Team(int threads) { team = threads < kMostTeam ? threads : kMostTeam; }
  ~Team() { team = 1; }
};

// Calls f(part) for 0 … parts − 1, in any order. `work` is about how many vector operations they
// are; below some, starting threads would take longer.
template <class F>
inline void share(int parts, double work, F f) {
  constexpr double least = 1 << 18;
  if (team == 1 || parts == 1 || work < least) {
    for (int part = 0; part < parts; ++part) f(part);
    return;
  }
#pragma omp parallel for num_threads(team < parts ? team : parts) schedule(dynamic, 1)
  for (int part = 0; part < parts; ++part) f(part);
}

}  // namespace MATROOT_ISA
}  // namespace matroot
