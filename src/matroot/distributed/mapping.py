"""A function of many matrices of different sizes, each computed by one process for all."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from matroot import autodiff, context, screen, spd
from matroot.distributed.collectives import processes
from matroot.dtensors import ERRORS, kind_of
from matroot.statistics import pack_triangle, unpack_triangle

_NAME = "matroot.distributed.map"

# Microseconds of one n×n matrix in a batch: a + b·n² + c·n³, fitted to powm(−1/4) by the compiled
# kernels (docs/decisions.md). Only ratios count, and which matrices share a batch.
_COST = {torch.float32: (0.11, 8.0e-3, 1.02e-4), torch.float64: (0.12, 1.6e-2, 2.75e-4)}
# Of one call of a function besides, microseconds.
_CALL = 50.0
# What a batch may cost, unless it is one matrix: calls then cost a few per mille of the work, and
# batches are small enough to be spread evenly. Every size beyond the kernels costs more, so that
# such matrices come one at a time.
_LIMIT = 20_000.0
# Where the bytes of a batch begin: multiples of the largest number's size.
_ALIGNMENT = 16
# What a process tells all others before results are exchanged: status, digest of the shapes, text.
_HEADER = 2048
_DIGEST = 32


@dataclass(frozen=True)
class Batch:
    """Matrices of one size, dtype and device that are computed in one call.

    Attributes:
        indices: their places in the list.
        n: rows of each.
        dtype: of each.
        device: of each.
    """

    indices: tuple[int, ...]
    n: int
    dtype: torch.dtype
    device: torch.device

    @property
    def cost(self) -> float:
        """Microseconds that it takes about."""
        return _CALL + len(self.indices) * cost(self.n, self.dtype)

    @property
    def length(self) -> int:
        """Bytes of the results' triangles, filled up to the alignment."""
        used = len(self.indices) * self.n * (self.n + 1) // 2 * self.dtype.itemsize
        return -(-used // _ALIGNMENT) * _ALIGNMENT


def map(
    function: Callable[[Tensor], Tensor], matrices: Sequence[Tensor], process_group: Any = None
) -> list[Tensor]:
    """function(A) of each matrix of a list that every process holds, computed by one for all.

    As for the preconditioners of an optimizer, which every process needs and none should compute
    alone: matrices of one size are stacked into batches, the batches go, the most expensive first,
    to the process that has least to do, and all processes exchange the results. Which matrices
    share a batch depends on the list alone: the results have the same bits in every process and for
    every number of processes (of the same hardware and number of threads), also where a function's
    rounding depends on a matrix's company.

    Args:
        function: takes a batch (k, n, n) of symmetric (Hermitian) matrices and returns as many, of
            the same shape, dtype and device; the same in every process, and without communication
            of its own. For example ``functools.partial(matroot.powm, p=-1 / 4, eps=1e-6)``.
        matrices: symmetric (Hermitian), each of shape (nᵢ, nᵢ), real or complex, of any sizes,
            dtypes and devices; the same in every process (shapes, dtypes and kinds of devices are
            compared, numbers are not).
        process_group: None: the default group. Without ``torch.distributed``, or with one process,
            everything is computed here.

    Returns:
        The results in the order of ``matrices``, each on the device of its matrix.

    Raises:
        ValueError: not square matrices; one requires a gradient (there is no derivative, nor
            torch.func's transforms); processes differ in what they hold; this process is not in the
            group; results of another shape, or not symmetric: a skew part above 1e-3 of the norm
            (1e-2 in half precision). Below, it is rounding, and is averaged away.
        TypeError: no tensors, tensors that stand for others (DTensor), or results of another dtype.
        torch.linalg.LinAlgError: what ``function`` raises for bad matrices. An error of one process
            is raised in all of them, with its rank; types other than these become RuntimeError.

    Note:
        Two collectives: an all-gather of 2 kB a process, which tells of errors before anybody waits
        for a result, and one of the results as packed triangles, filled up to those of the process
        with most. Without a group, the same steps without them. A process that dies ends the others
        with the group's own error, after its timeout at the latest. torch.compile runs it as it is.

    Example:
        >>> import torch, matroot
        >>> roots = matroot.distributed.map(matroot.sqrtm, [4 * torch.eye(2), 9 * torch.eye(1)])
        >>> [root.tolist() for root in roots]
        [[[2.0, 0.0], [0.0, 2.0]], [[3.0]]]
    """
    results: list[Tensor] = _mapped(function, matrices, process_group)
    return results


# PyTorch leaves it without types.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _mapped(
    function: Callable[[Tensor], Tensor], matrices: Sequence[Tensor], process_group: Any
) -> list[Tensor]:
    """See ``map``."""
    ranks = processes(process_group)
    if ranks < 1:
        raise ValueError(f"{_NAME}: this process is not in the process group that was given")
    rank = distributed.get_rank(process_group) if ranks > 1 else 0
    # Whatever goes wrong here is told to all processes, which would wait for this one otherwise.
    failure: Exception | None = None
    try:
        matrices = _checked(matrices)
        shares = assigned(batches(matrices), ranks)
        row = _row(function, matrices, shares, rank, _transport(process_group, matrices))
    except Exception as error:
        failure = error
    if ranks == 1:
        if failure is not None:
            raise ERRORS[kind_of(failure)](f"{_NAME}: {failure}") from failure.__cause__
        rows = row[None]
    else:
        _agree(failure, matrices, process_group)
        rows = _gathered(row, process_group) if len(row) else row.expand(ranks, 0)
    return _results(shares, rows, len(matrices))


def cost(n: int, dtype: torch.dtype) -> float:
    """Microseconds that one n×n matrix takes in a batch, about; complex: four times the real."""
    real = spd.real_dtype(spd.computing_dtype(dtype))
    a, b, c = _COST[torch.float64 if real == torch.float64 else torch.float32]
    return (a + b * n**2 + c * n**3) * (4 if dtype.is_complex else 1)


def batches(matrices: Sequence[Tensor]) -> list[Batch]:
    """Matrices of one size, dtype and device together, in equal parts that cost up to a limit.

    They depend on the list alone, not on the number of processes.
    """
    groups: dict[tuple[int, torch.dtype, torch.device], list[int]] = {}
    for i, a in enumerate(matrices):
        groups.setdefault((len(a), a.dtype, a.device), []).append(i)
    found = []
    for (n, dtype, device), indices in groups.items():
        most = max(1, int((_LIMIT - _CALL) / cost(n, dtype)))
        parts = -(-len(indices) // most)
        for part in range(parts):
            begin, end = (len(indices) * p // parts for p in (part, part + 1))
            found.append(Batch(tuple(indices[begin:end]), n, dtype, device))
    return found


def assigned(work: Sequence[Batch], ranks: int) -> list[list[Batch]]:
    """What each process computes: the most expensive first, to the one that has least to do."""
    shares: list[list[Batch]] = [[] for _ in range(ranks)]
    loads = [(0.0, rank) for rank in range(ranks)]
    for batch in sorted(work, key=lambda batch: -batch.cost):
        load, rank = loads[0]
        shares[rank].append(batch)
        heapq.heapreplace(loads, (load + batch.cost, rank))
    return shares


def _checked(matrices: Sequence[Tensor]) -> list[Tensor]:
    """The matrices as a list. Raises what ``map`` says of its arguments."""
    found = list(matrices)
    for i, a in enumerate(found):
        if not isinstance(a, Tensor) or context.stands_for_others(a) or a.layout != torch.strided:
            kind = f"a tensor of layout {a.layout}" if type(a) is Tensor else type(a).__name__
            raise TypeError(
                f"matrices[{i}] must be a plain tensor that holds all its numbers, got {kind}"
            )
        if a.ndim != 2 or a.shape[0] != a.shape[1]:
            raise ValueError(f"matrices[{i}] must have shape (n, n), got {tuple(a.shape)}")
        if not (a.is_floating_point() or a.is_complex()):
            raise TypeError(f"matrices[{i}] must be real or complex, got {a.dtype}")
        if autodiff.differentiated(a):
            raise ValueError(
                f"matrices[{i}] requires a gradient, or a torch.func transform is running, and "
                "there is no derivative through what other processes compute: detach() it, or call "
                "under torch.no_grad()"
            )
    return found


@torch.no_grad()
def _row(
    function: Callable[[Tensor], Tensor],
    matrices: list[Tensor],
    shares: list[list[Batch]],
    rank: int,
    device: torch.device,
) -> Tensor:
    """The results of one process as bytes, as many as of the process with most."""
    length = max(sum(batch.length for batch in share) for share in shares)
    row = torch.zeros(length, dtype=torch.uint8, device=device)
    begin = 0
    for batch in shares[rank]:
        # A copy, in memory that begins at a multiple of 64 bytes: rounding may depend on it.
        x = torch.stack([matrices[i] for i in batch.indices])
        try:
            packed = _packed(function(x), batch)
        except Exception as error:
            raise ERRORS[kind_of(error)](f"{_names(batch)}: {_text(error)}") from error
        row[begin : begin + packed.numel()] = packed
        begin += batch.length
    return row


def _packed(y: Tensor, batch: Batch) -> Tensor:
    """The triangles of a function's result as bytes. Raises unless it is as ``map`` says."""
    if not isinstance(y, Tensor):
        raise TypeError(f"expected a tensor from the function, got {type(y).__name__}")
    shape = (len(batch.indices), batch.n, batch.n)
    if y.shape != shape:
        raise ValueError(f"expected shape {shape} from the function, got {tuple(y.shape)}")
    if y.dtype != batch.dtype:
        raise TypeError(f"expected {batch.dtype} from the function, got {y.dtype}")
    if not torch.equal(y, y.mH):
        y = _symmetrised(y, screen.thresholds(batch.n, batch.dtype).skew)
    return pack_triangle(y).flatten().view(torch.uint8)


def _symmetrised(y: Tensor, limit: float) -> Tensor:
    """The Hermitian part. Raises if the rest is more than rounding."""
    skew, norm = spd.frobenius_norm(y - y.mH) / 2, spd.frobenius_norm(y)
    # Of NaN neither is true: a matrix that has no result is NaN.
    bad = (skew > limit * norm).flatten().nonzero().flatten().tolist()
    if bad:
        worst = float((skew / norm).flatten()[bad].max())
        raise ValueError(
            f"the function's result is not symmetric (Hermitian) at batch index "
            f"{_some(bad)}: the skew part is {worst:.1e} of the norm, tolerance "
            f"{limit:g}; functions of symmetric matrices are"
        )
    return spd.hermitian_part(y)


def _transport(group: Any, matrices: Sequence[Tensor]) -> torch.device:
    """Where bytes are exchanged: on the matrices' device where the group can, or on the CPU."""
    if processes(group) == 1:
        return matrices[0].device if matrices else torch.device("cpu")
    backends = dict(part.split(":") for part in distributed.get_backend_config(group).split(","))
    # gloo takes what is on a GPU over the CPU, and not for every collective.
    if matrices and backends.get(matrices[0].device.type, "gloo") != "gloo":
        return matrices[0].device
    return torch.device("cpu" if "cpu" in backends else next(iter(backends)))


def _agree(failure: Exception | None, matrices: Sequence[Tensor], group: Any) -> None:
    """Raise the same error in all processes if one has one, or if they hold other matrices."""
    # 0, or one more than the place of an error's type.
    status = 0 if failure is None else 1 + kind_of(failure)
    text = _summary(matrices) if failure is None else str(failure)
    digest = _digest(matrices) if failure is None else bytes(_DIGEST)
    told = (bytes([status]) + digest + text.encode())[:_HEADER].ljust(_HEADER, b"\0")
    device = _transport(group, ())
    header = torch.frombuffer(bytearray(told), dtype=torch.uint8).to(device)
    rows = [bytes(row) for row in _gathered(header, group).tolist()]
    texts = [row[1 + _DIGEST :].rstrip(b"\0").decode(errors="replace") for row in rows]
    ranks = [_global_rank(group, rank) for rank in range(len(rows))]
    failed = [rank for rank, row in enumerate(rows) if row[0]]
    if failed:
        first, *others = failed
        also = f" (and {_some([ranks[r] for r in others])} failed)" if others else ""
        kind = ERRORS[rows[first][0] - 1]
        raise kind(f"{_NAME}: rank {ranks[first]}{also}: {texts[first]}") from failure
    for rank, row in enumerate(rows):
        if row[1 : 1 + _DIGEST] != rows[0][1 : 1 + _DIGEST]:
            raise ValueError(
                f"{_NAME}: processes must hold matrices of the same shapes, dtypes and kinds of "
                f"devices; rank {ranks[0]} holds {texts[0]}, rank {ranks[rank]} {texts[rank]}"
            )


def _gathered(x: Tensor, group: Any) -> Tensor:
    """The vectors of all processes, in the order of ranks; one all-gather."""
    found = x.new_empty(processes(group), len(x))
    distributed.all_gather(list(found), x, group)
    return found


def _digest(matrices: Sequence[Tensor]) -> bytes:
    """The same where shapes and dtypes are, and where the same matrices share a device."""
    places: dict[torch.device, int] = {}
    described = [
        (len(a), a.dtype, a.device.type, places.setdefault(a.device, len(places))) for a in matrices
    ]
    return hashlib.sha256(repr(described).encode()).digest()


def _results(shares: list[list[Batch]], rows: Tensor, number: int) -> list[Tensor]:
    """The matrices of all processes' triangles, in their order."""
    results: dict[int, Tensor] = {}
    places: dict[tuple[int, torch.device], Tensor] = {}
    for share, row in zip(shares, rows, strict=True):
        begin = 0
        for batch in share:
            packed = row[begin : begin + batch.length].to(batch.device).view(batch.dtype)
            begin += batch.length
            n, length = batch.n, batch.n * (batch.n + 1) // 2
            # Which number of a triangle each entry is, found once for a size.
            if (n, batch.device) not in places:
                numbers = torch.arange(length, device=batch.device)
                places[n, batch.device] = unpack_triangle(numbers).flatten()
            # One by one, each in memory of its own: whoever keeps or saves one keeps no others.
            for k, i in enumerate(batch.indices):
                triangle = packed[k * length : (k + 1) * length]
                x = triangle.index_select(0, places[n, batch.device]).view(n, n)
                results[i] = x.triu() + x.triu(1).mH if x.is_complex() else x
    return [results[i] for i in range(number)]


def _text(error: Exception) -> str:
    """What it says, and its type where that will change."""
    known = type(error) in ERRORS
    return str(error) if known else f"{type(error).__name__}: {error}"


def _names(batch: Batch) -> str:
    """The matrices of a batch, for an error text."""
    many = len(batch.indices) > 1
    together = f", a batch of {len(batch.indices)}" if many else ""
    return f"matrices[{_some(batch.indices)}] ({batch.n}×{batch.n}{together})"


def _summary(matrices: Sequence[Tensor]) -> str:
    """Shapes and dtypes in short."""
    kinds = [f"{len(a)}×{len(a)} {str(a.dtype).removeprefix('torch.')}" for a in matrices]
    return f"{len(kinds)} ({_some(kinds)})" if kinds else "none"


def _some(things: Sequence[object]) -> str:
    """The first four."""
    return ", ".join([*[str(x) for x in things[:4]], *(["…"] if len(things) > 4 else [])])


def _global_rank(group: Any, rank: int) -> int:
    """The rank in the default group of a process of this one."""
    return rank if group is None else distributed.get_global_rank(group, rank)
