"""Global covariance pooling: a picture's features become the root of their covariance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn

from matroot import call, checks, context, errors
from matroot.gradients import GradientName, GradientRule
from matroot.methods import Method, MethodName
from matroot.nn.functional import power_normalization
from matroot.nn.leaf import Leaf
from matroot.nn.whitening import _DecorrelatedBatchNorm
from matroot.plan import check_names, resolve
from matroot.roots import SQRT
from matroot.statistics import (
    Shrinkage,
    at_least_two,
    check_shrinkage,
    moments,
    pack_triangle,
    weights,
)

Normalization = Literal["sqrt", "power", "none"]


class PoolingOptions(TypedDict, total=False):
    """The arguments of CovariancePooling2d by keyword, for layers that pass them on."""

    normalization: Normalization
    eps: float
    shrinkage: Shrinkage | float | None
    center: bool
    method: MethodName | Method
    gradient: GradientName | GradientRule
    triangle: bool
    scaled: bool


class _CovariancePooling(Leaf):
    """See CovariancePooling2d."""

    _convolution: type[nn.Module]
    _batch_norm: type[nn.Module]
    _positions: tuple[str, ...]
    _channels_first = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int | Sequence[int] | None = None,
        *,
        normalization: Normalization = "sqrt",
        eps: float = 0.0,
        shrinkage: Shrinkage | float | None = None,
        center: bool = True,
        method: MethodName | Method = "auto",
        gradient: GradientName | GradientRule = "auto",
        triangle: bool = True,
        scaled: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        checks.one_of(f"{name}: normalization", normalization, ("sqrt", "power", "none"))
        if eps and normalization != "sqrt":
            raise ValueError(f"{name}: normalization {normalization!r} takes no eps, got {eps}")
        check_shrinkage(shrinkage)
        check_names(method, gradient)
        if out_channels is None:
            reductions: tuple[int, ...] = ()
        elif isinstance(out_channels, Sequence):
            reductions = tuple(out_channels)
        else:
            reductions = (out_channels,)
        widths = (in_channels, *reductions)
        checks.whole(f"{name}: in_channels", in_channels)
        for width in reductions:
            checks.whole(f"{name}: out_channels", width)
        self.in_channels = in_channels
        self.out_channels: int = widths[-1]
        self.normalization = normalization
        self.eps = eps
        self.shrinkage = shrinkage
        self.center = center
        self.method = method
        self.gradient = gradient
        self.triangle = triangle
        self.scaled = scaled
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        layers: list[nn.Module] = []
        for before, after in zip(widths, reductions, strict=False):
            layers.append(self._convolution(before, after, 1, bias=False, **where))
            layers.append(self._batch_norm(after, **where))
            layers.append(nn.ReLU())
        self.reduction: nn.Sequential = nn.Sequential(*layers)

    @property
    def out_features(self) -> int:
        """Length of the vector, C (C + 1)/2 for C = out_channels; of the matrix, C²."""
        c = self.out_channels
        return c * (c + 1) // 2 if self.triangle else c * c

    def features(self, x: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The features whose covariance is taken, shape (N, out_channels, ...).

        Weights, shape (N, ...), come where ``forward`` was given some: batch normalisation in
        training has to leave out what the covariance leaves out.
        """
        if sample_weight is None:
            reduced: Tensor = self.reduction(x)
            return reduced
        for layer in self.reduction:
            if isinstance(layer, _DecorrelatedBatchNorm):
                x = layer(x, sample_weight)
            elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
                x = _weighted_batch_norm(layer, x, sample_weight)
            else:
                x = layer(x)
        return x

    def forward(self, x: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Reduce, take the covariance, normalise it, pack it.

        Args:
            x: shape (N, in_channels, ...) as the class says.
            sample_weight: how much each position counts, at least 0, which broadcasts to (N, ...)
                without the channels; booleans are a mask, True counts. Positions of weight 0 are
                left out, whatever numbers they have.

        Returns:
            Shape (N, out_features), or (N, C, C) with ``triangle=False``; dtype of ``x``.

        Raises:
            TypeError: no floating-point numbers; weights that are no real numbers.
            ValueError: another number of dimensions or channels, or no positions; where errors are
                checked, weights that leave none of a picture. Elsewhere that one's result is NaN.
            torch.linalg.LinAlgError: where errors are checked (see ``sqrtm``), NaN or infinity.
        """
        given = (x,) if sample_weight is None else (x, sample_weight)
        traced: Tensor | None = self.recorded(*given)
        if traced is not None:
            return traced
        name = type(self).__name__
        checks.floating(f"{name}: the input", x)
        self._check(x)
        weight = None
        if sample_weight is None:
            features = self.features(x)
        else:
            channels = 1 if self._channels_first else -1
            shape = x.select(channels, 0).shape
            sample_weight = weights(f"{name}: sample_weight", sample_weight, shape, x)
            sample_weight = sample_weight.expand(shape)
            x = torch.where((sample_weight != 0).unsqueeze(channels), x, 0.0)
            features = self.features(x, sample_weight)
            weight = sample_weight.flatten(1)
        # Half precision has too few digits for a covariance, and so has autocast.
        with context.no_autocast(x):
            found = moments(
                features.flatten(2),
                shrinkage=self.shrinkage,
                center=self.center,
                sample_weight=weight,
            )
            y = self._normalized(found.covariance)
            if self.triangle:
                y = pack_triangle(y, scaled=self.scaled)
            return y.to(x.dtype)

    def _normalized(self, covariance: Tensor) -> Tensor:
        if self.normalization == "none":
            return covariance
        if self.normalization == "power":
            return power_normalization(covariance)
        named = errors.Named(
            f"the covariance of the input of {type(self).__name__}",
            ridge="a ridge with eps=",
            otherwise="or shrink with shrinkage=",
        )
        plan = resolve((SQRT,), covariance, self.eps, self.method, self.gradient, "auto", "raise")
        (root,) = call.values(plan, covariance, None, named=named)
        return root

    def _check(self, x: Tensor) -> None:
        layout = (self.in_channels, *self._positions)
        if x.dim() != 1 + len(layout) or x.shape[1] != self.in_channels or 0 in x.shape[1:]:
            wanted = ", ".join(map(str, layout))
            raise ValueError(
                f"{type(self).__name__}: expected shape (N, {wanted}), none of them 0 except N, "
                f"got {tuple(x.shape)}"
            )

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.in_channels}, {self.out_channels}, normalization={self.normalization!r}, "
            f"eps={self.eps}, shrinkage={self.shrinkage!r}, method={self.method!r}"
        )


class CovariancePooling1d(_CovariancePooling):
    """Global covariance pooling of (N, C, L): the root of each covariance Σ as a vector.

    CovariancePooling2d has the equation, costs and sources.

    Args:
        in_channels: C of the input.
        out_channels: C of the covariance, after a 1×1 convolution, batch normalisation and ReLU;
            several numbers: several of these in sequence; None (the default): no reduction.
        normalization: ``"sqrt"`` (the default), the root; ``"power"``, Σ/√σ₁, So-ViT's power
            normalisation; or ``"none"``, Σ itself.
        eps: ridge before the root, at least 0 (the default), in the units of Σ.
        shrinkage: of Σ: a share of shrinkage between 0 and 1, or ``"ledoit_wolf"`` or ``"oas"``,
            which choose it; None (the default): none.
        center: False leaves the mean out; True is the default.
        method: of the root, a name from ``matroot.methods.METHODS`` or an object such as
            ``NewtonSchulz()``; ``"auto"`` (the default) is ``Eigh()`` on a CPU and ``Minimax()``
            elsewhere.
        gradient: of the root, a name from ``matroot.gradients.GRADIENTS`` or an object; ``"auto"``
            (the default) is ``Spectral()`` for the spectral methods and ``Lyapunov()`` for the
            others.
        triangle: False returns the matrices; True is the default.
        scaled: multiply the entries off the diagonal by √2, which preserves distances of matrices;
            False is the default.
        device: of parameters and buffers; None (the default): PyTorch's.
        dtype: of parameters and buffers; None (the default): PyTorch's.

    Example:
        >>> import torch
        >>> from matroot.nn import CovariancePooling1d
        >>> CovariancePooling1d(8)(torch.randn(4, 8, 100)).shape
        torch.Size([4, 36])
    """

    _convolution, _batch_norm = nn.Conv1d, nn.BatchNorm1d
    _positions = ("L",)


class CovariancePooling2d(_CovariancePooling):
    """Global covariance pooling of (N, C, H, W): second-order features in place of averages.

    For each picture, with features x_k at m positions and their mean x̄,

        Σ = (1/m) Σ_k (x_k − x̄)(x_k − x̄)ᵀ,    y = upper triangle of (Σ + eps·I)^{1/2}.

    Args:
        in_channels: C of the input.
        out_channels: C of the covariance, after a 1×1 convolution, batch normalisation and ReLU;
            several numbers: several of these in sequence; None (the default): no reduction.
        normalization: ``"sqrt"`` (the default), the root; ``"power"``, Σ/√σ₁, So-ViT's power
            normalisation; or ``"none"``, Σ itself.
        eps: ridge before the root, at least 0 (the default), in the units of Σ.
        shrinkage: of Σ: a share of shrinkage between 0 and 1, or ``"ledoit_wolf"`` or ``"oas"``,
            which choose it; None (the default): none.
        center: False leaves x̄ out; True is the default.
        method: of the root, a name from ``matroot.methods.METHODS`` or an object such as
            ``NewtonSchulz()``; ``"auto"`` (the default) is ``Eigh()`` on a CPU and ``Minimax()``
            elsewhere. ``NewtonSchulz()`` gives the values of iSQRT-COV.
        gradient: of the root, a name from ``matroot.gradients.GRADIENTS`` or an object; ``"auto"``
            (the default) is ``Spectral()`` for the spectral methods and ``Lyapunov()`` for the
            others. iSQRT-COV's own is ``"unrolled"``, from which ``"auto"`` differs much
            (``matroot.methods.NewtonSchulz``).
        triangle: False returns the matrices; True is the default.
        scaled: multiply the entries off the diagonal by √2, which preserves distances of matrices;
            False is the default.
        device: of parameters and buffers; None (the default): PyTorch's.
        dtype: of parameters and buffers; None (the default): PyTorch's.

    Note:
        Covariances and roots are computed in float32 at least, also under autocast. A covariance of
        fewer positions than channels is singular; its root is exact and its gradient finite with
        ``eps=0`` (see ``sqrtm``). A single position has covariance 0. Cost: one product of the
        features with themselves, and the root.

    References:
        P. Li, J. Xie, Q. Wang, W. Zuo, Is Second-Order Information Helpful for Large-Scale Visual
        Recognition?, ICCV 2017; P. Li et al., Towards Faster Training of Global Covariance Pooling
        Networks by Iterative Matrix Square Root Normalization, CVPR 2018.

    Example:
        >>> import torch
        >>> from matroot.nn import CovariancePooling2d
        >>> pooling = CovariancePooling2d(64, 16)
        >>> pooling(torch.randn(8, 64, 14, 14)).shape, pooling.out_features
        (torch.Size([8, 136]), 136)
    """

    _convolution, _batch_norm = nn.Conv2d, nn.BatchNorm2d
    _positions = ("H", "W")


class CovariancePooling3d(_CovariancePooling):
    """Global covariance pooling of (N, C, D, H, W): the root of each covariance Σ as a vector.

    CovariancePooling2d has the equation, costs and sources.

    Args:
        in_channels: C of the input.
        out_channels: C of the covariance, after a 1×1 convolution, batch normalisation and ReLU;
            several numbers: several of these in sequence; None (the default): no reduction.
        normalization: ``"sqrt"`` (the default), the root; ``"power"``, Σ/√σ₁, So-ViT's power
            normalisation; or ``"none"``, Σ itself.
        eps: ridge before the root, at least 0 (the default), in the units of Σ.
        shrinkage: of Σ: a share of shrinkage between 0 and 1, or ``"ledoit_wolf"`` or ``"oas"``,
            which choose it; None (the default): none.
        center: False leaves the mean out; True is the default.
        method: of the root, a name from ``matroot.methods.METHODS`` or an object such as
            ``NewtonSchulz()``; ``"auto"`` (the default) is ``Eigh()`` on a CPU and ``Minimax()``
            elsewhere.
        gradient: of the root, a name from ``matroot.gradients.GRADIENTS`` or an object; ``"auto"``
            (the default) is ``Spectral()`` for the spectral methods and ``Lyapunov()`` for the
            others.
        triangle: False returns the matrices; True is the default.
        scaled: multiply the entries off the diagonal by √2, which preserves distances of matrices;
            False is the default.
        device: of parameters and buffers; None (the default): PyTorch's.
        dtype: of parameters and buffers; None (the default): PyTorch's.

    Example:
        >>> import torch
        >>> from matroot.nn import CovariancePooling3d
        >>> CovariancePooling3d(8, triangle=False)(torch.randn(2, 8, 4, 6, 6)).shape
        torch.Size([2, 8, 8])
    """

    _convolution, _batch_norm = nn.Conv3d, nn.BatchNorm3d
    _positions = ("D", "H", "W")


class TokenCovariancePooling(CovariancePooling1d):
    """Global covariance pooling of tokens (N, T, C): the root of each covariance Σ as a vector.

    CovariancePooling2d has the equation, costs and sources.

    Args:
        in_channels: C of the input.
        out_channels: C of the covariance, after a 1×1 convolution, batch normalisation and ReLU;
            several numbers: several of these in sequence; None (the default): no reduction.
        normalization: ``"sqrt"`` (the default), the root; ``"power"``, Σ/√σ₁, So-ViT's power
            normalisation; or ``"none"``, Σ itself.
        eps: ridge before the root, at least 0 (the default), in the units of Σ.
        shrinkage: of Σ: a share of shrinkage between 0 and 1, or ``"ledoit_wolf"`` or ``"oas"``,
            which choose it; None (the default): none.
        center: False leaves the mean out; True is the default.
        method: of the root, a name from ``matroot.methods.METHODS`` or an object such as
            ``NewtonSchulz()``; ``"auto"`` (the default) is ``Eigh()`` on a CPU and ``Minimax()``
            elsewhere.
        gradient: of the root, a name from ``matroot.gradients.GRADIENTS`` or an object; ``"auto"``
            (the default) is ``Spectral()`` for the spectral methods and ``Lyapunov()`` for the
            others.
        triangle: False returns the matrices; True is the default.
        scaled: multiply the entries off the diagonal by √2, which preserves distances of matrices;
            False is the default.
        device: of parameters and buffers; None (the default): PyTorch's.
        dtype: of parameters and buffers; None (the default): PyTorch's.

    Example:
        >>> import torch
        >>> from matroot.nn import TokenCovariancePooling
        >>> TokenCovariancePooling(384, 48)(torch.randn(2, 196, 384)).shape
        torch.Size([2, 1176])
    """

    _channels_first = False

    def features(self, x: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """See CovariancePooling2d.features."""
        return super().features(x.mT, sample_weight)

    def _check(self, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[2] != self.in_channels or x.shape[1] == 0:
            raise ValueError(
                f"{type(self).__name__}: expected shape (N, T, {self.in_channels}), T at least 1, "
                f"got {tuple(x.shape)}"
            )


class SecondOrderHead(Leaf):
    """Classify by the class token and by the covariance of the visual tokens, as So-ViT does.

    logits = W₁ x_class + b₁ + W₂ pool(x_visual) + b₂, with a TokenCovariancePooling.

    Args:
        in_features: C, the width of a token.
        num_classes: number of classes.
        features: width of the visual tokens in the covariance, 48 by default, after a 1×1
            convolution, batch normalisation and ReLU; several numbers: several of these in
            sequence; None: no reduction.
        prefix_tokens: number of tokens before the visual ones, at least 1 (the default); the first
            is the class token, others (registers) are left out.
        dropout: share of the pooled vector dropped in training, 0 by default.
        device: of parameters and buffers; None (the default): PyTorch's.
        dtype: of parameters and buffers; None (the default): PyTorch's.
        pooling: by keyword, how the covariance is pooled, as by CovariancePooling2d:
            ``normalization``, ``eps``, ``shrinkage``, ``center``, ``method``, ``gradient``,
            ``scaled``.

    References:
        J. Xie et al., So-ViT: Mind Visual Tokens for Vision Transformer, arXiv 2104.10935.

    Example:
        >>> import torch
        >>> from matroot.nn import SecondOrderHead
        >>> SecondOrderHead(256, 10, features=48)(torch.randn(2, 197, 256)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        features: int | Sequence[int] | None = 48,
        *,
        prefix_tokens: int = 1,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **pooling: Unpack[PoolingOptions],
    ) -> None:
        super().__init__()
        checks.whole("SecondOrderHead: num_classes", num_classes)
        checks.whole("SecondOrderHead: prefix_tokens", prefix_tokens)
        if pooling.get("triangle") is False:
            raise ValueError("SecondOrderHead: needs vectors, got triangle=False")
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.prefix_tokens = prefix_tokens
        self.class_fc: nn.Linear = nn.Linear(in_features, num_classes, **where)
        self.pooling: TokenCovariancePooling = TokenCovariancePooling(
            in_features, features, **where, **pooling
        )
        self.dropout: nn.Dropout = nn.Dropout(dropout)
        self.visual_fc: nn.Linear = nn.Linear(self.pooling.out_features, num_classes, **where)

    def forward(self, tokens: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The logits.

        Args:
            tokens: shape (N, prefix_tokens + T, C).
            sample_weight: of all tokens, which broadcasts to (N, prefix_tokens + T), see
                CovariancePooling2d.forward; those of the first ones are not used.

        Returns:
            Shape (N, num_classes).

        Raises:
            TypeError: weights that are no real numbers.
            ValueError: another shape, or no visual tokens; where errors are checked, weights that
                leave none of a picture.
        """
        given = (tokens,) if sample_weight is None else (tokens, sample_weight)
        traced: Tensor | None = self.recorded(*given)
        if traced is not None:
            return traced
        width, prefix = self.pooling.in_channels, self.prefix_tokens
        if tokens.dim() != 3 or tokens.shape[2] != width or tokens.shape[1] <= prefix:
            raise ValueError(
                f"SecondOrderHead: expected shape (N, {prefix} + T, {width}), T at least 1, "
                f"got {tuple(tokens.shape)}"
            )
        if sample_weight is not None:
            shape = tokens.shape[:2]
            named = "SecondOrderHead: sample_weight"
            sample_weight = weights(named, sample_weight, shape, tokens)[:, prefix:]
        visual = self.dropout(self.pooling(tokens[:, prefix:], sample_weight))
        logits: Tensor = self.class_fc(tokens[:, 0]) + self.visual_fc(visual)
        return logits


def _weighted_batch_norm(
    layer: nn.modules.batchnorm._BatchNorm, x: Tensor, weight: Tensor
) -> Tensor:
    """Batch normalisation by the samples (N, C, ...) that weights (N, ...) count."""
    if not layer.training and layer.running_mean is not None:
        evaluated: Tensor = layer(x)
        return evaluated
    if isinstance(layer, nn.SyncBatchNorm):
        raise ValueError(
            "torch.nn.SyncBatchNorm takes no sample_weight in training: convert it by "
            "matroot.nn.convert_batchnorm(…, group_size=1), which is batch normalisation and does"
        )
    weight = at_least_two("batch normalisation", weight)
    with context.no_autocast(x):
        found = moments(
            x.reshape(*x.shape[:2], 1, -1),
            over_batch=True,
            sample_weight=weight.flatten(1).unsqueeze(1),
        )
        variance = found.covariance
        y = (found.centered * (variance + layer.eps).rsqrt()).reshape(x.shape)
        if layer.weight is not None:
            ones = (-1, *[1] * (x.ndim - 2))
            y = y * layer.weight.view(ones)
            y = y if layer.bias is None else y + layer.bias.view(ones)
    if layer.training and layer.running_mean is not None and layer.running_var is not None:
        with torch.no_grad():
            share: float | Tensor | None = layer.momentum
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.add_(1)
                share = 1 / layer.num_batches_tracked if share is None else share
            assert share is not None
            unbiased = variance * (found.samples / (found.samples - 1))
            for running, new in ((layer.running_mean, found.mean), (layer.running_var, unbiased)):
                running.copy_((1 - share) * running + share * new.flatten())
    return y.to(x.dtype)
