"""Measured times of convolutions on this machine, kept on disk: they count for more than predictions."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from atrousops._files import write_atomically

log = logging.getLogger("atrousops")

# Ours must have been this much faster than PyTorch's: two measurements of the same differ by as much.
MARGIN = 0.98
_FORMAT = 1


class Key(NamedTuple):
    """A call of a convolution, as `choice.choose` is asked about it, and what of the process counts.

    state: the device's type, and the number of threads (CPU) or whether TF32 is allowed (GPU).
    """

    arguments: tuple[Any, ...]
    dtype: torch.dtype
    channels_last: bool
    needs_grad: bool
    state: tuple[str, int | bool]


class Times(NamedTuple):
    """Seconds of PyTorch's operator and of ours."""

    aten: float
    ours: float

    @property
    def ours_wins(self) -> bool:
        return self.ours < MARGIN * self.aten


def lookup(key: tuple[Any, ...]) -> Times | None:
    """What was measured of a call on this machine, if anything."""
    return _times(key[4][0]).get(Key(*key))


def add(found: dict[Key, Times]) -> list[Path]:
    """Keeps times for this process and, unless ATROUSOPS_PLANS=none, for later ones; returns the files written."""
    written = []
    for device in dict.fromkeys(key.state[0] for key in found):
        times = _times(device)
        times.update((key, value) for key, value in found.items() if key.state[0] == device)
        path = plans_path(device)
        if path is not None:
            # Another process may have measured something else meanwhile.
            rows = _read(path) | times
            text = json.dumps({"format": _FORMAT, "calls": [_row(*item) for item in rows.items()]}, indent=0)
            write_atomically(path, lambda name, text=text: Path(name).write_text(text))  # type: ignore[misc]
            written.append(path)
    return written


def forget() -> None:
    """Drops what was read or added; files stay."""
    _times.cache_clear()


def plans_path(device: str) -> Path | None:
    """The file of a device's measured plans; None where ATROUSOPS_PLANS=none.

    ATROUSOPS_PLANS names the folder, by default atrousops/plans in the user's cache. The file's name has the processor
    or GPU and torch's version, for PyTorch's own kernels change with it.
    """
    folder = os.environ.get("ATROUSOPS_PLANS", "")
    if folder == "none":
        return None
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    base = Path(folder) if folder else Path(cache_home) / "atrousops" / "plans"
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    version = ".".join(torch.__version__.split("+")[0].split(".")[:2])
    return base / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-torch-{version}.json"


@cache
def cpu_name() -> str:
    """The processor's name as it tells it itself."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


@cache
def _times(device: str) -> dict[Key, Times]:
    if device == "cuda" and not torch.cuda.is_available():
        return {}
    path = plans_path(device)
    return {} if path is None else _read(path)


def _read(path: Path) -> dict[Key, Times]:
    try:
        stored = json.loads(path.read_text())
        if stored["format"] != _FORMAT:
            raise ValueError(f"format {stored['format']}, not {_FORMAT}")
        return dict(_entry(row) for row in stored["calls"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("measured plans in %s are not used: %s; autotune again, or remove the file", path, error)
        return {}


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
    arguments = tuple(tuple(a) if isinstance(a, list) else a for a in row["arguments"])
    dtype = getattr(torch, row["dtype"])
    key = Key(arguments, dtype, bool(row["channels_last"]), bool(row["needs_grad"]), tuple(row["state"]))
    return key, Times(float(row["aten"]), float(row["ours"]))
