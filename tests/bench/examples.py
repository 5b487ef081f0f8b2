"""Rows and cases that the tests of the benchmark share."""

from functools import partial

import torch
from typer.testing import CliRunner

from matroot import cli
from matroot.bench import rows
from matroot.bench.cases import Case, Settings

CPU = torch.device("cpu")
QUICK = Settings(CPU, quick=True)
run = partial(CliRunner().invoke, cli.app)


def row(candidate="matroot", **fields):
    made = {
        "case": "speed n=8",
        "of": 2,
        "experiment": "speed",
        "candidate": candidate,
        "batch": 4,
        "n": 8,
        "root": "sqrt",
        "cond": 100.0,
        "dtype": "float32",
        "quick": False,
        "error": 1e-7,
        "gradient_error": 2e-7,
        "gate": 1e-5,
        "passed": True,
        "why": None,
        "ms": {"forward": [1.0, 0.9, 1.1], "both": [2.0, 1.9, 2.2]},
        **rows.provenance(CPU),
    }
    return {**made, **fields}


def counted(names, log, fail_at=None):
    def measure(name):
        if name == fail_at:
            raise KeyboardInterrupt
        log.append(name)
        return [{"candidate": "a"}, {"candidate": "b"}]

    return [Case("test", {"name": name}, partial(measure, name), 1.0) for name in names]
