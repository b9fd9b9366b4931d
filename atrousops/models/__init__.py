"""Complete networks, encoder -> head -> scores at the size of the input, and their weights.

Every network maps normalised images (N, in_channels, H, W) of any size to a dict: "out" (N, num_classes, H, W), and
"aux" of the same shape if it has an auxiliary classifier. Mask R-CNN, which finds objects, has torchvision's inputs and
outputs.
"""

from atrousops.models.auto_deeplab import Genotype, auto_deeplab
from atrousops.models.backbones import encoder
from atrousops.models.base import SegmentationModel
from atrousops.models.crf import WithCRF, crfrnn
from atrousops.models.deconvnet import DeconvNet, deconvnet
from atrousops.models.deeplab import (
    deeplabv3,
    deeplabv3_mobilenet_v3_large,
    deeplabv3_resnet50,
    deeplabv3_resnet101,
)
from atrousops.models.deeplab_cascade import deeplabv3_cascade
from atrousops.models.deeplab_v1 import deeplabv1
from atrousops.models.deeplab_v2 import MultiScale, deeplabv2
from atrousops.models.deeplab_v3plus import (
    deeplabv3plus,
    deeplabv3plus_efficientnet_lite2,
    deeplabv3plus_mobilenet_v3_large,
    deeplabv3plus_resnet50,
    deeplabv3plus_resnet101,
    deeplabv3plus_xception65,
)
from atrousops.models.dilated_vgg import DilatedVGG16, dilated_vgg16
from atrousops.models.enet import ENet, enet, enet_davidtvs
from atrousops.models.espnet import ESPNet, espnet
from atrousops.models.fcn import FCN, fcn8s, fcn16s, fcn32s
from atrousops.models.fcn_resnet import fcn_resnet50, fcn_resnet101
from atrousops.models.gcn import GCN, gcn
from atrousops.models.hypercolumns import Hypercolumns, hypercolumns
from atrousops.models.instance_embedding import Instance, MetricLearning, metric_learning
from atrousops.models.lraspp import lraspp_mobilenet_v3_large
from atrousops.models.mask_rcnn import mask_rcnn
from atrousops.models.msd import MSD, msd
from atrousops.models.pspnet import pspnet
from atrousops.models.published import PUBLISHED, load_published
from atrousops.models.registry import Info, WeightsError, build, list, load, load_weights, save
from atrousops.models.segnet import SegNet, segnet
from atrousops.models.segnet_basic import segnet_basic
from atrousops.models.unet import UNet, unet

__all__ = [
    "FCN",
    "GCN",
    "MSD",
    "PUBLISHED",
    "DeconvNet",
    "DilatedVGG16",
    "ENet",
    "ESPNet",
    "Genotype",
    "Hypercolumns",
    "Info",
    "Instance",
    "MetricLearning",
    "MultiScale",
    "SegNet",
    "SegmentationModel",
    "UNet",
    "WeightsError",
    "WithCRF",
    "auto_deeplab",
    "build",
    "crfrnn",
    "deconvnet",
    "deeplabv1",
    "deeplabv2",
    "deeplabv3",
    "deeplabv3_cascade",
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3plus",
    "deeplabv3plus_efficientnet_lite2",
    "deeplabv3plus_mobilenet_v3_large",
    "deeplabv3plus_resnet50",
    "deeplabv3plus_resnet101",
    "deeplabv3plus_xception65",
    "dilated_vgg16",
    "encoder",
    "enet",
    "enet_davidtvs",
    "espnet",
    "fcn8s",
    "fcn16s",
    "fcn32s",
    "fcn_resnet50",
    "fcn_resnet101",
    "gcn",
    "hypercolumns",
    "list",
    "load",
    "load_published",
    "load_weights",
    "lraspp_mobilenet_v3_large",
    "mask_rcnn",
    "metric_learning",
    "msd",
    "pspnet",
    "save",
    "segnet",
    "segnet_basic",
    "unet",
]
