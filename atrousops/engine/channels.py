"""Images with any number of channels: reading and display."""

from __future__ import annotations

import numpy as np

from atrousops.data.bands import read_channels, read_picture

__all__ = ["read_channels", "read_picture", "to_rgb"]


def to_rgb(picture: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """An image (H, W, C) for display, uint8 (H, W, 3): grey for one or two channels, else the first three.

    Floats are scaled from `limits`, by default the image's own.
    """
    shown = _shown(picture)
    if shown.dtype.kind == "f":
        low, high = limits_of(picture) if limits is None else limits
        shown = np.rint(255 * ((shown - low) / max(high - low, 1e-12)).clip(0, 1)).astype(np.uint8)
    elif shown.dtype != np.uint8:
        shown = np.rint(shown / 257).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:2], 3)))


def limits_of(picture: np.ndarray) -> tuple[float, float]:
    """The 1st and 99th percentile of the displayed channels."""
    low, high = np.percentile(_shown(picture), (1, 99))
    return low, high


def _shown(picture: np.ndarray) -> np.ndarray:
    return picture[..., :3] if picture.shape[2] >= 3 else picture[..., :1]
