"""Rows made of one call: the same function of `atrousops.functional` and of PyTorch, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import atrousops as ao
from atrousops import functional
from atrousops.bench.floors import Floor, bytes_of, conv_floor, conv_problem, gemm_shape
from atrousops.bench.registry import LAYOUTS, Prepared, Setting
from atrousops.common.testing import Outputs, Ready, Run
from atrousops.dispatch import choice
from atrousops.dispatch.planner import CallArguments

Function = Callable[..., Outputs]


def _as_autocast(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # torchvision's RoI operators take no 16-bit features on a CPU; under autocast it gives them float32, as here.
    def call(input: Tensor, boxes: Tensor, *args: Any, **options: Any) -> Tensor:
        dtype = input.dtype if input.dtype.itemsize > 2 else torch.float32
        return function(input.to(dtype), boxes.to(dtype), *args, **options).to(input.dtype)

    return call


# The same names as atrousops.functional, so that each case is written once and run on both.
PYTORCH = SimpleNamespace(
    conv2d=F.conv2d,
    conv_transpose2d=F.conv_transpose2d,
    max_pool2d=F.max_pool2d,
    max_unpool2d=F.max_unpool2d,
    roi_align=_as_autocast(torchvision.ops.roi_align),
    roi_pool=_as_autocast(torchvision.ops.roi_pool),
)
TORCHVISION = ("roi_align", "roi_pool", "torchvision")


def start(
    function: Function,
    inputs: Sequence[Tensor],
    direction: str,
    wanted: Sequence[int],
    grad: Tensor | None,
    calls: int = 1,
) -> Run:
    """Gets a call ready: everything that is not to be timed is done here.

    Args:
        direction: "forward" gives the outputs; "training" runs forward and backward and gives the first output and the
            gradients; any other keeps one forward pass and gives the gradients.
        wanted: which inputs get a gradient.
        grad: gradient of the first output.
        calls: how often the function that comes back calls.
    """
    if direction == "forward":

        def forward() -> Outputs:
            with torch.no_grad():
                for _ in range(calls):
                    result = function(*inputs)
            return result

        return forward
    leaves = [x.detach().requires_grad_() if i in wanted else x for i, x in enumerate(inputs)]
    sources = [leaves[i] for i in wanted]

    def training() -> Outputs:
        for _ in range(calls):
            y = _first(function(*leaves))
            gradients = torch.autograd.grad(y, sources, grad)
        return (y.detach(), *gradients)

    if direction == "training":
        return training
    y = _first(function(*leaves))

    def backward() -> Outputs:
        for _ in range(calls):
            gradients = torch.autograd.grad(y, sources, grad, retain_graph=True)
        return gradients

    return backward


def _fake_outputs(function: Function, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    with FakeTensorMode() as mode:
        outputs = function(*[mode.from_tensor(x) for x in inputs])
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def _first(outputs: Outputs) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def operator(
    name: str,
    make: Callable[[], Sequence[Tensor]],
    *,
    functions: tuple[Function, Function] | None = None,
    gradients: Sequence[int] = (0, 1),
    uncast: Sequence[int] = (),
    untouched: Sequence[int] = (),
    calls: int = 1,
    **options: Any,
) -> Callable[[Setting], Prepared]:
    """How to prepare a call of one operator.

    Args:
        name: in `atrousops.functional` and PYTORCH.
        make: its tensors, in fp32 and NCHW.
        functions: ours and PyTorch's, where they are called differently; both get all tensors.
        gradients: the inputs that have one; "input_grad" is of the first, "weight_grad" of the second.
        uncast: inputs that keep their dtype, as boxes do.
        untouched: inputs that ours does not read, for the floor.
        calls: as in Prepared.
        options: of the function.
    """
    mine, stock = functions or (getattr(functional, name), getattr(PYTORCH, name))
    return partial(_prepare, _Call(name, partial(mine, **options), partial(stock, **options), make, options,
                                   tuple(gradients), tuple(uncast), tuple(untouched), calls))  # fmt: skip


@dataclass(frozen=True)
class _Call:
    name: str
    mine: Function
    stock: Function
    make: Callable[[], Sequence[Tensor]]
    options: dict[str, Any]
    gradients: tuple[int, ...]
    uncast: tuple[int, ...]
    untouched: tuple[int, ...]
    calls: int

    def wanted(self, direction: str) -> tuple[int, ...]:
        """The inputs whose gradient is computed."""
        return {"input_grad": (0,), "weight_grad": (1,)}.get(direction, self.gradients)


def _prepare(call: _Call, at: Setting) -> Prepared:
    made = list(call.make())
    outputs = _fake_outputs(call.stock, made)
    # The oracle sees what the row sees: values already rounded to its dtype.
    given = [at.tensor(x, cast=i not in call.uncast) for i, x in enumerate(made)]
    dy = at.tensor(torch.randn(outputs[0].shape)) if at.direction != "forward" else None

    def ready(function: Function, where: Setting) -> Run:
        inputs = [where.tensor(x, cast=i not in call.uncast) for i, x in enumerate(given)]
        grad = where.tensor(dy) if dy is not None else None
        return start(function, inputs, where.direction, call.wanted(where.direction), grad, call.calls)

    def exact() -> Outputs:
        inputs = [at.exact().tensor(x) for x in given]
        grad = at.exact().tensor(dy) if dy is not None else None
        return start(call.stock, inputs, at.direction, call.wanted(at.direction), grad)()

    floor, gemm = _floor(call, given, outputs, at)
    return Prepared(
        ours=partial(ready, call.mine, at),
        theirs=incumbents(call.name, partial(ready, call.stock), at),
        exact=exact,
        floor=floor,
        kernel=partial(kernel_of, call, given, at),
        gemm=gemm,
        compiled=lambda compiler: partial(ready, compiler(call.stock), at),
        calls=call.calls,
    )


def _floor(
    call: _Call, given: Sequence[Tensor], outputs: Sequence[Tensor], at: Setting
) -> tuple[Floor, tuple[int, int, int] | None]:
    if call.name.startswith("conv"):
        problem = conv_problem("transpose" in call.name, given[0].shape, given[1].shape, call.options)
        return conv_floor(problem, at.direction, at.element_bytes), gemm_shape(problem, at.direction)
    read = bytes_of(x for i, x in enumerate(given) if i not in call.untouched)
    written = sum(y.numel() * (at.element_bytes if y.is_floating_point() else y.itemsize) for y in outputs)
    return Floor((read + written) * (2 if at.direction == "training" else 1)), None


def incumbents(name: str, ready: Callable[[Setting], Run], at: Setting) -> dict[str, Ready]:
    """PyTorch's way to compute `name`, called by the library that it comes from; on a GPU in both layouts."""
    library = "torchvision" if name in TORCHVISION else "aten"
    if at.device.type != "cuda":
        return {library: partial(ready, at)}
    if name.startswith("conv"):
        library = "cudnn"
    # The row's own layout first: it is the yardstick.
    layouts = sorted(LAYOUTS, key=lambda layout: layout != at.layout)
    settings = [Setting(at.device, at.dtype, layout, at.direction) for layout in layouts]
    return {f"{library} {where.layout}": partial(ready, where) for where in settings}


def under(backend: str, ready: Ready) -> Ready:
    """The same with one backend forced, while it gets ready and whenever it runs."""

    def start() -> Run:
        with ao.backend(backend):
            run = ready()

        def forced() -> Outputs:
            with ao.backend(backend):
                return run()

        return forced

    return start


def kernel_of(call: _Call, inputs: Sequence[Tensor], at: Setting) -> tuple[str, str]:
    """Which kernel the dispatched call runs on, and why."""
    wanted = call.wanted(at.direction) if at.direction != "forward" else ()
    leaves = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
    with FakeTensorMode() as mode:
        row = ao.explain(call.mine, *[mode.from_tensor(x) for x in leaves]).rows[0]
    gradient = at.direction in ("input_grad", "weight_grad")
    if not call.name.startswith("conv") or not gradient or row.kernel == "aten":
        return row.kernel, row.reason
    # Behind a forward pass of ours each gradient has a plan of its own.
    transposed, rank = "transpose" in call.name, inputs[0].dim() - 2
    problem = conv_problem(transposed, inputs[0].shape, inputs[1].shape, call.options)
    axes = problem.axes[-rank:]
    gradient_of = CallArguments(
        "forward" if transposed and at.direction == "input_grad" else at.direction,
        (problem.n, problem.c, *(a.input for a in axes)),
        tuple(inputs[1].shape),
        tuple(a.stride for a in axes),
        (*(a.pad_lo for a in axes), *(a.pad_hi for a in axes)),
        tuple(a.dilation for a in axes),
        problem.groups,
    )
    plan = choice.plan_call(gradient_of, inputs[0].dtype, at.layout == "nhwc", device=at.device.type)
    return plan.kernel, plan.reason
