"""Operator tests again, with the kernels built under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import subprocess
import sys

import pytest
from fuzz_cpu import ROOT, sanitizers

LIBRARY = ROOT / "build" / "sanitized" / "libatrousops_host_cuda_sanitized.so"
# Every operator forward and backward by the first; from the others those that reach furthest into shapes.
TESTS = {
    "tests/cuda/test_orders.py": "float32",
    "tests/cuda/test_mbarrier.py": "",
    "tests/cuda/test_tma.py": "",
    "tests/cuda/test_wgmma.py": "",
    "tests/cuda/test_cluster.py": "",
    "tests/cuda/test_conv_mma.py": "forward and (beyond or channels) or gradient and (beyond or 21) or narrow_tile",
    "tests/cuda/test_conv_wgmma_weight.py": "against_fp64 and (both_axes or stride) or fixed_order",
    "tests/test_conv_branches.py": "host_cuda and fp64 and bfloat16 or test_launches",
    "tests/test_context_module.py": "host_cuda and (fp64 and bfloat16) and not paper",
    "tests/test_conv.py": "host_cuda and (match_pytorch and float32 and (prime or 41 or 33 or phases or few) or views)",
    "tests/test_max_pool.py": "host_cuda and (values_and or views or codes) and not 300",
    "tests/test_max_unpool.py": "host_cuda and (last_in_order or views or outside or anywhere)",
    "tests/test_permutohedral.py": "host_cuda and (dtypes and (21 or 33) or equals_reference and symmetric or pixels)",
    "tests/test_roi_align.py": "host_cuda and (hand or nan or definition)",
    "tests/test_roi_pool.py": "host_cuda and (hand or nan or definition)",
    "tests/test_roi_operators.py": "host_cuda and (tiles or expanded or bad_boxes)",
    "tests/nn/test_crf.py": "host_cuda and many_kernels",
}


def problem() -> str | None:
    """Why the sanitized kernels cannot be run, or None."""
    if not LIBRARY.exists():
        return "no sanitized library: make sanitize"
    newest = max(path.stat().st_mtime for path in (ROOT / "csrc").rglob("*") if path.is_file())
    return "the sanitized library is older than csrc: make sanitize" if LIBRARY.stat().st_mtime < newest else None


pytestmark = pytest.mark.skipif(problem() is not None, reason=str(problem()))


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with the sanitizer and the kernels built under it."""
    variables = os.environ | sanitizers() | {"ATROUSOPS_HOST_CUDA": str(LIBRARY)}
    return subprocess.run([sys.executable, *arguments], env=variables, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("path", TESTS)
def test_operator(path):
    # Not captured by file descriptor, or what a sanitizer says as it ends the process would be lost.
    done = python("-m", "pytest", "-q", "-x", "--capture=sys", "-p", "no:cacheprovider", path, "-k", TESTS[path])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.parametrize("fault", [3, 4])
def test_a_step_outside_shared_memory_is_found(fault):
    """tile_one_too_long and tile_read_one_too_far of test_faults.py: the red zone is hit by the very access."""
    script = "import sys; sys.path.insert(0, 'tests/cuda'); sys.path.insert(0, 'tests'); import test_faults as t; t.run"
    done = python("-c", f"{script}({fault})")
    assert done.returncode != 0
    assert "AddressSanitizer: use-after-poison" in done.stderr
    assert "test_faults.cpp" in done.stderr
