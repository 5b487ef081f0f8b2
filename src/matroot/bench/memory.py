"""Peak memory of one root, to be run in a fresh process; the last line printed is JSON.

python -m matroot.bench.memory PEER ROOT BATCH N DTYPE DEVICE
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import torch

from matroot.bench.adapters import Absent, Thunk, quiet
from matroot.bench.measure import describe
from matroot.bench.packages import PEERS, Peer
from matroot.bench.rows import Row
from matroot.testing import random_spd

_PROCESS = Path("/proc/self")


def peak(thunk: Thunk, device: torch.device) -> int | None:
    """Peak bytes beyond those in use before; None where they cannot be measured.

    On a CPU resident memory, by Linux's counters; on CUDA what PyTorch allocates.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        # Kept alive, so that the results count.
        result = thunk()
        torch.cuda.synchronize(device)
        del result
        return torch.cuda.max_memory_allocated(device) - before
    try:
        # Sets the peak to what is resident now.
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        return None
    before = _resident("VmRSS")
    result = thunk()
    del result
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    for line in (_PROCESS / "status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in {_PROCESS / 'status'}")


def measure(
    peer: Peer, root: str, batch: int, n: int, dtype: torch.dtype, device: torch.device
) -> Row:
    """``memory`` and ``input`` in bytes, and in ``why`` what was left out, or why."""
    a, g = (random_spd(n, batch, cond=1e4, dtype=dtype, device=device, seed=s) for s in (0, 1))
    function, adapter, why = peer.functions[root], peer.adapter, None
    # Small ones first, so that libraries are loaded, and to see whether there is a gradient.
    a_small, g_small = (x[:2, :8, :8].contiguous() for x in (a, g))
    adapter.forward(function, a_small)()
    try:
        adapter.both(function, a_small, (g_small,))()
        thunk = adapter.both(function, a, (g,))
    except Absent as error:
        why = f"the root alone: {error}"
    # A peer may raise anything.
    except Exception as error:
        why = f"the root alone: gradient raises {describe(error)}"
    if why:
        thunk = adapter.forward(function, a)
    found = peak(thunk, device)
    if found is None:
        why = f"no way to reset the peak: {_PROCESS / 'clear_refs'} cannot be written"
    return {"memory": found, "input": a.numel() * a.element_size(), "why": why}


def main(peer: str, root: str, batch: str, n: str, dtype: str, device: str) -> None:
    """Print the row."""
    chosen = next((candidate for candidate in PEERS if candidate.name == peer), None)
    if chosen is None:
        raise ValueError(f"no peer {peer!r}")
    with quiet():
        row = measure(chosen, root, int(batch), int(n), getattr(torch, dtype), torch.device(device))
    print(json.dumps(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    # Skips Python's orderly shutdown, which takes a fifth of the time.
    os._exit(0)
