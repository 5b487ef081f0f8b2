"""The stylisation recipe: the statistics move, there are no seams, all kinds of files are read."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from matroot.recipes import images
from matroot.recipes import stylize as recipe


def photograph(name: str, side: int = 256) -> Tensor:
    """The central square of one of scikit-image's photographs, uint8 (3, side, side)."""
    pixels = getattr(skimage.data, name)()
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=-1)
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    window = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    return torch.from_numpy(window).permute(2, 0, 1).contiguous()


def reference_covariance(image: Tensor, patch: int, offset: int) -> Tensor:
    """Patch covariance by numpy's own estimator, over every patch from ``offset`` on."""
    unit = (image.double() / 255)[None, :, offset:, offset:]
    return torch.from_numpy(np.cov(F.unfold(unit, patch)[0].numpy(), bias=True))


def reference_distance(first: Tensor, second: Tensor) -> float:
    """Bures-Wasserstein distance from the eigenvalues of the product of both matrices."""
    eigenvalues = torch.linalg.eigvals(first @ second).real.clamp(min=0)
    return float(
        (first.trace() + second.trace() - 2 * eigenvalues.sqrt().sum()).clamp(min=0).sqrt()
    )


@pytest.mark.parametrize(
    ("content", "style", "texture"),
    [
        ("astronaut", "grass", 0.8),
        ("coffee", "brick", 0.0),
        pytest.param("astronaut", "grass", 0.0, marks=pytest.mark.slow),
        pytest.param("coffee", "brick", 0.8, marks=pytest.mark.slow),
        pytest.param("chelsea", "hubble_deep_field", 0.0, marks=pytest.mark.slow),
        pytest.param("chelsea", "hubble_deep_field", 0.8, marks=pytest.mark.slow),
    ],
)
def test_distance_falls_tenfold_without_seams(content: str, style: str, texture: float) -> None:
    before, goal = photograph(content), photograph(style)
    result = recipe.stylize(before, goal, texture=texture)
    assert result.distance_after <= result.distance_before / 10
    assert result.seam_ratio <= 1.1
    # The finest scale once more, measured by code that shares nothing with the recipe.
    wanted = reference_covariance(goal, 8, 3)
    start = reference_distance(reference_covariance(before, 8, 3), wanted)
    end = reference_distance(reference_covariance(result.image, 8, 3), wanted)
    assert end <= start / 8
    assert torch.allclose(result.image.double().mean((1, 2)), goal.double().mean((1, 2)), atol=2.0)


def test_content_stays_recognisable() -> None:
    content = photograph("astronaut")
    result = recipe.stylize(content, photograph("gravel")).image

    def edges(image: Tensor) -> Tensor:
        grey = image.float().mean(0)
        return (grey - F.avg_pool2d(grey[None], 9, 1, 4)[0]).flatten()

    correlation = torch.corrcoef(torch.stack([edges(content), edges(result)]))[0, 1]
    assert correlation > 0.5


@pytest.mark.parametrize("method", ["eigh", "svd", "pade"])
def test_methods_move_towards_the_style(method: str) -> None:
    result = recipe.stylize(photograph("coffee", 192), photograph("gravel", 192), method=method)
    assert result.distance_after <= result.distance_before / 5


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method"):
        recipe.stylize(photograph("coffee", 64), photograph("grass", 64), method="guess")


def test_strength_blends() -> None:
    content, style = photograph("astronaut", 128), photograph("brick", 128)
    none, half, full = (recipe.stylize(content, style, strength=s) for s in (0.0, 0.5, 1.0))
    assert torch.equal(none.image, content)
    assert none.distance_after == none.distance_before
    blend = (content.float() + full.image.float()) / 2
    assert (half.image.float() - blend).abs().max() <= 1
    assert full.distance_after < half.distance_after < none.distance_after


@pytest.mark.parametrize("patch", [2, 3, 8])
def test_convolution_equals_mapping_every_patch(patch: int) -> None:
    generator = torch.Generator().manual_seed(patch)
    n = 3 * patch * patch
    patch_map = torch.randn(n, n, generator=generator, dtype=torch.float64)
    image = torch.rand(3, 30, 26, generator=generator)
    zero = torch.zeros(3)
    got = recipe._convolve(image, recipe._kernel(patch_map, patch), zero, zero)

    patches = F.unfold(image.double()[None], patch)
    size = (30, 26)
    total = F.fold(patch_map @ patches, size, patch)
    count = F.fold(torch.ones_like(patches), size, patch)
    inner = (slice(None), slice(patch, -patch), slice(patch, -patch))  # where all p^2 overlap
    torch.testing.assert_close(got.double()[inner], (total / count)[0][inner], rtol=1e-4, atol=1e-4)


def test_bands_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    content, style = photograph("coffee", 160), photograph("gravel", 160)
    whole = recipe.stylize(content, style).image.int()
    monkeypatch.setattr(recipe, "_BAND_PIXELS", 160 * 9)
    steps: list[tuple[int, int]] = []
    bands = recipe.stylize(content, style, progress=lambda *step: steps.append(step))
    assert (bands.image.int() - whole).abs().max() <= 1
    assert steps == [(i + 1, steps[-1][0]) for i in range(len(steps))]
    assert steps[-1][0] == steps[-1][1] > 100


def test_moments_agree_with_numpy() -> None:
    image = photograph("chelsea", 64)
    windows = (image.double() / 255).unfold(1, 5, 2).unfold(2, 5, 2)
    vectors = windows.permute(0, 3, 4, 1, 2).reshape(75, -1).numpy()
    moments = recipe._moments(image.float() / 255, 5)
    expected = torch.from_numpy(np.cov(vectors, bias=True))
    torch.testing.assert_close(moments.covariance, expected, rtol=0, atol=1e-7)


def test_distance_of_known_covariances() -> None:
    first = recipe._Moments(torch.zeros(3), torch.diag(torch.tensor([4.0, 9.0, 0.0]).double()))
    second = recipe._Moments(torch.zeros(3), torch.diag(torch.tensor([1.0, 1.0, 0.0]).double()))
    assert recipe._distance([first], [second]) == pytest.approx(5**0.5)
    assert recipe._distance([first] * 2, [second] * 2) == pytest.approx(10**0.5)
    assert recipe._distance([first], [first]) == pytest.approx(0, abs=1e-6)


def test_seam_ratio_sees_seams() -> None:
    ramp = torch.arange(0, 128, 2, dtype=torch.uint8).expand(3, 64, 64).contiguous()
    assert recipe._seam_ratio(ramp, 8) == pytest.approx(1.0)
    blocky = ramp + 20 * (torch.arange(64) // 8 % 2).to(torch.uint8)
    assert recipe._seam_ratio(blocky, 8) > 5


def test_constant_and_grey_images_stay_finite() -> None:
    flat = torch.full((3, 128, 144), 90, dtype=torch.uint8)
    colour = photograph("coffee", 128)
    grey = photograph("gravel", 128)
    for content, style in [(flat, colour), (colour, flat), (flat, flat // 2), (grey, colour)]:
        result = recipe.stylize(content, style)
        assert result.image.shape == content.shape
        assert np.isfinite([result.distance_before, result.distance_after]).all()
        assert result.distance_after <= max(result.distance_before / 5, 1e-6)
    # The last pair turned a grey picture coloured.
    assert result.image.float().std(0).mean() > 5
    assert torch.equal(recipe.stylize(flat, flat // 2).image, flat // 2)


def test_same_image_is_left_alone() -> None:
    content = photograph("chelsea", 128)
    result = recipe.stylize(content, content)
    assert torch.equal(result.image, content)
    # Nearly the same: little changes.
    nearly = content.clone()
    nearly[0, 0, 0] ^= 1
    result = recipe.stylize(content, nearly, texture=0.0)
    assert (result.image.float() - content.float()).abs().mean() < 3


def test_alpha_survives(tmp_path: Path) -> None:
    colours = photograph("coffee", 64)
    alpha = torch.arange(64, dtype=torch.uint8).repeat(64, 1) * 4
    images.save_image(colours, tmp_path / "in.png", alpha)
    read, read_alpha = images.load_image(tmp_path / "in.png")
    assert torch.equal(read, colours)
    assert read_alpha is not None
    assert torch.equal(read_alpha, alpha)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to view
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    read, alpha = images.load_image(tmp_path / "turned.png")
    assert alpha is None
    assert read.shape == (3, 30, 20)
    assert (read[:, :10] == 255).all()
    assert (read[:, 10:] == 0).all()


def test_grey_palette_and_16_bit_are_read(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = torch.from_numpy(ramp).expand(3, 16, 16)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    Image.fromarray(ramp).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(np.stack([ramp, ramp], -1), "LA").save(tmp_path / "grey_alpha.png")
    for name in ("grey", "palette", "deep", "grey_alpha"):
        read, alpha = images.load_image(tmp_path / f"{name}.png")
        assert torch.equal(read, expected), name
        assert (alpha is not None) == (name == "grey_alpha")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        images.load_image(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no picture")
    said = r"text\.png: not a readable image \(cannot identify image file\)$"  # The name once.
    with pytest.raises(ValueError, match=said):
        images.load_image(tmp_path / "text.png")
    images.save_image(photograph("coffee", 64), tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.png: not a readable image"):
        images.load_image(tmp_path / "cut.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="floating-point"):
        images.load_image(tmp_path / "float.tiff")


def test_captions_stay_in_their_cells() -> None:
    picture = photograph("coffee", 64)
    long = "rocket + hubble_deep_field: 22.2 times nearer"
    sheet = np.asarray(images.contact_sheet([[(picture, "coffee"), (picture, long)]], side=150))
    # White to the right of a cell and between cells; below it the caption.
    assert (sheet[:, -8:] == 255).all()
    assert (sheet[:, 8 + 150 : 8 + 150 + 8] == 255).all()
    assert (sheet[8 + 150 + 3 : -8, 166:316] < 255).any()


def test_styles_of_the_contact_sheet_have_colour_and_texture() -> None:
    styles = {name: images.sheet_style(name).double() for name in images.SHEET_STYLES}
    coloured = [name for name, x in styles.items() if x.std(0).mean() > 1]
    assert len(coloured) == 3
    assert all(x.std((1, 2)).min() > 10 for x in styles.values())


def test_too_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (4097, 4096)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="4097 x 4096 pixels; at most 4096 x 4096"):
        images.load_image(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own guard stays in force
    with pytest.raises(ValueError, match="decompression bomb"):
        images.load_image(tmp_path / "large.png")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("strength", -0.1),
        ("strength", 1.5),
        ("texture", 2.0),
        ("eps", 0.0),
        ("eps", float("nan")),
        ("patch", 1),
        ("patch", 17),
    ],
)
def test_arguments_out_of_range(argument: str, value: float) -> None:
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"{argument} must .*got {value}"):
        recipe.stylize(image, image, **{argument: value})


def test_images_of_the_wrong_kind() -> None:
    good = torch.zeros(3, 64, 64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"style must be at least two patches .*got 64 x 13"):
        recipe.stylize(good, good[:, :13])
    with pytest.raises(ValueError, match=r"content must be uint8 .*float32"):
        recipe.stylize(good.float(), good)
    with pytest.raises(ValueError, match=r"image must be uint8 .*\(64, 64\)"):
        images.save_image(good[0], "unused.png")
    with pytest.raises(ValueError, match="alpha must be uint8"):
        images.save_image(good, "unused.png", good[0, :5])


def test_pictures_with_too_few_patches_are_refused() -> None:
    whole = photograph("coffee", 128)
    small = F.interpolate(photograph("astronaut")[None].float(), (14, 20), mode="area")[0].byte()
    with pytest.raises(ValueError, match=r"content of 20 x 14 pixels .* patches of 4 pixels$"):
        recipe.stylize(small, whole)
    with pytest.raises(ValueError, match="style of 20 x 14 pixels has too few patches"):
        recipe.stylize(whole, small)
    assert recipe._levels(small, 4) == 1
    result = recipe.stylize(small, whole, patch=4)
    assert result.distance_after < 0.7 * result.distance_before
    # By default a picture needs 31 pixels; 64 are enough for two scales, not for three.
    assert [recipe._levels(whole[:, :side, :side], 7) for side in (30, 31, 64, 128)] == [0, 1, 2, 3]
    goal = photograph("brick", 64)
    result = recipe.stylize(whole[:, :64, :64], goal)
    assert result.distance_after < result.distance_before / 5


@pytest.mark.slow
def test_largest_images_fit_into_two_gibibytes(tmp_path: Path) -> None:
    """The whole process, import and file reading included, on 4096 x 4096 RGBA and RGB."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 4, 256, 256, generator=generator)
    noise = F.interpolate(coarse, scale_factor=16, mode="bilinear")[0].mul(255).byte()
    images.save_image(noise[:3], tmp_path / "content.png", noise[3])
    images.save_image(noise[1:], tmp_path / "style.png")
    script = textwrap.dedent(
        """
        import resource, sys
        from matroot.recipes import images
        from matroot.recipes import stylize as recipe
        content, alpha = images.load_image(sys.argv[1])
        style, _ = images.load_image(sys.argv[2])
        result = recipe.stylize(content, style)
        images.save_image(result.image, sys.argv[3], alpha)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        """
    )
    paths = [str(tmp_path / name) for name in ("content.png", "style.png", "out.png")]
    done = subprocess.run(
        [sys.executable, "-c", script, *paths], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 2 * 1024**3
    with Image.open(paths[-1]) as written:
        assert written.size == (4096, 4096)
        assert written.mode == "RGBA"
