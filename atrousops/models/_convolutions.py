"""The one place that says which layers the networks are made of."""

from torch.nn import MaxPool2d, MaxUnpool2d

from atrousops.nn import AtrousConv2d as Conv2d
from atrousops.nn import AtrousConvTranspose2d as ConvTranspose2d

__all__ = ["Conv2d", "ConvTranspose2d", "MaxPool2d", "MaxUnpool2d"]
