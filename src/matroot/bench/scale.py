"""``matroot bench scale``: one and two processes timed, four and eight checked and counted."""

from __future__ import annotations

import functools
import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

import matroot
from matroot.bench import shampoo
from matroot.bench.cases import Case, Settings
from matroot.bench.measure import percentiles
from matroot.bench.ranks import Counted, Measure, in_processes, timed
from matroot.bench.rows import Row
from matroot.bench.scale_model import spread, traffic
from matroot.distributed import map as map_over_ranks
from matroot.distributed import mapping
from matroot.methods import Minimax
from matroot.testing import relative_error

TIMED = 2
"""So many processes are timed, beside one; with more, results are checked, collectives counted."""


def collectives(settings: Settings) -> list[Case]:
    """The time of collectives against the bytes, for α and β."""
    return [_case("collectives", TIMED, _collectives, settings, 20)]


def many(settings: Settings) -> list[Case]:
    """``matroot.distributed.map`` over the matrices of Shampoo."""
    return [_case("map", ranks, _many, settings, 60) for ranks in _started(settings)]


def balance(settings: Settings) -> list[Case]:
    """The shares of ``map``, one after the other in one process."""
    return [
        Case("balance", {"ranks": ranks}, functools.partial(_balance, ranks, settings), 8)
        for ranks in (2, 3, 4, 8)
    ]


def whitening(settings: Settings) -> list[Case]:
    """A step of whitening with the statistics of all processes."""
    return [_case("whitening", ranks, _whitening, settings, 10) for ranks in _started(settings)]


def huge(settings: Settings) -> list[Case]:
    """The root of one matrix in blocks."""
    sizes = (256,) if settings.quick else (1024, 2048, 3000)
    two, *more = _started(settings)
    wanted = [(n, two) for n in sizes] + [(sizes[0], ranks) for ranks in more]
    return [
        _case("huge", ranks, functools.partial(_huge, n), settings, 40 * (n / 2048) ** 3, n=n)
        for n, ranks in wanted
    ]


EXPERIMENTS: dict[str, Callable[[Settings], list[Case]]] = {
    "collectives": collectives,
    "map": many,
    "balance": balance,
    "whitening": whitening,
    "huge": huge,
}


def _case(
    experiment: str, ranks: int, measure: Measure, settings: Settings, weight: float, **fields: Any
) -> Case:
    run = functools.partial(in_processes, measure, ranks, settings)
    return Case(experiment, {**fields, "ranks": ranks}, run, 5 + ranks + weight)


def _started(settings: Settings) -> tuple[int, ...]:
    """How many processes are started, time after time."""
    return (TIMED, 4) if settings.quick else (TIMED, 4, 8)


def _timed_ranks(ranks: int) -> tuple[int, ...]:
    """How many processes are timed where so many have been started."""
    return (1, TIMED) if ranks == TIMED else ()


def _group(ranks: int) -> Any:
    """The processes from rank 0 on; made by all processes."""
    return distributed.new_group(list(range(ranks)))


def _collectives(ranks: int, settings: Settings) -> list[Row]:
    found = []
    for size in [4**k for k in range(5, 11 if settings.quick else 14)]:
        x = torch.zeros(size // 4)
        parts = [torch.empty_like(x) for _ in range(ranks)]
        operations: dict[str, Callable[[], object]] = {
            "all_reduce": functools.partial(distributed.all_reduce, x),
            "all_gather": functools.partial(distributed.all_gather, parts, x),
            "broadcast": functools.partial(distributed.broadcast, x, 0),
        }
        expected = {
            "all_reduce": torch.full_like(x, ranks * (ranks + 1) / 2),
            "all_gather": torch.arange(1.0, ranks + 1).repeat_interleave(len(x)),
            "broadcast": torch.ones_like(x),
        }
        errors = {}
        for name, run in operations.items():
            x.fill_(distributed.get_rank() + 1.0)
            run()
            result = torch.cat(parts) if name == "all_gather" else x
            errors[name] = float(relative_error(result[None], expected[name][None]))
        x.zero_()  # Sums of sums would overflow.
        times = timed({name: (ranks, run) for name, run in operations.items()}, settings.seconds)
        for name in operations:
            cost = traffic(name, size, ranks)
            exchanged = {name: {"calls": 1, "messages": cost.messages, "bytes": cost.bytes}}
            row = {"candidate": f"{name} {size}", "operation": name, "size": size}
            row |= {"ms": {"call": times[name]}, "error": errors[name], "traffic": exchanged}
            found.append(row)
    return found


QUARTER = functools.partial(matroot.powm, p=-1 / 4, eps=1e-6)
"""What Shampoo does with its matrices."""


def matrices(settings: Settings) -> list[Tensor]:
    """Those of Shampoo: sums of a few gradients' outer products."""
    sizes = shampoo.sizes(30 if settings.quick else 300)
    found = []
    for seed, n in enumerate(sizes):
        x = torch.randn(n, n + 8, generator=torch.Generator().manual_seed(seed))
        found.append(x @ x.mT / n)
    return found


def _power_error(given: Sequence[Tensor], results: Sequence[Tensor]) -> float:
    """The largest relative error, against double precision, of every fifth matrix."""
    errors = []
    for a, x in list(zip(given, results, strict=True))[::5]:
        values, q = torch.linalg.eigh(a.double())
        errors.append(float(relative_error(x, (q * (values + 1e-6) ** (-1 / 4)) @ q.mT)))
    return max(errors)


def _many(ranks: int, settings: Settings) -> list[Row]:
    given, groups = matrices(settings), {k: _group(k) for k in (1, ranks)}
    # The formula of costs says how one compares with the others.
    largest = max(given, key=len)[None]

    def run(k: int) -> list[Tensor]:
        return map_over_ranks(QUARTER, given, groups[k])

    runs: dict[str, tuple[int, Callable[[], object]]] = {}
    for k in _timed_ranks(ranks):
        runs[f"map {k}"] = k, functools.partial(run, k)
        runs[f"unit {k}"] = k, functools.partial(QUARTER, largest)
    times = timed(runs, 6 * settings.seconds) if runs else {}
    with Counted() as counted:
        results = run(ranks)
    # A dispatch mode keeps compiled kernels away: once more for the bits.
    results = run(ranks)
    same = _same_everywhere(results)
    error = _power_error(given, results) if distributed.get_rank() == 0 else None
    rows = []
    for k in _timed_ranks(ranks) or (ranks,):
        row = _row(k, counted.traffic if k > 1 else {}, error)
        row |= {"digest": _digest(results), "passed": same}
        if f"map {k}" in times:
            shares = mapping.assigned(mapping.batches(given), k)
            cost = mapping.cost(largest.shape[-1], largest.dtype)
            busiest = max(sum(batch.cost for batch in share) for share in shares)
            row["ms"] = {"call": times[f"map {k}"]}
            row["local_ms"] = times[f"unit {k}"][0] * busiest / cost
        rows.append(row)
    return rows


def _row(ranks: int, exchanged: object, error: float | None) -> Row:
    noun = "process" if ranks == 1 else "processes"
    return {"candidate": f"{ranks} {noun}", "ranks": ranks, "traffic": exchanged, "error": error}


def _digest(results: Sequence[Tensor]) -> str:
    """One for all bits."""
    found = hashlib.sha256()
    for x in results:
        found.update(x.contiguous().numpy().tobytes())
    return found.hexdigest()


def _same_everywhere(results: Sequence[Tensor]) -> bool:
    """Whether all processes have these bits."""
    digests: list[str | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(digests, _digest(results))
    return len({*digests}) == 1


def _balance(ranks: int, settings: Settings) -> list[Row]:
    given = matrices(settings)
    shares = mapping.assigned(mapping.batches(given), ranks)

    def compute(share: Sequence[mapping.Batch]) -> list[Tensor]:
        return [QUARTER(torch.stack([given[i] for i in batch.indices])) for batch in share]

    samples: list[list[float]] = [[] for _ in shares]
    results: dict[int, Tensor] = {}
    for _ in range(2 if settings.quick else 5):
        for share, times in zip(shares, samples, strict=True):
            start = time.perf_counter()
            found = compute(share)
            times.append(1e3 * (time.perf_counter() - start))
            for batch, x in zip(share, found, strict=True):
                results |= dict(zip(batch.indices, x, strict=True))
    loads = [percentiles(times) for times in samples]
    busiest = max(loads)
    return [
        {
            **_row(ranks, {}, _power_error(given, [results[i] for i in range(len(given))])),
            "ms": {"busiest": busiest},
            "loads": [load[0] for load in loads],
            "spread": spread([load[0] for load in loads]),
            "spread_by_formula": spread([sum(b.cost for b in share) for share in shares]),
        }
    ]


def _whitening(ranks: int, settings: Settings) -> list[Row]:
    # Layers without a group are what others are compared with.
    warnings.filterwarnings("ignore", "whitening layers take mean and covariance of this process")
    shape = (4, 16, 8, 8) if settings.quick else (16, 64, 32, 32)
    rank = distributed.get_rank()

    def data(rank: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(rank)
        x = torch.randn(shape, generator=generator)
        # Channels that belong together, as in a network.
        x = x + 0.5 * x.roll(1, 1)
        return x, torch.randn(shape, generator=generator)

    def step(layer: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        y = layer(x)
        y.backward(g)
        assert x.grad is not None
        return y.detach(), x.grad

    own = data(rank)

    def layer(group: Any = None) -> nn.Module:
        return matroot.nn.DecorrelatedBatchNorm2d(shape[1], process_group=group)

    runs: dict[str, tuple[int, Callable[[], object]]] = {}
    groups = {k: _group(k) for k in (1, ranks)}
    # All make all groups.
    alone = [distributed.new_group([k]) for k in range(ranks)][rank]
    for k in _timed_ranks(ranks):
        # The others are in no group, and take no part.
        together = layer(groups[k] if rank < k else None)
        runs[f"step {k}"] = k, functools.partial(step, together, *own)
        if k > 1:
            # The same without others to wait for.
            runs["alone"] = k, functools.partial(step, layer(alone), *own)
    times = timed(runs, 3 * settings.seconds) if runs else {}
    with Counted() as counted:
        step(layer(groups[ranks]), *own)
    found = step(layer(groups[ranks]), *own)
    x, g = (torch.cat(parts) for parts in zip(*map(data, range(ranks)), strict=True))
    expected = step(layer(), x, g)
    span = slice(rank * shape[0], (rank + 1) * shape[0])
    error = max(
        float(relative_error(y.flatten(1), z[span].flatten(1)))
        for y, z in zip(found, expected, strict=True)
    )
    rows = []
    for k in _timed_ranks(ranks) or (ranks,):
        row = _row(k, counted.traffic if k > 1 else {}, error if k > 1 else 0.0)
        row["channels"] = shape[1]
        if f"step {k}" in times:
            row["ms"] = {"call": times[f"step {k}"]}
            row["local_ms"] = times["alone"][0] if k > 1 else None
        rows.append(row)
    return rows


def _grids(ranks: int) -> tuple[int, ...]:
    """The mesh for so many processes: rows alone, or rows and columns."""
    return {4: (2, 2), 8: (2, 4)}.get(ranks, (ranks,))


def _huge(n: int, ranks: int, settings: Settings) -> list[Row]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    x = torch.randn(n, 2 * n, generator=torch.Generator().manual_seed(0))
    a = x @ x.mT / (2 * n)
    del x
    mesh = init_device_mesh("cpu", _grids(ranks))
    blocks = distribute_tensor(a, mesh, [Shard(i) for i in range(mesh.ndim)])
    # The eigenvalues of such a matrix lie between 0.08 and 2.9.
    method = Minimax(max_cond=100)

    def root(k: int) -> Tensor:
        if k == 1:
            return matroot.sqrtm(a, method=method, backend="torch")
        return matroot.sqrtm(blocks, method=method)

    runs: dict[str, tuple[int, Callable[[], object]]] = {}
    timed_ranks = _timed_ranks(ranks)
    counted, errors = {}, {}
    for k in timed_ranks or (ranks,):
        with Counted() as counted[k]:
            found = root(k)
        errors[k] = _residual(a, found)
        if timed_ranks:
            runs[f"root {k}"] = k, functools.partial(root, k)
            runs |= dict(_products(k, counted[k]))
    times = timed(runs, 3 * settings.seconds, most=5) if runs else {}
    rows = []
    for k, counter in counted.items():
        row = _row(k, counter.traffic, errors[k])
        row["products"] = sum(map(counter.flops, _DTYPES)) * k / (2 * n**3)
        if timed_ranks:
            row["ms"] = {"call": times[f"root {k}"]}
            row["local_ms"] = sum(
                times[name][0] * counter.flops(dtype) / (2.0 * m * inner * columns)
                for dtype in _DTYPES
                for name, (m, inner, columns) in _usual(k, counter, dtype)
            )
            if k > 1:
                (name, _), *_ = _usual(k, counter, a.dtype)
                row["panel_ms"] = times[f"{name}, sent"][0] / _PANELS - times[name][0]
        rows.append(row)
    return rows


_DTYPES = (torch.float32, torch.float64)


def _usual(
    ranks: int, counter: Counted, dtype: torch.dtype
) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """The product that takes most of the operations in a dtype, and a name for it."""
    shape = counter.usual(dtype)
    if shape is not None:
        yield f"product {ranks} {dtype}", shape


def _products(
    ranks: int, counter: Counted
) -> Iterator[tuple[str, tuple[int, Callable[[], object]]]]:
    """That product by itself, for the rate."""
    for dtype in _DTYPES:
        for name, (m, inner, columns) in _usual(ranks, counter, dtype):
            x, y = torch.randn(m, inner, dtype=dtype), torch.randn(inner, columns, dtype=dtype)
            out = torch.zeros(m, columns, dtype=dtype)
            yield name, (ranks, functools.partial(out.addmm_, x, y, beta=0))
            if ranks > 1:
                yield f"{name}, sent", (ranks, functools.partial(_sent, out, x, y))


# Panels that are sent and multiplied in one go.
_PANELS = 16


def _sent(out: Tensor, x: Tensor, y: Tensor) -> None:
    """Products, while the rows for the next one are on their way, as in those of blocks."""
    rows = [torch.empty_like(y) for _ in range(_PANELS)]
    for panel, coming in enumerate(rows):
        work: Any = distributed.broadcast(coming, panel % TIMED, async_op=True)
        out.addmm_(x, y)
        work.wait()


def _residual(a: Tensor, root: Any) -> float:
    """‖S² − A‖_F/‖A‖_F in double precision."""
    s = (root.full_tensor() if hasattr(root, "full_tensor") else root).double()
    return float(relative_error(s @ s, a.double()))
