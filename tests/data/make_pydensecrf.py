"""Makes pydensecrf.npz beside it: what pydensecrf 1.1 answers on a small synthetic image.

Needs: pip install "cython==0.29.37" "setuptools<81" wheel numpy; pip install --no-build-isolation --no-deps pydensecrf2
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pydensecrf_cases import CASES, live_q

# A multiple of four pixels: pydensecrf pads to four with pixels of feature zero, which add vertices of their own.
H, W, LABELS = 24, 32, 3


def example() -> tuple[np.ndarray, np.ndarray]:
    """Two bright shapes on a gradient, with noise, and noisy unaries that lean to them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:H, :W]
    labels = np.zeros((H, W), int)
    labels[(y - 9) ** 2 + (x - 10) ** 2 < 36] = 1
    labels[12:22, 18:29] = 2
    colours = np.array([[60, 90, 120], [200, 60, 50], [70, 180, 90]])
    image = colours[labels] + (2 * x + y)[..., None] + rng.normal(0, 6, (H, W, 3))
    unary = rng.normal(1, 0.8, (LABELS, H, W))
    unary[labels, y, x] -= 1
    return image.clip(0, 255).astype(np.uint8), unary.astype(np.float32)


if __name__ == "__main__":
    image, unary = example()
    answers = {name: live_q(image, unary, **case) for name, case in CASES.items()}
    np.savez_compressed(Path(__file__).with_name("pydensecrf.npz"), image=image, unary=unary, **answers)
