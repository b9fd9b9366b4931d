"""Rows of large images: a TIFF is read in pieces, never completely."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np

from atrousops.common.places import Place, Remote
from atrousops.data.bands import Pixels, finished
from atrousops.data.decode import DAMAGE, PictureError, reason

_ORIENTATION = 274
# Grey with zero as black, RGB, palette.
_PHOTOMETRIC = (1, 2, 3)


class Rows(Protocol):
    """An image that is read a few rows at a time. shape: (H, W)."""

    shape: tuple[int, int]

    def read(self, top: int, bottom: int) -> np.ndarray:
        """The rows top..bottom - 1, (rows, W, C), as from `read_picture`."""


class ArrayRows:
    """Rows of an image in memory."""

    def __init__(self, picture: np.ndarray) -> None:
        self.shape = (picture.shape[0], picture.shape[1])
        self._picture = picture

    def read(self, top: int, bottom: int) -> np.ndarray:
        return self._picture[top:bottom]


class TiffRows:
    """The stored numbers of a page of a TIFF: a call reads the needed part, which is kept until the next call.

    A compressed file in a single strip is read completely.

    Args:
        path: of the file.
        page: from 1.

    Raises:
        PictureError: it cannot be read in this way: rotated, of several planes, or not supported by tifffile.
        ImportError: tifffile is not installed.
    """

    def __init__(self, path: Place, page: int = 1) -> None:
        tifffile = importlib.import_module("tifffile")
        self._damage = (*DAMAGE, tifffile.TiffFileError, RuntimeError)
        self.path = path
        try:
            self._file: Any = tifffile.TiffFile(path.open() if isinstance(path, Remote) else path)
            self._page: Any = self._file.pages[page - 1]
            turn = int(self._page.tags.valueof(_ORIENTATION, 1))
        except self._damage as error:
            raise PictureError(f"{path}: cannot be read: {reason(error)}") from error
        found = self._page
        flat = found.axes in ("YX", "YXS") and found.photometric in _PHOTOMETRIC and found.subsampling in (None, (1, 1))
        if not flat or turn != 1 or found.dtype is None or found.dtype.kind not in "uf":
            raise PictureError(f"{path}: cannot be read by rows: {found.axes}, turned {turn}, {found.dtype}")
        self.shape = (int(found.imagelength), int(found.imagewidth))
        self.samples = int(found.samplesperpixel)
        self.dtype: np.dtype[Any] = np.dtype(found.dtype)
        self.colours = int(found.photometric)
        self.extra = len(found.extrasamples)
        self._band_rows = int(found.tilelength if found.is_tiled else min(found.rowsperstrip, self.shape[0]))
        self._plain = bool(found.is_memmappable)
        self._bands: dict[int, np.ndarray] = {}
        if not self._plain:
            self._bands[0] = self._band(0)

    def read(self, top: int, bottom: int) -> np.ndarray:
        if self._plain:
            return self._stored(top, bottom)
        first, last = top // self._band_rows, (bottom - 1) // self._band_rows
        numbers = range(first, last + 1)
        self._bands = {number: each for number, each in self._bands.items() if number in numbers}
        for number in numbers:
            if number not in self._bands:
                self._bands[number] = self._band(number)
        start = first * self._band_rows
        return np.concatenate([self._bands[number] for number in numbers])[top - start : bottom - start]

    def _stored(self, top: int, bottom: int) -> np.ndarray:
        """Uncompressed consecutive rows."""
        row = self.shape[1] * self.samples
        size = self.dtype.itemsize
        handle = self._file.filehandle
        try:
            handle.seek(int(self._page.dataoffsets[0]) + top * row * size)
            data = handle.read((bottom - top) * row * size)
            values = np.frombuffer(data, self.dtype.newbyteorder(self._file.byteorder))
            return values.reshape(bottom - top, self.shape[1], self.samples).astype(self.dtype, copy=False)
        except self._damage as error:
            raise PictureError(f"{self.path}: cannot be read: {reason(error)}") from error

    def _band(self, number: int) -> np.ndarray:
        """A row of tiles, or a strip."""
        page = self._page
        across = -(-self.shape[1] // page.tilewidth) if page.is_tiled else 1
        top = number * self._band_rows
        band = np.zeros((min(self._band_rows, self.shape[0] - top), self.shape[1], self.samples), self.dtype)
        try:
            for index in range(number * across, (number + 1) * across):
                # A tile that is not stored is zero.
                if not page.databytecounts[index]:
                    continue
                self._file.filehandle.seek(int(page.dataoffsets[index]))
                data = self._file.filehandle.read(int(page.databytecounts[index]))
                part, (_, _, _, left, _), _ = page.decode(data, index, jpegtables=page.jpegtables)
                place = band[:, left : left + part.shape[2]]
                # Tiles at the ends extend beyond the image.
                place[:] = part[0, : place.shape[0], : place.shape[1]]
        except self._damage as error:
            raise PictureError(f"{self.path}: cannot be read: {reason(error)}") from error
        return band


class PictureRows:
    """Rows of a TIFF, converted as in `read_picture`."""

    def __init__(self, tiff: TiffRows, pixels: Pixels) -> None:
        self.shape = tiff.shape
        self._tiff = tiff
        self._pixels = pixels

    def read(self, top: int, bottom: int) -> np.ndarray:
        samples = self._tiff.read(top, bottom)
        if samples.shape[2] == 1 and self._pixels.scale is None and self._pixels.channels == 3:
            samples = np.repeat(samples, 3, axis=2)
        return finished(samples, str(self._tiff.path), self._pixels)


def open_rows(path: Place, pixels: Pixels, above: int) -> PictureRows | None:
    """The rows of a TIFF of more than `above` pixels; None for other files, and if it must be read as a whole.

    That is needed for palettes, transparency, and 16-bit numbers without a scale, whose white depends on the maximum.
    """
    if path.suffix.lower() not in (".tif", ".tiff") or importlib.util.find_spec("tifffile") is None:
        return None
    try:
        tiff = TiffRows(path, pixels.page)
    except (PictureError, OSError):
        return None
    if tiff.shape[0] * tiff.shape[1] <= above or tiff.colours == 3:
        return None
    same = tiff.samples == pixels.channels
    if pixels.scale is None and pixels.channels == 3:
        read = tiff.dtype == np.uint8 and tiff.samples in (1, 3) and not tiff.extra
    elif pixels.scale is None and pixels.channels == 1:
        read = tiff.dtype == np.uint8 and same
    else:
        read = same
    return PictureRows(tiff, pixels) if read else None
