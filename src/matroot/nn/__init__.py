"""Layers: whitening and covariance pooling as modules, computed by matroot's functions."""

from matroot.nn import functional
from matroot.nn.coloring import WhiteningColoring2d
from matroot.nn.conversion import convert_batchnorm
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
    "SecondOrderHead",
    "TemporalAttention",
    "TemporalCovariancePooling",
    "TokenCovariancePooling",
    "WhiteningColoring2d",
    "convert_batchnorm",
    "functional",
    "pack_triangle",
    "unpack_triangle",
]
