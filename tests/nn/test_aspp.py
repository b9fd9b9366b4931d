import pytest
import torch
from oracle import assert_compiles
from torchvision.models.segmentation import deeplabv3

from atrousops.nn import ASPP, AtrousConv2d

# Odd sizes, and rates on both sides of the map's half: live taps vanish on some rows only.
SIZE, RATES = (17, 19), (2, 6, 12)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [False, True])
def test_loads_torchvision_weights_and_agrees(memory_format, training):
    theirs = deeplabv3.ASPP(32, RATES, 16).double().train(training)
    ours = ASPP(32, RATES, 16).double().train(training)
    ours.load_state_dict(theirs.state_dict())
    theirs.project[3].p = ours.project[3].p = 0.0
    x = torch.randn(2, 32, *SIZE, dtype=torch.float64).to(memory_format=memory_format)
    y = ours(x)
    torch.testing.assert_close(y, theirs(x), rtol=1e-12, atol=1e-12)
    assert y.is_contiguous(memory_format=memory_format)
    for (name, a), b in zip(ours.named_buffers(), theirs.buffers()):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)


def test_separable_has_one_filter_per_channel_and_trains():
    aspp = ASPP(8, RATES, 6, separable=True, image_pooling=False, dropout=0.0)
    depthwise = [m for m in aspp.modules() if isinstance(m, AtrousConv2d) and m.groups == 8]
    assert [m.dilation for m in depthwise] == [(r, r) for r in RATES]
    aspp(torch.randn(2, 8, *SIZE)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in aspp.parameters())


def test_compiles_without_graph_breaks():
    assert_compiles(ASPP(4, (2,), 4).eval(), (torch.randn(1, 4, 9, 9),))


@pytest.mark.parametrize("rates", [(6, 0), (-1,), (1.5,)])
def test_rejects_rates(rates):
    with pytest.raises(ValueError, match="ASPP: rates must be integers of at least 1"):
        ASPP(4, rates)
