"""Boxes and shapes that the tests of roi_align and roi_pool share."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from hypothesis import strategies as st
from oracle import assert_close, in_order, on_the_cpu
from torch import Tensor
from torch.utils._pytree import tree_map_only

_T = TypeVar("_T")

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# (N, C, H, W), boxes, output size, spatial scale: each with the reason it is here.
SHAPES = [
    ((2, 3, 11, 13), 5, (3, 4), 1.0),  # fewer channels than a vector has lanes, bins not square
    ((1, 16, 9, 9), 60, (5, 5), 0.5),  # exactly one block of channels; boxes overlap, so that a tile pays
    ((3, 37, 12, 11), 30, (7, 7), 0.25),  # two blocks and a ragged third; images with few boxes
    ((1, 5, 1, 30), 4, (2, 3), 1.0),  # one row: every sample sits on the last row
    ((2, 1, 6, 1), 4, (1, 1), 1.0),  # one column and one channel: both memory formats are the same memory
]


def peer(name: str):
    """torchvision.ops' function, on the CPU: on a GPU it would compile another for deterministic algorithms.

    A run under another torch has no torchvision, and leaves its tests out.
    """
    import torchvision

    return functools.partial(on_the_cpu, getattr(torchvision.ops, name))


def random_boxes(count: int, shape: tuple[int, ...], scale: float) -> Tensor:
    """Boxes of many sizes, some partly or wholly off the map, one a single point; exact in bfloat16's 8 bits and up."""
    n, _, h, w = shape
    extent = torch.tensor([w, h], dtype=torch.float64) / scale
    centre = (torch.rand(count, 2, dtype=torch.float64) * 1.4 - 0.2) * extent
    half = torch.rand(count, 2, dtype=torch.float64) * extent / 2
    half[:1] = 0  # a point
    image = torch.randint(n, (count, 1)).double()
    return torch.cat([image, centre - half, centre + half], 1).float().double()


def features(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    """Random features that every dtype holds exactly, so that all compute the same problem."""
    x = torch.randn(shape, dtype=torch.float64).bfloat16().to(torch.float16).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def with_gradient(op, x: Tensor, boxes: Tensor, *args: object, upstream: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The output and the gradient in the features."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = op(leaf, boxes, *args)
    y.backward(torch.ones_like(y) if upstream is None else upstream.to(y.dtype))
    return y.detach(), leaf.grad


def repeated(run: Callable[[], _T], backend: str) -> Iterator[_T]:
    """The run's results with one thread and two, or with a block's threads in two orders; one of them twice."""
    for i in (1, 2, 2):
        with in_order(backend, i):
            yield run()


def assert_agree(ours: tuple[Tensor, ...], exact: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    """The tolerance rule for outputs and gradients. In fp64 the oracle has roundings of its own: a few hundred."""
    for one, two, three in zip(ours, exact, theirs):
        if one.dtype == torch.float64:
            largest = two.abs().max().item() if two.numel() else 0.0
            torch.testing.assert_close(one, two, rtol=0, atol=256 * torch.finfo(one.dtype).eps * largest)
        else:
            assert_close(one, two, three)


# What a caller may get wrong: arguments changed from a good call, the exception, and a word of its message.
GOOD = {"output_size": (2, 2), "spatial_scale": 1.0}
BAD_CALLS = [
    ({"input": torch.zeros(3, 8, 8)}, ValueError, r"input must have shape \(N, C, H, W\); got \(3, 8, 8\)"),
    ({"input": torch.zeros(1, 3, 8, 8, dtype=torch.long)}, TypeError, "input must be a float64"),
    ({"input": torch.zeros(1, 3, 0, 8)}, ValueError, "input must have at least one pixel"),
    ({"boxes": torch.zeros(2, 4)}, ValueError, r"boxes must have shape \(K, 5\); got \(2, 4\)"),
    ({"boxes": torch.zeros(2, 5, dtype=torch.long)}, TypeError, "boxes must be a floating tensor"),
    ({"boxes": [torch.zeros(2, 5)]}, ValueError, r"boxes\[0\] must have shape \(L, 4\)"),
    ({"boxes": [torch.zeros(2, 4)] * 3}, ValueError, "boxes must have at most one tensor for each of the 2 images"),
    ({"boxes": "boxes"}, TypeError, "boxes must be a .K, 5. tensor or a list"),
    ({"output_size": 0}, ValueError, "output_size must be positive"),
    ({"output_size": (2, 2, 2)}, ValueError, "output_size must be one integer or"),
    ({"spatial_scale": 0.0}, ValueError, "spatial_scale must be positive and finite"),
    ({"spatial_scale": float("nan")}, ValueError, "spatial_scale must be positive and finite"),
    ({"spatial_scale": "1"}, TypeError, "spatial_scale must be a number"),
]

# The same of what boxes hold, which only the host may refuse.
BAD_BOXES = [
    ({"boxes": torch.tensor([[0, 1, 1, float("nan"), 3]])}, ValueError, "boxes must be finite; got box 0"),
    ({"boxes": torch.tensor([[0, 1, 1, float("inf"), 3]])}, ValueError, "boxes must be finite"),
    ({"boxes": torch.tensor([[0.0, 1, 1, 2, 2], [0, 3, 1, 2, 2]])}, ValueError, "x1 <= x2 and y1 <= y2; got box 1"),
    ({"boxes": torch.tensor([[0.0, 1, 4, 2, 2]])}, ValueError, "x1 <= x2 and y1 <= y2"),
    ({"boxes": torch.tensor([[2.0, 1, 1, 2, 2]])}, ValueError, r"image index among 0 \.\. 1"),
    ({"boxes": torch.tensor([[-1.0, 1, 1, 2, 2]])}, ValueError, "image index among"),
    ({"boxes": torch.tensor([[0.5, 1, 1, 2, 2]])}, ValueError, "image index among"),
]


def check_bad_boxes_on_a_device(op) -> None:
    """What a GPU makes of them: NaN for each, nothing sent, and their neighbours as if they were not there."""
    good = torch.tensor([[1.0, 0, 2, 5, 6], [0, 1, 1, 5, 5]])
    bad = [changes["boxes"][-1:].to(good.device) for changes, _, _ in BAD_BOXES]
    boxes = torch.cat([good[:1], *bad, good[1:]])
    for dtype, channels_last in itertools.product((torch.float64, torch.bfloat16), (False, True)):
        x = features((2, 8, 8, 8), dtype, channels_last)
        y, grad = with_gradient(op, x, boxes, (2, 3))
        expected, expected_grad = with_gradient(op, x, good, (2, 3))
        assert y[1:-1].isnan().all()
        assert torch.equal(y[[0, -1]], expected)
        assert torch.equal(grad, expected_grad)


def bad_call(changes: dict) -> dict:
    """A good call's arguments with these changed."""
    good = {"input": torch.zeros(2, 3, 8, 8), "boxes": torch.tensor([[0.0, 1, 1, 5, 5]]), **GOOD}
    return good | tree_map_only(Tensor, lambda t: t.to(torch.get_default_device()), changes)


@st.composite
def problems(draw):
    """Random valid features, boxes, output size and scale."""
    shape = tuple(draw(st.integers(1, top)) for top in (3, 40, 12, 12))
    size = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    scale = draw(st.sampled_from([0.0625, 0.3, 1.0, 2.0]))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    return shape, random_boxes(draw(st.integers(0, 30)), shape, scale), size, scale
