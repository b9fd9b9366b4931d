"""torchvision's FCN: its state dict loads strictly and gives its output."""

from test_deeplab import TorchvisionTests


class TestFCNResNet50(TorchvisionTests):
    name = "fcn_resnet50"
