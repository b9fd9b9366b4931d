"""Distributes images to the processes of a Ray cluster. Each loads the network once; work of a dead one is repeated.

Paths are relative to the command's working directory: all machines must see its files at the same paths.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atrousops.common.files import OutputError
from atrousops.engine.scores import Opened, Refine, Scores, add_images

if TYPE_CHECKING:
    from atrousops.engine.segment import Failed, Job, Segmented, Segmenter

# Pieces of work per process, so that those that finish early take over work of others.
_PIECES = 4


def label(
    load: Callable[[], Segmenter],
    jobs: Sequence[Job],
    address: str,
    workers: int | None = None,
    threads: int | None = None,
    device: str = "auto",
) -> Iterator[Segmented | Failed]:
    """Runs the jobs of `Segmenter.run` on a cluster, whose processes write the results.

    Args:
        load: called once in each process.
        jobs: the jobs.
        address: "local", or the address of a cluster for `ray.init`.
        workers: processes; by default one for each GPU, or for as many CPUs as `threads`.
        threads: of each process.
        device: of the networks; unless it is cpu, each process has its own GPU, if there are any.

    Raises:
        ImportError: Ray is not installed.
        OutputError: a result could not be written.
    """
    with _joined(address, (workers or 1) * (threads or 1)) as ray:
        pieces = [pickle.dumps(job) for job in jobs]
        for item in _mapped(ray, _Labels, (load, os.getcwd()), pieces, workers, threads or 1, device):
            if isinstance(item, OutputError):
                raise item
            yield item


def judge(
    load: Callable[[], Opened],
    crf: Refine | None,
    empty: Callable[[], Scores],
    images: int,
    address: str,
    workers: int | None = None,
) -> Iterator[dict[str, Any]]:
    """States of `Scores` whose sum covers the first `images` images of a set.

    Args:
        load: returns network and images; called once in each process.
        crf: as in `evaluate.score`.
        empty: makes empty scores.
        images: the number of images.
        address, workers: as in `label`.
    """
    with _joined(address, workers or 1) as ray:
        pieces = [pickle.dumps(number) for number in range(images)]
        yield from _mapped(ray, _Judged, (load, crf, empty, os.getcwd()), pieces, workers, 1, "auto")


class _Labels:
    """An actor in a process of the cluster."""

    def __init__(self, load: Callable[[], Segmenter], folder: str) -> None:
        os.chdir(folder)
        self._segmenter = load()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            return _column(self._segmenter.run(map(pickle.loads, batch["item"])))
        except OutputError as error:
            return _column([error])


class _Judged:
    """An actor in a process of the cluster."""

    def __init__(
        self, load: Callable[[], Opened], crf: Refine | None, empty: Callable[[], Scores], folder: str
    ) -> None:
        os.chdir(folder)
        self._opened = load()
        self._opened.model.eval()
        self._crf = crf
        self._empty = empty

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        scores = self._empty()
        model, data, _, norm = self._opened
        add_images(scores, model, data, map(pickle.loads, batch["item"]), self._crf, norm)
        return _column([scores.state()])


def _column(items: Iterable[Any]) -> dict[str, np.ndarray]:
    return {"item": np.array([pickle.dumps(item) for item in items], dtype=object)}


def _mapped(
    ray: Any,
    made: type,
    arguments: tuple[Any, ...],
    pieces: list[bytes],
    workers: int | None,
    threads: int,
    device: str,
) -> Iterator[Any]:
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0)) if device != "cpu" else 0
    count = workers or gpus or max(1, int(there.get("CPU", 1)) // threads)
    size = max(1, len(pieces) // (_PIECES * count))
    items = ray.data.from_items([{"item": piece} for piece in pieces], override_num_blocks=-(-len(pieces) // size))
    found = items.map_batches(
        made,
        fn_constructor_args=arguments,
        batch_size=size,
        compute=ray.data.ActorPoolStrategy(size=count),
        num_cpus=threads,
        num_gpus=1 if gpus else 0,
    )
    for row in found.iter_rows():
        yield pickle.loads(row["item"])


@contextlib.contextmanager
def _joined(address: str, cpus: int) -> Iterator[Any]:
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise ImportError("--ray needs the package ray: pip install 'atrousops[ray]'") from error
    started = not ray.is_initialized()
    if started:
        # At least the number of CPUs requested, even if the machine has fewer: otherwise some workers would never
        # start.
        most = max(cpus, os.cpu_count() or 1)
        alone: dict[str, Any] = {"include_dashboard": False, "num_cpus": most} if address == "local" else {}
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False, **alone)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()
