"""Every functional operator, forward and backward, on the samples of samples.py and on tensors of the default device.

python tests/every_operator.py [N] runs them all, or the first N, on the GPU: what compute-sanitizer watches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import samples
import torch

import atrousops as ao
import atrousops.functional as A
from atrousops.dispatch.devices import is_emulated


def _wide(groups: int) -> tuple[tuple, dict]:
    """Enough channels for tensor cores, and rows of whole vectors."""
    x = torch.linspace(-1, 1, 2 * 32 * 7 * 6).view(2, 32, 7, 6)
    w = torch.linspace(-1, 1, 16 * 32 * 9).view(16, 32, 3, 3) if groups == 1 else torch.ones(32, 1, 3, 3)
    return (x, w), {"padding": 2, "dilation": 2, "groups": groups}


def _filter() -> tuple[tuple, dict]:
    (values, features), keywords = samples.FUNCTIONS["permutohedral_filter"]()
    return (values, A.permutohedral_lattice(features)), keywords


# The function's name in atrousops.functional, and its sample.
CASES: dict[str, tuple[str, Callable[[], tuple[tuple, dict]]]] = {
    **{name: (name, sample) for name, sample in samples.FUNCTIONS.items()},
    "conv2d of many channels": ("conv2d", lambda: _wide(1)),
    "conv2d depthwise": ("conv2d", lambda: _wide(32)),
    "permutohedral_filter over a lattice": ("permutohedral_filter", _filter),
}
# Many blocks: what a small sample cannot show.
LARGE: dict[str, tuple[str, Callable[[], tuple[tuple, dict]]]] = {
    "conv2d": (
        "conv2d",
        lambda: ((samples.rand(2, 64, 65, 63), samples.rand(96, 64, 3, 3)), {"padding": 6, "dilation": 6}),
    ),
    "conv_transpose2d": (
        "conv_transpose2d",
        lambda: ((samples.rand(2, 21, 17, 19), samples.rand(21, 21, 16, 16)), {"stride": 8, "padding": 4}),
    ),
    "max_pool2d": ("max_pool2d", lambda: ((samples.rand(2, 40, 129, 131), 3, 2, 1), {})),
    "roi_align": ("roi_align", lambda: ((samples.rand(2, 70, 60, 70), samples.boxes(300, 60.0), (7, 7)), {})),
    "roi_pool": ("roi_pool", lambda: ((samples.rand(2, 70, 60, 70), samples.boxes(300, 60.0), (7, 7)), {})),
    "permutohedral_filter": (
        "permutohedral_filter",
        lambda: ((samples.rand(1, 21, 60, 80), samples.rand(1, 5, 60, 80) * 20), {"normalize": "symmetric"}),
    ),
}
# Races that repeat show in a hundred runs; an emulated device takes seconds for each, in an order that a seed gives.
RUNS = 2 if is_emulated() else 100
if is_emulated():
    LARGE = {}
DTYPES = (torch.float32, torch.bfloat16)
WITHOUT_GRADIENT = ("permutohedral_lattice",)
# Building a lattice waits for the GPU once, for its size.
WAITING = ("permutohedral_filter", "permutohedral_lattice")


def _prepared(
    value: Any, dtype: torch.dtype, channels_last: bool, leaves: list[torch.Tensor], rounded: torch.dtype
) -> Any:
    """The arguments, maps and weights in that dtype and format and with gradients, the rest as it is."""
    if type(value) in (tuple, list):
        return type(value)(_prepared(v, dtype, channels_last, leaves, rounded) for v in value)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dim() < 3:
        return value
    value = value.to(rounded).to(dtype)
    if channels_last and value.dim() == 4:
        value = value.contiguous(memory_format=torch.channels_last)
    leaves.append(value.detach().requires_grad_())
    return leaves[-1]


@dataclass
class Prepared:
    """A call with its arguments."""

    leaves: list[torch.Tensor]
    run: Callable[[], tuple[list[torch.Tensor], list[torch.Tensor]]]
    outputs: Callable[[], list[torch.Tensor]]

    def flip(self) -> None:
        """Other arguments, in the same place."""
        for leaf in self.leaves:
            leaf.data.copy_(leaf.data.flip(-1))

    def bits(self) -> list[torch.Tensor]:
        """Outputs and gradients, kept."""
        return [t.clone() for part in self.run() for t in part]


def prepared(
    case: tuple[str, Callable], dtype: torch.dtype, channels_last: bool, rounded: torch.dtype | None = None
) -> Prepared:
    """`run` gives the outputs, with gradients wanted and without, and the gradients.

    `rounded`: the dtype whose numbers the arguments are, where they are calculated with in another.
    """
    rounded = rounded or dtype
    name, sample = case
    args, kwargs = sample()
    leaves: list[torch.Tensor] = []
    args = _prepared(args, dtype, channels_last, leaves, rounded)
    upstream: dict[torch.Size, torch.Tensor] = {}

    def call() -> list[torch.Tensor]:
        return samples.tensors(getattr(A, name)(*args, **kwargs))

    def run() -> tuple[list, list]:
        outputs = call()
        with torch.no_grad():
            alone = call()
        ends = [y for y in outputs if y.requires_grad]
        for y in ends:
            if y.shape not in upstream:
                upstream[y.shape] = torch.linspace(-1, 1, y.numel()).view(y.shape).to(rounded).to(y.dtype)
        seeds = [upstream[y.shape] for y in ends]
        gradients = torch.autograd.grad(ends, leaves, seeds, allow_unused=True) if ends else ()
        return [y.detach() for y in (*outputs, *alone)], [g for g in gradients if g is not None]

    return Prepared(leaves, run, call)


def main() -> None:
    names = list(CASES)[: int(sys.argv[1]) if sys.argv[1:] else None]
    with torch.device("cuda"), ao.backend("cuda"):
        for case in names:
            for dtype in (torch.float64, *DTYPES):
                for channels_last in (False, True):
                    prepared(CASES[case], dtype, channels_last).run()
    torch.cuda.synchronize()
    print(f"{len(names)} cases on {torch.cuda.get_device_name()}")


if __name__ == "__main__":
    main()
