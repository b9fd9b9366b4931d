"""What the emulated runtime refuses, and what its queues and graphs show."""

import ctypes
import faulthandler
import os
import signal
import threading
import time

import pytest
import torch
import torchvision
from emulated_cases import launched

import atrousops as ao
import atrousops.functional as A
from atrousops.dispatch import probe
from atrousops.dispatch.verdicts import Finding
from atrousops.proof import check
from atrousops.proof.cases import Case, Family

pytestmark = [pytest.mark.gpu, pytest.mark.skipif("ATROUSOPS_EMULATED" not in os.environ, reason="of the emulation")]


def test_the_devices_say_that_they_are_emulated():
    assert torch.cuda.device_count() == 2
    assert all(torch.cuda.get_device_name(i).endswith("EMULATED") for i in range(2))


def test_a_missing_wait_is_seen():
    """Work on a side stream runs when something waits for it: whoever does not wait finds NaN."""
    source = torch.ones(8).pin_memory()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        late = source.to("cuda", non_blocking=True)
    assert late.cpu().isnan().all()
    torch.cuda.current_stream().wait_stream(side)
    assert (late.cpu() == 1).all()


def test_the_host_cannot_read_device_memory():
    """But through a copy: a pointer that host code follows ends the process, as on most GPUs."""
    x = torch.ones(8, device="cuda")
    torch.cuda.synchronize()
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        ctypes.string_at(x.data_ptr(), 1)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGSEGV
    assert x.tolist() == [1] * 8


def test_a_thread_that_waits_for_the_runtime_lets_python_go_on():
    """Another has the runtime's lock and waits for Python, as where a kernel is translated at its first launch."""
    began, runtime = threading.Event(), ctypes.CDLL("libcudart.so.13")

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def work(_):
        began.set()
        time.sleep(0.05)

    assert runtime.cudaLaunchHostFunc(None, work, None) == 0
    other = threading.Thread(target=runtime.cudaDeviceSynchronize)
    faulthandler.dump_traceback_later(60, exit=True)
    other.start()
    began.wait()
    # It is called with Python's lock held, as the end of a tensor is.
    assert ctypes.PyDLL("libcudart.so.13").cudaMemGetInfo(*(ctypes.byref(ctypes.c_size_t()) for _ in range(2))) == 0
    other.join()
    faulthandler.cancel_dump_traceback_later()


def test_a_graph_runs_our_kernel_again():
    x = torch.randn(1, 2, 8, 8, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with ao.backend("cuda"), torch.cuda.graph(graph):
        y = A.max_pool2d(x, 2)
    for _ in range(2):
        x.copy_(torch.randn(1, 2, 8, 8))
        graph.replay()
        assert torch.equal(y.cpu(), torch.nn.functional.max_pool2d(x.cpu(), 2))


def test_the_second_device():
    x = torch.randn(1, 2, 8, 8)
    with ao.backend("cuda"):
        y = A.max_pool2d(x.to("cuda:1"), 2)
    assert y.device.index == 1
    assert torch.equal(y.cpu(), torch.nn.functional.max_pool2d(x, 2))


def test_a_tensor_map_needs_a_context_and_aligned_strides():
    runtime = ctypes.CDLL("libcudart.so.13")
    encode = ctypes.c_void_p()
    status = ctypes.c_int()
    runtime.cudaGetDriverEntryPointByVersion(
        b"cuTensorMapEncodeTiled", ctypes.byref(encode), 12000, ctypes.c_ulonglong(0), ctypes.byref(status)
    )
    function = ctypes.CFUNCTYPE(
        ctypes.c_int, *[ctypes.c_void_p], ctypes.c_int, ctypes.c_uint, *[ctypes.c_void_p] * 5, *[ctypes.c_int] * 4
    )(encode.value)
    memory = (ctypes.c_char * 256)()
    place = (ctypes.addressof(memory) + 63) // 64 * 64
    sizes, box, ones = (ctypes.c_uint64 * 2)(64, 8), (ctypes.c_uint32 * 2)(32, 4), (ctypes.c_uint32 * 2)(1, 1)

    def encoded(stride: int) -> int:
        return function(place, 7, 2, 4096, sizes, (ctypes.c_uint64 * 1)(stride), box, ones, 0, 0, 0, 0)

    x, w = (torch.randn(*size).cuda().bfloat16().movedim(-1, 1) for size in ((1, 9, 9, 64), (64, 3, 3, 64)))
    torch.cuda.synchronize()
    assert encoded(256) == 0
    assert encoded(264) == 1
    runtime.fake_cuda_forget_context()
    assert encoded(256) == 201
    # Ours find themselves one.
    with ao.backend("cuda"):
        found = launched(lambda: A.conv2d(x, w, None, 1, 2, 2))
    assert any("wgmma" in name for name in found)
    assert encoded(256) == 0


def test_an_error_is_raised_once():
    """CUDA keeps it until it is asked for, and PyTorch's next call would raise it again."""
    said = ctypes.create_string_buffer(1024)
    probe._cuda().atrousops_cuda_probe(99, said, len(said))
    assert b"cudaSetDevice: cudaErrorInvalidDevice: " in said.value
    assert ctypes.CDLL("libcudart.so.13").cudaPeekAtLastError() == 0
    assert torch.ones(3, device="cuda").sum().item() == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_tensor_is_printed(dtype):
    x = torch.arange(1600).view(40, 40).to(dtype)
    printed, right = ("".join(repr(t).split()) for t in (x.cuda(), x))
    assert printed.replace(",device='cuda:0'", "") == right


def test_an_operator_that_no_function_calls():
    """The default device is in force inside it, as in what gradcheck asks of undefined gradients."""
    x = torch.ones(3, device="cuda")
    with torch.device("cuda"):
        y = torch._C._functions.UndefinedGrad()(x)
    assert y.tolist() == [1, 1, 1]


def test_torchvisions_operators_run():
    """Registered when torchvision is imported; they exist for hardware alone."""
    boxes, scores = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [8, 8, 9, 9]]), torch.tensor([0.9, 0.8, 0.7])
    kept = torchvision.ops.nms(boxes.cuda(), scores.cuda(), 0.5)
    assert kept.tolist() == [0, 2]


def test_selfcheck_leaves_many_blocks_and_times_to_hardware():
    def right(x):
        return torch.nn.functional.max_pool2d(x, 2)

    def case(ours):
        return Case("max_pool2d 2", lambda make: [make((1, 2, 6, 6))], ours, right)

    family = Family((case(lambda x: A.max_pool2d(x, 2)),), (case(lambda x: 0 * right(x)),), (case(right),))
    assert check.check(family, "cuda", "cuda", print, lambda: 100.0) == Finding(True, "", 1)
