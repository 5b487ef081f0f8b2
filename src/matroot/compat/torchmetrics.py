"""The Fréchet distance as a metric of torchmetrics, which must be installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor
from torchmetrics import Metric

from matroot.nn.distance import StreamedDistance, loaded, no_samples, pooled

__all__ = ["FrechetDistance"]


def __dir__() -> list[str]:
    return __all__


class FrechetDistance(StreamedDistance, Metric):
    """``matroot.nn.FrechetDistance`` as a ``torchmetrics.Metric``.

    In the place of ``torchmetrics.image.fid.FrechetInceptionDistance``, with the same ``update``,
    ``compute``, ``reset`` and ``reset_real_features``: for ``MetricCollection`` and Lightning's
    ``log``.

    Args:
        num_features: n, the number of features.
        features: what makes samples (N, n) of what ``update`` is given, such as an image network,
            called without gradients, the ``feature=`` of torchmetrics; None (the default): samples
            are given. Torchmetrics' default network is
            ``FrechetInceptionDistance(2048).inception``.
        squared: whether ``compute`` returns d² (the default, as FID is) or d.
        eps: ridge added to both covariances, at least 0 (the default), in their units.
        correction: covariances are sums over N − correction, 1 by default.
        reset_real_features: whether ``reset`` forgets the real samples too, as by default.
        kwargs: what ``torchmetrics.Metric`` takes.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range.

    Note:
        Costs as there, but processes are gathered by torchmetrics: 16 (n + 1)² bytes of each, on
        all. ``forward`` is refused: a batch of one side has no distance.

    Example:
        >>> import torch
        >>> from matroot.compat.torchmetrics import FrechetDistance
        >>> metric = FrechetDistance(2, correction=0)
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> metric.update(x, real=True)
        >>> metric.update(3 * x, real=False)
        >>> metric.compute()  # (3 − 1)²
        tensor(4., dtype=torch.float64)
    """

    higher_is_better: bool | None = False
    is_differentiable: bool | None = False
    full_state_update: bool | None = False
    plot_lower_bound: float | None = 0.0

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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._configure(num_features, features, squared, eps, correction, reset_real_features)
        self.add_state("moments", no_samples(num_features), dist_reduce_fx=pooled)

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused, before torchmetrics takes the state apart for it."""
        raise NotImplementedError(
            "a batch of one side has no distance: call update(x, real=…) and then compute()"
        )

    def compute(self) -> Tensor:
        """See ``matroot.nn.FrechetDistance.compute``."""
        return self._distance(self.moments)

    def reset(self) -> None:
        """See ``matroot.nn.FrechetDistance.reset``."""
        kept = self.moments
        super().reset()
        zeros, self.moments = self.moments, kept
        self._reset(zeros)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """With the checks of ``matroot.nn.FrechetDistance``."""
        name = prefix + "moments"
        if name in state_dict:
            state_dict = state_dict | {name: loaded(state_dict[name], self.moments)}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        """``to``, ``set_dtype`` and so on, but for the dtype of the moments."""
        before = self.moments
        super()._apply(fn, *args, **kwargs)
        if self.moments.dtype != before.dtype:
            self.moments = before.to(self.moments.device)
            self._defaults["moments"] = no_samples(self.num_features, self.moments.device)
        return self
