"""Decodes image files: images to RGB bytes and masks to class ids. Ambiguous files raise an error."""

from __future__ import annotations

import contextlib
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from atrousops.common.checks import ArgumentError
from atrousops.common.places import Place, dangling, place

Image.preinit()

# The errors that Pillow documents (OSError, ValueError, EOFError), and those that `Image.open` and `ImageFile` catch.
_OF_PYTHON = (OSError, ValueError, EOFError, SyntaxError, IndexError, KeyError, TypeError, OverflowError)
DAMAGE = (*_OF_PYTHON, struct.error, zlib.error)
_ORIENTATION, _BITS, _PHOTOMETRIC, _LARGEST = 274, 258, 262, 281
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SEVERAL_PAGES = (".gif", ".tif", ".tiff", ".png", ".apng", ".webp", ".mpo", ".avif", ".psd", ".fli", ".flc")
_COLOURED = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")


ID_MODES = (*_SIXTEEN, "1", "L", "P", "I")
EXACT = ("PNG", "TIFF", "BMP", "GIF")


class PictureError(ArgumentError):
    """A file that cannot be used as an image or mask; the message names the file and the reason in one line."""


@dataclass(frozen=True)
class _Decoded:
    """bits: of a stored sample, if the file says; largest: TIFF's MaxSampleValue; inverted: zero is white."""

    image: Image.Image
    name: str
    format: str
    bits: int | None = None
    largest: int | None = None
    inverted: bool = False

    def refuse(self, why: str) -> PictureError:
        return PictureError(f"{self.name}: {why}")


def read_image(path: str | Place) -> np.ndarray:
    """Reads the first frame or page of an image file as RGB, with its orientation applied.

    | samples | result |
    |---|---|
    | 8-bit grey, palette, RGB, CMYK, YCbCr, HSV | RGB, by Pillow's conversion; ICC profiles and gamma are not applied |
    | alpha, or a transparent colour | composited on white |
    | 16-bit grey | round(255 v / white), see below |
    | 16-bit colour | its upper byte (a limit of Pillow); a TIFF with values of 14 bits or fewer is refused |
    | float grey | round(255 v) if all are within 0..1, else refused |
    | 32-bit integer | as 16-bit if all are within 0..65535, else refused |

    White is 65535 in PNG and PGM, as they define, and 4095 in a TIFF of 12 bits per sample. In any other file it is the
    largest number of 8, 10, 12, 14 or 16 bits, whichever is the first that neither the values nor TIFF's MaxSampleValue
    exceed, so that 12-bit images saved in 16 bits are not nearly black. The orientation of EXIF and TIFF is applied,
    unless the EXIF data cannot be parsed.

    Returns:
        uint8 array (H, W, 3), values 0..255.

    Raises:
        PictureError: the file does not exist, is not an image, is damaged or truncated, exceeds Pillow's limit of
            pixels, or is refused according to the table.
    """
    with opened(place(path)) as stream:
        return image_from(stream, str(path))


def read_mask(path: str | Place) -> np.ndarray:
    """Reads the class ids of a mask: the stored numbers, not colours, of its first frame or page.

    Greys of 1 to 16 bits and 32-bit integers give their numbers, palette images their indices for any palette.
    Orientation is applied as in `read_image`.

    Returns:
        int64 array (H, W).

    Raises:
        PictureError: as `read_image`; the samples are colours or floats, or have an alpha channel; the format may
            change ids (JPEG, WebP); or it is a TIFF in which zero is white.
    """
    with opened(place(path)) as stream:
        return mask_from(stream, str(path))


def allow(pixels: int) -> None:
    """Sets the largest number of pixels of a file in this process, instead of Pillow's 179 million.

    The limit protects against small files that fill the memory when decompressed.
    """
    Image.MAX_IMAGE_PIXELS = -(-pixels // 2)


def allowed() -> int:
    """The largest number of pixels that is read."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 2**62)


def is_deep_png(data: bytes) -> bool:
    """Whether a file is PNG with 16 bits per colour, of which Pillow keeps the upper 8."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 25 and data[24] == 16 and data[25] in (2, 4, 6)


def pages_in(path: str | Place) -> int:
    """The number of pages or frames of an image file; 1 for any other file."""
    there = place(path)
    if there.suffix.lower() not in _SEVERAL_PAGES:
        return 1
    try:
        with opened(there) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(stream) as image:
                return int(getattr(image, "n_frames", 1))
    except (*DAMAGE, Image.DecompressionBombError):
        return 1


def image_from(stream: BinaryIO, name: str, page: int = 1) -> np.ndarray:
    """As `read_image`, from a binary stream; `name` is used in messages, and `page` counts from 1."""
    decoded = _decode(stream, name, page)
    image = decoded.image
    if image.mode in (*_SIXTEEN, "I"):
        return _as_rgb(_grey(decoded))
    if image.mode == "F":
        return _as_rgb(_unit(decoded))
    if image.mode not in (*_COLOURED, *_TRANSPARENT):
        raise decoded.refuse(f"samples of mode {image.mode} have no reading as RGB; save it as RGB")
    if decoded.format == "TIFF" and decoded.bits == 16:
        _check_upper_bytes(decoded)
    if image.mode in ("RGBa", "La"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def samples_from(stream: BinaryIO, name: str, page: int = 1) -> np.ndarray:
    """The stored numbers of an image, (H, W, C) in the file's dtype, upright, not scaled and not converted to RGB.

    Greys, RGB, RGBA and CMYK are returned as stored, palettes as their colours, YCbCr and HSV as RGB.

    Raises:
        PictureError: as `read_image`; or colours of 16 bits, or a TIFF in which zero is white.
    """
    decoded = _decode(stream, name, page)
    image = decoded.image
    if image.mode in ("P", "PA", "YCbCr", "HSV", "RGBX"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode not in (*_SIXTEEN, "1", "L", "LA", "I", "F", "RGB", "RGBA", "CMYK"):
        raise decoded.refuse(f"samples of mode {image.mode} cannot be read as stored")
    if decoded.bits == 16 and image.mode in ("LA", "RGB", "RGBA", "CMYK"):
        raise decoded.refuse("16-bit colours, of which Pillow keeps the upper 8 bits; save it as TIFF")
    if decoded.inverted and image.mode != "L":
        raise decoded.refuse("a TIFF in which zero is white; save it with zero as black")
    samples = np.array(image)
    samples = samples.astype(np.uint8) if samples.dtype == bool else samples
    return samples[..., None] if samples.ndim == 2 else samples


def colours_from(stream: BinaryIO, name: str) -> np.ndarray:
    """The colours of a mask drawn in colours, uint8 (H, W, 3), from RGB, palette or grey.

    Raises:
        PictureError: as `read_mask`; the file has 16 bits per colour, or pixels that are not opaque.
    """
    decoded = _decode(stream, name)
    _check_exact(decoded, ("RGB", "RGBA", "P", "L", "1"), "colours (mode RGB, RGBA, P, L or 1)", "write it as RGB")
    if decoded.bits == 16:
        raise decoded.refuse("16 bits per colour, of which a table of colours has 8")
    image = decoded.image.convert("RGBA")
    colours = np.asarray(image)
    if (colours[..., 3] != 255).any():
        raise decoded.refuse("a mask must be opaque to be read by its colours; write it as RGB")
    return colours[..., :3]


def mask_from(stream: BinaryIO, name: str, remedy: str = "convert it to ids first") -> np.ndarray:
    """As `read_mask`, from a binary stream; `name` is used in messages, `remedy` in those about colours."""
    decoded = _decode(stream, name)
    _check_exact(decoded, ID_MODES, "one class id a pixel (mode 1, L, P, I or I;16)", remedy)
    if decoded.inverted:
        raise decoded.refuse("a TIFF in which zero is white, so that its ids may be meant inverted; save it as PNG")
    ids = np.asarray(decoded.image).astype(np.int64)
    if decoded.image.mode == "L" and decoded.bits in (2, 4):
        # Pillow scales them to 0..255.
        ids //= 255 // (2**decoded.bits - 1)
    return ids


def colour_ids_from(stream: BinaryIO, name: str) -> np.ndarray:
    """Ids R + 256 G + 65536 B of an RGB file, as in COCO panoptic: int64 (H, W)."""
    decoded = _decode(stream, name)
    _check_exact(decoded, ("RGB",), "ids R + 256 G + 65536 B (mode RGB)", "write it as RGB")
    if decoded.bits == 16:
        raise decoded.refuse("16 bits per colour, of which ids R + 256 G + 65536 B have 8")
    return np.asarray(decoded.image).astype(np.int64) @ np.array([1, 256, 65536])


@contextlib.contextmanager
def opened(path: Place) -> Iterator[BinaryIO]:
    """The file, open for reading. Raises PictureError: it does not exist, or cannot be read."""
    try:
        if path.is_dir():
            raise PictureError(f"{path}: a folder, where an image file is needed")
        if not path.exists():
            raise PictureError(f"{path}: {dangling(path) or 'no such file'}")
        if not path.is_file():
            raise PictureError(f"{path}: not a regular file")
        stream = path.open("rb")
    except OSError as error:
        raise PictureError(f"{path}: cannot be read: {reason(error)}") from error
    with stream:
        yield stream


def _decode(stream: BinaryIO, name: str, page: int = 1) -> _Decoded:
    header = stream.read(26)
    stream.seek(0)
    try:
        with warnings.catch_warnings():
            # Pillow warns about very large files, unusual palettes and tags; they are read anyway.
            warnings.simplefilter("ignore")
            with Image.open(stream) as image:
                if page != 1:
                    _turn_to(image, name, page)
                tags = getattr(image, "tag_v2", {})
                facts = {key: _number(tags.get(key)) for key in (_BITS, _LARGEST, _PHOTOMETRIC)}
                kind = image.format or ""
                image.load()
                upright = _upright(image)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(f"{name}: not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        remedy = "scale it down, or for files that you trust raise PIL.Image.MAX_IMAGE_PIXELS, `segment --largest`"
        raise PictureError(f"{name}: more than the {limit} pixels that Pillow reads; {remedy}") from error
    except MemoryError as error:
        raise PictureError(f"{name}: too large for the memory of this machine") from error
    except (*DAMAGE, NotImplementedError) as error:
        raise PictureError(f"{name}: cannot be read: {reason(error)}") from error
    bits = header[24] if kind == "PNG" and len(header) > 24 else facts[_BITS]
    return _Decoded(upright, name, kind, bits, facts[_LARGEST], facts[_PHOTOMETRIC] == 0)


def _turn_to(image: Image.Image, name: str, page: int) -> None:
    pages = int(getattr(image, "n_frames", 1))
    if not 1 <= page <= pages:
        raise PictureError(f"{name}: page {page} was asked for, and there {'is' if pages == 1 else 'are'} {pages}")
    image.seek(page - 1)


def _number(value: object) -> int | None:
    """The value of a numeric TIFF tag, or the largest of its values."""
    numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, int)]
    return max(numbers, default=None)


def _upright(image: Image.Image) -> Image.Image:
    # An EXIF block that cannot be parsed gives no orientation, but the pixels are readable.
    with contextlib.suppress(*DAMAGE):
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
        return image if turn is None else image.transpose(turn)
    return image


def _grey(decoded: _Decoded) -> np.ndarray:
    values = np.asarray(decoded.image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise decoded.refuse(f"integers from {low} to {high}, where 0..65535 can be read; save it with 8 or 16 bits")
    if decoded.format in ("PNG", "PPM"):
        white = 65535
    else:
        stated = 2**decoded.bits - 1 if decoded.bits is not None and decoded.bits < 16 else 0
        most = max(high, decoded.largest or 0, stated)
        white = next((2**bits - 1 for bits in (8, 10, 12, 14) if most < 2**bits), 65535)
        # Pillow inverts such greys only up to 8 bits.
        values = white - values if decoded.inverted else values
    return ((255 * values + white // 2) // white).astype(np.uint8)


def _unit(decoded: _Decoded) -> np.ndarray:
    values = np.asarray(decoded.image)
    if not bool(((values >= 0) & (values <= 1)).all()):
        found = f"floats from {values.min():g} to {values.max():g}"
        raise decoded.refuse(f"{found}, where 0..1 can be read; scale it to 0..1, or save it with 8 or 16 bits")
    return np.rint(255 * values.astype(np.float64)).astype(np.uint8)


def _as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def _check_upper_bytes(decoded: _Decoded) -> None:
    """Raises if the upper bytes of 16-bit colours do not represent the image."""
    upper = int(np.asarray(decoded.image).max()) if decoded.largest is None else decoded.largest >> 8
    if upper < 64:
        why = "16-bit colours that fill 14 bits or fewer, of which Pillow keeps the upper 8 of 16"
        raise decoded.refuse(f"{why}, nearly black; save it with 8 bits a colour")


def _check_exact(decoded: _Decoded, modes: tuple[str, ...], what: str, remedy: str) -> None:
    """Raises unless the samples are the numbers that were written."""
    if decoded.image.mode not in modes:
        raise decoded.refuse(f"a mask must hold {what}; its mode is {decoded.image.mode}; {remedy}")
    lossy = "jpeg" in str(decoded.image.info.get("compression", ""))
    if decoded.format not in EXACT or lossy:
        kind = f"{decoded.format} with JPEG compression" if lossy else decoded.format
        raise decoded.refuse(f"a mask must be PNG, TIFF, BMP or GIF, which keep ids as they are; it is {kind}")


def reason(error: BaseException) -> str:
    """The reason of an error, in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
