"""Faults put into the PTX of a kernel, at lines that the check reaches: the check of its family has to fail."""

import functools
import os
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
# Check, part of the kernel's name, fault, and the seed that draws its place.
FAULTS: list[tuple[str, str, str, int]] = []


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


@pytest.mark.parametrize(("name", "part", "what", "seed"), FAULTS)
def test_a_fault_is_found(name, part, what, seed):
    kernel, lines = reached(name, part)
    file, right = ptx_build.kernel(kernel)
    wrong, where = ptx_mutate.mutated(right, what, seed, lines)
    said = outcome(name, kernel, ptx_build.compiled(wrong, file, "-O0"))
    assert said != "passed", where
