"""make sanitize, make fuzz MINUTES=30: the kernels under sanitizers, and coverage-guided fuzzing.

sanitize needs Clang with its runtime libraries and OpenMP, and valgrind (Debian: clang-19
libclang-rt-19-dev libomp-19-dev valgrind). fuzz needs Clang, too, and atheris. CXX names the
compiler.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from fuzz import build, targets  # noqa: E402

CORPUS, WORK = HERE / "corpus", Path("build/fuzz")
COMPILER = f"-DCMAKE_CXX_COMPILER={os.environ.get('CXX', 'clang++')}"


def run(*command: object, **variables: str) -> None:
    """A command, which must succeed."""
    print("+", *command, flush=True)
    subprocess.run([str(word) for word in command], check=True, env=os.environ | variables)


def sanitize() -> None:
    """The seeds of the kernels under each sanitizer, then under valgrind."""
    seeds = sorted((CORPUS / "kernels").iterdir())
    for name in ("address,undefined", "thread"):
        program = build.build(WORK / name.replace(",", "-"), COMPILER, f"-DMATROOT_SANITIZE={name}")
        run(program, *seeds, **build.environment(program))
    program = build.build(WORK / "plain", COMPILER, "-DCMAKE_CXX_FLAGS=-gdwarf-4")
    # Valgrind knows no AVX-512. "Possibly lost" are the stacks of OpenMP's waiting threads.
    leaks = "--leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite"
    for instructions in ("baseline", "avx2"):
        variables = build.environment(program) | {"MATROOT_ISA": instructions}
        run("valgrind", "-q", "--error-exitcode=1", *leaks.split(), program, *seeds, **variables)


def fuzz(minutes: float) -> None:
    """So many minutes for the kernels, and for all targets in Python; new inputs are kept."""
    program = build.build(
        WORK / "libfuzzer", COMPILER, "-DMATROOT_SANITIZE=fuzzer,address,undefined"
    )
    options = ["-timeout=60", "-print_final_stats=1", f"-artifact_prefix={WORK}/"]
    seconds = int(60 * minutes)

    def corpora(name: str) -> list[Path]:
        found = WORK / "corpus" / name
        found.mkdir(parents=True, exist_ok=True)
        return [found, CORPUS / name]

    limits = [f"-max_total_time={seconds}", "-max_len=160"]
    run(program, *options, *limits, *corpora("kernels"), **build.environment(program))
    limits = [f"-max_total_time={seconds // len(targets.TARGETS)}", "-rss_limit_mb=8192"]
    for name in targets.TARGETS:
        run(sys.executable, HERE / "engine.py", name, *options, *limits, *corpora(name))


if __name__ == "__main__":
    if sys.argv[1] == "sanitize":
        sanitize()
    else:
        fuzz(float(sys.argv[2]))
