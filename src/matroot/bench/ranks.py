"""Processes that the benchmark starts, times in turns, and whose collectives it counts."""

from __future__ import annotations

import json
import math
import os
import signal
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from matroot.bench.cases import Settings
from matroot.bench.measure import percentiles
from matroot.bench.rows import Row
from matroot.bench.scale_model import traffic

Measure = Callable[[int, Settings], list[Row]]
"""Measures with so many processes; called in all of them, and that of rank 0 counts."""


def in_processes(measure: Measure, ranks: int, settings: Settings) -> list[Row]:
    """What a function measures in new processes of one thread each, connected by gloo."""
    with tempfile.TemporaryDirectory() as folder:
        running = torch.multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
            _process, (ranks, folder, measure, settings), nprocs=ranks, join=False
        )
        try:
            while not running.join():
                pass
        finally:
            # After Ctrl-C some are left.
            for process in running.processes:
                process.kill()
                process.join()
        found: list[Row] = json.loads((Path(folder) / "rows.json").read_text())
        return found


def _process(rank: int, ranks: int, folder: str, measure: Measure, settings: Settings) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # It goes to the process that ends this one.
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks
    )
    found = measure(ranks, settings)
    if rank == 0:
        (Path(folder) / "rows.json").write_text(json.dumps(found))
    distributed.barrier()
    # Not by Python's orderly end: threads of gloo that still let go of tensors then abort the
    # process (PyTorch 2.14).
    os._exit(0)


def timed(
    runs: Mapping[str, tuple[int, Callable[[], object]]], seconds: float, most: int = 50
) -> dict[str, list[float]]:
    """Milliseconds [median, p20, p80] of each candidate, one run of each in turn.

    Args:
        runs: how many processes take part, from rank 0 on, and what they do.
        seconds: what each candidate may take in all, but at least three runs.
        most: largest number of runs.

    Returns:
        The same in all processes: of the slowest of those that take part.
    """
    repeats = {}
    for name, run in runs.items():
        _once(*run)  # Caches, connections.
        repeats[name] = max(3, min(most, math.ceil(seconds / max(_once(*run), 1e-6))))
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(max(repeats.values())):
        for name, run in runs.items():
            if turn < repeats[name]:
                found[name].append(1e3 * _once(*run))
    return {name: percentiles(samples) for name, samples in found.items()}


def _once(ranks: int, run: Callable[[], object]) -> float:
    """Seconds of the slowest process."""
    distributed.barrier()
    start = time.perf_counter()
    if distributed.get_rank() < ranks:
        run()
    elapsed = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
    if distributed.get_rank() >= ranks:
        elapsed.zero_()
    distributed.all_reduce(elapsed, distributed.ReduceOp.MAX)
    return float(elapsed)


# PyTorch leaves the base class without types.
class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts collectives and products inside a ``with`` block.

    Attributes:
        calls: how many collectives of each kind.
        messages: see ``scale_model.Traffic``, by kind.
        bytes: the same.
        products: how many of each (m, k, n, dtype).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.messages: defaultdict[str, float] = defaultdict(float)
        self.bytes: defaultdict[str, float] = defaultdict(float)
        self.products: Counter[tuple[int, int, int, torch.dtype]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and pass on."""
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # Its operations on blocks come here again.
        name = func.overloadpacket.__name__
        if func.namespace in ("c10d", "_c10d_functional"):
            self._collective(name, func, args)
        elif name in ("mm", "bmm", "addmm", "baddbmm", "addmm_", "addbmm"):
            x, y = [t for t in args if isinstance(t, Tensor)][-2:]
            batch = math.prod(x.shape[:-2])
            self.products[x.shape[-2], x.shape[-1], y.shape[-1], x.dtype] += batch
        return func(*args, **(kwargs or {}))

    def _collective(self, name: str, func: Any, args: Any) -> None:
        kind = _KINDS.get(name.strip("_"))
        if kind is None:
            return
        tensors = [_bytes(x) for x in args if _bytes(x)]
        # Of a gather what one process gives is the smaller.
        size = min(tensors) if tensors else 0
        cost = traffic(kind, size, _group_size(args))
        self.calls[kind] += 1
        self.messages[kind] += cost.messages
        self.bytes[kind] += cost.bytes

    @property
    def traffic(self) -> dict[str, dict[str, float]]:
        """Calls, messages and bytes of each kind, for a row."""
        return {
            kind: {"calls": n, "messages": self.messages[kind], "bytes": self.bytes[kind]}
            for kind, n in self.calls.items()
        }

    def flops(self, dtype: torch.dtype) -> float:
        """Operations of the products in a dtype."""
        return sum(2.0 * m * k * n * c for (m, k, n, d), c in self.products.items() if d == dtype)

    def usual(self, dtype: torch.dtype) -> tuple[int, int, int] | None:
        """The product that takes most operations in a dtype; None where there is none."""
        known = {
            p[:3]: 2.0 * p[0] * p[1] * p[2] * c for p, c in self.products.items() if p[3] == dtype
        }
        return max(known, key=lambda shape: known[shape], default=None)


_KINDS = {
    "allreduce": "all_reduce",
    "all_reduce": "all_reduce",
    "allgather": "all_gather",
    "allgather_base": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "broadcast": "broadcast",
    "reduce": "reduce",
}


def _bytes(x: Any) -> int:
    """Of a tensor, or of tensors in lists."""
    if isinstance(x, Tensor):
        return x.numel() * x.itemsize
    return sum(map(_bytes, x)) if isinstance(x, list | tuple) else 0


def _group_size(args: Any) -> int:
    """The number of processes of a collective, by its group or the group's name."""
    for x in args:
        if isinstance(x, torch.ScriptObject) and "ProcessGroup" in str(x._type()):
            return distributed.ProcessGroup.unbox(x).size()
    name: Any = next(x for x in reversed(args) if isinstance(x, str))
    # PyTorch publishes no other way from the name to the group.
    return torch._C._distributed_c10d._resolve_process_group(name).size()
