"""The cost of synchronised whitening, and when sharing its roots pays: two processes of one thread.

    OMP_WAIT_POLICY=passive python benchmarks/synchronised.py

A step, forward and backward, of one whitening layer of k groups of n channels on 16·n samples in
each process: with statistics of its own, of both, and of both with shared roots. Medians in
milliseconds of interleaved steps; the last column is the exponent of 2 in k·n³.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time

import torch
import torch.distributed as dist

from matroot.nn import DecorrelatedBatchNorm1d, synchronised

CASES = [(1, 64), (1, 256), (1, 512), (32, 16), (8, 64), (32, 64), (64, 64)]
CASES += [(4, 128), (8, 128), (16, 128), (2, 256), (4, 256), (2, 512)]
TURNS = 15


def step(layer: torch.nn.Module, x: torch.Tensor) -> float:
    """Milliseconds of one, begun by both processes together."""
    dist.barrier()
    start = time.perf_counter()
    layer(x).square().sum().backward()
    return 1e3 * (time.perf_counter() - start)


def measure(rank: int, store: str) -> None:
    """What each process does; the first prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for k, n in CASES:
        x = torch.randn(16 * n, k * n, requires_grad=True)
        ways = {
            "own": (None, math.inf),
            "both": ("world", math.inf),
            "shared": ("world", 0),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(TURNS):
            for name, (group, number) in ways.items():
                synchronised._SHARED_FROM = number
                layer = DecorrelatedBatchNorm1d(k * n, group_size=n, process_group=group)
                times[name].append(step(layer, x))
        if rank == 0:
            found = "  ".join(f"{name} {statistics.median(t):7.2f}" for name, t in times.items())
            print(f"k {k:3}  n {n:4}  {found}  2^{math.log2(k * n**3):.1f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(measure, (f"{folder}/store",), nprocs=2)
