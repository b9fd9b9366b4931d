"""The command line: `atrousops segment | recipe | train | evaluate | export | study | bench | selfcheck | info`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

import atrousops as ao
from atrousops.common.checks import ArgumentTypeError
from atrousops.dispatch import backends
from atrousops.engine import commands as engine
from atrousops.engine import prediction
from atrousops.engine.options import Commands, add_config, add_overrides, complain, count
from atrousops.proof import command as selfcheck

FAILURE, INTERRUPTED = 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 1 something failed, 2 wrong usage, 130 interrupted."""
    args = _parser().parse_args(argv)
    try:
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        with ao.backend(args.backend) if args.backend else contextlib.nullcontext():
            code = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of our output, such as `head`, has closed it: nothing more can be printed, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        complain(_describe(error))
        return FAILURE


def _describe(error: Exception) -> str:
    """The error in one line; for an unexpected error also its type and the file of its traceback."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    if isinstance(error, (OSError, ValueError, ImportError, ArgumentTypeError)):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text} (--debug shows the traceback)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="atrousops",
        description="Dense prediction: segment images, train, evaluate, benchmark, and show what this build can do.",
        epilog="Exit code: 0 done, 1 something failed, 2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"atrousops {ao.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--threads", type=count(1), metavar="N", help="CPU threads (default: PyTorch's choice)")
    common.add_argument(
        "--backend", choices=backends.NAMES, help="run every operator on this backend (default: the best)"
    )
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    own = (prediction.add_segment, engine.add_recipe, _add_train, prediction.add_evaluate)
    for add in (*own, engine.add_export, _add_study, _add_bench, selfcheck.add, _add_info):
        add(commands, common)
    return parser


def _add_train(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "train",
        parents=[common],
        help="train a network by a recipe",
        description="Trains a network by a recipe. Ctrl-C stops after the current step; --resume continues from there.",
    )
    add_config(parser)
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for log, checkpoint and weights (default: runs/RECIPE)"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in the output folder")
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    from atrousops.engine import train

    written = train.main(
        args.config, output=args.output, data_root=args.data, resume=args.resume, overrides=args.overrides
    )
    print(f"-> {written}")
    return 0


def _add_study(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "study",
        parents=[common],
        help="train and score many recipes, and write one table",
        description="Trains and scores recipes one after another, and writes the table of all runs after each. "
        "Finished recipes are skipped; interrupted ones are resumed.",
    )
    parser.add_argument(
        "configs", nargs="+", metavar="CONFIG", help="recipes, or folders of them, such as atrousops/configs/camvid"
    )
    parser.add_argument("--runs", default="runs", metavar="DIR", help="folder for the runs (default: runs)")
    parser.add_argument(
        "--table", default="docs/results.md", metavar="FILE", help="the table (default: docs/results.md)"
    )
    add_overrides(parser)
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="run each recipe with each seed; rows show mean and deviation",
    )
    parser.add_argument("--pages", metavar="DIR", help="also write a page for each network, such as to docs/networks")
    parser.add_argument("--speed", nargs="+", default=[], metavar="FILE", help="of `bench --suite networks`, for pages")
    parser.set_defaults(run=_study)


def _study(args: argparse.Namespace) -> int:
    from atrousops.engine import study

    speed = []
    if args.pages:
        from atrousops.bench.results import Report

        speed = [Report.load(Path(file)) for file in args.speed]
    failed = study.main(
        args.configs,
        runs=args.runs,
        table=args.table,
        data_root=args.data,
        overrides=args.overrides,
        seeds=args.seeds,
        say=lambda text: tqdm.write(text, file=sys.stderr),
    )
    print(f"-> {args.table}")
    if args.pages:
        from atrousops.bench import pages

        written = pages.write(args.runs, args.pages, speed, args.table)
        print(f"-> {args.pages}: {len(written)} pages")
    return FAILURE if failed else 0


def _add_bench(commands: Commands, common: argparse.ArgumentParser) -> None:
    from atrousops.bench import command

    parser = commands.add_parser(
        "bench",
        parents=[common],
        help="compare this package with the operators that it replaces",
        description=command.DESCRIPTION,
        epilog=command.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser, count)
    parser.set_defaults(run=command.main)


def _add_info(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "info",
        parents=[common],
        help="what this build can do, what is missing, and why",
        description="Prints versions, libraries, instruction sets and backends.",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=_info)


def _info(args: argparse.Namespace) -> int:
    facts = ao.info()
    print(json.dumps(facts, indent=2) if args.json else facts)
    return 0
