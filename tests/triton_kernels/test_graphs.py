"""torch.compile sees Triton's kernels rather than an opaque operator, as with torch.library.triton_op."""

import ahead
import pytest
import torch
import triton
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from atrousops.dispatch import libraries, triton_library

ops = torch.ops.atrousops
CALLS = {
    "conv": lambda: ops.conv(gpu(2, 8, 16, 16), gpu(8, 8, 3, 3), None, [1, 1], [6, 6], [6, 6], 1),
    "conv_grad_input": lambda: ops.conv_grad_input(
        gpu(2, 8, 16, 16), gpu(8, 8, 3, 3), [2, 8, 16, 16], [1, 1], [6, 6], [6, 6], 1
    ),
    "conv_grad_weight": lambda: ops.conv_grad_weight(
        gpu(2, 8, 16, 16), gpu(2, 8, 16, 16), [3, 3], [1, 1], [6, 6], [6, 6], 1
    ),
    "conv_epilogue": lambda: ops.conv_epilogue(
        gpu(2, 8, 16, 16), gpu(8, 8, 3, 3), None, gpu(2, 8, 16, 16), "relu", [1, 1], [6, 6], [6, 6], 1
    ),
    "max_pool_codes": lambda: ops.max_pool_codes(gpu(2, 3, 16, 16), [3, 3], [2, 2], [1, 1], [1, 1], False),
    "roi_align": lambda: ops.roi_align(gpu(2, 8, 16, 16), gpu(3, 5), 1.0, 7, 7, 2, False),
    "roi_pool": lambda: ops.roi_pool(gpu(2, 8, 16, 16), gpu(3, 5), 1.0, 7, 7)[0],
}


def gpu(*size: int) -> torch.Tensor:
    return torch.empty(size, device="cuda")


@pytest.fixture(autouse=True)
def driver(monkeypatch):
    """A GPU of air, and Triton on it where there is a CUDA library too."""
    monkeypatch.setattr(triton.runtime.driver, "_active", ahead.Driver("sm_90"))
    with triton_library.forced(True):
        yield


@pytest.mark.parametrize("name", CALLS)
def test_an_operator_decomposes_into_its_kernels(name):
    with FakeTensorMode(allow_non_fake_inputs=True):
        graph = make_fx(dispatch_functionalize(CALLS[name]), tracing_mode="real")().graph
    assert_kernels(graph)


def called(graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


def assert_kernels(graph) -> None:
    assert any("triton_kernel_wrapper" in target for target in called(graph))
    assert not any("atrousops" in target for target in called(graph))


class Layer(torch.nn.Module):
    def forward(self, x, w):
        return ops.conv(x, w, None, [1, 1], [6, 6], [6, 6], 1).relu()


def test_an_exported_program_is_whole_and_becomes_kernels_when_it_is_compiled():
    """As AOTInductor does, which traces the program once more."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        arguments = gpu(2, 8, 16, 16), gpu(8, 8, 3, 3)
    program = torch.export.export(Layer(), arguments)
    assert "atrousops.conv.default" in called(program.graph)
    module, _ = aot_export_module(program.graph_module, arguments, trace_joint=False)
    assert_kernels(module.graph)


def test_every_schema_has_a_launcher():
    for name in libraries.OPERATORS + libraries.TRITON_OPERATORS:
        assert triton_library.implementation(name).__name__ == name
