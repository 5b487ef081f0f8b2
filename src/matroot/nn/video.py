"""Covariance pooling of video: attention between frames, then one covariance over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matroot import checks
from matroot.nn.leaf import Leaf
from matroot.nn.pooling import CovariancePooling3d, PoolingOptions


class TemporalAttention(Leaf):
    """Weight the features of each frame by the two frames before it.

    For frame t with features X_t, C channels at m positions, and X_{t−1}, X_{t−2} the frames before
    (the first frame stands in where there are none):

        spatial: whether to attend between positions, as by default.
        temporal: whether to weight channels, as by default.
        mixing:    Y = ReLU(X + conv(X''))

    with Q, K, V 1×1 convolutions, p the mean of X over the positions, g two layers with a sigmoid,
    and conv a convolution over time, through which the covariance of Y contains products across
    frames. Before training, Y = ReLU(X).

    Args:
        channels: C.
        spatial: whether to attend between positions.
        temporal: whether to weight channels.
        kernel_size: frames that the convolution sees, odd, 5 by default; 0 leaves it out, Y = X''.
        device: of parameters and buffers; None (the default): PyTorch's.
        dtype: of parameters and buffers; None (the default): PyTorch's.

    Note:
        The spatial part needs m² numbers a frame.

    References:
        Z. Gao, Q. Wang, B. Zhang, Q. Hu, P. Li, Temporal-attentive Covariance Pooling Networks for
        Video Recognition, NeurIPS 2021. There the frames before the first are the last ones, and
        the convolution is circular; here neither wraps around.

    Example:
        >>> import torch
        >>> from matroot.nn import TemporalAttention
        >>> TemporalAttention(16)(torch.randn(2, 16, 8, 7, 7)).shape
        torch.Size([2, 16, 8, 7, 7])
    """

    query: nn.Conv3d | None
    key: nn.Conv3d | None
    value: nn.Conv3d | None
    norm: nn.BatchNorm3d | None
    gate: nn.Sequential | None
    mixing: nn.Conv3d | None

    def __init__(
        self,
        channels: int,
        *,
        spatial: bool = True,
        temporal: bool = True,
        kernel_size: int = 5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.whole("TemporalAttention: channels", channels)
        checks.whole("TemporalAttention: kernel_size", kernel_size, least=0)
        if kernel_size and kernel_size % 2 == 0:
            raise ValueError(
                f"TemporalAttention: kernel_size must be odd, or 0 for none, got {kernel_size}"
            )
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channels = channels
        self.query = self.key = self.value = self.norm = None
        if spatial:
            self.query, self.key, self.value = (
                nn.Conv3d(channels, channels, 1, **where) for _ in range(3)
            )
            self.norm = nn.BatchNorm3d(channels, **where)
            nn.init.zeros_(self.norm.weight)
        self.gate = None
        if temporal:
            self.gate = nn.Sequential(
                nn.Linear(channels, 4 * channels, **where),
                nn.ReLU(),
                nn.Linear(4 * channels, channels, **where),
                nn.Sigmoid(),
            )
        self.mixing = None
        if kernel_size:
            self.mixing = nn.Conv3d(
                channels, channels, (kernel_size, 1, 1), padding=(kernel_size // 2, 0, 0), **where
            )
            nn.init.zeros_(self.mixing.weight)
            assert self.mixing.bias is not None
            nn.init.zeros_(self.mixing.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, channels, T, H, W) in and out.

        Raises:
            ValueError: another shape.
        """
        traced: Tensor | None = self.recorded(x)
        if traced is not None:
            return traced
        checks.floating("TemporalAttention: the input", x)
        if x.dim() != 5 or x.shape[1] != self.channels or 0 in x.shape[1:]:
            raise ValueError(
                f"TemporalAttention: expected shape (N, {self.channels}, T, H, W), none of them 0 "
                f"but N, got {tuple(x.shape)}"
            )
        y = x
        if self.query is not None:
            y = y + self._attended(x)
        if self.gate is not None:
            mean = x.mean((3, 4))
            steps = (mean - _earlier(mean, 1), 0.5 * (mean - _earlier(mean, 2)))
            weight = sum(self.gate(step.mT) for step in steps)
            y = y * (0.5 * weight).mT[..., None, None]
        return y if self.mixing is None else F.relu(x + self.mixing(y))

    def _attended(self, x: Tensor) -> Tensor:
        assert self.query is not None
        assert self.key is not None
        assert self.value is not None
        assert self.norm is not None
        q, k, v = (
            # (N, T, positions, C): attention within one frame at a time.
            f(frames).flatten(3).permute(0, 2, 3, 1)
            for f, frames in (
                (self.query, _earlier(x, 1)),
                (self.key, _earlier(x, 2)),
                (self.value, x),
            )
        )
        y = F.scaled_dot_product_attention(q, k, v)
        attended: Tensor = self.norm(y.permute(0, 3, 1, 2).reshape(x.shape))
        return attended


def _earlier(x: Tensor, frames: int) -> Tensor:
    """Each frame of (N, C, T, ...) replaced by the one ``frames`` before it, or else the first."""
    start = x[:, :, :1]
    return torch.cat([start] * min(frames, x.shape[2]) + [x[:, :, :-frames]], 2)


class TemporalCovariancePooling(CovariancePooling3d):
    """Temporal-attentive covariance pooling of (N, C, T, H, W): TemporalAttention, then pooling.

    The covariance is that over all frames and positions, and the result its root as a vector.

    Args:
        in_channels: C of the input.
        out_channels: C of the covariance, after a 1×1 convolution, batch normalisation and ReLU;
            several numbers: several of these in sequence, 256 and then 128 by default, as
            published; None: no reduction.
        spatial_attention: whether TemporalAttention attends between positions, as by default.
        temporal_attention: whether it weights channels, as by default.
        kernel_size: frames that its convolution sees, odd, 5 by default; 0 leaves it out.
        device: of parameters and buffers; None (the default): PyTorch's.
        dtype: of parameters and buffers; None (the default): PyTorch's.
        pooling: by keyword, how the covariance is pooled, as by CovariancePooling2d:
            ``normalization``, ``eps``, ``shrinkage``, ``center``, ``method``, ``gradient``,
            ``triangle``, ``scaled``.

    References:
        Z. Gao, Q. Wang, B. Zhang, Q. Hu, P. Li, Temporal-attentive Covariance Pooling Networks for
        Video Recognition, NeurIPS 2021.

    Example:
        >>> import torch
        >>> from matroot.nn import TemporalCovariancePooling
        >>> TemporalCovariancePooling(64, 16)(torch.randn(2, 64, 8, 7, 7)).shape
        torch.Size([2, 136])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | Sequence[int] | None = (256, 128),
        *,
        spatial_attention: bool = True,
        temporal_attention: bool = True,
        kernel_size: int = 5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **pooling: Unpack[PoolingOptions],
    ) -> None:
        super().__init__(in_channels, out_channels, device=device, dtype=dtype, **pooling)
        self.attention: TemporalAttention = TemporalAttention(
            self.out_channels,
            spatial=spatial_attention,
            temporal=temporal_attention,
            kernel_size=kernel_size,
            device=device,
            dtype=dtype,
        )

    def features(self, x: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """See CovariancePooling2d.features.

        Raises:
            ValueError: weights, which cannot leave out what attention has mixed with the rest.
        """
        if sample_weight is not None:
            raise ValueError(
                "TemporalCovariancePooling takes no sample_weight: its attention mixes positions "
                "and frames; CovariancePooling3d does"
            )
        attended: Tensor = self.attention(super().features(x))
        return attended
