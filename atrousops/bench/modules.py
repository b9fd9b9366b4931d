"""Rows made of a whole module: ours against torchvision's with the same weights."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import atrousops as ao
from atrousops.bench import runtimes
from atrousops.bench.floors import PROBLEMS, Floor
from atrousops.bench.operators import incumbents, under
from atrousops.bench.registry import DTYPES, LAYOUTS, Prepared, Setting
from atrousops.common.testing import Outputs, Run
from atrousops.engine.export import OUTPUT
from atrousops.surgery.explain import Explanation

_Made = Callable[[nn.Module], nn.Module]


def _as_it_is(model: nn.Module) -> nn.Module:
    return model


def module(
    ours: Callable[[], nn.Module],
    stock: Callable[[], nn.Module] | None,
    input: Callable[[], Tensor],
    *,
    output: Callable[[Any], Tensor] = lambda y: y,
    made_ready: _Made = _as_it_is,
    beside: Mapping[str, Callable[[], nn.Module]] | None = None,
    missing: Mapping[str, str] | None = None,
    in_file: Callable[[nn.Module], nn.Module] | None = None,
    outputs: Sequence[str] = (OUTPUT,),
) -> Callable[[Setting], Prepared]:
    """How to prepare a module, in evaluation mode for "forward" and in training mode for "training".

    Args:
        ours, stock: make the modules, ours and torchvision's, whose state dicts are the same. Where torchvision has
            none, ours on PyTorch's kernels is the incumbent.
        input: (N, C, H, W) in fp32 and NCHW.
        made_ready: what is done to ours before it runs, as `optimize`.
        output: from what the module returns to the tensor that is compared; timed too.
        beside, missing: as in Prepared; they make modules of another design.
        in_file: where given, programs that read ONNX files are incumbents on a CPU: from ours, not made ready, to the
            module that the file holds. It returns tensors, of which the first is compared.
        outputs: names of those tensors.
    """

    def prepare(at: Setting) -> Prepared:
        training = at.direction == "training"
        mine = placed(ours().train(training), at)
        theirs = mine
        if stock is not None:
            theirs = stock().train(training)
            theirs.load_state_dict(mine.state_dict())
            theirs = placed(theirs, at)
        x = at.tensor(input())
        probe = _Probe(made_ready(mine), output)
        explanation = _explained(probe, x, training)
        dy = at.tensor(torch.randn(probe.shape)) if training else None

        def ready(model: nn.Module, where: Setting, made_ready: _Made = _as_it_is) -> Run:
            network = made_ready(placed(model, where))
            return _start(network, output, where.tensor(x), where.tensor(dy) if dy is not None else None)

        def ready_stock(where: Setting) -> Run:
            start = partial(ready, theirs, where)
            return start() if stock is not None else under("aten", start)()

        def ready_other(make: Callable[[], nn.Module]) -> Run:
            return ready(make().train(training), at)

        others, absent = {}, dict(missing or {})
        if in_file is not None and at.device.type == "cpu" and not training:
            others = runtimes.incumbents(in_file(placed(mine, at)), x, outputs, at)
            absent |= runtimes.missing(at)
        elements = sum(p.numel() for p in mine.parameters()) + x.numel() + probe.shape.numel()
        scale = len(PROBLEMS[at.direction])
        live = explanation.live_flops / explanation.flops if explanation.flops else 1.0
        return Prepared(
            ours=partial(ready, mine, at, made_ready),
            theirs=incumbents("torchvision" if stock is not None else "", ready_stock, at) | others,
            from_file=dict.fromkeys(others, runtimes.TIMES),
            exact=lambda: ready_stock(at.exact())(),
            floor=Floor(scale * float(elements * at.element_bytes), scale * explanation.flops, live),
            kernel=lambda: (_kernels(_explained(probe, x, training)), "calls of the module by kernel"),
            compiled=lambda compiler: partial(ready, compiler(theirs), at),
            missing=absent,
            beside={name: partial(ready_other, make) for name, make in (beside or {}).items()},
        )

    return prepare


class _Probe(nn.Module):
    """Remembers the shape of the output."""

    def __init__(self, model: nn.Module, output: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.output = model, output
        self.shape = torch.Size()

    def forward(self, x: Tensor) -> Tensor:
        y = self.output(self.model(x))
        self.shape = y.shape
        return y


def _explained(probe: _Probe, x: Tensor, training: bool) -> Explanation:
    with FakeTensorMode() as mode, torch.set_grad_enabled(training):
        return ao.explain(probe, mode.from_tensor(x))


def placed(model: nn.Module, at: Setting) -> nn.Module:
    """A copy with its weights where and how the row has them."""
    copied = copy.deepcopy(model).to(at.device, DTYPES[at.dtype])
    return copied.to(memory_format=LAYOUTS[at.layout])  # type: ignore[call-overload]


def _start(model: nn.Module, output: Callable[[Any], Tensor], x: Tensor, dy: Tensor | None) -> Run:
    if dy is None:

        def forward() -> Outputs:
            with torch.no_grad():
                return output(model(x))

        return forward
    leaf = x.detach().requires_grad_()
    sources = [leaf, *model.parameters()]

    def training() -> Outputs:
        y = output(model(leaf))
        return (y.detach(), *torch.autograd.grad(y, sources, dy))

    return training


def _kernels(explanation: Explanation) -> str:
    counts = Counter(row.kernel for row in explanation.rows)
    return ", ".join(f"{count} {kernel}" for kernel, count in counts.most_common())
