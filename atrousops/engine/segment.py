"""Segments files: writes a mask and an overlay for each image, and one list of classes for the run."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from atrousops.common.files import OutputError, write_atomically
from atrousops.common.places import Place
from atrousops.data import decode
from atrousops.data.bands import Pixels, read_picture
from atrousops.data.strips import ArrayRows, Rows, open_rows
from atrousops.engine import large, pictures
from atrousops.engine.channels import to_rgb
from atrousops.engine.predict import Predictor

CLASSES = "classes.csv"
COLUMNS = ("picture", "mask", "id", "class", "red", "green", "blue", "pixels", "share")
# In pixels; Pillow's limit.
STREAMED = 178_956_970
# The most batches of images that wait for others of their size.
_WAITING = 4


@dataclass(frozen=True)
class Job:
    """An image to process, and the name of its results."""

    picture: Place
    name: str


@dataclass(frozen=True)
class Segmented:
    """A finished image.

    pixels: count for each class. seconds: its share of the batch, plus writing; 0 if it was done by an earlier run.
    page, pages: the page that was read, and the number of pages in the file.
    """

    picture: Place
    mask: Place
    overlay: Place
    pixels: tuple[int, ...]
    seconds: float
    page: int = 1
    pages: int = 1


@dataclass(frozen=True)
class Failed:
    """An image that could not be segmented, and the reason in one line."""

    picture: Place
    reason: str


# A complete image, or one that is read by rows.
Read: TypeAlias = "tuple[Job, np.ndarray | Rows]"


def plan(files: Sequence[Place], folder: Place) -> list[Job]:
    """A job for each file, with unique names of results in `folder`."""
    return [Job(file, name) for file, name in zip(files, pictures.result_names(files, folder))]


def results_of(jobs: Sequence[Job], folder: Path) -> Iterator[Path]:
    """Every file that the jobs may write."""
    yield folder / CLASSES
    for job in jobs:
        for ending in ("png", "tif"):
            yield from _results(folder, job, ending)


def _results(folder: Place, job: Job, ending: str) -> tuple[Any, Any]:
    """The mask and the overlay."""
    return folder / f"{job.name}_mask.{ending}", folder / f"{job.name}_overlay.{ending}"


class Segmenter:
    """Segments files into a folder: NAME_mask.png (class ids) and NAME_overlay.png, written atomically.

    An image of more than `stream_above` pixels is labelled and written one row of tiles at a time, to NAME_mask.tif and
    NAME_overlay.tif. A TIFF of a simple kind is also read that way, and is never completely in memory.

    A mask stores a hash of the network and options and the name of its image, and is written after its overlay. So the
    folder itself shows which images are done, even after a crash or with several processes.

    Args:
        predictor: labels the images.
        folder: for the results.
        batch: number of images of one size that are processed together.
        readers: threads that read images in advance.
        stream_above: by default Pillow's limit, 179 million.
    """

    def __init__(
        self,
        predictor: Predictor,
        folder: Place,
        *,
        batch: int = 1,
        readers: int = 2,
        stream_above: int | None = None,
    ) -> None:
        self.predictor = predictor
        self.folder = folder
        self.batch = batch
        self.readers = readers
        self.stream_above = STREAMED if stream_above is None else stream_above
        self.page = predictor.pixels.page
        self.colors = pictures.class_colors(predictor.classes)
        self._made_by = predictor.fingerprint()

    def done(self, job: Job) -> Segmented | None:
        """The result of an earlier run with the same network and options, if newer than the image; or None."""
        for ending, read in (("png", pictures.read_note), ("tif", large.read_note)):
            mask, overlay = _results(self.folder, job, ending)
            try:
                note = json.loads(read(mask) or "{}")
                known = note.get("made") == self._made(job) and mask.stat().st_mtime >= job.picture.stat().st_mtime
            except (OSError, ValueError):
                continue
            if known:
                return Segmented(job.picture, mask, overlay, tuple(note["pixels"]), 0.0, self.page, note["pages"])
        return None

    def run(self, jobs: Iterable[Job]) -> Iterator[Segmented | Failed]:
        """Runs the jobs, those of one size together, so the order may change.

        A file that cannot be read, or is too large for the memory, gives a `Failed`; the others continue.

        Raises:
            OutputError: a result could not be written; the others could not be either.
        """
        with warnings.catch_warnings(), contextlib.closing(self._read_ahead(jobs)) as read:
            # Reader threads would change the warning filters concurrently, and could leave them changed.
            warnings.filterwarnings("ignore", module="PIL")
            for some in self._batches(read):
                if isinstance(some, Failed):
                    yield some
                else:
                    yield from self._label(some)

    def _read_ahead(self, jobs: Iterable[Job]) -> Generator[Read | Failed, None, None]:
        pool = ThreadPoolExecutor(self.readers)
        waiting: deque[Future[Read | Failed]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(_read, job, self.predictor.pixels, self.stream_above))
                if len(waiting) > self.readers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _batches(self, read: Iterable[Read | Failed]) -> Iterator[list[Read] | Failed]:
        groups: dict[tuple[int, ...], list[Read]] = {}
        for item in read:
            if isinstance(item, Failed):
                yield item
                continue
            if not isinstance(item[1], np.ndarray):
                yield [item]
                continue
            shape = item[1].shape
            groups.setdefault(shape, []).append(item)
            if len(groups[shape]) == self.batch:
                yield groups.pop(shape)
            elif sum(map(len, groups.values())) >= _WAITING * self.batch:
                yield groups.pop(next(iter(groups)))
        yield from groups.values()

    def _label(self, some: list[Read]) -> Iterator[Segmented | Failed]:
        start = time.perf_counter()
        whole = [picture for _, picture in some if isinstance(picture, np.ndarray)]
        try:
            if not whole:
                yield self._write(*some[0], None, start)
                return
            found = self.predictor.batch(whole)
        except decode.PictureError as error:
            yield Failed(some[0][0].picture, str(error))
            return
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if len(some) == 1:
                path = some[0][0].picture
                yield Failed(path, f"{path}: too large for the memory of this machine; a smaller --tile may help")
            else:
                for one in some:
                    yield from self._label([one])
            return
        seconds = (time.perf_counter() - start) / len(some)
        for (job, _), picture, labels in zip(some, whole, found):
            yield self._write(job, picture, labels, time.perf_counter() - seconds)

    def _write(self, job: Job, picture: np.ndarray | Rows, labels: np.ndarray | None, start: float) -> Segmented:
        mask, overlay = _results(self.folder, job, "png" if isinstance(picture, np.ndarray) else "tif")
        parts = None if isinstance(picture, np.ndarray) else self._parts(job, picture)
        pages = decode.pages_in(job.picture) if self._by_page(job.picture) else 1

        def note(pixels: tuple[int, ...]) -> str:
            return json.dumps({"made": self._made(job), "pixels": pixels, "pages": pages})

        try:
            # The mask is removed first, so that it never stays with the overlay of another run.
            mask.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot replace {mask}: {error.strerror or error}") from error
        if isinstance(picture, np.ndarray):
            assert labels is not None
            pixels = tuple(map(int, np.bincount(labels.ravel(), minlength=len(self.predictor.classes))))
            pictures.write_png(overlay, pictures.overlay_image(to_rgb(picture), labels, self.colors))
            pictures.write_png(mask, pictures.mask_image(labels, self.colors), note(pixels))
        else:
            assert parts is not None
            pixels = large.write_results(mask, overlay, picture, parts, self.colors, note)
        return Segmented(job.picture, mask, overlay, pixels, time.perf_counter() - start, self.page, pages)

    def _parts(self, job: Job, rows: Rows) -> Iterator[np.ndarray]:
        if not self.predictor.streams:
            why = f"more than {self.stream_above / 1e6:g} megapixels are labelled in tiles, at their own size"
            raise decode.PictureError(f"{job.picture}: {why}: with --size 0 and no --crf, or a higher --stream-above")
        return self.predictor.strips(rows.read, *rows.shape)

    def _by_page(self, path: Place) -> bool:
        # Otherwise the pages of a TIFF may be the bands of one image.
        pixels = self.predictor.pixels
        return (pixels.scale is None and pixels.channels in (1, 3)) or path.suffix.lower() not in (".tif", ".tiff")

    def _made(self, job: Job) -> str:
        # surrogateescape: a file name that is not UTF-8.
        named = f"{self._made_by} {job.picture}".encode("utf-8", errors="surrogateescape")
        return hashlib.sha256(named).hexdigest()


class ClassList:
    """classes.csv (`COLUMNS`): a row for each image and class, including absent classes; always written atomically.

    `red`, `green`, `blue` are the colour in the mask's palette; `share` is the fraction of the image's pixels, 0..1.

    Args:
        path: of the file.
        classes: their names.
        jobs: give the order of the rows.
    """

    def __init__(self, path: Place, classes: Sequence[str], jobs: Sequence[Job]) -> None:
        self.path = path
        self.classes = classes
        self.done: dict[Place, Segmented] = {}
        self._order = [job.picture for job in jobs]
        self._next = 0.0

    def add(self, item: Segmented) -> None:
        """Adds an image; the file is updated within seconds, so that it exists if a run is killed."""
        self.done[item.picture] = item
        if time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        """Writes the file. Raises OutputError: it cannot be written."""
        start = time.monotonic()
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        colors = pictures.class_colors(self.classes)
        for item in (self.done[picture] for picture in self._order if picture in self.done):
            total = sum(item.pixels)
            for index, (name, count) in enumerate(zip(self.classes, item.pixels)):
                row = [item.picture, item.mask.name, index, name, *colors[index], count, f"{count / total:.6f}"]
                table.writerow(row)
        # surrogateescape: a file name that is not UTF-8 is written unchanged.
        data = text.getvalue().encode("utf-8", errors="surrogateescape")
        write_atomically(self.path, lambda name: Path(name).write_bytes(data))
        # Writing takes at most a twentieth of the time, for any length of the list.
        self._next = time.monotonic() + max(1.0, 20 * (time.monotonic() - start))


def _read(job: Job, pixels: Pixels, stream_above: int) -> Read | Failed:
    try:
        rows = open_rows(job.picture, pixels, stream_above)
        if rows is not None:
            return job, rows
        picture = read_picture(job.picture, pixels)
        return job, ArrayRows(picture) if picture.shape[0] * picture.shape[1] > stream_above else picture
    except decode.PictureError as error:
        return Failed(job.picture, str(error))
    except MemoryError:
        return Failed(job.picture, f"{job.picture}: too large for the memory of this machine")


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)
