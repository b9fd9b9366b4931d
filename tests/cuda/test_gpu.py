"""What only a GPU can show: graphs, streams, races that repeat, waits of the host, tensors beyond 2^31 elements."""

import os

import pytest
import torch
import torch.nn.functional as F
from every_operator import CASES, DTYPES, LARGE, RUNS, WAITING, prepared
from oracle import assert_close, tf32

import atrousops as ao
import atrousops.functional as A

pytestmark = pytest.mark.gpu

CAPTURABLE = [name for name in CASES if name not in WAITING]
big = pytest.mark.skipif(not os.environ.get("ATROUSOPS_BIG"), reason="takes 30 GB of the GPU: set ATROUSOPS_BIG=1")


@pytest.fixture(autouse=True)
def on_the_gpu():
    with torch.device("cuda"), ao.backend("cuda"), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def assert_same_bits(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_the_cpu_gives_the_same_result(case, dtype):
    """Within twice the error of our CPU kernels, which other tests hold to PyTorch. A lattice's numbering is free."""
    if case == "permutohedral_lattice":
        pytest.skip("the numbering of a lattice is free; its filters are compared")
    ours = prepared(CASES[case], dtype, False).bits()
    with torch.device("cpu"), ao.backend("cpu"):
        expected = prepared(CASES[case], dtype, False).bits()
        exact = prepared(CASES[case], torch.float64, False, dtype).bits()
    for a, b, right in zip(ours, expected, exact, strict=True):
        if a.is_floating_point():
            assert_close(a.cpu(), right, b)
        else:
            assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CAPTURABLE)
def test_a_graph_replays_the_same_bits(case, dtype):
    call = prepared(CASES[case], dtype, False)
    expected = call.bits()
    call.flip()
    other = call.bits()
    call.flip()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call.run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [t for part in call.run() for t in part]
    graph.replay()
    assert_same_bits(captured, expected)
    call.flip()
    graph.replay()
    assert_same_bits(captured, other)


@pytest.mark.parametrize("case", CASES)
def test_kernels_run_on_the_current_stream(case):
    """Arguments arrive late on a side stream: whoever reads them from another stream sees zeros."""
    call = prepared(CASES[case], torch.float32, False)
    expected = call.bits()
    values = [leaf.detach().clone() for leaf in call.leaves]
    for leaf in call.leaves:
        leaf.data.zero_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        for leaf, value in zip(call.leaves, values, strict=True):
            leaf.data.copy_(value)
        ours = call.bits()
    torch.cuda.current_stream().wait_stream(side)
    assert_same_bits(ours, expected)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [*CASES, *(f"large {name}" for name in LARGE)])
def test_a_hundred_runs_give_the_same_bits(case, dtype, channels_last):
    large = LARGE.get(case.removeprefix("large ")) if case.startswith("large ") else None
    call = prepared(large or CASES[case], dtype, channels_last)
    expected = call.bits()
    for _ in range(RUNS):
        assert_same_bits(call.bits(), expected)


@pytest.mark.parametrize("case", CAPTURABLE)
def test_the_host_never_waits(case):
    call = prepared(CASES[case], torch.float32, False)
    call.run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_tf32_where_pytorch_allows_it(channels_last):
    x, w = torch.randn(2, 64, 33, 31), torch.randn(64, 64, 3, 3)
    if channels_last:
        x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
    exact = F.conv2d(x.cpu().double(), w.cpu().double(), None, 1, 6, 6)
    strict = A.conv2d(x, w, None, 1, 6, 6)
    assert_close(strict.cpu(), exact, F.conv2d(x, w, None, 1, 6, 6).cpu())
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        fast = A.conv2d(x, w, None, 1, 6, 6)
    assert_close(fast.cpu(), exact, F.conv2d(tf32(x), tf32(w), None, 1, 6, 6).cpu())
    assert not torch.equal(fast, strict)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("case", CASES)
def test_a_second_device(case):
    expected = [t.cpu() for t in prepared(CASES[case], torch.float32, False).bits()]
    with torch.device("cuda:1"):
        ours = prepared(CASES[case], torch.float32, False).bits()
    assert all(t.device.index == 1 for t in ours)
    assert_same_bits([t.cpu() for t in ours], expected)


@big
def test_pooling_beyond_2_31_elements():
    x = torch.randn(1, 9, 16384, 16384, dtype=torch.float16)
    y, indices = A.max_pool2d(x, 2, return_indices=True)
    for plane in (0, 8):
        expected = F.max_pool2d(x[:, plane : plane + 1], 2)
        assert torch.equal(y[:, plane : plane + 1], expected)
    del x
    back = A.max_unpool2d(y, indices, 2)
    assert back.numel() > 2**31
    for plane in (0, 8):
        assert torch.equal(F.max_pool2d(back[:, plane : plane + 1].relu(), 2), y[:, plane : plane + 1].relu())


@big
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_convolution_beyond_2_31_elements(channels_last):
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(1, 40, 8192, 8192, dtype=torch.bfloat16, memory_format=form).normal_()
    w = torch.randn(8, 40, 3, 3, dtype=torch.bfloat16).contiguous(memory_format=form)
    y = A.conv2d(x, w, None, 1, 2, 2)
    assert x.numel() > 2**31
    for rows, inner in ((slice(0, 64), slice(0, 60)), (slice(-64, None), slice(-60, None))):
        part = x[:, :, rows].contiguous(memory_format=form)
        exact = F.conv2d(part.cpu().double(), w.cpu().double(), None, 1, 2, 2)[:, :, inner]
        assert_close(y[:, :, inner].cpu(), exact, F.conv2d(part, w, None, 1, 2, 2)[:, :, inner].cpu())
