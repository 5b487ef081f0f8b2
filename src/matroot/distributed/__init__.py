"""Several processes, on torch.distributed's process groups and DTensors.

``map`` shares a list of matrices among processes that all need the results. A DTensor needs no
function of its own. Sharded or replicated on batch dimensions, every function of ``matroot``
takes it: each process computes its matrices, and the result is placed as the argument is. And
``sqrtm``, ``inv_sqrtm``, ``sqrtm_pair``, ``sqrtm_ex`` and ``powm`` of ±1/2, ±1/4 and ±1/8 take one
matrix (n, n) that is sharded by rows, by columns or by both, of which no process has to hold more
than a block; they need a lower bound of its eigenvalues, by ``eps`` or ``Minimax(max_cond=…)``.
"""

from matroot.distributed.mapping import map

__all__ = ["map"]


def __dir__() -> list[str]:
    return __all__
