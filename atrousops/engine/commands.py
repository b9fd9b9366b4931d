"""`atrousops recipe` and `atrousops export`: their options, and what they print."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from atrousops.engine.options import Commands

_RECIPE = """\
Finds images and their masks in a folder, measures them, and prints a recipe for
`atrousops train`. Findings and guesses are reported on stderr and in comments
of the recipe.
"""
_EXPORT = """\
Writes a trained network as a file that other programs run, for batches and
images of any size: an ONNX file (.onnx), or a program that torch.export.load
reads where atrousops is not installed (.pt2).

The input is "image" (N, C, H, W), normalised as the file's metadata says; the
output "scores" (N, classes, H, W). --check runs the file by onnxruntime, or by
PyTorch, and compares its scores with the network's.
"""
# Batch, and what is added to 96 x 96: an even, an odd and a smaller size.
_CHECKED = ((1, 0, 0), (2, 33, -15), (3, -31, 7))


def add_recipe(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Adds `atrousops recipe`."""
    parser = _parser(commands, common, "recipe", "write a recipe for your own images", _RECIPE)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder or zip archive of the images and masks")
    parser.add_argument("--model", required=True, metavar="NAME", help="network, such as deeplabv3plus_resnet50")
    pattern = "folder or pattern in DIR, such as '{split}/photos/*.jpg' (default: the usual names are tried)"
    parser.add_argument("--images", metavar="PATTERN", help=f"the images: {pattern}")
    parser.add_argument("--masks", metavar="PATTERN", help="the masks, likewise")
    parser.set_defaults(run=_recipe)


def add_export(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Adds `atrousops export`."""
    parser = _parser(commands, common, "export", "write a network as an ONNX file or a PyTorch program", _EXPORT)
    parser.add_argument(
        "network",
        metavar="NAME|FILE",
        help="weights that come with the package, such as unet_nuclei, or a file that `atrousops train` wrote",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="FILE.onnx or FILE.pt2")
    parser.add_argument("--check", action="store_true", help="run the file, and fail if its scores differ")
    parser.set_defaults(run=_export)


def _parser(
    commands: Commands, common: argparse.ArgumentParser, name: str, short: str, description: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        parents=[common],
        help=short,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


# Imported when the command runs, so that other commands do not wait for it.
def _recipe(args: argparse.Namespace) -> int:
    from atrousops.engine import recipe

    told = sys.stderr

    def say(text: str) -> None:
        print(f"recipe: {text}", file=told)

    sys.stdout.write(recipe.main(args.data, args.model, images=args.images, masks=args.masks, say=say))
    return 0


def _export(args: argparse.Namespace) -> int:
    from atrousops import models
    from atrousops.engine import export

    network = models.load(args.network)
    info: Any = network.info
    channels = len(info.mean)
    export.export(network, args.output, channels=channels, info=info)
    mebibytes = args.output.stat().st_size / 2**20
    print(f"{args.output}: {info.network}, {len(info.classes)} classes, {mebibytes:.1f} MiB")
    if not args.check:
        return 0
    shapes = [(batch, channels, 96 + h, 96 + w) for batch, h, w in _CHECKED]
    found = export.differences(network, args.output, shapes)
    for each in found:
        print(f"{each.shape}: differs by {each.largest:.1e} of the largest score")
    if all(each.largest <= export.TOLERANCE for each in found):
        return 0
    print(f"more than {export.TOLERANCE:.0e}: the file must not be used")
    return 1
