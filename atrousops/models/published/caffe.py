"""Names of layers and blobs of Caffe's VGG-16, and the names in our networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from atrousops.models.published.entry import Rule, State, from_bgr, renamed

# The mean subtracted from the images of VGG-16: red, green, blue.
MEAN = (122.67891434, 116.66876762, 104.00698793)

# Layer numbers in torchvision's vgg16.
_NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_STAGES = (2, 2, 3, 3, 3)
LAYERS = tuple(f"conv{s}_{i}" for s, count in enumerate(_STAGES, start=1) for i in range(1, count + 1))


def blobs(state: Mapping[str, Tensor]) -> State:
    """Renames to LAYER.weight and LAYER.bias, for any separator in the file and for numbered blobs."""
    weights = r"(.+)[./](?:weights?|kernel|0)"
    biases = r"(.+)[./](?:bias|biases|1)"
    return renamed(state, [(weights, r"\1.weight"), (biases, r"\1.bias")])


def vgg16(state: Mapping[str, Tensor], rules: Sequence[Rule], prefix: str = "") -> State:
    """Renames VGG-16 to `backbone`, fc6 and fc7 to `fc`, and the rest by rules; converts the input to RGB."""
    own: list[Rule] = [
        (rf"{name}\.(weight|bias)", rf"{prefix}backbone.{n}.\1") for name, n in zip(LAYERS, _NUMBERS, strict=True)
    ]
    own += [(r"fc6\.(weight|bias)", rf"{prefix}fc.0.\1"), (r"fc7\.(weight|bias)", rf"{prefix}fc.3.\1")]
    return from_bgr(renamed(blobs(state), [*own, *rules]), f"{prefix}backbone.0.weight")
