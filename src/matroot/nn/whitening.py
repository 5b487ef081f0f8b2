"""Decorrelated batch normalisation: whitening where batch normalisation only scales."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import torch
from torch import Tensor, distributed, nn

from matroot import checks, context, errors, spd
from matroot.gradients import GradientName, GradientRule
from matroot.methods import Method, MethodName
from matroot.nn.functional import _inverse_root, power_normalization
from matroot.nn.running import Running, RunningStatistics
from matroot.plan import check_names
from matroot.statistics import (
    Moments,
    Shrinkage,
    at_least_two,
    check_shrinkage,
    moments,
    weights,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class WhiteningOptions(TypedDict, total=False):
    """The arguments of DecorrelatedBatchNorm2d by keyword, for functions that pass them on."""

    eps: float
    momentum: float | None
    affine: bool
    track_running_stats: bool
    device: torch.device | str | None
    dtype: torch.dtype | None
    groups: int | None
    group_size: int | None
    method: MethodName | Method
    gradient: GradientName | GradientRule
    shrinkage: Shrinkage | float | None
    running: Running
    normalization: Literal["sqrt", "power"]
    bias: bool
    rtol: float | None
    process_group: ProcessGroup | Literal["world"] | None


class _DecorrelatedBatchNorm(RunningStatistics):
    """See DecorrelatedBatchNorm2d."""

    _dimensions: tuple[int, ...] = ()

    weight: nn.Parameter | None
    bias: nn.Parameter | None

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
        method: MethodName | Method = "auto",
        gradient: GradientName | GradientRule = "auto",
        shrinkage: Shrinkage | float | None = None,
        running: Running = "covariance",
        normalization: Literal["sqrt", "power"] = "sqrt",
        bias: bool = True,
        rtol: float | None = None,
        process_group: ProcessGroup | Literal["world"] | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        checks.cut_off(f"{name}: rtol", rtol)
        self.rtol = rtol
        self.num_features = num_features
        self.groups: int = number_of_groups(name, num_features, groups, group_size)
        if momentum is not None:
            checks.finite_at_least_zero(f"{name}: momentum", momentum)
        checks.one_of(f"{name}: running", running, ("covariance", "whitening"))
        checks.one_of(f"{name}: normalization", normalization, ("sqrt", "power"))
        check_shrinkage(shrinkage)
        check_names(method, gradient)
        check_group(f"{name}: process_group", process_group)
        self.process_group = process_group
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.method: MethodName | Method = method
        self.gradient: GradientName | GradientRule = gradient
        self.shrinkage = shrinkage
        self.running = running
        self.normalization: Literal["sqrt", "power"] = normalization
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        for kind, wanted in (("weight", affine), ("bias", affine and bias)):
            parameter = nn.Parameter(torch.empty(num_features, **where)) if wanted else None
            self.register_parameter(kind, parameter)
        self._register_running(running, track_running_stats, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, and the running statistics."""
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def statistics(self, x: Tensor, sample_weight: Tensor | None = None) -> Moments:
        """Mean and covariance of one batch, x of shape (N, groups, group_size, positions).

        The only place where samples of a batch are combined, in training over ``process_group``; a
        subclass may do it in its own way, and then sees to other processes itself. Weights, shape
        (N, 1, positions), come where ``forward`` was given some.
        """
        group = self._group()
        if group is not None:
            return self._pooled(x, group, weight=sample_weight)
        if sample_weight is not None:
            sample_weight = at_least_two(type(self).__name__, sample_weight)
        return moments(x, shrinkage=self.shrinkage, over_batch=True, sample_weight=sample_weight)

    def _group(self) -> Any:
        """The processes whose samples count in training; None: this one alone.

        A subclass with its own statistics sums over processes itself, if it does.
        """
        if self.process_group is None or not self.training or self._has_own_statistics:
            return None
        if not (distributed.is_available() and distributed.is_initialized()):
            return None
        world = isinstance(self.process_group, str)
        group = distributed.group.WORLD if world else self.process_group
        return group if distributed.get_world_size(group) > 1 else None

    def _pooled(
        self, x: Tensor, group: Any, *, invalid: bool = False, weight: Tensor | None = None
    ) -> Moments:
        # Not before it is used: PyTorch may have been built without it.
        from matroot.nn import synchronised

        # By the layer where possible, which is the same in all processes whatever they are given.
        return synchronised.pooled_moments(
            x,
            group,
            shrinkage=self.shrinkage,
            name=type(self).__name__,
            twice=self._sums_twice,
            invalid=invalid,
            weight=weight,
        )

    @property
    def _sums_twice(self) -> bool:
        """Whether the mean of all is found first: see ``synchronised.pooled_moments``.

        By the layer alone, since inputs may have one dtype here and another in another process.
        """
        known = [t.dtype for t in (self.weight, self.running_mean) if t is not None]
        return not known or known[0] == torch.float64

    def _like(self, x: Tensor) -> Tensor:
        """A tensor with the dtype and device of this layer; x where it has none."""
        return next((t for t in (self.weight, self.running_mean) if t is not None), x)

    def forward(self, x: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Whiten, then scale and shift.

        Args:
            x: shape (N, C) or (N, C, …) as the class says, C = num_features.
            sample_weight: how much each sample counts in the statistics, at least 0, which
                broadcasts to (N, …) without the channels; booleans are a mask, True counts. Samples
                of weight 0 are left out, whatever numbers they have, and come out as 0.

        Returns:
            The shape, dtype and memory format of ``x``.

        Raises:
            TypeError: no floating-point numbers; weights that are no real numbers.
            ValueError: another number of dimensions or channels; one sample in training, or, where
                errors are checked, weights that sum to less than two. With a ``process_group``,
                where errors are checked, the other processes get one too.
            torch.linalg.LinAlgError: where errors are checked (see ``inv_sqrtm``), NaN or infinity;
                with a ``process_group`` in every process, with the ranks whose input it is.
        """
        given = (x,) if sample_weight is None else (x, sample_weight)
        traced: Tensor | None = self.recorded(*given)
        if traced is not None:
            return traced
        group = self._group()
        if group is None:
            weight = self._checked(x, sample_weight)
        else:
            weight = self._checked_together(x, sample_weight, group)
        alone = self.process_group is None and not self._has_own_statistics
        if self.training and alone and _processes() > 1:
            _warn_of_processes()
        # Half precision has too few digits for a covariance, and so has autocast.
        with context.no_autocast(x):
            wide = x.to(spd.computing_dtype(x.dtype))
            kept = None
            if weight is not None:
                kept = (weight != 0).unsqueeze(1)
                wide = torch.where(kept, wide, 0.0)
            samples = self._samples(wide)
            if self.training or self.running_mean is None:
                # A subclass that knows no weights may have its own statistics.
                weighted = () if weight is None else (_as_samples(weight, samples),)
                found = self.statistics(samples, *weighted)
                whitening = self._batch_whitening(found.covariance, group)
                if self.training and self.track_running_stats:
                    self._update(found, whitening)
                centered, offset = found.centered, found.offset
            else:
                mean = self.running_mean.to(samples.dtype)
                centered = samples - mean.view(self.groups, self.group_size, 1)
                whitening, offset = self._running_whitening(samples.dtype), None
            y = self._colored(whitening, centered, offset)
            if y.shape[0] == x.shape[0]:
                y = y.reshape(x.shape)
            else:
                y = y.reshape(self.num_features, x.shape[0], *x.shape[2:]).transpose(0, 1)
            if kept is not None:
                y = torch.where(kept, y, 0.0)
            return _as_before(y.to(x.dtype), x)

    def _samples(self, x: Tensor) -> Tensor:
        """The samples in columns: (N, groups, group_size, positions), or (1, …, N·positions).

        The first form copies nothing, but needs a matrix for each of the N pictures, which takes
        more memory than the features where there are few positions.
        """
        n, positions = x.shape[0], math.prod(x.shape[2:])
        if x.dim() > 2 and (context.exporting() or positions >= self.group_size):
            return x.reshape(n, self.groups, self.group_size, positions)
        return x.transpose(0, 1).reshape(1, self.groups, self.group_size, n * positions)

    def _batch_whitening(self, covariance: Tensor, group: Any) -> Tensor:
        """The whitening matrices of a batch, shared among the processes of a group."""
        found = functools.partial(self._whitening, "the covariance of the input")
        # Where the statistics have taken two sums there is not a third one for the roots.
        twice = self._sums_twice or self.shrinkage == "ledoit_wolf"
        if group is None or self.normalization == "power" or twice:
            return found(covariance)
        from matroot.nn import synchronised

        return synchronised.shared(found, covariance, group)

    def _whitening(self, what: str, covariance: Tensor, rounding: float | Tensor = 1.0) -> Tensor:
        """(C + eps·I)^{-1/2} of each group, finite with fewer samples than channels."""
        if self.normalization == "power":
            ridge = self.eps * spd.identity_like(covariance)
            return power_normalization(covariance + ridge, root="inv_sqrt")
        return _inverse_root(
            covariance,
            self.eps,
            self.method,
            self.gradient,
            rounding,
            self.rtol,
            named=errors.Named(
                f"{what} of {type(self).__name__}",
                ridge="a ridge with eps=",
                otherwise="shrink with shrinkage=, or take more samples a batch",
            ),
        )

    def _colored(self, whitening: Tensor, centered: Tensor, offset: Tensor | None) -> Tensor:
        """W (x + offset), scaled and shifted; the scale goes into the matrix."""
        n, groups, size, positions = centered.shape
        weight, bias = (
            None if p is None else p.to(centered.dtype).view(groups, size, 1)
            for p in (self.weight, self.bias)
        )
        matrix = whitening if weight is None else weight * whitening
        if offset is not None:
            # One more column for the matrix, no other pass over the samples.
            moved = matrix @ offset
            bias = moved if bias is None else bias + moved
        matrix = matrix.expand(n, -1, -1, -1).flatten(0, 1)
        batch = centered.reshape(n * groups, size, positions)
        if bias is None:
            y = matrix @ batch
        else:
            y = torch.baddbmm(bias.expand(n, -1, -1, -1).flatten(0, 1), matrix, batch)
        return y.view_as(centered)

    @property
    def _has_own_statistics(self) -> bool:
        """Whether a subclass has its own statistics, which may sum over processes."""
        return type(self).statistics is not _DecorrelatedBatchNorm.statistics

    def _checked_together(self, x: Tensor, weight: Tensor | None, group: Any) -> Tensor | None:
        """``_checked``, of which the other processes hear: they wait for this one's samples."""
        try:
            weight = self._checked(x, weight, least=0)
            here, there = self._like(x).device.type, x.device.type
            if here != there:
                raise ValueError(
                    f"{type(self).__name__}: the input is on {there}, the layer on {here}"
                )
            return weight
        except (TypeError, ValueError):
            x = x if isinstance(x, Tensor) else torch.empty(())
            stand_in = torch.full(
                (1, self.groups, self.group_size, 1),
                math.nan,
                dtype=torch.float32,
                device=self._like(x).device,
            )
            with contextlib.suppress(ValueError):
                self._pooled(stand_in, group, invalid=True)
            raise

    def _checked(self, x: Tensor, weight: Tensor | None, least: int | None = None) -> Tensor | None:
        """The weights, shape (N, …) without the channels, once input and weights are right."""
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
        if least is None:
            least = 2 if self.training or self.running_mean is None else 0
        if count < least:
            raise ValueError(
                f"{name}: expected at least {least} samples a channel, got shape {tuple(x.shape)}"
            )
        if weight is None:
            return None
        shape = (x.shape[0], *x.shape[2:])
        return weights(f"{name}: sample_weight", weight, shape, x).expand(shape)

    def extra_repr(self) -> str:
        """The arguments."""
        shown = (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}, groups={self.groups}, "
            f"method={self.method!r}"
        )
        if self.process_group is None:
            return shown
        return f"{shown}, process_group={self.process_group!r}"


class DecorrelatedBatchNorm(_DecorrelatedBatchNorm):
    """ZCA-whitens the channels of (N, C) to (N, C, D, H, W).

    DecorrelatedBatchNorm2d has the equation, costs and sources.

    ``torch.nn.SyncBatchNorm``, which takes any number of dimensions, is converted to it.

    Args:
        num_features: C, the number of channels.
        eps: ridge on the covariance, in its units, 1e-5 by default; where rounding requires a
            larger one, that one is used.
        momentum: share of the new batch in the running statistics, 0.1 by default; None: the mean
            of all batches.
        affine: learn a scale and a shift of each channel, as by default.
        track_running_stats: keep running statistics, as by default; without them evaluation uses
            the batch's.
        device: of parameters and buffers; None (the default): PyTorch's.
        dtype: of parameters and buffers, of matrices float32 at least; None (the default):
            PyTorch's.
        groups: number of groups of channels that are whitened separately, 1 by default.
        group_size: channels in each group, in place of ``groups``.
        method: of the inverse root, a name from ``matroot.methods.METHODS`` or an object such as
            ``NewtonSchulz()``; ``"auto"`` (the default) is ``Eigh()`` on a CPU and ``Minimax()``
            elsewhere.
        gradient: of the inverse root, a name from ``matroot.gradients.GRADIENTS`` or an object;
            ``"auto"`` (the default) is ``Spectral()`` for the spectral methods and ``Lyapunov()``
            for the others.
        shrinkage: of the covariance: a share of shrinkage between 0 and 1, or ``"ledoit_wolf"`` or
            ``"oas"``, which choose it; None (the default): none.
        running: what is averaged for evaluation: ``"covariance"`` (the default) or ``"whitening"``,
            the matrices that whiten, as published.
        normalization: ``"sqrt"`` (the default), or ``"power"``, which divides by the root of the
            largest eigenvalue and decorrelates nothing: for comparison.
        bias: False leaves the shift out.
        rtol: leave out directions with eigenvalues up to this share of the largest, as noise,
            instead of adding a ridge for rounding; None (the default): leave out none.
        process_group: whose samples count in training: None (the default), this process's;
            ``"world"``, those of all processes of torch.distributed; or those of a
            ``ProcessGroup``.

    Example:
        >>> import torch
        >>> from matroot.nn import DecorrelatedBatchNorm
        >>> layer = DecorrelatedBatchNorm(4)
        >>> layer(torch.randn(8, 4)).shape, layer(torch.randn(8, 4, 5, 5)).shape
        (torch.Size([8, 4]), torch.Size([8, 4, 5, 5]))
    """

    _dimensions = (2, 3, 4, 5)


class DecorrelatedBatchNormAct(DecorrelatedBatchNorm):
    """A DecorrelatedBatchNorm with the modules of timm's batch normalisation: act(drop(whitened)).

    Args:
        num_features: C, the number of channels.
        drop: the module after whitening; None (the default): none.
        act: the activation after that; None (the default): none.
        options: by keyword, the other arguments of DecorrelatedBatchNorm: ``eps``, ``momentum``,
            ``groups``, ``method`` and so on.

    Example:
        >>> import torch
        >>> from matroot.nn import DecorrelatedBatchNormAct
        >>> layer = DecorrelatedBatchNormAct(4, act=torch.nn.ReLU())
        >>> bool((layer(torch.randn(8, 4, 5, 5)) >= 0).all())
        True
    """

    def __init__(
        self,
        num_features: int,
        *,
        drop: nn.Module | None = None,
        act: nn.Module | None = None,
        **options: Unpack[WhiteningOptions],
    ) -> None:
        super().__init__(num_features, **options)
        self.drop: nn.Module = nn.Identity() if drop is None else drop
        self.act: nn.Module = nn.Identity() if act is None else act

    def forward(self, x: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """See DecorrelatedBatchNorm2d.forward."""
        given = (x,) if sample_weight is None else (x, sample_weight)
        traced: Tensor | None = self.recorded(*given)
        if traced is not None:
            return traced
        y: Tensor = self.act(self.drop(super().forward(*given)))
        return y


class DecorrelatedBatchNorm1d(_DecorrelatedBatchNorm):
    """ZCA-whitens the channels of (N, C) or (N, C, L).

    DecorrelatedBatchNorm2d has the equation, costs and sources.

    Args:
        num_features: C, the number of channels.
        eps: ridge on the covariance, in its units, 1e-5 by default; where rounding requires a
            larger one, that one is used.
        momentum: share of the new batch in the running statistics, 0.1 by default; None: the mean
            of all batches.
        affine: learn a scale and a shift of each channel, as by default.
        track_running_stats: keep running statistics, as by default; without them evaluation uses
            the batch's.
        device: of parameters and buffers; None (the default): PyTorch's.
        dtype: of parameters and buffers, of matrices float32 at least; None (the default):
            PyTorch's.
        groups: number of groups of channels that are whitened separately, 1 by default.
        group_size: channels in each group, in place of ``groups``.
        method: of the inverse root, a name from ``matroot.methods.METHODS`` or an object such as
            ``NewtonSchulz()``; ``"auto"`` (the default) is ``Eigh()`` on a CPU and ``Minimax()``
            elsewhere.
        gradient: of the inverse root, a name from ``matroot.gradients.GRADIENTS`` or an object;
            ``"auto"`` (the default) is ``Spectral()`` for the spectral methods and ``Lyapunov()``
            for the others.
        shrinkage: of the covariance: a share of shrinkage between 0 and 1, or ``"ledoit_wolf"`` or
            ``"oas"``, which choose it; None (the default): none.
        running: what is averaged for evaluation: ``"covariance"`` (the default) or ``"whitening"``,
            the matrices that whiten, as published.
        normalization: ``"sqrt"`` (the default), or ``"power"``, which divides by the root of the
            largest eigenvalue and decorrelates nothing: for comparison.
        bias: False leaves the shift out.
        rtol: leave out directions with eigenvalues up to this share of the largest, as noise,
            instead of adding a ridge for rounding; None (the default): leave out none.
        process_group: whose samples count in training: None (the default), this process's;
            ``"world"``, those of all processes of torch.distributed; or those of a
            ``ProcessGroup``.

    Example:
        >>> import torch
        >>> from matroot.nn import DecorrelatedBatchNorm1d
        >>> DecorrelatedBatchNorm1d(16, group_size=8)(torch.randn(64, 16)).shape
        torch.Size([64, 16])
    """

    _dimensions = (2, 3)


class DecorrelatedBatchNorm2d(_DecorrelatedBatchNorm):
    """ZCA-whitens the channels of (N, C, H, W): batch normalisation that decorrelates as well.

    For each group of channels, with mean μ and covariance Σ over all samples and pixels,

        y = γ ⊙ (Σ + eps·I)^{-1/2} (x − μ) + β.

    With groups of one channel it is batch normalisation. In training μ and Σ (divided by the number
    of samples) are the batch's; running averages of μ and of the unbiased Σ are kept and used in
    evaluation, with the arguments and buffers of ``torch.nn.BatchNorm2d``.

    Args:
        num_features: C, the number of channels.
        eps: ridge on the covariance, in its units, 1e-5 by default. Rounding requires another one,
            some 1e-6 of a channel's variance (``matroot.nn.functional.inverse_root``); the larger
            one is used, so that results are finite with fewer samples than channels of a group.
        momentum: share of the new batch in the running statistics, 0.1 by default; None: the mean
            of all batches.
        affine: learn γ and β, as by default.
        track_running_stats: keep running statistics, as by default; without them evaluation uses
            the batch's.
        device: of parameters and buffers; None (the default): PyTorch's.
        dtype: of parameters and buffers; the matrices among these are float32 at least, also after
            ``half()``. None (the default): PyTorch's.
        groups: number of groups that are whitened separately, 1 by default.
        group_size: channels in each group, in place of ``groups``.
        method: of the inverse root, a name from ``matroot.methods.METHODS`` or an object such as
            ``NewtonSchulz()``; ``"auto"`` (the default) is ``Eigh()`` on a CPU and ``Minimax()``
            elsewhere. ``NewtonSchulz()`` gives the values of IterNorm.
        gradient: of the inverse root, a name from ``matroot.gradients.GRADIENTS`` or an object;
            ``"auto"`` (the default) is ``Spectral()`` for the spectral methods and ``Lyapunov()``
            for the others. IterNorm's own is ``"unrolled"``, from which ``"auto"`` differs much
            (``matroot.methods.NewtonSchulz``).
        shrinkage: of the covariance: a share of shrinkage between 0 and 1, or ``"ledoit_wolf"`` or
            ``"oas"``, which choose it; None (the default): none.
        running: what evaluation uses: the running ``"covariance"`` (the default), or the running
            average of the ``"whitening"`` matrices, as published.
        normalization: ``"sqrt"`` (the default), or ``"power"``, which divides by the root of the
            largest eigenvalue instead and decorrelates nothing
            (``matroot.nn.functional.power_normalization``): for comparison.
        bias: False leaves β out.
        rtol: leave out directions with eigenvalues up to this share of the largest, as noise,
            instead of adding a ridge for rounding; None (the default): leave out none.
        process_group: in training, whose samples μ and Σ are of: None (the default), this
            process's; ``"world"``, those of all processes of torch.distributed, where it is
            initialised; or those of a ``ProcessGroup``. See also ``convert_sync_whitening``.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range.

    Note:
        With a ``process_group`` of R processes, each of which may have any number of samples, a
        step has one all-reduce forward and one backward, of groups·(n (n + 1)/2 + n) + 1 + R
        numbers of 8 bytes with n = group_size. A layer in double precision takes two forward, of
        groups·n + 1 + R numbers first, and one backward, since differences of large numbers would
        show; one with ``shrinkage="ledoit_wolf"`` the same two, with groups further numbers, also
        backward. Another of groups·n² numbers, both ways, is taken where
        the processes share the work of the roots: on CPUs, from groups·n³ = 2²⁴ on. Running
        statistics are the same in all processes. All of them must go forward and backward together.
        As in torch.nn.SyncBatchNorm, the gradient by the input is that of the sum of all losses,
        those of weight and bias are of this process's loss.

        Covariances are computed in float32 at least, also under autocast, and their roots in
        float64. Cost: two products of the group's matrix with all samples, and the root. It is not
        a subclass of PyTorch's batch normalisation: ``torch.optim.swa_utils.update_bn`` skips it.

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
    """ZCA-whitens the channels of (N, C, D, H, W).

    DecorrelatedBatchNorm2d has the equation, costs and sources.

    Args:
        num_features: C, the number of channels.
        eps: ridge on the covariance, in its units, 1e-5 by default; where rounding requires a
            larger one, that one is used.
        momentum: share of the new batch in the running statistics, 0.1 by default; None: the mean
            of all batches.
        affine: learn a scale and a shift of each channel, as by default.
        track_running_stats: keep running statistics, as by default; without them evaluation uses
            the batch's.
        device: of parameters and buffers; None (the default): PyTorch's.
        dtype: of parameters and buffers, of matrices float32 at least; None (the default):
            PyTorch's.
        groups: number of groups of channels that are whitened separately, 1 by default.
        group_size: channels in each group, in place of ``groups``.
        method: of the inverse root, a name from ``matroot.methods.METHODS`` or an object such as
            ``NewtonSchulz()``; ``"auto"`` (the default) is ``Eigh()`` on a CPU and ``Minimax()``
            elsewhere.
        gradient: of the inverse root, a name from ``matroot.gradients.GRADIENTS`` or an object;
            ``"auto"`` (the default) is ``Spectral()`` for the spectral methods and ``Lyapunov()``
            for the others.
        shrinkage: of the covariance: a share of shrinkage between 0 and 1, or ``"ledoit_wolf"`` or
            ``"oas"``, which choose it; None (the default): none.
        running: what is averaged for evaluation: ``"covariance"`` (the default) or ``"whitening"``,
            the matrices that whiten, as published.
        normalization: ``"sqrt"`` (the default), or ``"power"``, which divides by the root of the
            largest eigenvalue and decorrelates nothing: for comparison.
        bias: False leaves the shift out.
        rtol: leave out directions with eigenvalues up to this share of the largest, as noise,
            instead of adding a ridge for rounding; None (the default): leave out none.
        process_group: whose samples count in training: None (the default), this process's;
            ``"world"``, those of all processes of torch.distributed; or those of a
            ``ProcessGroup``.

    Example:
        >>> import torch
        >>> from matroot.nn import DecorrelatedBatchNorm3d
        >>> DecorrelatedBatchNorm3d(8)(torch.randn(2, 8, 4, 6, 6)).shape
        torch.Size([2, 8, 4, 6, 6])
    """

    _dimensions = (5,)


def number_of_groups(name: str, features: int, groups: int | None, group_size: int | None) -> int:
    """The number of groups, from it or from the size of a group."""
    checks.whole(f"{name}: num_features", features)
    if groups is not None and group_size is not None:
        raise ValueError(f"{name}: give groups or group_size, not both")
    what, divisor = ("groups", groups) if group_size is None else ("group_size", group_size)
    divisor = 1 if divisor is None else divisor
    checks.whole(f"{name}: {what}", divisor)
    if features % divisor:
        raise ValueError(f"{name}: {what}={divisor} does not divide the {features} channels")
    return divisor if what == "groups" else features // divisor


def check_group(name: str, group: object) -> None:
    """Raise unless this is None, ``"world"`` or a process group that this process belongs to."""
    if group is None or (isinstance(group, str) and group == "world"):
        return
    if isinstance(group, str):
        raise ValueError(f"{name} must be None, 'world' or a ProcessGroup, got {group!r}")
    if distributed.is_available():
        if isinstance(group, distributed.ProcessGroup):
            return
        if group == distributed.GroupMember.NON_GROUP_MEMBER:
            raise ValueError(f"{name} is a group that this process does not belong to")
    raise TypeError(f"{name} must be None, 'world' or a ProcessGroup, got {type(group).__name__}")


def _as_samples(weight: Tensor, samples: Tensor) -> Tensor:
    """The weights (N, …) of samples in the form that ``_samples`` gave these."""
    return weight.reshape(samples.shape[0], 1, samples.shape[-1])


def _as_before(y: Tensor, x: Tensor) -> Tensor:
    """The tensor in the memory format of x."""
    # Under vmap PyTorch cannot tell formats apart.
    if context.transforms_active() or x.is_contiguous():
        return y.contiguous()
    for dimensions, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.dim() == dimensions and x.is_contiguous(memory_format=layout):
            return y.contiguous(memory_format=layout)
    return y.contiguous()


def _processes() -> int:
    """How many processes train together, as far as PyTorch shows it."""
    if torch.compiler.is_compiling() or not distributed.is_available():
        return 1
    return distributed.get_world_size() if distributed.is_initialized() else 1


@functools.cache
def _warn_of_processes() -> None:
    """Once per process; not an error, since batch normalisation does the same."""
    warnings.warn(
        "whitening layers take mean and covariance of this process's samples, not of all "
        "processes', and torch.nn.SyncBatchNorm.convert_sync_batchnorm does not change that; "
        "running statistics differ between processes unless DistributedDataParallel sends those "
        "of the first to all. matroot.nn.convert_sync_whitening(model) takes them over all "
        "processes",
        stacklevel=3,
    )
