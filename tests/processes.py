"""Several processes that run one function, with gloo between them."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    try:
        torch.save(function(rank, *args), os.path.join(folder, f"{rank}.pt"))
        if not lost:
            distributed.barrier()  # So that none is gone while another is still connected.
    finally:
        distributed.destroy_process_group()


def error(call: Callable[[], Any]) -> str:
    """Type and text of the error that a call raises; empty where it raises none."""
    try:
        call()
    except Exception as raised:  # What it is, is what the test asks.
        return f"{type(raised).__name__}: {raised}"
    return ""
