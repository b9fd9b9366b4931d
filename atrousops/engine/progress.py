"""The progress of a training run: a bar on a terminal, or occasional lines in a log file."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable

from tqdm import tqdm


class Progress:
    """Shows loss, learning rate, mean IoU and time left on stderr.

    If stderr is not a terminal, a line is printed for the first step, each validation and the last step, and every
    `seconds` in between; its loss is the mean of the steps since the previous line.

    Args:
        total: steps of the whole run.
        done: steps before the run was resumed.
        enabled: False shows nothing.
        seconds: between two lines.
        clock: returns the time in seconds.
    """

    def __init__(
        self, total: int, done: int, enabled: bool, seconds: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.begin, self.at = total, done, done
        self._clock, self._seconds = clock, seconds
        self._start = clock()
        self._last: float | None = None
        self._told = done
        # Losses of the steps since the last line.
        self._sum, self._count = 0.0, 0
        self._lr, self._miou = 0.0, ""
        terminal = enabled and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc="train", unit="step") if terminal else None
        self._lines = enabled and not terminal

    def step(self, loss: float, lr: float) -> None:
        """Records a step."""
        self.at += 1
        if self._told == self.at - 1:
            self._sum, self._count = 0.0, 0
        self._sum, self._count = self._sum + loss, self._count + 1
        self._lr = lr
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.1e}{self._miou}", refresh=False)
            self._bar.update()
        elif self._last is None or self._clock() - self._last >= self._seconds:
            self._line()

    def scored(self, miou: float) -> None:
        """Records a validation."""
        self._miou = f", mIoU {100 * miou:.1f} %"
        if self._bar is None:
            self._line()

    def close(self) -> None:
        """Ends the display."""
        if self._bar is not None:
            self._bar.close()
        elif self._told < self.at:
            self._line()

    def _line(self) -> None:
        self._last = self._clock()
        left = (self._last - self._start) / max(self.at - self.begin, 1) * (self.total - self.at)
        self._told = self.at
        if self._lines:
            # None since a run was resumed, if its first act is a validation.
            loss = f", loss {self._sum / self._count:.3f}, lr {self._lr:.1e}" if self._count else ""
            text = f"step {self.at} of {self.total}{loss}{self._miou}"
            print(f"train: {text}, {datetime.timedelta(seconds=round(left))} left", file=sys.stderr, flush=True)
