"""Which of a short list of tiles a kernel takes: the one that `ao.autotune` found the fastest here, or the first.

A list belongs to a kernel and a class of layers (dtype, channels, memory format) and not to an image's size, so that
another size compiles nothing. Choices are kept beside the measured plans, by GPU, torch's and Triton's versions.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from atrousops._stored import Store
from atrousops.measured import MARGIN
from atrousops.testing import Clock, interleaved

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
    clock: Clock
    budget: float
    found: dict[Layers, Tile]


_measuring: list[_Session] = []


@contextlib.contextmanager
def measuring(clock: Clock, budget: float) -> Iterator[dict[Layers, Tile]]:
    """Inside, a launch of an unknown class measures its list first, `budget` seconds beyond three rounds.

    Gives what was found.
    """
    session = _Session(clock, budget, {})
    _measuring.append(session)
    try:
        yield session.found
    finally:
        _measuring.remove(session)


def start(of: Layers, tiles: Sequence[Tile], device: torch.device, launch: Callable[[Tile], object]) -> None:
    """Launches with the tile chosen for a class; more than once only while measuring."""
    tile = _choices.of(device.type).get(of, tiles[0])
    known = of in _choices.of(device.type) and tile in tiles
    if not known and _measuring and torch._C._len_torch_dispatch_stack() == 0:
        session = _measuring[-1]
        tile = session.found[of] = _fastest(tiles, launch, session.clock, session.budget)
        _choices.add(device.type, {of: tile})
    launch(tile if tile in tiles else tiles[0])


def forget() -> None:
    """Drops what was read or found; files stay."""
    _choices.forget()


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
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in row.items()}
    tile = Tile(*map(int, fields.pop("tile")))
    return Layers(**fields), tile


_choices: Store[Layers, Tile] = Store("measured tiles", _suffix, lambda of, tile: of._asdict() | {"tile": tile}, _entry)
