"""Calls that the emulated runtime refuses, each in a process of its own, without torch; every_refusal.py runs them."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import NamedTuple

GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2
TO_DEVICE, TO_HOST, WITHIN_DEVICE = 1, 2, 3
MAX_DYNAMIC_SHARED = 8
NON_PORTABLE_CLUSTER = 14
CLUSTER_DIMENSION = 4
KERNEL = b"a_kernel"


class Dim3(ctypes.Structure):
    """dim3."""

    _fields_ = [(axis, ctypes.c_uint) for axis in "xyz"]


class Attribute(ctypes.Structure):
    """cudaLaunchAttribute, whose value is a cluster's size."""

    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint * 16)]


class Config(ctypes.Structure):
    """cudaLaunchConfig_t."""

    _fields_ = [
        ("grid", Dim3),
        ("block", Dim3),
        ("shared", ctypes.c_size_t),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("count", ctypes.c_uint),
    ]


class Runtime:
    """The emulated runtime, with a kernel that takes 16 bytes and does nothing."""

    def __init__(self, path: str) -> None:
        self.library = ctypes.CDLL(path)
        self.library.fake_cuda_why.restype = ctypes.c_char_p
        self.library.cudaGetErrorName.restype = ctypes.c_char_p
        execute = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, Dim3, Dim3, *[ctypes.c_size_t] * 3)
        self.outcome, self.kept = 0, [execute(lambda *_: self.outcome)]
        self.library.fake_cuda_set_executor(ctypes.cast(self.kept[0], ctypes.c_void_p), None)
        self.function = self.register(KERNEL)
        self.declare(KERNEL)

    def register(self, name: bytes) -> ctypes.c_void_p:
        """A host address that stands for a kernel."""
        self.kept.append(ctypes.create_string_buffer(8))
        address = ctypes.c_void_p(ctypes.addressof(self.kept[-1]))
        self.library.__getattr__("__cudaRegisterFunction")(None, address, None, name, -1, *[None] * 5)
        return address

    def declare(self, name: bytes, parameters: int = 16, static: int = 0, threads: int = 0, code: str = "90") -> None:
        sizes = (ctypes.c_uint * 1)(parameters)
        self.library.fake_cuda_declare(name, sizes, 1, static, threads, code.encode())

    def call(self, name: str, *arguments: object) -> int:
        """A function whose name begins with cuda."""
        return getattr(self.library, f"cuda{name}")(*arguments)

    def made(self, name: str, *arguments: object) -> ctypes.c_void_p:
        """What a function writes to its first argument."""
        value = ctypes.c_void_p()
        error = self.call(name, ctypes.byref(value), *arguments)
        if error:
            raise SystemExit(f"{name}: {error}")
        return value

    def launch(
        self,
        grid: tuple = (1, 1, 1),
        block: tuple = (32, 1, 1),
        shared: int = 0,
        stream: object = None,
        function: object = None,
        attribute: tuple[int, int, int, int] | None = None,
    ) -> int:
        """`attribute`: its number and three values."""
        argument = ctypes.create_string_buffer(1 << 15)
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        config = Config(Dim3(*grid), Dim3(*block), shared, stream)
        if attribute:
            one = Attribute(attribute[0])
            one.value[:3] = attribute[1:]
            config.attributes, config.count = ctypes.pointer(one), 1
        return self.call("LaunchKernelExC", ctypes.byref(config), function or self.function, arguments)

    def allowed(self, shared: int) -> int:
        return self.call("FuncSetAttribute", self.function, MAX_DYNAMIC_SHARED, shared)

    def captured(self, mode: int = GLOBAL) -> ctypes.c_void_p:
        """A stream on which a capture has begun."""
        stream = self.made("StreamCreateWithFlags", 1)
        self.call("StreamBeginCapture", stream, mode)
        return stream

    def end(self, stream: ctypes.c_void_p) -> int:
        return self.call("StreamEndCapture", stream, ctypes.byref(ctypes.c_void_p()))

    def on(self, device: int, name: str, *arguments: object) -> ctypes.c_void_p:
        """What is made while another device is current."""
        self.call("SetDevice", device)
        value = self.made(name, *arguments)
        self.call("SetDevice", 0)
        return value

    def in_thread(self, function: Callable[[], int]) -> int:
        """The error belongs to the thread that caused it."""
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(function()))
        thread.start()
        thread.join()
        return found[0]


class Case(NamedTuple):
    """A call, the error it must give, and the runtime's reason; `devices` as $ATROUSOPS_EMULATED_GPU has them."""

    error: str
    why: str
    run: Callable[[Runtime], int]
    devices: str
    driver: str


CASES: dict[str, Case] = {}


def cases(answer: str, devices: str = "H100,H100", driver: str = "13000", **runs: Callable[[Runtime], int]) -> None:
    """Cases of one answer, "ERROR: REASON" or "cudaSuccess", by name."""
    error, _, why = answer.partition(": ")
    error = f"cudaError{error}" if why else error
    CASES.update({name: Case(error, why, run, devices, driver) for name, run in runs.items()})


def case(answer: str, **rest: str) -> Callable[[Callable[[Runtime], int]], None]:
    """One case, by its function's name."""
    return lambda run: cases(answer, **rest, **{run.__name__: run})


def outcome(library: str, chosen: Case) -> tuple[str, str]:
    """The error's name and the runtime's reason, in a process of its own: the runtime reads its variables once."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.environ |= {"ATROUSOPS_EMULATED_GPU": chosen.devices, "ATROUSOPS_EMULATED_DRIVER": chosen.driver}
        runtime = Runtime(library)
        error = chosen.run(runtime)
        names = (runtime.library.cudaGetErrorName(error), runtime.library.fake_cuda_why())
        os.write(sender, b"\n".join(names))
        os._exit(0)
    os.close(sender)
    os.waitpid(child, 0)
    with os.fdopen(receiver, "rb") as told:
        error, _, why = told.read().decode().partition("\n")
    return error, why
