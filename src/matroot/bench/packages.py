"""The packages that are compared, and how the roots of each are loaded and called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any, Literal

import torch
from torch import Tensor

import matroot
from matroot.bench import baselines
from matroot.bench.adapters import ADAPTERS, Adapter, Function, quiet
from matroot.bench.measure import ROOTS

Functions = Mapping[str, Function]


@dataclass(frozen=True)
class Peer:
    """A package's square root functions.

    Attributes:
        name: its name in the rows.
        package: the distribution that it comes from.
        load: imports the package, and returns its functions: some of ``"sqrt"``, ``"inv_sqrt"``,
            ``"both"`` (S, Z); and ``"unchecked"`` where ``"sqrt"`` raises for a bad matrix and
            there is a root that does not.
        kind: the library whose arrays the functions take: ``"torch"``, ``"jax"`` or ``"numpy"``.
        truncated: the functions are approximations, not accurate to rounding.
    """

    name: str
    package: str
    load: Callable[[], Functions]
    kind: Literal["torch", "jax", "numpy"] = "torch"
    truncated: bool = False

    @cached_property
    def functions(self) -> Functions:
        """What ``load`` returns, loaded once."""
        with quiet():
            return self.load()

    @property
    def adapter(self) -> Adapter:
        """How the functions are called."""
        return ADAPTERS[self.kind]

    @property
    def version(self) -> str:
        """Of the package."""
        return version(self.package)


def _matroot() -> Functions:
    return {
        "sqrt": matroot.sqrtm,
        "inv_sqrt": matroot.inv_sqrtm,
        "both": matroot.sqrtm_pair,
        "unchecked": partial(matroot.sqrtm, check_errors=False),
    }


def _matrix_sqrth() -> Functions:
    name = "torch.linalg.matrix_sqrth"
    if not hasattr(torch.linalg, "matrix_sqrth"):
        raise ModuleNotFoundError(f"no {name} in PyTorch {torch.__version__}", name=name)
    return {"sqrt": torch.linalg.matrix_sqrth}


def _eigh() -> Functions:
    def roots(a: Tensor, *powers: float) -> tuple[Tensor, ...]:
        values, q = torch.linalg.eigh(a)
        return tuple((q * values[..., None, :] ** power) @ q.mH for power in powers)

    return {
        "sqrt": lambda a: roots(a, 0.5)[0],
        "inv_sqrt": lambda a: roots(a, -0.5)[0],
        "both": lambda a: roots(a, 0.5, -0.5),
    }


def _eigh_by_hand() -> Functions:
    return {root: partial(baselines.eigh_by_hand, root=root) for root in ROOTS}


def _paper() -> Functions:
    return {root: partial(baselines.paper, forward="pade", root=root) for root in ROOTS}


def _scipy() -> Functions:
    from scipy.linalg import sqrtm

    return {"sqrt": sqrtm}


def _jax() -> Functions:
    import jax.numpy as jnp
    from jax.scipy.linalg import sqrtm

    # The function itself takes a single matrix.
    return {"sqrt": jnp.vectorize(sqrtm, signature="(n,n)->(n,n)")}


def _pot() -> Functions:
    from ot.backend import TorchBackend

    return {"sqrt": TorchBackend().sqrtm}


def _geoopt() -> Functions:
    from geoopt import linalg

    return {
        "sqrt": linalg.sym_sqrtm,
        "inv_sqrt": linalg.sym_inv_sqrtm1,
        "both": lambda a: linalg.sym_inv_sqrtm2(a)[::-1],
    }


def _pyriemann() -> Functions:
    from pyriemann.geometry import base

    return {"sqrt": base.sqrtm, "inv_sqrt": base.invsqrtm}


def _spd_learn() -> Functions:
    from spd_learn import functional

    return {
        "sqrt": functional.matrix_sqrt.apply,
        "inv_sqrt": functional.matrix_inv_sqrt.apply,
        "both": functional.matrix_sqrt_inv.apply,
    }


def _ott() -> Functions:
    from ott.math import matrix_square_root as ott

    def threshold(a: Any) -> dict[str, float]:
        # The default is not meant for double precision.
        return {"threshold": 1e-13} if a.dtype == "float64" else {}

    return {
        "sqrt": lambda a: ott.sqrtm_only(a, **threshold(a)),
        "inv_sqrt": lambda a: ott.inv_sqrtm_only(a, **threshold(a)),
        "both": lambda a: ott.sqrtm(a, **threshold(a))[:2],
    }


def _contour_integral_quadrature() -> Functions:
    from linear_operator.operators import DenseLinearOperator

    def inverse(a: Tensor) -> Tensor:
        identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        root: Tensor = DenseLinearOperator(a).sqrt_inv_matmul(identity)
        return root

    def root(a: Tensor) -> Tensor:
        # The same numbers as from contour_integral_quad, whose gradient treats the inverse root as
        # a constant. Without the first line the gradient of the product is not symmetric.
        a = (a + a.mH) / 2
        return a @ inverse(a)

    return {"sqrt": root, "inv_sqrt": inverse}


PEERS: tuple[Peer, ...] = (
    Peer("matroot", "matroot", _matroot),
    Peer("torch.linalg.matrix_sqrth", "torch", _matrix_sqrth),
    Peer("eigh, differentiated by PyTorch", "torch", _eigh),
    Peer("eigh by hand", "torch", _eigh_by_hand),
    Peer("MPA-Lya (paper)", "torch", _paper, truncated=True),
    Peer("scipy.linalg.sqrtm", "scipy", _scipy, kind="numpy"),
    Peer("jax.scipy.linalg.sqrtm, vectorised", "jax", _jax, kind="jax"),
    Peer("POT", "POT", _pot),
    Peer("geoopt", "geoopt", _geoopt),
    Peer("pyriemann", "pyriemann", _pyriemann),
    Peer("spd_learn", "spd_learn", _spd_learn),
    Peer("OTT-JAX", "ott-jax", _ott, kind="jax"),
    Peer("linear_operator CIQ", "linear_operator", _contour_integral_quadrature, truncated=True),
)


def available(device: torch.device) -> tuple[list[Peer], list[str]]:
    """The peers that can be measured on a device, and for every other one the reason in a line.

    Only a missing module makes a peer missing; other errors of an import are raised.
    """
    found, missing = [], []
    for peer in PEERS:
        if device.type != "cpu" and peer.kind != "torch":
            missing.append(f"{peer.name}: measured on a CPU only")
            continue
        try:
            with quiet():
                peer.load()
        except ModuleNotFoundError as error:
            missing.append(f"{peer.name}: {error}; pip install --upgrade {peer.package}")
        else:
            found.append(peer)
    return found, missing
