"""Running blocks of hard matrices, in one process or several; a row a block and package."""

from __future__ import annotations

import concurrent.futures
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import multiprocessing

from matroot.bench import cases, hard, hard_cases, hard_peers, rows
from matroot.bench.cases import Step
from matroot.bench.hard import Block
from matroot.bench.rows import Row


def key(seed: int, block: Block) -> str:
    """One line that names the block in the file."""
    return f"hard seed={seed} block={block.number} matrices={block.draw.count}"


def rows_of(seed: int, block: Block, folder: Path) -> list[Row]:
    """Examine a block: its row, those of other packages, and files of its violations."""
    row, a, seen = hard.measured(block)
    origin = {"seed": seed, "block": block.number, "family": block.family}
    if row["violations"]:
        for case in hard_cases.cases(a, block.subject, seen, origin):
            hard_cases.save(case, folder)
    shared = {name: row[name] for name in ("block", "family", "n", "dtype")}
    found = [{"candidate": "matroot", **row}]
    found += [{**shared, **peer} for peer in hard_peers.rows(a, block)]
    return [{"experiment": "hard", "case": key(seed, block), "of": len(found), **r} for r in found]


def run(
    seed: int,
    total: int,
    path: Path,
    folder: Path,
    *,
    processes: int = 1,
    minutes: float | None = None,
) -> Iterator[Step]:
    """Examine the blocks that the file does not hold yet; yields after each.

    Args:
        seed: of the campaign.
        total: matrices in all.
        path: the file of rows.
        folder: for the files of violations.
        processes: how many work at a time, of one thread each.
        minutes: no block is begun after that.

    Raises:
        ValueError: the file holds rows of another environment.
    """
    origin = rows.provenance(torch.device("cpu"))
    done = rows.finished(cases.recorded(path, origin))
    wanted = list(hard.blocks(seed, total))
    left = [block for block in wanted if key(seed, block) not in done]
    size = sum(block.draw.count for block in wanted)
    passed = size - sum(block.draw.count for block in left)
    end = time.monotonic() + 60 * minutes if minutes is not None else None
    yield Step("hard", passed, size)
    for block, found in _found(seed, left, folder, processes, end):
        rows.append(path, [{**row, **origin} for row in found])
        passed += block.draw.count
        draw = block.draw
        yield Step(f"{block.family} n={draw.n} {found[0]['dtype']}", passed, size)


def _found(
    seed: int, left: list[Block], folder: Path, processes: int, end: float | None
) -> Iterator[tuple[Block, list[Row]]]:
    """Blocks and their rows in the order in which they are finished."""

    def begun() -> Iterator[Block]:
        for block in left:
            if end is not None and time.monotonic() > end:
                return
            yield block

    if processes == 1:
        for block in begun():
            yield block, rows_of(seed, block, folder)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context, _alone) as pool:
        running = {}
        try:
            for block in begun():
                running[pool.submit(rows_of, seed, block, folder)] = block
                if len(running) > processes:
                    yield from _finished(running)
            while running:
                yield from _finished(running)
        finally:
            pool.shutdown(cancel_futures=True)


def _finished(
    running: dict[concurrent.futures.Future[list[Row]], Block],
) -> Iterator[tuple[Block, list[Row]]]:
    """Wait for one at least, and take it out."""
    found, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
    for future in found:
        yield running.pop(future), future.result()


def _alone() -> None:
    """One thread a process; Ctrl-C is dealt with where the rows are written."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
