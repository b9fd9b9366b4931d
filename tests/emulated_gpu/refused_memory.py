"""Memory, copies and tensor maps that the emulated runtime refuses; see refusals.py."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from refusals import TO_DEVICE, TO_HOST, WITHIN_DEVICE, Runtime, case, cases

HOST = ctypes.create_string_buffer(4096)


cases(
    "MemoryAllocation: the device is full",
    more_memory_than_the_device_has=lambda r: r.call(
        "Malloc", ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(81 << 30)
    ),
)


@case("MemoryAllocation: the device is full", devices="T4")
def more_memory_than_a_smaller_device_has(r: Runtime) -> int:
    r.made("Malloc", ctypes.c_size_t(9 << 30))
    return r.call("Malloc", ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(8 << 30))


cases("InvalidValue: free of memory that is not a device's", a_free_of_host_memory=lambda r: r.call("Free", HOST))
cases(
    "InvalidValue: free of what is no block",
    a_free_within_a_block=lambda r: r.call("Free", ctypes.c_void_p(r.made("Malloc", ctypes.c_size_t(64)).value + 16)),
)


@case("InvalidValue: free of what is no block")
def a_second_free(r: Runtime) -> int:
    block = r.made("Malloc", ctypes.c_size_t(64))
    return r.call("Free", block) or r.call("Free", block)


cases(
    "InvalidValue: cudaFreeAsync of memory that is not a device's",
    a_queued_free_of_host_memory=lambda r: r.call("FreeAsync", HOST, None),
)
cases("InvalidValue: cudaFreeHost", a_free_of_memory_that_is_not_pinned=lambda r: r.call("FreeHost", HOST))
cases("InvalidValue: cudaHostUnregister", memory_that_was_never_registered=lambda r: r.call("HostUnregister", HOST))
cases(
    "MemoryAllocation: cudaHostAlloc",
    more_pinned_memory_than_there_is=lambda r: r.call(
        "HostAlloc", ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(1 << 60), 0
    ),
)


def copy(r: Runtime, to: object, source: object, size: int, kind: int) -> int:
    """One that waits, so that what it did wrong is known."""
    return r.call("Memcpy", to, source, ctypes.c_size_t(size), kind)


cases(
    "InvalidValue: the kind of copy and its addresses disagree",
    a_copy_to_the_device_that_ends_on_the_host=lambda r: copy(r, HOST, HOST, 16, TO_DEVICE),
)


@case("InvalidValue: the kind of copy and its addresses disagree")
def a_copy_to_the_host_that_ends_on_the_device(r: Runtime) -> int:
    block = r.made("Malloc", ctypes.c_size_t(64))
    return copy(r, block, block, 16, TO_HOST)


cases(
    "cudaSuccess",
    a_copy_of_a_whole_block=lambda r: copy(r, r.made("Malloc", ctypes.c_size_t(64)), HOST, 64, TO_DEVICE),
    a_copy_of_a_variable=lambda r: variable(r, 4, 4),
    a_good_tensor_map=lambda r: encode(r),
)
cases(
    "IllegalAddress: a copy beyond a block, or of freed memory",
    a_copy_beyond_a_block=lambda r: copy(r, r.made("Malloc", ctypes.c_size_t(64)), HOST, 65, TO_DEVICE),
)


@case("IllegalAddress: a copy beyond a block, or of freed memory")
def a_copy_of_freed_memory(r: Runtime) -> int:
    block, other = (r.made("Malloc", ctypes.c_size_t(64)) for _ in range(2))
    r.call("Free", block)
    return copy(r, other, block, 64, WITHIN_DEVICE)


@case("IllegalAddress: cudaMemset beyond a block")
def a_fill_beyond_a_block(r: Runtime) -> int:
    block = r.made("Malloc", ctypes.c_size_t(64))
    return r.call("Memset", block, 0, ctypes.c_size_t(65)) or r.call("DeviceSynchronize")


def variable(r: Runtime, size: int, offset: int, symbol: object = None) -> int:
    """A copy from a registered variable of 8 bytes, or from another symbol."""
    host = ctypes.create_string_buffer(8)
    r.library.__getattr__("__cudaRegisterVar")(None, host, None, b"a_variable", 0, ctypes.c_size_t(8), 0, 0)
    return r.call(
        "MemcpyFromSymbolAsync", HOST, symbol or host, ctypes.c_size_t(size), ctypes.c_size_t(offset), TO_HOST, None
    )


cases("InvalidValue: a copy beyond a variable", a_copy_beyond_a_variable=lambda r: variable(r, 8, 4))
cases(
    "InvalidSymbol: a symbol that is no variable",
    a_symbol_that_is_no_variable=lambda r: variable(r, 8, 0, ctypes.create_string_buffer(8)),
)
# Tensor maps: CUresult rather than cudaError_t; the reason tells.
BFLOAT16, FLOAT32 = 9, 7
SWIZZLE_32, SWIZZLE_128_ATOM = 1, 4
GOOD = {"rank": 2, "sizes": (64, 8), "strides": (256,), "box": (32, 4), "steps": (1, 1), "address": 4096, "at": 0}


def encode(
    r: Runtime, kind: int = FLOAT32, interleave: int = 0, swizzle: int = 0, context: bool = True, **wish: int | Sequence
) -> int:
    """The result of cuTensorMapEncodeTiled, for a map that is good but for what is wished."""
    m = GOOD | wish
    found, status = ctypes.c_void_p(), ctypes.c_int()
    r.call("GetDriverEntryPointByVersion", b"cuTensorMapEncodeTiled", ctypes.byref(found), 12000,
           ctypes.c_ulonglong(0), ctypes.byref(status))  # fmt: skip
    function = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, *[ctypes.c_void_p] * 5, *[ctypes.c_int] * 4
    )(found.value)
    room = ctypes.create_string_buffer(512)
    place = (ctypes.addressof(room) + 63) // 64 * 64 + m["at"]
    r.call("SetDevice", 0) if context else r.library.fake_cuda_forget_context()
    sizes, strides = ((ctypes.c_uint64 * 5)(*m[name]) for name in ("sizes", "strides"))
    box, steps = ((ctypes.c_uint32 * 5)(*m[name]) for name in ("box", "steps"))
    result = function(place, kind, m["rank"], m["address"], sizes, strides, box, steps, interleave, swizzle, 0, 0)
    # As a runtime error, for one way to report.
    return {0: 0, 1: 1, 201: 201, 801: 801}[result]


cases(
    "DeviceUninitialized: tensor map: this thread has no current context",
    a_tensor_map_without_a_context=lambda r: encode(r, context=False),
)
cases("NotSupported: tensor map: below sm_90", devices="A100", a_tensor_map_on_an_a100=lambda r: encode(r))
cases(
    "NotSupported: tensor map: an interleaving or swizzle that is not written",
    an_interleaved_tensor_map=lambda r: encode(r, interleave=1),
    a_swizzle_of_later_devices=lambda r: encode(r, swizzle=SWIZZLE_128_ATOM),
)
cases(
    "InvalidValue: tensor map: rank",
    a_tensor_map_without_axes=lambda r: encode(r, rank=0),
    a_tensor_map_of_six_axes=lambda r: encode(r, rank=6),
)
cases("InvalidValue: tensor map: its own address", a_tensor_map_at_an_odd_place=lambda r: encode(r, at=32))
cases("InvalidValue: tensor map: the address", a_tensor_at_an_odd_address=lambda r: encode(r, address=4104))
cases(
    "InvalidValue: tensor map: a size is not within 1 and 2^32",
    an_empty_axis=lambda r: encode(r, sizes=(64, 0)),
    an_axis_too_long=lambda r: encode(r, sizes=(64, 2**32 + 1)),
)
cases(
    "InvalidValue: tensor map: a box is not within 1 and 256",
    an_empty_box=lambda r: encode(r, box=(32, 0)),
    a_box_too_large=lambda r: encode(r, box=(32, 257)),
)
cases(
    "InvalidValue: tensor map: element strides go from 1 to 8",
    an_element_stride_of_nine=lambda r: encode(r, steps=(1, 9)),
)
cases(
    "InvalidValue: tensor map: a stride is no multiple of 16 below 2^40",
    rows_at_odd_addresses=lambda r: encode(r, strides=(264,)),
    rows_too_far_apart=lambda r: encode(r, strides=(2**40,)),
)
cases(
    "InvalidValue: tensor map: the box's rows are no multiple of 16 bytes",
    rows_of_odd_length=lambda r: encode(r, kind=BFLOAT16, box=(12, 4)),
)
cases(
    "InvalidValue: tensor map: the box's rows are longer than the swizzle's span",
    rows_longer_than_the_swizzle=lambda r: encode(r, box=(16, 4), swizzle=SWIZZLE_32),
)
