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
        group: the processes that hold the parts; None where there is one part.
        ranks: these processes in the order of their parts, which need not be the group's.
    """

    n: int
    parts: int
    own: int
    group: Any = None
    ranks: Sequence[int] = ()

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

    def owner(self, i: int) -> int:
        """The part that holds number i."""
        return next(part for part, end in enumerate(self.bounds[1:]) if i < end)


@dataclass(frozen=True)
class Grid:
    """The blocks of an n×n matrix. Methods are called by all processes at once.

    A block is an ordinary tensor, this process's rows × this process's columns.

    Attributes:
        rows: how the rows are divided.
        columns: how the columns are divided.
    """

    rows: Axis
    columns: Axis

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
        axes: dict[int, Axis] = {}
        for i, placement in enumerate(a.placements):
            if placement.is_replicate():
                continue
            dim = placement.dim % 2
            if dim in axes:
                raise ValueError(
                    f"a must be sharded once by rows and once by columns, got {a.placements}; "
                    "what helps: one dimension of the mesh for each"
                )
            line = mesh.mesh[(*place[:i], slice(None), *place[i + 1 :])]
            axes[dim] = Axis(a.shape[0], mesh.size(i), place[i], mesh.get_group(i), line.tolist())
        rows, columns = (axes.get(dim) or Axis(a.shape[0], 1, 0) for dim in (0, 1))
        return cls(rows, columns)

    @property
    def n(self) -> int:
        """The number of rows."""
        return self.rows.n

    def diagonal(self, x: Tensor) -> Tensor:
        """What the block has of the matrix's diagonal, a view."""
        return x.diagonal(self.rows.start - self.columns.start)

    def total(self, *x: Tensor) -> list[float]:
        """The sums over all blocks of numbers that each block has, in double precision."""
        return self._combined(x, lambda numbers: numbers.sum(0))

    def largest(self, *x: Tensor) -> list[float]:
        """The largest over all blocks."""
        return self._combined(x, lambda numbers: numbers.amax(0))

    def _combined(self, x: Sequence[Tensor], how: Callable[[Tensor], Tensor]) -> list[float]:
        """Gathered, and combined in one order: so all processes decide alike."""
        numbers = torch.stack([one.double() for one in x])
        for axis in (self.columns, self.rows):
            if axis.group is not None:
                parts = [torch.empty_like(numbers) for _ in range(axis.parts)]
                distributed.all_gather(parts, numbers, group=axis.group)
                numbers = how(torch.stack(parts))
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
        wait_columns, columns = self._sent(self.columns, x, 1, start, stop)
        wait_rows, rows = self._sent(self.rows, y, 0, start, stop)

        def wait() -> None:
            wait_columns()
            wait_rows()

        return wait, (columns, rows)

    def _sent(
        self, axis: Axis, x: Tensor, dim: int, start: int, stop: int
    ) -> tuple[Callable[[], None], Tensor]:
        """Begin to send rows or columns from the process that has them along an axis."""
        owner, k = axis.owner(start), stop - start
        if owner == axis.own:
            part = x.narrow(dim, start - axis.start, k)
        else:
            part = x.new_empty((x.shape[0], k) if dim == 1 else (k, x.shape[1]))
        if axis.group is None or not part.numel():
            return lambda: None, part
        part = part.contiguous()
        work: Any = distributed.broadcast(part, axis.ranks[owner], group=axis.group, async_op=True)
        return work.wait, part

    def transposed(self, x: Tensor) -> Tensor:
        """A block of Xᵀ, panel by panel as in ``product``, and with as many numbers received.

        Columns of X go along the rows of the grid; of these numbers each column of the grid puts
        together those rows of X that are its columns, where they are rows of Xᵀ.
        """
        out = torch.empty_like(x)
        for start, stop in self._panels():
            wait, panel = self._sent(self.columns, x, 1, start, stop)
            wait()
            part = x.new_zeros(x.shape[1], stop - start)
            low, high = (
                max(min(end, self.rows.stop), self.rows.start)
                for end in (self.columns.start, self.columns.stop)
            )
            # Of this process's rows those that are columns of its block.
            part[low - self.columns.start : high - self.columns.start] = panel[
                low - self.rows.start : high - self.rows.start
            ]
            owner = self.rows.owner(start)
            if self.rows.group is not None and part.numel():
                distributed.reduce(part, self.rows.ranks[owner], group=self.rows.group)
            if owner == self.rows.own:
                out[start - self.rows.start : stop - self.rows.start] = part.mT
        return out


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
