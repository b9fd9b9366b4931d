"""The dense CRF and its lattice on a photograph, against pydensecrf (one thread, CPU) and MONAI's filter."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import atrousops as ao
from atrousops import functional
from atrousops.bench.floors import Floor
from atrousops.bench.oracle import Oracle, no_grad
from atrousops.bench.registry import Prepared, Row, Setting, expand
from atrousops.common.testing import Outputs, Ready, Run
from atrousops.dispatch import backends

LABELS, ITERATIONS = 21, 10
FORWARD = {"fp32 nchw": ("forward",)}
QUICK = ("fp32 nchw forward",)
HOW = {
    "pydensecrf": "not installed: pip install cython==0.29.37 'setuptools<81', then pydensecrf2 --no-build-isolation",
    "monai": "not installed with its compiled filters: BUILD_MONAI=1 pip install monai",
}
# A function of scores and image.
Function = Callable[[Tensor, Tensor], Outputs]


def rows() -> Iterator[Row]:
    """The whole CRF; its iterations with the lattices given; the lattices alone; one filter."""
    size = "500x375, 21 labels"
    for name, reason, prepare in (
        (f"dense CRF, 10 iterations, {size}", "what a user calls", _whole),
        (f"mean field, 10 iterations, {size}", "the same with the lattices given", _iterations),
        ("both lattices, 500x375", "what is built once for an image", _lattices),
        (
            "bilateral filter, 320x240, 21 channels",
            "one filter with its lattice: what others rebuild each step",
            _filter,
        ),
    ):
        quick = QUICK if prepare in (_whole, _iterations) else ()
        yield from expand("crf", name, reason, prepare, FORWARD, quick, needs=("skimage",))


def _photograph(height: int, width: int) -> Tensor:
    import skimage.data
    from torch.nn import functional as F

    photo = torch.from_numpy(skimage.data.coffee()).permute(2, 0, 1)[None].float()
    return F.interpolate(photo, (height, width), mode="bilinear", antialias=True).round()


def _scores(height: int, width: int) -> Tensor:
    # Blobs, as a network gives them, and noise.
    coarse = torch.nn.functional.interpolate(torch.randn(1, LABELS, height // 25, width // 25), (height, width))
    return 2 * coarse + torch.randn(1, LABELS, height, width)


def _whole(at: Setting) -> Prepared:
    crf = ao.DenseCRF(ITERATIONS).to(at.device)
    theirs, missing = _pydensecrf(at, whole=True)
    return _prepare(at, (375, 500), lambda scores, image: crf(scores, image), theirs, missing, LABELS)


def _iterations(at: Setting) -> Prepared:
    crf = ao.DenseCRF(ITERATIONS).to(at.device)
    kept: dict[tuple, list] = {}

    def run(scores: Tensor, image: Tensor) -> Tensor:
        key = (backends.forced(), scores.dtype, scores.shape)
        if key not in kept:
            kept[key] = crf.lattices(image)
        mus = crf._compatibilities(LABELS)
        return functional.mean_field(scores, kept[key], mus, ITERATIONS, crf.normalization)

    theirs, missing = _pydensecrf(at, whole=False)
    return _prepare(at, (375, 500), run, theirs, missing, LABELS)


def _lattices(at: Setting) -> Prepared:
    crf = ao.DenseCRF(ITERATIONS).to(at.device)
    missing = {"pydensecrf": "cannot be asked for its lattices"}
    return _prepare(
        at, (375, 500), lambda _, image: [x.norm for x in crf.lattices(image)], {}, missing, 1, iterated=False
    )


def _filter(at: Setting) -> Prepared:
    crf = ao.DenseCRF().to(at.device)

    def run(scores: Tensor, image: Tensor) -> Tensor:
        return functional.permutohedral_filter(scores, _bilateral(crf, image), "after")

    theirs: dict[str, Callable[[Tensor, Tensor], Ready]] = {}
    missing = {}
    if _has("monai._C") and at.device.type == "cpu":
        theirs["monai"] = lambda scores, image: lambda: partial(_monai, scores, _bilateral(crf, image))
    else:
        missing["monai"] = HOW["monai"]
    return _prepare(at, (240, 320), run, theirs, missing, LABELS, iterated=False)


def _bilateral(crf: ao.DenseCRF, image: Tensor) -> Tensor:
    h, w = image.shape[2:]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    (sx, sy), colour = crf.bilateral_sxy, image / image.new_tensor(crf.bilateral_srgb)[:, None, None]
    return torch.cat([torch.stack([x / sx, y / sy]).to(image)[None], colour], 1)


def _prepare(
    at: Setting,
    size: tuple[int, int],
    run: Function,
    theirs: dict[str, Callable[[Tensor, Tensor], Ready]],
    missing: dict[str, str],
    labels: int,
    iterated: bool = True,
) -> Prepared:
    scores, image = at.tensor(_scores(*size)), at.tensor(_photograph(*size))
    oracle = Oracle(run, (scores, image), iterated)
    pixels = image.shape[2] * image.shape[3]
    # Scores and Q once, and of both lattices the offset and the weight of each of a pixel's 3 + 6 vertices.
    floor = Floor(2.0 * at.element_bytes * pixels * labels + 72.0 * pixels)
    return Prepared(
        ours=lambda: partial(no_grad, run, scores, image),
        theirs={name: start(scores, image) for name, start in theirs.items()},
        exact=oracle.exact,
        yardstick=oracle.yardstick,
        floor=floor,
        kernel=lambda: (at.device.type, "our kernels; PyTorch has none"),
        missing=missing,
    )


def _has(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


def _pydensecrf(at: Setting, whole: bool) -> tuple[dict[str, Callable[[Tensor, Tensor], Ready]], dict[str, str]]:
    if not _has("pydensecrf.densecrf"):
        return {}, {"pydensecrf": HOW["pydensecrf"]}
    return {"pydensecrf": lambda scores, image: partial(_ready_pydensecrf, at, scores, image, whole)}, {}


def _ready_pydensecrf(at: Setting, scores: Tensor, image: Tensor, whole: bool) -> Run:
    import numpy as np
    from pydensecrf import densecrf

    labels, h, w = scores.shape[1:]
    unary = np.ascontiguousarray(-scores[0].cpu().numpy().reshape(labels, -1), np.float32)
    photo = np.ascontiguousarray(image[0].permute(1, 2, 0).cpu().numpy().astype(np.uint8))

    def build() -> densecrf.DenseCRF2D:
        crf = densecrf.DenseCRF2D(w, h, labels)
        crf.setUnaryEnergy(unary)
        how = (densecrf.DIAG_KERNEL, densecrf.NORMALIZE_SYMMETRIC)
        crf.addPairwiseGaussian(3.0, 3.0, *how)
        crf.addPairwiseBilateral(80.0, 13.0, photo, 10.0, *how)
        return crf

    kept = None if whole else build()

    def run() -> Tensor:
        q = (kept or build()).inference(ITERATIONS)
        return torch.from_numpy(np.array(q, np.float32).reshape(1, labels, h, w)).to(at.device)

    return run


def _monai(scores: Tensor, features: Tensor) -> Tensor:
    from monai.networks.layers.filtering import PHLFilter

    # It divides the features in place.
    return PHLFilter.apply(scores, features.clone(), [1.0] * features.shape[1])
