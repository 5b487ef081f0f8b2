"""Layers: whitening, covariance pooling and a metric as modules, computed by matroot's functions.

A layer is public by its name in ``__all__``.
"""

from matroot.nn import functional
from matroot.nn.coloring import WhiteningColoring2d
from matroot.nn.conversion import convert_batchnorm, convert_sync_whitening
from matroot.nn.data_whitening import Whitening
from matroot.nn.distance import FrechetDistance
from matroot.nn.pooling import (
    CovariancePooling1d,
    CovariancePooling2d,
    CovariancePooling3d,
    SecondOrderHead,
    TokenCovariancePooling,
)
from matroot.nn.video import TemporalAttention, TemporalCovariancePooling
from matroot.nn.whitening import (
    DecorrelatedBatchNorm,
    DecorrelatedBatchNorm1d,
    DecorrelatedBatchNorm2d,
    DecorrelatedBatchNorm3d,
    DecorrelatedBatchNormAct,
)
from matroot.statistics import pack_triangle, unpack_triangle

__all__ = [
    "CovariancePooling1d",
    "CovariancePooling2d",
    "CovariancePooling3d",
    "DecorrelatedBatchNorm",
    "DecorrelatedBatchNorm1d",
    "DecorrelatedBatchNorm2d",
    "DecorrelatedBatchNorm3d",
    "DecorrelatedBatchNormAct",
    "FrechetDistance",
    "SecondOrderHead",
    "TemporalAttention",
    "TemporalCovariancePooling",
    "TokenCovariancePooling",
    "Whitening",
    "WhiteningColoring2d",
    "convert_batchnorm",
    "convert_sync_whitening",
    "functional",
    "pack_triangle",
    "unpack_triangle",
]


def __dir__() -> list[str]:
    return __all__
