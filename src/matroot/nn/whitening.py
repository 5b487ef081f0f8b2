"""Decorrelated batch normalisation: whitening where batch normalisation only scales."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from matroot import autodiff, checks, spd
from matroot.gradients import GradientRule
from matroot.methods import Method
from matroot.nn.functional import inverse_root, power_normalization
from matroot.plan import check_names
from matroot.statistics import Moments, Shrinkage, check_shrinkage, moments

Running = Literal["covariance", "whitening"]


class _DecorrelatedBatchNorm(nn.Module):
    """See DecorrelatedBatchNorm2d."""

    _dimensions: tuple[int, ...] = ()

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_covariance: Tensor | None
    running_whitening: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        groups: int | None = None,
        group_size: int | None = None,
        method: str | Method = "auto",
        gradient: str | GradientRule = "auto",
        shrinkage: Shrinkage | float | None = None,
        running: Running = "covariance",
        normalization: Literal["sqrt", "power"] = "sqrt",
        bias: bool = True,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.num_features = num_features
        self.groups = number_of_groups(name, num_features, groups, group_size)
        checks.finite_at_least_zero(f"{name}: eps", eps)
        if momentum is not None:
            checks.finite_at_least_zero(f"{name}: momentum", momentum)
        checks.one_of(f"{name}: running", running, ("covariance", "whitening"))
        checks.one_of(f"{name}: normalization", normalization, ("sqrt", "power"))
        check_shrinkage(shrinkage)
        check_names(method, gradient)
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.method = method
        self.gradient = gradient
        self.shrinkage = shrinkage
        self.running = running
        self.normalization = normalization
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        for kind, wanted in (("weight", affine), ("bias", affine and bias)):
            parameter = nn.Parameter(torch.empty(num_features, **where)) if wanted else None
            self.register_parameter(kind, parameter)
        matrices = torch.empty(
            (self.groups, self.group_size, self.group_size),
            device=device,
            dtype=None if dtype is None else checks.computing_dtype(dtype),
        )
        buffers = {
            "running_mean": torch.empty(num_features, **where),
            "running_covariance": matrices if running == "covariance" else None,
            "running_whitening": matrices if running == "whitening" else None,
            "num_batches_tracked": torch.tensor(0, dtype=torch.long, device=device),
        }
        for kind, buffer in buffers.items():
            self.register_buffer(kind, buffer if track_running_stats else None)
        self.reset_parameters()

    @property
    def group_size(self) -> int:
        """Channels that are whitened together."""
        return self.num_features // self.groups

    def reset_running_stats(self) -> None:
        """Mean 0, covariance I, no batch seen."""
        if self.running_mean is not None and self.num_batches_tracked is not None:
            self.running_mean.zero_()
            self.num_batches_tracked.zero_()
        for matrices in (self.running_covariance, self.running_whitening):
            if matrices is not None:
                matrices.zero_().diagonal(dim1=-2, dim2=-1).fill_(1)

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, and the running statistics."""
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What ``to``, ``half`` and so on do; in half precision a singular covariance is lost."""
        before = {name: self._buffers[name] for name in ("running_covariance", "running_whitening")}
        # PyTorch leaves it without types.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if (
                old is not None
                and new is not None
                and new.dtype != checks.computing_dtype(new.dtype)
            ):
                self._buffers[name] = old.to(new.device)
        return self

    def statistics(self, x: Tensor) -> Moments:
        """Mean and covariance of one batch, x of shape (N, groups, group_size, positions).

        The one place where a batch's samples meet: a subclass that knows of other processes'
        samples overrides this.
        """
        return moments(x, shrinkage=self.shrinkage, over_batch=True)

    def forward(self, x: Tensor) -> Tensor:
        """Whiten, then scale and shift.

        Args:
            x: shape (N, C) or (N, C, …) as the class says, C = num_features.

        Returns:
            The shape, dtype and memory format of ``x``.

        Raises:
            ValueError: another number of dimensions or channels; one sample in training.
            torch.linalg.LinAlgError: where errors are checked (see ``inv_sqrtm``), NaN or infinity.
        """
        self._check(x)
        # Half precision has too few digits for a covariance, and so has autocast.
        with autodiff.no_autocast(x):
            samples = self._samples(x.to(checks.computing_dtype(x.dtype)))
            if self.training or self.running_mean is None:
                found = self.statistics(samples)
                whitening = self._whitening(found.covariance)
                if self.training and self.track_running_stats:
                    self._update(found, whitening)
                centered = found.centered
            else:
                mean = self.running_mean.to(samples.dtype)
                centered = samples - mean.view(self.groups, self.group_size, 1)
                whitening = self._running_whitening(samples.dtype)
            y = self._colored(whitening, centered)
            if y.shape[0] == x.shape[0]:
                y = y.reshape(x.shape)
            else:
                y = y.reshape(self.num_features, x.shape[0], *x.shape[2:]).transpose(0, 1)
            return _as_before(y.to(x.dtype), x)

    def _samples(self, x: Tensor) -> Tensor:
        """The samples in columns: (N, groups, group_size, positions), or (1, …, N·positions).

        In the first form nothing is copied; but it takes a matrix for each of the N pictures, which
        is more than the features where there are few positions.
        """
        n, positions = x.shape[0], math.prod(x.shape[2:])
        if x.dim() > 2 and (autodiff.exporting() or positions >= self.group_size):
            return x.reshape(n, self.groups, self.group_size, positions)
        return x.transpose(0, 1).reshape(1, self.groups, self.group_size, n * positions)

    def _whitening(self, covariance: Tensor, rounding: float | Tensor = 1.0) -> Tensor:
        """(C + eps·I)^{-1/2} of each group, finite with fewer samples than channels."""
        if self.normalization == "power":
            ridge = self.eps * spd.identity_like(covariance)
            return power_normalization(covariance + ridge, root="inv_sqrt")
        return inverse_root(
            covariance, self.eps, method=self.method, gradient=self.gradient, rounding=rounding
        )

    def _running_whitening(self, dtype: torch.dtype) -> Tensor:
        if self.running_whitening is not None:
            return self.running_whitening.to(dtype)
        assert self.running_covariance is not None
        assert self.num_batches_tracked is not None
        # An average of k batches has rounded k times, at random, and forgets with its momentum.
        rounding: float | Tensor
        if self.momentum is None:
            rounding = (self.num_batches_tracked.to(dtype).sqrt() / 8).clamp(min=1)
        else:
            rounding = max(1.0, max(1 - (1 - self.momentum) ** 2, 1e-6) ** -0.5 / 8)
        return self._whitening(self.running_covariance.to(dtype), rounding)

    def _colored(self, whitening: Tensor, centered: Tensor) -> Tensor:
        """W x, scaled and shifted; the scale goes into the matrix."""
        n, groups, size, positions = centered.shape
        weight, bias = (
            None if p is None else p.to(centered.dtype).view(groups, size, 1)
            for p in (self.weight, self.bias)
        )
        matrix = whitening if weight is None else weight * whitening
        matrix = matrix.expand(n, -1, -1, -1).flatten(0, 1)
        batch = centered.reshape(n * groups, size, positions)
        if bias is None:
            y = matrix @ batch
        else:
            y = torch.baddbmm(bias.expand(n, -1, -1, -1).flatten(0, 1), matrix, batch)
        return y.view_as(centered)

    @torch.no_grad()
    def _update(self, found: Moments, whitening: Tensor) -> None:
        """Move the running statistics towards this batch's, the covariance's unbiased."""
        if self.running_mean is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share: float | Tensor = (
            1.0 / self.num_batches_tracked.to(found.mean.dtype)
            if self.momentum is None
            else self.momentum
        )
        pairs = [(self.running_mean, found.mean.reshape(-1))]
        if self.running_covariance is not None:
            unbiased = found.covariance * (found.samples / (found.samples - 1))
            pairs.append((self.running_covariance, unbiased))
        if self.running_whitening is not None:
            pairs.append((self.running_whitening, whitening))
        for running, new in pairs:
            # Not running + share·(new − running), which cancels where the share is large.
            running.copy_((1 - share) * running + share * new.detach())

    def _check(self, x: Tensor) -> None:
        name = type(self).__name__
        checks.floating(f"{name}: the input", x)
        if x.dim() not in self._dimensions:
            wanted = " or ".join(f"{d}-D" for d in self._dimensions)
            raise ValueError(f"{name}: expected {wanted} input, got shape {tuple(x.shape)}")
        if x.shape[1] != self.num_features:
            raise ValueError(
                f"{name}: expected {self.num_features} channels, got shape {tuple(x.shape)}"
            )
        count = x.numel() // self.num_features
        least = 2 if self.training or self.running_mean is None else 0
        if count < least:
            raise ValueError(
                f"{name}: expected at least {least} samples a channel, got shape {tuple(x.shape)}"
            )

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}, groups={self.groups}, "
            f"method={self.method!r}"
        )


class DecorrelatedBatchNorm1d(_DecorrelatedBatchNorm):
    """ZCA-whitens the channels of (N, C) or (N, C, L); see DecorrelatedBatchNorm2d.

    Example:
        >>> import torch
        >>> from matroot.nn import DecorrelatedBatchNorm1d
        >>> DecorrelatedBatchNorm1d(16, group_size=8)(torch.randn(64, 16)).shape
        torch.Size([64, 16])
    """

    _dimensions = (2, 3)


class DecorrelatedBatchNorm2d(_DecorrelatedBatchNorm):
    """ZCA-whitens the channels of (N, C, H, W): batch normalisation that decorrelates as well.

    Of each group of channels, over all samples and pixels, with mean μ and covariance Σ,

        y = γ ⊙ (Σ + eps·I)^{-1/2} (x − μ) + β.

    With groups of one channel it is batch normalisation. In training μ and Σ (divided by the number
    of samples) are the batch's; running averages of μ and of the unbiased Σ are kept and used in
    evaluation, as in ``torch.nn.BatchNorm2d``, the arguments and buffers of which these are.

    Args:
        num_features: C.
        eps: ridge on the covariance, in its units. Rounding needs a ridge of its own, some 1e-6 of
            a channel's variance (``matroot.nn.functional.inverse_root``); where that is more it is
            taken, so that fewer samples than channels of a group stay finite.
        momentum: share of the new batch in the running statistics; None: the mean of all batches.
        affine: learn γ and β.
        track_running_stats: keep running statistics; without them evaluation uses the batch's.
        device: of parameters and buffers.
        dtype: of parameters and buffers; the matrices among these are float32 at least, also after
            ``half()``.
        groups: number of groups that are whitened separately, 1 by default; or
        group_size: channels in each.
        method: of the inverse root, see ``matroot.inv_sqrtm``; ``NewtonSchulz()`` is IterNorm.
        gradient: of the inverse root.
        shrinkage: of the covariance, see ``matroot.statistics.moments``.
        running: what evaluation uses: the running ``"covariance"``, or the running average of the
            ``"whitening"`` matrices, as published.
        normalization: ``"power"`` divides by the root of the largest eigenvalue instead, which
            decorrelates nothing (``matroot.nn.functional.power_normalization``): for comparison.
        bias: False leaves β out.

    Note:
        Covariances are computed in float32 at least, also under autocast, and their roots in
        float64. Cost: two products of the group's matrix with all samples, and the root. It is no
        subclass of PyTorch's batch normalisation: ``torch.optim.swa_utils.update_bn`` passes it by.

    References:
        L. Huang, D. Yang, B. Lang, J. Deng, Decorrelated Batch Normalization, CVPR 2018; L. Huang
        et al., Iterative Normalization, CVPR 2019.

    Example:
        >>> import torch
        >>> from matroot.nn import DecorrelatedBatchNorm2d
        >>> y = DecorrelatedBatchNorm2d(4)(torch.randn(8, 4, 16, 16)).transpose(0, 1).flatten(1)
        >>> torch.allclose(y @ y.T / y.shape[1], torch.eye(4), atol=1e-3)
        True
    """

    _dimensions = (4,)


class DecorrelatedBatchNorm3d(_DecorrelatedBatchNorm):
    """ZCA-whitens the channels of (N, C, D, H, W); see DecorrelatedBatchNorm2d.

    Example:
        >>> import torch
        >>> from matroot.nn import DecorrelatedBatchNorm3d
        >>> DecorrelatedBatchNorm3d(8)(torch.randn(2, 8, 4, 6, 6)).shape
        torch.Size([2, 8, 4, 6, 6])
    """

    _dimensions = (5,)


_COUNTERPARTS: dict[type[nn.Module], type[_DecorrelatedBatchNorm]] = {
    nn.BatchNorm1d: DecorrelatedBatchNorm1d,
    nn.BatchNorm2d: DecorrelatedBatchNorm2d,
    nn.BatchNorm3d: DecorrelatedBatchNorm3d,
}


def convert_batchnorm(
    module: nn.Module,
    which: Literal["first", "all"] | Callable[[str, nn.Module], bool] = "first",
    **options: Any,
) -> nn.Module:
    """Put decorrelated batch normalisation where a model has batch normalisation.

    In evaluation the outputs stay what they were, to rounding: the covariance starts as the
    diagonal matrix of the running variances. Parameters, statistics, dtype, device and mode are
    taken over, hooks are not.

    Args:
        module: the model; changed in place, unless it is itself such a layer.
        which: the ``"first"`` layer in the order of ``named_modules``, as the paper does, ``"all"``, or
            a function of name and layer.
        options: ``groups``, ``method`` and so on, see DecorrelatedBatchNorm2d. A ``group_size`` must
            divide the channels of every layer that is converted. With another ``eps`` than the
            layer had, outputs change by as much.

    Returns:
        The model.

    Raises:
        ValueError: nothing to convert, a subclass that has no counterpart (SyncBatchNorm, those of
            timm that hold an activation), or options that do not fit a layer; the model is as it
            was.

    Example:
        >>> from torch import nn
        >>> from matroot.nn import convert_batchnorm
        >>> convert_batchnorm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), groups=2)[1]
        DecorrelatedBatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True, groups=2, method='auto')
    """  # noqa: E501 (a doctest's output)
    if not (which in ("first", "all") or callable(which)):
        raise ValueError(f"which must be 'first', 'all' or a function, got {which!r}")
    # A layer that stands in two places is found in both, and stays one.
    named = module.named_modules(remove_duplicate=False)
    found = [(name, m) for name, m in named if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if which == "first":
        found = [(name, m) for name, m in found if m is found[0][1]]
    elif callable(which):
        found = [(name, m) for name, m in found if which(name, m)]
    if not found:
        raise ValueError("convert_batchnorm: found no layer of batch normalisation to convert")
    converted: dict[nn.Module, nn.Module] = {}
    for name, old in found:  # All before the first is put in its place: an error changes nothing.
        if old not in converted:
            converted[old] = _converted(name, old, options)
    for name, old in found:
        if not name:
            return converted[old]
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, converted[old])
    return module


def _converted(name: str, old: Any, options: dict[str, Any]) -> _DecorrelatedBatchNorm:
    if type(old) not in _COUNTERPARTS:
        known = ", ".join(kind.__name__ for kind in _COUNTERPARTS)
        raise ValueError(
            f"convert_batchnorm: {name or 'the module'} is a {type(old).__name__}; only {known} "
            "have a counterpart: choose layers by which="
        )
    example = old.weight if old.weight is not None else old.running_mean
    where = {} if example is None else {"device": example.device, "dtype": example.dtype}
    tracked = old.running_mean is not None and old.running_var is not None
    same = {
        "eps": old.eps,
        "momentum": old.momentum,
        "affine": old.weight is not None,
        "bias": old.bias is not None,
        "track_running_stats": tracked,
    }
    try:
        new = _COUNTERPARTS[type(old)](old.num_features, **{**same, **where, **options})
    except ValueError as error:
        raise ValueError(f"convert_batchnorm: {name or 'the module'}: {error}") from None
    if new.weight is not None and old.weight is not None:
        new.weight = old.weight
    if new.bias is not None and old.bias is not None:
        new.bias = old.bias
    if tracked and new.running_mean is not None:
        variance = old.running_var.view(new.groups, new.group_size)
        new.running_mean = old.running_mean.clone()
        if old.num_batches_tracked is not None:
            new.num_batches_tracked = old.num_batches_tracked.clone()
        if new.running_covariance is not None:
            new.running_covariance = torch.diag_embed(variance.to(new.running_covariance.dtype))
        if new.running_whitening is not None:
            deviation = (variance.to(new.running_whitening.dtype) + new.eps).sqrt()
            new.running_whitening = torch.diag_embed(1 / deviation)
    if "track_running_stats" not in options:
        new.track_running_stats = old.track_running_stats
    return new.train(old.training)


def number_of_groups(name: str, features: int, groups: int | None, group_size: int | None) -> int:
    """The number of groups, from either way of saying it."""
    checks.whole(f"{name}: num_features", features)
    if groups is not None and group_size is not None:
        raise ValueError(f"{name}: give groups or group_size, not both")
    what, divisor = ("groups", groups) if group_size is None else ("group_size", group_size)
    divisor = 1 if divisor is None else divisor
    checks.whole(f"{name}: {what}", divisor)
    if features % divisor:
        raise ValueError(f"{name}: {what}={divisor} does not divide the {features} channels")
    return divisor if what == "groups" else features // divisor


def _as_before(y: Tensor, x: Tensor) -> Tensor:
    """The tensor in the memory format of x."""
    # Under vmap PyTorch cannot tell formats apart.
    if checks.transforms_active() or x.is_contiguous():
        return y.contiguous()
    for dimensions, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.dim() == dimensions and x.is_contiguous(memory_format=layout):
            return y.contiguous(memory_format=layout)
    return y.contiguous()
