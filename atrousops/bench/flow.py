"""Which stage of a network feeds which, at which resolution: found by running the network and following its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from atrousops.nn import CRFasRNN, DenseCRF, MultiScaleRoIAlign

# The sides of the images that are run: their difference is a multiple of every stride.
SIDES = (513, 769)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxUnpool2d)
_LEAVES = (*_CONVOLUTIONS, *_POOLINGS, nn.Linear, MultiScaleRoIAlign, DenseCRF, CRFasRNN)
_MERGES = {"add": "sum", "cat": "concatenation", "mul": "product", "maximum": "maximum"}


@dataclass
class Node:
    """A stage.

    names: of its modules. layers: what it does, in order, such as "conv 3x3". rates: its dilations above 1.
    channels: of its layers in turn. shape: channels and height of its result.
    stride: side of the image / side of the result; None where the result has the same side for every image.
    merge: how its sources are joined. sources: the numbers of the nodes that feed it.
    pools: whether it only pools or filters each channel by itself, and so belongs to what follows.
    several: whether it runs on maps of several sizes; `shape` is then that of the last.
    """

    names: list[str]
    layers: list[str]
    rates: list[int] = field(default_factory=list)
    channels: list[int] = field(default_factory=list)
    shape: tuple[int, int] = (0, 0)
    stride: Fraction | None = None
    merge: str = ""
    pools: bool = False
    several: bool = False
    sources: set[int] = field(default_factory=set)


def flow(network: nn.Module, device: str = "meta", sides: tuple[int, int] = SIDES, **inputs: Any) -> dict[int, Node]:
    """The stages of a network by number, in the order in which they run; 0 is the image, the last ones are outputs.

    Edges are those of the data: each tensor is followed from the stage that made it through every operation to the
    stages that read it. The stride of a stage is the difference of two images' sides over that of its maps.

    Args:
        network: takes an image (1, C, H, W) in evaluation; on `device`.
        device: "meta" computes shapes alone.
        sides: H = W of the two images.
    """
    found = [_run(network, device, side) for side in sides]
    nodes, others = found
    for number, node in nodes.items():
        node.channels = [node.shape[0]]
        grown = others[number].shape[1] - node.shape[1]
        node.stride = Fraction(sides[1] - sides[0], grown) if grown and not node.several else None
    return _joined(_chained(_flat(_reaching(nodes))))


def _run(network: nn.Module, device: str, side: int) -> dict[int, Node]:
    channels = getattr(network, "in_channels", 3)
    image = torch.zeros(1, channels, side, side, device=device)
    trace = _Trace(image)
    hooks = []
    names = {module: name for name, module in network.named_modules()}
    for module in _boxes(network, Counter(type(m) for m in names)):
        hooks += [module.register_forward_pre_hook(trace.enter, with_kwargs=True)]
        hooks += [module.register_forward_hook(trace.leave)]
    trace.names = names
    transform: Any = getattr(network, "transform", None)
    listed = transform is not None
    if transform is not None:
        # torchvision's detectors resize images.
        transform.min_size, transform.max_size = (side,), side
    with torch.no_grad(), trace:
        result = network.eval()([image[0]] if listed else image)
    for hook in hooks:
        hook.remove()
    for entry in result if listed else [result]:
        found: dict[frozenset[int], list[str]] = {}
        for name, value in entry.items():
            found.setdefault(frozenset(trace.sources([value])), []).append(name)
        for sources, outputs in found.items():
            number = trace.add(None, outputs, entry[outputs[0]], merge="output")
            trace.nodes[number].sources = {*sources}
    return trace.nodes


def _boxes(module: nn.Module, counts: Counter[type]) -> Iterator[nn.Module]:
    """Layers, and blocks: what is there more than once and holds layers."""
    repeated = type(module) not in _CONTAINERS and counts[type(module)] > 1
    if isinstance(module, _LEAVES) or (repeated and _layers(module)):
        yield module
    else:
        for child in module.children():
            yield from _boxes(child, counts)


def _layers(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, _LEAVES)]


class _Trace(TorchDispatchMode):
    """Knows of every storage from which nodes its values come; operations outside of boxes pass that on."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.names: dict[nn.Module, str] = {}
        self.nodes: dict[int, Node] = {}
        self._of: dict[int, set[int]] = {}
        self._numbers: dict[object, int] = {}
        # What is alive keeps its address.
        self._alive: list[Tensor] = []
        self._inside: list[nn.Module] = []
        self._mark([image], {self._number(None)})
        self.nodes[0] = Node(["image"], [], shape=(image.shape[1], image.shape[2]))

    def sources(self, values: Any) -> set[int]:
        """The nodes that tensors come from."""
        return {n for t in _tensors(values) for n in self._of.get(t.untyped_storage()._cdata, ())}

    def add(self, key: object, names: list[str], value: Any, **what: Any) -> int:
        """The number of a node that gives `value`; a layer that is called twice, its key, is one node."""
        first = next(iter(_tensors([value])))
        number = self._number(key)
        node = self.nodes.setdefault(number, Node(names, what.pop("layers", []), **what))
        spatial = first.shape[2] if first.dim() == 4 else 1
        shape = (first.shape[1] if first.dim() > 1 else 1, spatial)
        node.several |= node.shape not in ((0, 0), shape) and isinstance(key, nn.Module)
        node.shape = shape
        return number

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._inside.append(module)
        if len(self._inside) == 1:
            self._read = (self.sources([args, kwargs]), _tensors([args, kwargs]))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside.pop()
        if self._inside:
            return
        sources, given = self._read
        layers = _layers(module)
        key = module if any(True for _ in module.parameters()) else None
        number = self.add(key, [self.names[module]], output, layers=[_title(module, layers)])
        node = self.nodes[number]
        node.rates, node.pools = _rates(layers), _is_by_channel(module)
        node.sources |= sources - {number}
        self._mark([t for t in _tensors([output]) if not any(t is one for one in given)], {number})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self._alive += _tensors([output])
        if not self._inside:
            self._outside(func.__name__.split(".")[0].rstrip("_"), args, output)
        return output

    def _outside(self, name: str, args: Any, output: Any) -> None:
        sources = self.sources([args])
        made = _tensors([output])
        if not sources or not made:
            return
        apart = {frozenset(self.sources([t])) for t in _tensors([args])} - {frozenset()}
        number = None
        if made[0].dim() != 4:
            pass
        elif name in _MERGES and len(apart) > 1:
            number = self.add(None, [], output, merge=_MERGES[name])
        elif name.startswith("upsample"):
            number = self.add(None, [], output, layers=[f"{name.split('_')[1].removesuffix('2d')} resizing"])
        elif "pool" in name or name == "mean":
            number = self.add(
                None, [], output, layers=["max pooling" if "max" in name else "average pooling"], pools=True
            )
        elif "unpool" in name:
            number = self.add(None, [], output, layers=["max-unpooling"])
        elif name in ("convolution", "conv"):
            number = self._convolution(args, output)
        if number is not None:
            self.nodes[number].sources |= sources - {number}
            sources = {number}
            for tensor in made:
                self._of[tensor.untyped_storage()._cdata] = set()
        self._mark(made, sources)

    def _convolution(self, args: Any, output: Any) -> int:
        """Convolutions that are calls of functions and no layers are one node."""
        number = self.add("functions", [], output)
        node = self.nodes[number]
        node.layers.append(f"conv {_size(args[1].shape[2:])}")
        node.rates += [rate for value in args if isinstance(value, (list, tuple)) for rate in value[:1] if rate > 1]
        return number

    def _mark(self, tensors: Sequence[Tensor], sources: set[int]) -> None:
        self._alive += tensors
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            self._of[key] = self._of.get(key, set()) | sources

    def _number(self, key: object) -> int:
        return self._numbers.setdefault(object() if key is None else key, len(self._numbers))


def _tensors(values: Any) -> list[Tensor]:
    leaves: list[Tensor] = []
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor):
            leaves.append(leaf)
        elif hasattr(leaf, "tensors") and isinstance(leaf.tensors, Tensor):
            # torchvision's ImageList.
            leaves.append(leaf.tensors)
    return leaves


def _size(sides: Any) -> str:
    height, width = (sides, sides) if isinstance(sides, int) else sides
    return f"{height}x{width}"


def _is_by_channel(module: Any) -> bool:
    depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
    return depthwise or isinstance(module, _POOLINGS)


def _rates(layers: Sequence[Any]) -> list[int]:
    found = (max(layer.dilation) for layer in layers if isinstance(layer, _CONVOLUTIONS))
    return list(dict.fromkeys(rate for rate in found if rate > 1))


def _title(module: Any, layers: Sequence[Any]) -> str:
    """What a layer or a block is called; a block of one layer as that layer."""
    if len(layers) > 1:
        return type(module).__name__.lstrip("_")
    layer = layers[0]
    if isinstance(layer, nn.ConvTranspose2d):
        return f"transposed conv {_size(layer.kernel_size)}"
    if isinstance(layer, nn.Conv2d):
        depthwise = "depthwise " if _is_by_channel(layer) else ""
        return f"{depthwise}conv {_size(layer.kernel_size)}"
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return "global pooling" if layer.output_size in (1, (1, 1)) else f"pooling to {_size(layer.output_size)}"
    if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
        kind = "max" if isinstance(layer, nn.MaxPool2d) else "average"
        return f"{kind} pooling {_size(layer.kernel_size)}"
    if isinstance(layer, MultiScaleRoIAlign):
        return f"RoIAlign {_size(tuple(layer.output_size))}"
    named = {nn.Linear: "linear", DenseCRF: "dense CRF", CRFasRNN: "mean field"}
    return next((text for kind, text in named.items() if isinstance(layer, kind)), "max-unpooling")


def _readers(nodes: dict[int, Node]) -> dict[int, list[int]]:
    readers: dict[int, list[int]] = {number: [] for number in nodes}
    for number, node in nodes.items():
        for source in node.sources:
            readers[source].append(number)
    return readers


def _reaching(nodes: dict[int, Node]) -> dict[int, Node]:
    """Without what no output needs, or what no image feeds."""
    needed = {number for number, node in nodes.items() if node.merge == "output"}
    for number in reversed(nodes):
        if number in needed:
            needed |= nodes[number].sources
    return {number: node for number, node in nodes.items() if number in needed}


def _flat(nodes: dict[int, Node]) -> dict[int, Node]:
    """a + b, and + c: one sum of three."""
    for number in [*nodes]:
        node, readers = nodes[number], _readers(nodes)[number]
        if node.merge and len(readers) == 1 and nodes[readers[0]].merge == node.merge:
            nodes[readers[0]].sources |= node.sources
            nodes[readers[0]].sources.discard(number)
            del nodes[number]
    return nodes


def _chained(nodes: dict[int, Node]) -> dict[int, Node]:
    """A node and the only one that reads it are one stage: of one stride and width, poolings with what follows them."""
    for number in [*nodes]:
        node, readers = nodes[number], _readers(nodes)[number]
        if number == 0 or node.merge or len(readers) != 1:
            continue
        after = nodes[readers[0]]
        if after.merge or len(after.sources) != 1:
            continue
        alike = node.stride == after.stride and (
            node.shape[0] == after.shape[0] or node.pools or _siblings(node, after)
        )
        if alike or node.stride is None:
            after.names = (after.names if node.pools and after.names else node.names + after.names) or node.names
            after.layers = node.layers + after.layers
            after.rates = list(dict.fromkeys(node.rates + after.rates))
            after.channels = after.channels if node.pools else list(dict.fromkeys(node.channels + after.channels))
            after.pools &= node.pools
            after.sources = node.sources
            del nodes[number]
    return nodes


def _siblings(node: Node, after: Node) -> bool:
    """Whether both are convolutions in a row of one Sequential."""
    parents = {name.rpartition(".")[0] for name in node.names + after.names}
    return len(parents) == 1 and all("conv" in layer or "unpool" in layer for layer in node.layers + after.layers)


def _joined(nodes: dict[int, Node]) -> dict[int, Node]:
    """A sum or concatenation that one stage alone reads is the beginning of that stage."""
    for number in [*nodes]:
        node, readers = nodes[number], _readers(nodes)[number]
        if node.merge in ("", "output") or node.layers or len(readers) != 1:
            continue
        after = nodes[readers[0]]
        if after.sources == {number} and not after.merge:
            after.merge, after.sources = node.merge, node.sources
            del nodes[number]
    return nodes
