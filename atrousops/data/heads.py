"""Checks image files by their first and last bytes, which takes seconds for thousands of files."""

from __future__ import annotations

import importlib
import warnings
import zipfile
from pathlib import PurePath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from atrousops.data.decode import DAMAGE

_ORIENTATION = 274
# The end marker of each format. Cameras may add data after that of a JPEG.
_ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
_TAIL = 1024


class Head(NamedTuple):
    """The upright size, Pillow's format and mode; "NPY" or "TIFF" and "" if Pillow does not read the file."""

    height: int
    width: int
    format: str
    mode: str


def head_of(stream: BinaryIO, name: str, channels: int = 1) -> Head | None:
    """The head of an image or mask; None if it may be damaged: decoding it then reports the problem, if any.

    Args:
        stream: a seekable file.
        name: its name, for the suffix.
        channels: of the image, which an array may have first or last.
    """
    suffix = PurePath(name).suffix.lower()
    try:
        if suffix == ".npy":
            return _array(stream, channels)
        found = _picture(stream)
        if found is None and suffix in (".tif", ".tiff"):
            return _tiff(stream)
        return found
    except (*DAMAGE, Image.DecompressionBombError, zipfile.BadZipFile, RuntimeError, ImportError):
        return None


def _picture(stream: BinaryIO) -> Head | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(stream)
        except Image.UnidentifiedImageError:
            return None
        # In PNG it may come after the pixels; then they must be decoded to find it.
        turn = 1 if image.format == "PNG" else image.getexif().get(_ORIENTATION, 1)
    stream.seek(max(0, _length(stream) - _TAIL))
    if _ENDS.get(image.format or "", b"") not in stream.read():
        return None
    width, height = image.size[::-1] if turn in (5, 6, 7, 8) else image.size
    return Head(height, width, image.format or "", image.mode)


def _array(stream: BinaryIO, channels: int) -> Head | None:
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        return None
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if _length(stream) - stream.tell() < dtype.itemsize * np.prod(shape) or len(shape) not in (2, 3):
        return None
    first = len(shape) == 3 and shape[2] != channels and shape[0] == channels
    height, width = shape[1:] if first else shape[:2]
    return Head(height, width, "NPY", "")


def _tiff(stream: BinaryIO) -> Head | None:
    stream.seek(0)
    with importlib.import_module("tifffile").TiffFile(stream) as file:
        page: Any = file.pages[0]
        ends = [at + count for at, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if max(ends) > _length(stream):
            return None
        sides = int(page.imagelength), int(page.imagewidth)
        height, width = sides[::-1] if page.tags.valueof(_ORIENTATION, 1) in (5, 6, 7, 8) else sides
    return Head(height, width, "TIFF", "")


def _length(stream: BinaryIO) -> int:
    """The length of a file; its position is restored."""
    here = stream.tell()
    length = stream.seek(0, 2)
    stream.seek(here)
    return length
