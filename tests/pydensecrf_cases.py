"""The settings at which DenseCRF is compared with pydensecrf, and how to ask pydensecrf."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

MATRIX = ((-3.0, 0.5, 1.0), (0.0, -2.0, 0.3), (2.0, 0.1, -4.0))
NORMALIZATION = {
    "none": "NO_NORMALIZATION",
    "before": "NORMALIZE_BEFORE",
    "after": "NORMALIZE_AFTER",
    "symmetric": "NORMALIZE_SYMMETRIC",
}

CASES: dict[str, dict[str, Any]] = {
    # The defaults, after pydensecrf's usual 5 steps and after 10.
    "steps_5": {"iterations": 5},
    "steps_10": {"iterations": 10},
    # Small weights where sums are not normalised, so that Q does not saturate.
    "none": {"normalization": "none", "gaussian_compat": 0.05, "bilateral_compat": 0.02, "bilateral_sxy": 20.0},
    "before": {"normalization": "before", "bilateral_sxy": 20.0},
    "after": {"normalization": "after", "bilateral_sxy": 20.0},
    # Asymmetric: both take the symmetric part.
    "matrix": {"gaussian_compat": MATRIX, "bilateral_compat": MATRIX},
    "vector": {"gaussian_compat": (-1.0, -3.0, 0.5), "bilateral_compat": (-4.0, -2.0, -3.0)},
    "anisotropic": {"gaussian_sxy": (1.5, 4.0), "bilateral_sxy": (30.0, 10.0), "bilateral_srgb": (8.0, 20.0, 13.0)},
}


def photograph(real_data: Path) -> dict[str, torch.Tensor]:
    """An image, its unary energies and what pydensecrf made of them."""
    with zipfile.ZipFile(real_data / "crf_reference.zip") as archive:
        content = io.BytesIO(archive.read("im1_pydensecrf.npz"))
    with np.load(content) as file:
        return {name: torch.from_numpy(file[name]) for name in ("image", "unary", "Q")}


def live_q(
    image: np.ndarray,
    unary: np.ndarray,
    iterations: int = 5,
    gaussian_sxy: Any = 3.0,
    gaussian_compat: Any = 3.0,
    bilateral_sxy: Any = 80.0,
    bilateral_srgb: Any = 13.0,
    bilateral_compat: Any = 10.0,
    normalization: str = "symmetric",
) -> np.ndarray:
    """Q (L, H, W) of pydensecrf for image (H, W, 3) uint8 and unary energies (L, H, W)."""
    import pydensecrf.densecrf as dcrf

    def compat(value: Any) -> Any:
        return value if isinstance(value, float) else np.ascontiguousarray(value, np.float32)

    labels, h, w = unary.shape
    crf = dcrf.DenseCRF2D(w, h, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(labels, -1), np.float32))
    how = getattr(dcrf, NORMALIZATION[normalization])
    crf.addPairwiseGaussian(gaussian_sxy, compat(gaussian_compat), dcrf.DIAG_KERNEL, how)
    image = np.ascontiguousarray(image)
    crf.addPairwiseBilateral(bilateral_sxy, bilateral_srgb, image, compat(bilateral_compat), dcrf.DIAG_KERNEL, how)
    return np.array(crf.inference(iterations), np.float32).reshape(labels, h, w)
