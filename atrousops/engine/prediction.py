"""`atrousops segment` and `atrousops evaluate`: their options and output."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from atrousops.common.checks import bad_choice, bad_value
from atrousops.common.files import OutputError, alone
from atrousops.engine.options import Commands, add_config, complain, count, positive

if TYPE_CHECKING:
    from atrousops.engine.distributed import Processes
    from atrousops.engine.predict import Predictor
    from atrousops.engine.segment import Failed, Job, Segmented, Segmenter

_SEGMENT = """\
Labels every pixel of each photograph. Writes NAME_mask.png (a palette image
whose pixel values are the class ids) and NAME_overlay.png (the photograph
tinted by class) for each, and classes.csv (pixels and share of each class in
each photograph) for the run. A file that cannot be read is reported and the
others go on; the exit code is then 1.

Under torchrun each process does its share of the files.
"""


def add_segment(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Adds `atrousops segment`."""
    parser = commands.add_parser(
        "segment",
        parents=[common],
        help="label every pixel of photographs",
        description=_SEGMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "photos",
        nargs="+",
        metavar="PHOTO",
        help="an image file of any kind Pillow opens, or a folder: the images directly in it, not in its subfolders; "
        "or the URL of one, such as s3://bucket/photos, by fsspec",
    )
    parser.add_argument("-o", "--output", default="out", metavar="DIR", help="folder or URL (default: out)")
    parser.add_argument("--resume", action="store_true", help="skip images already done by this network and options")
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
        "--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--optimize",
        action="store_true",
        help="make a faster copy of the network first (atrousops.optimize): for many photos; scores are the same to "
        "within rounding",
    )
    parser.add_argument(
        "--batch", type=count(1), default=1, metavar="N", help="number of photos of one size that are labelled together"
    )
    parser.add_argument(
        "--readers", type=count(1), default=2, metavar="N", help="threads that read photos in advance (default: 2)"
    )
    _add_sizes(parser)
    _add_ray(parser)
    parser.set_defaults(run=_segment)


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size",
        type=count(0),
        metavar="N",
        help="longest side of the network's input, pixels; larger photos are scaled down for it and their "
        "labels scaled back to full size (default: that of training); 0: every photo at its own size, in tiles",
    )
    parser.add_argument(
        "--tile", type=count(32), default=1024, metavar="N", help="side of a tile, pixels (default: 1024)"
    )
    parser.add_argument(
        "--overlap",
        type=_overlap,
        metavar="N",
        help="overlap of tiles, pixels (default: tile / 4); auto: so that tiles give the labels of the whole photo",
    )
    parser.add_argument(
        "--page", type=count(1), default=1, metavar="N", help="which page or frame of files with several (default: 1)"
    )
    parser.add_argument(
        "--largest",
        type=positive,
        metavar="MEGAPIXELS",
        help="largest file to read, for files that are trusted and fit the memory (default: 179)",
    )
    parser.add_argument(
        "--stream-above",
        type=positive,
        metavar="MEGAPIXELS",
        help="label larger photos one row of tiles at a time, and write TIFF (default: 179)",
    )


def _overlap(text: str) -> int | str:
    return text if text == "auto" else count(0)(text)


def _segment(args: argparse.Namespace) -> int:
    from atrousops.common.places import place
    from atrousops.engine import pictures
    from atrousops.engine.distributed import LONGEST_WAIT, join
    from atrousops.engine.segment import plan, results_of

    args.output = place(args.output, "--output")
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"output folder {args.output}: {error.strerror or error}") from error
    files, useless = pictures.picture_files(args.photos, skip=args.output)
    with join(torch.device("cpu"), LONGEST_WAIT) as processes, _terminable(), contextlib.ExitStack() as held:
        _check_options(args, processes)
        jobs = plan(files, args.output)
        if processes.first:
            if isinstance(args.output, Path):
                # classes.csv would be that of the run that ends last. Other processes of this one may write already.
                results = results_of(jobs, args.output) if processes.world == 1 else ()
                held.enter_context(alone(args.output, "segment", "into which another one writes", results))
            for problem in useless:
                complain(str(problem))
        done = _run(args, jobs, processes) if files else 0
    failed = len(useless) + len(files) - done
    if failed and processes.first:
        complain(f"{done} segmented, {failed} failed")
    return 1 if failed else 0


def _run(args: argparse.Namespace, jobs: list[Job], processes: Processes) -> int:
    """Runs this process's share of the jobs; returns the numbers for all processes."""
    from atrousops.engine.segment import CLASSES, ClassList

    segmenter = _segmenter(args)
    found = ClassList(args.output / CLASSES, segmenter.predictor.classes, jobs)
    if args.resume:
        found.done |= {job.picture: item for job in jobs if (item := segmenter.done(job)) is not None}
    left = [job for job in jobs if job.picture not in found.done]
    if processes.first:
        # Written now, to find a folder that cannot be written before the first image is computed.
        found.write()
        if args.resume:
            print(f"{len(jobs) - len(left)} done before, {len(left)} to do")
    start = time.perf_counter()
    if args.ray is None:
        items = segmenter.run(left[processes.rank :: processes.world])
    else:
        from atrousops.engine import cluster

        items = cluster.label(partial(_worker, args), left, args.ray, args.workers, args.threads, args.device)
    try:
        mine = _follow(items, found, len(left), processes)
        if processes.first:
            # It may wait long for the other processes.
            found.write()
        for others in processes.gather(mine):
            found.done |= {item.picture: item for item in others}
    finally:
        if processes.first:
            found.write()
    done = [found.done[job.picture] for job in left if job.picture in found.done]
    if processes.first and done:
        print(_throughput(done, start))
    processes.wait()
    return len(found.done)


def _worker(args: argparse.Namespace) -> Segmenter:
    """The arguments that another process needs to do the same."""
    import atrousops as ao

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.backend:
        contextlib.ExitStack().enter_context(ao.backend(args.backend))
    return _segmenter(args)


def _segmenter(args: argparse.Namespace) -> Segmenter:
    from atrousops.data import decode
    from atrousops.engine.segment import Segmenter

    if args.largest is not None:
        decode.allow(round(args.largest * 1e6))
    above = None if args.stream_above is None else round(args.stream_above * 1e6)
    return Segmenter(_predictor(args), args.output, batch=args.batch, readers=args.readers, stream_above=above)


def _follow(items: Iterator[Segmented | Failed], found: Any, total: int, processes: Processes) -> list[Segmented]:
    """Prints the result of each image, and keeps the list of the first process up to date."""
    from atrousops.engine.segment import Failed

    mine = []
    alone = processes.world == 1
    with tqdm(total=total, unit="photo", disable=None if total > 1 and alone else True) as bar:
        for item in items:
            if isinstance(item, Failed):
                complain(item.reason)
            else:
                mine.append(item)
                tqdm.write(_line(item, found.classes), file=sys.stdout)
                if processes.first:
                    found.add(item)
            bar.update()
    return mine


def _line(item: Segmented, classes: Sequence[str]) -> str:
    total = sum(item.pixels)
    found = ", ".join(f"{name} {pixels / total:.1%}" for name, pixels in zip(classes, item.pixels) if pixels)
    page = f", page {item.page} of {item.pages}" if item.pages > 1 else ""
    return f"{item.picture}{page} -> {item.mask}, {item.overlay.name}: {found} ({item.seconds:.2f} s)"


def _throughput(done: Sequence[Segmented], start: float) -> str:
    seconds = time.perf_counter() - start
    megapixels = sum(sum(item.pixels) for item in done) / 1e6
    images, area = (
        f"{rate:.1f}" if rate >= 10 else f"{rate:.2g}" for rate in (len(done) / seconds, megapixels / seconds)
    )
    rates = f"{images} images and {area} megapixels a second"
    return f"{len(done)} images, {megapixels:.1f} megapixels in {seconds:.1f} s: {rates}"


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the run like Ctrl-C: the list of results is written before exit."""

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _predictor(args: argparse.Namespace) -> Predictor:
    from atrousops.engine import predict
    from atrousops.engine.distributed import pick_device

    overlap = args.tile // 4 if args.overlap is None else None if args.overlap == "auto" else args.overlap
    options: dict[str, Any] = {"size": args.size or None} if args.size is not None else {}
    options |= {"published": args.model} if args.model and args.weights else {}
    options |= {"optimized": True} if args.optimize else {}
    name = args.weights or args.model or predict.DEFAULT_MODEL
    return predict.load_predictor(
        name,
        tile=args.tile,
        overlap=overlap,
        crf=args.crf,
        scales=args.scales or (1.0,),
        flip=args.flip,
        device=pick_device(args.device, "segment", "--device"),
        page=args.page,
        **options,
    )


def _add_ray(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="share the images among the processes of a Ray cluster: its address, auto, or local for this machine",
    )
    parser.add_argument(
        "--workers", type=count(1), metavar="N", help="with --ray: processes (default: one for each GPU, or CPU)"
    )


def _check_options(args: argparse.Namespace, processes: Processes) -> None:
    """Raises ArgumentError for options that require or exclude another one."""
    from atrousops.models import PUBLISHED

    if args.workers is not None and args.ray is None:
        bad_value("atrousops", "--workers", "be given with --ray", "it alone", "--ray local shares this machine.")
    if args.model is not None and args.weights is not None and args.model not in PUBLISHED:
        bad_choice("atrousops", "--model, given with --weights,", PUBLISHED, args.model)
    if args.model in PUBLISHED and args.weights is None:
        where = f"It comes from {PUBLISHED[args.model].source}"
        bad_value("atrousops", "--model", "be given with --weights, the file as it was published", args.model, where)
    if args.ray is not None and processes.world > 1:
        bad_value("atrousops", "--ray", "stand alone, as the cluster's processes share the work", "it under torchrun")


def _add_inference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--crf", action="store_true", help="refine the contours with the dense CRF")
    parser.add_argument(
        "--scales",
        nargs="+",
        type=positive,
        metavar="R",
        help="average the scores over these sizes of a photo, such as 0.75 1 1.25 (default: 1, or the recipe's)",
    )
    parser.add_argument("--flip", action="store_true", help="average the scores with those of the mirrored image")


def add_evaluate(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Adds `atrousops evaluate`."""
    parser = commands.add_parser(
        "evaluate",
        parents=[common],
        help="score trained weights",
        description="Scores trained weights on the validation images of a recipe: IoU of each class, and their mean. "
        "Under torchrun each process scores its share of the images.",
    )
    add_config(parser)
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="trained weights (.safetensors) or a shipped name"
    )
    _add_inference(parser)
    parser.add_argument(
        "--model", metavar="NAME", help="the weights are the file of this checkpoint that others published"
    )
    parser.add_argument("--split", metavar="NAME", help="score these images, such as test (default: the recipe's val)")
    parser.add_argument("--ap", action="store_true", help="also score the masks of objects by COCO's AP")
    parser.add_argument(
        "--trimap",
        nargs="+",
        type=count(1),
        default=(),
        metavar="W",
        help="also score bands of these widths along borders, pixels",
    )
    parser.add_argument(
        "--tune-crf", type=count(1), metavar="N",
        help="first search the CRF's settings on N images that are not scored, and score with those",
    )  # fmt: skip
    _add_dtype(parser)
    _add_ray(parser)
    parser.set_defaults(run=_evaluate)


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", choices=("int8", "float8_e4m3fn"), help="score the network with convolutions of these numbers"
    )
    parser.add_argument(
        "--calibration", type=count(1), default=32, metavar="N", help="training images for their scales (default: 32)"
    )


def _evaluate(args: argparse.Namespace) -> int:
    from atrousops.engine import evaluate, tune_crf
    from atrousops.engine.distributed import LONGEST_WAIT, join
    from atrousops.nn import DenseCRF

    common = {"data_root": args.data, "overrides": tuple(args.overrides), "published": args.model}
    crf = args.crf
    with join(torch.device("cpu"), LONGEST_WAIT) as processes:
        _check_options(args, processes)
        if args.tune_crf:
            tuned = tune_crf.main(args.config, args.weights, images=args.tune_crf, judged=args.split, **common)
            if processes.first:
                print(tuned)
            crf = DenseCRF(**tuned.settings)
        if args.ray is not None:
            common |= {"ray": args.ray, "workers": args.workers}
        if args.dtype is not None:
            common |= {"dtype": args.dtype, "calibration": args.calibration}
        options = {"scales": args.scales, "flip": args.flip, "split": args.split, "crf": crf, "ap": args.ap}
        scores = evaluate.main(args.config, args.weights, widths=tuple(args.trimap), **options, **common)
        if processes.first:
            print(evaluate.report(scores))
            if args.ap and scores.precision is None:
                complain("no AP: it judges objects, and the masks of this data are classes")
    return 0
