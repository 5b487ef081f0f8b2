// Feeds the kernels with what a string of bytes describes: which kernel, instruction set, dtype,
// sizes, threads, places in memory, options, and matrices down to the bits of single entries.
//
// Whatever the bytes, a kernel must leave its input as it was, write all of its output, find for
// each matrix what it finds for that matrix alone, and return roots that are finite and
// square to the matrix, or NaN with a status that says why. libFuzzer looks for bytes that break
// this or that its sanitizers object to; without libFuzzer, `main` runs recorded bytes.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "isa.hpp"
#include "run.hpp"

using namespace matroot;

namespace {

char trial_in_words[200] = "no trial";

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "%s: %s\n", trial_in_words, what);
  std::abort();
}

// Numbers from the bytes, 0 where these have ended.
struct Bytes {
  const std::uint8_t* next;
  const std::uint8_t* end;
  bool left() const { return next < end; }
  template <class N>
  N take() {
    N x{};
    const std::size_t size = std::min<std::size_t>(sizeof(N), end - next);
    if (size > 0) std::memcpy(&x, next, size);
    next += size;
    return x;
  }
  int below(int limit) { return take<std::uint8_t>() % limit; }
};

struct Random {
  std::uint64_t state;
  double uniform() {  // in [−1, 1); Vigna's xorshift
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return double(std::int64_t(state * 0x2545f4914f6cdd1dULL)) * 0x1p-63;
  }
};

// An array of exactly this size on the heap, where a sanitizer sees what lies beside it, that
// begins some bytes after a cache line.
struct Block {
  std::vector<char> bytes;
  std::size_t offset = 0;
  Block() = default;
  Block(std::size_t size, std::size_t offset) : bytes(size + offset), offset(offset) {
    bytes.shrink_to_fit();
  }
  char* data() { return bytes.data() + offset; }
  std::size_t size() const { return bytes.size() - offset; }
};

// What fresh outputs hold, once or twice: a NaN that is in no input, and that no computation makes.
constexpr std::uint32_t kUnwritten[] = {0xfff7adbe, 0xfff7adbe};

enum class Role { In, Out, InOut };
struct Slot {
  Pointer* address;  // in the task
  Role role;
  std::size_t number;  // bytes of one, 4 or 8
  std::size_t each;    // numbers of one matrix
  bool is_integer = false;
  Block block{}, before{};
};

void blank(Block& block) {
  for (std::size_t i = 0; i + 4 <= block.size(); i += 4)
    std::memcpy(block.data() + i, kUnwritten, 4);
}

double number_at(const Slot& slot, const char* from, std::size_t i) {
  if (slot.number == 4) {
    float x;
    std::memcpy(&x, from + 4 * i, 4);
    return x;
  }
  double x;
  std::memcpy(&x, from + 8 * i, 8);
  return x;
}

// Bits, but for the signs of zeros and NaN.
bool same(const Slot& slot, const char* x, const char* y, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    if (std::memcmp(x + i * slot.number, y + i * slot.number, slot.number) == 0) continue;
    if (slot.is_integer) return false;
    const double a = number_at(slot, x, i), b = number_at(slot, y, i);
    if (a == b || (std::isnan(a) && std::isnan(b))) continue;
    std::fprintf(stderr, "number %zu: %.17g with others, %.17g alone\n", i, a, b);
    return false;
  }
  return true;
}

template <class Task>
void run_and_check(Task& task, const Kernel<Task>& kernel, std::vector<Slot>& slots, int threads,
                   int alone) {
  for (Slot& slot : slots) {
    slot.before = slot.block;
    *slot.address = {reinterpret_cast<std::uintptr_t>(slot.block.data())};
  }
  task.batch.threads = threads;
  run(task, kernel);
  for (Slot& slot : slots) {
    const std::size_t size = slot.block.size();
    if (slot.role == Role::In && std::memcmp(slot.block.data(), slot.before.data(), size) != 0)
      fail("the input has changed");
    for (std::size_t i = 0; slot.role == Role::Out && i < size; i += slot.number)
      if (std::memcmp(slot.block.data() + i, kUnwritten, slot.number) == 0)
        fail("output not written");
  }
  // Again, one matrix alone.
  const std::int64_t count = task.batch.count;
  std::vector<Block> single;
  for (Slot& slot : slots) {
    const std::size_t bytes = slot.number * slot.each;
    single.emplace_back(bytes, 0);
    if (slot.role == Role::Out) blank(single.back());
    else std::memcpy(single.back().data(), slot.before.data() + alone * bytes, bytes);
  }
  for (std::size_t i = 0; i < slots.size(); ++i)
    *slots[i].address = {reinterpret_cast<std::uintptr_t>(single[i].data())};
  task.batch.count = 1, task.batch.threads = 1 + threads % 4;
  run(task, kernel);
  task.batch.count = count;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const std::size_t bytes = slots[i].number * slots[i].each;
    if (!same(slots[i], slots[i].block.data() + alone * bytes, single[i].data(), slots[i].each))
      fail("a matrix alone has another result");
  }
}

const double kSpecial[] = {0.0,     -0.0,    1.0,     -1.0,   0x1p-1074, -0x1p-1074, 0x1p-149,
                           0x1p-126, 0x1p-1022, 1e-300, 1e300, -1e300,   0x1.fffffep127, 1e-38,
                           1e38,    3.4e38,  1.7976931348623157e308, INFINITY, -INFINITY, NAN};

template <class T>
struct Trial {
  Bytes in;
  Kernels (*select)(bool, int);
  int n, count, threads, options, alone;
  std::size_t offset;
  double eps;
  Random random;
  Thresholds thresholds{};
  bool screened = false;  // whether the thresholds are those of the library

  static double unit() { return std::numeric_limits<T>::epsilon(); }
  std::size_t size() const { return std::size_t(n) * n; }
  bool option(int i) const { return options >> i & 1; }

  Batch batch() const { return {std::is_same_v<T, double>, count, n, 1}; }

  // As in screen.py.
  void set_thresholds(bool wants_inverse) {
    const double null = (std::is_same_v<T, double> ? std::max(8, n) : 4) * unit();
    thresholds.null = null;
    thresholds.skew = option(10) ? 1e-3 : 1e-2;
    const bool off = option(11) && option(12);
    thresholds.indefinite = off ? -1 : n * unit();
    thresholds.singular = wants_inverse && option(13) ? null : -1;
    screened = !off;
  }

  // A matrix of one of several kinds, row by row.
  void fill(std::vector<double>& a, int kind) {
    auto symmetric = [&](auto f) {
      for (int i = 0; i < n; ++i)
        for (int j = 0; j <= i; ++j) a[i * n + j] = a[j * n + i] = f(i, j);
    };
    auto turn = [&](auto value) {  // the eigenvalues value(i), turned by two reflections
      symmetric([&](int i, int j) { return i == j ? value(i) : 0.0; });
      for (int k = 0; k < 2; ++k) {
        std::vector<double> u(n), y(n);
        double norm = 0, dot = 0;
        for (double& x : u) x = random.uniform() + 1e-3, norm += x * x;
        for (int i = 0; i < n; ++i)
          for (int j = 0; j < n; ++j) y[i] += a[i * n + j] * u[j];
        for (int i = 0; i < n; ++i) y[i] *= 2 / norm, dot += y[i] * u[i];
        for (int i = 0; i < n; ++i) y[i] -= dot / norm * u[i];
        symmetric([&](int i, int j) { return a[i * n + j] - (y[i] * u[j] + u[i] * y[j]); });
      }
    };
    switch (kind) {
      case 0: return symmetric([&](int, int) { return random.uniform(); });
      case 1: return symmetric([](int i, int j) { return double(i == j); });
      case 2: return turn([&](int) { return 1 + random.uniform() * 0.5; });
      case 3: return turn([&](int i) { return std::exp2(-40.0 * i / n); });
      case 4: return turn([&](int i) { return i % 2 ? 1.0 : 0.25; });
      case 5: return turn([&](int i) { return i < n / 2 ? 1.0 + i : 0.0; });
      case 6: return turn([&](int i) { return i == 0 ? -2 * n * unit() : 1.0; });
      case 7: return symmetric([](int, int) { return 0.0; });
      case 8: return symmetric([&](int i, int j) { return i == j ? std::exp2(-2.0 * i) : 0; });
      case 9: return symmetric([](int i, int j) { return 1.0 / (i + j + 1); });
      case 10: return symmetric([&](int i, int j) { return std::min(i, j) + 1.0; });
      default:
        for (double& x : a) x = random.uniform();
    }
  }

  // Numbers for all matrices: `kind` of matrix where n × n, random otherwise; then the entries that
  // the bytes change.
  template <class To>
  Block numbers(std::size_t each, int kind) {
    Block block(count * each * sizeof(To), offset * sizeof(To));
    To* to = reinterpret_cast<To*>(block.data());
    const double scale = std::ldexp(1.0, in.take<std::int8_t>() * (sizeof(To) == 8 ? 8 : 1));
    std::vector<double> a(each);
    for (int m = 0; m < count; ++m) {
      if (each == size() && kind >= 0) fill(a, (kind + (option(9) ? m : 0)) % 12);
      else for (double& x : a) x = kind == -2 ? std::abs(random.uniform()) : random.uniform();
      for (std::size_t i = 0; i < each; ++i) store(to + m * each + i, To(a[i] * scale));
    }
    for (int changes = in.below(8); changes > 0 && each > 0; --changes) {
      const std::size_t place = in.take<std::uint16_t>() % (count * each);
      const int what = in.below(32);
      To x;
      if (what < int(std::size(kSpecial))) x = narrow<To>(kSpecial[what]);
      else x = in.take<To>();  // any bits, but for those of NaN
      if (std::isnan(x)) x = To(NAN);
      store(to + place, x);
      // In most cases the mirror image, too.
      if (each == size() && what % 3) {
        const std::size_t m = place / each, i = place % each / n, j = place % n;
        store(to + m * each + j * n + i, x);
      }
    }
    return block;
  }
  template <class To>
  static To narrow(double x) {
    const double most = std::numeric_limits<To>::max();
    return std::isfinite(x) ? To(std::min(std::max(x, -most), most)) : To(x);
  }
  template <class To>
  static void store(To* to, To x) { std::memcpy(to, &x, sizeof(To)); }

  Slot input(Pointer* address, int kind, bool in_place = false) {
    Slot slot{address, in_place ? Role::InOut : Role::In, sizeof(T), size()};
    slot.block = numbers<T>(size(), kind);
    return slot;
  }
  template <class To>
  Slot row(Pointer* address, int kind) {
    Slot slot{address, Role::In, sizeof(To), std::size_t(n)};
    slot.block = numbers<To>(n, kind);
    return slot;
  }
  Slot output(Pointer* address, std::size_t number, std::size_t each, bool is_integer = false) {
    Slot slot{address, Role::Out, number, each, is_integer};
    slot.block = Block(count * each * number, offset * number);
    blank(slot.block);
    return slot;
  }
  Slot matrix(Pointer* address) { return output(address, sizeof(T), size()); }

  Function function() {
    static const double exponents[] = {0.5, -0.5, 2, 3, -1, 0.25, 1, 0, 1.5, -2, 1e-3, 7.25};
    const double p = exponents[in.below(12)];
    return {Kind(in.below(5)), p};
  }

  // ‖S² − A − eps·I‖_F/‖A + eps·I‖_F, of symmetric parts.
  double residual(const T* a, const T* s) const {
    double most = std::abs(eps);
    for (std::size_t i = 0; i < size(); ++i) most = std::max<double>(most, std::abs(double(a[i])));
    if (most == 0) return 0;
    int k;
    std::frexp(most, &k);
    k += k & 1;
    auto down = [&](double x) { return std::ldexp(x, -k); };
    std::vector<double> scaled(s, s + size());
    for (double& x : scaled) x = std::ldexp(x, -k / 2);
    double whole = 0, rest = 0;
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) {
        double entry = down(a[i * n + j]) / 2 + down(a[j * n + i]) / 2 + (i == j ? down(eps) : 0);
        whole += entry * entry;
        for (int m = 0; m < n; ++m) entry -= scaled[i * n + m] * scaled[m * n + j];
        rest += entry * entry;
      }
    return std::sqrt(rest / whole);
  }

  // Statuses of the matrices, the first of each row of `info`, fit these and the results.
  void check_roots(const Slot& given, const Slot& info,
                   const std::vector<const Slot*>& roots, const Slot* sqrt, double allowed) {
    for (int m = 0; m < count; ++m) {
      const T* a = at(given, m);
      bool finite = true;
      for (std::size_t i = 0; i < size(); ++i) finite = finite && std::isfinite(a[i]);
      std::int64_t status, converged;
      const char* found = const_cast<Slot&>(info).block.data() + 24 * m;
      std::memcpy(&status, found, 8), std::memcpy(&converged, found + 16, 8);
      if (status < 0 || status > std::int64_t(Status::Left)) fail("there is no such status");
      if (finite != (status != std::int64_t(Status::Nonfinite))) fail("wrong about finite entries");
      const bool ok = status == std::int64_t(Status::Ok);
      for (const Slot* root : roots) {
        const T* x = at(*root, m);
        for (std::size_t i = 0; i < size(); ++i) {
          if (ok && !std::isfinite(x[i])) fail("a root is not finite, and its status is Ok");
          if (!ok && !std::isnan(x[i])) fail("a root without status Ok is not NaN");
          if (ok && x[i] != x[i % n * n + i / n]) fail("a root is not symmetric");
        }
      }
      if (ok && sqrt && screened && converged == 1 && residual(a, at(*sqrt, m)) > allowed)
        fail("a root does not square to its matrix");
    }
  }
  const T* at(const Slot& slot, int m) const {
    return reinterpret_cast<const T*>(const_cast<Slot&>(slot).block.data()) + m * slot.each;
  }

  void minimax(const std::vector<T>& table, int steps) {
    MinimaxTask task{};
    task.batch = batch();
    const bool sqrt = option(0) || !option(1);
    set_thresholds(option(1));
    task.eps = eps, task.thresholds = thresholds;
    task.table = {reinterpret_cast<std::uintptr_t>(table.data())}, task.table_steps = steps;
    task.octave = 64, task.octaves = 52, task.tol = 2 * unit();
    task.max_steps = option(3) ? in.below(20) : 0;
    std::vector<Slot> slots{input(&task.a, in.below(12)), output(&task.info, 8, 3, true)};
    slots.reserve(8);
    std::vector<const Slot*> roots;
    for (auto [wanted, address] : {std::pair{sqrt, &task.sqrt}, {option(1), &task.inv_sqrt}})
      if (wanted) slots.push_back(matrix(address)), roots.push_back(&slots.back());
    if (option(2)) slots.push_back(output(&task.bounds, sizeof(T), 2));
    run_and_check(task, select(task.batch.is_double, n).minimax, slots, threads, alone);
    // The iteration loses digits to the condition number, which the library sees by the residual.
    check_roots(slots[0], slots[1], roots, sqrt ? roots[0] : nullptr, std::sqrt(unit()));
  }

  void eigh() {
    EighTask task{};
    task.batch = batch();
    set_thresholds(option(1));
    task.eps = eps, task.thresholds = thresholds, task.of_root = option(4);
    std::vector<Slot> slots{input(&task.a, in.below(12)), output(&task.info, 8, 3, true)};
    slots.reserve(12);
    const int many = 1 + in.below(3);
    for (int i = 0; i < many; ++i) task.outputs.push_back({function(), {}});
    task.outputs[0].function = {option(0) ? Kind::Sqrt : Kind::InvSqrt, 0};
    for (Output& output : task.outputs) slots.push_back(matrix(&output.x));
    if (option(5)) slots.push_back(output(&task.roots, sizeof(T), n));
    if (option(6)) slots.push_back(matrix(&task.vectors));
    if (option(7)) slots.push_back(output(&task.values, 8, n));
    run_and_check(task, select(task.batch.is_double, n).eigh, slots, threads, alone);
    std::vector<const Slot*> roots;
    // Otherwise the output is the matrix itself, whose eigenvalues may overflow.
    if (!task.of_root) roots = {&slots[2]};
    const bool squares = option(0) && !task.of_root;
    check_roots(slots[0], slots[1], roots, squares ? &slots[2] : nullptr, 64 * n * unit());
  }

  void published() {
    PublishedTask task{};
    task.batch = batch();
    set_thresholds(option(1));
    task.eps = eps, task.thresholds = thresholds, task.shift = (option(3) ? n / 2. : -8) * unit();
    task.degree = 1 + in.below(20), task.quotient = option(4);
    // Taylor's series of (1 − z)^½ and (1 − z)^−½, or the [1/1] approximant of Padé.
    std::vector<double> c(2 * (task.degree + 1));
    for (int which = 0; which < 2; ++which) {
      const double p = which ? -0.5 : 0.5;
      double* x = c.data() + which * (task.degree + 1);
      x[0] = 1;
      for (int k = 1; k <= task.degree; ++k) x[k] = -x[k - 1] * (p - (k - 1)) / k;
      if (!task.quotient) continue;
      std::fill_n(x + 1, task.degree, 0.0);
      x[1] = which ? -0.25 : -0.75;
    }
    task.coefficients = {reinterpret_cast<std::uintptr_t>(c.data())};
    std::vector<Slot> slots{input(&task.a, in.below(12)), output(&task.info, 8, 3, true)};
    slots.reserve(8);
    std::vector<const Slot*> roots;
    for (auto [wanted, address] : {std::pair{option(0), &task.sqrt}, {option(1), &task.inv_sqrt}})
      if (wanted) slots.push_back(matrix(address)), roots.push_back(&slots.back());
    if (option(2)) slots.push_back(output(&task.norms, sizeof(T), 1));
    run_and_check(task, select(task.batch.is_double, n).published, slots, threads, alone);
    check_roots(slots[0], slots[1], roots, nullptr, 0);
  }

  void spectral() {
    SpectralTask task{};
    task.batch = batch();
    task.null = option(5) ? 0 : std::sqrt(8 * unit());
    std::vector<Slot> slots{row<T>(&task.roots, -2), input(&task.vectors, in.below(12)),
                            matrix(&task.x)};
    const bool by_z = option(0), g_inv = option(1), g_sqrt = option(2) || !g_inv;
    if (by_z) slots.push_back(input(&task.z, in.below(12)));
    if (g_inv) slots.push_back(input(&task.g_inv, in.below(12)));
    if (g_sqrt) slots.push_back(input(&task.g_sqrt, in.below(12)));
    if (option(3)) {
      Slot norms{&task.norms, Role::In, sizeof(T), 1};
      norms.block = numbers<T>(1, -2);
      slots.push_back(norms);
      task.steps = in.below(12);
    }
    run_and_check(task, select(task.batch.is_double, n).spectral, slots, threads, alone);
  }

  void frechet() {
    FrechetTask task{};
    task.batch = batch();
    set_thresholds(option(1));
    task.thresholds = thresholds;
    std::vector<Slot> slots{row<double>(&task.values, option(0) ? -1 : -2),
                            input(&task.vectors, in.below(12)), matrix(&task.x)};
    const int many = 1 + in.below(3);
    for (int i = 0; i < many; ++i) task.cotangents.push_back({function(), {}});
    for (Cotangent& c : task.cotangents) slots.push_back(input(&c.g, in.below(12)));
    run_and_check(task, select(task.batch.is_double, n).frechet, slots, threads, alone);
  }

  void distance() {
    if constexpr (std::is_same_v<T, float>) {
      DistanceTask task{};
      task.batch = batch();
      set_thresholds(true);
      task.eps = eps, task.thresholds = thresholds;
      std::vector<Slot> slots{input(&task.a, in.below(12)), input(&task.b, in.below(12)),
                              output(&task.square, 8, 1)};
      slots.reserve(8);
      if (option(0)) slots.push_back(matrix(&task.by_a));
      if (option(1)) slots.push_back(matrix(&task.by_b));
      run_and_check(task, select(false, n).distance, slots, threads, alone);
      for (int m = 0; m < count; ++m) {
        const double square = number_at(slots[2], slots[2].block.data(), m);
        if (!(square >= 0 || std::isnan(square))) fail("a squared distance is negative");
        if (std::isinf(square)) fail("a squared distance is infinite");
      }
    } else {
      prepare();
    }
  }

  void measure() {
    MeasureTask task{};
    task.batch = batch();
    task.eps = eps, task.shift = 8 * unit();
    std::vector<Slot> slots{input(&task.a, in.below(12)), input(&task.sqrt, in.below(12)),
                            input(&task.inv_sqrt, in.below(12)),
                            output(&task.numbers, 8, kMeasures)};
    run_and_check(task, select(task.batch.is_double, n).measure, slots, threads, alone);
    // The trace, the least eigenvalue of S and the largest of Z may be negative; these are norms.
    for (int m = 0; m < count; ++m)
      for (int i : {0, 2, 3, 5, 7, 8})
        if (number_at(slots[3], slots[3].block.data(), m * kMeasures + i) < 0)
          fail("a norm is negative");
  }

  void prepare() {
    PrepareTask task{};
    task.batch = batch();
    set_thresholds(false);
    task.eps = eps, task.thresholds = thresholds;
    std::vector<Slot> slots{input(&task.a, in.below(12)), output(&task.info, 8, 2, true),
                            matrix(&task.x)};
    run_and_check(task, select(task.batch.is_double, n).prepare, slots, threads, alone);
    for (int m = 0; m < count; ++m)
      for (std::size_t i = 0; i < size(); ++i) {
        const T x = at(slots[2], m)[i];
        // Below 1, but for a ridge and for numbers near overflow: 2ᵏ is a number, too.
        if (!(std::abs(x) <= 17)) fail("a matrix is not scaled");
        if (x != at(slots[2], m)[i % n * n + i / n]) fail("a scaled matrix is not symmetric");
      }
  }

  void symmetrise() {
    SymmetriseTask task{};
    task.batch = batch();
    std::vector<Slot> slots{input(&task.x, 11, true)};
    run_and_check(task, select(task.batch.is_double, n).symmetrise, slots, threads, alone);
    for (int m = 0; m < count; ++m)
      for (std::size_t i = 0; i < size(); ++i) {
        const T x = at(slots[0], m)[i], y = at(slots[0], m)[i % n * n + i / n];
        if (x != y && !(std::isnan(x) && std::isnan(y))) fail("a matrix is not symmetric");
      }
  }

  void divide() {
    DivideTask task{};
    task.batch = batch();
    task.null = option(5) ? 0 : std::sqrt(8 * unit());
    std::vector<Slot> slots{input(&task.r, in.below(12), true), row<T>(&task.roots, -2)};
    if (option(0)) slots.push_back(input(&task.q, in.below(12)));
    run_and_check(task, select(task.batch.is_double, n).divide, slots, threads, alone);
  }

  void weigh() {
    WeighTask task{};
    task.batch = batch();
    set_thresholds(option(1));
    task.thresholds = thresholds, task.function = function();
    std::vector<Slot> slots{input(&task.r, in.below(12), true),
                            row<double>(&task.values, option(0) ? -1 : -2)};
    run_and_check(task, select(task.batch.is_double, n).weigh, slots, threads, alone);
  }

  void product() {
    ProductTask task{};
    task.batch = batch();
    task.symmetric = option(0), task.repeats = 1;
    std::vector<Slot> slots{input(&task.a, in.below(12)), input(&task.b, in.below(12)),
                            matrix(&task.c)};
    run_and_check(task, select(task.batch.is_double, n).product, slots, threads, alone);
  }

  void numbers_of_function() {
    FunctionTask task{};
    task.batch = batch();
    task.function = function();
    Slot x{&task.x, Role::In, 8, 1};
    x.block = numbers<double>(1, option(0) ? -1 : -2);
    std::vector<Slot> slots{x, output(&task.y, 8, 1)};
    run_and_check(task, select(task.batch.is_double, n).function, slots, threads, alone);
  }
};

struct InstructionSet {
  const char* name;
  Kernels (*select)(bool, int);
};

// Those built in, that the CPU has and that MATROOT_ISA allows.
std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> found;
  const char* wish = std::getenv("MATROOT_ISA");
  auto add = [&](const char* name, bool known, auto select) {
    if (known && (wish == nullptr || *wish == 0 || std::string(wish) == name))
      found.push_back({name, select});
  };
  add("baseline", true, baseline::select);
#ifdef MATROOT_WITH_avx2
  add("avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), avx2::select);
#endif
#ifdef MATROOT_WITH_avx512
  add("avx512", __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"), avx512::select);
#endif
  if (found.empty()) fail("MATROOT_ISA names no instruction set that is there");
  return found;
}

constexpr int kSteps = 16;  // of schedules.py

// The schedules of schedules.py, as tests/fuzz/build.py has written them.
template <class T>
const std::vector<T>& table() {
  static const std::vector<T> numbers = [] {
    const char* folder = std::getenv("MATROOT_TABLES");
    if (folder == nullptr) fail("MATROOT_TABLES must name the folder of the schedules");
    const char* name = sizeof(T) == 4 ? "/float32" : "/float64";
    std::ifstream file(std::string(folder) + name, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    if (bytes.size() != sizeof(T) * (64 * 52 + 1) * kSteps * 4) fail("no schedules of that size");
    std::vector<T> made(bytes.size() / sizeof(T));
    std::memcpy(made.data(), bytes.data(), bytes.size());
    return made;
  }();
  return numbers;
}

template <class T>
void run_trial(int kernel, Kernels (*select)(bool, int), Bytes in) {
  static const double ridges[] = {0, 0, 0, 1e-5, 1, 1e-30, 0x1p-1074, 1e30};
  Trial<T> trial{};
  trial.in = in, trial.select = select;
  Bytes& bytes = trial.in;
  const int wide = bytes.take<std::uint8_t>();
  trial.n = wide < 200 ? 1 + wide % 32 : wide < 250 ? 33 + wide % 40 : 73 + 18 * (wide % 6);
  const int most = trial.n <= 8 ? 40 : trial.n <= 24 ? 20 : trial.n <= 64 ? 6 : 2;
  trial.count = 1 + bytes.below(most);
  trial.alone = bytes.below(trial.count), trial.threads = 1 + bytes.below(4);
  trial.offset = bytes.below(8), trial.options = bytes.take<std::uint16_t>();
  // As a T: an inverse root is finite then.
  trial.eps = T(ridges[bytes.below(8)]);
  trial.random.state = bytes.take<std::uint16_t>() * 0x9e3779b97f4a7c15ULL + 1;
  std::snprintf(trial_in_words, sizeof(trial_in_words),
                "kernel %d, %s, n = %d, %d matrices, %d threads, options %#x, eps %g", kernel,
                sizeof(T) == 8 ? "double" : "float", trial.n, trial.count, trial.threads,
                unsigned(trial.options), trial.eps);
  switch (kernel) {
    case 0: return trial.minimax(table<T>(), kSteps);
    case 1: return trial.eigh();
    case 2: return trial.published();
    case 3: return trial.spectral();
    case 4: return trial.frechet();
    case 5: return trial.distance();
    case 6: return trial.prepare();
    case 7: return trial.symmetrise();
    case 8: return trial.divide();
    case 9: return trial.weigh();
    case 10: return trial.product();
    case 12: return trial.measure();
    default: return trial.numbers_of_function();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::vector<InstructionSet> sets = instruction_sets();
  Bytes bytes{data, data + size};
  const int kernel = bytes.below(13);
  const auto select = sets[bytes.below(int(sets.size()))].select;
  if (bytes.below(2)) run_trial<double>(kernel, select, bytes);
  else run_trial<float>(kernel, select, bytes);
  return 0;
}

#ifndef MATROOT_LIBFUZZER
int main(int count, char** files) {
  for (int i = 1; i < count; ++i) {
    std::ifstream file(files[i], std::ios::binary);
    if (!file) fail("a file cannot be read");
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    // An exact copy, so that reading beyond it is seen.
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
  }
  std::printf("%d inputs\n", count - 1);
}
#endif
