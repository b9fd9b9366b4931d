"""`python -m atrousops.demo`: segments a photograph, prints which kernels ran, and compares them with PyTorch."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image, ImageDraw, ImageFont

import atrousops as ao
from atrousops.bench import registry
from atrousops.bench.measure import Options
from atrousops.bench.run import run
from atrousops.engine import pictures
from atrousops.engine.predict import labels, load_predictor
from atrousops.proof.run import ensure
from atrousops.surgery.explain import Explanation

# From the quick selection of `atrousops bench`: one row for each operator.
ROWS = (
    "deeplab/aspp OS16, rate 18, 2048->256, 33x33, batch 1/fp32/nchw/forward",
    "deeplab/aspp OS16, rate 18, 2048->256, 33x33, batch 1/fp32/nhwc/forward",
    "depthwise/Xception middle flow, 728, 33x33, rate 2, batch 1/fp32/nchw/training",
    "transposed/U-Net k2 s2, 256->256, 64x64, batch 1/fp32/nchw/forward",
    "transposed/bilinear, 21 groups, k16 s8, 64x64, batch 1/fp32/nchw/forward",
    "unpool/max_pool with indices, 4x64x256x256/fp32/nchw/forward",
    "unpool/max_unpool, 4x64x256x256/fp32/nchw/forward",
    "roi/box head 7x7, 512 boxes, 256x200x200/fp32/nchw/forward",
    "roi/box head 7x7, 512 boxes, 256x200x200/fp32/nchw/backward",
)
Color = tuple[int, int, int]


def main() -> None:
    """Segments scikit-image's astronaut, writes the pictures side by side, prints what ran and the table."""
    parser = argparse.ArgumentParser(prog="python -m atrousops.demo", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("out/demo.png"), metavar="FILE", help="the picture to write"
    )
    args = parser.parse_args()
    if torch.cuda.is_available():
        ensure(torch.device("cuda"))
    torch.manual_seed(0)
    segment(args.output)
    table()


def segment(output: Path) -> None:
    """Segments the photograph with and without the CRF, writes the comparison, prints which kernels ran."""
    photo = skimage.data.astronaut()
    predictor = load_predictor(crf=True, scales=(0.5, 0.75, 1.0, 1.25), flip=True)
    # A first call pays for one-time work: pages of memory, threads, oneDNN's choice of kernels.
    predictor.refine(photo, predictor.scores(photo))
    start = time.perf_counter()
    scores = predictor.scores(photo)
    middle = time.perf_counter()
    refined = predictor.refine(photo, scores)
    end = time.perf_counter()
    colors = pictures.class_colors(predictor.classes)
    panels = [("Photograph\nastronaut from scikit-image, 512 x 512", Image.fromarray(photo))]
    for title, seconds, result in (
        ("Network, four scales and mirrored", middle - start, scores),
        ("The same + dense CRF", end - start, refined),
    ):
        ids = labels(result)
        shares = ", ".join(f"{name} {np.mean(ids == i):.1%}" for i, name in enumerate(predictor.classes) if i)
        panels.append((f"{title}\n{seconds:.2f} s, {shares}", pictures.overlay_image(photo, ids, colors)))
        print(f"{title}: {seconds:.2f} s, {shares} of the picture")
    legend = [(tuple(color), name) for color, name in zip(colors.tolist(), predictor.classes) if any(color)]
    pictures.write_png(output, side_by_side(panels, legend))
    print(f"-> {output}\n\nWhat ran:\n{_interesting(ao.explain(predictor.model, predictor.normalise(photo)))}\n")


def _interesting(explanation: Explanation) -> str:
    """The first calls that run on our kernels, and the number of calls per kernel."""
    ours = [row for row in explanation.rows if row.kernel != "aten"]
    counts = Counter(row.kernel for row in explanation.rows).most_common()
    summary = ", ".join(f"{count} on {kernel}" for kernel, count in counts)
    shown = f"{Explanation(ours[:10])}\n" if ours else ""
    return f"{shown}Of all {len(explanation.rows)} calls of the network: {summary}."


def side_by_side(panels: Sequence[tuple[str, Image.Image]], legend: Sequence[tuple[Color, str]]) -> Image.Image:
    """Pictures of one size in a row, each under its caption (two lines), and below them the legend."""
    margin, line = 24, 30
    title, text = ImageFont.load_default(22), ImageFont.load_default(17)
    width, height = panels[0][1].size
    top = margin + 2 * line
    size = (margin + len(panels) * (width + margin), top + height + 2 * margin + line)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for index, (caption, image) in enumerate(panels):
        left = margin + index * (width + margin)
        for row, (words, font, color) in enumerate(zip(caption.split("\n"), (title, text), ("black", "dimgrey"))):
            draw.text((left, margin + row * line), words, fill=color, font=font)
        sheet.paste(image, (left, top))
    left, y = margin, top + height + margin
    for swatch, words in legend:
        draw.rectangle((left, y, left + 20, y + 20), fill=swatch)
        draw.text((left + 30, y), words, fill="black", font=text)
        left += 60 + round(draw.textlength(words, font=text))
    return sheet


def table() -> None:
    """Prints ours against PyTorch for a few rows of `atrousops bench`, each first checked in float64."""
    rows = [row for row in registry.Selection(quick=True).rows() if row.key in ROWS]
    run(rows, torch.device("cpu"), Options(budget=2.0))


if __name__ == "__main__":
    main()
