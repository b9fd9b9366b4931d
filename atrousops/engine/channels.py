"""Pictures of any number of channels: read from files, and shown."""

from __future__ import annotations

import numpy as np

from atrousops.data.bands import read_channels, read_picture

__all__ = ["read_channels", "read_picture", "to_rgb"]


def to_rgb(picture: np.ndarray) -> np.ndarray:
    """A picture (H, W, C) to look at, uint8 (H, W, 3): grey from one channel or two, else its first three.

    Floats, which may have any range, are stretched from the 1st to the 99th percentile of what is shown.
    """
    shown = picture[..., :3] if picture.shape[2] >= 3 else picture[..., :1]
    if shown.dtype.kind == "f":
        low, high = np.percentile(shown, (1, 99))
        shown = np.rint(255 * ((shown - low) / max(high - low, 1e-12)).clip(0, 1)).astype(np.uint8)
    elif shown.dtype != np.uint8:
        shown = np.rint(shown / 257).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:2], 3)))
