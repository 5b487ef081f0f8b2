"""One matrix that is divided into blocks among processes, and what is computed of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

# A panel is at least so wide, for products of small matrices are slow.
_LEAST_WIDTH = 64


@dataclass(frozen=True)
class Axis:
    """The rows or the columns of a matrix, divided among processes as ``torch.chunk`` does it.

    Attributes:
        n: their number.
        parts: how many parts there are.
        own: the place of this process's part.
        group: the processes that hold the other parts, in order; None where there is one part.
    """

    n: int
    parts: int
    own: int
    group: Any

    @property
    def bounds(self) -> list[int]:
        """The first of each part, and n."""
        size = -(-self.n // self.parts)
        return [min(i * size, self.n) for i in range(self.parts + 1)]

    @property
    def start(self) -> int:
        """The first of this process's part."""
        return self.bounds[self.own]

    @property
    def stop(self) -> int:
        """The one after the last of this process's part."""
        return self.bounds[self.own + 1]


@dataclass(frozen=True)
class Grid:
    """The blocks of an n×n matrix. Methods are called by all processes at once.

    A block is an ordinary tensor, this process's rows × this process's columns.

    Attributes:
        rows: how the rows are divided.
        columns: how the columns are divided.
        ranks: the process that holds each block, ``ranks[i][j]`` part i of the rows, part j of the
            columns.
    """

    rows: Axis
    columns: Axis
    ranks: Sequence[Sequence[int]]

    @classmethod
    def of(cls, a: Any) -> Grid:
        """That of a DTensor (n, n), sharded on rows or columns or both, else replicated.

        Raises:
            ValueError: another shape, or one dimension sharded over two of the mesh.
        """
        if a.ndim != 2 or a.shape[0] != a.shape[1]:
            raise ValueError(
                "a matrix that is sharded on its own dimensions must be one of shape (n, n), got "
                f"{tuple(a.shape)}: give a batch sharded on batch dimensions"
            )
        mesh, place = a.device_mesh, a.device_mesh.get_coordinate()
        if place is None:
            raise ValueError("this process is not in the mesh of a, and holds no block of it")
        ranks = mesh.mesh
        axes: dict[int, Axis] = {}
        # From the last dimension, so that taking one out does not move those to come.
        for i in reversed(range(mesh.ndim)):
            placement = a.placements[i]
            if placement.is_replicate():
                ranks = ranks.select(i, place[i])
                continue
            dim = placement.dim % 2
            if dim in axes:
                raise ValueError(
                    f"a must be sharded once by rows and once by columns, got {a.placements}; "
                    "what helps: one dimension of the mesh for each"
                )
            axes[dim] = Axis(a.shape[0], mesh.size(i), place[i], mesh.get_group(i))
        if list(axes) == [0, 1]:  # The mesh has columns first.
            ranks = ranks.T
        for dim in {0, 1} - axes.keys():
            axes[dim] = Axis(a.shape[0], 1, 0, None)
            ranks = ranks.unsqueeze(dim)
        return cls(axes[0], axes[1], ranks.tolist())

    @property
    def n(self) -> int:
        """The number of rows."""
        return self.rows.n

    def diagonal(self, x: Tensor) -> Tensor:
        """What the block has of the matrix's diagonal, a view."""
        return x.diagonal(self.rows.start - self.columns.start)

    def total(self, *x: Tensor) -> list[float]:
        """The sums over all blocks of numbers that each block has, in double precision."""
        return self._combined(x, distributed.ReduceOp.SUM)

    def largest(self, *x: Tensor) -> list[float]:
        """The largest over all blocks; NaN does not show in it everywhere."""
        return self._combined(x, distributed.ReduceOp.MAX)

    def _combined(self, x: Sequence[Tensor], how: Any) -> list[float]:
        numbers = torch.stack([one.double() for one in x])
        for axis in (self.columns, self.rows):
            if axis.group is not None:
                distributed.all_reduce(numbers, how, group=axis.group)
        found: list[float] = numbers.tolist()
        return found

    def largest_row(self, x: Tensor) -> float:
        """‖A‖_∞, the largest sum of magnitudes of a row."""
        sums = torch.linalg.vector_norm(x, 1, dim=1).double()
        if self.columns.group is not None:
            distributed.all_reduce(sums, group=self.columns.group)
        return self.largest(sums.max() if len(sums) else sums.new_zeros(()))[0]

    def norm(self, x: Tensor, minus: Tensor | None = None) -> float:
        """‖A‖_F, or ‖A − B‖_F."""
        return math.sqrt(self.total(_squares(x, minus))[0])

    def sizes(self, x: Tensor) -> tuple[float, float]:
        """‖A‖_F and tr A."""
        squares, trace = self.total(_squares(x), self.diagonal(x).double().sum())
        return math.sqrt(squares), trace

    def product(self, x: Tensor, y: Tensor, *, in_double: bool = False) -> Tensor:
        """A block of X Y, by panels that each process in turn sends along its row and column.

        Of n columns of X and rows of Y a panel has a few; the next one is on its way while one is
        multiplied. A process receives n²/rows + n²/columns numbers, which is the algorithm SUMMA.

        Args:
            x: a block.
            y: a block.
            in_double: whether to multiply and sum in double precision, and round once.

        References:
            R. A. van de Geijn and J. Watts, SUMMA: scalable universal matrix multiplication
            algorithm, Concurrency: Practice and Experience 9 (1997).
        """
        if not in_double:
            return self._product(x, y, x.dtype)
        # By halves, since a sum in double precision takes the memory of two blocks.
        # (Two in every process, as all must take part in sending.)
        out, half = torch.empty_like(y), y.shape[1] // 2
        for place in (slice(half), slice(half, None)):
            out[:, place] = self._product(x, y[:, place], torch.float64)
        return out

    def _product(self, x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        out = torch.zeros(x.shape[0], y.shape[1], dtype=dtype, device=x.device)
        panels = self._panels()
        coming = self._send(x, y, *panels[0])
        for following in [*panels[1:], None]:
            wait, (columns, rows) = coming
            if following is not None:
                coming = self._send(x, y, *following)
            wait()
            out.addmm_(columns.to(dtype), rows.to(dtype))
        return out

    def _panels(self) -> list[tuple[int, int]]:
        """First and last of each panel, which lies in one part of rows and one of columns."""
        width = max(_LEAST_WIDTH, -(-self.n // (16 * max(self.rows.parts, self.columns.parts))))
        cuts = sorted({*self.rows.bounds, *self.columns.bounds, *range(0, self.n, width)})
        return list(itertools.pairwise(cuts))

    def _send(
        self, x: Tensor, y: Tensor, start: int, stop: int
    ) -> tuple[Callable[[], None], tuple[Tensor, Tensor]]:
        """Begin to send columns of X and rows of Y, and what waits for them."""
        k, works, parts = stop - start, [], []
        for axis, block, dim in ((self.columns, x, 1), (self.rows, y, 0)):
            owner = next(i for i, end in enumerate(axis.bounds[1:]) if start < end)
            shape = (block.shape[0], k) if dim == 1 else (k, block.shape[1])
            part = block.new_empty(shape)
            if owner == axis.own:
                part = block.narrow(dim, start - axis.start, k)
            if axis.group is not None and part.numel():
                part = part.contiguous()
                work: Any = distributed.broadcast(
                    part, group=axis.group, group_src=owner, async_op=True
                )
                works.append(work)
            parts.append(part)

        def wait() -> None:
            for work in works:
                work.wait()

        return wait, (parts[0], parts[1])

    def transposed(self, x: Tensor) -> Tensor:
        """A block of Xᵀ, piece by piece from and to every process that holds some of it."""
        out, mine = torch.empty_like(x), (self.rows.own, self.columns.own)
        places = [(i, j) for i in range(self.rows.parts) for j in range(self.columns.parts)]
        own = places.index(mine)
        for turn in range(len(places)):
            to, by = places[(own + turn) % len(places)], places[(own - turn) % len(places)]
            # They need the rows that are their columns, and the columns that are their rows.
            rows, columns = self._of(self.columns, to[1]), self._of(self.rows, to[0])
            given = _cut(x, rows, self.rows.start, columns, self.columns.start).mT.contiguous()
            if turn:
                rows, columns = self._of(self.columns, by[1]), self._of(self.rows, by[0])
                place = _cut(out, rows, self.rows.start, columns, self.columns.start)
                came = place.new_empty(place.shape)
                works = []
                if given.numel():
                    rank = self.ranks[to[0]][to[1]]
                    works.append(distributed.P2POp(distributed.isend, given, rank))
                if came.numel():
                    rank = self.ranks[by[0]][by[1]]
                    works.append(distributed.P2POp(distributed.irecv, came, rank))
                for work in distributed.batch_isend_irecv(works) if works else ():
                    work.wait()
            else:
                place, came = _cut(out, rows, self.rows.start, columns, self.columns.start), given
            place.copy_(came)
            del given, came  # Before there are others.
        return out

    def _of(self, axis: Axis, part: int) -> tuple[int, int]:
        """First and last of a part."""
        return axis.bounds[part], axis.bounds[part + 1]


def _squares(x: Tensor, minus: Tensor | None = None) -> Tensor:
    """Σ x², or Σ (x − y)², in double precision and without a copy of the block."""
    total = x.new_zeros((), dtype=torch.float64)
    # A few rows at a time: 1/64 of the block.
    rows = -(-x.shape[0] // 64) or 1
    for i in range(0, x.shape[0], rows):
        part = x[i : i + rows].double()
        if minus is not None:
            part = part - minus[i : i + rows]
        total += part.square().sum()
    return total


def _cut(
    x: Tensor, rows: tuple[int, int], first_row: int, columns: tuple[int, int], first_column: int
) -> Tensor:
    """The view of a block's entries in these rows and columns of the matrix."""
    spans = []
    for (start, stop), first, length in (
        (rows, first_row, x.shape[0]),
        (columns, first_column, x.shape[1]),
    ):
        low, high = max(start - first, 0), min(stop - first, length)
        spans.append(slice(low, max(high, low)))
    return x[spans[0], spans[1]]
