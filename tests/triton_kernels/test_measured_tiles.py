"""Which of its tiles a kernel takes: as measured, by a pretended clock, or the first; kept for later processes."""

import importlib

import ahead
import pytest
import torch

import atrousops as ao
import atrousops.functional as A
from atrousops.common.checks import ArgumentError
from atrousops.dispatch import measured
from atrousops.triton import conv, tiles
from atrousops.triton.tiles import Layers, Tile

# The function bears the module's name.
AUTOTUNE = importlib.import_module("atrousops.surgery.autotune")
CPU = torch.device("cpu")
TILES = [Tile(128, 32, 16), Tile(64, 32, 16), Tile(32, 32, 16, 8)]
LAYERS = Layers("conv", "torch.float32", True, 64, 16, (16, 4))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Choices of this test only."""
    monkeypatch.setenv("ATROUSOPS_PLANS", str(tmp_path))
    tiles.forget()
    yield tmp_path
    tiles.forget()


def started(clock=None, broken=()) -> list[Tile]:
    """The tiles that one call launches."""
    launched = []

    def launch(tile):
        if tile in broken:
            raise RuntimeError("out of resources: shared memory")
        launched.append(tile)

    if clock is None:
        tiles.start(LAYERS, TILES, CPU, launch)
    else:
        with tiles.measuring(lambda device: clock, budget=0):
            tiles.start(LAYERS, TILES, CPU, launch)
    return launched


def pretended(seconds):
    """A clock that runs a launch and says what it is told to."""

    def clock(run):
        run()
        return seconds[run.args[0]]

    return clock


def test_the_first_unless_measured(folder):
    assert started() == [TILES[0]]
    assert not list(folder.iterdir())


def test_the_fastest_is_taken_and_kept(folder):
    launched = started(pretended(dict(zip(TILES, (3.0, 1.0, 2.0)))))
    assert set(launched) == set(TILES)
    assert launched[-1] == TILES[1]
    assert started(pretended({})) == [TILES[1]]
    # A later process reads it, from a file beside the measured plans.
    tiles.forget()
    assert started() == [TILES[1]]
    (path,) = folder.iterdir()
    assert path.name.startswith(measured.plans_path("cpu").stem + "-triton-")


def test_a_small_gain_is_none():
    assert started(pretended(dict(zip(TILES, (1.0, 0.99, 2.0)))))[-1] == TILES[0]


def test_a_tile_that_does_not_run_here_is_left_out():
    assert started(pretended(dict(zip(TILES, (3.0, 1.0, 2.0)))), broken=TILES[1:2])[-1] == TILES[2]


def test_a_tile_that_is_no_longer_listed_is_not_taken(monkeypatch):
    started(pretended(dict(zip(TILES, (3.0, 1.0, 2.0)))))
    monkeypatch.setattr(f"{__name__}.TILES", [TILES[0], TILES[2]])
    assert started() == [TILES[0]]


def test_autotune_measures_a_class_once_whatever_the_size(monkeypatch):
    """The last tile of the list is the fastest, and stays for other sizes."""
    fastest = {}
    tiles_of = conv._tiles

    def listed(*args):
        fastest.update({tile: float(-i) for i, tile in enumerate(tiles_of(*args))})
        return tiles_of(*args)

    monkeypatch.setattr(conv, "_tiles", listed)
    monkeypatch.setattr(AUTOTUNE, "clock_of", lambda device: lambda run: fastest.get(run.args[0], 0.0) + 10)
    w = torch.ones(16, 16, 3, 3, dtype=torch.bfloat16)

    def run(size):
        x = torch.ones(1, 16, size, 9, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        return A.conv2d(x, w, padding=2, dilation=2)

    with ahead.recorded("sm_90") as found:
        tuning = ao.autotune(run, 8, budget=0)
        ((layers, tile),) = tuning.tiles.items()
        assert (layers.kernel, layers.width, layers.depth, layers.units) == ("conv", 16, 16, (16, 16))
        assert tile == tiles_of(torch.bfloat16, 16, 16, 16, False)[-1] != tiles_of(torch.bfloat16, 16, 16, 16, False)[0]
        assert "Triton's conv, torch.bfloat16, 16 -> 16 channels" in str(tuning)
        found.clear()
        run(33)
        assert list(found) == [name for name in found if f" {tile.rows}, {tile.columns}, {tile.depth}>" in name] != []
        assert not ao.autotune(run, 21, budget=0).tiles


def test_nothing_to_choose_under_another_backend():
    with ao.backend("reference"), pytest.raises(ArgumentError, match="not be forced"):
        ao.autotune(lambda: None)
