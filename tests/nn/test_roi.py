import pytest
import torch
import torchvision

from atrousops.nn import RoIAlign, RoIPool

PAIRS = [
    (RoIAlign, torchvision.ops.RoIAlign, {"output_size": (3, 2), "spatial_scale": 0.5, "sampling_ratio": 2}),
    (
        RoIAlign,
        torchvision.ops.RoIAlign,
        {"output_size": 3, "spatial_scale": 1.0, "sampling_ratio": -1, "aligned": True},
    ),
    (RoIPool, torchvision.ops.RoIPool, {"output_size": (3, 2), "spatial_scale": 0.5}),
]


@pytest.mark.parametrize(("ours", "theirs", "arguments"), PAIRS)
def test_same_as_torchvision(ours, theirs, arguments):
    one, other = ours(**arguments), theirs(**arguments)
    assert repr(one) == repr(other)
    assert one.state_dict() == other.state_dict()
    x = torch.randn(2, 4, 10, 12)
    boxes = [torch.tensor([[1.0, 1, 5, 6], [0, 0, 7, 7]]), torch.tensor([[2.0, 3, 4, 5]])]
    torch.testing.assert_close(one(x, boxes), other(x, boxes))
