"""Results of images that do not fit in memory: masks and overlays as TIFF, written one row of tiles at a time."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from atrousops.common.files import write_atomically
from atrousops.common.places import Place
from atrousops.data.strips import Rows, TiffRows
from atrousops.engine import pictures
from atrousops.engine.channels import limits_of, to_rgb

# Side of the tiles of the files, and the number of sampled rows for the display range of float images.
_TILE, _SAMPLED = 256, 64


def write_results(
    mask: Place,
    overlay: Place,
    rows: Rows,
    parts: Iterable[np.ndarray],
    colors: np.ndarray,
    note: Callable[[tuple[int, ...]], str],
) -> tuple[int, ...]:
    """Writes both files atomically, the mask last, as BigTIFF in compressed tiles.

    The pixels are those of `pictures.mask_image` and `overlay_image` for the whole image; the overlay of a float image
    is scaled by a sample of its rows.

    Args:
        rows: the image.
        parts: its class ids from top to bottom, uint8 (any number of rows, W).
        colors: uint8 (L, 3).
        note: converts the pixel count of each class to the text that `read_note` reads from the mask.

    Returns:
        The pixel count of each class.

    Raises:
        OutputError: a file cannot be written.
        ImportError: tifffile is not installed.
    """
    tifffile = importlib.import_module("tifffile")
    height, width = rows.shape
    counts = np.zeros(len(colors), dtype=np.int64)
    palette = np.zeros((3, 256), dtype=np.uint16)
    palette[:, : len(colors)] = 257 * colors.T.astype(np.uint16)
    common: dict[str, Any] = {
        "tile": (_TILE, _TILE), "dtype": np.uint8, "compression": "zlib", "bigtiff": True, "metadata": None,
        "software": False,
    }  # fmt: skip

    def counted() -> Iterator[np.ndarray]:
        for part in parts:
            counts[:] += np.bincount(part.ravel(), minlength=len(colors))
            yield part

    def write_overlay(name: str, labels: TiffRows) -> None:
        tinted = (_tinted(rows, labels, colors, top, limits) for top in range(0, height, _TILE))
        tifffile.imwrite(name, _tiles(tinted), shape=(height, width, 3), photometric="rgb", **common)

    def write_mask(name: str) -> None:
        ids = {"photometric": "palette", "colormap": palette}
        tifffile.imwrite(name, _tiles(counted()), shape=(height, width), **ids, **common, description="-")
        # The pixel counts are known only now.
        tifffile.tiffcomment(name, note(tuple(map(int, counts))))
        labels = TiffRows(Path(name))
        write_atomically(overlay, lambda other: write_overlay(other, labels))

    limits = _limits(rows)
    write_atomically(mask, write_mask)
    return tuple(map(int, counts))


def read_note(path: Place) -> str | None:
    """The note that `write_results` stored in a mask; None if there is no such file or note."""
    tifffile = importlib.import_module("tifffile")
    try:
        with path.open("rb") as stream, tifffile.TiffFile(stream) as file:
            return str(file.pages[0].description)
    except (OSError, tifffile.TiffFileError):
        return None


def _tinted(rows: Rows, labels: TiffRows, colors: np.ndarray, top: int, limits: tuple[float, float]) -> np.ndarray:
    height = rows.shape[0]
    radius = pictures.contour_radius(rows.shape)
    bottom = min(top + _TILE, height)
    start, stop = max(0, top - radius), min(height, bottom + radius)
    ids = labels.read(start, stop)[..., 0]
    inner = slice(top - start, bottom - start)
    edge = pictures.contours(ids, radius)[inner]
    shown = to_rgb(rows.read(top, bottom), limits)
    return np.asarray(pictures.overlay_image(shown, ids[inner], colors, edge=edge))


def _limits(rows: Rows) -> tuple[float, float]:
    """The limits for `to_rgb`, from a sample of rows; unused for integer images."""
    height = rows.shape[0]
    first = rows.read(0, 1)
    if first.dtype.kind != "f":
        return 0.0, 1.0
    places = np.linspace(0, height - 1, min(height, _SAMPLED)).astype(int)
    return limits_of(np.concatenate([rows.read(int(place), int(place) + 1) for place in places]))


def _tiles(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Square tiles, row by row, of an image given from top to bottom; the last are padded with zeros."""
    rest: list[np.ndarray] = []
    for part in parts:
        rest.append(part)
        if sum(map(len, rest)) >= _TILE:
            whole = np.concatenate(rest)
            end = len(whole) // _TILE * _TILE
            for top in range(0, end, _TILE):
                yield from _across(whole[top : top + _TILE])
            rest = [whole[end:]]
    last = np.concatenate(rest)
    if len(last):
        yield from _across(last)


def _across(band: np.ndarray) -> Iterator[np.ndarray]:
    for left in range(0, band.shape[1], _TILE):
        part = band[:, left : left + _TILE]
        ends = [(0, _TILE - part.shape[0]), (0, _TILE - part.shape[1])] + [(0, 0)] * (part.ndim - 2)
        yield np.ascontiguousarray(np.pad(part, ends))
