"""Full networks, encoder -> head -> scores at the size of the input, and their weights.

Every network maps normalised images (N, 3, H, W) of any size to a dict: "out" (N, num_classes, H, W), and "aux" of the
same shape where it has an auxiliary classifier.
"""

from atrousops.models.base import SegmentationModel
from atrousops.models.deeplab import (
    deeplabv3_mobilenet_v3_large,
    deeplabv3_resnet50,
    deeplabv3_resnet101,
    deeplabv3plus_mobilenet_v3_large,
    deeplabv3plus_resnet50,
    deeplabv3plus_resnet101,
    deeplabv3plus_vgg16_lowrank,
)
from atrousops.models.enet import ENet, enet
from atrousops.models.fcn import FCN, fcn8s, fcn16s, fcn32s
from atrousops.models.registry import Info, WeightsError, build, list, load, load_weights, save

__all__ = [
    "FCN",
    "ENet",
    "Info",
    "SegmentationModel",
    "WeightsError",
    "build",
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3plus_mobilenet_v3_large",
    "deeplabv3plus_resnet50",
    "deeplabv3plus_resnet101",
    "deeplabv3plus_vgg16_lowrank",
    "enet",
    "fcn8s",
    "fcn16s",
    "fcn32s",
    "list",
    "load",
    "load_weights",
    "save",
]
