"""What the first and last bytes of a picture say, so that thousands of files are looked at in seconds."""

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
# How the file ends. Behind the mark of a JPEG may be what the camera added.
_ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
_TAIL = 1024


class Head(NamedTuple):
    """The upright size, Pillow's format and mode; "NPY" or "TIFF" and "" of what Pillow does not read."""

    height: int
    width: int
    format: str
    mode: str


def head_of(stream: BinaryIO, name: str, channels: int = 1) -> Head | None:
    """What a picture or mask looks like; None unless it looks whole: reading it says then what is wrong, if anything.

    Args:
        stream: a file that can be sought in.
        name: its name, for the ending.
        channels: of the picture, where an array may have them first or last.
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
        # Of PNG it may stand behind the pixels, and is then looked for by decoding them.
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
    """The length of a file, which stays where it is."""
    here = stream.tell()
    length = stream.seek(0, 2)
    stream.seek(here)
    return length
