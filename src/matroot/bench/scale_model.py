"""What several processes take: time = operations/rate + messages·α + bytes/β, and plans by it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Traffic:
    """What one process waits for.

    Attributes:
        messages: one after the other.
        bytes: received in all.
    """

    messages: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.messages + other.messages, self.bytes + other.bytes)

    def __mul__(self, count: float) -> Traffic:
        return Traffic(self.messages * count, self.bytes * count)


@dataclass(frozen=True)
class Link:
    """A way between processes.

    Attributes:
        latency: α, seconds a message.
        bandwidth: β, bytes a second in each direction.
    """

    latency: float
    bandwidth: float

    def seconds(self, traffic: Traffic) -> float:
        """Messages·α + bytes/β."""
        return traffic.messages * self.latency + traffic.bytes / self.bandwidth


def traffic(operation: str, size: float, ranks: int) -> Traffic:
    """Of one collective of so many processes.

    Args:
        operation: ``"all_reduce"`` by a ring or ``"all_reduce by a tree"``, ``"all_gather"`` by a
            ring, ``"broadcast"`` or ``"reduce"`` by a tree.
        size: bytes that one process gives, or gets in a broadcast.
        ranks: processes.
    """
    if ranks == 1:
        return Traffic()
    depth = math.ceil(math.log2(ranks))
    return {
        "all_reduce": Traffic(2 * (ranks - 1), 2 * (ranks - 1) / ranks * size),
        # Up and down; a long message follows itself in pieces.
        "all_reduce by a tree": Traffic(2 * depth, 2 * size),
        "all_gather": Traffic(ranks - 1, (ranks - 1) * size),
        "broadcast": Traffic(depth, size),
        "reduce": Traffic(depth, size),
    }[operation]


def fitted(samples: Iterable[tuple[Traffic, float]]) -> Link:
    """α ≥ 0 and 1/β ≥ 0 by least squares of the relative errors of measured seconds."""
    known = list(samples)
    rows = [[t.messages / seconds, t.bytes / seconds] for t, seconds in known]
    matrix = torch.tensor(rows, dtype=torch.float64)
    # Columns of one size: microseconds beside nanoseconds would look singular.
    scale = matrix.norm(dim=0)
    matrix /= scale
    ones = torch.ones(len(known), dtype=torch.float64)
    both = torch.linalg.lstsq(matrix, ones[:, None]).solution[:, 0]
    if both.min() < 0:
        # Noise: the best on the border, with one of them alone.
        alone = matrix.mT @ ones
        both = torch.where(alone == alone.max(), alone, 0.0)
    latency, per_byte = (both / scale).tolist()
    return Link(latency, 1 / per_byte if per_byte > 0 else math.inf)


@dataclass(frozen=True)
class Published:
    """A number that somebody else has published.

    Attributes:
        value: in units of seconds, bytes, and operations a second.
        name: what it is of.
        source: who says so.
    """

    value: float
    name: str
    source: str


_H100 = "NVIDIA H100 Tensor Core GPU datasheet, column SXM"
_NCCL = "NVIDIA/nccl at 01afd20a, src/graph/tuning.cc, hwLat"
PUBLISHED = {
    "FP32": Published(67e12, "H100 SXM, products in float32", _H100),
    "TF32": Published(494.7e12, "H100 SXM, products in TF32, dense", f"{_H100} (half of sparse)"),
    "NVLink": Published(450e9, "NVLink 4, each direction of 900 GB/s", _H100),
    "NDR": Published(
        50e9, "InfiniBand NDR, 400 Gb/s a GPU", "NVIDIA DGX SuperPOD RA-11333-001, DGX H100"
    ),
    "NVLink, a step": Published(3.4e-6, "a ring over NVLink, Simple", _NCCL),
    "NVLink, ring": Published(0.47e-6 * 1.8, "a ring over NVLink, LL, many nodes", _NCCL),
    "NVLink, tree": Published(0.52e-6 * 1.8, "a tree over NVLink, LL, many nodes", _NCCL),
    "NDR, ring": Published(2.7e-6, "a ring over the network, LL", _NCCL),
    "NDR, tree": Published(5.0e-6, "a tree over the network, LL", _NCCL),
}
GPUS_A_NODE = 8


def _value(name: str) -> float:
    return PUBLISHED[name].value


@dataclass(frozen=True)
class HugePlan:
    """The root of one n×n matrix in float32 by products of blocks on GPUs of one machine.

    Attributes:
        n: rows.
        grid: processes along rows and columns.
        products: of whole matrices.
        rate: operations a second of one GPU.
    """

    n: int
    grid: tuple[int, int]
    products: int
    rate: float

    @property
    def ranks(self) -> int:
        """The number of GPUs."""
        return self.grid[0] * self.grid[1]

    @property
    def compute(self) -> float:
        """Seconds: 2n³/R operations a product."""
        return self.products * 2 * self.n**3 / self.ranks / self.rate

    @property
    def traffic(self) -> Traffic:
        """Of one GPU: in a product n²/rows + n²/columns numbers, in panels.

        A panel is a sixteenth of a process's share wide, and comes along the row and the column.
        """
        rows, columns = self.grid
        panels = 16 * max(rows, columns)
        total = Traffic()
        for along, across in ((columns, rows), (rows, columns)):
            size = 4 * self.n**2 / across / panels
            total += traffic("broadcast", size, along) * panels
        return total * self.products

    @property
    def communication(self) -> float:
        """Seconds over NVLink."""
        return Link(_value("NVLink, a step"), _value("NVLink")).seconds(self.traffic)

    @property
    def seconds(self) -> tuple[float, float]:
        """From all communication behind the products to none."""
        return max(self.compute, self.communication), self.compute + self.communication

    @property
    def memory(self) -> float:
        """Bytes of one GPU: 6 n²/R numbers."""
        return 6 * 4 * self.n**2 / self.ranks


def whitening_bytes(groups: int, n: int, ranks: int) -> int:
    """Of the all-reduce of synchronised whitening: triangles, means, count, one flag a process."""
    return 8 * (groups * (n * (n + 1) // 2 + n) + 1 + ranks)


def all_reduce_over_nodes(size: float, ranks: int) -> dict[str, float]:
    """Seconds of an all-reduce over machines of eight GPUs each, ``"ring"`` and ``"tree"``.

    A ring passes 2(R − 1) steps, of them 2(nodes − 1) over the network; a tree twice the chain of
    GPUs within a machine and the levels above; all bytes cross the network.
    """
    nodes = math.ceil(ranks / GPUS_A_NODE)
    within = min(ranks, GPUS_A_NODE)
    bandwidth = _value("NDR") if nodes > 1 else _value("NVLink")
    between = 2 * (nodes - 1)
    ring = traffic("all_reduce", size, ranks)
    tree = traffic("all_reduce by a tree", size, ranks)
    levels = math.ceil(math.log2(nodes))
    return {
        "ring": (ring.messages - between) * _value("NVLink, ring")
        + between * _value("NDR, ring")
        + ring.bytes / bandwidth,
        "tree": 2 * (within - 1) * _value("NVLink, tree")
        + 2 * levels * _value("NDR, tree")
        + tree.bytes / bandwidth,
    }


def spread(loads: Sequence[float]) -> float:
    """The largest over the mean."""
    return max(loads) * len(loads) / sum(loads)
