"""Planted faults: wrong lines put in one at a time, each of which a named test must catch.

    python tests/mutants.py [NAME ...]

It works in a copy of the sources, with the kernels compiled for the instruction set that every CPU
has, and says which faults their tests have not caught.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutant:
    """A wrong line.

    Attributes:
        name: what is wrong.
        file: where.
        right: a part of one line, which occurs once.
        wrong: what takes its place.
        test: what catches it: arguments of pytest.
    """

    name: str
    file: str
    right: str
    wrong: str
    test: str


NATIVE, CONTRACT = "tests/contract/test_native.py", "tests/contract"

MUTANTS = (
    Mutant(
        "a sign: the gradient of the inverse root",
        "native/spectral.hpp",
        "m.r[i * w + v] = -m.r[i * w + v] / (m.s[i] * columns[v])",
        "m.r[i * w + v] = m.r[i * w + v] / (m.s[i] * columns[v])",
        f"{CONTRACT}/test_backends.py -k values_and_gradients and native",
    ),
    Mutant(
        "a lane: the last number of rows that fill no vector",
        "native/matrix.hpp",
        "std::memcpy(&rest, from + i * n + whole * lanes, sizeof(T) * (n - whole * lanes))",
        "std::memcpy(&rest, from + i * n + whole * lanes, sizeof(T) * (n - whole * lanes - 1))",
        f"{NATIVE} -k products",
    ),
    Mutant(
        "off by one: a last pack of a single matrix",
        "native/run.hpp",
        "const std::int64_t packs = (many + step - 1) / step;",
        "const std::int64_t packs = std::max<std::int64_t>((many + step - 2) / step, 1);",
        f"{NATIVE} -k products",
    ),
    Mutant(
        "a scale: 2^k of the inverse root with the wrong sign",
        "native/minimax.hpp",
        "lane<T>(scale, l) * std::ldexp(T(1), -half)",
        "lane<T>(scale, l) * std::ldexp(T(1), half)",
        f"{CONTRACT}/test_backends.py -k values_and_gradients and native",
    ),
    Mutant(
        "a threshold: indefinite",
        "native/eigh.hpp",
        "lowest < -thresholds.indefinite * highest",
        "lowest < -2 * thresholds.indefinite * highest",
        f"{NATIVE} -k twentieth",
    ),
    Mutant(
        "a threshold: singular at exactly 0",
        "native/eigh.hpp",
        ": lowest <= thresholds.singular * highest",
        ": lowest < thresholds.singular * highest",
        f"{NATIVE} -k twentieth",
    ),
    Mutant(
        "a Hermitian part that is dropped",
        "native/spectral.hpp",
        "m.g[i] = m.g[i] * T(0.5) + m.t[i] * T(0.5)",
        "m.g[i] = m.g[i]",
        f"{CONTRACT}/test_backends.py -k values_and_gradients and native",
    ),
    Mutant(
        "a ridge ignored on one path",
        "native/published.hpp",
        "n, count, task.eps, task.thresholds.skew",
        "n, count, 0.0, task.thresholds.skew",
        f"{CONTRACT}/test_backends.py -k scales_eps",
    ),
    Mutant(
        "a weight at ties: powers",
        "native/functions.hpp",
        "const V ratio = p * sinh_ratio(u);",
        "const V ratio = p * (sinh_ratio(u) + 1e-3);",
        f"{CONTRACT}/test_native_functions.py",
    ),
    Mutant(
        "a neighbour: the second pass over bad matrices",
        "native/screen.hpp",
        "if (status[l] != Status::Ok) put(entry, l, double(i == j));",
        "put(entry, l, double(i == j));",
        f"{NATIVE} -k without_a_root",
    ),
    Mutant(
        "a sign in Python: the gradient of the inverse root",
        "src/matroot/gradients/spectral.py",
        "x = -(q.mH @ spd.hermitian_part(g_inv) @ q)",
        "x = (q.mH @ spd.hermitian_part(g_inv) @ q)",
        f"{CONTRACT}/test_gradients.py",
    ),
    Mutant(
        "a missing conjugate",
        "src/matroot/spd.py",
        "return half + half.mH",
        "return half + half.mT",
        f"{CONTRACT}/test_values.py",
    ),
    Mutant(
        "a missing transpose in a second derivative",
        "src/matroot/frechet.py",
        "second_frechet(ctx.function, a, values, vectors, e.mH, g)",
        "second_frechet(ctx.function, a, values, vectors, e, g)",
        "tests/unit/test_frechet.py",
    ),
    Mutant(
        "a weight at ties in Python: null and null",
        "src/matroot/frechet.py",
        "return torch.where((x == 0) & (y == 0), 0.0, found)",
        "return torch.where((x == 0) & (y == 0), 1.0, found)",
        "tests/unit/test_frechet.py -k singular_matrices",
    ),
    Mutant(
        "a stale cache: whitening",
        "src/matroot/nn/running.py",
        "and torch.equal(kept.covariance, covariance)",
        "and kept.covariance.shape == covariance.shape",
        "tests/nn/test_kept.py",
    ),
    Mutant(
        "a neglected stride",
        "src/matroot/kernels/native/tasks.py",
        "return a.resolve_neg().contiguous()",
        "return a.resolve_neg()",
        f"{CONTRACT}/test_backends.py -k scales_eps",
    ),
    Mutant(
        "a ridge ignored by the passes over large matrices",
        "src/matroot/kernels/large.py",
        "passes.scaled(a.reshape(-1, n, n), request.eps)",
        "passes.scaled(a.reshape(-1, n, n), 0.0)",
        f"{CONTRACT}/test_launches.py -k ridge",
    ),
    Mutant(
        "a commutator with a plus",
        "src/matroot/lyapunov_solvers.py",
        "commutator = torch.baddbmm(bc, c, b, alpha=-1.0)",
        "commutator = torch.baddbmm(bc, c, b, alpha=1.0)",
        f"{CONTRACT}/test_gradients.py",
    ),
    Mutant(
        "a step too few",
        "src/matroot/schedules.py",
        "count = min(1 + sum(error > tol for error in errors), max_steps or len(errors))",
        "count = min(sum(error > tol for error in errors), max_steps or len(errors))",
        f"{CONTRACT}/test_host_path.py {CONTRACT}/test_launches.py",
    ),
    Mutant(
        "a factor in Triton's sign iteration",
        "src/matroot/kernels/triton/gradients.py",
        "c = put(hermitian_part(0.5 * new), third)",
        "c = put(hermitian_part(0.25 * new), third)",
        f"{CONTRACT}/test_triton.py {CONTRACT}/test_backends.py -k triton",
    ),
    Mutant(
        "a factor in a bound: of the residual through the inverse",
        "src/matroot/error_bounds.py",
        "bound = 0.5 * square.sqrt()",
        "bound = 0.05 * square.sqrt()",
        f"{CONTRACT}/test_error_bounds.py -k nearly_singular",
    ),
)


class Copy:
    """The sources elsewhere, and an interpreter that imports them from there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in ("src", "native", "tests", "benchmarks", "docs"):
            shutil.copytree(
                ROOT / part, folder / part, ignore=shutil.ignore_patterns("_native*.so")
            )
        for file in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / file, folder)
        # Packages by a path: the .pth files among them, an editable install's too, are not run.
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = folder / "venv/bin/python"
        (site,) = (folder / "venv/lib").glob("python*/site-packages")
        packages = [path for path in sys.path if path.endswith("site-packages")]
        (site / "packages.pth").write_text("\n".join([str(folder / "src"), *packages]))

    def compile(self) -> None:
        """The kernels as they are now; no work where they have not changed."""
        build = self.folder / "build"
        options = ["-DMATROOT_BASELINE_ONLY=ON", "-DCMAKE_BUILD_TYPE=Debug"]
        options += [f"-DPython_EXECUTABLE={sys.executable}"]
        for command in (
            ["cmake", "-S", self.folder / "native", "-B", build, *options],
            ["cmake", "--build", build, "--parallel", "2"],
        ):
            subprocess.run(command, check=True, capture_output=True)
        (module,) = build.glob("_native*.so")
        shutil.copy(module, self.folder / "src/matroot/kernels")

    def tests(self, arguments: str) -> tuple[int, str]:
        """Pytest's status, and the first test that failed."""
        self.compile()
        words = ["-x", "-q", "-m", "not slow and not gpu", "-p", "no:cacheprovider"]
        found = subprocess.run(
            [self.python, "-m", "pytest", *words, *arguments.split(" ", 2)],
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
            capture_output=True,
            text=True,
        )
        lines = [line for line in found.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return found.returncode, lines[0] if lines else found.stdout.strip().splitlines()[-1]

    def caught(self, mutant: Mutant) -> tuple[bool, str]:
        """Whether its test fails with the wrong line, and what failed."""
        file = self.folder / mutant.file
        text = file.read_text(encoding="utf-8")
        if text.count(mutant.right) != 1:
            raise ValueError(f"{mutant.file}: {mutant.right!r} must occur once")
        file.write_text(text.replace(mutant.right, mutant.wrong), encoding="utf-8")
        status, what = self.tests(mutant.test)
        file.write_text(text, encoding="utf-8")
        return status == 1, what


def main(names: list[str]) -> None:
    """Plant the faults with these words in their names, or all."""
    chosen = [m for m in MUTANTS if not names or any(name in m.name for name in names)]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        for test in dict.fromkeys(m.test for m in chosen):
            status, what = copy.tests(test)
            if status != 0:
                raise SystemExit(f"without any fault, {test}: {what}")
        for mutant in chosen:
            found, what = copy.caught(mutant)
            missed += not found
            print(f"{'caught' if found else 'MISSED'}: {mutant.name}: {what}", flush=True)
    print(f"{len(chosen)} planted, {missed} missed")
    raise SystemExit(missed != 0)


if __name__ == "__main__":
    main(sys.argv[1:])
