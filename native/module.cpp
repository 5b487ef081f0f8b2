// Bindings: a call takes a task, which holds addresses, and solves a whole batch. The instruction
// set is chosen once; threads are those of the OpenMP runtime that PyTorch has loaded.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <pthread.h>

#include <cstdlib>
#include <string>

#include "bind.hpp"
#include "isa.hpp"
#include "run.hpp"

namespace nb = nanobind;
using namespace matroot;

namespace {

struct InstructionSet {
  const char* name;
  Kernels (*select)(bool is_double, int n);
};

const InstructionSet& instruction_set() {
  static const InstructionSet found = [] {
    const char* wish = std::getenv("MATROOT_ISA");  // for comparisons; only what the CPU has
    [[maybe_unused]] auto wanted = [&](const char* name) {
      return wish == nullptr || *wish == 0 || std::string(wish) == name;
    };
#ifdef MATROOT_WITH_avx512
    if (wanted("avx512") && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
      return InstructionSet{"avx512", avx512::select};
#endif
#ifdef MATROOT_WITH_avx2
    if (wanted("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      return InstructionSet{"avx2", avx2::select};
#endif
    return InstructionSet{"baseline", baseline::select};
  }();
  return found;
}

// Which statuses occur among the matrices of a task: Status k as bit k.
template <class Task>
unsigned seen(const Task& task) {
  unsigned found = 0;
  const Info* info = task.info.template as<const Info>();
  for (std::int64_t i = 0; i < task.batch.count; ++i) found |= 1u << info[i].status;
  return found;
}

template <auto kernel, class Task>
unsigned solve(const Task& task) {
  run(task, instruction_set().select(task.batch.is_double, task.batch.n).*kernel);
  return seen(task);
}

template <auto kernel, class Task>
void apply(const Task& task) {
  run(task, instruction_set().select(task.batch.is_double, task.batch.n).*kernel);
}

// Binds a task: `batch`, which all tasks have, then its own fields.
template <class Task, class... Fields>
void bind_task(nb::module_& m, const char* name, const char* doc, Fields... fields) {
  bind<Task>(m, name, doc, required("batch", &Task::batch), fields...);
}

void bind_enums(nb::module_& m) {
  nb::enum_<Status>(m, "Status", nb::is_arithmetic(), "The outcome for a matrix.")
      .value("OK", Status::Ok)
      .value("DIVERGED", Status::Diverged)
      .value("SINGULAR", Status::Singular)
      .value("INDEFINITE", Status::Indefinite)
      .value("ASYMMETRIC", Status::Asymmetric)
      .value("NONFINITE", Status::Nonfinite)
      .value("LEFT", Status::Left, "Left to the reference, which decides.");
  nb::enum_<Kind>(m, "Kind", "A function of a symmetric matrix, by its eigenvalues.")
      .value("SQRT", Kind::Sqrt)
      .value("INV_SQRT", Kind::InvSqrt)
      .value("POWER", Kind::Power)
      .value("LOG", Kind::Log)
      .value("EXP", Kind::Exp);
}

void bind_structs(nb::module_& m) {
  bind<Batch>(m, "Batch", "Contiguous matrices (count, n, n), float or double.",
              required("is_double", &Batch::is_double), required("count", &Batch::count),
              required("n", &Batch::n), optional("threads", &Batch::threads));
  bind<Thresholds>(m, "Thresholds", "Thresholds for the tests of a matrix; negative: no test.",
                   optional("skew", &Thresholds::skew),
                   optional("indefinite", &Thresholds::indefinite),
                   optional("singular", &Thresholds::singular),
                   optional("null", &Thresholds::null));
  bind<Function>(m, "Function", "A kind and, for powers, the exponent.",
                 required("kind", &Function::kind), optional("exponent", &Function::exponent));
  bind<Output>(m, "Output", "A function of the matrices, and the address for its result.",
               required("function", &Output::function), required("x", &Output::x));
  bind<Cotangent>(m, "Cotangent", "A function of the matrices, and the cotangent of its result.",
                  required("function", &Cotangent::function), required("g", &Cotangent::g));
}

void bind_solvers(nb::module_& m) {
  using M = MinimaxTask;
  bind_task<M>(m, "MinimaxTask", "The coupled minimax iteration.", required("a", &M::a),
               optional("sqrt", &M::sqrt), optional("inv_sqrt", &M::inv_sqrt),
               optional("bounds", &M::bounds), required("info", &M::info),
               optional("eps", &M::eps), required("thresholds", &M::thresholds),
               required("table", &M::table), required("table_steps", &M::table_steps),
               required("octave", &M::octave), required("octaves", &M::octaves),
               required("tol", &M::tol), optional("max_steps", &M::max_steps));
  using P = PublishedTask;
  bind_task<P>(m, "PublishedTask", "The published polynomials.", required("a", &P::a),
               optional("sqrt", &P::sqrt), optional("inv_sqrt", &P::inv_sqrt),
               optional("norms", &P::norms), required("info", &P::info), optional("eps", &P::eps),
               required("thresholds", &P::thresholds), required("shift", &P::shift),
               required("coefficients", &P::coefficients), required("degree", &P::degree),
               required("quotient", &P::quotient));
  using E = EighTask;
  bind_task<E>(m, "EighTask", "Functions by one eigendecomposition.", required("a", &E::a),
               required("outputs", &E::outputs), optional("roots", &E::roots),
               optional("vectors", &E::vectors), optional("values", &E::values),
               optional("of_root", &E::of_root),
               required("info", &E::info), optional("eps", &E::eps),
               required("thresholds", &E::thresholds));
  using S = SpectralTask;
  bind_task<S>(m, "SpectralTask", "The gradient of the roots.", required("roots", &S::roots),
               required("vectors", &S::vectors), optional("z", &S::z),
               optional("g_sqrt", &S::g_sqrt), optional("g_inv", &S::g_inv),
               required("x", &S::x), required("null", &S::null), optional("norms", &S::norms),
               optional("steps", &S::steps));
  using F = FrechetTask;
  bind_task<F>(m, "FrechetTask", "The gradient of functions by divided differences.",
               required("values", &F::values), required("vectors", &F::vectors),
               required("cotangents", &F::cotangents), required("x", &F::x),
               required("thresholds", &F::thresholds));
  using D = DistanceTask;
  bind_task<D>(m, "DistanceTask", "The Bures–Wasserstein distance and its gradients.",
               required("a", &D::a), required("b", &D::b), required("square", &D::square),
               optional("by_a", &D::by_a), optional("by_b", &D::by_b), optional("eps", &D::eps),
               required("thresholds", &D::thresholds));
  using R = MeasureTask;
  bind_task<R>(m, "MeasureTask", "What is measured of the roots.", required("a", &R::a),
               optional("sqrt", &R::sqrt), optional("inv_sqrt", &R::inv_sqrt),
               required("numbers", &R::numbers), optional("eps", &R::eps),
               required("shift", &R::shift));
  constexpr auto released = nb::call_guard<nb::gil_scoped_release>();
  const char* statuses = "Solves the task; returns which statuses occur, Status k as bit k.";
  m.def("minimax", &solve<&Kernels::minimax, M>, nb::arg("task"), released, statuses);
  m.def("published", &solve<&Kernels::published, P>, nb::arg("task"), released, statuses);
  m.def("eigh", &solve<&Kernels::eigh, E>, nb::arg("task"), released, statuses);
  m.def("spectral", &apply<&Kernels::spectral, S>, nb::arg("task"), released);
  m.def("frechet", &apply<&Kernels::frechet, F>, nb::arg("task"), released);
  m.def("measure", &apply<&Kernels::measure, R>, nb::arg("task"), released);
  m.def("distance", &apply<&Kernels::distance, D>, nb::arg("task"), released);
}

void bind_passes(nb::module_& m) {
  using P = PrepareTask;
  bind_task<P>(m, "PrepareTask", "Scales A and makes it symmetric.", required("a", &P::a),
               required("x", &P::x), required("info", &P::info), optional("eps", &P::eps),
               required("thresholds", &P::thresholds));
  using S = SymmetriseTask;
  bind_task<S>(m, "SymmetriseTask", "Makes X symmetric, in place.", required("x", &S::x));
  using D = DivideTask;
  bind_task<D>(m, "DivideTask", "Divides R by sums of roots, in place.",
               required("r", &D::r), optional("q", &D::q), required("roots", &D::roots),
               required("null", &D::null));
  using W = WeighTask;
  bind_task<W>(m, "WeighTask", "Multiplies R by divided differences of a function, in place.",
               required("r", &W::r), required("values", &W::values),
               required("function", &W::function), required("thresholds", &W::thresholds));
  using C = ProductTask;
  bind_task<C>(m, "ProductTask", "C = A B, to test and to time it.", required("a", &C::a),
               required("b", &C::b), required("c", &C::c), optional("symmetric", &C::symmetric),
               optional("repeats", &C::repeats));
  using F = FunctionTask;
  bind_task<F>(m, "FunctionTask", "y = f(x) for numbers in double precision, to test f.",
               required("function", &F::function), required("x", &F::x), required("y", &F::y));
  constexpr auto released = nb::call_guard<nb::gil_scoped_release>();
  m.def("prepare", &apply<&Kernels::prepare, P>, nb::arg("task"), released);
  m.def("symmetrise", &apply<&Kernels::symmetrise, S>, nb::arg("task"), released);
  m.def("divide", &apply<&Kernels::divide, D>, nb::arg("task"), released);
  m.def("weigh", &apply<&Kernels::weigh, W>, nb::arg("task"), released);
  m.def("product", &apply<&Kernels::product, C>, nb::arg("task"), released);
  m.def("function", &apply<&Kernels::function, F>, nb::arg("task"), released);
}

}  // namespace

NB_MODULE(_native, m) {
  // Tasks and thresholds that a caller keeps until the interpreter ends are not leaks.
  nb::set_leak_warnings(false);
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  bind_enums(m);
  bind_structs(m);
  bind_solvers(m);
  bind_passes(m);
  m.attr("INTERFACE") = kInterface;
  m.attr("MEASURES") = kMeasures;
  m.def("forked", [] { forked = true; },
        "Says that this process was forked before this module was loaded.");
  m.def("instruction_set", [] { return std::string(instruction_set().name); },
        "The instruction set that the kernels run in.");
}
