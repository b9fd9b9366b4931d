"""PyTorch's own CUDA operators, computed by its CPU kernels on the emulated device's memory, in the stream's order.

PyTorch's CUDA kernels exist as machine code alone; only this package's kernels are executed from their PTX.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map

# What needs no kernel: memory, views and what is made of other operators.
KEPT = ("empty", "as_strided", "view", "_reshape_alias", "set_", "resize_", "record_stream", "_pin_memory", "is_pinned")
KEPT += ("unfold", "_has_compatible", "lift", "alias", "storage", "_cudnn", "cudnn", "_to_copy", "_local_scalar_dense")
# The host waits for their results' sizes.
WAITING = ("nonzero", "masked_select", "_unique", "unique_", "repeat_interleave.Tensor", "bincount")
HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
TO_DEVICE, TO_HOST, WITHIN_DEVICE = 1, 2, 3

CPU = torch.device("cpu")
# How often each operator ran in this process.
calls: dict[str, int] = {}
_libraries: list[torch.library.Library] = []
# What lies between a device's address and its bytes: one number, once the runtime is there.
_to_bytes: list[int] = []
# Functions that graphs call again.
_recorded: list[Any] = []


def depthwise(x: torch.Tensor, w: torch.Tensor, _: list[int], bias: torch.Tensor | None, *rest: Any) -> torch.Tensor:
    """A convolution of as many groups as channels, contiguous; `rest` is stride, padding and dilation."""
    return torch.convolution(x, w, bias, *rest, False, [0] * len(rest[0]), x.shape[1]).contiguous()


# Operators that PyTorch has for CUDA and not for the CPU. They are met where cuDNN is off.
CUDA_ALONE: dict[str, Callable[..., Any]] = {"_conv_depthwise2d": depthwise, "conv_depthwise3d": depthwise}


class Runtime:
    """The emulated runtime's functions that operators need."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.cudaMemcpyAsync.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_void_p,
        ]
        library.cudaLaunchHostFunc.argtypes = [ctypes.c_void_p, HOST_FUNCTION, ctypes.c_void_p]
        library.fake_cuda_catch_up.argtypes = [ctypes.c_int, ctypes.c_void_p]
        library.fake_cuda_why.restype = ctypes.c_char_p
        library.fake_cuda_to_bytes.restype = ctypes.c_size_t
        _to_bytes.append(library.fake_cuda_to_bytes())

    def catch_up(self, device: torch.device) -> bool:
        """Runs what the current stream has queued; whether the stream is being captured instead."""
        state = self.library.fake_cuda_catch_up(device.index, stream_of(device))
        if state < 0:
            raise RuntimeError(f"CUDA error: {self.library.fake_cuda_why().decode()}")
        return bool(state)


def stream_of(device: torch.device) -> int:
    return torch._C._cuda_getCurrentRawStream(device.index)


def each(f: Callable[[Any], Any], x: Any) -> Any:
    """f of what an operator's arguments or results consist of; quicker than pytree, which knows more containers."""
    if isinstance(x, dict):
        return {name: each(f, value) for name, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)([each(f, value) for value in x])
    return f(x)


def check_wait(what: str) -> None:
    """As torch.cuda.set_sync_debug_mode asks."""
    if torch.cuda.get_sync_debug_mode() == 2:
        raise RuntimeError(f"called a synchronizing CUDA operation: {what}")


def bytes_of(t: torch.Tensor) -> int:
    """The host's address of what a CUDA tensor's storage begins with."""
    return t.untyped_storage().data_ptr() + _to_bytes[0]


def on_host(t: torch.Tensor) -> torch.Tensor:
    """A CPU tensor on the same memory; torch.device("cuda") may be the default around a call."""
    if t.device.type != "cuda":
        return t
    size = t.untyped_storage().nbytes()
    if size == 0 or t.numel() == 0:
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=CPU)
    raw = torch._C._construct_storage_from_data_pointer(bytes_of(t), CPU, size)
    host = torch.empty(0, dtype=t.dtype, device=CPU).set_(raw, t.storage_offset(), t.shape, t.stride())
    return torch._C._conj(host) if t.is_conj() else torch._neg_view(host) if t.is_neg() else host


def host_or_same(x: Any) -> Any:
    return on_host(x) if isinstance(x, torch.Tensor) else x


def device_of(arguments: Any) -> torch.device:
    """The device of the first CUDA tensor, or one that is named, or the current one."""
    found: list[torch.device] = []

    def look(x: Any) -> None:
        device = x.device if isinstance(x, torch.Tensor) else x
        if isinstance(device, torch.device) and device.type == "cuda":
            found.append(device)

    each(look, arguments)
    if found and found[0].index is not None:
        return found[0]
    return torch.device("cuda", torch.cuda.current_device())


class Operator:
    """One operator as the CUDA key runs it."""

    def __init__(self, runtime: Runtime, op: torch._ops.OpOverload) -> None:
        self.runtime, self.op = runtime, op
        schema = op._schema
        self.name = schema.name + (f".{schema.overload_name}" if schema.overload_name else "")
        self.written = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        self.names = [a.name for a in schema.arguments]
        out = {a.name for a in schema.arguments if a.kwarg_only}
        self.updates = bool(self.written) and not out.issuperset(self.written)
        self.returns = len(schema.returns)
        # The packet takes numbers where the overload takes tensors.
        self.packet = CUDA_ALONE.get(self.name.removeprefix("aten::"), op.overloadpacket)
        self.waits = any(self.name.removeprefix("aten::").startswith(w) for w in WAITING)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        calls[self.name] = calls.get(self.name, 0) + 1
        device = device_of((args, kwargs))
        if self.waits:
            check_wait(self.name)
        if self.runtime.catch_up(device):
            return self.capture(device, args, kwargs)
        return self.results(device, args, kwargs, self.compute(args, kwargs))

    def compute(self, args: Any, kwargs: Any) -> tuple[Any, list[tuple[torch.Tensor, torch.Tensor]]]:
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

        def moved(x: Any) -> Any:
            if isinstance(x, torch.Tensor):
                pairs.append((x, on_host(x)))
                return pairs[-1][1]
            if isinstance(x, torch.device):
                return CPU
            return None if isinstance(x, torch.Generator) else x

        args, kwargs = each(moved, (args, kwargs))
        return self.packet(*args, **kwargs), pairs

    def results(self, device: torch.device, args: Any, kwargs: Any, result: Any) -> Any:
        values, pairs = result
        given = dict(zip(self.names, args, strict=False)) | kwargs
        written = [given[n] for n in self.written if n in given]
        for device_tensor, host in pairs:
            if any(device_tensor is w for w in written):
                self.write_back(device_tensor, host)
        if not self.written:
            return each(lambda x: to_device(x, device) if isinstance(x, torch.Tensor) else x, values)
        return self.own_arguments(args, kwargs)

    def own_arguments(self, args: Any, kwargs: Any) -> Any:
        """What an operator that writes to its arguments returns."""
        given = dict(zip(self.names, args, strict=False)) | kwargs
        written = [given[n] for n in self.written if n in given]
        if self.returns == 0:
            return None
        return written[0] if self.returns == 1 else tuple(written)

    @staticmethod
    def write_back(device_tensor: torch.Tensor, host: torch.Tensor) -> None:
        """An argument that the operator resized."""
        if device_tensor.device.type != "cuda":
            return
        moved = device_tensor.numel() and host.untyped_storage().data_ptr() != bytes_of(device_tensor)
        if host.shape != device_tensor.shape or moved:
            device_tensor.resize_(host.shape)
            on_host(device_tensor).copy_(host)

    def capture(self, device: torch.device, args: Any, kwargs: Any) -> Any:
        """A node of the graph; results get their sizes and memory now and their values when the graph runs."""
        if self.waits:
            raise RuntimeError(f"{self.name}: operation not permitted when stream is capturing")
        if self.updates:
            answer = self.own_arguments(args, kwargs)
        else:
            answer = self.results(device, args, kwargs, self.compute(args, kwargs))
        self.record(device, args, kwargs, None if self.written else answer)
        return answer

    def record(self, device: torch.device, args: Any, kwargs: Any, outputs: Any) -> None:
        # Addresses are the graph's; tensors would keep their memory, which the graph's pool gives to others.
        fixed, kept = each(host_or_same, (args, kwargs)), each(host_or_same, outputs)

        def run(_: Any) -> None:
            values, _ = self.compute(*fixed)
            if kept is not None:
                tree_map(lambda to, value: to.copy_(value) if isinstance(to, torch.Tensor) else None, kept, values)

        function = HOST_FUNCTION(run)
        _recorded.append(function)
        error = self.runtime.library.cudaLaunchHostFunc(stream_of(device), function, None)
        if error:
            raise RuntimeError(f"{self.name}: the capture refused it with error {error}")


def to_device(t: torch.Tensor, device: torch.device) -> torch.Tensor:
    if t.device.type == "cuda":
        return t
    out = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device)
    if t.numel():
        on_host(out).copy_(t)
    return out


class Copy(Operator):
    """copy_: plain bytes are the runtime's, so that they wait in the stream's queue; the rest is the CPU's."""

    def __call__(self, to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        to_cuda, from_cuda = to.device.type == "cuda", source.device.type == "cuda"
        device = to.device if to_cuda else source.device
        pinned = not to_cuda and to.is_pinned()
        if not to_cuda and not (non_blocking and pinned):
            check_wait("copy_ to the host")
        plain = to.dtype == source.dtype and to.shape == source.shape and to.is_contiguous() and source.is_contiguous()
        plain = plain and to.is_conj() == source.is_conj() and to.is_neg() == source.is_neg()
        if plain and to.numel() and (not to_cuda or not from_cuda or to.device == source.device):
            kind = WITHIN_DEVICE if to_cuda and from_cuda else TO_DEVICE if to_cuda else TO_HOST
            self.copy_bytes(device, to, source, kind)
            if not non_blocking and kind != WITHIN_DEVICE:
                torch.cuda.current_stream(device).synchronize()
            return to
        if from_cuda and source.device != device:
            self.runtime.catch_up(source.device)
        if not self.runtime.catch_up(device):
            on_host(to).copy_(on_host(source))
            return to
        self.record(device, (to, source), {}, None)
        return to

    def copy_bytes(self, device: torch.device, to: torch.Tensor, source: torch.Tensor, kind: int) -> None:
        size = to.numel() * to.element_size()
        with torch.cuda.device(device):
            error = self.runtime.library.cudaMemcpyAsync(
                to.data_ptr(), source.data_ptr(), size, kind, stream_of(device)
            )
        if error:
            raise RuntimeError(f"copy_: the emulated runtime refused it with error {error}")


def install(runtime: Runtime) -> None:
    """Overrides every CUDA registration of aten and torchvision."""
    made: dict[str, torch.library.Library] = {}
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA"):
        namespace, _, rest = name.partition("::")
        base, _, overload = rest.partition(".")
        if namespace not in ("aten", "torchvision") or (namespace == "aten" and base.startswith(KEPT)):
            continue
        op = getattr(getattr(getattr(torch.ops, namespace), base), overload or "default")
        # Its own, or one of other operators for all devices.
        if rest not in CUDA_ALONE and not torch._C._dispatch_has_computed_kernel_for_dispatch_key(name, "CPU"):
            continue
        if namespace not in made:
            made[namespace] = torch.library.Library(namespace, "IMPL", "CUDA")
        kernel: Callable[..., Any] = Copy(runtime, op) if rest == "copy_" else Operator(runtime, op)
        made[namespace].impl(rest, _function(kernel), "CUDA", allow_override=True)
    if "aten" in made:
        made["aten"].impl("copy_", _function(Copy(runtime, torch.ops.aten.copy_.default)), "CUDA", allow_override=True)
    _libraries.extend(made.values())


def _function(kernel: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return kernel(*args, **kwargs)

    return call
