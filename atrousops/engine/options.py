"""Common code of the commands: types of numbers, options for recipes, messages."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from tqdm import tqdm

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def complain(text: str) -> None:
    """A line on stderr, above a progress bar."""
    tqdm.write(f"atrousops: {text}", file=sys.stderr)


def count(least: int) -> Callable[[str], int]:
    """An argparse type: an integer of at least `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number; got {text!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}; got {value}")
        return value

    return parse


def positive(text: str) -> float:
    """An argparse type: a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number; got {text!r}")
    return value


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments for a recipe and for replacing its entries."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the recipe, YAML, such as configs/voc_person.yaml")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds the options that replace entries of a recipe."""
    parser.add_argument("--data", metavar="DIR", help="folder of the data, instead of the recipe's")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="replace an entry of the recipe, or of each, such as schedule.steps=100; may be repeated",
    )
