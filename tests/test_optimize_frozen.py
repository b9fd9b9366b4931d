"""Weights that `optimize(..., freeze=True)` keeps in oneDNN's format: the same numbers, and those of now."""

import copy
import gc
import weakref

import pytest
import torch
from oracle import assert_close
from torch import nn

import atrousops as ao
from atrousops.ops import _prepacked
from atrousops.ops._prepacked import prepacked

BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
DTYPES = [torch.float32, *[torch.bfloat16] * BF16]


class Residual(nn.Module):
    """Of every kind of call: dense, dilated, depthwise, with residual, plain, strided."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 6, 6, groups=16), nn.ReLU6(), nn.Conv2d(16, 32, 1))
        self.wide = nn.Sequential(nn.Conv2d(32, 32, 3, 1, 4, 4), nn.Hardswish(), nn.Conv2d(32, 5, 1))

    def forward(self, x):
        return self.wide(self.deep(self.stem(x)))


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return Residual().eval().to(dtype)


def image(dtype=torch.float32, side=33):
    return torch.randn(1, 3, side, side + 2, generator=torch.Generator().manual_seed(side)).to(dtype)


@pytest.fixture
def packs(monkeypatch):
    """How often a weight was packed."""
    made, pack = [], torch.ops.mkldnn._reorder_convolution_weight

    class Counted:
        def __getattr__(self, name):
            return getattr(mkldnn, name)

        def _reorder_convolution_weight(self, *args):
            made.append(args)
            return pack(*args)

    mkldnn = torch.ops.mkldnn
    monkeypatch.setattr(torch.ops, "mkldnn", Counted())
    return made


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_numbers_of_a_copy_that_is_not_frozen(dtype, packs):
    model, exact = network(dtype), network().double()
    exact.load_state_dict(model.state_dict())
    plain, frozen = ao.optimize(model, image(dtype)), ao.optimize(model, image(dtype), freeze=True)
    counts = []
    with torch.no_grad(), ao.backend("aten"):
        # A size that comes again after another one: formats depend on it.
        for side in (33, 33, 70, 33):
            packs.clear()
            x = image(dtype, side)
            assert_close(frozen(x), exact(x.double()), plain(x))
            counts.append(len(packs))
    assert counts == [5, 0, 5, 5]


def hold_changed(change):
    """After a change of its weights, a frozen copy that has run is as one that has not."""
    used, fresh = ao.optimize(network(), image(), freeze=True), ao.optimize(network(), image(), freeze=True)
    with torch.no_grad():
        before = used(image())
        change(used)
        change(fresh)
        assert torch.equal(used(image()), fresh(image()))
        assert not torch.equal(used(image()), before)


def test_loaded_weights_count():
    other = {name: value * 2 for name, value in ao.optimize(network(), image()).state_dict().items()}
    hold_changed(lambda net: net.load_state_dict(other))


def test_weights_changed_in_place_count():
    def change(net):
        for weight in net.parameters():
            weight.mul_(1.5)

    hold_changed(change)


def test_replaced_data_counts():
    def change(net):
        for weight in net.parameters():
            weight.data = weight.data * 1.5

    hold_changed(change)


def test_rounded_weights_count():
    """Through fp16 and back: the last storage may lie where the first one was."""
    hold_changed(lambda net: net.half().float())


def test_storage_at_the_same_place_is_another():
    """The allocator gives memory out again: neither its address nor a count of changes tells storages apart."""
    weight = nn.Parameter(torch.zeros(1 << 16), requires_grad=False)
    addresses = set()
    for i in range(20):
        addresses.add(weight.data_ptr())
        assert prepacked(weight, (), (), lambda: float(weight[0])) == i
        # Two in turn, of which the middle one is never packed.
        weight.data = torch.full_like(weight.data, -1.0)
        weight.data = torch.full_like(weight.data, i + 1.0)
    assert len(addresses) < 20
    assert weight._version == 0


def test_made_again_by_settings_and_other_tensors():
    weight, scale, made = torch.ones(3), torch.ones(1), []

    def make():
        made.append(None)
        return len(made)

    assert [prepacked(weight, (scale,), 1, make) for _ in range(3)] == [1, 1, 1]
    assert prepacked(weight, (scale,), 2, make) == 2
    scale.add_(1)
    assert prepacked(weight, (scale,), 2, make) == 3
    assert prepacked(copy.deepcopy(weight), (scale,), 2, make) == 4


def test_nothing_is_kept_of_tensors_of_inference_mode():
    with torch.inference_mode():
        weight = torch.ones(3)
        assert prepacked(weight, (), (), weight.sum) == 3
        weight.mul_(2)
        assert prepacked(weight, (), (), weight.sum) == 6


def test_weights_made_in_inference_mode_are_ordinary():
    with torch.inference_mode():
        frozen = ao.optimize(network(), image(), freeze=True)
    assert not any(weight.is_inference() for weight in frozen.parameters())


def test_what_was_made_goes_with_its_weight():
    weight, count = torch.ones(3), len(_prepacked._made)
    made = prepacked(weight, (), (), lambda: torch.ones(4))
    gone = weakref.ref(made)
    del made
    assert gone() is not None
    del weight
    gc.collect()
    assert gone() is None
    assert len(_prepacked._made) == count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_image_s_mean(dtype):
    """Squeeze and excitation: 16 bits are averaged without a copy; not another size, and not with gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 70, 1), nn.AdaptiveAvgPool2d(1)).eval().to(dtype)
    fast = ao.optimize(model, image(dtype))
    with torch.no_grad():
        assert_close(fast(image(dtype)), copy.deepcopy(model).double()(image(dtype).double()), model(image(dtype)))
    x = image(dtype).requires_grad_()
    fast(x).sum().backward()
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    assert torch.allclose(x.grad, expected, rtol=0.1)
    others = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d((1, 2))).eval().to(dtype)
    with torch.no_grad():
        assert ao.optimize(others, image(dtype))(image(dtype)).shape == (1, 4, 1, 2)


def test_frozen_and_narrow():
    """Narrow weights are kept in a format of their own; others' roundings may move a narrow number by one step."""
    x = image()
    narrow = ao.optimize(network(), x, dtype=torch.int8, calibration=x, freeze=True)
    same = ao.optimize(network(), x, dtype=torch.int8, calibration=x)
    with torch.no_grad():
        expected = same(x)
        for _ in range(2):
            assert (narrow(x) - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("freeze", [False, True])
def test_mapped_over_images(freeze):
    """vmap has no memory formats."""
    fast, images = ao.optimize(network(), image(), freeze=freeze), torch.stack([image(), 2 * image()])
    with torch.no_grad():
        for y, x in zip(torch.func.vmap(fast)(images), images):
            assert_close(y, network().double()(x.double()), fast(x))
