"""NaN-poisoned outputs for every test, the backends of operator tests, the shared data if it is there, and what a run
left out."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import coverage_of_kernels
import host_cuda
import interpreted
import pytest
import torch
from oracle import References

import atrousops as ao
from atrousops.dispatch import choice, libraries, measured
from atrousops.dispatch.devices import is_emulated

# Workers of pytest-xdist share the cores.
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
torch.set_num_threads(THREADS)
# Threads of BLAS only wait for each other in the small products of Triton's interpreter.
if "TRITON_INTERPRET" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# cuBLAS asks for it where algorithms are to be deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# What somebody measured on this machine must not decide what is tested.
os.environ["ATROUSOPS_PLANS"] = "none"
GPU_TESTS = pytest.StashKey[int]()
TRITON_TESTS = pytest.StashKey[int]()
TRITON_ON_GPU = "triton on cuda"
EMULATED = pytest.StashKey[int]()
WHOLE_DRAW = pytest.StashKey[bool]()


def pytest_make_parametrize_id(val):
    """float32 rather than dtype1."""
    return str(val).removeprefix("torch.") if isinstance(val, torch.dtype) else None


@pytest.hookimpl(trylast=True)  # after -k and -m
def pytest_collection_modifyitems(config, items):
    """Tests that need a GPU are left out where there is none; where there is one, they must run."""
    triton = [item for item in items if item.get_closest_marker("triton")]
    kept = set(() if interpreted.problem() else interpreted.selected(triton))
    left_out = [item for item in triton if item not in kept]
    if kept and not interpreted.problem():
        interpreted.watch()
        config.stash[WHOLE_DRAW] = interpreted.is_whole(config, list(kept))
    config.stash[TRITON_TESTS] = len(left_out)
    if left_out:
        items[:] = [item for item in items if item not in set(left_out)]
        config.hook.pytest_deselected(items=left_out)
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    config.stash[GPU_TESTS] = 0
    if gpu and torch.cuda.is_available():
        if libraries.cuda.problem:
            raise pytest.UsageError(
                f"{len(gpu)} tests need a GPU, and one is here, but not the CUDA library: {libraries.cuda.problem}. "
                "Build it, or leave them out with -m 'not gpu'"
            )
        if is_emulated():
            _leave_out_triton(config, items)
    elif gpu:
        config.stash[GPU_TESTS] = len(gpu)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=gpu)


def _leave_out_triton(config, items):
    """On an emulated GPU, for Triton compiles for hardware alone."""
    left_out = [item for item in items if item.get_closest_marker("triton_gpu")]
    items[:] = [item for item in items if item not in set(left_out)]
    config.stash[EMULATED] = len(left_out)
    config.hook.pytest_deselected(items=left_out)


def pytest_sessionfinish(session):
    """A run of everything fails if it never ran some CUDA kernel, a whole draw if one of Triton's."""
    if hasattr(session.config, "workeroutput"):
        coverage_of_kernels.send(session.config)
        session.config.workeroutput["gpu"] = session.config.stash.get(GPU_TESTS, 0)
        session.config.workeroutput["triton"] = session.config.stash.get(TRITON_TESTS, 0)
        session.config.workeroutput["whole"] = session.config.stash.get(WHOLE_DRAW, False)
        session.config.workeroutput["launched"] = interpreted.launched()
        return
    cuda = coverage_of_kernels.is_whole(session) and coverage_of_kernels.was_used()
    draw = session.exitstatus == pytest.ExitCode.OK and session.config.stash.get(WHOLE_DRAW, False)
    if (cuda and coverage_of_kernels.never_executed()) or (draw and interpreted.never_launched()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_testnodedown(node):
    output = getattr(node, "workeroutput", {})
    coverage_of_kernels.receive(output)
    node.config.stash[GPU_TESTS] = output.get("gpu", 0)
    node.config.stash[TRITON_TESTS] = output.get("triton", 0)
    node.config.stash[WHOLE_DRAW] = output.get("whole", False)
    interpreted.receive(output.get("launched", []))


def pytest_terminal_summary(terminalreporter):
    write = terminalreporter.write_line
    if left_out := terminalreporter.config.stash.get(GPU_TESTS, 0):
        write(f"gpu: {left_out} tests need a GPU, and were left out: no CUDA kernel ran on hardware")
    if is_emulated():
        name, left_out = torch.cuda.get_device_name(), terminalreporter.config.stash.get(EMULATED, 0)
        write(f"gpu: EMULATED ({name}): no hardware ran a kernel; {left_out} cases of Triton's were left out")
    if left_out := terminalreporter.config.stash.get(TRITON_TESTS, 0):
        why = interpreted.problem() or "ATROUSOPS_TRITON_ALL=1 runs them"
        write(f"triton: {left_out} cases were left out: {why}")
    if terminalreporter.config.stash.get(WHOLE_DRAW, False):
        never = interpreted.never_launched()
        write(f"triton: {len(interpreted.launched())} kernels by dtype ran; never: {', '.join(never) or 'none'}")
    if host_cuda.problem():
        write(f"host_cuda: no CUDA kernel was executed: {host_cuda.problem()}", red=True)
    elif coverage_of_kernels.was_used():
        whole = coverage_of_kernels.is_whole(terminalreporter._session)
        for line in coverage_of_kernels.report(whole):
            write(line)


@pytest.fixture(autouse=True)
def poison():
    """Uninitialised memory is NaN (or the largest integer), so that an element no kernel wrote shows."""
    # On a GPU some of PyTorch's own, which stand for the oracle, have no deterministic algorithm.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def nondeterministic():
    """PyTorch's unpooling refuses to be an oracle otherwise."""
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def thread_count():
    """What a test before left behind would make threads of two workers wait for each other."""
    torch.set_num_threads(THREADS)


BACKENDS = (
    "cpu",
    "host_cuda",
    pytest.param("triton", marks=pytest.mark.triton),
    pytest.param("cuda", marks=pytest.mark.gpu),
    pytest.param(TRITON_ON_GPU, marks=(pytest.mark.gpu, pytest.mark.triton_gpu)),
)


@pytest.fixture(params=BACKENDS)
def backend(request) -> Iterator[str]:
    """Whose kernels the test runs; forced, so a test that wants another says so.

    "host_cuda" is the CUDA kernels on CPU tensors, "triton" Triton's: keep shapes small. "cuda" and "triton on cuda"
    make tensors on the GPU by default.
    """
    name = request.param
    if name == "host_cuda":
        if host_cuda.problem():
            pytest.skip(host_cuda.problem())
        with host_cuda.host_cuda(), host_cuda.order(host_cuda.default_seed()):
            yield name
        return
    if name == "triton":
        with ao.backend("triton"):
            yield name
        return
    if name == "cpu" and libraries.cpu.problem:
        pytest.skip(f"no cpu library: {libraries.cpu.problem}")
    device, name = ("cuda", "triton") if name == TRITON_ON_GPU else (name, name)
    flags = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    away = References() if device == "cuda" else contextlib.nullcontext()
    with torch.device(device), away, ao.backend(name), flags:
        yield name


def data_folder() -> Path | None:
    """The folder with the real material: $ATROUSOPS_DATA, or ../shared/data beside the checkout."""
    for candidate in (os.environ.get("ATROUSOPS_DATA"), Path(__file__).resolve().parents[2] / "shared" / "data"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    return None


@pytest.fixture
def real_data() -> Path:
    folder = data_folder()
    if folder is None:
        pytest.skip("no real data: set ATROUSOPS_DATA")
    return folder


@pytest.fixture
def own_plans(tmp_path, monkeypatch):
    """A folder of measured plans that this test alone reads and writes."""
    monkeypatch.setenv("ATROUSOPS_PLANS", str(tmp_path))
    measured.forget()
    choice.forget()
    yield tmp_path
    measured.forget()
    choice.forget()
