"""The options of `atrousops bench`, and what it does with them."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable
from pathlib import Path

DESCRIPTION = """\
Measures this package against PyTorch, torchvision and others on this machine.

Each row is first checked against PyTorch in float64: a wrong result is printed
as WRONG and has no ratio. Ours and the incumbents then run in turn. The file of
results is whole after every row: Ctrl-C loses nothing. The exit code is 1 if a
result was wrong or a row failed.
"""
EPILOG = """examples:
  atrousops bench --quick                                   a few minutes on a CPU, every suite
  atrousops bench --list --suite roi                        the rows of a suite, and why they are there
  atrousops bench --match 'aspp OS8.*nhwc' --dtype bf16     some of them
  atrousops bench --compare old.json new.json               what changed

Where a column "x" is below 1 this package is slower than what it replaces;
such rows are printed like the others.
"""


def add_arguments(parser: argparse.ArgumentParser, count: Callable[[int], Callable[[str], int]]) -> None:
    """Adds the options; `count(least)` parses a whole number."""
    rows = parser.add_argument_group("rows")
    rows.add_argument("--quick", action="store_true", help="a selection of every suite, at most five minutes")
    rows.add_argument(
        "--suite", action="append", default=[], metavar="NAME",
        help="deeplab, aspp, depthwise, transposed, unpool, roi, crf, networks, overhead or scaling; may be repeated",
    )  # fmt: skip
    rows.add_argument("--match", default="", metavar="REGEX", help="rows whose name, as in --list, has it somewhere")
    rows.add_argument(
        "--dtype", action="append", default=[], metavar="NAME", help="fp32, tf32 (on a GPU) or bf16; may be repeated"
    )
    rows.add_argument("--layout", action="append", default=[], metavar="NAME", help="nchw or nhwc (channels_last)")
    rows.add_argument(
        "--pass", action="append", default=[], dest="directions", metavar="NAME",
        help="forward, input_grad, weight_grad, backward (both), or training (forward and backward)",
    )  # fmt: skip
    how = parser.add_argument_group("measurement")
    how.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    how.add_argument("--repeats", type=count(1), metavar="N", help="rounds a row, at most (default: 200)")
    how.add_argument(
        "--budget", type=_seconds, metavar="SECONDS",
        help="after which no further round of a row begins; there are three at least (default: 3; quick: 1)",
    )  # fmt: skip
    how.add_argument("--compile", action="store_true", help="also against torch.compile of PyTorch's way")
    how.add_argument(
        "--autotune", action="store_true",
        help="measure the choice between PyTorch's kernel and ours first, and keep it for later processes",
    )  # fmt: skip
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o", "--output", type=Path, default=Path("out/bench"), metavar="DIR",
        help="results go to DIR/MACHINE/NAME.json and plots beside it (default: out/bench)",
    )  # fmt: skip
    output.add_argument("--name", metavar="NAME", help="name of the files (default: date and time)")
    instead = parser.add_argument_group("instead of measuring").add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="print the rows selected, and the reason for each")
    instead.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"), help="compare two files of results")
    instead.add_argument("--plot", type=Path, metavar="FILE", help="draw the plots of a file of results beside it")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds, 0 or more; got {text!r}")
    return value


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    from atrousops.bench import plots, report
    from atrousops.bench.registry import Selection
    from atrousops.bench.results import Report

    if args.compare:
        print(report.changes(*map(Report.load, args.compare)))
        return 0
    if args.plot:
        for path in plots.draw(Report.load(args.plot), args.plot.with_suffix("")):
            print(f"-> {path}")
        return 0
    selection = Selection(
        tuple(args.suite), args.match, tuple(args.dtype), tuple(args.layout), tuple(args.directions), args.quick
    )
    rows = selection.rows()
    if args.list:
        for row in rows:
            print(f"{row.key}{' (quick)' if row.quick else ''}: {row.reason}")
        return 0
    return _measure(rows, args)


def _measure(rows: list, args: argparse.Namespace) -> int:
    import torch

    from atrousops.bench import machine, plots, run
    from atrousops.bench.measure import Options
    from atrousops.common.checks import ArgumentError, bad_value
    from atrousops.proof.run import ensure

    if args.device == "cuda" and not torch.cuda.is_available():
        bad_value("bench", "device", "be there", "cuda, but PyTorch sees no GPU", "Use --device cpu.")
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    run.check_hardware(device)
    ensure(device)
    name = args.name or datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S")
    path = args.output / machine.device_name(device) / f"{name}.json"
    options = Options(
        repeats=args.repeats or Options.repeats,
        budget=args.budget if args.budget is not None else (1.0 if args.quick else Options.budget),
        compile=args.compile,
        files=not args.quick,
        autotune=args.autotune,
    )
    seconds = run.QUICK_SECONDS if args.quick else float("inf")
    result = run.run(rows, device, options, path=path, seconds=seconds)
    written = [path]
    try:
        written += plots.draw(result, path.with_suffix(""))
    except ArgumentError as error:
        print(error)
    print("\n".join(f"-> {file}" for file in written))
    return int(any(row.is_wrong or row.error for row in result.results))
