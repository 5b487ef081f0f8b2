"""What is public by name, and what a type checker says of right and wrong calls."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import matroot
from matroot.functions import SpectralFunction as Function
from matroot.gradients import GRADIENTS, GradientName, GradientRule
from matroot.kernels import FAMILIES, BackendName
from matroot.methods import METHODS, Method, MethodName
from matroot.nn.pooling import CovariancePooling2d, PoolingOptions
from matroot.nn.whitening import DecorrelatedBatchNorm2d, WhiteningOptions

ROOT = Path(__file__).parents[2]
MODULES = [
    "matroot",
    "matroot.compat",
    "matroot.compat.pytorch_fid",
    "matroot.distributed",
    "matroot.functions",
    "matroot.gradients",
    "matroot.methods",
    "matroot.nn",
    "matroot.nn.functional",
    "matroot.statistics",
    "matroot.testing",
]

# Loaded when they are asked for, which takes seconds; their own tests ask for them.
SLOW = ("sklearn", "torchmetrics")


def test_dir_shows_public_names_alone():
    for name in MODULES:
        module = importlib.import_module(name)
        shown = dir(module)
        assert shown
        for public in {*shown} - {"__version__", *SLOW}:
            assert not public.startswith("_"), f"{name}.{public}"
            found = getattr(module, public)
            if inspect.ismodule(found):
                assert found.__name__ in MODULES, f"{name}.{public} is a module of its own use"
            elif inspect.isclass(found) or inspect.isroutine(found):
                assert found.__module__.startswith("matroot."), f"{name}.{public} is not ours"
                assert found.__doc__, f"{name}.{public} has no docstring"
        if hasattr(module, "__all__"):
            assert {*shown} - {"__version__"} == {*module.__all__}
    stand_ins = Path(matroot.compat.__file__).parent.glob("[!_]*.py")
    assert dir(matroot.compat) == sorted(path.stem for path in stand_ins)
    assert "call" not in dir(matroot)
    assert "whitening" not in dir(matroot.nn)


def test_all_that_a_package_imports_to_be_public_is_shown():
    for name in ("matroot.nn", "matroot.methods", "matroot.gradients", "matroot.distributed"):
        module = importlib.import_module(name)
        classes = {k for k, v in vars(module).items() if inspect.isclass(v) and k != "Registry"}
        functions = {k for k, v in vars(module).items() if inspect.isfunction(v)}
        assert classes | functions - {"__dir__"} <= {*dir(module)}, name


def public_parts():
    """Functions, and classes with arguments of their own, by name."""
    for name in MODULES:
        module = importlib.import_module(name)
        for public in {*dir(module)} - {"__version__", *SLOW}:
            found = getattr(module, public)
            if inspect.isfunction(found) or inspect.isclass(found):
                yield f"{name}.{public}", found


def documented(text, section):
    """Names and texts of the entries of a section."""
    _, _, rest = text.partition(f"\n{section}:\n")
    block = rest.split("\n\n")[0]
    return dict(re.findall(r"^    ([\w.]+): ((?:.|\n     )*)", block, re.MULTILINE))


def test_docstrings_say_every_argument():
    told = set()
    for name, part in public_parts():
        text = inspect.getdoc(part)
        arguments = documented(text, "Args")
        if inspect.isclass(part) and not arguments:
            # Results, whose fields are attributes, and classes without options.
            assert "Attributes:" in text or issubclass(part, GradientRule | Method | Function), name
            continue
        assert list(arguments) == [*inspect.signature(part).parameters], name
        for argument, meaning in arguments.items():
            assert not re.match("(see|as of|as in) ", meaning), f"{name}: {argument}: {meaning}"
        told.add(name)
    assert {"matroot.sqrtm", "matroot.nn.CovariancePooling3d", "matroot.testing.exact"} <= told


def test_functions_say_the_same_of_the_same_argument():
    for argument in ("eps", "relative_eps", "gradient", "check_errors", "rtol"):
        functions = ("inv_sqrtm", "sqrtm_pair", "sqrtm_ex")
        texts = [
            documented(inspect.getdoc(getattr(matroot, name)), "Args").get(argument)
            for name in functions
        ]
        assert len({*texts} - {None}) == 1, argument


def test_literals_hold_what_the_registries_hold():
    assert get_args(MethodName) == ("auto", *METHODS)
    assert get_args(GradientName) == ("auto", *GRADIENTS)
    assert get_args(BackendName) == ("auto", *FAMILIES)


def test_options_that_layers_pass_on_are_those_of_the_layer():
    for layer, options in (
        (DecorrelatedBatchNorm2d, WhiteningOptions),
        (CovariancePooling2d, PoolingOptions),
    ):
        parameters = inspect.signature(layer).parameters.values()
        wanted = {p.name: p.annotation for p in parameters if p.default is not p.empty}
        listed = {k: v.__forward_arg__ for k, v in options.__annotations__.items()}
        # A layer that passes options on has these as arguments of its own.
        own = set() if layer is DecorrelatedBatchNorm2d else {"out_channels", "device", "dtype"}
        assert listed == {k: v for k, v in wanted.items() if k not in own}


CALLS = """\
from typing import assert_type

import torch
from torch import Tensor, nn

import matroot
from matroot.methods import MethodName, Pade
from matroot.nn import DecorrelatedBatchNorm2d, SecondOrderHead, convert_batchnorm

a = torch.eye(3)
both = matroot.sqrtm_ex(a, root="both")
assert_type(both.sqrt, Tensor)
assert_type(both.inv_error_bound, Tensor)
assert_type(matroot.sqrtm_ex(a).inv_sqrt, None)
assert_type(matroot.sqrtm_ex(a, root="inv_sqrt").inv_residual, Tensor)
s, z, *rest = both
assert_type(z, Tensor)


def either(result: matroot.SqrtmResult, method: MethodName = "pade") -> Tensor:
    assert_type(result.sqrt, Tensor | None)
    return matroot.sqrtm(a, method=method) + matroot.sqrtm(a, method=Pade(order=3))


matroot.sqrtm(a, method="padee")  # E: arg-type
matroot.inv_sqrtm(a, gradient="lyapunow")  # E: arg-type
matroot.sqrtm_pair(a, backend="cuda")  # E: arg-type
matroot.powm(a, 0.5, singular="pseudo")  # E: arg-type
matroot.logm(a, method=Pade)  # E: arg-type
matroot.expm(a, stepz=3)  # E: call-arg
matroot.sqrtm_ex(a, root="sqrtt")  # E: call-overload
matroot.sqrtm_ex(a, root="both", method="padee")  # E: call-overload
matroot.sqrtm_ex(a).inv_sqrt.sum()  # E: attr-defined
matroot.explain(a, method="padee")  # E: arg-type
matroot.sqrt(a)  # E: attr-defined
matroot.nn.functional.inverse_root(a, 0.1, method="padee")  # E: arg-type
matroot.statistics.moments(a, shrinkage="oaz")  # E: arg-type
matroot.testing.random_spd(3, spectrum="flat")  # E: arg-type
DecorrelatedBatchNorm2d(8, method="padee")  # E: arg-type
DecorrelatedBatchNorm2d(8, running="averages")  # E: arg-type
matroot.nn.CovariancePooling2d(8, gradient="lyapunow")  # E: arg-type
matroot.nn.WhiteningColoring2d(8, normalization="root")  # E: arg-type
SecondOrderHead(8, 2, method="padee")  # E: arg-type
matroot.nn.TemporalCovariancePooling(8, normalisation="sqrt")  # E: call-arg
convert_batchnorm(nn.Sequential(), method="padee")  # E: arg-type
matroot.nn.DecorrelatedBatchNormAct(8, group=2)  # E: call-arg
"""


def test_a_type_checker_finds_misspelt_names(tmp_path):
    file = tmp_path / "calls.py"
    file.write_text(CALLS)
    # With the cache of ``make lint``: without one mypy reads PyTorch, which takes 20 seconds.
    command = [sys.executable, "-m", "mypy", "--no-pretty", str(file)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    found = {
        int(line): code
        for line, code in re.findall(r"calls\.py:(\d+): error: .*\[([\w-]+)\]$", said, re.MULTILINE)
    }
    wanted = {
        i: line.partition("# E: ")[2]
        for i, line in enumerate(CALLS.splitlines(), 1)
        if "# E: " in line
    }
    assert found == wanted, said
