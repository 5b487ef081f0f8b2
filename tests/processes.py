"""Several processes that run one function, with gloo between them."""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import distributed


def run(
    function: Callable[..., Any],
    count: int,
    folder: Path,
    *args: Any,
    lost: tuple[int, ...] = (),
    timeout: float = 60,
) -> list[Any]:
    """What the function returns in each process: tensors, numbers, texts, and lists of them.

    Args:
        function: called as ``function(rank, *args)``; of a module, so that processes can import it.
        count: how many processes.
        folder: an empty one.
        args: more arguments.
        lost: processes that end before they return anything.
        timeout: how many seconds a process waits for the others.
    """
    start = (function, count, str(folder), args, timeout, bool(lost))
    context = torch.multiprocessing.spawn(_process, start, nprocs=count, join=not lost)
    if lost:
        for rank, process in enumerate(context.processes):
            process.join(300)
            assert (process.exitcode == 0) == (rank not in lost), (rank, process.exitcode)
    left = [rank for rank in range(count) if rank not in lost]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in left]


def run_once(
    function: Callable[..., Any], count: int, factory: pytest.TempPathFactory, *args: Any
) -> list[Any]:
    """``run`` for all tests of a module: of several workers of pytest one starts the processes."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / f"{function.__module__}-{function.__name__}-{count}"
    done = folder / "done"
    try:
        folder.mkdir()
    except FileExistsError:
        while not done.exists():
            time.sleep(0.1)
    else:
        try:
            run(function, count, folder, *args)
        finally:
            done.touch()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _process(
    rank: int,
    function: Callable[..., Any],
    count: int,
    folder: str,
    args: tuple[Any, ...],
    timeout: float,
    lost: bool,
) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=count,
        timeout=datetime.timedelta(seconds=timeout),
    )
    torch.save(function(rank, *args), os.path.join(folder, f"{rank}.pt"))
    leave(alone=lost)


def leave(*, alone: bool = False) -> NoReturn:
    """End this process, once all others have come as far, or ``alone``.

    Not by Python's orderly end: threads of gloo that still let go of tensors then abort the process
    (PyTorch 2.14).
    """
    if not alone:
        distributed.barrier()
    sys.stdout.flush()
    os._exit(0)


def error(call: Callable[[], Any]) -> str:
    """Type and text of the error that a call raises; empty where it raises none."""
    try:
        call()
    except Exception as raised:  # What it is, is what the test asks.
        return f"{type(raised).__name__}: {raised}"
    return ""
