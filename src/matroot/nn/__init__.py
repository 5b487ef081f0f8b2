"""Layers: whitening, covariance pooling and a metric as modules, computed by matroot's functions.

A layer is public by its import here, ``import … as …`` so that type checkers let it pass on.
"""

from matroot.nn import functional as functional
from matroot.nn.coloring import WhiteningColoring2d as WhiteningColoring2d
from matroot.nn.conversion import convert_batchnorm as convert_batchnorm
from matroot.nn.conversion import convert_sync_whitening as convert_sync_whitening
from matroot.nn.data_whitening import Whitening as Whitening
from matroot.nn.distance import FrechetDistance as FrechetDistance
from matroot.nn.pooling import CovariancePooling1d as CovariancePooling1d
from matroot.nn.pooling import CovariancePooling2d as CovariancePooling2d
from matroot.nn.pooling import CovariancePooling3d as CovariancePooling3d
from matroot.nn.pooling import SecondOrderHead as SecondOrderHead
from matroot.nn.pooling import TokenCovariancePooling as TokenCovariancePooling
from matroot.nn.video import TemporalAttention as TemporalAttention
from matroot.nn.video import TemporalCovariancePooling as TemporalCovariancePooling
from matroot.nn.whitening import DecorrelatedBatchNorm as DecorrelatedBatchNorm
from matroot.nn.whitening import DecorrelatedBatchNorm1d as DecorrelatedBatchNorm1d
from matroot.nn.whitening import DecorrelatedBatchNorm2d as DecorrelatedBatchNorm2d
from matroot.nn.whitening import DecorrelatedBatchNorm3d as DecorrelatedBatchNorm3d
from matroot.nn.whitening import DecorrelatedBatchNormAct as DecorrelatedBatchNormAct
from matroot.statistics import pack_triangle as pack_triangle
from matroot.statistics import unpack_triangle as unpack_triangle
