"""What a call of a convolution does to its caller: one call of PyTorch's function on the tensors as they came."""

import contextlib
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import atrousops as ao
import atrousops.functional as A


class Calls(TorchFunctionMode):
    """Counts the calls of each function and keeps their arguments."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append((func, args))
        return func(*args, **(kwargs or {}))

    def of(self, function):
        return [args for func, args in self.seen if func is function]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("forced", [False, True], ids=["planned", "forced"])
def test_weights_below_the_smallest_normal_number_are_numbers(dtype, forced, backend):
    """2e-5 is subnormal in fp16, and an ordinary number to multiply with."""
    x = (1000 * torch.randn(1, 8, 9, 8)).to(dtype)
    w = (torch.randn(6, 8, 3, 3) * 2e-5).to(dtype)
    exact = F.conv2d(x.double(), w.double(), padding=2, dilation=2)
    assert exact.abs().amax() > 0.1
    with contextlib.nullcontext() if forced else ao.backend(None):
        ours = A.conv2d(x, w, padding=2, dilation=2)
    assert_close(ours, exact, F.conv2d(x, w, padding=2, dilation=2))


@pytest.mark.parametrize("size", [(1, 8, 9, 8), (1, 64, 32, 32)], ids=["small", "large"])
def test_pytorch_gets_the_tensors_as_they_came(size):
    """Half the weights and the input are subnormal in fp32: nothing is scanned, copied or cleared."""
    x, w = torch.full(size, 1e-40), torch.randn(8, size[1], 1, 1)
    w[::2] = 1e-39
    with Calls() as calls:
        y = A.conv2d(x, w)
    ((input, weight, *_),) = calls.of(F.conv2d)
    assert input is x
    assert weight is w
    assert torch.equal(y, F.conv2d(x, w))


def test_a_box_filter_in_half_precision_survives_optimize():
    """129 x 129 taps of 6e-5 each: the mean of an image, not zero."""
    layer = nn.Conv2d(1, 1, 129, padding=64, bias=False).eval().half()
    nn.init.constant_(layer.weight, 1 / 129**2)
    x = torch.rand(1, 1, 129, 129).half()
    expected = layer.double()(x.double())
    y = ao.optimize(layer.half())(x)
    assert_close(y, expected, layer.half()(x))
    assert y[0, 0, 64, 64] > 0.4


@pytest.mark.parametrize("early_stop", [True, False])
def test_gradient_checkpointing(early_stop):
    """PyTorch leaves the second forward pass by an exception, once the last saved tensor is there."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(4, 2, 1))
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    expected = torch.autograd.grad(model(x).sum(), (x, *model.parameters()))
    ao.convert(model)
    with torch.utils.checkpoint.set_checkpoint_early_stop(early_stop):
        y = checkpoint(model, x, use_reentrant=False)
        got = torch.autograd.grad(y.sum(), (x, *model.parameters()))
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b)


class Refused(RuntimeError):
    pass


def test_what_a_hook_raises_arrives_and_the_hook_has_run_once():
    seen = []

    def pack(tensor):
        seen.append(tensor)
        raise Refused("saved tensors")

    x, w = torch.randn(1, 3, 5, 5), torch.randn(2, 3, 3, 3, requires_grad=True)
    A.conv2d(x, w)
    with pytest.raises(Refused), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        A.conv2d(x, w)
    assert len(seen) == 1


def test_what_a_mode_raises_arrives_and_the_mode_has_run_once():
    class Raises(Calls):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.conv2d:
                self.seen.append((func, args))
                raise Refused("conv2d")
            return super().__torch_function__(func, types, args, kwargs)

    x, w = torch.randn(1, 3, 5, 5), torch.randn(2, 3, 3, 3)
    mode = Raises()
    with pytest.raises(Refused), mode:
        A.conv2d(x, w)
    assert len(mode.of(F.conv2d)) == 1


@pytest.mark.parametrize(("dtype", "threads"), [(torch.bfloat16, 1), (torch.float16, 1), (torch.bfloat16, 2)], ids=str)
def test_every_autocast_dtype_is_looked_up_anew(dtype, threads):
    x, w = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.autocast("cpu", dtype):
            assert A.conv2d(x, w).dtype == dtype
    finally:
        torch.set_num_threads(before)


DISTANT = """
import torch
import torch.nn.functional as F

import atrousops.functional as A

for dtype in (torch.float32, torch.bfloat16):
    for axes in (2, 3):
        # Of one pixel a row, a window that steps over it reads the padding alone.
        x = torch.randn(2, 8, *[5] * (axes - 1), 1, dtype=dtype).movedim(1, -1).contiguous().movedim(-1, 1)
        w = torch.randn(16, 8, *[1] * axes, dtype=dtype)
        bias = torch.randn(16, dtype=dtype)
        conv, far = getattr(A, f"conv{axes}d"), (1,) * (axes - 1)
        for trained in (False, True):
            x.requires_grad_(trained)
            y = conv(x, w, bias, (*far, 3), (*far[1:], 2, 2), (*far[1:], 4, 12))
            assert torch.equal(y, bias.view(-1, *[1] * axes).expand_as(y))
        assert not torch.autograd.grad(y.sum(), x)[0].any()
        # The transposed one, whose gradient is such a convolution.
        x = torch.randn(2, 16, *[5] * (axes - 1), 2, dtype=dtype).movedim(1, -1).contiguous().movedim(-1, 1)
        x.requires_grad_()
        y = getattr(A, f"conv_transpose{axes}d")(x, w, None, (*far, 3), (*far[1:], 2, 1), 0, 1, (*far[1:], 4, 12))
        grad = torch.randn(y.shape, dtype=dtype).movedim(1, -1).contiguous().movedim(-1, 1)
        exact = x.detach().double().requires_grad_()
        with torch.backends.mkldnn.flags(enabled=False):
            t = getattr(F, f"conv_transpose{axes}d")(exact, w.double(), None, (*far, 3), (*far[1:], 2, 1))
            expected = torch.autograd.grad(t, exact, grad.double())[0]
        got = torch.autograd.grad(y, x, grad)[0]
        assert torch.allclose(y.double(), t, rtol=0.02, atol=0.1)
        assert torch.allclose(got.double(), expected, rtol=0.02, atol=0.1)
"""


def test_the_distance_of_a_single_tap_is_nobodys():
    """oneDNN crashes where rows are of padding alone: in a process of its own."""
    done = subprocess.run([sys.executable, "-c", DISTANT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
