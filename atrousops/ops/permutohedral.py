"""permutohedral_filter: high-dimensional Gaussian filtering over a reusable lattice."""

from __future__ import annotations

import math
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from atrousops import reference
from atrousops.common.checks import ArgumentError, bad_value, check_device, check_floating
from atrousops.common.formats import empty_values
from atrousops.common.values import is_autocast, values_of
from atrousops.dispatch import backends
from atrousops.ops import _first_call
from atrousops.ops._batches import fold
from atrousops.ops._register import foreign, jit_traces, keep, register
from atrousops.ops._routes import is_plain
from atrousops.reference.permutohedral import Lattice

MAX_FEATURES = 7
NORMALIZATIONS = ("none", "symmetric", "before", "after")


def permutohedral_lattice(features: Tensor) -> Lattice:
    """Builds the permutohedral lattice of a set of features, for any number of filters over it.

    Each pixel's feature vector f is embedded in the hyperplane of the lattice A*_D, scaled so that the filter is k(f,
    g) = exp(-|f - g|^2 / 2); there it lies in a simplex of D + 1 vertices and has barycentric weights (Adams, Baek,
    Davis: Fast high-dimensional filtering using the permutohedral lattice, Eurographics 2010, section 3).

    Args:
        features: (N, D, *), 1 <= D <= 7, in units of the filter's standard deviation. float64 is computed in float64,
            all else in float32. Detached: features get no gradient.

    Returns:
        A Lattice with P = product of *. Under torch.compile and torch.jit.trace its M and R are upper bounds,
        N * P * (D + 1); counts and row_bounds give the used part.

    Raises:
        ArgumentError: the rank, D or number of pixels is out of range, features are not finite, or their range does not
            fit 64-bit keys (for D = 5: 12 000 lattice units, about 1 000 standard deviations). Under torch.compile and
            torch.jit.trace on a GPU there is no error: such pixels share the vertices around the origin.
        ArgumentTypeError: features are not floating.
    """
    _check_features("permutohedral_lattice", features)
    return lattice_of(features, Blame("permutohedral_lattice", "features", features))


class Blame(NamedTuple):
    """The operator and argument that features come from, for error messages."""

    op: str
    argument: str
    value: Tensor


def lattice_of(features: Tensor, blame: Blame) -> Lattice:
    """As `permutohedral_lattice`, for features whose type and shape are already checked."""
    features = features.detach().flatten(2)
    if features.dtype != torch.float64:
        features = features.float()
    own = _first_call.own("permutohedral", features.device, features.dtype)
    if not own or foreign(features):
        _check_finite(blame)
        parts = reference.permutohedral_lattice(features)
    elif torch.compiler.is_compiling():
        parts = _make_lattice(features)
    else:
        parts = _build(features, blame)
    n, _, p = features.shape
    norm = apply_lattice(features.new_ones(n, 1, p), parts[1], parts[1], Lattice(*parts, norm=features))  # type: ignore[misc]
    return Lattice(*parts, norm=norm)  # type: ignore[misc]


def permutohedral_filter(values: Tensor, features: Tensor | Lattice, normalize: str | None = None) -> Tensor:
    """Filters values with a Gaussian in feature space.

    y_i = sum_j exp(-|f_i - f_j|^2 / 2) x_j, approximated on the permutohedral lattice: splat, blur along D + 1 axes,
    slice (Adams, Baek, Davis 2010). With K this filter and n = K 1, `normalize` is as in pydensecrf:

    - None or "none": y = K x, with pydensecrf's gain 1 / (1 + 2^-D), which is about half of the true sum;
    - "symmetric": y = n^-1/2 K n^-1/2 x (NORMALIZE_SYMMETRIC);
    - "before": y = K n^-1 x (NORMALIZE_BEFORE);
    - "after": y = n^-1 K x (NORMALIZE_AFTER), a weighted mean.

    If x is not finite at a pixel, y is NaN there, and is computed at all other pixels as if x were 0 there; n does not
    change. This holds on every device, without synchronisation. Such a value gets no gradient.

    Args:
        values: (N, C, *), any C; float64 is computed in float64, all else in float32.
        features: (N, D, *) in units of standard deviations, or the Lattice of such features. One image of features can
            be used for all images of values.
        normalize: see above.

    Returns:
        (N, C, *) of the dtype and memory format of values. Differentiable in values (the transposed filter: the same
        lattice, axes in the opposite order), any number of times; features are detached.

    Raises:
        ArgumentError: ranks or sizes disagree, D is not within 1 to 7, devices differ, or normalize is unknown.
        ArgumentTypeError: an argument is not floating.
    """
    op = "permutohedral_filter"
    _check_values(op, values, features)
    lattice = features if isinstance(features, Lattice) else permutohedral_lattice(features)
    splat, slices = lattice_weights(lattice, normalize, values.dtype, op)
    lost = _not_finite(values)
    y = apply_lattice(fill(values, lost, 0.0).flatten(2), splat, slices, lattice).view(values.shape)
    return fill(y, lost, float("nan"))


def fill(values: Tensor, where: Tensor | None, value: float) -> Tensor:
    """`values` with `value` where the mask is true, in their memory format, which masked_fill would lose."""
    return values if where is None else torch.where(where, value, values)


def is_known(values: Tensor) -> bool:
    """Whether values can be read: a GPU would synchronise, and traced or transformed tensors have none."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling() and is_plain((values,))


def _not_finite(values: Tensor) -> Tensor | None:
    """A mask of values that are not finite; None if all are known to be finite, as a finite sum proves."""
    values = values.detach()
    return None if is_known(values) and bool(values.sum().isfinite()) else ~values.isfinite()


def lattice_weights(lattice: Lattice, normalize: str | None, dtype: torch.dtype, op: str) -> tuple[Tensor, Tensor]:
    """The weights for splatting and slicing: barycentric weights times the factors of `normalize`."""
    normalize = "none" if normalize is None else normalize
    if normalize not in NORMALIZATIONS:
        bad_value(op, "normalize", f"be None or one of {', '.join(NORMALIZATIONS)}", repr(normalize))
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    weights, norm = lattice.weights.to(compute), lattice.norm.to(compute)
    if normalize == "none":
        return weights, weights
    # pydensecrf's guard against division by zero.
    scale = (norm + 1e-20).pow(-0.5 if normalize == "symmetric" else -1.0).transpose(1, 2)
    scaled = weights * scale
    return (weights if normalize == "after" else scaled), (weights if normalize == "before" else scaled)


def memory_format_of(values: Tensor) -> torch.memory_format:
    """channels_last if values of 4 or 5 dimensions are in it and not contiguous."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(values.dim(), torch.contiguous_format)
    # Under vmap the memory format cannot be queried.
    if values.is_contiguous() or torch._C._are_functorch_transforms_active():
        return torch.contiguous_format
    if values.is_contiguous(memory_format=last):
        return last
    return torch.contiguous_format


def apply_lattice(values: Tensor, splat: Tensor, slices: Tensor, lattice: Lattice) -> Tensor:
    """Filters values (N, C, P) with weights from `lattice_weights`; the lattice is of N images or one image for all."""
    n, c, p = values.shape
    if lattice.offsets.shape[0] != n:
        # One lattice for all images: they become channels of one image.
        return apply_lattice(values.reshape(1, n * c, p), splat, slices, lattice).view(n, c, p)
    own = _first_call.own("permutohedral", values.device, values.dtype)
    run = _apply if own and not foreign(values, splat, slices, *lattice) else reference.permutohedral_apply
    # As the operator's rule for autocast.
    if is_autocast(values.device.type) and values.dtype != torch.float64:
        values = values.float()
    return run(values, splat, slices, lattice.offsets, *lattice[2:7], False)


def _build(features: Tensor, blame: Blame) -> tuple[Tensor, ...]:
    try:
        offsets, weights, neighbours, starts, rows, bounds, counts = _make_lattice(features)
    except ArgumentError:
        # The kernel's message names features; the caller may have made them from an image.
        _refuse_span(blame)
    # The operator's outputs have a static upper bound as their size, so that it compiles without data-dependent shapes;
    # unused parts are never written. They are copied here to the used size. This is the only place that waits for a
    # GPU; its kernels report features out of range by a negative bound. Fake features have no values, and a trace would
    # fix the sizes of this image for all others; there the outputs are not cut.
    if isinstance(features, FakeTensor) or features.is_meta or jit_traces():
        return offsets, weights, neighbours, starts, rows, bounds, counts
    m, r = torch.stack([values_of(counts).sum(), values_of(bounds)[-1]]).tolist()
    if r < 0:
        _refuse_span(blame)
    return offsets, weights, neighbours[:, :m].clone(), starts[: m + 1].clone(), rows[:r].clone(), bounds, counts


def _refuse_span(blame: Blame) -> NoReturn:
    _check_finite(blame)
    op, argument, value = blame
    got = f"values up to {values_of(value).abs().max():g}"
    bad_value(op, argument, "fit 64-bit keys", got, "Divide them by larger standard deviations.")


def _check_finite(blame: Blame) -> None:
    op, argument, value = blame
    if value.is_meta:
        return
    value = values_of(value)
    lost = ~value.isfinite()
    if lost.any():
        first = tuple(lost.nonzero()[0].tolist())
        got = f"{value[first].item()} at {first}, and {int(lost.sum())} such values in all"
        bad_value(op, argument, "be finite", got, "Replace them, for example by torch.nan_to_num.")


def _check_features(op: str, features: Tensor) -> None:
    check_floating(op, "features", features, backends.FLOATING)
    if features.dim() < 3:
        bad_value(op, "features", "be (N, D, *)", f"shape {tuple(features.shape)}", "Add the missing dimensions.")
    if not 1 <= features.shape[1] <= MAX_FEATURES:
        bad_value(op, "features", f"have 1 to {MAX_FEATURES} channels", features.shape[1], "64-bit keys hold no more.")
    check_count(op, "features", features, features.shape[1], features.shape[0])


def check_count(op: str, argument: str, value: Tensor, features: int, images: int) -> None:
    """Raises ArgumentError unless 32-bit indices suffice for the vertices of images (N, C, *) with D features."""
    if images * math.prod(value.shape[2:]) * (features + 1) >= 2**31 - 1:
        rule = f"have N * P * (D + 1) < 2^31, where D is {features}"
        bad_value(op, argument, rule, tuple(value.shape), "Filter fewer images, or parts of them, at a time.")


def _check_values(op: str, values: Tensor, features: Tensor | Lattice) -> None:
    check_floating(op, "values", values, backends.FLOATING)
    if values.dim() < 3:
        bad_value(op, "values", "be (N, C, *)", f"shape {tuple(values.shape)}", "Add the missing dimensions.")
    n = values.shape[0]
    if isinstance(features, Lattice):
        images, pixels, _ = features.offsets.shape
        if images not in (1, n) or pixels != math.prod(values.shape[2:]):
            bad_value(op, "values", f"be of {images} images and {pixels} pixels, as the lattice", tuple(values.shape))
        for part in features:
            check_device(op, "values", values, features=part)
    else:
        _check_features(op, features)
        if features.shape[0] not in (1, n) or features.shape[2:] != values.shape[2:]:
            wanted = ("N or 1", "D", *values.shape[2:])
            bad_value(op, "features", f"be ({', '.join(map(str, wanted))}) for these values", tuple(features.shape))
        check_device(op, "values", values, features=features)


def _fake_lattice(features: Tensor) -> tuple[Tensor, ...]:
    n, d, p = features.shape
    most = n * p * (d + 1)
    # The same chunks as on the C++ side.
    chunks = torch.sym_min(torch.sym_max(p // 4096, 1), torch.sym_min(4 * (p // 65536 + 1), 64))

    def ints(*size: int) -> Tensor:
        return features.new_empty(size, dtype=torch.int32)

    bounds = features.new_empty((n * chunks + 1,), dtype=torch.int64)
    counts = features.new_empty((n,), dtype=torch.int64)
    weights = features.new_empty((n, p, d + 1))
    return ints(n, p, d + 1), weights, ints(d + 1, most, 2), ints(most + 1), ints(most), bounds, counts


def _setup(ctx, inputs, output) -> None:
    _, splat, slices, *lattice, reverse = inputs
    ctx.reverse = reverse
    keep(ctx, splat, slices, *lattice)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    splat, slices, *lattice = ctx.saved_tensors
    return _apply(grad, slices, splat, *lattice, not ctx.reverse), *[None] * 9


def _lattice_of_batches(info, in_dims, features: Tensor) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """Rule for vmap: images of all batches share one lattice, whose vertices are numbered together."""
    n = features.shape[0 if in_dims[0] else 1]
    images = features.movedim(in_dims[0], 0).flatten(0, 1)
    offsets, weights, neighbours, starts, rows, bounds, counts = _make_lattice(images)
    offsets, weights, counts = (t.unflatten(0, (info.batch_size, n)) for t in (offsets, weights, counts))
    return (offsets, weights, neighbours, starts, rows, bounds, counts), (0, 0, None, None, None, None, 0)


def _vmap_apply(info, in_dims, values, splat, slices, offsets, *rest) -> tuple[Tensor, int]:
    """Rule for vmap: batches become channels over one lattice, or images of the lattice built for all of them."""
    b, lattice = info.batch_size, in_dims[1:9]
    if all([dim is None for dim in lattice]):
        values = values.movedim(in_dims[0], 1)
        out = _apply(values.flatten(1, 2), splat, slices, offsets, *rest)
        return out.unflatten(1, (b, values.shape[2])), 1
    if in_dims[3] is None:
        # Different weights on one lattice.
        return torch.vmap(reference.permutohedral_apply, in_dims)(values, splat, slices, offsets, *rest), 0
    *tables, counts, reverse = rest
    images = [fold(t, dim, b) for t, dim in zip((values, splat, slices, offsets), in_dims)]
    out = _apply(*images, *tables, fold(counts, in_dims[8], b), reverse)
    return out.unflatten(0, (b, out.shape[0] // b)), 0


_make_lattice = register(
    "permutohedral_lattice",
    fake=_fake_lattice,
    otherwise=reference.permutohedral_lattice,
    vmap=_lattice_of_batches,
    autocast="float32",
)
_apply = register(
    "permutohedral_apply",
    fake=empty_values,
    otherwise=reference.permutohedral_apply,
    backward=_backward,
    setup_context=_setup,
    vmap=_vmap_apply,
    autocast="float32",
)
