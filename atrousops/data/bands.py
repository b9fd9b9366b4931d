"""Reads image files with any number of channels and any depth, for training, evaluation and `segment`."""

from __future__ import annotations

import importlib
import io
import struct
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from atrousops.common.checks import bad_value
from atrousops.common.places import Place, place
from atrousops.data.decode import (
    DAMAGE,
    PictureError,
    allowed,
    image_from,
    is_deep_png,
    opened,
    reason,
    samples_from,
)

# Red, green, blue; ITU-R BT.601, as in Pillow's conversion to grey.
_GREY = np.array([0.299, 0.587, 0.114])
_ORIENTATION = 274


@dataclass(frozen=True)
class Pixels:
    """The settings for reading images.

    channels: of the network. scale: the stored number that counts as 1, such as 4095 for a 12-bit camera, or None for
    8-bit RGB and greys; see `read_picture`. page: the page or frame to read, from 1.
    """

    channels: int = 3
    scale: float | None = None
    page: int = 1

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale < float("inf"):
            bad_value("data", "scale", "be positive, the stored number that counts as 1", self.scale)
        if self.page < 1:
            bad_value("data", "page", "be at least 1", self.page)


def read_picture(path: str | Place, pixels: Pixels) -> np.ndarray:
    """An image as an array (H, W, channels).

    | scale | channels | read from | result |
    |---|---|---|---|
    | None | 3 | any image Pillow opens | uint8, as `read_image` |
    | None | 1 | the same | uint8, converted to grey |
    | None | other | .npy, TIFF, RGBA, CMYK, of 8 or 16 bits | uint8, or uint16 in 0..65535 |
    | given | any | the same and greys, RGB, of any depth, also floats | float32, stored number / scale |

    .npy holds (H, W, C) or (C, H, W). A TIFF has C samples or pages; kinds that Pillow cannot read need the package
    tifffile. PNG with 16 bits per colour needs the package imagecodecs. Orientation is applied.

    Raises:
        PictureError: the file does not exist, cannot be read, or has other channels, another dtype, or NaN.
    """
    with opened(place(path)) as stream:
        return picture_from(stream, str(path), pixels)


def read_channels(path: str | Place, channels: int) -> np.ndarray:
    """`read_picture` for images without a scale."""
    return read_picture(path, Pixels(channels))


def picture_from(stream: BinaryIO, name: str, pixels: Pixels) -> np.ndarray:
    """As `read_picture`, from a binary stream; `name` gives the kind of file, and is used in messages."""
    array_file = PurePath(name).suffix.lower() == ".npy"
    if pixels.scale is None and pixels.channels in (1, 3) and not array_file:
        picture = image_from(stream, name, pixels.page)
        return picture if pixels.channels == 3 else np.rint(picture @ _GREY).astype(np.uint8)[..., None]
    return finished(_samples(stream, name, pixels.channels, pixels.page), name, pixels)


def finished(samples: np.ndarray, name: str, pixels: Pixels) -> np.ndarray:
    """Converts stored numbers (H, W, C) as `read_picture` does; `name` is used in messages."""
    if pixels.scale is None:
        if samples.dtype not in (np.uint8, np.uint16):
            why = f"holds {samples.dtype}, where uint8 or uint16 is needed"
            raise PictureError(f"{name}: {why}, or data.scale: the number that counts as 1")
        return np.ascontiguousarray(samples)
    if samples.dtype.kind not in "uif":
        raise PictureError(f"{name}: holds {samples.dtype}, where integers or floats are needed")
    if wrong := int((~np.isfinite(samples)).sum()):
        what = f"{wrong} of {samples.size} samples are NaN or infinite"
        raise PictureError(f"{name}: {what}; give them a number, and let the mask be void there")
    return np.ascontiguousarray(samples / pixels.scale, dtype=np.float32)


def samples_of(stream: BinaryIO, name: str) -> np.ndarray:
    """The stored numbers of an image, (H, W, C) in the file's dtype, with any C."""
    return _samples(stream, name, None)


def integers_from(stream: BinaryIO, name: str) -> np.ndarray:
    """The ids of a mask in .npy, int64 (H, W). Raises PictureError: it does not hold ids."""
    ids = _numpy(stream, name)
    if ids.ndim != 2 or ids.dtype.kind not in "uib":
        raise PictureError(f"{name}: a mask must be integers (H, W); it is {ids.dtype} {ids.shape}")
    return ids.astype(np.int64)


def _samples(stream: BinaryIO, name: str, channels: int | None, page: int = 1) -> np.ndarray:
    suffix = PurePath(name).suffix.lower()
    if suffix == ".npy":
        if page != 1:
            raise PictureError(f"{name}: page {page} was asked for, and an array has none")
        return _checked(name, _bands_last(_numpy(stream, name), channels), channels)
    data = stream.read()
    if is_deep_png(data):
        return _checked(name, _deep_png(data, name, page), channels)
    # Tried in this order.
    stream = io.BytesIO(data)
    refused = None
    try:
        found = samples_from(stream, name, page)
        if suffix not in (".tif", ".tiff") or found.shape[2] == channels:
            return _checked(name, found, channels)
    except PictureError as error:
        if suffix not in (".tif", ".tiff"):
            raise
        refused = error
    stream.seek(0)
    return _checked(name, _tiff(stream, name, refused, page), channels)


def _bands_last(array: np.ndarray, channels: int | None) -> np.ndarray:
    """(H, W, C) from (H, W), or from (C, H, W) if C is the number of channels or the smallest of the three."""
    if array.ndim == 2:
        return array[..., None]
    bands = channels if channels is not None else min(array.shape, default=0)
    if array.ndim == 3 and array.shape[2] != bands and array.shape[0] == bands:
        return np.moveaxis(array, 0, 2)
    return array


def _checked(name: str, array: np.ndarray, channels: int | None) -> np.ndarray:
    if array.ndim != 3 or array.size == 0 or channels not in (None, array.shape[2]):
        wanted = "an image is needed" if channels is None else f"the network reads {channels} channels"
        raise PictureError(f"{name}: has shape {array.shape}, where {wanted}")
    return array


def _numpy(stream: BinaryIO, name: str) -> np.ndarray:
    try:
        return np.asarray(np.load(stream, allow_pickle=False))
    except (ValueError, OSError, EOFError) as error:
        raise PictureError(f"{name}: not an array that NumPy can read") from error


def _deep_png(data: bytes, name: str, page: int) -> np.ndarray:
    """Reads 16-bit colours by imagecodecs."""
    try:
        codecs = importlib.import_module("imagecodecs")
    except ImportError:
        why = f"{name}: PNG with 16 bits per colour, which Pillow reduces to 8; the package imagecodecs reads it"
        raise PictureError(f"{why}: pip install imagecodecs") from None
    if page != 1:
        why = "of PNG with 16 bits per colour only the first can be read"
        raise PictureError(f"{name}: page {page} was asked for, and {why}")
    width, height = struct.unpack(">II", data[16:24])
    if width * height > allowed():
        raise PictureError(f"{name}: has {width * height} pixels, more than the {allowed()} that are allowed")
    try:
        with Image.open(io.BytesIO(data)) as header:
            turn = header.getexif().get(_ORIENTATION, 1)
        return _upright(codecs.png_decode(data), turn)
    except (*DAMAGE, RuntimeError) as error:  # imagecodecs' errors are RuntimeErrors
        raise PictureError(f"{name}: cannot be read: {reason(error)}") from error


def _tiff(stream: BinaryIO, name: str, refused: PictureError | None, page: int) -> np.ndarray:
    """Reads by tifffile, after Pillow has found other channels or refused the file."""
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError:
        why = refused or f"{name}: a TIFF with other channels than Pillow reads"
        raise PictureError(f"{why}; the package tifffile may read it: pip install tifffile") from None
    try:
        with tifffile.TiffFile(stream) as file:
            if page > len(file.pages):
                raise PictureError(f"{name}: page {page} was asked for, and there are {len(file.pages)}")
            first = file.pages[page - 1]
            # The first series may consist of pages that are the bands of one image.
            series = file.series[0] if page == 1 else first
            samples, axes = np.asarray(series.asarray()), str(series.axes)
            turn = int(first.tags.valueof(_ORIENTATION, 1))
            inverted = first.photometric == 0
    except PictureError:
        raise
    except (*DAMAGE, tifffile.TiffFileError, RuntimeError) as error:
        raise PictureError(f"{name}: cannot be read: {reason(error)}") from error
    if inverted:
        raise PictureError(f"{name}: a TIFF in which zero is white; save it with zero as black")
    if samples.ndim not in (2, 3) or not {"Y", "X"} <= set(axes):
        raise PictureError(f"{name}: has axes {axes} of {samples.shape}, where rows, columns and bands are needed")
    if samples.ndim == 2:
        samples, axes = samples[..., None], f"{axes}S"
    band = next(axis for axis in axes if axis not in "YX")
    return _upright(samples.transpose([axes.index(axis) for axis in ("Y", "X", band)]), turn)


def _upright(samples: np.ndarray, turn: int) -> np.ndarray:
    """Rotates and flips by TIFF's orientation tag; 1 is upright."""
    turned: dict[int, Any] = {
        2: samples[:, ::-1],
        3: samples[::-1, ::-1],
        4: samples[::-1],
        5: samples.swapaxes(0, 1),
        6: samples[::-1].swapaxes(0, 1),
        7: samples[::-1, ::-1].swapaxes(0, 1),
        8: samples[:, ::-1].swapaxes(0, 1),
    }
    return turned.get(turn, samples)
