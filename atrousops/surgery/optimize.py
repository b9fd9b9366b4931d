"""optimize: a trained model made fast for inference."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from atrousops.common.checks import bad_type, bad_value
from atrousops.nn.sequence import hooks_on_all
from atrousops.surgery.convert import convert
from atrousops.surgery.fusion import Fusion
from atrousops.surgery.quantize import checked_calibration, quantize
from atrousops.surgery.report import Optimization, attach, optimization_report
from atrousops.surgery.standard import Inputs, Standard, made_inputs
from atrousops.surgery.watch import Watch, run_seeded


def optimize(
    model: nn.Module,
    *example: Any,
    memory_format: torch.memory_format | None = torch.channels_last,
    check: bool = True,
    dtype: torch.dtype | None = None,
    calibration: Iterable[Any] | None = None,
    freeze: bool = False,
) -> nn.Module:
    """A copy of a trained model that does the same in fewer and faster steps, for inference.

    - batch normalisation becomes a part of the convolution before it: w' = w g / sqrt(v + eps), in fp64, rounded once;
    - in nn.Sequential and in known blocks (torchvision's residual ones, ASPP), residual and ReLU (ReLU6, Hardswish,
      SiLU) become a part of the convolution's call (`FusedConv2d`), and ASPP's branches one layer;
    - layers become this package's (`convert`), and convolutions work in channels_last;
    - bilinear resizing by nn.Upsample and by torchvision's segmentation networks is this package's on a CPU;
    - parameters in float32 or bfloat16 below the smallest normal number become zero: a CPU multiplies them a hundred
      times slower.

    Every module stays the object it is, under its name, with its attributes and methods, and an instance of its class.
    A normalisation is folded only where the source of the code that calls both layers shows that it gets all that the
    convolution returns, on every path, and runs of a copy agree; it returns its input then, and the convolution called
    alone gives the normalised result. Layers with hooks, parametrizations, a class or `forward` of the user's,
    several users, or weights that other code reads stay as they are. Convolutions whose results are viewed or
    returned keep their layout.

    The copy is held to the model, on the example or on random images of two sizes, outputs within twice the rounding
    errors that the model itself makes; what does not agree is undone. The copy's weights want no gradients; the model
    itself is neither changed nor run (copies of it are). Save the copy whole, or optimise again after loading the
    model's own weights: a state dict of the copy is refused by a model whose normalisations are not folded likewise.

    With a `dtype`, int8 or float8_e4m3fn, dense convolutions of images then become `QuantizedConv2d`. Weights have a
    scale for each output channel, inputs one scale, from the largest magnitude that the calibration images bring
    there; zero is zero. Convolutions in groups (depthwise ones), those that see the image and those whose results the
    model returns stay as they are. Such a copy is not held to the model: the report says what each layer and the
    whole changed for the first calibration image. Its state dict can be saved, and loaded into a copy made in this way.

    Args:
        model: any module in evaluation mode. Parts in training mode, such as Monte-Carlo dropout, stay in it.
        example: inputs to hold the copy to the model with. Without them, and where the model takes no images, only
            what needs no run is done.
        memory_format: of convolutions with two or three spatial axes; None leaves it as it comes.
        check: False leaves out all runs but those on calibration images, and with them memory formats.
        dtype: of the numbers that convolutions multiply; None leaves them.
        calibration: images such as the model will see, a tensor (N, C, H, W), or inputs of calls, each a tensor or a
            tuple; some tens of them, and none that the copy is judged by.
        freeze: keeps the weights of the convolutions above in the formats that oneDNN multiplies them in, too, from
            their first call on a CPU, instead of making these in every call. It takes as much memory again as the
            weights. Changes by `load_state_dict` and other in-place operations are seen; those through `weight.data`,
            numpy or another process are not.

    Returns:
        The copy. `optimization_report(copy)` lists what was fused, what was left, and why.

    Raises:
        ArgumentTypeError: `model` is not a torch.nn.Module.
        ArgumentError: it is in training mode, or raises on the example; no such dtype; no calibration images with it,
            or not finite ones.
    """
    if not isinstance(model, nn.Module):
        bad_type("optimize", "model", "be a torch.nn.Module", type(model).__name__)
    if model.training:
        bad_value("optimize", "model", "be in evaluation mode", "one in training mode", "Call model.eval().")
    calls = checked_calibration(dtype, calibration)
    # Weights made in inference mode would not tell of their changes.
    with torch.inference_mode(False):
        result = _fused(model, [example] if example else [], calls[:1], _How(memory_format, check, freeze))
        if dtype is not None:
            quantize(result, calls, dtype, optimization_report(result))
    return result


class _How(NamedTuple):
    """Arguments of `optimize`."""

    memory_format: torch.memory_format | None
    check: bool
    freeze: bool


def _fused(
    model: nn.Module,
    example: list[Inputs],
    otherwise: list[Inputs],
    how: _How,
) -> nn.Module:
    """The copy without narrow numbers; `otherwise`: inputs where no example is given and none can be made."""
    if not how.check:
        return _made(model, None, how._replace(memory_format=None), ["not held to the model, as asked for"])
    inputs = example or made_inputs(model) or otherwise
    if not inputs:
        note = "it takes no image that could be made here: give an example of its inputs to have layers fused"
        return _made(model, None, how, [note], fuse=False)
    standard, watched = Standard(model, inputs), copy.deepcopy(model)
    watch = Watch(watched)
    for given in inputs:
        run_seeded(watched, given, watch)
    notes: list[str] = []
    for format in dict.fromkeys((how.memory_format, None)):
        result = _made(model, watch, how._replace(memory_format=format), notes)
        reason = standard.disagreement(result)
        if not reason:
            return result
        notes = [*notes, f"undone{' in channels_last' if format is not None else ''}, as the copy disagreed: {reason}"]
    result = copy.deepcopy(model).requires_grad_(False)
    attach(result, Optimization(notes=notes))
    return result


def _made(
    model: nn.Module,
    watch: Watch | None,
    how: _How,
    notes: list[str],
    fuse: bool = True,
) -> nn.Module:
    result, report = copy.deepcopy(model), Optimization(notes=list(notes))
    if hooks_on_all():
        report.notes.append("left as it is: hooks on all modules want to see every call")
        fuse = False
    convert(result)
    if fuse:
        fusion = Fusion(result, watch)
        fusion.fold_norms(report)
        fusion.prepare_convs(report, how.memory_format, how.freeze)
        fusion.mix_in(report)
    result.requires_grad_(False)
    _clear_subnormals(result, report)
    attach(result, report)
    return result


def _clear_subnormals(model: nn.Module, report: Optimization) -> None:
    for name, weight in model.named_parameters():
        # Subnormal numbers are ordinary ones in fp16, and nothing in fp64 is slower for them than for others' sake.
        if weight.dtype not in (torch.float32, torch.bfloat16) or "parametrizations." in name or weight.is_meta:
            continue
        small = (weight.data.abs() < torch.finfo(weight.dtype).tiny) & (weight.data != 0)
        if count := int(small.sum()):
            report.cleared[name] = count
            weight.data.masked_fill_(small, 0)
