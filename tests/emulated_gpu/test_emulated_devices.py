"""One convolution, forward, on each device that can be pretended: which kernel runs there, and what it computes.

Where ours cannot run, by the device, its driver or a kernel that hangs, others give the right results.
"""

import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from emulated_cases import launched
from oracle import assert_close, tf32

import atrousops as ao
import atrousops.functional as A
from atrousops.dispatch import backends, choice, devices, probe, verdicts
from atrousops.proof import registry, run

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


def convolved(device: str, folder, x, w, driver: str = "13000") -> tuple[torch.Tensor, str, list[str]]:
    """The result, why our kernels run or do not, and what was launched, in a process that has this device alone."""
    file = folder / "tensors.pt"
    torch.save((x, w), file)
    environment = os.environ | {"ATROUSOPS_EMULATED_GPU": device, "ATROUSOPS_EMULATED_DRIVER": driver}
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
    ("device", "kernel"), [("H100", "wgmma"), ("A100", "mma"), ("RTX4090", "mma"), ("RTX5090", "mma"), ("B200", "mma")]
)
def test_a_convolution(device, kernel, arguments, tmp_path):
    y, reason, launched = convolved(device, tmp_path, *arguments)
    assert reason == "our CUDA kernel"
    assert any(kernel in name for name in launched)
    assert kernel == "wgmma" or not any("wgmma" in name for name in launched)
    exact = torch.conv2d(*(t.double() for t in arguments), None, 1, 2, 2)
    assert_close(y, exact, torch.conv2d(*arguments, None, 1, 2, 2))


@pytest.mark.parametrize(
    ("device", "driver", "why"),
    [
        ("T4", "13000", "T4 EMULATED has capability 7.5, and the CUDA library code for sm_80, "),
        ("H100", "12080", "the driver knows CUDA 12.8, and the CUDA library was built with 13.0: update the driver, "),
    ],
)
def test_a_device_that_cannot_run_the_library_is_left_to_pytorch(device, driver, why, arguments, tmp_path):
    y, reason, found = convolved(device, tmp_path, *arguments, driver)
    assert reason.startswith(why)
    assert found == []
    assert torch.equal(y, torch.conv2d(*arguments, None, 1, 2, 2))


SEVERAL = """
import json, sys, torch, emulation, kernels
import atrousops as ao, atrousops.functional as A
results = []
with ao.backend("cuda"), torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
    for x, w, dy in torch.load(sys.argv[1]):
        leaves = x.cuda().requires_grad_(), w.cuda().requires_grad_()
        y = A.conv2d(*leaves, None, 1, (0, w.shape[3] // 2), groups=2)
        of = leaves[w.shape[3] > 1]
        results.append((y.detach().cpu(), torch.autograd.grad(y, of, dy.cuda())[0].cpu()))
torch.save(results, sys.argv[1])
print(json.dumps([name for name, count in kernels.launches(emulation.start()).items() if count]))
"""


def forward_and_backwards(x, w, dy):
    """The gradient of the weights where they are more than one position."""
    y = torch.conv2d(x.requires_grad_(), w.requires_grad_(), None, 1, (0, w.shape[3] // 2), groups=2)
    return y.detach(), torch.autograd.grad(y, w if w.shape[3] > 1 else x, dy)[0]


def test_the_largest_tile_where_shared_memory_is_short(tmp_path):
    """Of three stages in place of four, forward and backwards, and of weights. 600 positions are 5 tiles of each group,
    and the weights of 5 positions as many.
    """
    file, dtypes = tmp_path / "tensors.pt", (torch.bfloat16, torch.float16, torch.float32)
    maps, weights = ((1, 256, 20, 30), (1, 256, 6, 5)), ((256, 128, 1, 1), (256, 128, 1, 5))
    calls = [
        [torch.randn(s).to(d).contiguous(memory_format=torch.channels_last) for s in (size, weight, size)]
        for size, weight in zip(maps, weights, strict=True)
        for d in dtypes
    ]
    torch.save(calls, file)
    environment = os.environ | {"ATROUSOPS_EMULATED_GPU": "RTX3050Laptop"}
    done = subprocess.run([sys.executable, "-c", SEVERAL, str(file)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [name for name in json.loads(done.stdout.splitlines()[-1]) if "MmaTileILi128ELi128E" in name]
    assert all("MmaTileILi128ELi128ELi64ELi64ELi3ELi2E" in name for name in found), found
    assert sum("conv_mma_kernel" in name for name in found) == 5
    assert sum("conv_mma_weight_kernel" in name for name in found) == 3
    for arguments, ours in zip(calls, torch.load(file), strict=True):
        exact = forward_and_backwards(*(t.double() for t in arguments))
        # PyTorch has no TF32 on the CPU: the error of rounding the operands stands for its own.
        theirs = forward_and_backwards(*map(tf32, arguments))
        for a, right, rounded in zip(ours, exact, theirs, strict=True):
            assert_close(a, right, rounded)


class Hanging:
    """The CUDA library, whose trivial kernel ends when it is released."""

    def __init__(self) -> None:
        self.library, self.released = probe._cuda(), threading.Event()

    def __getattr__(self, name: str):
        return getattr(self.library, name)

    def atrousops_cuda_probe(self, *arguments: object) -> None:
        self.released.wait(60)


@pytest.fixture
def asked_anew(monkeypatch):
    """Kernels that have passed their check, on a device that has to be asked again whether it runs them."""

    def forget() -> None:
        for cache in (probe._verdict, probe.runs_nowhere, devices._gpu):
            cache.cache_clear()
        choice.forget()

    forget()
    monkeypatch.setattr(verdicts, "why_not", lambda *asked: "")
    yield monkeypatch
    forget()


def others_compute(x, w) -> str:
    """Holds PyTorch's operator, and readable PyTorch of what it has none for, to the CPU; why ours do not run."""
    values, features = torch.randn(1, 2, 12), torch.randn(1, 2, 12)
    results: list[torch.Tensor] = []

    def call() -> None:
        on_gpu = [t.cuda() for t in (x, w, values, features)]
        results.extend([A.conv2d(*on_gpu[:2], None, 1, 2, 2), A.permutohedral_filter(*on_gpu[2:])])

    assert launched(call) == set()
    y, filtered = (t.cpu() for t in results)
    assert torch.equal(y, torch.conv2d(x, w, None, 1, 2, 2))
    with ao.backend("reference"):
        exact, rounded = (A.permutohedral_filter(values.to(d), features.to(d)) for d in (torch.float64, torch.float32))
    assert_close(filtered, exact, rounded)
    return backends.can_run("cuda", "conv", torch.device("cuda"), x.dtype).reason


def test_a_driver_that_is_too_old_is_left_to_others(asked_anew, arguments):
    asked_anew.setattr(probe, "versions", lambda: (12080, 13000))
    why = "the driver knows CUDA 12.8, and the CUDA library was built with 13.0: update the driver, or "
    assert others_compute(*arguments).startswith(why)


def test_a_device_whose_kernels_hang_is_left_to_others(asked_anew, arguments):
    library = Hanging()
    asked_anew.setattr(probe, "LIMIT", 0.05)
    asked_anew.setattr(probe, "_cuda", lambda: library)
    try:
        assert others_compute(*arguments) == "a trivial kernel failed on cuda:0: it did not end within 0.05 s"
    finally:
        library.released.set()


# Answers that the library runs here, and then nothing. Without what emulates a GPU it starts at once.
HANGING_FAMILY = """
import json, sys, time
def tell(**said):
    print(json.dumps(said), flush=True)
tell(ready=True)
for line in sys.stdin:
    if json.loads(line)["family"]:
        tell(case="a call")
        time.sleep(1000)
    tell(ok=True)
"""


def test_a_family_that_hangs_is_left_to_pytorch(monkeypatch, own_plans):
    """From the process that is stopped to the values of a call, and the sentence that says why."""
    verdicts.forget()
    with monkeypatch.context() as patched:
        patched.setattr(run, "command", lambda device: [sys.executable, "-I", "-c", HANGING_FAMILY])
        patched.setattr(registry, "families", lambda backend, device: {"max_pool": None})
        # Of an emulated device time says nothing; its family would have all there is.
        patched.setattr(devices, "names_emulated", lambda gpu: False)
        # A quarter of the time is one family's.
        for name in ("_FAMILY_SECONDS", "_LEAST"):
            patched.setattr(run, name, 0.5)
        assert not ao.selfcheck("cuda:0", seconds=4).ok
    x = torch.randn(1, 2, 9, 9)
    results: list[torch.Tensor] = []

    def call() -> None:
        results.extend(A.max_pool2d(x.cuda(), 3, 2, return_indices=True))

    assert not any("max_pool" in name for name in launched(call))
    for ours, right in zip(results, torch.nn.functional.max_pool2d(x, 3, 2, return_indices=True), strict=True):
        assert torch.equal(ours.cpu(), right)
    (row,) = ao.explain(call).rows
    why = "max_pool failed its check on H100 EMULATED: a call: did not end within 1 s, and was stopped"
    assert why in row.reason
    verdicts.forget()
