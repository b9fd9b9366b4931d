"""The command line: `atrousops segment | recipe | train | evaluate | export | study | bench | selfcheck | info`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from tqdm import tqdm

import atrousops as ao
from atrousops.common.checks import ArgumentTypeError
from atrousops.common.files import OutputError
from atrousops.dispatch import backends
from atrousops.engine import commands as engine
from atrousops.proof import command as selfcheck

if TYPE_CHECKING:
    from atrousops.engine.predict import Predictor
    from atrousops.engine.segment import Segmented

FAILURE, INTERRUPTED = 1, 130

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


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
        # The reader of our output has closed it, as `head` does: nothing more can be printed, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        _complain(_describe(error))
        return FAILURE


def _describe(error: Exception) -> str:
    """The error in one line. An unforeseen one names its type and the file of its traceback."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    if isinstance(error, (OSError, ValueError, ImportError, ArgumentTypeError)):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text} (--debug shows the traceback)"


def _complain(text: str) -> None:
    tqdm.write(f"atrousops: {text}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="atrousops",
        description="Dense prediction: segment photographs, train, evaluate and measure, see what this build can do.",
        epilog="Exit code: 0 done, 1 something failed, 2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"atrousops {ao.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--threads", type=_count(1), metavar="N", help="CPU threads (default: PyTorch's choice)")
    common.add_argument(
        "--backend", choices=backends.NAMES, help="run every operator on this backend (default: the best)"
    )
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    own = (_add_segment, engine.add_recipe, _add_train, _add_evaluate, engine.add_export, _add_study, _add_bench)
    for add in (*own, selfcheck.add, _add_info):
        add(commands, common)
    return parser


def _count(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number; got {text!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}; got {value}")
        return value

    return parse


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number; got {text!r}")
    return value


def _add_segment(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "segment",
        parents=[common],
        help="label every pixel of photographs",
        description=(
            "Labels every pixel of each photograph. Writes NAME_mask.png (a palette image whose pixel values are the "
            "class ids) and NAME_overlay.png (the photograph tinted by class) for each, and classes.csv (pixels and "
            "share of each class in each photograph) for the run. A file that cannot be read is reported and the "
            "others go on; the exit code is then 1."
        ),
    )
    parser.add_argument(
        "photos",
        nargs="+",
        metavar="PHOTO",
        help="an image file of any kind Pillow opens, or a folder: the images directly in it, not in its subfolders",
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("out"), metavar="DIR", help="folder (default: out)")
    _add_inference(parser)
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="weights that come with the package (default: those for people); or, with --weights, a checkpoint that "
        "others published, such as enet_camvid or fcn_resnet50_voc",
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="a network saved by `atrousops train`, or the file of --model"
    )
    parser.add_argument(
        "--size",
        type=_count(0),
        metavar="N",
        help="longest side at which the network sees a photo, pixels; larger ones are scaled down for it and their "
        "labels brought back to full size (default: what it was trained on); 0: every photo at its own size, in tiles",
    )
    parser.add_argument(
        "--tile", type=_count(32), default=1024, metavar="N", help="side of a tile, pixels (default: 1024)"
    )
    parser.add_argument("--overlap", type=_count(0), metavar="N", help="overlap of tiles, pixels (default: tile / 4)")
    parser.set_defaults(run=_segment)


def _segment(args: argparse.Namespace) -> int:
    from atrousops.engine import pictures
    from atrousops.engine.segment import Segmented, segment_files, write_classes

    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"output folder {args.output}: {error.strerror or error}") from error
    files, useless = pictures.picture_files(args.photos, skip=args.output)
    for problem in useless:
        _complain(str(problem))
    done: list[Segmented] = []
    if files:
        predictor = _predictor(args)
        list_of_classes = args.output / "classes.csv"
        # An empty list now, so that a folder that cannot be written is known before the first picture is computed.
        write_classes(list_of_classes, predictor.classes, done)
        try:
            with tqdm(total=len(files), unit="photo", disable=None if len(files) > 1 else True) as bar:
                for item in segment_files(predictor, files, args.output):
                    if isinstance(item, Segmented):
                        done.append(item)
                        tqdm.write(_line(item, predictor.classes), file=sys.stdout)
                    else:
                        _complain(item.reason)
                    bar.update()
        finally:
            write_classes(list_of_classes, predictor.classes, done)
    failed = len(useless) + len(files) - len(done)
    if failed:
        _complain(f"{len(done)} segmented, {failed} failed")
    return FAILURE if failed else 0


def _line(item: Segmented, classes: Sequence[str]) -> str:
    total = sum(item.pixels)
    found = ", ".join(f"{name} {pixels / total:.1%}" for name, pixels in zip(classes, item.pixels) if pixels)
    return f"{item.picture} -> {item.mask}, {item.overlay.name}: {found} ({item.seconds:.2f} s)"


def _predictor(args: argparse.Namespace) -> Predictor:
    from atrousops.engine import predict

    overlap = args.tile // 4 if args.overlap is None else args.overlap
    options = {"size": args.size or None} if args.size is not None else {}
    options |= {"published": args.model} if args.model and args.weights else {}
    name = args.weights or args.model or predict.DEFAULT_MODEL
    return predict.load_predictor(
        name,
        tile=args.tile,
        overlap=overlap,
        crf=args.crf,
        scales=args.scales or (1.0,),
        flip=args.flip,
        **options,
    )


def _add_inference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--crf", action="store_true", help="refine the contours with the dense CRF")
    parser.add_argument(
        "--scales",
        nargs="+",
        type=_positive,
        metavar="R",
        help="average the scores over these sizes of a photo, such as 0.75 1 1.25 (default: 1, or the recipe's)",
    )
    parser.add_argument("--flip", action="store_true", help="average the scores with those of the mirror image")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the recipe, YAML, such as configs/voc_person.yaml")
    _add_overrides(parser)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="folder of the data, instead of the recipe's")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="replace an entry of the recipe, or of each, such as schedule.steps=100; may be repeated",
    )


def _add_train(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "train",
        parents=[common],
        help="train a network by a recipe",
        description="Trains a network by a recipe. Ctrl-C stops after the step in hand; --resume goes on from there.",
    )
    _add_recipe(parser)
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for log, checkpoint and weights (default: runs/RECIPE)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    from atrousops.engine import train

    written = train.main(
        args.config, output=args.output, data_root=args.data, resume=args.resume, overrides=args.overrides
    )
    print(f"-> {written}")
    return 0


def _add_evaluate(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "evaluate",
        parents=[common],
        help="score trained weights",
        description="Scores trained weights on the validation images of a recipe: IoU of each class, and their mean.",
    )
    _add_recipe(parser)
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="trained weights (.safetensors) or a shipped name"
    )
    _add_inference(parser)
    parser.add_argument(
        "--model", metavar="NAME", help="the weights are the file of this checkpoint that others published"
    )
    parser.add_argument("--split", metavar="NAME", help="score these images, such as test (default: the recipe's val)")
    parser.add_argument("--ap", action="store_true", help="score the masks of objects by COCO's AP too")
    parser.add_argument(
        "--trimap",
        nargs="+",
        type=_count(1),
        default=(),
        metavar="W",
        help="score bands of these widths along borders too, pixels",
    )
    parser.add_argument(
        "--tune-crf", type=_count(1), metavar="N",
        help="first search the CRF's settings on N images that are not scored, and score with those",
    )  # fmt: skip
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from atrousops.engine import evaluate, tune_crf
    from atrousops.nn import DenseCRF

    common = {"data_root": args.data, "overrides": tuple(args.overrides), "published": args.model}
    crf = args.crf
    if args.tune_crf:
        tuned = tune_crf.main(args.config, args.weights, images=args.tune_crf, judged=args.split, **common)
        print(tuned)
        crf = DenseCRF(**tuned.settings)
    options = {"scales": args.scales, "flip": args.flip, "split": args.split, "crf": crf, "ap": args.ap}
    scores = evaluate.main(args.config, args.weights, widths=tuple(args.trimap), **options, **common)
    print(evaluate.report(scores))
    return 0


def _add_study(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "study",
        parents=[common],
        help="train and score many recipes, and write one table",
        description="Trains and scores recipes one after another, and writes the table of all runs after each. What is "
        "done is not done again; what was stopped goes on.",
    )
    parser.add_argument(
        "configs", nargs="+", metavar="CONFIG", help="recipes, or folders of them, such as atrousops/configs/camvid"
    )
    parser.add_argument("--runs", default="runs", metavar="DIR", help="folder for the runs (default: runs)")
    parser.add_argument(
        "--table", default="docs/results.md", metavar="FILE", help="the table (default: docs/results.md)"
    )
    _add_overrides(parser)
    parser.add_argument("--pages", metavar="DIR", help="also write a page for each network, such as to docs/networks")
    parser.add_argument("--speed", nargs="+", default=[], metavar="FILE", help="of `bench --suite networks`, for pages")
    parser.add_argument("--photo", metavar="FILE", help="a photograph to segment for the pages, instead of the data's")
    parser.add_argument("--credit", default="", metavar="TEXT", help="whose it is, Markdown")
    parser.set_defaults(run=_study)


def _study(args: argparse.Namespace) -> int:
    from atrousops.engine import study

    failed = study.main(
        args.configs,
        runs=args.runs,
        table=args.table,
        data_root=args.data,
        overrides=args.overrides,
        say=lambda text: tqdm.write(text, file=sys.stderr),
    )
    print(f"-> {args.table}")
    if args.pages:
        from atrousops.bench import pages
        from atrousops.bench.results import Report

        speed = [Report.load(Path(file)) for file in args.speed]
        photo = pages.Photo(Path(args.photo), args.credit) if args.photo else None
        written = pages.write(args.runs, args.pages, speed, photo, args.table)
        print(f"-> {args.pages}: {len(written)} pages")
    return FAILURE if failed else 0


def _add_bench(commands: Commands, common: argparse.ArgumentParser) -> None:
    from atrousops.bench import command

    parser = commands.add_parser(
        "bench",
        parents=[common],
        help="measure this package against what it replaces",
        description=command.DESCRIPTION,
        epilog=command.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser, _count)
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
