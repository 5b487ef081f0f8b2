"""Whitening as a transformer of scikit-learn, which must be installed."""

from __future__ import annotations

import copy
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from matroot import nn
from matroot.nn.data_whitening import Kind

__all__ = ["Whitening"]


def __dir__() -> list[str]:
    return __all__


_DTYPES = (np.float64, np.float32)


class Whitening(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """``matroot.nn.Whitening`` as a transformer of scikit-learn.

    For pipelines, ``set_output``, ``clone`` and searches over parameters. Results have the dtype of
    the samples, float32 or float64, and are computed in double precision.

    Args:
        kind: ``"zca"`` (the default), ``"pca"``, ``"cholesky"``, ``"zca_cor"`` or ``"pca_cor"``:
            the table is in ``matroot.nn.Whitening``.
        eps: ridge on the covariance, at least 0 (the default).
        shrinkage: of the covariance, None, a number between 0 and 1, or ``"oas"``.
        n_components: how many principal components count.
        correction: the covariance is a sum over m − correction for m samples.

    Attributes:
        module_: the ``matroot.nn.Whitening``, whose ``state_dict`` is saved without pickle.
        mean_: the mean of the samples, a number a feature.
        n_samples_seen_: the number of samples, or the sum of their weights.
        n_features_in_: the number of features.
        feature_names_in_: their names, where the samples had some.

    Note:
        ``Whitening(eps=1e-3)`` passes scikit-learn's ``check_estimator``. One of its checks fits 30
        features to fewer samples, with weights: that is an error without a ridge, and principal
        components of equal variance, the ridge, are not the same in both of its fits.

        ``get_feature_names_out`` gives the names of the features where each whitened one belongs to
        one of them, and ``pca0``, ``pca1``, … of principal components.

    Example:
        >>> import numpy as np
        >>> from matroot.compat.sklearn import Whitening
        >>> x = np.random.default_rng(0).normal(size=(100, 3)) @ [[3, 1, 0], [0, 1, 2], [0, 0, 1]]
        >>> y = Whitening(kind="cholesky").fit_transform(x)
        >>> bool(np.allclose(np.cov(y, rowvar=False), np.eye(3)))
        True
    """

    module_: nn.Whitening

    def __init__(
        self,
        kind: Kind = "zca",
        *,
        eps: float = 0.0,
        shrinkage: float | Literal["oas"] | None = None,
        n_components: int | None = None,
        correction: int = 1,
    ) -> None:
        self.kind = kind
        self.eps = eps
        self.shrinkage = shrinkage
        self.n_components = n_components
        self.correction = correction

    @classmethod
    def from_module(cls, module: nn.Whitening) -> Whitening:
        """The fitted transformer of a module, such as ``nn.Whitening.from_state_dict`` makes."""
        names = ("kind", "eps", "shrinkage", "n_components", "correction")
        new = cls(**{name: getattr(module, name) for name in names})
        new.module_ = module
        new.n_features_in_ = module.num_features
        return new

    def fit(self, X: Any, y: None = None, sample_weight: Any = None) -> Whitening:
        """Forget what was taken in, and fit to samples.

        Args:
            X: samples, shape (m, n_features), an array or a table of numbers.
            y: not used; pipelines give it.
            sample_weight: how much each sample counts, at least 0, shape (m,) or a number; 2 counts
                as two of them, booleans are a mask. None (the default): each counts as one.

        Returns:
            The transformer itself.

        Raises:
            ValueError: NaN or infinity; not more samples, or no larger sum of weights, than
                ``correction``; negative weights.
            torch.linalg.LinAlgError: the covariance is singular, as with fewer samples than
                features: then ``eps`` or ``shrinkage`` helps, or fewer ``n_components``.
        """
        least = self.correction + 1 if isinstance(self.correction, Integral) else 1
        x = validate_data(self, X, dtype=_DTYPES, ensure_min_samples=least)
        self.module_ = nn.Whitening(**self._options()).fit(*_tensors(x, sample_weight))
        return self

    def partial_fit(self, X: Any, y: None = None, sample_weight: Any = None) -> Whitening:
        """Take in further samples, batch by batch; what ``fit`` has taken in counts on.

        Parameters set since then take effect for all samples.

        Args:
            X: samples, shape (m, n_features), any number of them.
            y: not used; pipelines give it.
            sample_weight: as ``fit`` takes it.

        Returns:
            The transformer itself; that samples are too few, or their covariance singular, is said
            when it is first used.

        Raises:
            ValueError: NaN or infinity; another number of features; negative weights.
        """
        old = getattr(self, "module_", None)
        x = validate_data(self, X, dtype=_DTYPES, reset=old is None)
        options, module = self._options(), old
        if module is None or {name: getattr(module, name) for name in options} != options:
            module = nn.Whitening(**options)
            if old is not None:
                for name in ("samples", "origin", "offset", "scatter"):
                    getattr(module, name).copy_(getattr(old, name))
        self.module_ = module.partial_fit(*_tensors(x, sample_weight))
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        """Whiten samples: W (x − μ) of each.

        Args:
            X: samples, shape (m, n_features); those that it was fitted to, or others.

        Returns:
            Shape (m, n_features); of the principal kinds (m, n_components).

        Raises:
            sklearn.exceptions.NotFittedError: neither ``fit`` nor ``partial_fit`` was called.
            ValueError: NaN or infinity; another number of features.
        """
        check_is_fitted(self)
        x = validate_data(self, X, dtype=_DTYPES, reset=False)
        found: NDArray[Any] = self.module_(torch.tensor(x)).numpy()
        return found

    def inverse_transform(self, X: Any) -> NDArray[Any]:
        """The samples that were whitened to these: W⁻¹ y + μ of each.

        Args:
            X: whitened samples, shape as ``transform`` returns it.

        Returns:
            Shape (m, n_features). With fewer ``n_components`` than features, the nearest samples in
            the space of these components.

        Raises:
            sklearn.exceptions.NotFittedError: neither ``fit`` nor ``partial_fit`` was called.
            ValueError: NaN or infinity; another number of components.
        """
        check_is_fitted(self)
        y = torch.tensor(check_array(X, dtype=_DTYPES))
        found: NDArray[Any] = self.module_.inverse_transform(y).numpy()
        return found

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """The names of the whitened features."""
        check_is_fitted(self)
        names: NDArray[Any] = super().get_feature_names_out(input_features)
        if self.module_.kind.startswith("pca"):
            kept = len(self.module_.whitening_matrix)
            names = np.array([f"pca{i}" for i in range(kept)], dtype=object)
        return names

    def to_module(self) -> nn.Whitening:
        """A copy of the module, for use without scikit-learn."""
        check_is_fitted(self)
        return copy.deepcopy(self.module_)

    @property
    def mean_(self) -> NDArray[Any]:
        """The mean of the samples."""
        mean: NDArray[Any] = self.module_.mean.numpy()
        return mean

    @property
    def n_samples_seen_(self) -> float:
        """How many samples there were, or the sum of their weights."""
        return float(self.module_.samples)

    def _options(self) -> dict[str, Any]:
        """Those of the module; ValueError for more components than features."""
        # Searches give NumPy's numbers.
        options = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self.get_params().items()
        }
        d, kept = self.n_features_in_, options["n_components"]
        if isinstance(kept, int) and kept > d:
            raise ValueError(
                f"n_components={kept} must be at most the number of features, n_features={d}"
            )
        return {"num_features": d, **options}


def _tensors(x: NDArray[Any], sample_weight: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Samples and weights, copied, since PyTorch warns of arrays that must not be written to."""
    if sample_weight is None:
        return torch.tensor(x), None
    weight = check_array(
        sample_weight,
        dtype=np.float64,
        order="C",
        ensure_all_finite=False,
        ensure_2d=False,
        allow_nd=True,
        input_name="sample_weight",
    )
    return torch.tensor(x), torch.tensor(weight)
