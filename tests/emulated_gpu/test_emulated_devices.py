"""One convolution, forward, on each device that can be pretended: which kernel runs there, and what it computes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from oracle import assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.skipif("ATROUSOPS_EMULATED" not in os.environ, reason="of the emulation")]

ON_ITS_OWN = """
import json, sys, torch, emulation, kernels
import atrousops as ao, atrousops.functional as A
from atrousops.dispatch import backends
x, w = torch.load(sys.argv[1])
verdict = backends.can_run("cuda", "conv", torch.device("cuda"), x.dtype)
with ao.backend("cuda" if verdict.ok else None):
    y = A.conv2d(x.cuda(), w.cuda(), None, 1, 2, 2)
torch.save(y.cpu(), sys.argv[1])
launched = [name for name, count in kernels.launches(emulation.start()).items() if count]
print(json.dumps([torch.cuda.get_device_name(), verdict.reason, launched]))
"""


def convolved(device: str, folder, x, w) -> tuple[torch.Tensor, str, list[str]]:
    """The result, why our kernels run or do not, and what was launched, in a process that has this device alone."""
    file = folder / "tensors.pt"
    torch.save((x, w), file)
    environment = os.environ | {"ATROUSOPS_EMULATED_GPU": device}
    command = [sys.executable, "-c", ON_ITS_OWN, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    name, reason, launched = json.loads(done.stdout.splitlines()[-1])
    assert name.replace(" ", "") == f"{device}EMULATED"
    return torch.load(file), reason, launched


@pytest.fixture
def arguments() -> tuple[torch.Tensor, torch.Tensor]:
    """Enough channels for tensor cores, in their layout."""
    tensors = torch.randn(1, 64, 9, 9), torch.randn(64, 64, 3, 3)
    x, w = (t.bfloat16().contiguous(memory_format=torch.channels_last) for t in tensors)
    return x, w


# wgmma is compute capability 9.0's alone.
@pytest.mark.parametrize(
    ("device", "kernel"), [("H100", "wgmma"), ("A100", "mma"), ("RTX4090", "mma"), ("B200", "mma")]
)
def test_a_convolution(device, kernel, arguments, tmp_path):
    y, reason, launched = convolved(device, tmp_path, *arguments)
    assert reason == "our CUDA kernel"
    assert any(kernel in name for name in launched)
    assert kernel == "wgmma" or not any("wgmma" in name for name in launched)
    exact = torch.conv2d(*(t.double() for t in arguments), None, 1, 2, 2)
    assert_close(y, exact, torch.conv2d(*arguments, None, 1, 2, 2))


def test_a_device_without_machine_code_is_left_to_pytorch(arguments, tmp_path):
    y, reason, launched = convolved("T4", tmp_path, *arguments)
    assert reason.startswith("T4 EMULATED has capability 7.5, and the CUDA library code for sm_80, ")
    assert launched == []
    assert torch.equal(y, torch.conv2d(*arguments, None, 1, 2, 2))
