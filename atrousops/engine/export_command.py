"""`atrousops export`: its options, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from atrousops import models
from atrousops.engine import export

DESCRIPTION = """\
Writes a trained network as a file that other programs run, for batches and
images of any size: an ONNX file (.onnx), or a program that torch.export.load
reads where atrousops is not installed (.pt2).

The input is "image" (N, C, H, W), normalised as the file's metadata says; the
output "scores" (N, classes, H, W). --check runs the file by onnxruntime, or by
PyTorch, and holds its scores to the network's.
"""
# Beside the traced size: one image, an odd size, and a side below many networks' strides.
_CHECKED = ((0, 0), (33, -15), (-31, 7))


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "export",
        parents=[common],
        help="write a network as an ONNX file or a PyTorch program",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "network",
        metavar="NAME|FILE",
        help=f"weights that come with the package ({', '.join(models.list())}), or a file that `atrousops train` wrote",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="FILE.onnx or FILE.pt2")
    parser.add_argument("--check", action="store_true", help="run the file, and fail if its scores are others")
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    network = models.load(args.network)
    info = network.info
    channels = len(info.mean)
    export.export(network, args.output, channels=channels, info=info)
    mebibytes = args.output.stat().st_size / 2**20
    print(f"{args.output}: {info.network}, {len(info.classes)} classes, {mebibytes:.1f} MiB")
    if not args.check:
        return 0
    shapes = [(batch, channels, 96 + h, 96 + w) for batch, (h, w) in enumerate(_CHECKED, 1)]
    found = export.differences(network, args.output, shapes)
    for each in found:
        print(f"{each.shape}: differs by {each.largest:.1e} of the largest score")
    if all(each.largest <= export.TOLERANCE for each in found):
        return 0
    print(f"more than {export.TOLERANCE:.0e}: the file must not be used")
    return 1
