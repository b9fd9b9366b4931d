"""The wrappers of sm_90a's instructions compile, and are what they are called in the machine code; nothing runs."""

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import resources
import torch

READS_LIBRARY = False
SOURCE = Path(__file__).with_name("hopper.cu")
# As CMakeLists.txt has it for kernels that use them: neither PTX nor machine code of sm_90a serves another device.
GENCODE = ["-gencode", "arch=compute_90a,code=sm_90a"]
TMA = ["UTMALDG.{}D", "UTMALDG.{}D.MULTICAST", "UTMASTG.{}D", "UTMACMDFLUSH", "UTMACCTL.PF", "FENCE.VIEW.ASYNC"]
EXPECTED = {
    "mbarrier_kernel": ["SYNCS.EXCH.64", "SYNCS.ARRIVE.TRANS64", "SYNCS.PHASECHK.TRANS64.TRYWAIT", "BPT.TRAP"],
    **{f"tma_kernel<{rank}>": [name.format(rank) for name in TMA] for rank in (2, 3, 4, 5)},
    "wgmma_kernel<bfloat16, 32": ["HGMMA.64x32x16.F32.BF16", "WARPGROUP.ARRIVE", "WARPGROUP.DEPBAR"],
    "wgmma_kernel<bfloat16, 64": ["HGMMA.64x64x16.F32.BF16"],
    "wgmma_kernel<bfloat16, 96": ["HGMMA.64x96x16.F32.BF16"],
    "wgmma_kernel<half, 128": ["HGMMA.64x128x16.F32"],
    "wgmma_kernel<half, 192": ["HGMMA.64x192x16.F32"],
    "wgmma_kernel<float, 256": ["HGMMA.64x256x8.F32.TF32"],
    "wgmma_kernel<signed char, 256": ["IGMMA.64x256x32.S8.S8"],
    "wgmma_kernel<c10::Float8_e4m3fn, 128": ["QGMMA.64x128x32.F32.E4M3.E4M3"],
    "roles_kernel": [
        "USETMAXREG.DEALLOC",
        "USETMAXREG.TRY_ALLOC",
        "UCGABAR_ARV",
        "UCGABAR_WAIT",
        "ELECT",
        "BAR.ARV",
        "BAR.SYNC",
    ],
}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, str]:
    """The machine code, and what the compiler said."""
    nvcc = shutil.which("nvcc")
    if nvcc is None or resources.cuobjdump() is None:
        pytest.skip("no nvcc or no cuobjdump")
    cubin = tmp_path_factory.mktemp("hopper") / "hopper.cubin"
    include = Path(torch.__file__).parent / "include"
    options = ["-std=c++20", "--expt-relaxed-constexpr", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA"]
    folders = ["-I", resources.ROOT / "csrc", "-isystem", include]
    command = [nvcc, *options, *GENCODE, *folders, "-Xptxas", "-v", "-cubin", "-o", cubin, SOURCE]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return cubin, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sass(built) -> list[str]:
    tool = resources.cuobjdump()
    env = dict(os.environ, PATH=os.pathsep.join([str(tool.parent), os.environ.get("PATH", "")]))
    text = subprocess.run([tool, "-sass", built[0]], check=True, capture_output=True, text=True, env=env).stdout
    return text.splitlines()


@pytest.fixture(scope="module")
def instructions(sass) -> dict[str, Counter[str]]:
    return resources.count_instructions(sass)


def test_no_spills_and_no_products_one_after_the_other(built):
    said = built[1]
    assert not re.search(r"C75\d\d|serializ|setmaxnreg.*ignored|warning", said), said
    assert set(re.findall(r"(\d+) bytes spill stores", said)) == {"0"}
    assert set(re.findall(r"(\d+) bytes stack frame", said)) == {"0"}


@pytest.mark.parametrize("kernel", EXPECTED)
def test_instructions(instructions, kernel):
    (found,) = (counter for name, counter in instructions.items() if name.startswith(kernel))
    missing = [wanted for wanted in EXPECTED[kernel] if not any(i.startswith(wanted) for i in found)]
    assert not missing, sorted(found)


def test_products_are_not_split(instructions):
    for name, counter in instructions.items():
        if name.startswith("wgmma_kernel"):
            # Of bytes, none has A in registers.
            of_bytes = "signed char" in name or "Float8" in name
            assert sum(n for i, n in counter.items() if re.match("[HIQ]GMMA", i)) == 3 - of_bytes, name
            assert not [i for i in counter if re.match("[HIQ]MMA", i)]


def test_a_wait_looks_at_the_clock(sass):
    """Each question that is asked again: one of the timer stands behind it, and a trap."""
    text = "\n".join(sass)
    kernel = next(part for part in text.split("Function : ") if re.match(r"\S*mbarrier_kernel", part))
    assert kernel.count("SR_GLOBALTIMERHI") == 2, "one for each of the two waits"
    assert kernel.count("BPT.TRAP") >= 1
