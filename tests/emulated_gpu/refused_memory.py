"""Memory, copies and tensor maps that the emulated runtime refuses; see refusals.py."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from refusals import TO_DEVICE, TO_HOST, WITHIN_DEVICE, Runtime, case

VALUE = "InvalidValue"
HOST = ctypes.create_string_buffer(4096)


@case("MemoryAllocation", "the device is full")
def more_memory_than_the_device_has(r: Runtime) -> int:
    return r.call("Malloc", ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(81 << 30))


@case("MemoryAllocation", "the device is full", devices="T4")
def more_memory_than_a_smaller_device_has(r: Runtime) -> int:
    r.made("Malloc", ctypes.c_size_t(9 << 30))
    return r.call("Malloc", ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(8 << 30))


@case(VALUE, "free of memory that is not a device's")
def a_free_of_host_memory(r: Runtime) -> int:
    return r.call("Free", HOST)


@case(VALUE, "free of what is no block")
def a_free_within_a_block(r: Runtime) -> int:
    return r.call("Free", ctypes.c_void_p(r.made("Malloc", ctypes.c_size_t(64)).value + 16))


@case(VALUE, "free of what is no block")
def a_second_free(r: Runtime) -> int:
    block = r.made("Malloc", ctypes.c_size_t(64))
    return r.call("Free", block) or r.call("Free", block)


@case(VALUE, "cudaFreeAsync of memory that is not a device's")
def a_queued_free_of_host_memory(r: Runtime) -> int:
    return r.call("FreeAsync", HOST, None)


@case(VALUE, "cudaFreeHost")
def a_free_of_memory_that_is_not_pinned(r: Runtime) -> int:
    return r.call("FreeHost", HOST)


@case(VALUE, "cudaHostUnregister")
def memory_that_was_never_registered(r: Runtime) -> int:
    return r.call("HostUnregister", HOST)


@case("MemoryAllocation", "cudaHostAlloc")
def more_pinned_memory_than_there_is(r: Runtime) -> int:
    return r.call("HostAlloc", ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(1 << 60), 0)


def copy(r: Runtime, to: object, source: object, size: int, kind: int) -> int:
    """One that waits, so that what it did wrong is known."""
    return r.call("Memcpy", to, source, ctypes.c_size_t(size), kind)


@case(VALUE, "the kind of copy and its addresses disagree")
def a_copy_to_the_device_that_ends_on_the_host(r: Runtime) -> int:
    return copy(r, HOST, HOST, 16, TO_DEVICE)


@case(VALUE, "the kind of copy and its addresses disagree")
def a_copy_to_the_host_that_ends_on_the_device(r: Runtime) -> int:
    block = r.made("Malloc", ctypes.c_size_t(64))
    return copy(r, block, block, 16, TO_HOST)


@case("cudaSuccess", "")
def a_copy_of_a_whole_block(r: Runtime) -> int:
    return copy(r, r.made("Malloc", ctypes.c_size_t(64)), HOST, 64, TO_DEVICE)


@case("IllegalAddress", "a copy beyond a block, or of freed memory")
def a_copy_beyond_a_block(r: Runtime) -> int:
    return copy(r, r.made("Malloc", ctypes.c_size_t(64)), HOST, 65, TO_DEVICE)


@case("IllegalAddress", "a copy beyond a block, or of freed memory")
def a_copy_of_freed_memory(r: Runtime) -> int:
    block, other = (r.made("Malloc", ctypes.c_size_t(64)) for _ in range(2))
    r.call("Free", block)
    return copy(r, other, block, 64, WITHIN_DEVICE)


@case("IllegalAddress", "cudaMemset beyond a block")
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


@case("cudaSuccess", "")
def a_copy_of_a_variable(r: Runtime) -> int:
    return variable(r, 4, 4)


@case(VALUE, "a copy beyond a variable")
def a_copy_beyond_a_variable(r: Runtime) -> int:
    return variable(r, 8, 4)


@case("InvalidSymbol", "a symbol that is no variable")
def a_symbol_that_is_no_variable(r: Runtime) -> int:
    return variable(r, 8, 0, ctypes.create_string_buffer(8))


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


@case("cudaSuccess", "")
def a_good_tensor_map(r: Runtime) -> int:
    return encode(r)


@case("DeviceUninitialized", "tensor map: this thread has no current context")
def a_tensor_map_without_a_context(r: Runtime) -> int:
    return encode(r, context=False)


@case("NotSupported", "tensor map: below sm_90", devices="A100")
def a_tensor_map_on_an_a100(r: Runtime) -> int:
    return encode(r)


@case("NotSupported", "tensor map: an interleaving or swizzle that is not written")
def an_interleaved_tensor_map(r: Runtime) -> int:
    return encode(r, interleave=1)


@case("NotSupported", "tensor map: an interleaving or swizzle that is not written")
def a_swizzle_of_later_devices(r: Runtime) -> int:
    return encode(r, swizzle=SWIZZLE_128_ATOM)


@case(VALUE, "tensor map: rank")
def a_tensor_map_without_axes(r: Runtime) -> int:
    return encode(r, rank=0)


@case(VALUE, "tensor map: rank")
def a_tensor_map_of_six_axes(r: Runtime) -> int:
    return encode(r, rank=6)


@case(VALUE, "tensor map: its own address")
def a_tensor_map_at_an_odd_place(r: Runtime) -> int:
    return encode(r, at=32)


@case(VALUE, "tensor map: the address")
def a_tensor_at_an_odd_address(r: Runtime) -> int:
    return encode(r, address=4104)


@case(VALUE, "tensor map: a size is not within 1 and 2^32")
def an_empty_axis(r: Runtime) -> int:
    return encode(r, sizes=(64, 0))


@case(VALUE, "tensor map: a size is not within 1 and 2^32")
def an_axis_too_long(r: Runtime) -> int:
    return encode(r, sizes=(64, 2**32 + 1))


@case(VALUE, "tensor map: a box is not within 1 and 256")
def an_empty_box(r: Runtime) -> int:
    return encode(r, box=(32, 0))


@case(VALUE, "tensor map: a box is not within 1 and 256")
def a_box_too_large(r: Runtime) -> int:
    return encode(r, box=(32, 257))


@case(VALUE, "tensor map: element strides go from 1 to 8")
def an_element_stride_of_nine(r: Runtime) -> int:
    return encode(r, steps=(1, 9))


@case(VALUE, "tensor map: a stride is no multiple of 16 below 2^40")
def rows_at_odd_addresses(r: Runtime) -> int:
    return encode(r, strides=(264,))


@case(VALUE, "tensor map: a stride is no multiple of 16 below 2^40")
def rows_too_far_apart(r: Runtime) -> int:
    return encode(r, strides=(2**40,))


@case(VALUE, "tensor map: the box's rows are no multiple of 16 bytes")
def rows_of_odd_length(r: Runtime) -> int:
    return encode(r, kind=BFLOAT16, box=(12, 4))


@case(VALUE, "tensor map: the box's rows are longer than the swizzle's span")
def rows_longer_than_the_swizzle(r: Runtime) -> int:
    return encode(r, box=(16, 4), swizzle=SWIZZLE_32)
