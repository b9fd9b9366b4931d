"""How a training run is going: a bar on a terminal, and a line now and then in a file of a job's output."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable

from tqdm import tqdm


class Progress:
    """Tells loss, learning rate, mean IoU and time left on stderr.

    Where stderr is no terminal there is a line for the first step, for each validation and for the last step, and
    between them one every `seconds`; its loss is the mean of the steps since the line before.

    Args:
        total: steps of the whole run.
        done: those before it was resumed.
        enabled: False tells nothing.
        seconds: between two lines.
        clock: what time it is, in seconds.
    """

    def __init__(
        self, total: int, done: int, enabled: bool, seconds: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.begin, self.at = total, done, done
        self._clock, self._seconds = clock, seconds
        self._start = clock()
        self._last: float | None = None
        self._told = done
        # Of the steps since the last line.
        self._sum, self._count = 0.0, 0
        self._lr, self._miou = 0.0, ""
        terminal = enabled and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc="train", unit="step") if terminal else None
        self._lines = enabled and not terminal

    def step(self, loss: float, lr: float) -> None:
        """A step is done."""
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
        """The network was validated."""
        self._miou = f", mIoU {100 * miou:.1f} %"
        if self._bar is None:
            self._line()

    def close(self) -> None:
        """No more steps."""
        if self._bar is not None:
            self._bar.close()
        elif self._told < self.at:
            self._line()

    def _line(self) -> None:
        self._last = self._clock()
        left = (self._last - self._start) / max(self.at - self.begin, 1) * (self.total - self.at)
        self._told = self.at
        if self._lines:
            loss = self._sum / max(self._count, 1)
            text = f"step {self.at} of {self.total}, loss {loss:.3f}, lr {self._lr:.1e}{self._miou}"
            print(f"train: {text}, {datetime.timedelta(seconds=round(left))} left", file=sys.stderr, flush=True)
