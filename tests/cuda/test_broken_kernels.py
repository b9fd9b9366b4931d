"""A fault put into a real kernel fails the tests of its operator: what holds the kernels would see it.

Most are of barriers. tests/ptx puts more faults, and some into the kernels of tensor cores, into the PTX.
"""

import os
import subprocess
import sys

import host_cuda
import pytest
from broken_kernels import Fault, build

pytestmark = pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))

SIMT = ("conv_simt.cu", "tests/test_conv.py", "match_pytorch and host_cuda and float64 and contiguous and (33 or nine)")
ROI = ("roi_align.cu", "tests/test_roi_operators.py", "gradient_in_several_tiles and host_cuda and align")
UNPOOL = ("max_unpool.cu", "tests/test_max_unpool.py", "point_anywhere and host_cuda")
ROWS = ("permutohedral_rows.cu", "tests/test_permutohedral.py", "channels_and_dtypes and host_cuda and float32 and 33")
CONTEXT = ("context_module_sm90a.cu", "tests/test_context_module.py", "host_cuda and (paper and float16)")
MMA = ("conv_mma_f16.cu", "tests/cuda/test_conv_mma_epilogue.py", "alignment and whole and float16")
# Without a residual, which would be read anywhere.
MMA_ORDER = (*MMA[:2], "any_order and float16 and bias")
MMA_WEIGHT = ("conv_mma_f16.cu", "tests/cuda/test_conv_mma.py", "same_weight_gradient and float16")
E4M3 = ("conv_wgmma_e4m3_sm90a.cu", "tests/cuda/test_conv_wgmma_bytes.py", "long_sums_of_e4m3")
PAIRS = ("conv_wgmma_bf16_sm90a.cu", "tests/cuda/test_conv_wgmma.py", "bring_weights_for_each_other")
RESIDUAL = ("conv_wgmma_f16_sm90a.cu", "tests/cuda/test_conv_wgmma_residual.py", "every_tile and float16")
QUANTISED = ("conv_quantized.cu", "tests/cuda/test_conv_quantized_kernel.py", "every_number")
WEIGHT = ("conv_wgmma_weight_sm90a.cu", "tests/cuda/test_conv_wgmma_weight.py", "against_fp64 and rectangles")

FAULTS = {
    "nothing changed": Fault("conv_simt.cu", "", "", *SIMT),
    "barrier removed between writing and reading a stage": Fault(
        "conv_simt.cu", "last readers' step.\n      __syncthreads();", "last readers' step.", *SIMT
    ),
    "barrier removed before a list is read": Fault(
        "roi_tiles.cuh", "__syncthreads();\n#pragma unroll 1", "#pragma unroll 1", *ROI
    ),
    "barrier removed before a tile is overwritten": Fault(
        "max_unpool.cu", "(begin + j) * g.step]);\n      __syncthreads();", "(begin + j) * g.step]);", *UNPOOL
    ),
    "rows of other blocks read before they have come": Fault(
        CONTEXT[0],
        "    if (first && layer > 0) arch::mbarrier_wait_cluster(shared.full + which, (layer - 1) / 2 % 2);\n",
        "",
        *CONTEXT,
    ),
    "barrier removed before rows of other warps are read": Fault(
        CONTEXT[0], "the weights are there.\n    __syncthreads();", "the weights are there.", *CONTEXT
    ),
    "channels beyond the last stored": Fault("conv_mma.cuh", "if (exists && offset >= 0)", "if (offset >= 0)", *MMA),
    "barrier removed before other warps read where rows begin": Fault(
        "conv_mma.cuh",
        "position * residual_pitch;\n    }\n    __syncthreads();",
        "position * residual_pitch;\n    }",
        *MMA_ORDER,
    ),
    "barrier removed before the first lines are read": Fault(
        "conv_mma_weight.cuh",
        "shared.lines_of(Mma::kFirst));\n  __syncthreads();",
        "shared.lines_of(Mma::kFirst));",
        *MMA_WEIGHT,
    ),
    "last box of a rectangle left out": Fault(
        WEIGHT[0], "found.begin + args.box[axis].value() - 1)", "found.begin)", *WEIGHT
    ),
    "sums left to tensor cores that keep 14 bits": Fault(
        "conv_wgmma.cuh", "sums.multiply_apart(ring", "sums.multiply_all(ring", *E4M3
    ),
    "a residual added before it is there": Fault(
        "conv_wgmma.cuh", "if (args.residual) residual.wait(ring);", "", *RESIDUAL
    ),
    "a stage of a pair filled when one of its blocks has read it": Fault(
        "conv_wgmma.cuh", "kReadingWarps << args.paired());", "kReadingWarps);", *PAIRS
    ),
    "a pair's boxes of different regions": Fault(
        "conv_wgmma_tiles.cuh",
        "index = 2 * index + rank;\n  const ConvRegion",
        "index += rank * (t.tiles / 2);\n  const ConvRegion",
        *PAIRS,
    ),
    "halves rounded up": Fault(QUANTISED[0], "rintf(x);", "floorf(x + 0.5f);", *QUANTISED),
    "barrier removed from a transposition": Fault(
        ROWS[0],
        "__syncthreads();\n#pragma unroll\n    for (int u = 0; u < row",
        "#pragma unroll\n    for (int u = 0; u < row",
        *ROWS,
    ),
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
    if name == "nothing changed":
        assert done.returncode == pytest.ExitCode.OK, words
    else:
        assert done.returncode == pytest.ExitCode.TESTS_FAILED, words
        assert "1 failed" in done.stdout, words
        found = ("AssertionError", "Tensor-likes are not", "RuntimeError: host_cuda")
        assert any(how in done.stdout for how in found), words
