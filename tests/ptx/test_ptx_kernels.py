"""nvcc's PTX of each family of kernels, executed on the CPU, against fp64 at twice PyTorch's own error."""

import host_cuda
import ptx_build
import ptx_checks
import pytest

PROBLEM = host_cuda.problem() or ptx_build.problem()
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))


@pytest.mark.parametrize(("seed", "order"), [(0, ""), (1, "apart"), (2, "ahead")])
@pytest.mark.parametrize("name", ptx_checks.CHECKS)
def test_a_family(name, seed, order):
    """In order; then in random ones, the lanes of a warp apart between memory instructions, or a warp far ahead."""
    ptx_checks.run(name, seed, order)
