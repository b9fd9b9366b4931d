"""Folders as people have them: a few small images with discs to find, and their masks."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import yaml
from PIL import Image

from atrousops.engine import recipe as recipes


def scene(number: int, height: int = 48, width: int = 64, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """An image in 0..1, (H, W, C), and where its bright discs are, bool (H, W)."""
    random = np.random.default_rng(number)
    rows, columns = np.mgrid[:height, :width]
    discs = np.zeros((height, width), dtype=bool)
    for _ in range(3):
        y, x, radius = random.integers(8, height - 8), random.integers(8, width - 8), random.integers(4, 8)
        discs |= (rows - y) ** 2 + (columns - x) ** 2 < radius**2
    ground = 0.3 + 0.1 * np.sin(columns / 9)[..., None] + 0.05 * random.standard_normal((height, width, channels))
    return np.clip(ground + 0.4 * discs[..., None], 0, 1), discs


def write(
    root: Path,
    images: str = "images/{}.png",
    masks: str = "masks/{}.png",
    names: tuple[str, ...] = tuple("abcdefgh"),
    *,
    mask: Callable[[np.ndarray], np.ndarray] = lambda discs: discs.astype(np.uint8),
    save: Callable[[Path, np.ndarray], object] | None = None,
    channels: int = 3,
    height: int = 48,
) -> Path:
    """Writes a scene for each name; `mask` makes ids or colours of discs, `save` writes an image in 0..1."""
    for number, name in enumerate(names):
        picture, discs = scene(number, height, channels=channels)
        for path in (root / images.format(name), root / masks.format(name)):
            path.parent.mkdir(parents=True, exist_ok=True)
        (save or save_bytes)(root / images.format(name), picture)
        Image.fromarray(mask(discs)).save(root / masks.format(name))
    return root


def recipe(root: Path, **arguments: str) -> tuple[dict[str, Any], str, str]:
    """The entries of a recipe that is made for a folder, its text, and what was told."""
    told: list[str] = []
    text = recipes.main(str(root), "msd", say=told.append, progress=False, **arguments)
    return yaml.safe_load(text), text, "\n".join(told)


def save_bytes(path: Path, picture: np.ndarray) -> None:
    picture = np.rint(255 * picture).astype(np.uint8)
    Image.fromarray(picture if picture.shape[2] > 1 else picture[..., 0]).save(path)


def save_floats(path: Path, picture: np.ndarray) -> None:
    """TIFF of as many bands as there are, 3000 being 1."""
    tifffile.imwrite(path, (3000 * picture).astype(np.float32), photometric="minisblack", planarconfig="contig")


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of any depth, which Pillow cannot write: rows unfiltered, a zero before each; `more` chunks behind IHDR."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = ((b"IHDR", head), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def save_12_bits(path: Path, picture: np.ndarray) -> None:
    """TIFF of 16 bits of which 12 are used, as cameras write it."""
    Image.fromarray(np.rint(4095 * picture[..., 0]).astype(np.uint16)).save(path)
