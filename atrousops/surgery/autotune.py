"""autotune: measures the convolutions of a call, and Triton's tiles, in place of the planner's prediction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from atrousops.common.checks import bad_type, bad_value
from atrousops.common.testing import clock_of
from atrousops.dispatch import backends, choice, libraries, measured
from atrousops.dispatch.measured import Key, Times
from atrousops.proof import contest
from atrousops.proof.run import ensure


@dataclass
class Tuning:
    """What was measured: seconds of PyTorch's operator and of the fastest of ours for each call. Prints as a table.

    Attributes:
        times: by call.
        predicted: what the planner would have run: "aten" or one of ours.
        files: where times and tiles are kept.
        tiles: of Triton's kernels the tile that was the fastest, by class of layers.
    """

    times: dict[Key, Times]
    predicted: dict[Key, str]
    files: list[Any]
    tiles: dict[Any, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{'call':<72} {'aten ms':>9} {'ours ms':>9} {'x':>6}  choice"]
        for key, times in self.times.items():
            choice = (times.kernel or "ours") if times.ours_wins else "aten"
            predicted = self.predicted[key]
            same = choice == predicted or (choice == "ours" and predicted != "aten")
            changed = "" if same else "  (predicted otherwise)"
            numbers = f"{times.aten * 1e3:9.3f} {times.ours * 1e3:9.3f} {times.aten / times.ours:6.2f}"
            lines.append(f"{_name(key):<72} {numbers}  {choice}{changed}")
        before = sum(dict([("aten", t.aten), *t.each]).get(self.predicted[k], t.ours) for k, t in self.times.items())
        after = sum(t.ours if t.ours_wins else t.aten for t in self.times.values())
        lines.append(f"{len(self.times)} calls: {before * 1e3:.3f} ms as predicted, {after * 1e3:.3f} ms as measured")
        for layers, tile in self.tiles.items():
            channels = f"{layers.depth} -> {layers.width} channels"
            lines.append(f"Triton's {layers.kernel}, {layers.dtype}, {channels}: {'x'.join(map(str, tile[:3]))}, "
                         f"{tile.warps} warps, {tile.stages} stages")  # fmt: skip
        return "\n".join([*lines, *(f"-> {path}" for path in self.files)])


def autotune(call: Callable[..., Any], *inputs: Any, budget: float = 0.5, **kwargs: Any) -> Tuning:
    """Measures every convolution of a call on PyTorch's kernel and on a few of ours, and keeps the fastest on disk.

    Runs `call(*inputs, **kwargs)` once and notes which convolutions it makes (with gradients enabled: those of the
    backward pass too, if the result wants gradients). Each is then timed on random tensors, on PyTorch's kernel and
    on the three of ours that are predicted to be the fastest, in turn, once per machine: what is known already is not
    measured again. From then on, in this process and later ones, the measured choice counts: it is ours where the
    fastest of ours took less than 0.98 of PyTorch's time. `explain` says so. On a GPU,
    `torch.backends.cudnn.benchmark = True` has the first call of each shape make the same measurement, for the process.

    Where Triton runs, its kernels first take the fastest of a short list of tiles, once for each class of layers:
    dtype, channels and memory format, whatever the image's size. Under `ao.backend("triton")` nothing else is measured.

    On a GPU of which nothing is known `selfcheck` runs first. Calls of few elements go to PyTorch's operator
    unmeasured, and so do those whose kernel has not passed. Plans are kept per processor or GPU and torch version, in
    the folder ATROUSOPS_PLANS or the user's cache; ATROUSOPS_PLANS=none keeps and reads nothing.

    Args:
        call: a module, or any function that calls `atrousops.functional`.
        inputs, kwargs: its arguments.
        budget: seconds a convolution, beyond three rounds.

    Returns:
        A Tuning: print it.

    Raises:
        ArgumentTypeError: `call` cannot be called.
        ArgumentError: another backend is forced, so that there is nothing to choose.
    """
    if not callable(call):
        bad_type("autotune", "call", "be a module or a function", type(call).__name__)
    if backends.forced() not in (None, "triton"):
        bad_value("autotune", "backend", "not be forced", repr(backends.forced()), "Leave backend(...) first.")
    tensors = [t for t in pytree.tree_leaves((inputs, kwargs)) if isinstance(t, Tensor)]
    tensors += list(call.parameters()) if isinstance(call, torch.nn.Module) else []
    for device in dict.fromkeys(t.device for t in tensors):
        ensure(device)
    with _tiles_measured(budget) as (tiles, tile_files):
        tuning = _tuned(_calls_of(call, inputs, kwargs), budget)
    tuning.tiles = tiles
    tuning.files += tile_files()
    return tuning


@contextlib.contextmanager
def _tiles_measured(budget: float) -> Iterator[tuple[dict[Any, Any], Callable[[], list[Any]]]]:
    """Inside, Triton's kernels measure their tiles; gives those found, and which files they are in."""
    if libraries.triton.problem is not None:
        yield {}, list
        return
    from atrousops.triton import tiles

    with tiles.measuring(clock_of, budget) as session:
        yield session.found, lambda: [p for p in map(tiles.path, session.devices) if p is not None]


def _tuned(keys: dict[Key, str], budget: float) -> Tuning:
    from tqdm import tqdm

    known = {key: times for key in keys if (times := measured.lookup(key)) is not None}
    found: dict[Key, Times] = {}
    # Gradients first, for training takes the best of them.
    unknown = sorted((key for key in keys if key not in known and contest.runs(key)), key=lambda key: key.needs_grad)
    for key in tqdm(unknown, unit="call", disable=None, leave=False):
        found[key] = contest.measure(key, budget)
        if not key.needs_grad:
            measured.add({key: found[key]})
            choice.forget()
    files = measured.add(found) if found else []
    choice.forget()
    return Tuning(known | found, {key: keys[key] for key in known | found}, files)


def _calls_of(call: Callable[..., Any], inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[Key, str]:
    """What the planner is asked when the call runs, and what it would answer without measurements."""
    choice.forget()
    with choice.watched() as seen:
        outputs = call(*inputs, **kwargs)
        wanting = [t for t in torch.utils._pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.requires_grad]
        if wanting:
            leaves = [t for t in torch.utils._pytree.tree_leaves((inputs, kwargs)) if isinstance(t, Tensor)]
            leaves += list(call.parameters()) if isinstance(call, torch.nn.Module) else []
            leaves = [t for t in leaves if t.requires_grad]
            torch.autograd.grad(wanting, leaves, [torch.ones_like(t) for t in wanting], allow_unused=True)
    return {key: _predicted(key) for key in seen}


def _predicted(key: Key) -> str:
    return choice.predict_call(key.arguments, key.dtype, key.channels_last, key.needs_grad, key.state[0]).kernel


def _name(key: Key) -> str:
    a = key.arguments
    sizes = " ".join("x".join(map(str, size)) for size in (a.input_size, a.weight_size))
    steps = f"s{a.stride[-1]} d{a.dilation[-1]}" + (f" g{a.groups}" if a.groups > 1 else "")
    layout = "channels_last" if key.channels_last else "contiguous"
    kind = a.kind + (" training" if key.needs_grad else "")
    return f"{kind} {sizes} {steps} {str(key.dtype).removeprefix('torch.')} {layout}"
