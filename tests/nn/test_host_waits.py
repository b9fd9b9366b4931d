"""What a layer asks of its GPU: no value that its queue would have to be emptied for, and no copy from the host.

On fake tensors of a GPU, with or without one here: whoever asks for a value of theirs raises, and a copy is seen.
"""

import pytest
import samples
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

COPIES = {torch.ops.aten._to_copy, torch.ops.aten.copy_}


class Copies(TorchDispatchMode):
    """Notes copies between the CPU and the GPU: from ordinary memory, they wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, result)) if isinstance(t, torch.Tensor)]
        if function.overloadpacket in COPIES and len({t.device.type for t in tensors}) > 1:
            self.seen.append(str(function))
        return result


def copies(call, *inputs: torch.Tensor) -> list[str]:
    with Copies() as mode:
        call(*inputs)
    return mode.seen


@pytest.mark.parametrize("name", samples.LAYERS)
def test_no_layer_waits(name):
    """DenseCRF and PermutohedralFilter too, but for the lattice's size, which is read where there are values."""
    layer, inputs = samples.LAYERS[name]()
    with FakeTensorMode() as fake:

        def there(value):
            return tree_map_only(torch.Tensor, lambda t: fake.from_tensor(t).to("cuda"), value)

        state = there({**dict(layer.named_parameters()), **dict(layer.named_buffers())})
        inputs = there(inputs)
        assert copies(lambda *args: functional_call(layer, state, args), *inputs) == []


def test_a_copy_and_a_wait_are_seen():
    with FakeTensorMode():
        x = torch.zeros(2, device="cuda")
        assert len(copies(lambda x: x + x.new_tensor([1.0, 2.0]), x)) == 1
        assert len(copies(lambda x: x + torch.tensor([1.0, 2.0], device="cuda"), x)) == 1
        assert len(copies(lambda x: x.to("cpu"), x)) == 1
        with pytest.raises(Exception, match=r"item|_local_scalar_dense"):
            x[0].item()
        with pytest.raises(DynamicOutputShapeException):
            x.nonzero()
