"""Parts that are broken, missing or old: what is left works, and ``explain`` says what is wrong."""

import importlib.util
import sys
import types
from importlib.machinery import PathFinder

import pytest
import torch

import matroot
from faults.conftest import python
from matroot.kernels import native
from matroot.kernels import triton as triton_kernels
from matroot.kernels.native import tasks

built = pytest.mark.skipif(not tasks.available(), reason="kernels were not built")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (lambda whole: b"", "file too short"),
        (lambda whole: 100 * b"not a library\n", "invalid ELF header"),
        (lambda whole: whole[: len(whole) // 10], "was cut off"),
        (lambda whole: whole[:-1], "was cut off"),
        (None, "built for another Python: _native.cpython-39-x86_64-linux-gnu.so"),
    ],
    ids=["empty", "text", "cut", "last byte", "other Python"],
)
@built
@pytest.mark.skipif(sys.platform != "linux", reason="libraries of Linux")
def test_a_broken_library_says_why(content, why, tmp_path, monkeypatch):
    with open(tasks.MODULE.__file__, "rb") as file:
        whole = file.read()
    name = "_native.so" if content else "_native.cpython-39-x86_64-linux-gnu.so"
    (tmp_path / name).write_bytes(content(whole) if content else whole)

    class Broken:
        """Before an editable install's finder, which knows where the whole library is."""

        def find_spec(self, name, path, target=None):
            if name == "matroot.kernels._native":
                return PathFinder.find_spec(name, [str(tmp_path)])
            return None

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    monkeypatch.setattr(sys.modules["matroot.kernels"], "__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "matroot.kernels._native")
    if content is None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        found = tasks._load()
    else:
        with pytest.warns(RuntimeWarning, match="compiled CPU kernels are not used") as warned:
            found = tasks._load()
        assert "\n" not in str(warned[0].message)
        assert "Install matroot again" in str(warned[0].message)
    assert found[0] is None
    assert why in found[1]
    monkeypatch.setattr(tasks, "MODULE", None)
    monkeypatch.setattr(tasks, "_WHY_NOT", found[1])
    assert native.NATIVE.declines(torch.eye(3)) == found[1]
    with pytest.raises(ValueError, match=r"backend 'native' cannot run this: its kernels"):
        matroot.sqrtm(torch.eye(31), backend="native")


@built
def test_a_library_of_other_sources_is_not_called(monkeypatch):
    """As after a change of the sources without another installation."""
    monkeypatch.setattr(tasks, "INTERFACE", tasks.INTERFACE + 1)
    with pytest.warns(RuntimeWarning, match="compiled from other sources.*Install matroot again"):
        assert tasks._load()[0] is None


@pytest.mark.slow
@built
@pytest.mark.skipif(sys.platform != "linux", reason="libraries of Linux")
def test_with_a_broken_library_everything_works(tmp_path):
    with open(tasks.MODULE.__file__, "rb") as file:
        (tmp_path / "_native.so").write_bytes(file.read(200_000))
    code = f"""
import sys
from importlib.machinery import PathFinder
class Broken:
    def find_spec(self, name, path, target=None):
        if name == "matroot.kernels._native":
            return PathFinder.find_spec(name, [{str(tmp_path)!r}])
sys.meta_path.insert(0, Broken())
import torch, matroot
a = 4 * torch.eye(3, requires_grad=True)
matroot.inv_sqrtm(a).sum().backward()
print(matroot.sqrtm(a)[0, 0].item(), matroot.explain(a).backend)
print(matroot.explain(a))
"""
    said, warned = python(code)
    assert said.splitlines()[0] == "2.0 torch"
    assert "backend 'native' declines: its kernels cannot be loaded" in said
    assert warned.count("RuntimeWarning") == 1


def test_an_empty_module_in_the_place_of_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    assert not triton_kernels._installed()
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not triton_kernels._installed()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_an_older_triton_is_named_and_left_out():
    """One that lacks what the kernels are made of."""
    code = """
import warnings, triton, triton.language, torch, matroot
del triton.language.dot
triton.__version__ = "2.0.0"
a = 4 * torch.eye(3)
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    print(matroot.sqrtm(a, backend="triton")[0, 0].item())
(warning,) = [w for w in found if "self-test" in str(w.message)]
assert "(Triton 2.0.0)" in str(warning.message) and "\\n" not in str(warning.message)
print(matroot.explain(a, backend="triton"))
"""
    said, _ = python(code, TRITON_INTERPRET="1", MATROOT_TRITON="test")
    assert abs(float(said.splitlines()[0]) - 2) < 1e-5
    assert "self-test of 'minimax' up to 16×16 FAILED" in said
    assert "module 'triton.language' has no attribute" in said.replace("\\", "")


@pytest.mark.slow
def test_without_a_compiler_only_torch_compile_fails(tmp_path):
    code = """
import torch, matroot
a = 4 * torch.eye(5)
try:
    torch.compile(matroot.sqrtm)(a)
except Exception as error:
    print("compiler" in str(error))
assert matroot.sqrtm(a)[0, 0] == 2
assert torch.compile(matroot.sqrtm, backend="aot_eager")(a)[0, 0] == 2
"""
    told = {"CXX": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PATH": "/nonexistent"}
    assert python(code, **told)[0] == "True"
