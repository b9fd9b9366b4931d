"""The peak memory of `atrousops segment` on a large TIFF: benchmarks/large_picture.py [SIDE | WIDTHxHEIGHT] [FOLDER]

The picture is SIDE x SIDE pixels (20000 by default), or WIDTH x HEIGHT, RGB in compressed tiles; the network is the
smallest there is, MS-D of two layers.
The command runs in a process of its own, whose largest resident set is printed.
"""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image

from atrousops import models

TILE = 512


def write(path: Path, width: int, height: int) -> None:
    """Smooth noise, one tile of it again and again."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    tile = np.asarray(Image.fromarray(noise).resize((TILE, TILE), Image.Resampling.BICUBIC))
    count = -(-width // TILE) * -(-height // TILE)
    stored = {"tile": (TILE, TILE), "photometric": "rgb", "compression": "zlib", "compressionargs": {"level": 1}}
    tifffile.imwrite(path, (tile for _ in range(count)), shape=(height, width, 3), dtype=np.uint8, **stored)


def main() -> None:
    sides = [int(side) for side in (sys.argv[1] if len(sys.argv) > 1 else "20000").split("x")]
    width, height = sides[0], sides[-1]
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else "out/large")
    folder.mkdir(parents=True, exist_ok=True)
    picture, weights = folder / "large.tif", folder / "tiny.safetensors"
    write(picture, width, height)
    torch.manual_seed(0)
    arguments = {"num_classes": 2, "depth": 2}
    info = models.Info("msd", arguments, ("background", "cell"), (0.5,) * 3, (0.2,) * 3, 64)
    models.save(models.build("msd", **arguments), weights, info)
    options = ["--weights", weights, "--size", "0", "--overlap", "auto", "--stream-above", "1", "--device", "cpu"]
    command = [sys.executable, "-m", "atrousops", "segment", picture, *options, "--threads", "1", "-o", folder]
    subprocess.run([str(part) for part in command], check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    print(f"{width} x {height}: {used.ru_maxrss / 2**20:.2f} GiB at most, {seconds:.0f} s of one CPU")


if __name__ == "__main__":
    main()
