"""Makes our layers recognisable to tools that know torch.nn's: torch.fx checks a name, quantisation a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from torch import nn
from torch.ao.quantization import fuser_method_mappings
from torch.nn.utils import parametrize

from atrousops.common.checks import bad_type

T = TypeVar("T", bound=type[nn.Module])

# PyTorch's class -> ours.
OURS: dict[type[nn.Module], type[nn.Module]] = {}


class _Name(str):
    """A descriptor for `__module__`: the real module on the class, `theirs` on its instances."""

    theirs: str

    def __get__(self, instance: object, owner: type | None = None) -> str:
        return str(self) if instance is None else self.theirs

    # From protocol 4 on, pickle saves the qualified name itself.
    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


class _QConfig:
    """The attribute with which PyTorch's quantisation marks layers that it will replace; see `become_stock`."""

    def __get__(self, layer: nn.Module | None, owner: type | None = None) -> Any:
        if layer is None:
            return self
        if "qconfig" not in vars(layer):
            raise AttributeError("qconfig")
        return vars(layer)["qconfig"]

    def __set__(self, layer: nn.Module, value: Any) -> None:
        if value is not None:
            become_stock(layer)
        vars(layer)["qconfig"] = value

    def __delete__(self, layer: nn.Module) -> None:
        del vars(layer)["qconfig"]


def leaf(ours: T, theirs: type[nn.Module] = nn.Module) -> T:
    """Makes torch.fx treat instances of a class as layers of torch.nn: leaf modules whose `forward` is not traced.

    `torch.fx.Tracer.is_leaf_module` reads `__module__` from an instance, and gets that of `theirs`. Pickle, repr and
    documentation read it from the class. A subclass has its own `__module__` and is traced like any other.
    """
    name = _Name(ours.__module__)
    name.theirs = theirs.__module__
    ours.__module__ = name
    setattr(ours, "__prepare_scriptable__", _refuse_script)  # noqa: B010
    return ours


def _refuse_script(layer: nn.Module) -> NoReturn:
    remedy = "Use torch.jit.trace, torch.export.export or torch.compile, or call atrousops.revert before."
    bad_type(
        "torch.jit.script",
        "obj",
        "hold no layer of atrousops, which TorchScript cannot compile",
        type(layer).__name__,
        remedy,
    )


def in_place_of(theirs: type[nn.Module]) -> Callable[[T], T]:
    """Registers a class as the replacement of class `theirs`, with the same state."""

    def declare(ours: T) -> T:
        OURS[theirs] = ours
        if ours.__name__ == theirs.__name__:
            setattr(ours, "_get_name", lambda layer: f"atrousops.{type(layer).__name__}")  # noqa: B010
        if issubclass(ours, nn.modules.conv._ConvNd):
            setattr(ours, "qconfig", _QConfig())  # noqa: B010
            _add_fusers(theirs, ours)
        return leaf(ours, theirs)

    return declare


def become_stock(layer: nn.Module) -> bool:
    """Turns a layer of ours into PyTorch's, in place; False if PyTorch has no such layer.

    The tables and checks of `torch.ao.quantization` need the exact classes of torch.nn. So a layer becomes PyTorch's
    when it gets a qconfig or is fused; a quantised kernel will run it in any case.
    """
    kind = class_of(layer)
    theirs = next((theirs for theirs, ours in OURS.items() if ours is kind), None)
    if theirs is not None:
        set_class(layer, theirs)
    return theirs is not None


def class_of(layer: nn.Module) -> type[nn.Module]:
    """A layer's class without the subclass that a parametrization adds."""
    return parametrize.type_before_parametrizations(layer)


def set_class(layer: nn.Module, new: type[nn.Module]) -> None:
    """Gives a layer another class with the same state; parametrizations are kept."""
    if parametrize.is_parametrized(layer):
        # The class made by parametrize may be shared with a deep copy of this layer, so a new one is made.
        members = {key: value for key, value in vars(type(layer)).items() if key not in ("__dict__", "__weakref__")}
        new = type(f"Parametrized{new.__name__}", (new,), members)
    layer.__class__ = new


def _add_fusers(theirs: type[nn.Module], ours: type[nn.Module]) -> None:
    """`torch.ao.quantization.fuse_modules` selects the fusion by the classes of the modules."""
    known = getattr(fuser_method_mappings, "_DEFAULT_OP_LIST_TO_FUSER_METHOD", {})
    for kinds, fuse in list(known.items()):
        if kinds[0] is theirs:
            key = (ours, *kinds[1:])
            known[key] = _fuser(fuse)


def _fuser(fuse: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def fused(is_qat: bool, layer: nn.Module, *others: nn.Module) -> nn.Module:
        become_stock(layer)
        return fuse(is_qat, layer, *others)

    return fused
