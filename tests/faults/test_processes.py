"""Memory that runs out, forks at every stage, signals within kernels; memory that stays flat."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from faults import conftest
from matroot.kernels.native import tasks

pytestmark = [
    pytest.mark.skipif(not tasks.available(), reason="kernels were not built"),
    pytest.mark.skipif(sys.platform != "linux", reason="limits and forks of Linux"),
]


def python(code, **environment):
    """What a fresh interpreter with two threads prints."""
    threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    return conftest.python(code, **threads, **environment)[0]


LIMITED = """
import resource, torch, matroot
from matroot.testing import random_spd
torch.set_num_threads(2)

def limited(room, call):
    # The type of the error with so many bytes more than are mapped now.
    mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + room, before[1]))
    try:
        call()
        return None
    except (MemoryError, RuntimeError) as error:
        return error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)

def roots_and_gradient(a, backend):
    a = a.clone().requires_grad_()
    z = matroot.inv_sqrtm(a, backend=backend)
    return z.detach(), *torch.autograd.grad(z.sum(), a)

small = random_spd(40, 64, cond=10, dtype=torch.float32)
roots_and_gradient(small, "native")  # All threads are there, and what is imported late.
roots_and_gradient(small, "torch")
failed = {"native": 0, "torch": 0}
for backend in failed:
    for n, count, dtype in ((600, 1, torch.float32), (96, 400, torch.float64)):
        a = random_spd(n, 1, cond=10, dtype=dtype).expand(count, n, n).contiguous()
        kept = a.clone()
        for room in range(0, 60 << 20, 10 << 20):
            error = limited(room, lambda: roots_and_gradient(a, backend))
            failed[backend] += error is not None
        assert torch.equal(a, kept)
        z, g = roots_and_gradient(a[:1], backend)
        eye = torch.eye(n, dtype=dtype)
        assert (z[0] @ a[0] @ z[0] - eye).abs().max() < 1e-3 and g.isfinite().all()
assert all(count >= 3 for count in failed.values()), failed
print("well")
"""


def test_memory_that_runs_out_is_an_error_and_the_next_call_works():
    assert python(LIMITED) == "well"


# An allocator that fails once, at the call that it is told.
FAILING = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
static atomic_long left;
void fail_at(long call) { left = call; }
static int now(void) { return left > 0 && --left == 0; }
void* aligned_alloc(size_t alignment, size_t size) {
  static void* (*next)(size_t, size_t);
  if (!next) next = dlsym(RTLD_NEXT, "aligned_alloc");
  return now() ? 0 : next(alignment, size);
}
int posix_memalign(void** to, size_t alignment, size_t size) {
  static int (*next)(void**, size_t, size_t);
  if (!next) next = dlsym(RTLD_NEXT, "posix_memalign");
  return now() ? ENOMEM : next(to, alignment, size);
}
"""
EVERY = """
import ctypes, threading, torch, matroot
from matroot.testing import random_spd
torch.set_num_threads(2)
fail_at = ctypes.CDLL(None).fail_at
fail_at.argtypes = [ctypes.c_long]
seen = set()
for n, count in ((8, 300), (33, 12), (140, 6), (300, 1)):
    for method in ("eigh", "minimax", "pade"):
        a = random_spd(n, count, cond=10, dtype=torch.float32).requires_grad_()
        def call():
            z = matroot.inv_sqrtm(a, method=method)
            return z, *torch.autograd.grad(z.sum(), a)
        def call_once():
            torch.set_num_threads(2)
            fail_at(at)
            try:
                call()
            except (MemoryError, RuntimeError) as error:
                seen.add((type(error).__name__, "kernels" in str(error)))
            fail_at(0)
        expected = call()
        for at in range(1, 16):
            # The kernels keep their memory in every thread from call to call; a new one has none.
            thread = threading.Thread(target=call_once)
            thread.start()
            thread.join()
            assert all(torch.equal(x, y) for x, y in zip(call(), expected)), (n, method, at)
print(sorted(seen))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_every_allocation_may_fail(tmp_path):
    """Inside parallel regions too: the kernels' working memory is allocated there."""
    source, library = tmp_path / "failing.c", tmp_path / "failing.so"
    source.write_text(FAILING)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    found = python(EVERY, LD_PRELOAD=str(library))
    assert found == "[('MemoryError', True), ('RuntimeError', False)]"


FORKS = """
import faulthandler, multiprocessing, os, threading, torch
torch.set_num_threads(2)
inputs = [
    (n, method, (4 * torch.eye(n, dtype=dtype)).expand(count, n, n).contiguous())
    for n, count in ((3, 8), (24, 60), (48, 40), (256, 3))
    for dtype in (torch.float32, torch.float64)
    for method in ("auto", "eigh", "minimax")
]
torch.randn(4_000_000).sin()  # The parent's threads are there.

def right():
    faulthandler.dump_traceback_later(60, exit=True)
    import matroot
    for n, method, a in inputs:
        for x in (a, a.detach().requires_grad_()):
            if abs(matroot.inv_sqrtm(x, method=method)[0, 0, 0].item() - 0.5) > 1e-4:
                return False
    faulthandler.cancel_dump_traceback_later()
    return True

def in_a_fork(stage):
    child = os.fork()
    if child == 0:
        os._exit(0 if right() else 1)
    assert os.waitpid(child, 0)[1] == 0, stage

import matroot
in_a_fork("nothing is loaded")
import matroot.functional
in_a_fork("the kernels are loaded")
matroot.sqrtm(inputs[8][2])
in_a_fork("they have run on two threads")
assert right()
in_a_fork("all of them have run")
going = True
def busy():
    while going:
        matroot.sqrtm(inputs[-1][2])
thread = threading.Thread(target=busy)
thread.start()
for _ in range(3):
    in_a_fork("while they run in another thread")
going = False
thread.join()
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.apply(right) and pool.apply(right)
assert right()
print("well")
"""


@pytest.mark.slow
def test_forks_at_every_stage():
    assert python(FORKS) == "well"


SIGNALS = """
import os, signal, threading, time, torch, matroot
torch.set_num_threads(2)
signal.signal(signal.SIGINT, signal.default_int_handler)
x = torch.randn(300, 100, 110)
a = x @ x.mT / 110
kept, expected = a.clone(), matroot.sqrtm(a)
start = time.perf_counter()
matroot.sqrtm(a)
whole, caught = time.perf_counter() - start, 0
for part in range(8):
    timer = threading.Timer(whole * part / 8, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        matroot.inv_sqrtm(a.clone().requires_grad_()).sum().backward()
        timer.join()
        time.sleep(1)
    except KeyboardInterrupt:
        caught += 1
assert torch.equal(a, kept) and torch.equal(matroot.sqrtm(a), expected)
print(caught)
"""


@pytest.mark.slow
def test_an_interruption_in_a_kernel_leaves_everything_whole():
    assert python(SIGNALS) == "8"


@pytest.mark.slow
def test_memory_stays_flat():
    """20,000 calls; benchmarks/flat_memory.py makes a million."""
    script = Path(__file__).parents[2] / "benchmarks/flat_memory.py"
    done = subprocess.run(
        [sys.executable, str(script), "--calls", "20000"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    grown = float(re.search(r"(-?[\d.]+) bytes a call", done.stdout)[1])
    assert grown < 30, done.stdout
