"""The compiled kernels run on PyTorch's OpenMP runtime, and load no other."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from matroot.kernels.native import tasks

MODULE = Path(tasks.MODULE.__file__) if tasks.available() else None
pytestmark = [
    pytest.mark.skipif(MODULE is None, reason="kernels were not built"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif(
        MODULE is not None and b"libomp.so" in MODULE.read_bytes(),
        reason="built by Clang, whose code needs LLVM's runtime beside PyTorch's",
    ),
]

ONE = """
import torch
torch.set_num_threads(2)
torch.randn(4_000_000).sin()  # On PyTorch's threads.
from matroot.info import openmp_runtimes
before = openmp_runtimes()
import matroot
matroot.sqrtm(torch.eye(48).expand(64, 48, 48))
print(before == openmp_runtimes(), len(before))
"""


def test_a_process_has_one_runtime():
    found = subprocess.run([sys.executable, "-c", ONE], capture_output=True, text=True)
    assert found.stdout.strip() == "True 1", found.stdout + found.stderr


RENAMED = """
import ctypes, importlib.util, re, sys
library, module = sys.argv[1:]
ctypes.CDLL(library)
spec = importlib.util.spec_from_file_location("_native", module)
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
x = (ctypes.c_double * (64 * 48 * 48))()
x[1] = 2.0
batch = native.Batch(is_double=True, count=64, n=48, threads=2)
native.symmetrise(native.SymmetriseTask(batch=batch, x=ctypes.addressof(x)))
print(x[48], sorted(set(re.findall(r"libgom\\w[.]so[.\\d]*", open("/proc/self/maps").read()))))
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_the_runtime_is_found_under_any_name(tmp_path):
    """Some wheels of PyTorch name it with a hash. A stand-in for PyTorch, which the loader takes.

    The loader goes by the names that libraries carry, not by what is in them.
    """
    words = ["gcc", "-print-file-name=libgomp.so.1"]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    runtime, torch = tmp_path / "libgomX.so.1", tmp_path / "libtorch_cpu.so"
    content = Path(found.stdout.strip()).read_bytes()
    runtime.write_bytes(content.replace(b"libgomp.so.1\0", b"libgomX.so.1\0"))
    (tmp_path / "empty.c").touch()
    link = ["gcc", "-shared", f"-Wl,--no-as-needed,-soname,{torch.name}", f"-Wl,-rpath,{tmp_path}"]
    subprocess.run([*link, tmp_path / "empty.c", runtime, "-o", torch], check=True)
    run = [sys.executable, "-c", RENAMED, torch, MODULE]
    found = subprocess.run(run, capture_output=True, text=True)
    assert found.stdout.strip() == "1.0 ['libgomX.so.1']", found.stdout + found.stderr
