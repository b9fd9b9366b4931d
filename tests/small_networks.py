"""Arguments that make this package's networks tiny, for tests of what is independent of width."""

from typing import Any

SMALL: dict[str, dict[str, Any]] = {
    "crfrnn": {"width": 1},
    "deconvnet": {"width": 1},
    "deeplabv1": {"width": 1},
    "dilated_vgg16": {"width": 1, "context": "large"},
    "fcn16s": {"width": 1, "padding": 0},
    "fcn8s": {"width": 1},
    "gcn": {"backbone": "resnet18"},
    "hypercolumns": {"width": 1, "grid": 2},
    "msd": {"depth": 12},
    "segnet": {"width": 1},
    "unet": {"width": 1},
}

# Exported only, as the networks that are not here, with their defaults.
OTHERS: dict[str, dict[str, Any]] = {
    "auto_deeplab": {"width": 4},
    "deeplabv2": {"backbone": "resnet18"},
    "deeplabv3_cascade": {"backbone": "resnet18"},
    "deeplabv3plus_xception65": {"width": 8},
    "fcn32s": {"width": 1, "padding": 0},
    "metric_learning": {"backbone": "resnet18", "dimensions": 4},
    "pspnet": {"backbone": "resnet18"},
}
