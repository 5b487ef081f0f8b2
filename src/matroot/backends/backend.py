"""What a backend is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class FusedProduct(Protocol):
    """βC + αAB on batches (b, n, n), C broadcast over the batch."""

    def __call__(
        self, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1.0, alpha: float = 1.0
    ) -> Tensor: ...


@dataclass(frozen=True)
class Backend:
    """The arithmetic that methods and gradient rules are written in.

    Attributes:
        name: what ``backend=`` calls it.
        matmul: AB on batches (b, n, n).
        addmm: βC + αAB on batches (b, n, n).
        declines: None where the backend takes this tensor, else the reason why not.
    """

    name: str
    matmul: Callable[[Tensor, Tensor], Tensor]
    addmm: FusedProduct
    declines: Callable[[Tensor], str | None]
