"""Layers: whitening and covariance pooling as modules; their numerics are matroot's functions."""

from matroot.nn.whitening import (
    DecorrelatedBatchNorm1d,
    DecorrelatedBatchNorm2d,
    DecorrelatedBatchNorm3d,
    convert_batchnorm,
)
from matroot.statistics import pack_triangle, unpack_triangle

__all__ = [
    "DecorrelatedBatchNorm1d",
    "DecorrelatedBatchNorm2d",
    "DecorrelatedBatchNorm3d",
    "convert_batchnorm",
    "pack_triangle",
    "unpack_triangle",
]
