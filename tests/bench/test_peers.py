"""Other packages beside matroot: finding them, the probes, the rows."""

import sys
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch

from matroot.bench import cases, memory, packages, peers, rows
from matroot.bench.adapters import ADAPTERS, Absent
from matroot.bench.candidates import problem_of
from matroot.bench.capabilities import PROBES, ROOTS, exact_second
from matroot.bench.cases import Settings
from matroot.bench.packages import PEERS, Peer, available
from matroot.testing import exact, exact_gradient, random_spd, relative_error, tolerance

CPU = torch.device("cpu")
QUICK = Settings(CPU, quick=True)
BY_NAME = {peer.name: peer for peer in PEERS}
MATROOT, GEOOPT = BY_NAME["matroot"], BY_NAME["geoopt"]


def wrong(a):
    if a.numel() == 0:
        raise ValueError("nothing there")
    return a + 1


def raising(a):
    raise OverflowError("too large")


class _RootOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        return exact(a).to(a.dtype)

    @staticmethod
    def backward(ctx, g):
        raise OverflowError("too large")


def jax_root(a):
    values, q = jnp.linalg.eigh(a)
    return (q * jnp.sqrt(values)[..., None, :]) @ jnp.swapaxes(q, -1, -2)


def numpy_root(a):
    values, q = np.linalg.eigh(a)
    return (q * np.sqrt(values)[..., None, :]) @ q.swapaxes(-1, -2)


WRONG = Peer(
    "wrong", "torch", lambda: {**dict.fromkeys(ROOTS, wrong), "both": lambda a: (wrong(a),) * 2}
)
RAISING = Peer("raising", "torch", lambda: {"sqrt": raising})
ROOT_ONLY = Peer("root only", "torch", lambda: {"sqrt": _RootOnly.apply})
NOTHING = Peer("nothing", "torch", dict)
JAX = Peer("jax", "jax", lambda: {"sqrt": jax_root}, kind="jax")
NUMPY = Peer("numpy", "numpy", lambda: {"sqrt": numpy_root}, kind="numpy")


def rows_of(found, path):
    """The rows in the file after running the cases."""
    for _ in cases.run(found, path, QUICK):
        pass
    loaded, complaints = rows.load(path)
    assert complaints == []
    return loaded


# Finding them.


def test_all_are_installed_here_and_loading_them_changes_nothing():
    before = (torch.get_default_dtype(), torch.get_num_threads(), list(warnings.filters))
    found, missing = available(CPU)
    assert missing in ([], ["torch.linalg.matrix_sqrth: " + sqrth_missing()])
    assert found[0] is MATROOT
    assert len(found) + len(missing) == len(PEERS)
    assert all(peer.version for peer in found)
    assert not jax.config.jax_enable_x64
    assert (torch.get_default_dtype(), torch.get_num_threads(), list(warnings.filters)) == before


def sqrth_missing():
    return (
        f"no torch.linalg.matrix_sqrth in PyTorch {torch.__version__}; pip install --upgrade torch"
    )


def test_a_missing_package_is_named_and_the_others_are_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "geoopt", None)
    monkeypatch.delattr(torch.linalg, "matrix_sqrth", raising=False)
    chosen = (MATROOT, GEOOPT, BY_NAME["torch.linalg.matrix_sqrth"])
    monkeypatch.setattr(packages, "PEERS", chosen)
    found, (first, second) = available(CPU)
    assert found == [MATROOT]
    assert first.startswith("geoopt: ")
    assert first.endswith("; pip install --upgrade geoopt")
    assert second == "torch.linalg.matrix_sqrth: " + sqrth_missing()


def test_any_other_error_of_an_import_is_an_error(monkeypatch):
    def load():
        raise ImportError("cannot import name 'sqrtm'")

    monkeypatch.setattr(packages, "PEERS", (MATROOT, replace(GEOOPT, load=load)))
    with pytest.raises(ImportError, match="sqrtm"):
        available(CPU)


def test_packages_for_cpus_are_left_out_elsewhere(monkeypatch):
    monkeypatch.setattr(packages, "PEERS", (MATROOT, JAX, NUMPY))
    found, missing = available(torch.device("cuda"))
    assert found == [MATROOT]
    assert missing == ["jax: measured on a CPU only", "numpy: measured on a CPU only"]


# The probes.


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "capability.jsonl"
    found = rows_of(peers.capability(QUICK, [MATROOT, WRONG, NOTHING, JAX, NUMPY]), path)
    return {(row["candidate"], row["probe"]): row for row in found}


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_probes(answers, probe):
    ours = answers["matroot", probe.name]
    assert (ours["answer"], ours["why"]) == ("y", None)
    theirs = answers["wrong", probe.name]
    assert theirs["answer"] == "n"
    assert theirs["why"]
    assert answers["nothing", probe.name]["answer"] == "–"


def test_answers_of_other_libraries(answers):
    def find(candidate):
        return {probe.name: answers[candidate, probe.name] for probe in PROBES}

    found = find("jax")
    right = ("root", "batches", "empty", "tiny", "gradient", "second", "jvp", "vmap", "compile")
    assert [found[name]["why"] for name in right] == [None] * len(right)
    assert found["repeated"]["why"] == "3·identity: not finite"
    assert found["inverse"]["answer"] == "–"
    found = find("numpy")
    right = ("root", "batches", "empty", "tiny")
    assert [found[name]["why"] for name in right] == [None] * len(right)
    assert found["repeated"]["why"] == found["jvp"]["why"] == "no gradient"
    assert (found["vmap"]["why"], found["compile"]["why"]) == ("no vmap", "no compiler")


def test_questions_are_distinct():
    assert len({probe.name for probe in PROBES}) == len({probe.question for probe in PROBES})
    assert len({probe.name for probe in PROBES}) == len(PROBES)


@pytest.mark.parametrize("root", ROOTS)
def test_exact_second_derivative(root):
    a = random_spd(4, cond=4.0)
    g, e = (random_spd(4, cond=10.0, seed=seed) for seed in (1, 2))

    def gradient(x):
        return exact_gradient(x, g * exact(x, root), root)

    step = 1e-5
    differences = (gradient(a + step * e) - gradient(a - step * e)) / (2 * step)
    assert relative_error(exact_second(a, g, e, root), differences) < 1e-7


@pytest.mark.parametrize(("kind", "function"), [("jax", jax_root), ("numpy", numpy_root)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_arrays_keep_their_precision(kind, function, dtype):
    a, g = (random_spd(4, 2, cond=10.0, dtype=dtype, seed=seed) for seed in (0, 1))
    adapter = ADAPTERS[kind]
    (found,) = adapter.value(function, a)
    assert found.dtype == dtype
    assert relative_error(found, exact(a)).max() <= tolerance(dtype, 10.0, "sqrt")
    if kind == "numpy":
        with pytest.raises(Absent, match="no gradient"):
            adapter.gradient(function, a, (g,))
        return
    (found,), gradient = adapter.gradient(function, a, (g,))
    assert found.dtype == gradient.dtype == dtype
    bound = tolerance(dtype, 10.0, "gradient")
    assert relative_error(gradient, exact_gradient(a, g)).max() <= bound
    assert not jax.config.jax_enable_x64


# The rows.


def test_errors_and_times(tmp_path):
    chosen = [MATROOT, WRONG, RAISING, ROOT_ONLY, NUMPY]
    found = rows_of(peers.speed(QUICK, chosen)[:1], tmp_path / "rows.jsonl")
    assert [row["candidate"] for row in found] == [peer.name for peer in chosen]
    ours, bad, failed, half, values = found
    assert (ours["passed"], ours["why"]) == (True, None)
    assert set(ours["ms"]) == {"forward", "both"}
    assert ours["version"] == MATROOT.version
    assert not bad["passed"]
    assert bad["why"].startswith("error ")
    assert (failed["passed"], failed["ms"]) == (False, {})
    assert failed["why"] == "raises OverflowError: too large"
    # The root passes although it has no gradient.
    assert half["passed"]
    assert half["why"] == "gradient raises OverflowError: too large"
    assert (half["gradient_error"], set(half["ms"])) == (None, {"forward"})
    assert (values["passed"], values["why"], values["gradient_error"]) == (True, None, None)
    assert set(values["ms"]) == {"forward"}


def test_accuracy_measures_the_roots_that_exist(tmp_path):
    found = rows_of(peers.accuracy(QUICK, [MATROOT, RAISING]), tmp_path / "rows.jsonl")
    assert len(rows.pick(found, candidate="matroot", passed=True)) == 6
    assert len(rows.pick(found, candidate="raising", passed=False, root="sqrt")) == 3
    assert rows.pick(found, candidate="raising", root="inv_sqrt") == []
    full = peers.accuracy(replace(QUICK, quick=False, dtype=torch.float64), [MATROOT])
    # Double precision only once, although it is both the chosen and the additional dtype.
    assert len(full) == len({case.key(QUICK) for case in full}) == 12


@pytest.mark.parametrize("root", ROOTS)
def test_the_reference_in_double_precision_is_exact(root):
    settings = Settings(CPU, torch.float64)
    problem = problem_of(settings, root, 1, 6, 1e4)
    with mpmath.workdps(40):
        s = mpmath.matrix(problem.s[0].tolist())
        assert s * s == mpmath.matrix(problem.a[0].tolist())
        z = s if root == "sqrt" else s**-1
        difference = mpmath.matrix(problem.value[0].tolist()) - z
        # As accurate as at the condition number of S.
        bound = tolerance(torch.float64, 1e2, root)
        assert mpmath.mnorm(difference, "f") <= bound * mpmath.mnorm(z, "f")
    assert 0.9e4 < problem.cond < 1.1e4
    bound = tolerance(torch.float64, 1e4, "gradient")
    truth = exact_gradient(problem.a, problem.g, root)
    assert relative_error(problem.gradient, truth).max() <= bound


def test_keys_of_all_full_cases_are_distinct():
    full = replace(QUICK, quick=False)
    keys = [
        case.key(full)
        for make in peers.EXPERIMENTS.values()
        for case in make(full, [MATROOT, JAX, NUMPY])
    ]
    assert len(set(keys)) == len(keys)


linux = pytest.mark.skipif(sys.platform != "linux", reason="counts by Linux's /proc")


@linux
def test_memory(tmp_path):
    (row,) = rows_of(peers.memory(QUICK, [MATROOT]), tmp_path / "rows.jsonl")
    assert row["input"] == row["batch"] * row["n"] ** 2 * 4
    assert row["why"] is None
    # Root and gradient at least; no more than a few times the input.
    assert 2 * row["input"] <= row["memory"] <= 20 * row["input"]


@linux
def test_memory_of_what_is_allocated():
    size = 64 * 2**20
    found = memory.peak(lambda: torch.ones(size // 4), CPU)
    # Linux counts pages in batches, one for each processor.
    assert 0.97 * size <= found <= 1.1 * size


def test_memory_of_others():
    shape = ("sqrt", 8, 8, torch.float32, CPU)
    assert memory.measure(NUMPY, *shape)["why"] == "the root alone: no gradient"
    why = memory.measure(ROOT_ONLY, *shape)["why"]
    assert why == "the root alone: gradient raises OverflowError: too large"


def test_memory_that_cannot_be_measured(monkeypatch):
    arguments = ("sqrt", "8", "8", "float32", "cpu")
    found = peers._in_process("nobody", *arguments)
    assert found == {"memory": None, "why": "fails: ValueError: no peer 'nobody'"}
    found = peers._in_process("matroot", *arguments, timeout=0.1)
    assert found == {"memory": None, "why": "not finished after 0.1 s"}
    monkeypatch.setattr(memory, "_PROCESS", memory.Path("/nowhere"))
    row = memory.measure(MATROOT, "sqrt", 8, 8, torch.float32, CPU)
    assert row["memory"] is None
    assert "/nowhere/clear_refs" in row["why"]
