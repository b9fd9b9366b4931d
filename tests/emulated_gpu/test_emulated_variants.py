"""Kernels for dtypes, vectors, axes and sizes that the samples of every operator lack: each case launches its own."""

import os
import re

import pytest
import samples
import torch
from emulated_cases import Results, assert_as_the_cpu, launched

import atrousops.functional as A

pytestmark = [pytest.mark.gpu, pytest.mark.skipif("ATROUSOPS_EMULATED" not in os.environ, reason="of the emulation")]

BF16, HALF, FLOAT, DOUBLE = torch.bfloat16, torch.float16, torch.float32, torch.float64
EVERY = (DOUBLE, FLOAT, BF16, HALF)


def leaf(*shape: int, dtype: torch.dtype, last: bool = True) -> torch.Tensor:
    """Numbers that every dtype has."""
    x = samples.rand(*shape).to(BF16).to(dtype)
    return (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()


def with_gradients(outputs: list[torch.Tensor], *leaves: torch.Tensor) -> list[torch.Tensor]:
    ends = [y for y in outputs if y.requires_grad]
    # In the format of the outputs.
    seeds = [torch.empty_like(y).copy_(torch.linspace(-1, 1, y.numel()).view(y.shape).to(BF16)) for y in ends]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(ends, leaves, seeds)]


def codes(channels: int, last: bool) -> Results:
    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        x = leaf(1, channels, 9, 8, dtype=dtype, last=last)
        y, marks = A.max_pool2d(x, 2, return_indices="codes")
        return with_gradients([y, A.max_unpool2d(y, marks, 2, output_size=x.shape)], x)

    return run


def indices(channels: int, last: bool) -> Results:
    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        x = leaf(1, channels, 9, 8, dtype=dtype, last=last)
        y, marks = A.max_pool2d(x, 2, return_indices=True)
        return [marks, *with_gradients([y, A.max_unpool2d(y, marks, 2, output_size=x.shape)], x)]

    return run


def depthwise(channels: int, groups: int) -> Results:
    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        x, w = leaf(1, channels, 6, 5, dtype=dtype), leaf(channels, channels // groups, 3, 3, dtype=dtype)
        return with_gradients([A.conv2d(x, w, None, 1, 2, 2, groups)], x, w)

    return run


def stack(channels: int) -> Results:
    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        weights = [leaf(channels, channels, 3, 3, dtype=dtype).detach() / 64 for _ in range(2)]
        return [A.context_module(leaf(1, channels, 5, 6, dtype=dtype).detach(), weights, None, (1, 2))]

    return run


def filtered(axes: int, images: int = 1) -> Results:
    """Sparse enough that few pixels share a vertex."""

    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        x = leaf(images, 3, 4, 6, dtype=dtype, last=False)
        return with_gradients(
            [A.permutohedral_filter(x, 3 * leaf(images, axes, 4, 6, dtype=dtype).detach(), "symmetric")], x
        )

    return run


def sorted_in_tiles(dtype: torch.dtype) -> list[torch.Tensor]:
    """More vertices than CUB sorts in one block, by their keys, and by their images."""
    x = leaf(2, 3, 20, 22, dtype=dtype, last=False)
    return with_gradients([A.permutohedral_filter(x, 20 * leaf(2, 5, 20, 22, dtype=dtype).detach(), "symmetric")], x)


def inferred(labels: int, lattices: int = 1, matrix: bool = False) -> Results:
    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        scores, lattice = leaf(1, labels, 4, 5, dtype=dtype).detach(), A.permutohedral_lattice(samples.rand(1, 2, 4, 5))
        mu = -torch.eye(labels, dtype=dtype) if matrix else -torch.ones(labels, dtype=dtype)
        return [A.mean_field(scores, [lattice] * lattices, [mu / lattices] * lattices, 2)]

    return run


def aligned(dtype: torch.dtype) -> list[torch.Tensor]:
    """Boxes in fp64."""
    x = leaf(2, 5, 8, 9, dtype=dtype, last=False)
    return with_gradients([A.roi_align(x, samples.boxes().double(), (2, 3), sampling_ratio=2)], x)


def many_phases(dtype: torch.dtype) -> list[torch.Tensor]:
    """More words than a launch's parameters hold."""
    x, w = leaf(1, 2, 3, 3, dtype=dtype, last=False), leaf(2, 3, 48, 48, dtype=dtype, last=False)
    return with_gradients([A.conv_transpose2d(x, w, None, 32)], x, w)


SORTS = ("Histogram", "ExclusiveSum", "Onesweep")
# Kernels, what launches them, and at which dtypes.
CASES: dict[str, tuple[list[str], Results, tuple[torch.dtype, ...]]] = {
    "codes of planes": (["max_pool_kernel<.*char, 1>", "pick_kernel<.*char>"], codes(3, False), EVERY),
    "codes of vectors": (["place_windows_kernel<.*char, [248]>"], codes(32, True), EVERY),
    "indices of planes": (["max_pool_kernel<.*long, 1>"], indices(3, False), EVERY),
    "indices of vectors": (["place_windows_kernel<.*long, [248]>"], indices(32, True), EVERY),
    "depthwise weights of vectors": (["conv_grouped_weight_kernel<.*, [248]>"], depthwise(64, 64), EVERY),
    "groups of two": (["conv_grouped_weight_kernel<.*, 1>"], depthwise(64, 32), EVERY),
    **{
        f"context of {8 * n} channels": ([rf"context_module_kernel<.*, {n}>"], stack(8 * n), (BF16, HALF))
        for n in (2, 3, 4)
    },
    **{f"features on {d} axes": ([rf"lattice_place<.*, {d}>"], filtered(d), (DOUBLE, FLOAT)) for d in range(1, 8)},
    "two images": (["lattice_images", "lattice_gather_keys"], filtered(2, 2), (FLOAT,)),
    "many vertices": (
        [rf"DeviceRadixSort{kernel}Kernel<.*<unsigned {key}" for kernel in SORTS for key in ("int", "long")],
        sorted_in_tiles,
        (FLOAT,),
    ),
    "a matrix of labels": (["lattice_mix<", "mean_field_step<.*, true, true>"], inferred(5, 1, True), (DOUBLE, FLOAT)),
    "five lattices": (["mean_field_step<.*, true, false>"], inferred(5, 5), (DOUBLE, FLOAT)),
    "140 labels": (["mean_field_step<.*, false, true>"], inferred(140), (DOUBLE, FLOAT)),
    "140 labels, five lattices": (["mean_field_step<.*, false, false>"], inferred(140, 5), (DOUBLE, FLOAT)),
    "boxes in fp64": ([r"roi_align_geometry<double, float, (true|false)>"], aligned, (FLOAT, HALF)),
    "many phases": (["conv_table_write"], many_phases, (FLOAT,)),
}


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, case in CASES.items() for dtype in case[2]])
def test_a_variant(name, dtype):
    expected, results, _ = CASES[name]
    found = launched(lambda: assert_as_the_cpu(results, dtype))
    for kernel in expected:
        assert any(re.search(kernel, k) for k in found), (kernel, sorted(found))
