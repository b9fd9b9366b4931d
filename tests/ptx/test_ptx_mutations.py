"""Faults put into the PTX of a kernel, at lines that the check reaches: the check of its family has to fail."""

import functools
import os
import re
import resource

import host_cuda
import ptx_build
import ptx_checks
import ptx_launch
import ptx_mutate
import pytest
import torch

PROBLEM = host_cuda.problem() or ptx_build.problem()
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))

# Of one mutated check: a fault may make a loop endless.
CPU_SECONDS = 10
# Of each check a kernel by a part of its name, and the faults put into it. The place of a fault is drawn with a seed, 0
# unless the fault's name is followed by another: there 0 draws a fault that changes no result. Those are, of a barrier,
# one that another follows; of a fence, one of two side by side; of a wait, the last; of a comparison, one that chooses
# between two ways to divide; of an index, one along an axis of size one or of padding; of windows, what the kernel
# after finds in place of this one.
KERNELS = {
    ("conv simt fp32", "conv_simt_kernel"): (
        *("barrier removed", "load one element off", "registers exchanged", "comparison negated 3"),
    ),
    ("conv simt fp32", "conv_simt_weight_kernel"): ("load one element off", "registers exchanged"),
    ("conv mma bf16", "conv_mma_kernel"): (
        *("operands exchanged", "matrix transposed", "wait removed", "copy shortened", "barrier removed"),
        *("barrier removed 1", "store one element off", "wait for one group less 4"),
    ),
    ("conv mma bf16", "conv_mma_weight_kernel"): ("operands exchanged", "matrix transposed", "barrier removed"),
    ("conv int8", "conv_mma_kernel"): ("operands exchanged", "wait removed", "barrier removed"),
    ("conv float8", "conv_mma_kernel"): ("operands exchanged",),
    ("conv wgmma bf16", "conv_wgmma_kernel"): (
        *("operands exchanged", "wait removed", "wait for one group less", "fence removed 6", "parity flipped"),
        *("descriptor bit changed", "bytes expected changed", "coordinates exchanged"),
    ),
    ("conv wgmma bf16", "conv_wgmma_weight_kernel"): ("fence removed", "parity flipped", "descriptor bit changed"),
    ("conv depthwise", "conv_depthwise_kernel"): ("registers exchanged", "branch negated"),
    ("conv grouped", "conv_grouped_kernel"): ("load one element off",),
    ("max_pool3d with codes", "max_pool_kernel"): ("addends exchanged for a difference", "registers exchanged"),
    ("max_pool3d with codes", "place_windows_kernel"): ("comparison negated", "load one element off"),
    ("max_unpool3d", "pick_kernel"): ("comparison negated", "store one element off"),
    ("roi_align", "roi_align_forward"): ("load one element off", "comparison negated"),
    ("roi_align", "roi_align_geometry"): ("registers exchanged",),
    ("roi_pool", "roi_pool"): ("comparison negated", "registers exchanged"),
    ("permutohedral_filter", "lattice_place"): ("registers exchanged", "comparison negated 3"),
    ("permutohedral_filter", "lattice_blurIf"): ("load one element off", "addends exchanged for a difference"),
    ("permutohedral_filter", "lattice_splatIf"): ("load one element off",),
    ("permutohedral_filter", "lattice_sliceIf"): ("registers exchanged",),
    ("mean_field", "mean_field_step"): ("load one element off", "comparison negated"),
    ("context_module", "context_module_kernel"): (
        *("barrier removed", "store one element off", "matrix transposed", "wait removed", "bytes expected changed"),
    ),
}
FAULTS = [(*kernel, fault) for kernel, faults in KERNELS.items() for fault in faults]


@functools.cache
def reached(name: str, part: str) -> tuple[str, bytes]:
    """The kernel of that name which a check launches, and which of its lines."""
    ptx_launch.launched.clear()
    ptx_checks.run(name)
    kernel = next(k for k in ptx_launch.launched if part in k)
    return kernel, ptx_launch.reached(kernel, lambda: ptx_checks.run(name))


def outcome(name: str, kernel: str, library: os.PathLike) -> str:
    """What a check says of a mutated kernel, in a process of its own: it may crash."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        # Threads of OpenMP do not survive the fork.
        torch.set_num_threads(1)
        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + CPU_SECONDS,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        said = b"passed"
        try:
            with ptx_launch.replaced(kernel, library):
                ptx_checks.run(name)
                ptx_checks.run(name, 1, "apart")
                ptx_checks.run(name, 2, "ahead")
        except BaseException as e:
            said = str(e).encode()[:4000] or b"an exception without words"
        os.write(write, said)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return text or f"the process ended with status {status}"


@pytest.fixture(scope="module")
def table(request):
    """What found each fault, as a table in the terminal."""
    rows: list[str] = []
    yield rows
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", *rows, sep="\n")


@pytest.mark.parametrize(("name", "part", "fault"), FAULTS)
def test_a_fault_is_found(name, part, fault, table):
    kernel, lines = reached(name, part)
    file, right = ptx_build.kernel(kernel)
    what, seed = re.fullmatch(r"([a-z ]+?) ?(\d*)", fault).groups()
    wrong, where = ptx_mutate.mutated(right, what, int(seed or 0), lines)
    said = outcome(name, kernel, ptx_build.compiled(wrong, file, "-O0"))
    table.append(f"{name} | {part} | {what} | {where} | {' '.join(said.split())[:90]}")
    assert said != "passed", where
