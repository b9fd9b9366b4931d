"""Pictures of any number of channels: read from files, and shown."""

from __future__ import annotations

import numpy as np

from atrousops.data.bands import read_channels, read_picture

__all__ = ["read_channels", "read_picture", "to_rgb"]


def to_rgb(picture: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """A picture (H, W, C) to look at, uint8 (H, W, 3): grey from one channel or two, else its first three.

    Floats, which may have any range, are stretched between `limits`, by default those of the picture itself.
    """
    shown = _shown(picture)
    if shown.dtype.kind == "f":
        low, high = limits_of(picture) if limits is None else limits
        shown = np.rint(255 * ((shown - low) / max(high - low, 1e-12)).clip(0, 1)).astype(np.uint8)
    elif shown.dtype != np.uint8:
        shown = np.rint(shown / 257).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:2], 3)))


def limits_of(picture: np.ndarray) -> tuple[float, float]:
    """The 1st and the 99th percentile of what is shown of a picture."""
    low, high = np.percentile(_shown(picture), (1, 99))
    return low, high


def _shown(picture: np.ndarray) -> np.ndarray:
    return picture[..., :3] if picture.shape[2] >= 3 else picture[..., :1]
