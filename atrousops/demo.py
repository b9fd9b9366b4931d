"""`python -m atrousops.demo`: a photograph segmented with the shipped weights, what ran, and ours against PyTorch."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import atrousops as ao
from atrousops import functional
from atrousops.engine import pictures
from atrousops.engine.predict import labels, load_predictor
from atrousops.explain import Explanation
from atrousops.testing import HEADER, Outputs, compare

# The same names as atrousops.functional, so that each case is written once and run on both.
PYTORCH = SimpleNamespace(
    conv2d=F.conv2d,
    conv_transpose2d=F.conv_transpose2d,
    max_pool2d=F.max_pool2d,
    max_unpool2d=F.max_unpool2d,
    roi_align=torchvision.ops.roi_align,
)
Color = tuple[int, int, int]
Case = tuple[str, Callable[..., Outputs], Sequence[Tensor]]


def main() -> None:
    """Segments scikit-image's astronaut, writes the pictures side by side, prints what ran and the table."""
    parser = argparse.ArgumentParser(prog="python -m atrousops.demo", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("out/demo.png"), metavar="FILE", help="the picture to write"
    )
    args = parser.parse_args()
    torch.manual_seed(0)
    segment(args.output)
    table()


def segment(output: Path) -> None:
    """Segments the photograph with and without the CRF, writes the comparison, prints what ran."""
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
    """The first calls that our kernels run, and how many calls run on which kernel."""
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
    """Prints a row for each case: ours against PyTorch, each first held to PyTorch's result in fp64."""
    print(f"Ours against PyTorch {torch.__version__} on this machine, {torch.get_num_threads()} threads, float32.")
    print("Ours is first held to PyTorch's result in float64, then the two run in turn. Above 1x ours is the faster.\n")
    print(HEADER)
    for name, case, inputs in cases():
        double = [value.double() if value.is_floating_point() else value for value in inputs]
        ours, theirs = partial(case, functional, *inputs), partial(case, PYTORCH, *inputs)
        print(compare(name, ours, theirs, partial(case, PYTORCH, *double), budget=2).row(), flush=True)


def cases() -> Iterator[Case]:
    """Name, a function of a namespace of operators and some tensors, and those tensors."""
    x, w = torch.randn(1, 2048, 33, 33), torch.randn(256, 2048, 3, 3) / 136
    aspp = _call("conv2d", padding=18, dilation=18)
    yield "ASPP branch 2048->256, 33x33, rate 18", aspp, (x, w)
    last = [value.to(memory_format=torch.channels_last) for value in (x, w)]
    yield "  the same in channels_last", aspp, last

    x, w = torch.randn(1, 728, 33, 33), torch.randn(728, 1, 3, 3) / 3
    depthwise = _call("conv2d", padding=2, dilation=2, groups=728)
    yield "depthwise 728, 33x33, rate 2, with gradients", _with_gradients(depthwise), (x, w, torch.randn_like(x))

    x, w = torch.randn(1, 256, 64, 64), torch.randn(256, 256, 2, 2) / 16
    yield "transposed 256->256, k2 s2, 64x64", _call("conv_transpose2d", stride=2), (x, w)

    x, w = torch.randn(1, 21, 64, 64), torch.rand(21, 1, 16, 16)
    yield "transposed 21 groups, k16 s8, 64x64", _call("conv_transpose2d", stride=8, padding=4, groups=21), (x, w)

    x = torch.randn(4, 64, 256, 256)
    yield "max_pool with indices, 4x64x256x256", _call("max_pool2d", kernel_size=2, stride=2, return_indices=True), (x,)
    pooled = F.max_pool2d(x, 2, 2, return_indices=True)
    yield "max_unpool to 4x64x256x256", _call("max_unpool2d", kernel_size=2, stride=2), pooled

    x, corner = torch.randn(1, 256, 200, 200), torch.rand(512, 2) * 600
    boxes = torch.cat([torch.zeros(512, 1), corner, corner + 20 + torch.rand(512, 2) * 180], dim=1)
    roi_align = _call("roi_align", output_size=7, spatial_scale=0.25, sampling_ratio=2, aligned=True)
    yield "roi_align 512 boxes, 256x200x200, 7x7", roi_align, (x, boxes)
    yield "  its backward", _Backward(roi_align), (x, boxes, torch.randn(512, 256, 7, 7))


def _call(name: str, **options: Any) -> Callable[..., Outputs]:
    return lambda operators, *inputs: getattr(operators, name)(*inputs, **options)


def _with_gradients(function: Callable[..., Any]) -> Callable[..., Outputs]:
    """(operators, x, w, dy) -> (y, dx, dw)."""

    def run(operators: Any, x: Tensor, w: Tensor, grad: Tensor) -> Outputs:
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        y = function(operators, x, w)
        return (y.detach(), *torch.autograd.grad(y, (x, w), grad))

    return run


class _Backward:
    """(operators, x, boxes, dy) -> dx, the forward pass of each operator run once and kept."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.kept: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, operators: Any, x: Tensor, boxes: Tensor, grad: Tensor) -> Outputs:
        key = (id(operators), x.dtype)
        if key not in self.kept:
            leaf = x.detach().requires_grad_()
            self.kept[key] = (leaf, self.function(operators, leaf, boxes))
        leaf, y = self.kept[key]
        return torch.autograd.grad(y, leaf, grad, retain_graph=True)[0]


if __name__ == "__main__":
    main()
