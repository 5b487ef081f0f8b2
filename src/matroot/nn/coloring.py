"""Whitening and coloring as a layer: the statistics of one picture's features for another's."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from matroot import checks
from matroot.gradients import GradientName, GradientRule
from matroot.methods import Method, MethodName
from matroot.nn.functional import whiten_and_color
from matroot.nn.leaf import Leaf
from matroot.nn.whitening import number_of_groups
from matroot.plan import check_names
from matroot.statistics import Shrinkage, check_shrinkage


class WhiteningColoring2d(Leaf):
    """Give the content's features (N, C, H, W) the mean and covariance of the style's.

        y = b·[(C_style + eps·I)^{1/2} (C_content + eps·I)^{-1/2} (x − μ_content) + μ_style]
            + (1 − b)·x

    with the statistics of each picture and group of channels, in training and evaluation alike.

    Args:
        num_features: C, the number of channels.
        groups: number of groups of channels, 1 by default.
        group_size: channels in each group, in place of ``groups``.
        blending: b, 1 by default, the whole effect; 0 leaves the content.
        learn_blending: make b a parameter that starts at ``blending``; False is the default.
        eps: ridge on both covariances, in their units, 1e-5 by default; at least some units of
            their rounding.
        shrinkage: of both covariances: a share of shrinkage between 0 and 1, or ``"ledoit_wolf"``
            or ``"oas"``, which choose it; None (the default): none.
        method: of both roots, a name from ``matroot.methods.METHODS`` or an object such as
            ``NewtonSchulz()``; ``"auto"`` (the default) is ``Eigh()`` on a CPU and ``Minimax()``
            elsewhere.
        gradient: of both roots, a name from ``matroot.gradients.GRADIENTS`` or an object;
            ``"auto"`` (the default) is ``Spectral()`` for the spectral methods and ``Lyapunov()``
            for the others.
        normalization: ``"sqrt"`` (the default), or ``"power"``, which replaces both roots by power
            normalisation, for comparison.
        rtol: of the content's inverse root: leave out directions with eigenvalues up to this share
            of the largest, as noise, instead of adding a ridge for rounding; None (the default):
            leave out none.
        device: of the parameter; None (the default): PyTorch's.
        dtype: of the parameter; None (the default): PyTorch's.

    References:
        Y. Li et al., Universal Style Transfer via Feature Transforms, NeurIPS 2017; W. Cho et al.,
        Image-to-Image Translation via Group-wise Deep Whitening-and-Coloring Transformation, CVPR
        2019, where matrices from a network replace both roots.

    Example:
        >>> import torch
        >>> from matroot.nn import WhiteningColoring2d
        >>> transfer = WhiteningColoring2d(8, groups=2)
        >>> transfer(torch.randn(1, 8, 16, 16), torch.randn(1, 8, 20, 12)).shape
        torch.Size([1, 8, 16, 16])
    """

    blending: float | nn.Parameter

    def __init__(
        self,
        num_features: int,
        *,
        groups: int | None = None,
        group_size: int | None = None,
        blending: float = 1.0,
        learn_blending: bool = False,
        eps: float = 1e-5,
        shrinkage: Shrinkage | float | None = None,
        method: MethodName | Method = "auto",
        gradient: GradientName | GradientRule = "auto",
        normalization: Literal["sqrt", "power"] = "sqrt",
        rtol: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.groups: int = number_of_groups("WhiteningColoring2d", num_features, groups, group_size)
        check_shrinkage(shrinkage)
        check_names(method, gradient)
        checks.one_of("WhiteningColoring2d: normalization", normalization, ("sqrt", "power"))
        self.eps = eps
        self.shrinkage = shrinkage
        self.method = method
        self.gradient = gradient
        self.normalization = normalization
        checks.cut_off("WhiteningColoring2d: rtol", rtol)
        self.rtol = rtol
        if learn_blending:
            start = torch.tensor(float(blending), device=device, dtype=dtype)
            self.blending = nn.Parameter(start)
        else:
            self.blending = float(blending)

    def forward(
        self,
        content: Tensor,
        style: Tensor,
        content_weight: Tensor | None = None,
        style_weight: Tensor | None = None,
    ) -> Tensor:
        """Move the statistics of ``content`` to those of ``style``.

        Args:
            content: shape (N, C, H, W).
            style: shape (N, C, H', W') or (1, C, H', W').
            content_weight: of pixels, which broadcasts to (N, H, W); those of weight 0 are left out
                and come out as they are: see ``matroot.nn.functional.whiten_and_color``.
            style_weight: the same of the style.

        Returns:
            The shape and dtype of ``content``.

        Raises:
            TypeError: no floating-point numbers, two dtypes, or weights that are no real numbers.
            ValueError: other shapes, or no pixels.
            torch.linalg.LinAlgError: where errors are checked (see ``sqrtm``), NaN or infinity.
        """
        given: tuple[Any, ...] = (content, style)
        if not (content_weight is None and style_weight is None):
            given = (content, style, content_weight, style_weight)
        traced: Tensor | None = self.recorded(*given)
        if traced is not None:
            return traced
        for name, x in (("content", content), ("style", style)):
            if x.dim() != 4 or x.shape[1] != self.num_features:
                raise ValueError(
                    f"WhiteningColoring2d: expected {name} of shape (N, {self.num_features}, H, W),"
                    f" got {tuple(x.shape)}"
                )
        return whiten_and_color(
            content,
            style,
            groups=self.groups,
            blending=self.blending,
            eps=self.eps,
            shrinkage=self.shrinkage,
            method=self.method,
            gradient=self.gradient,
            normalization=self.normalization,
            rtol=self.rtol,
            content_weight=content_weight,
            style_weight=style_weight,
        )

    def extra_repr(self) -> str:
        """The arguments."""
        shown = "learned" if isinstance(self.blending, nn.Parameter) else self.blending
        return (
            f"{self.num_features}, groups={self.groups}, blending={shown}, eps={self.eps}, "
            f"method={self.method!r}"
        )
