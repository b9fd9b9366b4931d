"""What a plan knows of the machine: its threads and throughputs, as defaults that measurements can replace."""

from __future__ import annotations

from functools import cache
from math import inf
from typing import NamedTuple

import torch


class Rates(NamedTuple):
    """Throughputs for one dtype and memory format: FLOP/s of one thread, except as said.

    aten, aten_far: PyTorch's dense convolution up to dilation `near`, and beyond
    aten_pointwise: with a kernel of one position, where it is a plain GEMM
    aten_strided, aten_grouped, aten_depthwise: its strided transposed convolution, groups of few channels, depthwise
    gemm: our gathered GEMM; direct: our loops for groups of few channels
    skips_rows: the part of the taps above and below the image that PyTorch leaves out
    copy: bytes/s of the whole machine, read and written
    aten_call, our_call, our_region: seconds of overhead of a call, and of each region
    """

    aten: float
    aten_far: float
    near: float
    aten_pointwise: float
    aten_strided: float
    aten_grouped: float
    aten_depthwise: float
    gemm: float
    direct: float
    skips_rows: float
    copy: float
    aten_call: float
    our_call: float
    our_region: float


class Device(NamedTuple):
    """What a plan knows of the machine; the last three are a GPU's."""

    kind: str
    threads: int
    rates: Rates
    multiprocessors: int = 0
    shared_memory: int = 0
    capability: int = 0


def cpu_device(dtype: torch.dtype, channels_last: bool) -> Device:
    """This machine's CPU with the default rates for a dtype and memory format."""
    return Device("cpu", torch.get_num_threads(), default_rates(_isa(), _amx(), dtype, channels_last))


@cache
def _isa() -> str:
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "plain")


@cache
def _amx() -> bool:
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


# GFLOP/s of a thread: dense, at large dilations, pointwise, strided transposed, groups of few channels, depthwise, and
# our GEMM and our direct loops; last, whether dead rows are skipped.
# avx512, amx: two threads, torch 2.14. 512->512 d=2 ran at 391 in fp32 channels_last and 3000 in bf16 with AMX; ASPP
# branches 2048->256 at 273 (fp32 NCHW), 445 of live rows (fp32 channels_last) and 147 to 350 (bf16 from dilation 12 on:
# oneDNN leaves AMX), a gathered GEMM per region at 690 to 1230; transposed 256->256 k2 s2 at 99, 21->21 k16 s8 at 66,
# bilinear with 21 groups at 14; depthwise 3x3 at 3.8. The direct loops and whatever is not named here are estimates.
# avx2: two threads of a 2.45 GHz Zen 3 that was shared, so good to a factor of two: fp32 30 to 74, transposed k2 s2 31
# to 45, k16 s8 5 to 18, bilinear 2, 16-bit 1 (NCHW) and 4 (channels_last), as oneDNN has no 16-bit convolution there.
# plain: guesses in the same proportions.
_GFLOPS = {
    ("avx512", "float", False): (136.0, 136.0, 195.0, 40.0, 10.0, 1.9, 160.0, 20.0, 0.0),
    ("avx512", "float", True): (195.0, 195.0, 195.0, 40.0, 10.0, 4.0, 160.0, 20.0, 1.0),
    ("avx512", "half", False): (40.0, 40.0, 40.0, 20.0, 5.0, 1.0, 120.0, 15.0, 0.0),
    ("avx512", "half", True): (80.0, 80.0, 80.0, 20.0, 5.0, 1.0, 120.0, 15.0, 0.0),
    ("amx", "half", False): (1000.0, 120.0, 1000.0, 40.0, 5.0, 1.0, 550.0, 15.0, 0.0),
    ("amx", "half", True): (1500.0, 120.0, 1500.0, 40.0, 5.0, 1.0, 550.0, 15.0, 0.0),
    ("avx2", "float", False): (40.0, 40.0, 45.0, 10.0, 2.0, 1.5, 40.0, 10.0, 1.0),
    ("avx2", "float", True): (45.0, 45.0, 45.0, 12.0, 2.0, 2.5, 40.0, 10.0, 1.0),
    ("avx2", "half", False): (0.6, 0.6, 0.6, 0.6, 0.3, 0.2, 30.0, 8.0, 0.0),
    ("avx2", "half", True): (2.0, 2.0, 2.0, 0.6, 0.3, 0.1, 30.0, 8.0, 0.0),
    ("plain", "float", False): (8.0, 8.0, 8.0, 3.0, 1.0, 1.0, 8.0, 3.0, 0.0),
    ("plain", "float", True): (8.0, 8.0, 8.0, 3.0, 1.0, 1.0, 8.0, 3.0, 0.0),
    ("plain", "half", False): (0.5, 0.5, 0.5, 0.5, 0.3, 0.2, 6.0, 2.0, 0.0),
    ("plain", "half", True): (0.5, 0.5, 0.5, 0.5, 0.3, 0.2, 6.0, 2.0, 0.0),
}
# bytes/s of a large copy on the two machines above.
_COPY = {"avx512": 33e9, "avx2": 12e9, "plain": 8e9}
# With AMX, oneDNN was fast at dilation 2 and slow at 12; nothing between was measured.
_NEAR = 8.0
# A small call of torch.nn.functional, and of an operator of ours under no_grad; a region's set-up is an estimate.
_ATEN_CALL, _OUR_CALL, _OUR_REGION = 7e-6, 12e-6, 2e-6


@cache
def default_rates(isa: str, amx: bool, dtype: torch.dtype, channels_last: bool) -> Rates:
    """Default throughputs of a CPU whose best instruction set is "avx512", "avx2" or "plain"."""
    half = dtype.itemsize == 2
    row = "amx" if half and amx and isa == "avx512" else isa
    *gflops, skips = _GFLOPS[row, "half" if half else "float", channels_last]
    aten, far, pointwise, strided, grouped, depthwise, gemm, direct = (1e9 * x for x in gflops)
    if dtype == torch.float64:  # half the lanes; and no oneDNN, but im2col and a BLAS GEMM, which skips nothing
        gemm, direct, grouped, depthwise = gemm / 2, direct / 2, grouped / 2, depthwise / 2
        aten, far, pointwise, strided, skips = gemm / 2, gemm / 2, gemm, gemm / 4, 0.0
    near = _NEAR if row == "amx" else inf
    overheads = (_ATEN_CALL, _OUR_CALL, _OUR_REGION)
    return Rates(aten, far, near, pointwise, strided, grouped, depthwise, gemm, direct, skips, _COPY[isa], *overheads)
