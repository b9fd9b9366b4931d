"""Full networks, encoder -> head -> scores at the size of the input, and their weights.

Every network maps normalised images (N, 3, H, W) of any size to a dict: "out" (N, num_classes, H, W), and "aux" of the
same shape where it has an auxiliary classifier.
"""

from atrousops.models.base import SegmentationModel
from atrousops.models.crf import WithCRF, crfrnn
from atrousops.models.deeplab import (
    deeplabv3_mobilenet_v3_large,
    deeplabv3_resnet50,
    deeplabv3_resnet101,
    deeplabv3plus_mobilenet_v3_large,
    deeplabv3plus_resnet50,
    deeplabv3plus_resnet101,
    deeplabv3plus_vgg16_lowrank,
)
from atrousops.models.dilated_vgg import DilatedVGG16, dilated_vgg16
from atrousops.models.enet import ENet, enet
from atrousops.models.fcn import FCN, fcn8s, fcn16s, fcn32s
from atrousops.models.registry import Info, WeightsError, build, list, load, load_weights, save

__all__ = [
    "FCN",
    "DilatedVGG16",
    "ENet",
    "Info",
    "SegmentationModel",
    "WeightsError",
    "WithCRF",
    "build",
    "crfrnn",
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3plus_mobilenet_v3_large",
    "deeplabv3plus_resnet50",
    "deeplabv3plus_resnet101",
    "deeplabv3plus_vgg16_lowrank",
    "dilated_vgg16",
    "enet",
    "fcn8s",
    "fcn16s",
    "fcn32s",
    "list",
    "load",
    "load_weights",
    "save",
]
