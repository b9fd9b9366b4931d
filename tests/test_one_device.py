"""Operators called directly, as torch.ops.atrousops.*, with one tensor on another device than the rest."""

from typing import Any

import host_cuda
import pytest
import torch

from atrousops.common.checks import ArgumentError
from atrousops.dispatch import libraries

OPERATORS = [line.partition("(")[0] for line in libraries.SCHEMAS]
# Devices come before everything else that is checked: the values need make no sense.
VALUES = {"List[int]": [1, 1], "int": 1, "bool": False, "float": 1.0}


def places(schema: Any) -> list[tuple[int, int, str]]:
    """Of every tensor: the argument's number, its place if that is a list of two, and its name."""
    kinds = [(i, str(argument.type), argument.name) for i, argument in enumerate(schema.arguments)]
    return [(i, k, name) for i, kind, name in kinds if "Tensor" in kind for k in range(1 + (kind == "List[Tensor]"))]


def arguments(schema: Any, elsewhere: tuple[int, int, str]) -> list[Any]:
    """Tensors on the CPU, but for one that is on the meta device."""

    def tensor(i: int, k: int) -> torch.Tensor:
        return torch.zeros(1, 1, 3, 3, device="meta" if (i, k) == elsewhere[:2] else "cpu")

    made = []
    for i, argument in enumerate(schema.arguments):
        kind = str(argument.type)
        if "Tensor" in kind:
            made.append([tensor(i, 0), tensor(i, 1)] if kind == "List[Tensor]" else tensor(i, 0))
        else:
            made.append(VALUES[kind])
    return made


def expected(name: str, elsewhere: tuple[int, int, str], all_places: list[tuple[int, int, str]]) -> str:
    first, second = all_places[0][2], all_places[1][2]
    if elsewhere == all_places[0]:
        return f"{name}: {second} must be on meta, as {first}; got cpu. Move it there: {second}.to({first}.device)."
    other = elsewhere[2]
    return f"{name}: {other} must be on cpu, as {first}; got meta. Move it there: {other}.to({first}.device)."


def each_place(operator: Any) -> list[tuple[int, int, str]]:
    found = places(operator._schema)
    assert found
    # With one tensor there is nothing to disagree with.
    return found if len(found) > 1 else []


@pytest.mark.skipif(not libraries.has_operators, reason="the CPU library is not built")
@pytest.mark.parametrize("library", ["atrousops", "atrousops_host_cuda"])
@pytest.mark.parametrize("name", OPERATORS)
def test_a_kernel_names_the_tensor_elsewhere(name, library):
    """The CPU's kernels, and those of csrc/cuda: their addresses would be those of another memory."""
    if library == "atrousops_host_cuda":
        if host_cuda.problem():
            pytest.skip(host_cuda.problem())
        host_cuda.load()
    operator = getattr(getattr(torch.ops, library), name).default
    # Past the dispatcher's choice, which goes by one of the tensors: on a GPU, by the one that is there.
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    for elsewhere in each_place(operator):
        with pytest.raises(RuntimeError) as raised:
            operator.redispatch(cpu, *arguments(operator._schema, elsewhere))
        assert expected(name, elsewhere, places(operator._schema)) in str(raised.value)


@pytest.mark.skipif(not libraries.has_schemas, reason="no library, and no operators")
@pytest.mark.parametrize("name", OPERATORS)
def test_a_fake_kernel_says_the_same(name):
    """Traces, and calls with a meta tensor, come to it alone."""
    operator = getattr(torch.ops.atrousops, name).default
    for elsewhere in each_place(operator):
        with pytest.raises(ArgumentError) as raised:
            operator(*arguments(operator._schema, elsewhere))
        assert str(raised.value) == expected(name, elsewhere, places(operator._schema))


def test_every_tensor_of_every_operator_is_looked_at():
    """That the two tests above try something: an operator of nine tensors is tried nine times."""
    counts = {name: len(places(getattr(torch.ops.atrousops, name).default._schema)) for name in OPERATORS}
    assert counts["permutohedral_apply"] == 9
    assert counts["context_module"] == counts["conv_branches"] - 2 == 5
