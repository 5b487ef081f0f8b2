"""What a whitening layer keeps between batches: running statistics, and the matrix made of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from matroot import autodiff, context, spd
from matroot.gradients import GradientName, GradientRule
from matroot.methods import Method, MethodName
from matroot.nn.leaf import Leaf
from matroot.statistics import Moments

Running = Literal["covariance", "whitening"]
MATRICES = ("running_covariance", "running_whitening")


@dataclass(frozen=True, eq=False)
class _Kept:
    """A whitening matrix with the running covariance and options that it was computed from."""

    options: tuple[object, ...]
    covariance: Tensor
    whitening: Tensor


class RunningStatistics(Leaf):
    """A layer with running averages of mean and covariance, or of whitening matrices."""

    # Defaults of the class, for layers pickled before these existed.
    _kept: _Kept | None = None
    rtol: float | None = None
    process_group: Any = None

    num_features: int
    groups: int
    eps: float
    momentum: float | None
    method: MethodName | Method
    gradient: GradientName | GradientRule
    normalization: Literal["sqrt", "power"]

    running_mean: Tensor | None
    running_covariance: Tensor | None
    running_whitening: Tensor | None
    num_batches_tracked: Tensor | None

    @property
    def group_size(self) -> int:
        """Channels that are whitened together."""
        return self.num_features // self.groups

    def _whitening(self, what: str, covariance: Tensor, rounding: float | Tensor = 1.0) -> Tensor:
        """The whitening matrices of these covariances."""
        raise NotImplementedError

    def _register_running(
        self,
        running: Running,
        track: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Register the buffers, which are None where nothing is tracked."""
        matrices = torch.empty(
            (self.groups, self.group_size, self.group_size),
            device=device,
            dtype=None if dtype is None else spd.computing_dtype(dtype),
        )
        buffers = {
            "running_mean": torch.empty(self.num_features, device=device, dtype=dtype),
            "running_covariance": matrices if running == "covariance" else None,
            "running_whitening": matrices if running == "whitening" else None,
            "num_batches_tracked": torch.tensor(0, dtype=torch.long, device=device),
        }
        for kind, buffer in buffers.items():
            self.register_buffer(kind, buffer if track else None)

    def reset_running_stats(self) -> None:
        """Mean 0, covariance I, no batch seen."""
        if self.running_mean is not None and self.num_batches_tracked is not None:
            self.running_mean.zero_()
            self.num_batches_tracked.zero_()
        for matrices in (self.running_covariance, self.running_whitening):
            if matrices is not None:
                matrices.zero_().diagonal(dim1=-2, dim2=-1).fill_(1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """``to``, ``half`` and so on, but for the matrices, which stay float32 at least."""
        before = {name: self._buffers[name] for name in MATRICES}
        self._kept = None
        # PyTorch leaves it without types.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != spd.computing_dtype(new.dtype):
                self._buffers[name] = old.to(new.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """All that is copied and pickled, which excludes the cached whitening matrix."""
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """As Python does, but for a process group, which is nobody's own and not copied."""
        memo[id(self.process_group)] = self.process_group
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        # PyTorch leaves it without types.
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        return new

    # PyTorch leaves the type of the method open.
    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *rest: Any,
    ) -> None:
        """Accept a state of batch normalisation too, converted as ``convert_batchnorm`` does."""
        variance = state_dict.get(f"{prefix}running_var")
        name = next((name for name in MATRICES if self._buffers[name] is not None), None)
        if (
            name is not None
            and isinstance(variance, Tensor)
            and variance.numel() == self.num_features
            and not any(f"{prefix}{matrices}" in state_dict for matrices in MATRICES)
        ):
            warnings.warn(
                f"{prefix.rstrip('.') or 'the module'}: a {type(self).__name__} has loaded the "
                f"state of batch normalisation; its {name} is the diagonal matrix that whitens as "
                "that state does",
                stacklevel=2,
            )
            del state_dict[f"{prefix}running_var"]
            state_dict[f"{prefix}{name}"] = self.of_variances(name, variance)
            if (local_metadata.get("version") or 1) < 2:
                # From before batch normalisation counted batches; PyTorch does the same.
                state_dict.setdefault(f"{prefix}num_batches_tracked", torch.tensor(0))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def of_variances(self, name: str, variance: Tensor) -> Tensor:
        """The running matrices of this name that whiten as batch normalisation does."""
        matrices = self._buffers[name]
        assert matrices is not None
        diagonal = variance.detach().view(self.groups, self.group_size).to(matrices.dtype)
        if name == "running_whitening":
            diagonal = 1 / (diagonal + self.eps).sqrt()
        return torch.diag_embed(diagonal)

    def _running_whitening(self, dtype: torch.dtype) -> Tensor:
        """The whitening matrices of the running statistics, cached while these do not change."""
        if self.running_whitening is not None:
            return self.running_whitening.to(dtype)
        covariance = self.running_covariance
        assert covariance is not None
        assert self.num_batches_tracked is not None
        # Rounding adds up at random over the k batches of an average; momentum forgets old ones.
        rounding: float | Tensor
        if self.momentum is None:
            rounding = (self.num_batches_tracked.to(dtype).sqrt() / 8).clamp(min=1)
        else:
            rounding = max(1.0, max(1 - (1 - self.momentum) ** 2, 1e-6) ** -0.5 / 8)
        what = "the running covariance"
        if not _constant(covariance):
            return self._whitening(what, covariance.to(dtype), rounding)
        options = (
            dtype,
            self.eps,
            self.rtol,
            self.method,
            self.gradient,
            self.normalization,
            float(rounding),
        )
        kept = self._kept  # Read once: another thread may replace it.
        if (
            kept is not None
            and kept.options == options
            # By value, since version counters miss writes through .data or NumPy, and inference
            # tensors have none.
            and torch.equal(kept.covariance, covariance)
        ):
            return kept.whitening
        # Not an inference tensor, since later calls may be outside inference mode.
        with torch.inference_mode(False), torch.no_grad():
            whitening = self._whitening(what, covariance.to(dtype), rounding)
            self._kept = _Kept(options, covariance.clone(), whitening)
        return whitening

    @torch.no_grad()
    def _update(self, found: Moments, whitening: Tensor) -> None:
        """Move the running statistics towards this batch's, with the unbiased covariance."""
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


def _constant(covariance: Tensor) -> bool:
    """Whether this is a plain tensor that can be read and by which nothing is differentiated.

    Not inside modes that record operations: they have to record these too.
    """
    return (
        context.host_reads_are_free(covariance)
        and type(covariance) is Tensor
        and not autodiff.differentiated(covariance)
        # PyTorch offers no public question for this.
        and torch._C._len_torch_dispatch_stack() == 0
    )
