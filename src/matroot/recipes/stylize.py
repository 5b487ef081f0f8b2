"""Photo stylisation: give a photograph the patch statistics of another one.

A patch is a p x p x 3 window, read as a vector of n = 3 p^2 numbers. With C and S the patch
covariances of content and style, both with a ridge eps I, the linear map

    T = S^{1/2} C^{-1/2},        so that T C T^t = S,

whitens the content's patches and colours them as the style's. Mapping every overlapping patch and
averaging the overlaps is exactly one convolution with a (2p-1) x (2p-1) kernel: the result has no
patch grid, hence no seams, and is computed in bands of bounded memory.

Averaging overlaps changes the covariance, so the step is repeated in sweeps, which also repair what
inexact roots and clipping to [0, 1] leave behind. Each sweep runs over a pyramid from coarse to
fine, so that statistics over several patch widths move. A linear map cannot put texture where the
content has none: after the first sweep such flat regions are filled with the style's own pixels,
and the later sweeps whiten and colour the sum.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from matroot import bures_wasserstein_distance, inv_sqrtm, sqrtm
from matroot.methods import Method, MethodName
from matroot.recipes.images import check_image

Progress = Callable[[int, int], None]

MAX_PATCH = 16
_LEVELS = 3  # pyramid levels: windows of p, 2p and 4p pixels
_SWEEPS = 10
_SAMPLES = 1 << 17  # patches per covariance: plenty for n of a few hundred, whatever the image size
_BAND_PIXELS = 1 << 18  # pixels convolved at a time: bounds the working memory


@dataclass(frozen=True)
class StyleResult:
    """A stylised picture and what was measured on it, as 8-bit values.

    Attributes:
        image: uint8, shape (3, H, W).
        distance_before: Bures-Wasserstein distance of content and style, over all patch scales.
        distance_after: the same for ``image`` and style.
        seam_ratio: mean step across patch borders over the mean step inside patches.
    """

    image: Tensor
    distance_before: float
    distance_after: float
    seam_ratio: float


@dataclass(frozen=True)
class _Moments:
    """Mean colour, float32 (3,), and patch covariance, float64 (n, n), of one pyramid level."""

    mean: Tensor
    covariance: Tensor


@torch.no_grad()
def stylize(
    content: Tensor,
    style: Tensor,
    *,
    strength: float = 1.0,
    method: MethodName | Method = "auto",
    eps: float = 3e-4,
    patch: int = 7,
    texture: float = 0.8,
    progress: Progress | None = None,
) -> StyleResult:
    """Move the patch statistics of ``content`` to those of ``style``.

    Args:
        content: uint8 picture, shape (3, H, W).
        style: uint8 picture, shape (3, H', W').
        strength: 0 returns the content, 1 the full effect, between them the two are blended.
        method: how the matrix roots are computed, as in ``matroot.sqrtm``.
        eps: ridge added to both covariances (of pixels in [0, 1]); larger means softer.
        patch: patch width p in pixels, 2 to 16.
        texture: share of style texture laid into the flat regions of the content, 0 to 1.
        progress: called with (steps done, steps in all).

    Raises:
        ValueError: An argument is out of range, or a picture is smaller than two patches, or has
            fewer patches than their covariance has rows.
    """
    _check_arguments(content, style, strength, eps, patch, texture)
    levels = min(_levels(picture, patch) for picture in (content, style))
    wanted = _measure(style, patch, levels)
    before = _distance(_measure(content, patch, levels), wanted)
    if strength == 0 or torch.equal(content, style):
        return StyleResult(content.clone(), before, before, _seam_ratio(content, patch))

    target = [_moments(level, patch, i) for i, level in enumerate(_pyramid(_unit(style), levels))]
    roots = [sqrtm(goal.covariance, eps=eps, method=method) for goal in target]
    whiten = functools.partial(inv_sqrtm, eps=eps, method=method)
    steps = itertools.count(1)
    total = _SWEEPS * sum(1 for _ in _bands(content))

    def tick() -> None:
        if progress is not None:
            progress(next(steps), total)

    moved = _unit(content)
    for sweep in range(_SWEEPS):
        moved = _sweep(moved, target, roots, whiten, patch, tick)
        if sweep == 0 and texture > 0:
            _fill_flat_regions(moved, style, target[0], patch, texture)
    if strength < 1:
        moved.lerp_(_unit(content), 1 - strength)
    image = moved.mul_(255).round_().to(torch.uint8)
    del moved
    after = _distance(_measure(image, patch, levels), wanted)
    return StyleResult(image, before, after, _seam_ratio(image, patch))


def patch_covariance(image: Tensor, *, patch: int = 7, eps: float = 3e-4) -> Tensor:
    """The covariance of an image's patches with the ridge of ``stylize``, float64, (3p², 3p²)."""
    check_image("image", image)
    covariance = _moments(_unit(image), patch).covariance
    return covariance + eps * torch.eye(len(covariance), dtype=covariance.dtype)


def _sweep(
    image: Tensor,
    target: list[_Moments],
    roots: list[Tensor],
    whiten: Callable[[Tensor], Tensor],
    patch: int,
    tick: Callable[[], None],
) -> Tensor:
    """Match every pyramid level once, coarse to fine; a level's change is added to the next."""
    pyramid = _pyramid(image, len(target))
    change: Tensor | None = None
    while True:
        level = len(pyramid) - 1
        old = pyramid.pop()
        new = old
        if change is not None:
            new = F.interpolate(change[None], size=old.shape[1:], mode="bilinear")[0].add_(old)
        source, goal = _moments(new, patch, level), target[level]
        kernel = _kernel(roots[level] @ whiten(source.covariance), patch)
        new = _convolve(new, kernel, source.mean, goal.mean, tick if level == 0 else None)
        if level == 0:
            # Clipped here, so that the next sweep repairs what clipping did to the statistics.
            return new.clamp_(0, 1)
        change = new - old


def _kernel(patch_map: Tensor, patch: int) -> Tensor:
    """Turn "map every patch, put it back, average the overlaps" into one convolution.

    ``kernel[c, c', d] = sum_o T[(c, o), (c', o + d)] / p^2`` over the offsets o inside the patch;
    (3 p^2, 3 p^2) to (3, 3, 2p-1, 2p-1).
    """
    blocks = patch_map.reshape(3, patch, patch, 3, patch, patch)
    kernel = patch_map.new_zeros(3, 3, 2 * patch - 1, 2 * patch - 1)
    for row, column in itertools.product(range(patch), repeat=2):
        top, left = patch - 1 - row, patch - 1 - column
        kernel[:, :, top : top + patch, left : left + patch] += blocks[:, row, column]
    return (kernel / patch**2).float()


def _convolve(
    image: Tensor,
    kernel: Tensor,
    mean: Tensor,
    new_mean: Tensor,
    tick: Callable[[], None] | None = None,
) -> Tensor:
    """``kernel * (image - mean) + new_mean``, mirrored at the edges, band by band."""
    height, halo = image.shape[1], kernel.shape[-1] // 2
    out = torch.empty_like(image)
    for start, stop in _bands(image):
        first, last = start - halo, stop + halo
        band = image[:, max(first, 0) : last] - mean[:, None, None]
        pad = (halo, halo, max(-first, 0), max(last - height, 0))
        band = F.pad(band[None], pad, mode="reflect")
        out[:, start:stop] = F.conv2d(band, kernel, bias=new_mean)[0]
        if tick is not None:
            tick()
    return out


def _fill_flat_regions(
    image: Tensor, style: Tensor, goal: _Moments, patch: int, texture: float
) -> None:
    """Add the mirrored style, in place, where the image has less variance than the style.

    With E the local variance of the image and V that of the style, the texture's weight is
    ``sqrt(max(0, 1 - E / V))``, so the two variances add up to V.
    """
    height, width = image.shape[1:]
    energy = (image - goal.mean[:, None, None]).square_().mean(0)[None, None]
    energy = F.avg_pool2d(energy, patch, ceil_mode=True)
    energy = F.avg_pool2d(energy, 3, stride=1, padding=1, count_include_pad=False)
    wanted = float(goal.covariance.diagonal().mean())
    weight = (1 - energy / max(wanted, 1e-12)).clamp_(min=0).sqrt_().mul_(texture)
    weight = F.interpolate(weight, size=(height, width), mode="bilinear")[0, 0]
    rows, columns = _mirrored(height, style.shape[1]), _mirrored(width, style.shape[2])
    for channel in range(3):
        tiled = style[channel][rows][:, columns]
        image[channel] += weight * (tiled / 255 - goal.mean[channel])


def _mirrored(length: int, period: int) -> Tensor:
    """Return ``length`` indices that run 0 .. period-1, back down to 0, and so on."""
    index = torch.arange(length) % (2 * period)
    return torch.minimum(index, 2 * period - 1 - index)


def _moments(image: Tensor, patch: int, level: int = 0) -> _Moments:
    """Mean and patch covariance over a regular grid of overlapping patches, in float64."""
    n = 3 * patch * patch
    step = math.ceil(math.sqrt(image[0].numel() / _SAMPLES))
    if level == 0:
        step += step % 2  # even, so that a grid shifted by an odd offset shares no patch with it
    mean = image.mean((1, 2))
    windows = image.unfold(1, patch, step).unfold(2, patch, step)
    total = torch.zeros(n, dtype=torch.float64)
    second = torch.zeros(n, n, dtype=torch.float64)
    for start in range(0, windows.shape[1], 16):
        centred = windows[:, start : start + 16].double() - mean.double().view(3, 1, 1, 1, 1)
        vectors = centred.permute(1, 2, 0, 3, 4).reshape(-1, n)
        total += vectors.sum(0)
        second.addmm_(vectors.mT, vectors)
    count = windows.shape[1] * windows.shape[2]
    rest = total / count
    return _Moments(mean, second / count - torch.outer(rest, rest))


def _measure(image: Tensor, patch: int, levels: int) -> list[_Moments]:
    """Take the moments of all levels on a grid shifted, by an odd offset, off the one used."""
    shift = (patch // 2) | 1
    pyramid = _pyramid(_unit(image[:, shift:, shift:]), levels)
    return [_moments(level, patch, i) for i, level in enumerate(pyramid)]


def _distance(first: list[_Moments], second: list[_Moments]) -> float:
    """Bures-Wasserstein distance; the squares of the levels add up, as for one block diagonal."""
    pairs = zip(first, second, strict=True)
    return math.sqrt(
        sum(float(bures_wasserstein_distance(x.covariance, y.covariance)) for x, y in pairs)
    )


def _seam_ratio(image: Tensor, patch: int) -> float:
    """Mean absolute step across the borders of the patch grid over the mean step inside."""
    border = inside = 0.0
    for plane in image.short():
        for steps in (plane.diff(dim=0), plane.diff(dim=1).mT):
            profile = steps.abs().float().mean(1)
            at_border = torch.arange(1, len(profile) + 1) % patch == 0
            border += float(profile[at_border].mean())
            inside += float(profile[~at_border].mean())
    if inside == 0:
        return 1.0 if border == 0 else math.inf
    return border / inside


def _pyramid(image: Tensor, levels: int) -> list[Tensor]:
    """Return the image and its halved copies, finest first."""
    pyramid = [image]
    while len(pyramid) < levels:
        finest = pyramid[-1][None]
        pyramid.append(F.avg_pool2d(finest, 2, ceil_mode=True)[0])
    return pyramid


def _levels(image: Tensor, patch: int) -> int:
    """How many pyramid levels are wide enough, with enough patches to estimate a covariance.

    With fewer patches than rows the covariance is singular; whitening then fits these few patches,
    and makes the others worse.
    """
    for level in range(_LEVELS):
        sides = [math.ceil(side / 2**level) for side in image.shape[1:]]
        # Every other one of the finest level, see ``_moments``.
        step = 2 if level == 0 else 1
        count = math.prod(max(math.ceil((side - patch + 1) / step), 0) for side in sides)
        if min(sides) < 2 * patch or count < 3 * patch**2:
            return level
    return _LEVELS


def _bands(image: Tensor) -> Iterator[tuple[int, int]]:
    """First and last-plus-one row of every band of about ``_BAND_PIXELS`` pixels."""
    height, width = image.shape[1:]
    rows = max(1, _BAND_PIXELS // width)
    return ((start, min(start + rows, height)) for start in range(0, height, rows))


def _unit(image: Tensor) -> Tensor:
    return image.float().div_(255)


def _check_arguments(
    content: Tensor, style: Tensor, strength: float, eps: float, patch: int, texture: float
) -> None:
    if not 2 <= patch <= MAX_PATCH:
        raise ValueError(f"patch must lie in [2, {MAX_PATCH}], got {patch}")
    if not (eps > 0 and math.isfinite(eps)):
        raise ValueError(f"eps must be positive and finite, got {eps}")
    for name, share in (("strength", strength), ("texture", texture)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {share}")
    for name, picture in (("content", content), ("style", style)):
        check_image(name, picture)
        if min(picture.shape[1:]) < 2 * patch:
            raise ValueError(
                f"{name} must be at least two patches ({2 * patch} pixels) wide and high, "
                f"got {picture.shape[2]} x {picture.shape[1]}"
            )
        if _levels(picture, patch) == 0:
            fitting = [p for p in range(2, patch) if _levels(picture, p)]
            smaller = f", or take patches of {max(fitting)} pixels" if fitting else ""
            raise ValueError(
                f"{name} of {picture.shape[2]} x {picture.shape[1]} pixels has too few patches of "
                f"{patch} pixels to estimate their covariance; take a larger picture{smaller}"
            )
