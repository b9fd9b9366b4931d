"""Measurements on a device, stored as rows of a JSON file; here the times of convolutions.

They take precedence over predictions.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from atrousops.common.files import write_atomically
from atrousops.dispatch.planner import CallArguments

K = TypeVar("K")
V = TypeVar("V")
log = logging.getLogger("atrousops")
_FORMAT = 1
# Ours must be faster than PyTorch's by this factor: repeated measurements differ by as much.
MARGIN = 0.98


class Store(Generic[K, V]):
    """A dictionary for each device ("cpu", "cuda:1"; "cuda" is the current one), read once from its file.

    Args:
        what: name of the content, for warnings.
        suffix: of the file's name.
        row, entry: convert an item to a JSON object, and back.
        again: the remedy named in the warning if a file cannot be used.
    """

    def __init__(
        self,
        what: str,
        suffix: Callable[[], str],
        row: Callable[[K, V], dict[str, Any]],
        entry: Callable[[dict[str, Any]], tuple[K, V]],
        again: str = "autotune again",
    ) -> None:
        self.what, self.suffix, self.row, self.entry, self.again = what, suffix, row, entry, again
        self._known: dict[str, dict[K, V]] = {}

    def of(self, device: str) -> dict[K, V]:
        """All items for a device."""
        if device not in self._known:
            absent = device != "cpu" and not torch.get_device_module(torch.device(device)).is_available()
            path = None if absent else self.path(device)
            self._known[device] = {} if path is None else self._read(path)
        return self._known[device]

    def add(self, device: str, found: dict[K, V], write: bool = True) -> Path | None:
        """Stores items for this process and, unless ATROUSOPS_PLANS=none, for later ones; returns the file written."""
        known = self.of(device)
        known.update(found)
        path = self.path(device) if write else None
        if path is not None:
            # Another process may have added measurements in the meantime.
            rows = self._read(path) | known
            text = json.dumps({"format": _FORMAT, "calls": [self.row(*item) for item in rows.items()]}, indent=0)
            write_atomically(path, lambda name: Path(name).write_text(text))
        return path

    def forget(self) -> None:
        """Drops what was read or added; files stay."""
        self._known.clear()

    def path(self, device: str) -> Path | None:
        """The device's file; None if ATROUSOPS_PLANS=none."""
        folder = os.environ.get("ATROUSOPS_PLANS", "")
        if folder == "none":
            return None
        cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        base = Path(folder) if folder else Path(cache_home) / "atrousops" / "plans"
        where = torch.device(device)
        name = cpu_name() if device == "cpu" else torch.get_device_module(where).get_device_name(where.index)
        version = ".".join(torch.__version__.split("+")[0].split(".")[:2])
        return base / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-torch-{version}{self.suffix()}.json"

    def _read(self, path: Path) -> dict[K, V]:
        try:
            stored = json.loads(path.read_text())
            if stored["format"] != _FORMAT:
                raise ValueError(f"format {stored['format']}, not {_FORMAT}")
            return dict(self.entry(row) for row in stored["calls"])
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s in %s are not used: %s; %s, or remove the file", self.what, path, error, self.again)
            return {}


@cache
def cpu_name() -> str:
    """The processor's name, as reported by the system."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


class Key(NamedTuple):
    """A call of a convolution, with the arguments of `choice.chosen` and the relevant state of the process.

    state: the device ("cpu", "cuda:1"; in a file its type), and the number of threads (CPU) or whether TF32 is allowed
        (GPU).
    """

    arguments: CallArguments
    dtype: torch.dtype
    channels_last: bool
    needs_grad: bool
    state: tuple[str, int | bool]


class Times(NamedTuple):
    """Seconds of PyTorch's operator (aten) and of each of our kernels (each); `ours` is the fastest of these."""

    aten: float
    ours: float
    each: tuple[tuple[str, float], ...] = ()

    @property
    def kernel(self) -> str:
        """The name of our fastest kernel; "" if only the planned one was measured, or none was right."""
        return min(self.each, key=lambda timed: timed[1])[0] if self.each else ""

    @property
    def ours_wins(self) -> bool:
        return self.ours < MARGIN * self.aten


def lookup(key: Key) -> Times | None:
    """The measured times of a call on this machine, if any."""
    return _plans.of(key.state[0]).get(_anywhere(key))


def add(found: dict[Key, Times], write: bool = True) -> list[Path]:
    """Stores times for this process and, unless ATROUSOPS_PLANS=none, for later ones; returns the files written.

    write: False leaves the files unchanged.
    """
    devices = dict.fromkeys(key.state[0] for key in found)
    by_device = {d: {_anywhere(k): times for k, times in found.items() if k.state[0] == d} for d in devices}
    paths = [_plans.add(d, rows, write) for d, rows in by_device.items()]
    return [path for path in paths if path is not None]


def _anywhere(key: Key) -> Key:
    # A file is for one GPU model, whatever the index of the GPU.
    device, rest = key.state
    return key._replace(state=(device.partition(":")[0], rest))


def forget() -> None:
    """Drops what was read or added; files stay."""
    _plans.forget()


def plans_path(device: str) -> Path | None:
    """The file of a device's measured plans; None if ATROUSOPS_PLANS=none.

    ATROUSOPS_PLANS names the folder, by default atrousops/plans in the user's cache. The file's name contains the
    processor or GPU and torch's version, because PyTorch's kernels change with it.
    """
    return _plans.path(device)


def _row(key: Key, times: Times) -> dict[str, Any]:
    return {
        "arguments": key.arguments,
        "dtype": str(key.dtype).removeprefix("torch."),
        "channels_last": key.channels_last,
        "needs_grad": key.needs_grad,
        "state": key.state,
        **times._asdict(),
    }


def _entry(row: dict[str, Any]) -> tuple[Key, Times]:
    arguments = CallArguments._make(tuple(a) if isinstance(a, list) else a for a in row["arguments"])
    dtype = getattr(torch, row["dtype"])
    each = tuple((str(kernel), float(seconds)) for kernel, seconds in row.get("each", ()))
    key = Key(arguments, dtype, bool(row["channels_last"]), bool(row["needs_grad"]), tuple(row["state"]))
    return key, Times(float(row["aten"]), float(row["ours"]), each)


_plans: Store[Key, Times] = Store("measured plans", str, _row, _entry)
