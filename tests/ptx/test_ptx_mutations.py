"""Faults put into the PTX of a kernel, at lines that the check reaches: the check of its family has to fail."""

import os

import host_cuda
import ptx_build
import ptx_checks
import ptx_launch
import ptx_mutate
import pytest

PROBLEM = host_cuda.problem() or ptx_build.problem()
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))

# Check, part of the kernel's name, fault: those whose every place changes a result.
FAULTS = [("conv mma bf16", "conv_mma_kernel", what) for what in ("operands exchanged", "matrix transposed")]
FAULTS += [("conv simt fp32", "conv_simt_kernel", "barrier removed")]


def outcome(name: str, kernel: str, library: os.PathLike) -> str:
    """What a check says of a mutated kernel, in a process of its own: it may crash."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with ptx_launch.replaced(kernel, library):
                ptx_checks.run(name)
                ptx_checks.run(name, seed=1, apart=True)
        except Exception as e:
            os.write(write, str(e).encode()[:4000])
        else:
            os.write(write, b"passed")
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        text = said.read()
    _, status = os.waitpid(child, 0)
    return text or f"the process ended with status {status}"


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("name", "part", "what"), FAULTS)
def test_a_fault_is_found(name, part, what, seed):
    ptx_launch.launched.clear()
    ptx_checks.run(name)
    kernel = next(k for k in ptx_launch.launched if part in k)
    reached = ptx_launch.reached(kernel, lambda: ptx_checks.run(name))
    file, right = ptx_build.kernel(kernel)
    wrong, where = ptx_mutate.mutated(right, what, seed, reached)
    assert outcome(name, kernel, ptx_build.compiled(wrong, file)) != "passed", where
