"""A fault put into a real kernel fails the tests of its operator: what holds the kernels would see it."""

import os
import re
import subprocess
import sys

import host_cuda
import pytest
from broken_kernels import ONE_TILE, ONE_WGMMA_TILE, Fault, build

pytestmark = pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))

SIMT = ("conv_simt.cu", "tests/test_conv.py", "match_pytorch and host_cuda and float64 and contiguous and (33 or nine)")
MMA = ("conv_mma_f16.cu", "tests/cuda/test_conv_mma.py", "epilogue and 2-float16")
# Nine steps in a ring of five stages.
WGMMA = ("conv_wgmma_f16_sm90a.cu", "tests/cuda/test_conv_wgmma.py", "epilogue and 1")
ROI = ("roi_align.cu", "tests/test_roi_operators.py", "gradient_in_several_tiles and host_cuda and align")
UNPOOL = ("max_unpool.cu", "tests/test_max_unpool.py", "point_anywhere and host_cuda")
ROWS = ("permutohedral_rows.cu", "tests/test_permutohedral.py", "channels_and_dtypes and host_cuda and float32 and 33")
CONTEXT = ("context_module_sm90a.cu", "tests/test_context_module.py", "host_cuda and (paper and float16)")
WEIGHT = ("conv_wgmma_weight_sm90a.cu", "tests/cuda/test_conv_wgmma_weight.py", "against_fp64 and rectangles")


def mma(file: str, sound: str, broken: str) -> Fault:
    return Fault(file, sound, broken, *MMA, extra={MMA[0]: ONE_TILE})


def wgmma(file: str, sound: str, broken: str, says: str = Fault.says) -> Fault:
    return Fault(file, sound, broken, *WGMMA, extra={WGMMA[0]: ONE_WGMMA_TILE}, says=says)


FAULTS = {
    "nothing changed, SIMT": Fault("conv_simt.cu", "", "", *SIMT),
    "nothing changed, tensor cores": mma("conv_mma.cuh", "", ""),
    "barrier removed between writing and reading a stage": Fault(
        "conv_simt.cu",
        "last readers' step.\n      __syncthreads();",
        "last readers' step.",
        *SIMT,
    ),
    "sum one product too long": Fault("conv_simt.cu", "inside && cursor.left > 0", "inside && cursor.left >= 0", *SIMT),
    "last row of a tile left out": Fault("conv_simt.cu", "row + i >= tile.rows", "row + i >= tile.rows - 1", *SIMT),
    "barrier removed before a stage is read": mma(
        "conv_mma.cuh", "whose stage is filled next.\n    __syncthreads();", "whose stage is filled next."
    ),
    "one wait too few": mma(
        "conv_mma.cuh", "arch::cp_async_wait<Tile::kStages - 2>();", "arch::cp_async_wait<Tile::kStages - 1>();"
    ),
    "no wait": mma("conv_mma.cuh", "arch::cp_async_wait<Tile::kStages - 2>();", ""),
    "one row beyond the tile": mma("conv_mma.cuh", "row < tile.rows ? r.dst : -1", "row <= tile.rows ? r.dst : -1"),
    "A fragment loaded in B's order": mma(
        "mma_tile.cuh",
        "row + (lane & 15), 2 * step ^ (lane >> 4)",
        "row + (lane & 7) + 8 * (lane >> 4), 2 * step ^ ((lane >> 3) & 1)",
    ),
    "B fragments' registers exchanged": mma(
        "mma_tile.cuh",
        "arch::mma_16<T>(c[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1])",
        "arch::mma_16<T>(c[i][j], a[i], b[j / 2][j % 2], b[j / 2][j % 2 + 2])",
    ),
    "sums taken from the wrong lane": mma(
        "mma_copy.cuh", "kMmaColumns * j + lane % 4 * 2)", "kMmaColumns * j + lane / 8 * 2)"
    ),
    # Whoever waits for it either finds it overwritten or misses its phase, and waits for ever.
    "a stage filled before it is empty": wgmma(
        "pipeline.h",
        "    arch::mbarrier_wait(empty_ + t.stage, t.parity ^ 1);\n",
        "",
        "overwritten|no thread can go on",
    ),
    "a stage released before its products are done": wgmma(
        "wgmma_tile.cuh", "arch::wgmma_wait<1>();", "", "overwritten"
    ),
    "a tap off by one": wgmma("conv_wgmma.cuh", "+ found.delta;", "+ found.delta + 1;"),
    "barrier removed before a list is read": Fault(
        "roi_tiles.cuh", "__syncthreads();\n#pragma unroll 1", "#pragma unroll 1", *ROI
    ),
    "barrier removed before a tile is overwritten": Fault(
        "max_unpool.cu",
        "(begin + j) * g.step]);\n      __syncthreads();",
        "(begin + j) * g.step]);",
        *UNPOOL,
    ),
    "cluster's barrier between layers made a block's": Fault(
        CONTEXT[0],
        """    arch::cluster_arrive();
    // Where the weights of the layer before lay, which everybody here has finished.
    fetch_weights(layer + 1);
    arch::cluster_wait();
""",
        "    __syncthreads();\n    fetch_weights(layer + 1);\n",
        *CONTEXT,
    ),
    "rows from other blocks off by one": Fault(
        CONTEXT[0], "begin - dilation + slot :", "begin - dilation + slot + 1 :", *CONTEXT
    ),
    "last box of a rectangle left out": Fault(WEIGHT[0], "found.begin + args.box[axis] - 1)", "found.begin)", *WEIGHT),
    "barrier removed from a transposition": Fault("permutohedral_rows.cu", "      __syncthreads();\n", "", *ROWS),
}


def run_with(fault: Fault, folder) -> subprocess.CompletedProcess[str]:
    """The fault's tests, in a process that has only its library."""
    library = build(fault, folder)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", fault.path, "-k", fault.select]
    environment = os.environ | {"ATROUSOPS_HOST_CUDA": str(library), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, cwd=host_cuda.ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", FAULTS)
def test_found(name, tmp_path):
    done = run_with(FAULTS[name], tmp_path)
    words = done.stdout[-4000:] + done.stderr[-4000:]
    if name.startswith("nothing changed"):
        assert done.returncode == pytest.ExitCode.OK, words
    else:
        assert done.returncode == pytest.ExitCode.TESTS_FAILED, words
        assert "1 failed" in done.stdout, words
        assert re.search(FAULTS[name].says, done.stdout), words
