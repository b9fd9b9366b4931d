"""Volumes, signals and images of five channels at which DenseCRF is compared with pydensecrf's for any features.

Run as a script it writes tests/data/pydensecrf_volumes.npz; what it needs stands in tests/data/make_pydensecrf.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
from pydensecrf_cases import MATRIX

STORED = Path(__file__).resolve().parent / "data" / "pydensecrf_volumes.npz"
# Multiples of four pixels: pydensecrf pads to four with pixels of feature zero.
VOLUME, IMAGE, SIGNAL = (4, 6, 8), (8, 12), (64,)

# Of each: the size, channels, arguments of DenseCRF, and the kernels, whose sdims are in pixels in the order of axes.
CASES: dict[str, tuple[tuple[int, ...], int, dict[str, Any], list[dict[str, Any]]]] = {
    # Computed tomography: one channel far outside of 0..255, slices further apart than pixels.
    "tomography": (
        VOLUME,
        1,
        {"gaussian_sxy": 2.0, "bilateral_sxy": 6.0, "bilateral_srgb": 150.0, "spacing": (0.5, 0.5, 2.0)},
        [{"sdims": (1.0, 4.0, 4.0), "compat": 3.0}, {"sdims": (3.0, 12.0, 12.0), "schan": (150.0,), "compat": 10.0}],
    ),
    # Deviations (x, y, z), one a channel, and full matrices.
    "colours": (
        VOLUME,
        3,
        {
            "gaussian_sxy": (2.0, 3.0, 1.5),
            "gaussian_compat": MATRIX,
            "bilateral_sxy": (8.0, 6.0, 4.0),
            "bilateral_srgb": (100.0, 200.0, 300.0),
            "bilateral_compat": MATRIX,
        },
        [
            {"sdims": (1.5, 3.0, 2.0), "compat": MATRIX},
            {"sdims": (4.0, 6.0, 8.0), "schan": (100.0, 200.0, 300.0), "compat": MATRIX},
        ],
    ),
    # Fewer kernels than two, and another normalisation.
    "one_kernel": (
        VOLUME,
        2,
        {"kernels": [{"compat": 4.0, "sxy": 5.0, "srgb": 200.0}], "normalization": "after"},
        [{"sdims": (5.0, 5.0, 5.0), "schan": (200.0, 200.0), "compat": 4.0}],
    ),
    # And more: positions, one channel beside positions, two others alone.
    "three_kernels": (
        VOLUME,
        3,
        {
            "kernels": [
                {"compat": 2.0, "sxy": 1.5},
                {"compat": (-3.0, -2.0, -4.0), "sxy": 5.0, "srgb": 150.0, "channels": (0,)},
                {"compat": 3.0, "srgb": (100.0, 250.0), "channels": (2, 1)},
            ]
        },
        [
            {"sdims": (1.5, 1.5, 1.5), "compat": 2.0},
            {"sdims": (5.0, 5.0, 5.0), "schan": (150.0,), "compat": (-3.0, -2.0, -4.0), "channels": (0,)},
            {"schan": (100.0, 250.0), "compat": 3.0, "channels": (2, 1)},
        ],
    ),
    "five_channels": (
        IMAGE,
        5,
        {"bilateral_sxy": 6.0, "bilateral_srgb": (150.0, 200.0, 250.0, 300.0, 350.0)},
        [
            {"sdims": (3.0, 3.0), "compat": 3.0},
            {"sdims": (6.0, 6.0), "schan": (150.0, 200.0, 250.0, 300.0, 350.0), "compat": 10.0},
        ],
    ),
    "signal": (
        SIGNAL,
        2,
        {"gaussian_sxy": 4.0, "bilateral_sxy": 10.0, "bilateral_srgb": 150.0},
        [{"sdims": (4.0,), "compat": 3.0}, {"sdims": (10.0,), "schan": (150.0, 150.0), "compat": 10.0}],
    ),
}


def example(size: tuple[int, ...], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (C, *size) in -1000..1000, three regions with noise, and unary energies (3, *size) that lean to them."""
    rng = np.random.default_rng(0)
    places = np.indices(size) - np.array(size).reshape(-1, *(1,) * len(size)) / 2
    labels = np.where(places[-1] > 1, 2, 0)
    labels[(places**2).sum(0) < 6] = 1
    levels = np.array([-600.0, 50.0, 700.0])[(labels + np.arange(channels).reshape(-1, *(1,) * len(size))) % 3]
    image = levels + rng.normal(0, 60, (channels, *size))
    unary = rng.normal(1, 0.8, (3, *size))
    np.put_along_axis(unary, labels[None], np.take_along_axis(unary, labels[None], 0) - 1, 0)
    return image.astype(np.float32), unary.astype(np.float32)


def asked(image: np.ndarray, unary: np.ndarray, kernels: list[dict[str, Any]], normalization: str) -> np.ndarray:
    """Q of pydensecrf after five steps; of images with x before y, as its DenseCRF2D has them."""
    import pydensecrf.densecrf as dcrf
    from pydensecrf.utils import create_pairwise_bilateral, create_pairwise_gaussian

    flat = image.ndim == 3
    if flat:
        image, unary = image.transpose(0, 2, 1), unary.transpose(0, 2, 1)
    size = unary.shape[1:]
    crf = dcrf.DenseCRF(int(np.prod(size)), len(unary))
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(len(unary), -1)))
    for kernel in kernels:
        read = image[list(kernel.get("channels", range(len(image))))].copy()
        if "schan" not in kernel:
            features = create_pairwise_gaussian(kernel["sdims"], size)
        elif "sdims" in kernel:
            features = create_pairwise_bilateral(kernel["sdims"], kernel["schan"], read, chdim=0)
        else:
            features = (read / np.reshape(kernel["schan"], (-1, *(1,) * len(size)))).reshape(len(read), -1)
        compat = kernel["compat"]
        compat = compat if isinstance(compat, float) else np.ascontiguousarray(compat, np.float32)
        features = np.ascontiguousarray(features, np.float32)
        crf.addPairwiseEnergy(features, compat, dcrf.DIAG_KERNEL, getattr(dcrf, normalization))
    q = np.array(crf.inference(5), np.float32).reshape(-1, *size)
    return q.transpose(0, 2, 1) if flat else q


if __name__ == "__main__":
    written = {}
    for name, (size, channels, arguments, kernels) in CASES.items():
        image, unary = example(size, channels)
        how = "NORMALIZE_AFTER" if arguments.get("normalization") == "after" else "NORMALIZE_SYMMETRIC"
        answer = asked(image, unary, kernels, how)
        written |= {f"{name}_image": image, f"{name}_unary": unary, f"{name}_q": answer}
    np.savez_compressed(STORED, **written)
