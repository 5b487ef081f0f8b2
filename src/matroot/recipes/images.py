"""Pictures in and out: files, scikit-image's photographs, contact sheets."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from matroot.files import replacing
from matroot.terminal import check_file, check_folder

MAX_PIXELS = 4096 * 4096
# Of those that Pillow reads EPS would start another program, and ICO and ICNS hold pictures larger
# than they say.
FORMATS = ("PNG", "JPEG", "JPEG2000", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "PPM", "TGA")
CONTENTS = ("astronaut", "coffee", "chelsea", "rocket")
STYLES = ("brick", "grass", "gravel", "hubble_deep_field")

# Three of scikit-image's pictures with texture and colour, and a grey one; rows and columns of the
# part that is used.
_WHOLE = slice(None)
SHEET_STYLES: dict[str, tuple[str, slice, slice]] = {
    "tissue": ("immunohistochemistry", _WHOLE, _WHOLE),
    "wood": ("coffee", slice(270, 400), slice(482, 600)),
    "galaxies": ("hubble_deep_field", _WHOLE, _WHOLE),
    "bricks": ("brick", _WHOLE, _WHOLE),
}
"""The styles on the contact sheet of ``matroot demo``."""


def load_image(path: str | Path) -> tuple[Tensor, Tensor | None]:
    """Read a picture of one of ``FORMATS``, grey, palette or 16 bit, turned as its EXIF tag says.

    Returns:
        The colours, uint8 of shape (3, H, W), and the alpha channel, uint8 of shape (H, W), or None
        if the file has none.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a readable image, or has more than 4096 x 4096 pixels.
    """
    with _opened(path) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.mode == "F":
            raise ValueError("floating-point pixels; expected 8 or 16 bit")
        if picture.mode.startswith("I"):  # 16-bit grey: convert() would clip it to 8 bit
            wide = np.asarray(picture).astype(np.int32).clip(0, 65535)
            picture = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
        has_alpha = picture.has_transparency_data
        pixels = np.array(picture.convert("RGBA" if has_alpha else "RGB"))
    planes = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return planes[:3], planes[3] if has_alpha else None


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of a picture by its header; errors as of ``load_image``."""
    with _opened(path) as opened:
        width, height = opened.size
    return width, height


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """An open picture; errors here and while it is used become a ValueError that names it."""
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # AVIF is not everywhere.
    try:
        with Image.open(path, formats=known) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels; at most 4096 x 4096 are supported")
            yield opened
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's parsers raise many kinds.
        # Pillow names the file once more, as Python writes texts.
        reason = " ".join(str(error).replace(repr(str(path)), "").split())
        raise ValueError(f"{path}: not a readable image ({reason})") from error


def save_image(image: Tensor, path: str | Path, alpha: Tensor | None = None) -> None:
    """Write a uint8 picture (3, H, W), with its alpha channel (H, W) if there is one.

    Raises:
        ValueError: The shapes or the dtype do not fit, or the suffix names no format.
    """
    check_image("image", image)
    planes = [image]
    if alpha is not None:
        if alpha.dtype != torch.uint8 or alpha.shape != image.shape[1:]:
            raise ValueError(
                f"alpha must be uint8 of shape {tuple(image.shape[1:])}, "
                f"got {alpha.dtype} of shape {tuple(alpha.shape)}"
            )
        planes.append(alpha[None])
    with replacing(Path(path)) as fresh:
        Image.fromarray(torch.cat(planes).permute(1, 2, 0).contiguous().numpy()).save(fresh)


def check_output(path: Path, has_alpha: bool, sources: Sequence[Path] = ()) -> None:
    """Raise ValueError unless a picture can be written to ``path``; before a long computation.

    Args:
        path: where the picture is to go.
        has_alpha: whether it has an alpha channel.
        sources: files that must not be overwritten.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{path}: is a folder, or lies in one that does not exist")
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise ValueError(f"{path}: {path.suffix or 'no suffix'} names no picture format to write")
    if has_alpha and kind in ("JPEG", "BMP", "PPM"):
        raise ValueError(f"{path}: {kind} holds no transparency; write a .png")
    if any(path.resolve() == source.resolve() for source in sources):
        raise ValueError(f"{path}: is one of the pictures read; choose another name")
    check_file(path)
    check_folder(path.parent)  # It is written beside an old one, and takes its place.


def photograph(name: str) -> Tensor:
    """One of the photographs that scikit-image ships, uint8 of shape (3, H, W).

    Raises:
        ValueError: The name is not in ``CONTENTS`` or ``STYLES``.
    """
    if name not in CONTENTS + STYLES:
        known = ", ".join(CONTENTS + STYLES)
        raise ValueError(f"unknown photograph {name!r}; known: {known}")
    return picture(name)


def sheet_style(name: str) -> Tensor:
    """A style of the contact sheet, a key of ``SHEET_STYLES``, uint8 of shape (3, H, W)."""
    source, rows, columns = SHEET_STYLES[name]
    return picture(source)[:, rows, columns].contiguous()


def picture(name: str) -> Tensor:
    """Any picture of ``skimage.data``, uint8 of shape (3, H, W)."""
    from skimage import data

    pixels = np.asarray(getattr(data, name)())
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=-1)
    return torch.from_numpy(pixels[..., :3].copy()).permute(2, 0, 1).contiguous()


def contact_sheet(
    grid: Sequence[Sequence[tuple[Tensor, str] | None]], side: int = 288, margin: int = 8
) -> Image.Image:
    """Thumbnails on a grid, each with a caption below; None leaves a cell empty.

    Args:
        grid: rows of (uint8 picture (3, H, W), caption). Long captions are set in smaller letters.
        side: width and height of a thumbnail, the middle square of its picture.
        margin: space between cells, in pixels.
    """
    caption = 20
    width = len(grid[0]) * (side + margin) + margin
    sheet = Image.new("RGB", (width, len(grid) * (side + caption + margin) + margin), "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(grid):
        for j, cell in enumerate(row):
            if cell is None:
                continue
            image, text = cell
            picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
            corner = (margin + j * (side + margin), margin + i * (side + caption + margin))
            sheet.paste(ImageOps.fit(picture, (side, side)), corner)
            _caption(draw, (corner[0], corner[1] + side + 3), text, side)
    return sheet


def _caption(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int) -> None:
    size = 13.0
    while size > 6 and draw.textlength(text, font_size=size) > width:
        size -= 0.5
    draw.text(place, text, fill="black", font_size=size)


def check_image(name: str, image: Tensor) -> None:
    """Raise ValueError unless ``image`` is a uint8 picture (3, H, W)."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            f"{name} must be uint8 of shape (3, H, W), "
            f"got {image.dtype} of shape {tuple(image.shape)}"
        )
