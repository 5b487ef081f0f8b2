"""The function of pytorch-fid, which many a training code has copied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from matroot.distances import frechet_distance

__all__ = ["calculate_frechet_distance"]


def __dir__() -> list[str]:
    return __all__


def calculate_frechet_distance(
    mu1: Any, sigma1: Any, mu2: Any, sigma2: Any, eps: float = 1e-6
) -> float:
    """pytorch-fid's function of this name: the FID of two means and covariances, without SciPy.

    d² of ``matroot.frechet_distance``. The original takes the root of the product of the matrices
    by ``scipy.linalg.sqrtm(…, disp=False)``, an option that SciPy 1.18 no longer has.

    Args:
        mu1: mean, shape (n,), a NumPy array or whatever ``torch.tensor`` takes.
        sigma1: covariance, shape (n, n).
        mu2: mean, shape (n,), as ``mu1``.
        sigma2: covariance, shape (n, n), as ``sigma1``.
        eps: taken and not used: singular covariances need no ridge here.

    Returns:
        d², in double precision; that of the covariances in single where one of them is, whose
        rounding then says how far it may be from semi-definite.

    Raises:
        TypeError: complex numbers.
        ValueError: the shapes do not fit.
        torch.linalg.LinAlgError: a number is not finite, or a covariance is not symmetric or
            indefinite.

    Example:
        >>> from matroot.compat.pytorch_fid import calculate_frechet_distance
        >>> covariance = [[1.0, 0.0], [0.0, 4.0]]
        >>> calculate_frechet_distance([3.0, 0.0], covariance, [0.0, 0.0], covariance)
        9.0
    """
    given = {"mu1": mu1, "sigma1": sigma1, "mu2": mu2, "sigma2": sigma2}
    tensors = {name: _tensor(name, x) for name, x in given.items()}
    single = torch.float32 in (tensors["sigma1"].dtype, tensors["sigma2"].dtype)
    dtype = torch.float32 if single else torch.float64
    # Of one feature they may be numbers.
    mean1, mean2 = (x.double()[(None,) * (1 - x.ndim)] for x in (tensors["mu1"], tensors["mu2"]))
    cov1, cov2 = (
        x.to(dtype)[(None,) * (2 - x.ndim)] for x in (tensors["sigma1"], tensors["sigma2"])
    )
    if not mean1.shape == mean2.shape == cov1.shape[:1] or cov1.shape != cov2.shape:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
        raise ValueError(f"means must have shape (n,) and covariances (n, n), got {shapes}")
    nothing = torch.zeros_like(cov1[0])
    apart = (mean1 - mean2).square().sum()
    if not apart.isfinite():
        raise torch.linalg.LinAlgError("mu1 or mu2 is not finite, or they are too far apart")
    return float(apart) + float(frechet_distance(nothing, cov1, nothing, cov2))


def _tensor(name: str, x: Any) -> Tensor:
    """Real numbers, without a derivative, in memory of their own."""
    if hasattr(x, "__array__") and not isinstance(x, Tensor):
        # PyTorch takes neither negative strides nor long doubles, and warns of what is read-only.
        x = x.__array__()
        x = (x.astype("float64") if x.dtype.kind == "f" and x.itemsize > 8 else x).copy()
    found = x.detach() if isinstance(x, Tensor) else torch.tensor(x)
    if found.is_complex():
        raise TypeError(
            f"{name} must be real, got {found.dtype}; matroot.frechet_distance takes complex "
            "numbers"
        )
    return found
