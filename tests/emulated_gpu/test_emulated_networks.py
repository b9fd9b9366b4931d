"""Layers and networks on device="cuda" with our kernels: autocast, convert, optimize, explain, training."""

import copy

import pytest
import torch
import torch.nn.functional as F
from emulated_cases import launched
from oracle import assert_close, both_ways, worst
from torch import nn

import atrousops as ao
from atrousops import models

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def our_kernels():
    with ao.backend("cuda"), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def network() -> nn.Sequential:
    """What convert replaces and optimize fuses: an atrous and a strided convolution, pooling, a transposed one."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=2, dilation=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2),
        nn.ConvTranspose2d(8, 4, 4, stride=4),
    )


def trained(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output and every gradient."""
    x = x.clone().requires_grad_()
    y = module(x)
    y.square().sum().backward()
    return [t.detach().cpu() for t in (y, x.grad, *(p.grad for p in module.parameters()))]


def test_convert_and_train():
    stock, x = network(), torch.randn(2, 3, 16, 16)
    ours = copy.deepcopy(stock).cuda()
    ao.convert(ours)
    assert isinstance(ours[0], ao.AtrousConv2d)
    found = trained(ours, x.cuda())
    with ao.backend("aten"):
        exact, usual = trained(copy.deepcopy(stock).double(), x.double()), trained(stock, x)
    for a, b, c in zip(found, exact, usual, strict=True):
        assert_close(a, b, c)


def test_optimize():
    stock, x = network().eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        found = ao.optimize(copy.deepcopy(stock).cuda())(x.cuda()).cpu()
        with ao.backend("aten"):
            assert_close(found, copy.deepcopy(stock).double()(x.double()), stock(x))


def test_explain_names_our_kernel():
    layer = ao.AtrousConv2d(8, 8, 3, padding=6, dilation=6).cuda()
    (row,) = ao.explain(layer, torch.randn(1, 8, 16, 16, device="cuda")).rows
    assert (row.device, row.backend, row.own) == ("cuda", "cuda", "cuda")
    assert row.plan is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_a_cast_of_the_arguments(dtype):
    layer = ao.AtrousConv2d(16, 8, 3, padding=2, dilation=2).cuda()
    x = torch.randn(1, 16, 9, 9, device="cuda")
    with torch.autocast("cuda", dtype):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == dtype
    assert layer.weight.grad.dtype == torch.float32
    arguments = x.cpu().to(dtype), layer.weight.detach().cpu().to(dtype), layer.bias.detach().cpu().to(dtype)
    exact = F.conv2d(*(t.double() for t in arguments), 1, 2, 2)
    assert_close(y.detach().cpu(), exact, F.conv2d(*arguments, 1, 2, 2))


def test_torch_compile_keeps_our_kernels():
    """Inductor would compile for hardware: `aot_eager` traces forward and backward by shapes, and runs what it has."""
    layers = nn.Sequential(ao.AtrousConv2d(4, 8, 3, padding=2, dilation=2), ao.MaxPool2d(2)).cuda()
    x = torch.randn(2, 4, 9, 8, device="cuda")
    eager = trained(layers, x)
    layers.zero_grad()
    compiled = torch.compile(layers, backend="aot_eager", fullgraph=True)
    again: list[torch.Tensor] = []
    found = launched(lambda: again.extend(trained(compiled, x)))
    assert all(torch.equal(a, b) for a, b in zip(again, eager, strict=True))
    for kernel in ("conv_simt_kernel", "max_pool_kernel", "place_windows_kernel"):
        assert any(kernel in name for name in found), found


def test_a_training_step_of_a_small_deeplab():
    """Against the same step on the CPU: the loss, and every gradient to twice the error that PyTorch's own step makes.

    Normalisation is frozen: of maps of two pixels it is so ill-conditioned that gradients in fp32 say nothing.
    """
    stock = models.build("deeplabv3plus_mobilenet_v3_large", num_classes=2).eval()
    x, labels = torch.randn(1, 3, 32, 32), torch.randint(2, (1, 32, 32))

    def step(model: nn.Module, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
        model = copy.deepcopy(model).to(device, dtype)
        loss = F.cross_entropy(model(x.to(device, dtype))["out"], labels.to(device))
        loss.backward()
        return [loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters() if p.grad is not None)]

    found = step(stock, "cuda", torch.float32)
    with ao.backend("aten"):
        exact, usual = step(stock, "cpu", torch.float64), both_ways(lambda: step(stock, "cpu", torch.float32))
    for a, b, *c in zip(found, exact, *usual, strict=True):
        assert_close(a, b, worst(b, *c))


def test_a_training_step_of_mask_rcnn(monkeypatch):
    """To its end, against the CPU's: the losses, and the weights after it. RoIAlign alone is forced to be ours, for
    convolutions of 256 channels take minutes.
    """
    # Or else torchvision compiles a RoIAlign of its own, of the masks, for hardware.
    torch.use_deterministic_algorithms(False)
    pooled = ao.nn.MultiScaleRoIAlign.forward

    def forward(self, *arguments):
        with ao.backend("cpu" if next(iter(arguments[0].values())).device.type == "cpu" else "cuda"):
            return pooled(self, *arguments)

    monkeypatch.setattr(ao.nn.MultiScaleRoIAlign, "forward", forward)
    few = {"rpn_post_nms_top_n_train": 8, "box_batch_size_per_image": 4, "rpn_batch_size_per_image": 16}
    stock = models.mask_rcnn(2, "resnet18", frozen_norm=True, min_size=32, max_size=32, **few).train()
    mask = torch.zeros(1, 32, 32, dtype=torch.uint8)
    mask[0, 8:24, 6:26] = 1
    image = torch.rand(3, 32, 32) + mask
    target = {"boxes": torch.tensor([[6.0, 8, 26, 24]]), "labels": torch.tensor([1]), "masks": mask}

    def step(device: str) -> list[torch.Tensor]:
        network = copy.deepcopy(stock).to(device)
        optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
        # Boxes are drawn.
        torch.manual_seed(0)
        losses = network([image.to(device)], [{name: t.to(device) for name, t in target.items()}])
        sum(losses.values()).backward()
        optimiser.step()
        return [t.detach().cpu() for t in (*losses.values(), *network.parameters())]

    ours: list[torch.Tensor] = []
    with ao.backend(None):
        found = launched(lambda: ours.extend(step("cuda")))
        expected = step("cpu")
    assert any("roi_align_forward" in name for name in found), found
    assert any("RoiAlignGather" in name for name in found), found
    torch.testing.assert_close(ours, expected)
    assert not torch.equal(ours[-1], [*stock.parameters()][-1])


def test_dense_crf():
    """Ten labels of a small photograph, against the CPU's kernels."""
    scores, image = torch.randn(1, 10, 12, 14), 255 * torch.rand(1, 3, 12, 14)
    crf = ao.DenseCRF(iterations=3)
    found = copy.deepcopy(crf).cuda()(scores.cuda(), image.cuda())
    with ao.backend("cpu"):
        torch.testing.assert_close(found.cpu(), crf(scores, image))
