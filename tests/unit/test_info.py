"""``matroot info``: what a report of an error holds."""

import json
import os
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import matroot
from matroot import cli, info
from matroot.kernels.native import tasks
from matroot.kernels.triton import launch, selftest

run = CliRunner().invoke


def test_both_forms_say_the_same():
    said = run(cli.app, ["info"]).stdout
    found = json.loads(run(cli.app, ["info", "--json"]).stdout)
    assert found["Versions"]["matroot"] == matroot.__version__
    assert torch.__version__ in found["Versions"]["PyTorch"]
    for title, part in found.items():
        assert title in said.splitlines()
        assert all(f"  {name} " in said and value in said for name, value in part.items())


def test_kernels_are_told_or_why_there_are_none(monkeypatch):
    if tasks.available():
        found = info.collect()
        assert found["CPU"]["kernels run in"] == tasks.MODULE.instruction_set()
        assert "kernel 'eigh'" in found["Kernels on the CPU"]["native"]
    monkeypatch.setattr(tasks, "MODULE", None)
    monkeypatch.setattr(tasks, "_WHY_NOT", "its kernels were eaten by moths")
    found = info.collect()
    assert found["CPU"]["kernels run in"] == "its kernels were eaten by moths"
    assert found["Kernels on the CPU"]["native"] == "declines: its kernels were eaten by moths"


def test_the_self_test_is_told(monkeypatch):
    """As on a GPU, by Triton's interpreter."""
    variant = launch.Variant("minimax", 16, (False,), "tf32x3")
    verdict = selftest.Verdict(False, "the root is off by 1.0e+00, 1.0e-06 is allowed")
    monkeypatch.setattr(selftest, "_VERDICTS", {(variant, torch.device("cpu")): verdict})
    said = info.collect()["Kernels on the CPU"]["triton"]
    assert "self-test of 'minimax' up to 16×16 FAILED: the root is off by 1.0e+00" in said


def test_a_device_that_fails_is_told_too(monkeypatch):
    broken = torch.device("cuda", 99)
    monkeypatch.setattr(info, "_accelerators", lambda: [broken])
    found = info.collect()
    assert "Error: " in found["Kernels on cuda:99"]["failed"]
    assert "native" in found["Kernels on the CPU"]


@pytest.mark.skipif(sys.platform != "linux", reason="libraries of Linux")
def test_with_a_broken_library_and_without_the_command_line(tmp_path):
    """In a fresh interpreter, where the library really fails to load."""
    (tmp_path / "_native.so").write_bytes(b"not a library")
    code = f"""
import runpy, sys
from importlib.machinery import PathFinder
class Broken:
    def find_spec(self, name, path, target=None):
        if name == "matroot.kernels._native":
            return PathFinder.find_spec(name, [{str(tmp_path)!r}])
sys.meta_path.insert(0, Broken())
sys.modules["typer"] = sys.modules["rich"] = None
runpy.run_module("matroot.info", run_name="__main__")
"""
    environment = os.environ | {"MATROOT_ISA": "baseline"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert found.returncode == 0, found.stderr
    assert "its kernels cannot be loaded (" in found.stdout
    assert "MATROOT_ISA" in found.stdout
