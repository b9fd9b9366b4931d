"""Measured times of convolutions on this machine, kept on disk: they count for more than predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from atrousops.common.stored import Store
from atrousops.dispatch.planner import CallArguments

# Ours must have been this much faster than PyTorch's: two measurements of the same differ by as much.
MARGIN = 0.98


class Key(NamedTuple):
    """A call of a convolution, as `choice.choose` is asked about it, and what of the process counts.

    state: the device ("cpu", "cuda:1"; in a file its type), and the number of threads (CPU) or whether TF32 is allowed
        (GPU).
    """

    arguments: CallArguments
    dtype: torch.dtype
    channels_last: bool
    needs_grad: bool
    state: tuple[str, int | bool]


class Times(NamedTuple):
    """Seconds of PyTorch's operator and of ours, and of which kernels of ours: the fastest of `each` counts as ours."""

    aten: float
    ours: float
    each: tuple[tuple[str, float], ...] = ()

    @property
    def kernel(self) -> str:
        """The name of ours that was the fastest; nothing where only the planned one was, or none was right."""
        return min(self.each, key=lambda timed: timed[1])[0] if self.each else ""

    @property
    def ours_wins(self) -> bool:
        return self.ours < MARGIN * self.aten


def lookup(key: Key) -> Times | None:
    """What was measured of a call on this machine, if anything."""
    return _plans.of(key.state[0]).get(_anywhere(key))


def add(found: dict[Key, Times], write: bool = True) -> list[Path]:
    """Keeps times for this process and, unless ATROUSOPS_PLANS=none, for later ones; returns the files written.

    write: False leaves the files alone.
    """
    devices = dict.fromkeys(key.state[0] for key in found)
    by_device = {d: {_anywhere(k): times for k, times in found.items() if k.state[0] == d} for d in devices}
    paths = [_plans.add(d, rows, write) for d, rows in by_device.items()]
    return [path for path in paths if path is not None]


def _anywhere(key: Key) -> Key:
    # A file is of one model of GPU, whichever of a machine it is.
    device, rest = key.state
    return key._replace(state=(device.partition(":")[0], rest))


def forget() -> None:
    """Drops what was read or added; files stay."""
    _plans.forget()


def plans_path(device: str) -> Path | None:
    """The file of a device's measured plans; None where ATROUSOPS_PLANS=none.

    ATROUSOPS_PLANS names the folder, by default atrousops/plans in the user's cache. The file's name has the processor
    or GPU and torch's version, for PyTorch's own kernels change with it.
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
