"""References are computed on the CPU in fp64, whatever device a test runs on."""

import oracle
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch.utils._python_dispatch import TorchDispatchMode


class Devices(TorchDispatchMode):
    """Where each operator of a name ran, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[str]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        devices = {t.device.type for t in args if isinstance(t, torch.Tensor)}
        self.seen.setdefault(func._opname, set()).update(devices)
        return func(*args, **(kwargs or {}))


def test_fp64_alone_is_moved(monkeypatch):
    """Tensors of the CPU stand for a GPU's here: the first of them are copied, fp32 is left where it is."""
    moved = []
    monkeypatch.setattr(oracle, "_is_away", lambda t: True)
    monkeypatch.setattr(oracle, "on_the_cpu", lambda function, *args, **kwargs: moved.append(function.__name__))
    x, w, boxes = torch.zeros(1, 2, 5, 5), torch.zeros(3, 2, 3, 3), torch.zeros(1, 5)
    before = F.conv2d
    with oracle.references_on_the_cpu():
        for dtype in (torch.float32, torch.float64):
            F.conv2d(x.to(dtype), w.to(dtype))
            F.conv_transpose2d(x.to(dtype), w.to(dtype).transpose(0, 1))
            F.max_pool2d(x.to(dtype), 2, return_indices=True)
            torchvision.ops.roi_align(x.to(dtype), boxes.to(dtype), 2)
    assert moved == ["conv2d", "conv_transpose2d", "max_pool2d", "roi_align"]
    assert F.conv2d is before


@pytest.mark.gpu
def test_references_of_a_gpu_live_on_the_cpu():
    x = torch.randn(1, 2, 8, 8, device="cuda", dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 2, 3, 3, device="cuda", dtype=torch.float64, requires_grad=True)
    with oracle.references_on_the_cpu(), Devices() as devices:
        y = F.max_pool2d(F.conv2d(x, w), 2)
        gradients = torch.autograd.grad(y.sum(), (x, w))
    assert {t.device.type for t in (y, *gradients)} == {"cuda"}
    assert devices.seen["convolution"] == devices.seen["convolution_backward"] == {"cpu"}
    assert devices.seen["max_pool2d_with_indices"] == devices.seen["max_pool2d_with_indices_backward"] == {"cpu"}
    exact = F.max_pool2d(F.conv2d(x.detach().cpu(), w.detach().cpu()), 2)
    assert torch.equal(y.cpu(), exact)


@pytest.mark.gpu
def test_the_fixture_of_a_gpu_does_so(backend):
    x = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    with Devices() as devices:
        F.conv2d(x, x[..., :3, :3])
        F.conv2d(x.float(), x[..., :3, :3].float())
    assert devices.seen["convolution"] == {"cpu", x.device.type}
