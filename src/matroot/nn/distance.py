"""The Fréchet distance of samples that come batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from matroot import checks, context, errors, spd
from matroot.distances import finite_or_nan, frechet_distance
from matroot.statistics import Sums, joined


class StreamedDistance:
    """What ``FrechetDistance`` and the metric in ``matroot.compat.torchmetrics`` have in common.

    Attributes:
        moments: of the real and of the generated samples, [[number, meanᵀ], [0, scatter]], shape
            (2, n + 1, n + 1), double precision: one tensor, which goes to other processes at once.
    """

    moments: Tensor
    features: Callable[[Any], Tensor] | None
    training: bool

    def _configure(
        self,
        num_features: int,
        features: Callable[[Any], Tensor] | None,
        squared: bool,
        eps: float,
        correction: int,
        reset_real_features: bool,
    ) -> None:
        checks.whole("num_features", num_features)
        if features is not None and not callable(features):
            raise TypeError(f"features must be None or callable, got {type(features).__name__}")
        checks.flag("squared", squared)
        checks.whole("correction", correction, least=0)
        checks.flag("reset_real_features", reset_real_features)
        self.num_features = num_features
        self.features = features
        self.squared = squared
        self.eps: float = checks.ridge(eps, torch.float64)
        self.correction = correction
        self.reset_real_features = reset_real_features

    def extra_repr(self) -> str:
        """The size and the options, for print."""
        return (
            f"{self.num_features}, squared={self.squared}, eps={self.eps}, "
            f"correction={self.correction}"
        )

    def train(self, mode: bool = True) -> Any:
        """Set the mode of this module alone: what extracts features stays in the mode it is in."""
        self.training = mode
        return self

    @torch.no_grad()
    def update(self, x: Any, real: bool) -> None:
        """Take in a batch.

        Args:
            x: samples in rows, shape (N, num_features), float16, bfloat16, float32 or float64; N
                may be 0. Or what ``features`` makes such samples of.
            real: which of both sides they belong to.

        Raises:
            TypeError: not real floating-point numbers, or ``real`` is not a bool.
            ValueError: not of shape (N, num_features).
            torch.linalg.LinAlgError: on a CPU: a sample is not finite. Nothing of the batch is then
                taken in. Elsewhere the distance becomes NaN.
        """
        checks.flag("real", real)
        name = "x" if self.features is None else "features(x)"
        x = x if self.features is None else self.features(x)
        checks.floating(name, x)
        checks.vectors(name, x)
        if x.ndim != 2 or x.shape[-1] != self.num_features:
            raise ValueError(
                f"{name} must have shape (samples, {self.num_features}), got {tuple(x.shape)}"
            )
        with context.no_autocast(self.moments):
            # The device first: Apple's GPUs have no double precision.
            x = spd.in_double(x.to(self.moments.device))
            x = finite_or_nan(errors.Named(name, things="samples"), x, 1)
            if self.moments.is_inference() and not torch.is_inference_mode_enabled():
                # What was made in inference mode cannot be changed outside of it.
                self.moments = self.moments.clone()
            _unpacked(self.moments[0 if real else 1]).include_(x)

    def _reset(self, zeros: Tensor) -> None:
        """Forget the samples, those of the real side too unless they are kept."""
        kept = self.moments[:1] if not self.reset_real_features else zeros[:1]
        self.moments = torch.cat([kept, zeros[1:]])

    @torch.no_grad()
    def _distance(self, moments: Tensor) -> Tensor:
        sums = _unpacked(moments)
        if context.host_reads_are_free(moments):
            real, generated = map(int, sums.samples.tolist())
            if min(real, generated) <= self.correction:
                raise RuntimeError(
                    f"a distance takes more than {self.correction} samples of either side "
                    f"(correction={self.correction}), got {real} real and {generated} generated: "
                    "call update with more first"
                )
        freedom = sums.samples - self.correction
        # Elsewhere too few samples give NaN.
        covariance = sums.scatter / torch.where(freedom > 0, freedom, torch.nan)[:, None, None]
        return frechet_distance(
            sums.mean[0],
            covariance[0],
            sums.mean[1],
            covariance[1],
            squared=self.squared,
            eps=self.eps,
        )


class FrechetDistance(StreamedDistance, nn.Module):
    """The Fréchet distance of two sets of samples that come batch by batch.

    d² = ‖μ_r − μ_g‖² + tr C_r + tr C_g − 2 tr (C_r^{1/2} C_g C_r^{1/2})^{1/2} for the means and
    covariances of the real and of the generated samples: the FID, if they are features of an image
    network.

    Args:
        num_features: n, the number of features.
        features: what makes samples (N, n) of what ``update`` is given, such as an image network,
            called without gradients. A module among them moves with this one and stays in the mode
            it is in, so call its ``eval`` first. None (the default): samples are given.
        squared: whether ``compute`` returns d² (the default, as FID is) or d.
        eps: ridge added to both covariances, at least 0 (the default), in their units.
        correction: covariances are sums over N − correction, 1 by default.
        reset_real_features: whether ``reset`` forgets the real samples too, as by default.
        sync_on_compute: whether ``compute`` is of the samples of all processes, where
            ``torch.distributed`` is initialised, as by default: then all of them must call it.
        process_group: those processes; None (the default): all.
        device: where the moments are kept, PyTorch's default unless told; samples from elsewhere
            are brought there. NCCL wants a GPU.

    Attributes:
        moments: [[number, meanᵀ], [0, scatter]] of the real and of the generated samples, shape
            (2, n + 1, n + 1): double precision whatever the module is cast to, so that it cannot go
            to an Apple GPU.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range.

    Note:
        Samples are not kept: 16 (n + 1)² bytes whatever their number, and 2 N n² operations for a
        batch of N. Means and centred sums are joined as Chan, Golub and LeVeque (1983) do, so that
        a mean far from 0 takes no digits, and the distance does not depend on how samples are dealt
        out to batches and processes but for rounding. Processes exchange their counts and means,
        then one sum of (2, n, n).

        Where all samples are at hand and fewer than features, ``frechet_distance_from_features``
        needs no n² memory and no root of singular covariances.

    References:
        M. Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
        Equilibrium, NeurIPS 2017.

    Example:
        >>> import torch
        >>> from matroot.nn import FrechetDistance
        >>> distance = FrechetDistance(2, correction=0)
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> distance.update(x, real=True)
        >>> for row in x:
        ...     distance.update(3 * row[None], real=False)
        >>> distance.compute()  # (3 − 1)²
        tensor(4., dtype=torch.float64)
    """

    moments: Tensor

    def __init__(
        self,
        num_features: int,
        features: Callable[[Any], Tensor] | None = None,
        *,
        squared: bool = True,
        eps: float = 0.0,
        correction: int = 1,
        reset_real_features: bool = True,
        sync_on_compute: bool = True,
        process_group: Any = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self._configure(num_features, features, squared, eps, correction, reset_real_features)
        checks.flag("sync_on_compute", sync_on_compute)
        self.sync_on_compute = sync_on_compute
        self.process_group = process_group
        # No buffer: DistributedDataParallel gives those of the first process to all others.
        self.moments = no_samples(num_features, device)

    def compute(self) -> Tensor:
        """d² or d, shape (), float64.

        Raises:
            RuntimeError: on a CPU: there are not more than ``correction`` samples of either side.
                Elsewhere the distance is NaN.
            torch.linalg.LinAlgError: see ``frechet_distance``.
        """
        if self.sync_on_compute and distributed.is_available() and distributed.is_initialized():
            return self._distance(_of_all_processes(self.moments, self.process_group))
        return self._distance(self.moments)

    def reset(self) -> None:
        """Forget the samples, but for the real ones with ``reset_real_features=False``."""
        self._reset(torch.zeros_like(self.moments))

    @torch.no_grad()
    def merge_state(self, *others: FrechetDistance) -> None:
        """Take in the samples that others have taken in.

        Raises:
            TypeError: one is no FrechetDistance.
            ValueError: one has other ``num_features``.
        """
        for other in others:
            if not isinstance(other, FrechetDistance):
                raise TypeError(f"others must be FrechetDistance, got {type(other).__name__}")
            if other.num_features != self.num_features:
                raise ValueError(
                    f"others must have num_features={self.num_features}, got {other.num_features}"
                )
        parts = [part.moments.to(self.moments.device) for part in (self, *others)]
        self.moments = pooled(torch.stack(parts))

    def get_extra_state(self) -> Tensor:
        """The moments, for ``state_dict``, which has views of them as of all tensors."""
        return self.moments

    def set_extra_state(self, state: Tensor) -> None:
        """Those of a ``state_dict``."""
        self.moments = loaded(state, self.moments)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """``to``, ``half`` and so on, but for the dtype of the moments."""
        # PyTorch leaves it without types.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = fn(self.moments)
        same = moved.dtype == self.moments.dtype
        self.moments = moved if same else self.moments.to(moved.device)
        return self


def loaded(state: Any, like: Tensor) -> Tensor:
    """The moments of a ``state_dict``, a copy since they are changed in place.

    Raises:
        ValueError: they are of another number of features, or no moments.
    """
    if not isinstance(state, Tensor) or state.shape != like.shape:
        came = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
        raise ValueError(
            f"the state must be the moments of num_features={like.shape[-1] - 1}, shape "
            f"{tuple(like.shape)}, got {came}"
        )
    return spd.in_double(state.detach().clone().to(like.device))


def no_samples(n: int, device: torch.device | str | None = None) -> Tensor:
    """The moments of both sides before the first sample."""
    return torch.zeros(2, n + 1, n + 1, dtype=torch.float64, device=device)


@torch.no_grad()
def pooled(parts: Tensor) -> Tensor:
    """The moments of several sets of samples together, shape (k, ..., n + 1, n + 1)."""
    sums = _unpacked(parts)
    number, mean, steps = joined(sums.samples.movedim(0, -1), sums.mean.movedim(0, -2))
    return _packed(Sums(number, mean, sums.scatter.sum(0) + steps.mT @ steps))


def _of_all_processes(moments: Tensor, group: Any) -> Tensor:
    """``pooled`` over the processes of a group, whose scatters never are in one place."""
    heads = [torch.empty_like(moments[:, 0]) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(heads, moments[:, 0].contiguous(), group=group)
    head = torch.stack(heads, -2)
    number, mean, steps = joined(head[..., 0], head[..., 1:])
    step = steps[:, distributed.get_rank(group), :]
    scatter = _unpacked(moments).scatter + step[:, :, None] * step[:, None, :]
    distributed.all_reduce(scatter, group=group)
    return _packed(Sums(number, mean, scatter))


def _packed(sums: Sums) -> Tensor:
    n = sums.mean.shape[-1]
    moments = sums.mean.new_zeros(*sums.samples.shape, n + 1, n + 1)
    moments[..., 0, 0] = sums.samples
    moments[..., 0, 1:] = sums.mean
    moments[..., 1:, 1:] = sums.scatter
    return moments


def _unpacked(moments: Tensor) -> Sums:
    return Sums(moments[..., 0, 0], moments[..., 0, 1:], moments[..., 1:, 1:])
