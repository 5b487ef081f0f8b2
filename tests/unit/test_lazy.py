"""``import matroot`` loads nothing until a name is used, and nothing else depends on that."""

import ast
import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import matroot


def fresh(code):
    """The output of a new process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Each program in a fork of a process that has imported PyTorch, which takes seconds.
FORKS = """
import os, sys, torch
for name, program in PROGRAMS.items():
    child = os.fork()
    if child == 0:
        print(name, end=" ")
        exec(program, {})
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["train", "--help"]])
def test_help_and_version_do_not_load_torch(arguments):
    code = f"import sys; sys.argv[1:] = {arguments}; from matroot.cli import main\n"
    code += "try: main()\nfinally: print('torch' in sys.modules)"
    assert fresh(code).endswith("False")


def test_every_name_is_there():
    code = "import sys, matroot; print('torch' in sys.modules, sorted(dir(matroot)))\n"
    code += "for name in matroot.__all__: getattr(matroot, name)\n"
    code += "print('torchmetrics' in sys.modules)"
    before, after = fresh(code).splitlines()
    first, _, names = before.partition(" ")
    assert first == after == "False"
    assert set(matroot.__all__) <= set(eval(names))
    star = fresh("from matroot import *; print(sqrtm.__module__, nn.__name__, sqrtm_ex.__name__)")
    assert star == "matroot.functional matroot.nn sqrtm_ex"
    source = ast.parse(Path(matroot.__file__).read_text())
    typed = [x for x in source.body if ast.unparse(getattr(x, "test", x)) == "TYPE_CHECKING"]
    names = [alias.asname for block in typed for x in block.body for alias in x.names]
    assert set(matroot._MODULES) == set(matroot.__all__) == set(names)
    with pytest.raises(AttributeError, match="module 'matroot' has no attribute 'sqrt'"):
        _ = matroot.sqrt
    with pytest.raises(ImportError, match="cannot import name 'sqrt'"):
        from matroot import sqrt  # noqa: F401


# A first use, with nothing loaded before, inside a traced function, a transform, a mode.
FIRST = {
    "vmap": "f = torch.func.vmap(lambda a: matroot.sqrtm(a))",
    "grad": "f = lambda a: torch.func.jacrev(lambda x: matroot.sqrtm(x))(a).sum((-1, -2, -3))",
    "inference": "f = torch.inference_mode()(lambda a: matroot.sqrtm(a))",
    "meta": "f = lambda a: matroot.sqrtm(a)\nwith torch.device('meta'): matroot.sqrtm",
}
COMPILED = "f = torch.compile(lambda a: matroot.sqrtm(a), fullgraph=True, backend='aot_eager')"


def using(first):
    """A program whose first use of matroot is this."""
    code = "import torch, matroot\na = 4 * torch.eye(3).expand(2, 3, 3).contiguous()\n"
    code += first + "\nassert f(a).shape == a.shape\nx = a.clone().requires_grad_()\n"
    return code + "matroot.sqrtm(x).sum().backward()\nprint(matroot.sqrtm(a).sum().item())"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_first_use_may_be_anywhere():
    programs = {name: using(first) for name, first in FIRST.items()}
    found = dict(line.split() for line in fresh(f"PROGRAMS = {programs}{FORKS}").splitlines())
    assert found.keys() == FIRST.keys()
    assert [float(value) for value in found.values()] == pytest.approx([12] * len(FIRST))


@pytest.mark.slow
def test_the_first_use_may_be_in_a_compiled_function():
    assert float(fresh(using(COMPILED))) == pytest.approx(12)


def test_threads_may_load_at_once():
    code = """
import threading, torch, matroot
found, start = [], threading.Barrier(8)
def ask(i):
    start.wait()
    name = matroot.__all__[i]
    found.append(getattr(matroot, name) is getattr(matroot, name))
threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print(found == [True] * 8)
"""
    assert fresh(code) == "True"


def test_pickling_and_loading_anew():
    found = matroot.sqrtm
    assert pickle.loads(pickle.dumps(found)) is found
    assert importlib.reload(matroot).sqrtm is found
