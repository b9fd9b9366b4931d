"""A GPU on which the CUDA library cannot run is found out once, and the next backend takes its calls."""

import re
import threading

import pytest
import samples
import torch

import atrousops as ao
from atrousops.common.checks import ArgumentError
from atrousops.dispatch import backends, choice, devices, libraries, probe, triton_library, verdicts
from atrousops.dispatch.planner import CallArguments

CODE = ("sm_80", "sm_90a", "sm_100", "sm_120", "compute_80")
CUDA13 = 13000


class Properties:
    """What torch tells of a GPU."""

    def __init__(self, name, capability, multiprocessors):
        self.name, (self.major, self.minor) = name, divmod(capability, 10)
        self.multi_processor_count, self.shared_memory_per_block_optin = multiprocessors, 1024 * capability


H100, T4 = Properties("NVIDIA H100", 90, 132), Properties("Tesla T4", 75, 40)


class Machine:
    """Some GPUs, and what the driver says of them."""

    def __init__(self, monkeypatch):
        self.gpus, self.driver, self.problem, self.runs, self.taken = [H100], CUDA13, "", [], []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(self.gpus))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: self.gpus[index])
        monkeypatch.setattr(
            torch.cuda, "get_device_name", lambda index=None: self.gpus[getattr(index, "index", index) or 0].name
        )
        monkeypatch.setattr(probe, "facts", self._facts)
        monkeypatch.setattr(probe, "run", lambda index: self.runs.append(index) or self.problem)
        monkeypatch.setattr(backends, "_has_cuda_kernel", lambda op: True)
        # Libraries that are there, and registrations that are only noted.
        for part in ("cuda", "triton"):
            monkeypatch.setattr(libraries, part, libraries.Part(part, "", None))
        monkeypatch.setattr(triton_library, "_took_over", [False])
        monkeypatch.setattr(triton_library, "_installed", [])
        monkeypatch.setattr(triton_library, "_implement", lambda key, override: self.taken.append((key, override)))

    def _facts(self, index):
        gpu = self.gpus[index]
        return probe.Facts(gpu.name, 10 * gpu.major + gpu.minor, self.driver, CUDA13, CODE)


def forget():
    """What is known of this process' GPUs."""
    for cache in (probe._verdict, probe.runs_nowhere, devices._gpu):
        cache.cache_clear()
    choice.forget()


@pytest.fixture
def machine(monkeypatch):
    forget()
    # Kernels that have proved themselves: whether they run at all is the question here.
    monkeypatch.setattr(verdicts, "why_not", lambda *asked: "")
    yield Machine(monkeypatch)
    forget()


def chosen(op, index=0):
    return backends.choose(op, torch.device("cuda", index), torch.float32)


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        (70, False),  # V100
        (75, False),  # T4, RTX 20
        (80, True),
        (86, True),  # code of sm_80 runs on its later minor versions
        (90, True),
        (103, True),
        (110, True),  # no machine code of its major version: PTX
        (121, True),
    ],
)
def test_what_was_compiled_decides_by_capability(capability, runs):
    assert probe.judge(probe.Facts("a GPU", capability, CUDA13, CUDA13, CODE)).ok is runs


@pytest.mark.parametrize(
    ("capability", "code", "fits"),
    [
        (110, ("sm_80", "sm_90a", "sm_100", "sm_120"), False),  # without PTX
        (86, ("sm_89",), False),
        (100, ("sm_90a",), False),  # "a" is for one device alone
        (90, ("sm_90a",), True),
        (90, ("compute_100",), False),
    ],
)
def test_machine_code_is_for_a_major_version_and_ptx_for_what_is_later(capability, code, fits):
    assert probe.has_code(capability, code) is fits


def test_a_driver_of_an_older_major_version_is_refused_with_both_versions():
    said = probe.judge(probe.Facts("NVIDIA H100", 90, 12080, CUDA13, CODE))
    assert not said.ok
    assert "the driver knows CUDA 12.8, and the CUDA library was built with 13.0" in said.reason
    assert probe.judge(probe.Facts("NVIDIA H100", 90, CUDA13, 13020, CODE)).ok


def test_a_gpu_that_runs_the_library_is_asked_once(machine):
    assert [chosen("conv"), chosen("roi_align"), chosen("mean_field")] == ["cuda"] * 3
    assert machine.runs == [0]
    assert not machine.taken


def test_a_t4_runs_pytorch_or_triton(machine):
    machine.gpus = [T4]
    # Triton's kernels take the place of the library's, once, where no GPU can run those.
    assert chosen("mean_field") == chosen("permutohedral") == "triton"
    assert machine.taken == [("CUDA", True)]
    assert not machine.runs
    with ao.backend("cuda"), pytest.raises(ArgumentError, match=r"Tesla T4 has capability 7\.5, and .* sm_80, sm_90a"):
        chosen("conv")


def test_a_t4_beside_an_h100_has_the_reference_where_pytorch_has_no_operator(machine):
    machine.gpus = [H100, T4]
    assert [chosen("mean_field", i) for i in (0, 1)] == ["cuda", "reference"]
    assert [chosen("max_pool", i) for i in (0, 1)] == ["cuda", "aten"]
    assert not machine.taken


def test_each_gpu_is_planned_for_by_its_own_facts(machine):
    machine.gpus = [H100, Properties("NVIDIA L4", 89, 58)]
    facts = [devices.gpu_device(torch.float16, True, f"cuda:{i}")[3:6] for i in (0, 1)]
    assert facts == [(132, 90 * 1024, 90), (58, 89 * 1024, 89)]
    assert devices.gpu_device(torch.float16, True)[3] == 132
    assert choice._state("cuda:1") != choice._state("cuda")
    assert choice._state("cuda:0") == choice._state("cuda")


def test_a_gpu_of_rocm_is_planned_for(machine, monkeypatch):
    """Its properties are not all that those of a CUDA device are."""
    gpu = Properties("AMD Instinct MI300X", 94, 304)
    del gpu.shared_memory_per_block_optin
    gpu.shared_memory_per_block = 65536
    machine.gpus = [gpu]
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(libraries, "cuda", libraries.Part("cuda", "", "this torch was built without CUDA"))
    found = devices.gpu_device(torch.float16, True)
    assert (found.kind, *found[3:6]) == ("triton", 304, 65536, 94)
    call = CallArguments("forward", (1, 256, 33, 33), (256, 256, 3, 3), (1, 1), (12, 12), (12, 12))
    assert choice.chosen(call, torch.float16, True, device="cuda:0").kernel


def test_calls_on_a_cpu_ask_nothing_of_cuda(monkeypatch):
    """A process that has asked how many GPUs there are cannot fork one that uses them."""

    def refuse(*args, **kwargs):
        raise AssertionError("CUDA was asked")

    for name in ("is_available", "device_count", "current_device", "get_device_properties", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    choice.forget()
    for name in samples.FUNCTIONS:
        samples.call(name)
    for name in samples.LAYERS:
        samples.call_layer(name)
    layer, x = ao.AtrousConv2d(4, 4, 3, padding=2, dilation=2), torch.ones(1, 4, 9, 9)
    layer(x.requires_grad_()).sum().backward()
    assert str(ao.explain(layer, x))


def test_a_kernel_that_fails_is_a_verdict(machine):
    machine.gpus, machine.problem = [H100, H100], "cudaErrorUnsupportedPtxVersion: the PTX was compiled by a newer one"
    assert chosen("conv", 1) == "aten"
    verdict = backends.can_run("cuda", "conv", torch.device("cuda", 1), torch.float32)
    assert not verdict.ok
    assert verdict.reason == f"a trivial kernel failed on cuda:1: {machine.problem}"
    assert machine.runs == [1]


@pytest.mark.skipif(libraries.cuda.problem is not None, reason="the CUDA library is not built")
def test_the_library_says_what_it_was_built_with():
    driver, runtime = probe.versions()
    assert driver >= 0
    assert runtime >= 12000
    assert re.fullmatch(r"1\d\.\d", probe.version(runtime))
    code = probe._cuda().atrousops_cuda_code().decode().split(",")
    assert "compute_80" in code
    assert probe.has_code(110, code)


class Library:
    """The CUDA library, whose probe waits until it is released, or says what it is told to."""

    def __init__(self, problem: str = ""):
        self.problem, self.released = problem.encode(), threading.Event()

    def atrousops_cuda_probe(self, index, text, size):
        self.released.wait(5)
        text.value = self.problem[: size - 1]


def test_a_kernel_that_hangs_does_not_hold_the_process(monkeypatch):
    library = Library()
    monkeypatch.setattr(probe, "_cuda", lambda: library)
    monkeypatch.setattr(probe, "LIMIT", 0.05)
    try:
        assert probe.run(0) == "it did not end within 0.05 s"
    finally:
        library.released.set()


@pytest.mark.parametrize("problem", ["", "launching probe_kernel: cudaErrorNoKernelImageForDevice"])
def test_what_the_trivial_kernel_said(monkeypatch, problem):
    library = Library(problem)
    library.released.set()
    monkeypatch.setattr(probe, "_cuda", lambda: library)
    assert probe.run(0) == problem
