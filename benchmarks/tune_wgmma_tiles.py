"""Measures the tiles of the wgmma convolution on an H100 or H200, and writes their shares of speed.

python benchmarks/tune_wgmma_tiles.py [BUILD], a CMake build folder with the CUDA library (build/cuda). For each
tile alone it writes csrc/core/wgmma_tiles.inc, builds, and times three layers in a process of its own; then the shares.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "csrc" / "core" / "wgmma_tiles.inc"
# n, c, k, size, dilation: nearly all taps live and many tiles, so that the tile is all that counts.
LAYERS = ((16, 512, 512, 65, 2), (16, 2048, 256, 65, 2), (32, 256, 256, 65, 1))


def read(text: str) -> tuple[str, list[tuple[int, int, float]]]:
    """The comment above the table, and its rows."""
    rows = [(int(r), int(c), float(s)) for r, c, s in re.findall(r"^\{(\d+), (\d+), ([\d.]+)\},$", text, re.M)]
    return "".join(line + "\n" for line in text.splitlines() if line.startswith("//")), rows


def write(comment: str, rows: list[tuple[int, int, float]]) -> str:
    """The file that `read` takes apart."""
    return comment + "".join(f"{{{r}, {c}, {s}}},\n" for r, c, s in rows)


def times() -> list[float]:
    """Seconds of each layer, the median of 30."""
    import torch

    import atrousops as ao
    import atrousops.functional as A

    found = []
    with torch.device("cuda"), ao.backend("cuda"):
        for n, c, k, size, d in LAYERS:
            x = torch.randn(n, size, size, c).bfloat16().movedim(-1, 1)
            w = torch.randn(k, 3, 3, c).bfloat16().movedim(-1, 1)
            each = []
            for i in range(40):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                A.conv2d(x, w, None, 1, d, d)
                end.record()
                end.synchronize()
                if i >= 10:
                    each.append(begin.elapsed_time(end) * 1e-3)
            found.append(median(each))
    return found


def main(build: str = "build/cuda") -> None:
    """All tiles, and the table."""
    before = TABLE.read_text()
    comment, rows = read(before)
    measured = []
    try:
        for tile in rows:
            TABLE.write_text(write(comment, [(r, c, float((r, c) == tile[:2])) for r, c, _ in rows]))
            subprocess.run(["cmake", "--build", ROOT / build, "--target", "atrousops_cuda"], check=True)
            code = "import json, tune_wgmma_tiles as t; print(json.dumps(t.times()))"
            folder = Path(__file__).parent
            out = subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True)
            measured.append(json.loads(out.stdout.splitlines()[-1]))
            print(tile[:2], measured[-1])
    except BaseException:
        TABLE.write_text(before)
        raise
    best = [min(layer) for layer in zip(*measured)]
    shares = [median(b / t for b, t in zip(best, own)) for own in measured]
    comment = "".join(line for line in comment.splitlines(True) if "guesses" not in line) + "// Measured.\n"
    TABLE.write_text(write(comment, [(r, c, round(s, 3)) for (r, c, _), s in zip(rows, shares)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
