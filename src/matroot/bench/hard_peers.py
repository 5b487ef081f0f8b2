"""Other packages' square roots of hard matrices: the same ratios, of a few matrices a block."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from matroot.bench import hard
from matroot.bench.adapters import on_jax, quiet, to_jax, to_torch
from matroot.bench.hard import Block, Computed, Subject
from matroot.bench.rows import Row

# So many matrices of a block, the first ones.
SHARE = 32
# Others take seconds for each larger one.
LARGEST = 64
# JAX compiles for each size: 0.5 s.
_JAX_EVERY = 64

_Roots = Callable[[Tensor], tuple[Tensor, Tensor | None]]


def _eigh(a: Tensor) -> tuple[Tensor, Tensor]:
    """By hand, as most write it."""
    values, q = torch.linalg.eigh(a)
    s = values.clamp(min=0).sqrt()[..., None, :]
    return (q * s) @ q.mH, (q / s) @ q.mH


def _sqrth(a: Tensor) -> tuple[Tensor, None]:
    return torch.linalg.matrix_sqrth(a), None


def _scipy(a: Tensor) -> tuple[Tensor, None]:
    from scipy import linalg

    found = torch.stack([torch.from_numpy(linalg.sqrtm(x.numpy())) for x in a])
    # Complex where an eigenvalue is negative by rounding.
    return (found if a.is_complex() else found.real).to(a.dtype), None


def _jax(a: Tensor) -> tuple[Tensor, None]:
    import jax

    with on_jax(a.dtype):
        found = to_torch(jax.vmap(jax.scipy.linalg.sqrtm)(to_jax(a)))
    return (found if a.is_complex() else found.real).to(a.dtype), None


def _installed() -> dict[str, _Roots]:
    found: dict[str, _Roots] = {"torch eigh": _eigh}
    if hasattr(torch.linalg, "matrix_sqrth"):
        found["torch sqrth"] = _sqrth
    if importlib.util.find_spec("scipy"):
        found["scipy sqrtm"] = _scipy
    if importlib.util.find_spec("jax"):
        found["jax sqrtm"] = _jax
    return found


PEERS = _installed()
"""Installed packages' roots, by name: S, and Z where there is one."""


def rows(a: Tensor, block: Block) -> Iterator[Row]:
    """A row of each package that takes such matrices."""
    if a.dtype in (torch.float16, torch.bfloat16) or a.shape[-1] > LARGEST:
        return
    a = a[:SHARE]
    for name, roots in PEERS.items():
        if name == "jax sqrtm" and block.number % _JAX_EVERY:
            continue
        ratios, failed = _judged(a, roots)
        yield {
            "candidate": name,
            "method": name,
            "backend": name.split()[0],
            "matrices": len(a),
            "ratios": ratios,
            "violations": {},
            "failed": failed,
        }


def _judged(a: Tensor, roots: _Roots) -> tuple[Row, int]:
    """Histograms as of matroot's, and how many matrices have no finite root."""
    symmetric = (a + a.mH) / 2 if a.abs().max() < torch.finfo(a.dtype).max / 2 else a
    try:
        with quiet():
            sqrt, inv_sqrt = roots(symmetric)
    # A package may raise anything; its matrices then count as failed.
    except Exception:
        return {}, len(a)
    none = torch.full_like(a, torch.nan)
    no = torch.zeros(len(a), dtype=torch.bool)
    nothing = torch.zeros(len(a))
    found = Computed(
        sqrt,
        none if inv_sqrt is None else inv_sqrt,
        none,
        none,
        nothing,
        nothing,
        no,
        no,
        None,
        None,
        False,
    )
    seen = hard.judged(symmetric, Subject("auto", "torch", 0), found)
    # Only what has a root, away from the thresholds.
    truth = hard.truth(symmetric, found, 0)
    wanted = hard.due(truth, a.shape[-1], a.dtype, True)
    histograms = {
        name: hard.histogram(torch.where(wanted[root], seen.quantities[name], torch.nan))
        for name, root in (
            ("sqrt_ratio", "sqrt"),
            ("inv_ratio", "inv_sqrt"),
            ("sqrt_error", "sqrt"),
            ("inv_error", "inv_sqrt"),
        )
    }
    return histograms, int((wanted["sqrt"] & ~sqrt.isfinite().all(-1).all(-1)).sum())
