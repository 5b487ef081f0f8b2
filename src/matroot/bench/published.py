"""The paper's figures: milliseconds forward + backward on one Tesla K40 with a 6-core Xeon.

``READ`` figures were read off the poster of the ICLR version (to about 3 %). ``RECALLED`` ones are
quoted from memory of the journal version and were not checked against it: they carry a mark
wherever they are shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SOURCE = (
    "Song, Sebe, Wang: Fast Differentiable Matrix Square Root (arXiv 2201.08663) and its journal "
    "version (arXiv 2201.12543)"
)


@dataclass(frozen=True)
class Headline:
    """One of the applications' shapes.

    Attributes:
        name: of the application.
        batch: matrices in a batch.
        n: their size.
        roots: what the application computes, ``("sqrt",)`` for pooling.
        milliseconds: published, by candidate.
        known: how the figures are known.
        calls: how often the published figure computes each root.
    """

    name: str
    batch: int
    n: int
    roots: tuple[Literal["sqrt", "inv_sqrt"], ...]
    milliseconds: dict[str, float]
    known: Literal["read", "recalled"]
    calls: int = 1

    @property
    def transforms(self) -> int:
        """How many roots the published figure computes: ten transforms are five of each."""
        return self.calls * len(self.roots)

    @property
    def per_transform(self) -> dict[str, float]:
        """The milliseconds of one root."""
        return {name: time / self.transforms for name, time in self.milliseconds.items()}


HEADLINE = (
    Headline(
        "whitening (decorrelated BN)",
        1,
        64,
        ("inv_sqrt",),
        {
            "SVD-PI": 3.49,
            "SVD-Taylor": 3.41,
            "SVD-Padé": 3.39,
            "NS, published": 2.96,
            "MPA-Lya": 2.52,
            "MTP-Lya": 2.36,
        },
        "read",
    ),
    Headline(
        "second-order vision transformer",
        64,
        48,
        ("sqrt",),
        {
            "PI": 1.84,
            "SVD-PI": 83.43,
            "SVD-Taylor": 83.29,
            "SVD-Padé": 83.25,
            "NS, published": 10.38,
            "MPA-Lya": 3.25,
            "MTP-Lya": 2.39,
        },
        "read",
    ),
    Headline(
        "global covariance pooling",
        256,
        256,
        ("sqrt",),
        {"SVD-Taylor": 2349, "NS, published": 164, "MPA-Lya": 111},
        "recalled",
    ),
    Headline(
        "fine-grained covariance pooling",
        10,
        64,
        ("sqrt",),
        {"SVD-Taylor": 32, "NS, published": 5.8, "MPA-Lya": 3.9},
        "recalled",
    ),
    Headline(
        "video covariance pooling",
        16,
        128,
        ("sqrt",),
        {"SVD-Taylor": 76, "NS, published": 12, "MPA-Lya": 7},
        "recalled",
    ),
    Headline(
        "style transfer (ten transforms)",
        4,
        256,
        ("inv_sqrt", "sqrt"),
        {"SVD-Taylor": 447, "NS, published": 94, "MPA-Lya": 69, "MTP-Lya": 41},
        "recalled",
        calls=5,
    ),
)

# Batches of 64×64, and single matrices of growing size.
BATCH: dict[str, dict[int, float]] = {
    "SVD": {1: 3.65, 4: 15, 16: 50, 64: 197},
    "NS, published": {1: 3.0, 4: 4.5, 16: 7, 64: 18.5},
    "MPA-Lya": {1: 2.5, 4: 3.4, 16: 4.5, 64: 7},
    "MTP-Lya": {1: 2.35, 4: 3.0, 16: 3, 64: 3},
}
SIZE = {
    "SVD": {16: 1.75, 32: 1.8, 64: 3.05, 96: 9.75, 128: 13.2},
    "NS, published": {16: 2.55, 32: 2.6, 64: 2.75, 96: 3.95, 128: 4.05},
    "MPA-Lya": {16: 1.7, 32: 1.75, 64: 2.05, 96: 3.3, 128: 3.6},
    "MTP-Lya": {16: 1.65, 32: 1.7, 64: 1.9, 96: 2.9, 128: 3.2},
}
# Mean |S − S_exact| for A = X Xᵀ, X Gaussian n×n.
MAE = {
    "MPA": {16: 0.041, 32: 0.053, 64: 0.065, 96: 0.074, 128: 0.081},
    "NS": {16: 0.052, 32: 0.072, 64: 0.096, 96: 0.107, 128: 0.132},
    "MTP": {16: 0.107, 32: 0.130, 64: 0.153, 96: 0.169, 128: 0.181},
}
# ‖B_k − I‖_F of the sign iteration, n = 64, κ = 10, float64.
CONVERGENCE = {5: 0.291, 6: 0.0329, 7: 5.58e-4, 8: 2.16e-7}

# The same over thousands of matrices, to more digits than the plot shows, where NS lies higher
# above n = 32.
MEAN_ERRORS = {
    "MPA": {16: 0.0417, 32: 0.0528, 64: 0.0656, 96: 0.0740, 128: 0.0808},
    "MTP": {16: 0.1071, 32: 0.1297, 64: 0.1543, 96: 0.1694, 128: 0.1807},
    "NS": {16: 0.0515, 32: 0.0718, 64: 0.0869, 96: 0.0961, 128: 0.1077},
    "NS, Frobenius": {16: 0.0256, 32: 0.0320, 64: 0.0389, 96: 0.0432, 128: 0.0463},
}
