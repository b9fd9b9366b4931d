"""Images and labels of training steps, determined by seed and step; errors are known before a step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from atrousops.common.checks import ArgumentError
from atrousops.data import SegmentationSet
from atrousops.engine.config import Config
from atrousops.engine.distributed import Processes


class Batches:
    """This process's images and labels for each step from `step` to the last; the same for a resumed run.

    Args:
        data: the training set.
        recipe: for its seed, batch, workers and schedule.
        processes: those that share each batch.
        step: the first step.
    """

    def __init__(self, data: SegmentationSet, recipe: Config, processes: Processes, step: int) -> None:
        size, p = recipe.batch, processes
        steps = range(step, recipe.schedule.last)
        numbers = [list(range(s * size + p.rank, (s + 1) * size, p.world)) for s in steps]
        loader: DataLoader[Any] = DataLoader(
            _Drawn(data, recipe.seed), batch_sampler=numbers, num_workers=recipe.workers, collate_fn=_together
        )
        self._read: Iterator[Any] = iter(loader)
        self._ahead: Any = None

    def error(self) -> Exception | None:
        """Reads the files of the next step; returns the error, or None."""
        if self._ahead is None:
            self._ahead = next(self._read)
        return self._ahead if isinstance(self._ahead, Exception) else None

    def next(self) -> tuple[Tensor, Tensor]:
        """Images and labels. Raises ArgumentError, OSError: a file cannot be used; the message names it."""
        if (error := self.error()) is not None:
            raise error
        (images, labels), self._ahead = self._ahead, None
        return images, labels


class _Drawn(Dataset[Any]):
    """An endless indexed sequence of training images: epoch after epoch, each in its own order."""

    def __init__(self, data: SegmentationSet, seed: int) -> None:
        self.data = data
        self.seed = seed

    def __getitem__(self, number: int) -> Any:
        epoch, position = divmod(number, len(self.data))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 1_000_003 + number)
            try:
                return self.data[_order(len(self.data), self.seed + epoch)[position]]
            except (ArgumentError, OSError) as error:
                # A DataLoader replaces the message of an error in a worker by the traceback, but the file's name is
                # needed.
                return error


def _together(samples: list[Any]) -> Any:
    """A batch, or the first error."""
    return next((sample for sample in samples if isinstance(sample, Exception)), None) or default_collate(samples)


@lru_cache(maxsize=2)
def _order(count: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
