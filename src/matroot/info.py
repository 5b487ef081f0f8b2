"""What a report of an error needs to tell: versions, machine, kernels and why they are not used.

``matroot info`` prints it, as does ``python -m matroot.info`` where the command line is not
installed.
"""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

import torch

import matroot
from matroot.bench.rows import device_name
from matroot.kernels.native import tasks
from matroot.plan import answers, resolve
from matroot.roots import SQRT

Report = dict[str, dict[str, str]]
"""A title for each part, and what it holds by name."""

_VARIABLES = re.compile(r"(MATROOT|OMP|KMP|GOMP|MKL|TRITON)_\w+|CUDA_VISIBLE_DEVICES")
_RUNTIME = re.compile(r"lib(g|i)?omp5?[-.]")


def collect() -> Report:
    """The report; on a GPU matrices are solved, so that the kernels' self-test has run."""
    found = {
        "Versions": _versions(),
        "CPU": _cpu(),
        "Kernels on the CPU": _kernels(torch.device("cpu")),
    }
    devices = _accelerators()
    for device in devices:
        found[f"Kernels on {device}"] = _accelerator(device)
    if not devices:
        found["GPU"] = {"found": "none"}
    found["Extras"] = _extras()
    set_here = {name: os.environ[name] for name in sorted(os.environ) if _VARIABLES.fullmatch(name)}
    found["Environment"] = set_here or {"set": "nothing that PyTorch or matroot reads"}
    return found


def text(report: Report) -> str:
    """The report for a terminal and for an issue."""
    width = max(len(name) for part in report.values() for name in part)
    lines = []
    for title, part in report.items():
        lines += [title, *(f"  {name:{width}}  {said}" for name, said in part.items())]
    return "\n".join(lines)


def openmp_runtimes() -> list[str] | None:
    """The files of the OpenMP runtimes in this process; None where the system does not list them.

    There should be one, PyTorch's own: see native/CMakeLists.txt.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    words = (line.split(maxsplit=5) for line in maps.read_text().splitlines())
    files = {parts[5] for parts in words if len(parts) == 6}
    return sorted(file for file in files if _RUNTIME.match(Path(file).name))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _versions() -> dict[str, str]:
    cuda, hip = torch.version.cuda, torch.version.hip
    built = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPUs only"
    return {
        "matroot": matroot.__version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
        "PyTorch": f"{torch.__version__}, built for {built}",
        "Triton": _version("triton"),
        "NumPy": _version("numpy"),
    }


def _cpu() -> dict[str, str]:
    known = hasattr(os, "sched_getaffinity")
    usable = len(os.sched_getaffinity(0)) if known else os.cpu_count()
    declined = tasks.declines(torch.eye(1))
    runtimes = openmp_runtimes()
    return {
        "model": device_name(torch.device("cpu")),
        "processors": f"{usable} usable of {os.cpu_count()}",
        "threads": f"{torch.get_num_threads()} (torch.get_num_threads())",
        "PyTorch runs in": torch.backends.cpu.get_cpu_capability(),
        "kernels run in": tasks.MODULE.instruction_set() if declined is None else declined,
        "OpenMP": "not known on this system"
        if runtimes is None
        else ", ".join("/".join(Path(file).parts[-3:]) for file in runtimes) or "none",
    }


def _kernels(device: torch.device) -> dict[str, str]:
    """What the families say to a root in single precision on this device; see ``explain``."""
    a = torch.eye(8, device=device)
    plan = resolve((SQRT,), a, 0.0, "auto", "auto", "auto", "raise")
    return {name: said for name, said in answers(plan, a).items() if name != "torch"}


def _accelerators() -> list[torch.device]:
    kind = torch.accelerator.current_accelerator()
    if kind is None:
        return []
    return [torch.device(kind.type, i) for i in range(torch.accelerator.device_count())]


def _accelerator(device: torch.device) -> dict[str, str]:
    """The device, and what its families say once the kernels have been tested on it."""
    try:
        found = {}
        if device.type == "cuda":
            has = torch.cuda.get_device_properties(device)
            capability = f"compute capability {has.major}.{has.minor}"
            found["model"] = f"{has.name}, {capability}, {has.total_memory / 2**30:.0f} GiB"
        a = torch.eye(8, device=device).requires_grad_()
        torch.autograd.grad(matroot.sqrtm(a).sum(), a)
        return found | _kernels(device)
    except Exception as error:  # Whatever a driver may raise: the rest of the report stands.
        return found | {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _extras() -> dict[str, str]:
    """Which packages of each extra are missing."""
    try:
        wanted = metadata.requires("matroot") or []
    except metadata.PackageNotFoundError:
        return {"packages": "not known: matroot is not installed but found on the path"}
    missing: dict[str, list[str]] = {}
    for line in wanted:
        extra = re.search(r"""extra == ['"]([\w-]+)['"]""", line)
        package = re.match(r"[\w.-]+", line)
        if extra and package and package[0] != "matroot":
            absent = missing.setdefault(extra[1], [])
            if _version(package[0]) == "not installed":
                absent.append(package[0])
    return {name: f"without {', '.join(x)}" if x else "complete" for name, x in missing.items()}


if __name__ == "__main__":
    print(text(collect()))
