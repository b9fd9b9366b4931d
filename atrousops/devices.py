"""What a plan knows of the machine: its threads and throughputs, as defaults that measurements can replace."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import inf
from typing import Any, NamedTuple, TypeVar

import torch

from atrousops import _library

F = TypeVar("F", bound=Callable[..., Any])


class Rates(NamedTuple):
    """Throughputs for one dtype and memory format: FLOP/s of one thread, except as said.

    aten, aten_far: PyTorch's dense convolution up to dilation `near`, and beyond
    aten_two: the same at dilation 2, where the rows that taps span do not fit the L2 cache
    aten_thin: no more than this into few channels, where positions lie whole pages apart
    aten_pointwise: with a kernel of one position, where it is a plain GEMM
    aten_weight_grad, _odd, _far: its dense weight gradient: blocks of 8 channels, others; kernels beyond the image
    aten_strided, _odd, _grouped: its transposed convolution with a stride: blocks of 8 channels, others, depthwise
    aten_grouped, _grad: groups of odd numbers of channels, forward and gradients
    aten_depthwise, _grad, _far: forward, gradients; padding beyond `near`, and gradients dilated or of large filters
    gemm, gemm_weight: our gathered GEMM, and that of weight gradients; depthwise, grouped: our loops
    tensor, wgmma: our GEMMs on a GPU's tensor cores, by mma.sync and by Hopper's wgmma, 0 where there are none; all
        rates up to here are of a whole GPU then
    skips, weight_skips: along how many of the three axes, from the first, PyTorch leaves out the taps outside of the
        image; of a weight gradient, whose dilated kernel is no larger than the image
    tails: bytes/s at which PyTorch brings depthwise planes into blocks of 8 that they do not fill
    columns: bytes/s at which it writes the columns of an odd weight gradient that the cache does not hold
    results: bytes/s at which it rearranges the result of a strided transposed convolution
    pieces: bytes/s at which our GEMMs gather rows of channels that LANES does not divide
    copy: bytes/s of the whole machine, read and written
    aten_call, our_call, our_region: seconds of overhead of a call, and of each region
    """

    aten: float
    aten_far: float
    aten_two: float
    aten_thin: float
    aten_pointwise: float
    aten_weight_grad: float
    aten_weight_grad_odd: float
    aten_weight_grad_far: float
    aten_strided: float
    aten_strided_odd: float
    aten_strided_grouped: float
    aten_grouped: float
    aten_grouped_grad: float
    aten_depthwise: float
    aten_depthwise_grad: float
    aten_depthwise_far: float
    gemm: float
    gemm_weight: float
    depthwise: float
    grouped: float
    tensor: float
    wgmma: float
    near: float
    skips: float
    weight_skips: float
    tails: float
    columns: float
    results: float
    pieces: float
    copy: float
    aten_call: float
    our_call: float
    our_region: float


class Device(NamedTuple):
    """What a plan knows of the machine; the last three are a GPU's.

    kind: "cpu", "cuda", or "triton" for a GPU that Triton serves.
    """

    kind: str
    threads: int
    rates: Rates
    multiprocessors: int = 0
    shared_memory: int = 0
    capability: int = 0


def cpu_device(dtype: torch.dtype, channels_last: bool) -> Device:
    """This machine's CPU with the default rates for a dtype and memory format."""
    return Device("cpu", torch.get_num_threads(), default_rates(_isa(), _amx(), dtype, channels_last))


def gpu_device(dtype: torch.dtype, channels_last: bool) -> Device:
    """This machine's GPU, or an H100 or MI300X, with the default rates for a dtype and memory format."""
    gpu = _gpu() if torch.cuda.is_available() else _H100 if torch.version.hip is None else _MI300X
    if _library.cuda.problem is not None and _library.triton.problem is None:
        return Device("triton", 1, triton_rates(gpu, dtype, channels_last, tf32_allowed()), *gpu)
    return Device("cuda", 1, gpu_rates(gpu, dtype, channels_last, tf32_allowed()), *gpu)


def device_of(kind: str, dtype: torch.dtype, channels_last: bool) -> Device:
    """`cpu_device` or `gpu_device`, by the type of a torch.device."""
    return gpu_device(dtype, channels_last) if kind == "cuda" else cpu_device(dtype, channels_last)


def constant_in_graphs(function: F) -> F:
    """What torch.compiler.assume_constant_result does, which would import the compiler: as slow as importing torch."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_in_graphs
def tf32_allowed() -> bool:
    """torch.backends.cudnn.allow_tf32, or what the newer fp32_precision settings say for convolutions; not on ROCm."""
    return torch.version.hip is None and torch._C._get_fp32_precision_getter("cuda", "conv") == "tf32"


# Multiprocessors, bytes of shared memory of a block, capability.
_H100 = (132, 227 << 10, 90)
_MI300X = (304, 64 << 10, 94)


@cache
def _gpu() -> tuple[int, int, int]:
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    shared = gpu.shared_memory_per_block_optin  # type: ignore[attr-defined]  # torch's stubs lack it
    return gpu.multi_processor_count, shared, 10 * gpu.major + gpu.minor


@cache
def _isa() -> str:
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "plain")


@cache
def _amx() -> bool:
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


# GFLOP/s of a thread, the fields of Rates up to `grouped`.
# amx: two threads of a machine with AVX-512 and AMX, torch 2.14. 512->512 d=2 ran at 391 in fp32 channels_last and 3000
# in bf16; ASPP branches 2048->256 at 273 (fp32 NCHW), 445 of live rows (fp32 channels_last) and 147 to 350 (bf16 from
# dilation 12 on: oneDNN leaves AMX), a gathered GEMM per region at 690 to 1230; transposed 256->256 k2 s2 at 99, 21->21
# k16 s8 at 66, bilinear with 21 groups at 14; depthwise 3x3 d=2 forward and backward at 3.8. The rest is scaled.
# avx512: two threads of a Zen 4, which multiplies bf16 and not fp16; avx2: of a Zen 3, with no 16-bit convolution:
# groups are estimates there, and thin sums were not timed. torch 2.14; each figure from two to eight shapes, 3x3 on
# maps of 33x33 and 65x65 and the transposed ones above: medians of the Zen 4, the fastest of many calls of the Zen 3.
# plain: guesses in the same proportions.
_GFLOPS = {
    ("amx", "float", False): (136, 136, 136, inf, 195, 136, 136, 136, 50, 33, 7, 10, 5, 30, 10, 1.5, 160, 160, 5, 10),
    ("amx", "float", True): (195, 195, 195, inf, 195, 160, 160, 160, 80, 45, 10, 12, 6, 45, 15, 1.5, 160, 160, 7, 2.5),
    ("amx", "half", False): (1000, 120, 1000, inf, 1000, 500, 500, 500, 40, 20, 3, 5, 3, 10, 5, 1, 550, 550, 4, 8),
    ("amx", "half", True): (1500, 120, 1500, inf, 1500, 500, 500, 500, 40, 20, 3, 5, 3, 10, 5, 1, 550, 550, 6, 2),
    ("avx512", "float", False): (102, 90, 102, 52, 87, 90, 52, 43, 95, 48, 4.5, 15, 10, 30, 14, 1.5, 58, 58, 15, 36),
    ("avx512", "float", True): (106, 92, 106, 22, 103, 80, 52, 37, 95, 48, 30, 25, 25, 100, 70, 1.5, 80, 64, 20, 25),
    ("avx512", "half", False): (210, 200, 210, 110, 165, 150, 85, 75, 185, 50, 0.6, 20, 12, 25, 18, 1, 105, 60, 9, 20),
    ("avx512", "half", True): (200, 165, 200, 32, 190, 140, 85, 62, 185, 50, 0.5, 30, 20, 80, 40, 0.8, 150, 60, 9, 15),
    ("avx2", "float", False): (82, 82, 82, inf, 82, 45, 62, 45, 90, 28, 14, 7, 3.7, 30, 30, 0.8, 78, 52, 20, 40),
    ("avx2", "float", True): (82, 82, 55, inf, 88, 34, 43, 34, 90, 35, 33, 9, 4.6, 33, 33, 0.6, 88, 60, 20, 25),
    ("avx2", "half", False): (2.3, 2.3, 2.3, inf, 2.8, 9, 9, 9, 2, 1, 0.5, 1, 0.5, 0.5, 0.5, 0.3, 40, 40, 10, 20),
    ("avx2", "half", True): (9, 9, 9, inf, 6, 20, 20, 20, 3, 1, 0.5, 1, 0.5, 0.5, 0.5, 0.3, 45, 45, 8, 10),
    ("plain", "float", False): (8, 8, 8, inf, 8, 8, 8, 8, 5, 3, 1, 2, 1, 2, 1, 0.5, 8, 8, 1, 1),
    ("plain", "float", True): (8, 8, 8, inf, 8, 8, 8, 8, 5, 3, 1, 2, 1, 2, 1, 0.5, 8, 8, 1, 1),
    ("plain", "half", False): (*(0.5,) * 3, inf, *(0.5,) * 5, *(0.3,) * 4, 0.2, 0.2, 0.2, 6, 6, 0.8, 0.8),
    ("plain", "half", True): (*(0.5,) * 3, inf, *(0.5,) * 5, *(0.3,) * 4, 0.2, 0.2, 0.2, 6, 6, 0.8, 0.8),
}
# oneDNN's convolutions in channels_last leave out dead rows (2), and on the two machines where more was timed, dead
# columns too (3); in 16 bits only where there is hardware for them.
_SKIPS = {"amx": (2.0, 0.0), "avx512": (3.0, 3.0), "avx2": (3.0, 0.0)}
# The same of weight gradients, in both formats; only on a Zen 4 were they timed at such dilations.
_WEIGHT_SKIPS = {"avx512": 3.0}
# bytes/s of a large copy on the machines above.
_COPY = {"amx": 33e9, "avx512": 30e9, "avx2": 12e9, "plain": 8e9}
# For float and half. With AMX, oneDNN was fast at dilation 2 and slow at 12; nothing between was measured. Its
# depthwise kernel was fast with padding 4 and slow with 5 on AVX2, where dense ones do not care; with 6 and 7 on
# AVX-512, where dense ones in fp32 lose a sixth between dilation 6 and 8.
_NEAR = {"amx": (inf, 8.0), "avx512": (6.0, 6.0), "avx2": (4.0, inf)}
# tails, columns, results, pieces: planes of 20 to 100 depthwise channels at 2.4 to 8 GB/s, where channels_last is read
# as it lies; columns at 0.7 to 1.4 GB/s on AVX2, for glibc maps so much memory afresh at every call; results in NCHW at
# 1.2 to 2.1 GB/s on AVX-512 and 1.4 to 4 on AVX2, 17 MB slower than 4 MB, where channels_last leaves them as they are;
# pieces of 11 and 21 channels at 3 to 9 GB/s.
_REPACKING = {
    ("avx2", "float", False): (4e9, 1e9, 3e9, inf),
    ("avx2", "float", True): (inf, 1e9, inf, inf),
    ("avx512", "float", False): (4e9, inf, 1.5e9, 6e9),
    ("avx512", "float", True): (inf, inf, inf, 6e9),
    ("avx512", "half", False): (3e9, inf, 1.6e9, 3e9),
    ("avx512", "half", True): (inf, inf, inf, 3e9),
}
# A small call of torch.nn.functional, and of an operator of ours under no_grad; a region's set-up is an estimate.
_OVERHEADS = (7e-6, 12e-6, 2e-6)


@cache
def default_rates(isa: str, amx: bool, dtype: torch.dtype, channels_last: bool) -> Rates:
    """Default throughputs of a CPU whose best instruction set is "avx512", "avx2" or "plain"."""
    half = dtype.itemsize == 2
    row = "amx" if amx and isa == "avx512" else isa
    if row == "avx512" and dtype == torch.float16:
        row = "avx2"  # fp16 is computed in fp32 on both
    key = (row, "half" if half else "float", channels_last)
    near = _NEAR.get(row, (inf, inf))[half]
    skips = _SKIPS.get(row, (0.0, 0.0))[half] if channels_last and dtype != torch.float64 else 0.0
    weight_skips = _WEIGHT_SKIPS.get(row, 0.0) if dtype != torch.float64 else 0.0
    repacking = _REPACKING.get(key, (inf,) * 4) if dtype != torch.float64 else (inf,) * 4
    rates = Rates._make(
        [*(1e9 * x for x in _GFLOPS[key]), 0.0, 0.0, near, skips, weight_skips, *repacking, _COPY[row], *_OVERHEADS]
    )
    return _double(rates) if dtype == torch.float64 else rates


def _double(r: Rates) -> Rates:
    # No oneDNN, but im2col and a BLAS GEMM, measured at the rate of ours: a third of fp32's. Loops: half the lanes.
    gemm = r.gemm / 2.8
    names = ("aten", "aten_far", "aten_two", "aten_thin", "aten_pointwise", "aten_strided", "gemm")
    dense = dict.fromkeys(
        (*names, "aten_weight_grad", "aten_weight_grad_odd", "aten_weight_grad_far", "gemm_weight"), gemm
    )
    loops: tuple[str, ...] = (
        "aten_strided_odd",
        "aten_strided_grouped",
        "aten_grouped",
        "aten_grouped_grad",
        "aten_depthwise",
    )
    loops += ("aten_depthwise_grad", "aten_depthwise_far", "depthwise", "grouped")
    return r._replace(**dense, **{name: getattr(r, name) / 2 for name in loops})


# TFLOP/s of an H100, the fields of Rates up to `wgmma`. None is measured: no kernel of ours has run on a GPU. cuDNN
# at half of what the hardware is sold for; mma.sync at 0.65 of that, for it has not Hopper's own instructions; three
# tf32 products for one of fp32 where tf32 is not allowed; wgmma as fast as cuDNN, so that dead taps are all that is
# claimed; loops at what their bytes allow, and PyTorch's at what was reported of them.
_TFLOPS = {
    ("half", False): (400, 400, 400, inf, 450, 280, 280, 280, 280, 60, 0.5, 4, 2, 4, 1, 1, 18, 18, 20, 3, 325, 500),
    ("half", True): (500, 500, 500, inf, 550, 350, 350, 350, 350, 60, 0.5, 4, 2, 8, 1, 1, 18, 18, 20, 3, 325, 500),
    ("tf32", False): (200, 200, 200, inf, 220, 140, 140, 140, 140, 30, 0.5, 4, 2, 4, 1, 1, 20, 20, 20, 3, 160, 250),
    ("tf32", True): (250, 250, 250, inf, 270, 175, 175, 175, 175, 30, 0.5, 4, 2, 8, 1, 1, 20, 20, 20, 3, 160, 250),
    ("float", False): (45, 45, 45, inf, 50, 35, 35, 35, 35, 20, 0.5, 4, 2, 4, 1, 1, 20, 20, 20, 3, 60, 0),
    ("float", True): (45, 45, 45, inf, 50, 35, 35, 35, 35, 20, 0.5, 4, 2, 8, 1, 1, 20, 20, 20, 3, 60, 0),
    ("double", False): (15, 15, 15, inf, 25, 10, 10, 10, 10, 5, 0.3, 2, 1, 2, 0.5, 0.5, 12, 12, 10, 2, 0, 0),
    ("double", True): (15, 15, 15, inf, 25, 10, 10, 10, 10, 5, 0.3, 2, 1, 2, 0.5, 0.5, 12, 12, 10, 2, 0, 0),
}
# bytes/s of a large copy, and seconds of a launch, of our two or three of them, and of a region in the tables.
_GPU_COPY, _GPU_OVERHEADS = 3.0e12, (6e-6, 12e-6, 5e-8)


@cache
def gpu_rates(gpu: tuple[int, int, int], dtype: torch.dtype, channels_last: bool, tf32: bool) -> Rates:
    """Default throughputs of a GPU: multiprocessors, shared memory and capability; scaled from an H100's."""
    names = {torch.float64: "double", torch.float32: "tf32" if tf32 else "float"}
    scale = gpu[0] / _H100[0]
    flops = [1e12 * scale * x for x in _TFLOPS[names.get(dtype, "half"), channels_last]]
    if gpu[2] < 80:
        flops[-2] = 0.0
    if gpu[2] != 90:
        flops[-1] = 0.0
    return Rates._make([*flops, inf, 0.0, 0.0, *(inf,) * 4, scale * _GPU_COPY, *_GPU_OVERHEADS])


# TFLOP/s of Triton's kernels on the same GPU, tl.dot and the loop; nothing is measured. tl.dot at 0.7 of our mma.sync,
# for its addresses are computed element by element; fp32 without TF32 is multiplied in fp32, on no tensor core.
_TRITON = {"half": (220, 2), "tf32": (110, 2), "float": (15, 2), "double": (8, 1)}


@cache
def triton_rates(gpu: tuple[int, int, int], dtype: torch.dtype, channels_last: bool, tf32: bool) -> Rates:
    """The same of a GPU that Triton serves: `tensor` is tl.dot's, depthwise and grouped the loop's. On ROCm one
    multiprocessor counts for as much as an H100's."""
    names = {torch.float64: "double", torch.float32: "tf32" if tf32 else "float"}
    scale = gpu[0] / _H100[0]
    dot, loop = (1e12 * scale * x for x in _TRITON[names.get(dtype, "half")])
    return gpu_rates(gpu, dtype, channels_last, tf32)._replace(tensor=dot, depthwise=loop, grouped=loop)
