"""The logs of a training run: tables, TensorBoard's curves, pictures."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from atrousops.common.files import OutputError, write_atomically
from atrousops.data import SegmentationSet
from atrousops.data.transforms import denormalise
from atrousops.engine import pictures
from atrousops.engine.channels import to_rgb
from atrousops.engine.losses import classes_of


class Log:
    """A CSV file, appended row by row; when a run is resumed, rows after `step` and a truncated row are dropped."""

    def __init__(self, path: Path, columns: Sequence[str], step: int) -> None:
        self.path = path
        kept = []
        if step and path.exists():
            with path.open(newline="") as file:
                rows = [row for row in list(csv.reader(file))[1:] if len(row) == len(columns)]
            kept = [row for row in rows if row[0].isdigit() and int(row[0]) <= step]
        # The last step that has a row, or 0.
        self.last = max([int(row[0]) for row in kept], default=0)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns, *kept])
        write_atomically(path, lambda name: Path(name).write_text(text.getvalue()))

    def write(self, *values: object) -> None:
        """Adds a row. Raises OutputError if the disk is full; earlier rows are kept."""
        try:
            with self.path.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(values)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error


class Board:
    """TensorBoard's curves; does nothing if tensorboard is not installed."""

    def __init__(self, folder: Path, step: int) -> None:
        self._writer: Any = None
        self._folder = folder
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            with self._told():
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            with self._told():
                self._writer.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Raises OutputError, which names the folder, if TensorBoard's thread could not write."""
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write {self._folder}: {error.strerror or error}") from error


@torch.inference_mode()
def write_pictures(
    path: Path, model: nn.Module, data: SegmentationSet, mean: Sequence[float], std: Sequence[float], count: int = 4
) -> None:
    """Writes a PNG with one row for each of some images from the set: the image, its labels, the prediction.

    Raises:
        OutputError: it could not be written.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    colors = np.zeros((256, 3), dtype=np.uint8)
    colors[: len(data.classes)] = pictures.class_colors(data.classes)
    rows = []
    for index in range(0, len(data), max(1, len(data) // count))[:count]:
        image, labels = data[index]
        found = predict(model, image.to(device)).cpu()
        colours = denormalise(image, mean, std).permute(1, 2, 0)
        # Images with a scale may exceed 0..255.
        colours = colours.round().clamp(0, 255).byte() if data.pixels.scale is None else colours
        picture = to_rgb(colours.numpy())
        columns = [picture]
        for classes in (classes_of(labels), found):
            columns.append(np.asarray(pictures.overlay_image(picture, classes.numpy(), colors)))
        rows.append(np.concatenate(columns, axis=1))
    model.train(was_training)
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    pictures.write_png(path, Image.fromarray(np.concatenate(rows)))


def predict(model: nn.Module, image: Tensor) -> Tensor:
    """The classes (H, W) of one normalised image (C, H, W)."""
    from atrousops.engine.instances import find

    if hasattr(model, "objects"):
        return find(model, image).panoptic[0]
    scores: Tensor = model(image[None].contiguous(memory_format=torch.channels_last))["out"]
    return scores[0].argmax(0)
