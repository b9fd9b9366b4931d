"""Pictures of any number of channels: read from files, and shown."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
from PIL import Image

from atrousops.data.decode import PictureError, read_image

# Red, green, blue; ITU-R BT.601, as Pillow's grey.
_GREY = np.array([0.299, 0.587, 0.114])


def read_channels(path: str | Path, channels: int) -> np.ndarray:
    """A picture as an array (H, W, channels), uint8 in 0..255 or uint16 in 0..65535.

    | channels | read from |
    |---|---|
    | 3 | any image Pillow opens, as `read_image` |
    | 1 | the same, as grey |
    | other | .npy of (H, W, C) or (C, H, W); TIFF of C samples or pages, where tifffile is installed; RGBA, CMYK |

    Raises:
        PictureError: there is no such file, it cannot be read, or has another number of channels or another dtype.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        return _checked(path, _numpy(path), channels)
    if channels == 3:
        return read_image(path)
    if channels == 1:
        return np.rint(read_image(path) @ _GREY).astype(np.uint8)[..., None]
    if path.suffix.lower() in (".tif", ".tiff"):
        return _checked(path, _tiff(path), channels)
    read_image(path)
    with Image.open(path) as image:
        return _checked(path, np.asarray(image), channels)


def to_rgb(picture: np.ndarray) -> np.ndarray:
    """A picture (H, W, C) to look at, uint8 (H, W, 3): grey from one channel or two, else its first three."""
    bytes_ = picture if picture.dtype == np.uint8 else np.rint(picture / 257).astype(np.uint8)
    return np.ascontiguousarray(bytes_[..., :3] if picture.shape[2] >= 3 else np.repeat(bytes_[..., :1], 3, axis=2))


def _numpy(path: Path) -> np.ndarray:
    if not path.is_file():
        raise PictureError(f"{path}: no such file")
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise PictureError(f"{path}: not an array that NumPy can read") from error


def _tiff(path: Path) -> np.ndarray:
    if not path.is_file():
        raise PictureError(f"{path}: no such file")
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError:
        raise PictureError(f"{path}: TIFF of more than three channels needs the package tifffile") from None
    try:
        return np.asarray(tifffile.imread(path))
    except (tifffile.TiffFileError, ValueError, OSError) as error:
        raise PictureError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def _checked(path: Path, array: np.ndarray, channels: int) -> np.ndarray:
    if array.ndim == 2:
        array = array[..., None]
    # Bands come first in many files of satellites.
    if array.ndim == 3 and array.shape[2] != channels and array.shape[0] == channels:
        array = np.moveaxis(array, 0, 2)
    if array.ndim != 3 or array.shape[2] != channels or array.size == 0:
        raise PictureError(f"{path}: has shape {array.shape}, where the network reads {channels} channels")
    if array.dtype not in (np.uint8, np.uint16):
        raise PictureError(f"{path}: holds {array.dtype}, where uint8 or uint16 is needed")
    return np.ascontiguousarray(array)
