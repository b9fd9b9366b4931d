"""Which of a short list of tiles a kernel takes: the one that `ao.autotune` found the fastest here, or the first.

A list belongs to a kernel and a class of layers (dtype, channels, memory format) and not to an image's size, so that
another size compiles nothing. Choices are kept beside the measured plans, by GPU, torch's and Triton's versions.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from atrousops.common.testing import Clock, interleaved
from atrousops.dispatch.measured import MARGIN, Store

log = logging.getLogger("atrousops")


class Tile(NamedTuple):
    """Rows and columns of a result, depth of a step of its sum, warps, and steps that loads run ahead."""

    rows: int
    columns: int
    depth: int
    warps: int = 4
    stages: int = 3


class Layers(NamedTuple):
    """The layers that share a choice; channels are counted up to powers of two."""

    kernel: str
    dtype: str
    tf32: bool
    width: int
    depth: int
    units: tuple[int, ...] = ()


class _Session(NamedTuple):
    clock_of: Callable[[torch.device], Clock]
    budget: float
    found: dict[Layers, Tile]
    devices: dict[str, None]


_measuring: list[_Session] = []


@contextlib.contextmanager
def measuring(clock_of: Callable[[torch.device], Clock], budget: float) -> Iterator[_Session]:
    """Inside, a launch of an unknown class measures its list first, `budget` seconds beyond three rounds.

    Gives what was found, and on which types of devices.
    """
    session = _Session(clock_of, budget, {}, {})
    _measuring.append(session)
    try:
        yield session
    finally:
        _measuring.pop()


def start(of: Layers, tiles: Sequence[Tile], device: torch.device, launch: Callable[[Tile], object]) -> None:
    """Launches with the tile chosen for a class; more than once only while measuring."""
    tile = _choices.of(device.type).get(of, tiles[0])
    known = of in _choices.of(device.type) and tile in tiles
    if not known and _measuring and torch._C._len_torch_dispatch_stack() == 0:
        session = _measuring[-1]
        tile = session.found[of] = _fastest(tiles, launch, session.clock_of(device), session.budget)
        session.devices[device.type] = None
        _choices.add(device.type, {of: tile})
    launch(tile if tile in tiles else tiles[0])


def forget() -> None:
    """Drops what was read or found; files stay."""
    _choices.forget()


def path(device: str) -> Path | None:
    """The file of a device's choices."""
    return _choices.path(device)


def _fastest(tiles: Sequence[Tile], launch: Callable[[Tile], object], clock: Clock, budget: float) -> Tile:
    runs = {}
    for tile in tiles:
        try:
            launch(tile)
        except Exception as error:  # of the compiler or the driver, such as too much shared memory
            log.info("%s does not run here: %s", tile, error)
        else:
            runs[tile] = partial(launch, tile)
    if not runs:
        return tiles[0]
    timings = interleaved(*runs.values(), repeats=15, budget=budget, clock=clock, warm_up=False)
    seconds = {tile: timing.lower for tile, timing in zip(runs, timings)}
    best = min(seconds, key=lambda tile: seconds[tile])
    # The rule's, unless another is faster by more than measurements differ.
    return best if seconds[best] < MARGIN * seconds.get(tiles[0], float("inf")) else tiles[0]


def _suffix() -> str:
    import triton

    return "-triton-" + ".".join(triton.__version__.split(".")[:2])


def _entry(row: dict[str, Any]) -> tuple[Layers, Tile]:
    of = Layers(row["kernel"], row["dtype"], row["tf32"], row["width"], row["depth"], tuple(row["units"]))
    return of, Tile(*map(int, row["tile"]))


_choices: Store[Layers, Tile] = Store("measured tiles", _suffix, lambda of, tile: of._asdict() | {"tile": tile}, _entry)
