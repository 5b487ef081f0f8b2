"""Whitening of data sets: fitted once, on samples that may come batch by batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from matroot import checks, context, errors, screen, spd
from matroot.nn.leaf import Leaf
from matroot.screen import Status
from matroot.spectrum import Spectrum
from matroot.statistics import Sums, shrunk, weights

Kind = Literal["zca", "pca", "cholesky", "zca_cor", "pca_cor"]
KINDS: tuple[Kind, ...] = ("zca", "pca", "cholesky", "zca_cor", "pca_cor")
_OPTIONS = ("num_features", "kind", "eps", "shrinkage", "n_components", "correction")


class Whitening(Leaf):
    """Whitens the features of a data set: mean 0, covariance the identity, fitted to samples.

        y = W (x − μ),    W S Wᵀ = I,    x = W⁻¹ y + μ

    for the mean μ and the covariance C of the samples that it was fitted to, and S = C but for
    ``shrinkage`` and ``eps``. Such a W is determined up to a rotation, which the kind chooses:

    ==============  =======================  =====================================================
    kind            W
    ==============  =======================  =====================================================
    ``"zca"``       S^{−1/2}                 changes the data least (in squares); y_i belongs to x_i
    ``"pca"``       Λ^{−1/2} Uᵀ              principal components, S = U Λ Uᵀ, the largest first
    ``"cholesky"``  L⁻¹                      S = L Lᵀ: y_i depends on x_1, …, x_i alone
    ``"zca_cor"``   P^{−1/2} V^{−1/2}        of features in different units; y_i belongs to x_i
    ``"pca_cor"``   Θ^{−1/2} Gᵀ V^{−1/2}     principal components of standardised features
    ==============  =======================  =====================================================

    with the variances V and the correlations P = G Θ Gᵀ. The last two standardise the features and
    whiten them by the covariance of that, P, on which then ``shrinkage`` and ``eps`` act too: their
    results do not depend on the units of the features.

    Args:
        num_features: d.
        kind: ``"zca"`` (the default), ``"pca"``, ``"cholesky"``, ``"zca_cor"`` or ``"pca_cor"``.
        eps: ridge: S = C + eps·I, at least 0 (the default), in the units of C.
        shrinkage: before the ridge, (1 − ρ) C + ρ (tr C / d) I, a ridge relative to the mean
            variance: ρ between 0 and 1, or ``"oas"``, which chooses it by the number of samples;
            None (the default): none.
        n_components: how many principal components of S (or P) count, d by default; none of
            ``"cholesky"``. The principal kinds give these alone; the results of the others have d
            features all the same, within the space of these components. ``inverse_transform`` then
            gives the nearest sample in that space.
        correction: C is a sum over m − correction for m samples, 1 by default.
        device: of the buffers; None (the default): PyTorch's default device.

    Attributes:
        num_features, kind, eps, shrinkage, n_components, correction: as given. They are fixed:
            setting one is an AttributeError.
        samples: m, their number or the sum of their weights.
        origin: the first sample, shape (d,), from which the others are counted.
        offset: μ less the origin, shape (d,).
        scatter: Σ (x − μ)(x − μ)ᵀ, shape (d, d).
        whitening_matrix: W, shape (d, d), of the principal kinds (n_components, d); NaN before it
            is made.
        coloring_matrix: W⁻¹, or its pseudo-inverse, of the transposed shape.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range.

    Note:
        All six are buffers in double precision, whatever the module is cast to (so that it cannot
        go to an Apple GPU), and results are computed in it. The ``state_dict``
        has them and the options, as tensors, and is saved without pickled code:
        ``Whitening.from_state_dict(torch.load(path, weights_only=True))``.

        Samples are not kept: 8 d² bytes whatever their number, 2 m d² operations, and one
        eigendecomposition when the matrices are made. Batches are joined as Chan, Golub and LeVeque
        (1983) do, relative to the first sample: a mean far from 0 takes no digits, a constant
        feature has variance 0 exactly, and the result does not depend on how samples are dealt out
        to batches but for rounding. Ledoit and Wolf's shrinkage needs fourth moments, and is not
        offered. A direction of variance λ comes out white to some units of rounding times λ_max/λ.

        The sign of a principal component is such that the first of its large entries is positive
        (of at least 0.9 of the largest magnitude). Components of equal variance are determined up
        to a rotation.

    References:
        A. Kessy, A. Lewin, K. Strimmer, Optimal Whitening and Decorrelation, The American
        Statistician 72 (2018). Their Cholesky whitening begins with the last feature.

    Example:
        >>> import torch
        >>> from matroot.nn import Whitening
        >>> x = torch.randn(500, 3) @ torch.tensor([[3.0, 1, 0], [0, 1, 2], [0, 0, 0.1]]) + 7
        >>> whitening = Whitening(3, kind="zca").fit(x)
        >>> y = whitening(x)
        >>> torch.allclose(torch.cov(y.T), torch.eye(3), atol=1e-5)
        True
        >>> torch.allclose(whitening.inverse_transform(y), x, atol=1e-5)
        True
    """

    samples: Tensor
    origin: Tensor
    offset: Tensor
    scatter: Tensor
    whitening_matrix: Tensor
    coloring_matrix: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        kind: Kind = "zca",
        eps: float = 0.0,
        shrinkage: float | Literal["oas"] | None = None,
        n_components: int | None = None,
        correction: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        checks.whole("Whitening: num_features", num_features)
        checks.one_of("Whitening: kind", kind, KINDS)
        _check_shrinkage(shrinkage)
        checks.whole("Whitening: correction", correction, least=0)
        if n_components is not None:
            checks.whole("Whitening: n_components", n_components, most=num_features)
            if kind == "cholesky":
                raise ValueError("Whitening: kind 'cholesky' takes no n_components; 'pca' does")
        self.num_features = num_features
        self.kind = kind
        self.eps = eps
        self.shrinkage = shrinkage
        self.n_components = n_components
        self.correction = correction
        self.directions: int = n_components or num_features
        rows = self.directions if kind.startswith("pca") else num_features
        where: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self.register_buffer("samples", torch.zeros((), **where))
        self.register_buffer("origin", torch.zeros(num_features, **where))
        self.register_buffer("offset", torch.zeros(num_features, **where))
        self.register_buffer("scatter", torch.zeros(num_features, num_features, **where))
        for name, shape in (
            ("whitening_matrix", (rows, num_features)),
            ("coloring_matrix", (num_features, rows)),
        ):
            self.register_buffer(name, torch.full(shape, torch.nan, **where))
        # Whether the matrices are those of the samples: asked for in every call, so no tensor.
        self._made = False

    def __setattr__(self, name: str, value: Any) -> None:
        """As torch.nn.Module, but for the options, which matrices may have been made with."""
        if name in _OPTIONS and name in self.__dict__:
            raise AttributeError(
                f"Whitening: {name} is fixed when the module is made; make another one"
            )
        super().__setattr__(name, value)

    @property
    def mean(self) -> Tensor:
        """μ, shape (d,)."""
        return self.origin + self.offset

    @torch.no_grad()
    def fit(self, x: Tensor, sample_weight: Tensor | None = None) -> Whitening:
        """Forget what was taken in, take in these samples and make the matrices.

        Args:
            x: shape (..., d), float16, bfloat16, float32 or float64.
            sample_weight: how much each sample counts, at least 0, which broadcasts to
                x.shape[:-1]; 2 counts as two of them, booleans are a mask. Samples of weight 0 are
                left out, whatever numbers they have.

        Returns:
            The module itself.

        Raises:
            TypeError: not real floating-point numbers.
            ValueError: another number of features; negative weights; not more than ``correction``
                samples.
            torch.linalg.LinAlgError: a sample is not finite, or S is singular, as with fewer
                samples than features: then ``eps`` or ``shrinkage`` helps, or fewer
                ``n_components``.
        """
        taken = self._checked(x, sample_weight)
        self.reset()
        self._include(*taken)
        self._make()
        return self

    @torch.no_grad()
    def partial_fit(self, x: Tensor, sample_weight: Tensor | None = None) -> Whitening:
        """Take in further samples, any number; matrices are made when they are next needed.

        Args:
            x: see ``fit``.
            sample_weight: see ``fit``.

        Returns:
            The module itself.

        Raises:
            TypeError: see ``fit``.
            ValueError: another number of features; negative weights.
            torch.linalg.LinAlgError: a sample is not finite. Nothing is then taken in.
        """
        self._include(*self._checked(x, sample_weight))
        return self

    def reset(self) -> None:
        """Forget all samples."""
        for buffer in (self.samples, self.origin, self.offset, self.scatter):
            buffer.zero_()
        self._forget()

    def forward(self, x: Tensor) -> Tensor:
        """W (x − μ) of each sample.

        Args:
            x: shape (..., d), real floating-point numbers.

        Returns:
            Shape (..., d), of the principal kinds (..., n_components); dtype of ``x``.

        Raises:
            RuntimeError: no samples have been taken in; or, under torch.compile and torch.export,
                some since the matrices were made.
            TypeError: not real floating-point numbers.
            ValueError: another number of features; not more than ``correction`` samples.
            torch.linalg.LinAlgError: S is singular, see ``fit``.
        """
        traced: Tensor | None = self.recorded(x)
        if traced is not None:
            return traced
        self._ready()
        self._check("forward", x, self.num_features)
        with context.no_autocast(x):
            centered = x.double() - self.origin - self.offset
            return F.linear(centered, self.whitening_matrix).to(x.dtype)

    def inverse_transform(self, y: Tensor) -> Tensor:
        """W⁻¹ y + μ of each: the samples that were whitened to these.

        Args:
            y: shape as ``forward`` returns.

        Returns:
            Shape (..., d), dtype of ``y``.

        Raises:
            RuntimeError: see ``forward``, as the other errors.
        """
        self._ready()
        self._check("inverse_transform", y, len(self.whitening_matrix))
        with context.no_autocast(y):
            x = F.linear(y.double(), self.coloring_matrix, self.offset) + self.origin
            return x.to(y.dtype)

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Whitening:
        """The module, with its options, that has this ``state_dict``, on the CPU.

        Raises:
            ValueError: it is none of a Whitening.

        Example:
            >>> import torch
            >>> from matroot.nn import Whitening
            >>> state = Whitening(3, kind="pca").fit(torch.randn(9, 3)).state_dict()
            >>> Whitening.from_state_dict(state)
            Whitening(3, kind='pca', eps=0.0, shrinkage=None, n_components=None, correction=1)
        """
        options = _options(state.get("_extra_state"))
        d, scatter = options["num_features"], state.get("scatter")
        # Before memory is taken for whatever number stands there.
        if not isinstance(scatter, Tensor) or scatter.shape != (d, d):
            raise ValueError(f"the state is none of a matroot.nn.Whitening of {d} features")
        new = cls(**options)
        new.load_state_dict(state)
        return new

    def _checked(self, x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Samples in rows and their weights, without those of weight 0."""
        self._check("fit", x, self.num_features)
        rows = x.detach().reshape(-1, self.num_features)
        if weight is not None:
            # In double precision: half precision has no weights above 65504.
            like = rows.new_empty((), dtype=torch.float64)
            weight = weights("Whitening: sample_weight", weight, x.shape[:-1], like)
            weight = weight.expand(x.shape[:-1]).flatten()
            if weight.isnan().any():
                raise ValueError("Whitening: sample_weight must be finite and at least 0")
            rows, weight = rows[weight != 0], weight[weight != 0]
        status = torch.where(rows.isfinite().all(-1), Status.OK, Status.NONFINITE)
        limits = screen.thresholds(self.num_features, torch.float64)
        errors.raise_if_bad(errors.Named("x", things="samples"), status, rows, limits)
        return rows, weight

    def _include(self, rows: Tensor, weight: Tensor | None) -> None:
        device = self.origin.device
        sums = Sums(self.samples, self.offset, self.scatter)
        if self.samples == 0 and len(rows):
            self.origin.copy_(rows[0])
        whole = torch.ones((), dtype=torch.float64, device=device).expand(len(rows))
        weight = whole if weight is None else weight.to(device)
        # Not all of them in double precision at once.
        for some, counts in zip(torch.split(rows, 4096), torch.split(weight, 4096), strict=True):
            sums.include_(some.to(device).double() - self.origin, counts)
        self._forget()

    def _forget(self) -> None:
        self.whitening_matrix.fill_(torch.nan)
        self.coloring_matrix.fill_(torch.nan)
        self._made = False

    def _ready(self) -> None:
        if self._made:
            return
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "Whitening: not fitted, or samples have been taken in since: call it once before "
                "torch.compile or torch.export, or fit it"
            )
        if self.samples == 0:
            raise RuntimeError("Whitening: not fitted: call fit, or partial_fit for each batch")
        with torch.no_grad():
            self._make()

    def _make(self) -> None:
        """The matrices, of the samples taken in."""
        if self.samples <= self.correction:
            why = "; all weights are zero, or there are none" if self.samples == 0 else ""
            raise ValueError(
                f"Whitening: expected more than {self.correction} samples "
                f"(correction={self.correction}), got {float(self.samples):g}{why}"
            )
        scale, s = self._scaled_covariance()
        k = torch.where(spd.max_abs(s).isfinite(), spd.even_exponent(s), 0)
        unit = spd.power_of_two(torch.div(k, 2, rounding_mode="floor"), s)
        s = spd.times_power_of_two(s, -k)
        spectrum = self._spectrum(s)
        if self.kind == "cholesky":
            back = torch.linalg.cholesky(s)
            there = torch.linalg.solve_triangular(back, spd.identity_like(s), upper=False)
        else:
            vectors = spectrum.vectors.flip(-1)[:, : self.directions]
            deviations = spectrum.values.flip(-1)[: self.directions].sqrt()
            vectors = vectors * _signs(vectors)
            there, back = (vectors / deviations).mT, vectors * deviations
            if self.kind.startswith("zca"):
                there, back = vectors @ there, back @ vectors.mT
        self.whitening_matrix.copy_(there / (unit * scale))
        self.coloring_matrix.copy_(back * (unit * scale)[:, None])
        self._made = True

    def _scaled_covariance(self) -> tuple[Tensor, Tensor]:
        """What features are divided by first, and S of the quotients."""
        c = self.scatter / (self.samples - self.correction)
        scale = torch.ones_like(self.offset)
        if self.kind.endswith("_cor"):
            scale = spd.positive_or_one(c.diagonal()).sqrt()
            c = c / scale / scale[:, None]
        if self.shrinkage is not None:
            # Neither a number nor "oas" asks for fourth powers.
            c = shrunk(c, self.shrinkage, self.samples, lambda unit: unit)
        return scale, c + self.eps * spd.identity_like(c)

    def _spectrum(self, s: Tensor) -> Spectrum:
        """The eigenpairs of S, of which those that are needed are not null."""
        finite = bool(s.isfinite().all())
        spectrum = Spectrum.of(torch.where(s.isfinite(), s, 0.0))
        regular = bool(spectrum.kept[-self.directions :].all())
        status = Status.OK if regular else Status.SINGULAR
        status = status if finite else Status.NONFINITE
        what = "correlations" if self.kind.endswith("_cor") else "covariance"
        fewer = "" if self.kind == "cholesky" else ", take fewer n_components"
        named = errors.Named(
            f"the matrix of {what} of the {float(self.samples):g} samples",
            ridge="a ridge with eps=",
            otherwise=f"shrink with shrinkage={fewer}, or leave out features that are constant or "
            "follow from others",
        )
        limits = screen.thresholds(self.num_features, s.dtype, regular=True)
        errors.raise_if_bad(named, torch.tensor([status]), s[None], limits)
        return spectrum

    def _check(self, what: str, x: Tensor, width: int) -> None:
        checks.floating(f"Whitening.{what}: the input", x)
        if x.ndim < 1 or x.shape[-1] != width:
            raise ValueError(
                f"Whitening.{what}: expected shape (..., {width}), got {tuple(x.shape)}"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """``to``, ``half`` and so on, but for the dtype of the buffers."""
        before = dict(self._buffers)
        # PyTorch leaves it without types.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            assert old is not None
            assert new is not None
            if new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def get_extra_state(self) -> Tensor:
        """The options as JSON in bytes: files of tensors alone can hold a tensor."""
        return torch.tensor(list(json.dumps(self._own_options()).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Raise ValueError if the state is of other options, which its matrices then belong to."""
        given = _options(state)
        own = self._own_options()
        if given != own:
            other = ", ".join(f"{k}={v!r}" for k, v in given.items() if own[k] != v)
            raise ValueError(
                f"Whitening: the state is of one with {other}: make the module so, or by "
                "Whitening.from_state_dict"
            )

    def _own_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _OPTIONS}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Also find out whether the matrices were made."""
        super()._load_from_state_dict(state_dict, prefix, *rest)
        matrix = self.whitening_matrix
        self._made = not matrix.is_meta and bool(matrix.isfinite().all())

    def extra_repr(self) -> str:
        """The arguments."""
        size, *rest = self._own_options().items()
        return ", ".join([str(size[1]), *(f"{name}={value!r}" for name, value in rest)])


def _check_shrinkage(shrinkage: object) -> None:
    if shrinkage is None or (isinstance(shrinkage, str) and shrinkage == "oas"):
        return
    if shrinkage == "ledoit_wolf":
        raise ValueError(
            "Whitening: shrinkage 'ledoit_wolf' needs fourth moments, which are not kept of "
            "samples that come batch by batch: take 'oas'"
        )
    if not checks.is_share(shrinkage):
        raise ValueError(
            f"Whitening: shrinkage must be None, a number in [0, 1] or 'oas', got {shrinkage!r}"
        )


def _signs(vectors: Tensor) -> Tensor:
    """1 or −1 for each column, whose first large entry it makes positive."""
    size = vectors.abs()
    # The first, of entries that may be equal but for rounding: argmax takes the first of equals.
    first = (size >= 0.9 * size.amax(0)).to(torch.uint8).argmax(0, keepdim=True)
    return torch.where(vectors.gather(0, first) < 0, -1.0, 1.0)


def _options(state: Any) -> dict[str, Any]:
    """The options in a module's extra state."""
    try:
        found = json.loads(bytes(state.tolist()))
        if not isinstance(found, dict) or found.keys() != {*_OPTIONS}:
            raise ValueError("other names")
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"the state is none of a matroot.nn.Whitening: {error}") from None
    return found
