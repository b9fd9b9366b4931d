"""The convolutions by TMA and wgmma on an H100 or H200: what the emulation has of the manual, on hardware."""

import pytest
import torch
from every_operator import RUNS
from oracle import assert_close, tf32
from test_conv_mma import Case, stock

import atrousops as ao
import atrousops.functional as A
from atrousops.dispatch.devices import is_emulated

pytestmark = pytest.mark.gpu

CASES = (
    Case("boxes wholly outside bring zeros and all their bytes", 2, 64, 64, (33, 33), padding=36, dilation=36),
    Case("boxes that hang over on every side, channels too", 3, 72, 64, (33, 31), padding=12, dilation=12),
    Case("a tile of 256 columns, sums in parts", 1, 512, 256, (33, 33), padding=18, dilation=18),
    Case("a tile of 128 columns, many tiles a block", 8, 64, 128, (65, 65), padding=2, dilation=2),
    Case("element strides", 2, 64, 64, (65, 63), stride=2, padding=3, dilation=3),
    Case("one axis", 4, 64, 64, (513,), padding=4, dilation=4),
    Case("three axes", 2, 64, 64, (9, 17, 17), padding=2, dilation=2),
)
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# The others take an emulated device minutes each.
if is_emulated():
    CASES, DTYPES = (CASES[0], CASES[4]), DTYPES[:2]


@pytest.fixture(autouse=True)
def on_hopper():
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("wgmma is compute capability 9.0's alone")
    with torch.device("cuda"), ao.backend("cuda"), torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        yield


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_gradients(case, dtype):
    """Channels are multiples of 8 all, so that the weight gradient has rows that TMA brings.

    The exact results are the CPU's in fp64; the tolerance is what PyTorch itself is off by on this GPU.
    """
    rank = len(case.size)
    x = torch.randn(case.n, *case.size, case.c).to(dtype).movedim(-1, 1)
    w = torch.randn(case.k, *(case.kernel,) * rank, case.c).to(dtype).movedim(-1, 1)
    dy = torch.randn_like(stock(case, False, x, w, None))

    def run(convolution, d, read=lambda t: t, device="cuda"):
        leaves = [read(t.to(device, d)).detach().requires_grad_() for t in (x, w)]
        y = convolution(*leaves)
        return y.detach(), *torch.autograd.grad(y, leaves, read(dy.to(device, d)))

    def pytorch(x, w):
        return stock(case, False, x, w, None)

    def own(x, w):
        return getattr(A, f"conv{rank}d")(x, w, None, case.stride, case.padding, case.dilation)

    exact, theirs = run(pytorch, torch.float64, device="cpu"), run(pytorch, dtype, tf32)
    ours = run(own, dtype)
    for a, b, c in zip(ours, exact, theirs, strict=True):
        assert_close(a.cpu(), b, c.cpu())
    for _ in range(min(20, RUNS)):
        again = run(own, dtype)
        assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@pytest.mark.parametrize("dtype", DTYPES[::2])
def test_branches_in_one_launch(dtype):
    """ASPP: tiles of four convolutions, by other taps and weights, side by side in one tensor."""
    x = torch.randn(*((1, 17, 15) if is_emulated() else (4, 33, 31)), 128).to(dtype).movedim(-1, 1)
    around = [0, 6, 12, 18], [1, 6, 12, 18]
    weights = [torch.randn(256, k, k, 128).to(dtype).movedim(-1, 1) for k in (1, 3, 3, 3)]
    biases = [torch.randn(256).to(dtype) for _ in weights]

    def right(d, read=lambda t: t, device="cuda"):
        parts = [
            torch.conv2d(read(x.to(device, d)), read(w.to(device, d)), b.to(device, d), 1, p, r)
            for w, b, p, r in zip(weights, biases, *around, strict=True)
        ]
        return torch.cat(parts, 1).relu()

    y = A.conv_branches(x, weights, biases, *around, "relu")
    assert_close(y.cpu(), right(torch.float64, device="cpu"), right(dtype, tf32).cpu())
    for _ in range(min(20, RUNS)):
        assert torch.equal(A.conv_branches(x, weights, biases, *around, "relu"), y)
