"""Fully connected conditional random fields: DenseCRF, with fixed weights, and CRFasRNN, with trained ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atrousops import ops
from atrousops.common.checks import bad_type, bad_value
from atrousops.common.values import is_autocast
from atrousops.dispatch.backends import FLOATING
from atrousops.nn.crf_kernels import (
    MAX_AXES,
    Checked,
    Compatibility,
    CRFKernel,
    Numbers,
    check_image,
    check_kernel,
    check_range,
    deviations,
    given_kernels,
    lattice,
)
from atrousops.nn.in_place import leaf
from atrousops.nn.settings import Settings
from atrousops.ops.mean_field import check_labels
from atrousops.ops.permutohedral import NORMALIZATIONS, Lattice


class _GaussianCRF(Settings):
    """Base of both: kernels, and mean-field inference over them."""

    def __init__(
        self, iterations: int, kernels: Mapping[str, CRFKernel], normalization: str, spacing: Numbers = 1.0
    ) -> None:
        super().__init__()
        self._name = type(self).__name__
        if not isinstance(iterations, int) or isinstance(iterations, bool):
            bad_type(self._name, "iterations", "be an int", type(iterations).__name__)
        if iterations < 0:
            bad_value(self._name, "iterations", "be 0 or more", iterations)
        if normalization not in NORMALIZATIONS:
            bad_value(self._name, "normalization", f"be one of {', '.join(NORMALIZATIONS)}", repr(normalization))
        self.iterations = iterations
        self.kernels: tuple[Checked, ...] = tuple(check_kernel(self._name, *item) for item in kernels.items())
        self.normalization = normalization
        self.spacing = deviations(self._name, "spacing", spacing, MAX_AXES)

    @property
    def gaussian_sxy(self) -> tuple[float, ...]:
        return self._setting("gaussian_", "sxy")

    @property
    def bilateral_sxy(self) -> tuple[float, ...]:
        return self._setting("bilateral_", "sxy")

    @property
    def bilateral_srgb(self) -> tuple[float, ...]:
        return self._setting("bilateral_", "srgb")

    def _setting(self, prefix: str, name: str) -> tuple[float, ...]:
        """A setting of the two default kernels; a single sxy is that of x and y."""
        kernel = next((kernel for kernel in self.kernels if kernel.prefix == prefix), None)
        if kernel is None:
            raise AttributeError(f"{self._name} has `kernels`, and no {prefix}{name}")
        value: tuple[float, ...] = getattr(kernel, name)
        return value * 2 if name == "sxy" and len(value) == 1 else value

    def _names(self, what: str) -> list[str]:
        """The name of each kernel's tensor: gaussian_WHAT and bilateral_WHAT, or WHAT0, WHAT1, ..."""
        usual = not self.kernels[0].prefix.startswith("kernels[")
        return [f"{kernel.prefix}{what}" if usual else f"{what}{n}" for n, kernel in enumerate(self.kernels)]

    def _compatibilities(self, labels: int) -> list[Tensor]:
        raise NotImplementedError

    def lattices(self, image: Tensor) -> list[Lattice]:
        """The lattice of each kernel in turn; a kernel of positions only has one lattice for all images.

        Args:
            image: (N, C, *spatial), float32 or float64.
        """
        return [lattice(self._name, kernel, self.spacing, image) for kernel in self.kernels]

    def forward(self, scores: Tensor, image: Tensor) -> Tensor:
        """Q (N, L, *spatial) for scores (N, L, *spatial) and image (N, C, *spatial), of one to three axes."""
        self._check(scores, image)
        check_range(self._name, self.kernels, image)
        device = scores.device.type
        dtype = torch.float32 if is_autocast(device) and scores.dtype != torch.float64 else scores.dtype
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        # PyTorch has no autocast for meta.
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):
            lattices = self.lattices(image.detach().to(compute))
            mus = self._compatibilities(scores.shape[1])
            q = ops.mean_field(scores.to(compute), lattices, mus, self.iterations, self.normalization)
        return q.to(dtype)

    def _check(self, scores: Tensor, image: Tensor) -> None:
        for argument, value in (("scores", scores), ("image", image)):
            if not isinstance(value, Tensor):
                bad_type(self._name, argument, "be a tensor", type(value).__name__)
            if not 3 <= value.dim() <= 2 + MAX_AXES:
                rule = f"have 3 to {2 + MAX_AXES} dimensions, (N, channels) and one to {MAX_AXES} axes"
                bad_value(self._name, argument, rule, tuple(value.shape))
        if scores.dtype not in FLOATING:
            bad_type(self._name, "scores", "be float64, float32, bfloat16 or float16", scores.dtype)
        if image.dtype not in (*FLOATING, torch.uint8):
            bad_type(self._name, "image", "be uint8 or floating", image.dtype)
        check_labels(self._name, scores)
        if scores.shape[0] != image.shape[0] or scores.shape[2:] != image.shape[2:]:
            bad_value(
                self._name,
                "image",
                f"have the N and the axes of scores {tuple(scores.shape)}",
                tuple(image.shape),
                "Interpolate scores to the image's size.",
            )
        if scores.device != image.device:
            bad_value(self._name, "image", f"be on {scores.device}, as scores", image.device)
        check_image(self._name, self.kernels, self.spacing, image)

    def extra_repr(self) -> str:
        def short(values: tuple[float, ...]) -> str:
            return f"{values[0]:g}" if len(set(values)) == 1 else str(values)

        parts = [f"iterations={self.iterations}"]
        for kernel in self.kernels:
            both = (("sxy", kernel.sxy), ("srgb", kernel.srgb), ("channels", kernel.channels))
            parts += [f"{kernel.prefix}{name}={short(value)}" for name, value in both if value is not None]
        parts += [] if set(self.spacing) == {1.0} else [f"spacing={short(self.spacing)}"]
        return ", ".join([*parts, f"normalization={self.normalization!r}"])


@leaf
class DenseCRF(_GaussianCRF):
    """Sharpens label scores along the edges of an image, with a fully connected CRF.

    Mean-field inference (Kraehenbuehl and Koltun, NIPS 2011), Q = softmax(scores - sum_k mu_k K_k Q), with kernels

        gaussian:  exp(-|p_i - p_j|^2 / (2 sxy^2))
        bilateral: exp(-|p_i - p_j|^2 / (2 sxy^2) - |I_i - I_j|^2 / (2 srgb^2))

    on the permutohedral lattice, or with any other `kernels`. Equal to pydensecrf with its default DIAG_KERNEL, whose
    parameters stay at one: for images to DenseCRF2D, and for volumes to DenseCRF with the features that its
    create_pairwise_gaussian and create_pairwise_bilateral make from (D, H, W) and sdims (sz, sy, sx). For images these
    functions put y before x, while DenseCRF2D and this layer put x before y; the lattice's approximation error depends
    on the order.

    Args:
        iterations: of mean field.
        gaussian_sxy, bilateral_sxy: standard deviations in pixels, one for all axes or one for each: (sx, sy) or (sx,
            sy, sz), where x is the last axis of the tensors.
        bilateral_srgb: standard deviation in image units, one for all channels or one for each.
        gaussian_compat, bilateral_compat: a number w, the Potts model, which rewards neighbours of one label with w; or
            L numbers mu_l or an (L, L) matrix of penalties (Potts is -w on the diagonal). As in pydensecrf, only the
            symmetric part of a matrix is used.
        normalization: "symmetric", "before", "after" or "none"; see `functional.permutohedral_filter`.
        kernels: one or more `CRFKernel`, or dictionaries of their arguments, instead of those two.
        spacing: size of pixels or voxels, one number or (x, y, z); all sxy are in the same unit, such as mm.

    Shape:
        scores (N, L, *spatial), L >= 2, log-probabilities or logits; image (N, C, *spatial), uint8 or
        floating; *spatial is (W), (H, W) or (D, H, W); output Q (N, L, *spatial), probabilities of the dtype of scores.
        A kernel has at most 7 features, including one for each axis: C, or the number of a kernel's `channels`, is at
        most 5 for images, 4 for volumes, 6 for signals. Computed in float64 for float64 scores, else in float32, also
        under autocast, which then returns float32. Differentiable in scores.

    The image may have any range; bilateral_srgb is in its unit. 13 is meant for 0..255; with it an image in 0..1 looks
    like a single colour. On the CPU a warning is given for a floating image with values below -0.5, or none above 1,
    whose range is less than two srgb, unless an srgb is below 1. On a GPU there is no warning, because the check would
    synchronise.

    Scores that are not finite: -inf makes a label impossible at a pixel. A pixel with NaN or +inf, or with -inf alone,
    is NaN in Q and does not affect the Q of other pixels; see `functional.mean_field`. An image that is not finite is
    an error.

    Raises:
        ArgumentError: an argument is out of range, shapes or devices disagree, there are fewer than two labels, the
            image is not finite or has too many channels, or both `kernels` and settings of the default kernels are
            given.
        ArgumentTypeError: an argument is of the wrong type or dtype.
    """

    def __init__(
        self,
        iterations: int = 10,
        gaussian_sxy: Numbers = 3.0,
        gaussian_compat: Compatibility = 3.0,
        bilateral_sxy: Numbers = 80.0,
        bilateral_srgb: Numbers = 13.0,
        bilateral_compat: Compatibility = 10.0,
        normalization: str = "symmetric",
        kernels: Sequence[CRFKernel | Mapping[str, Any]] | None = None,
        spacing: Numbers = 1.0,
    ) -> None:
        usual = {
            "gaussian_": CRFKernel(gaussian_compat, gaussian_sxy),
            "bilateral_": CRFKernel(bilateral_compat, bilateral_sxy, bilateral_srgb),
        }
        default = {"gaussian_": CRFKernel(3.0, 3.0), "bilateral_": CRFKernel(10.0, 80.0, 13.0)}
        used = given_kernels(type(self).__name__, usual, default, kernels)
        super().__init__(iterations, used, normalization, spacing)
        # Not saved in the state dict: these are settings, and shapes may differ between CRFs.
        for argument, (prefix, kernel) in zip(self._names("compat"), used.items(), strict=True):
            self._set(argument, self._compatibility(f"{prefix}compat", kernel.compat))

    def _compatibility(self, argument: str, value: Compatibility) -> Tensor:
        try:
            # On meta, a default device that only shapes are built on, a number would lose its value.
            device = "cpu" if torch.get_default_device().type == "meta" and not isinstance(value, Tensor) else None
            mu = torch.as_tensor(value, dtype=torch.float64, device=device).detach().clone()
        except (TypeError, ValueError, RuntimeError):
            bad_type(self._name, argument, "be a number, L numbers or an (L, L) matrix", type(value).__name__)
        if mu.dim() > 2 or (mu.dim() == 2 and mu.shape[0] != mu.shape[1]):
            bad_value(self._name, argument, "be a number, L numbers or an (L, L) matrix", f"shape {tuple(mu.shape)}")
        if mu.is_meta:
            bad_value(self._name, argument, "have values", "a tensor on meta", "Give numbers, or a tensor elsewhere.")
        if not mu.isfinite().all():
            bad_value(self._name, argument, "be finite", value)
        return (mu + mu.T) / 2 if mu.dim() == 2 else mu

    def _compatibilities(self, labels: int) -> list[Tensor]:
        found = []
        for kernel, buffer in zip(self.kernels, self._names("compat"), strict=True):
            mu = getattr(self, buffer)
            if mu.dim() > 0 and mu.shape[0] != labels:
                rule = f"have as many labels as scores, {labels}"
                bad_value(self._name, f"{kernel.prefix}compat", rule, f"shape {tuple(mu.shape)}")
            found.append(-mu.expand(labels) if mu.dim() == 0 else mu)
        return found

    def extra_repr(self) -> str:
        def short(mu: Tensor) -> str:
            if mu.is_meta:
                return "<meta>"
            return f"{mu.item():g}" if mu.dim() == 0 else f"<{'x'.join(map(str, mu.shape))}>"

        compat = [
            f"{kernel.prefix}compat={short(getattr(self, buffer))}"
            for kernel, buffer in zip(self.kernels, self._names("compat"), strict=True)
        ]
        return ", ".join([super().extra_repr(), *compat])


@leaf
class CRFasRNN(_GaussianCRF):
    """A dense CRF whose kernel weights and label compatibilities train with the network (Zheng et al., ICCV 2015).

    Mean field as in DenseCRF, with mu_k = mu W_k: Q = softmax(scores - mu (W_gaussian K_gaussian Q + W_bilateral
    K_bilateral Q)), unrolled and differentiable; the lattices serve all iterations and the backward pass.

    Parameters start where the authors' release starts: mu = -I (the Potts model), W_gaussian = 3 I, W_bilateral = 5 I.
    The paper trains with 5 iterations and tests with 10: set `crf.iterations`.

    Args:
        labels: L.
        iterations, gaussian_sxy, bilateral_sxy, bilateral_srgb, normalization: as in DenseCRF; defaults as in the
            authors' release (3; 160 and 3), which normalises "after".
        gaussian_weight, bilateral_weight: initial kernel weights.
        kernels, spacing: as in DenseCRF; the compat of each kernel is a number, the initial value of its weights
            weight0, weight1, ...

    Shape:
        As DenseCRF. Differentiable in scores and all parameters; not in the image.

    Raises:
        ArgumentError, ArgumentTypeError: as DenseCRF.
    """

    def __init__(
        self,
        labels: int,
        iterations: int = 5,
        gaussian_sxy: Numbers = 3.0,
        gaussian_weight: float = 3.0,
        bilateral_sxy: Numbers = 160.0,
        bilateral_srgb: Numbers = 3.0,
        bilateral_weight: float = 5.0,
        normalization: str = "after",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        kernels: Sequence[CRFKernel | Mapping[str, Any]] | None = None,
        spacing: Numbers = 1.0,
    ) -> None:
        usual = {
            "gaussian_": CRFKernel(gaussian_weight, gaussian_sxy),
            "bilateral_": CRFKernel(bilateral_weight, bilateral_sxy, bilateral_srgb),
        }
        default = {"gaussian_": CRFKernel(3.0, 3.0), "bilateral_": CRFKernel(5.0, 160.0, 3.0)}
        used = given_kernels(type(self).__name__, usual, default, kernels, "weight")
        super().__init__(iterations, used, normalization, spacing)
        if not isinstance(labels, int) or isinstance(labels, bool):
            bad_type(self._name, "labels", "be an int", type(labels).__name__)
        if labels < 2:
            bad_value(
                self._name,
                "labels",
                "be 2 or more",
                labels,
                "A binary network has two: the scores [0, s] of its score s.",
            )
        self.labels = labels
        self._start: list[float] = []
        for prefix, kernel in used.items():
            if not isinstance(kernel.compat, int | float):
                argument = f"{prefix}{'weight' if kernels is None else 'compat'}"
                bad_type(self._name, argument, "be a number", type(kernel.compat).__name__)
            self._start.append(kernel.compat)
        for name in self._names("weight"):
            self.register_parameter(name, nn.Parameter(torch.empty(labels, labels, device=device, dtype=dtype)))
        self.compatibility = nn.Parameter(torch.empty(labels, labels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """mu = -I, the Potts model, and the kernel weights on the diagonal."""
        with torch.no_grad():
            nn.init.eye_(self.compatibility).neg_()
            for name, start in zip(self._names("weight"), self._start, strict=True):
                nn.init.eye_(getattr(self, name)).mul_(start)

    def _compatibilities(self, labels: int) -> list[Tensor]:
        if labels != self.labels:
            bad_value(self._name, "scores", f"have {self.labels} labels", labels)
        return [self.compatibility @ getattr(self, name) for name in self._names("weight")]

    def extra_repr(self) -> str:
        return f"{self.labels}, {super().extra_repr()}"
