"""Streams, events and captures that the emulated runtime refuses; see refusals.py."""

from __future__ import annotations

import ctypes

from refusals import GLOBAL, RELAXED, THREAD_LOCAL, Runtime, case, cases
from refused_memory import HOST

cases(
    "InvalidResourceHandle: event and stream of two devices",
    an_event_of_another_device=lambda r: r.call(
        "EventRecord", r.on(1, "EventCreateWithFlags", 0), r.made("StreamCreateWithFlags", 1)
    ),
)


@case("InvalidResourceHandle: an event that was never recorded")
def the_time_of_an_event_that_was_never_recorded(r: Runtime) -> int:
    event = r.made("EventCreateWithFlags", 0)
    return r.call("EventElapsedTime", ctypes.byref(ctypes.c_float()), event, event)


cases(
    "StreamCaptureUnsupported: capture of the legacy stream",
    a_capture_of_the_legacy_stream=lambda r: r.call("StreamBeginCapture", None, GLOBAL),
    a_capture_of_the_legacy_stream_by_its_handle=lambda r: r.call("StreamBeginCapture", ctypes.c_void_p(1), GLOBAL),
)
cases(
    "IllegalState: a stream that is being captured already",
    a_second_capture_of_a_stream=lambda r: r.call("StreamBeginCapture", r.captured(), GLOBAL),
)
cases(
    "IllegalState: no capture began on this stream",
    an_end_without_a_beginning=lambda r: r.end(r.made("StreamCreateWithFlags", 1)),
)


@case("IllegalState: no capture began on this stream")
def an_end_on_a_stream_that_joined(r: Runtime) -> int:
    stream, other = r.captured(), r.made("StreamCreateWithFlags", 1)
    event = r.made("EventCreateWithFlags", 0)
    r.call("EventRecord", event, stream)
    r.call("StreamWaitEvent", other, event, 0)
    return r.end(other)


@case("StreamCaptureWrongThread: cudaStreamEndCapture")
def an_end_in_another_thread(r: Runtime) -> int:
    stream = r.captured()
    return r.in_thread(lambda: r.end(stream))


@case("cudaSuccess")
def an_end_of_a_relaxed_capture_in_another_thread(r: Runtime) -> int:
    stream = r.captured(RELAXED)
    return r.in_thread(lambda: r.end(stream))


@case("StreamCaptureInvalidated: the capture had failed")
def an_end_after_a_forbidden_call(r: Runtime) -> int:
    stream = r.captured()
    r.call("DeviceSynchronize")
    return r.end(stream)


@case("StreamCaptureInvalidated: work for a capture that has failed")
def work_after_a_forbidden_call(r: Runtime) -> int:
    stream = r.captured()
    r.call("DeviceSynchronize")
    return r.launch(stream=stream)


def forked(r: Runtime) -> tuple[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]:
    """A captured stream, one that joined its capture and has work, and an event."""
    stream, other = r.captured(), r.made("StreamCreateWithFlags", 1)
    event = r.made("EventCreateWithFlags", 0)
    r.call("EventRecord", event, stream)
    r.call("StreamWaitEvent", other, event, 0)
    r.launch(stream=other)
    return stream, other, event


cases(
    "StreamCaptureUnjoined: a stream that joined the capture did not come back",
    a_stream_that_does_not_come_back=lambda r: r.end(forked(r)[0]),
)


@case("cudaSuccess")
def a_stream_that_comes_back(r: Runtime) -> int:
    stream, other, event = forked(r)
    r.call("EventRecord", event, other)
    r.call("StreamWaitEvent", stream, event, 0)
    return r.end(stream)


@case("StreamCaptureIsolation: a captured stream waits for an event of none")
def a_wait_for_an_event_from_outside(r: Runtime) -> int:
    event = r.made("EventCreateWithFlags", 0)
    r.call("EventRecord", event, None)
    return r.call("StreamWaitEvent", r.captured(), event, 0)


@case("StreamCaptureUnsupported: two captures")
def a_wait_for_another_capture(r: Runtime) -> int:
    event = r.made("EventCreateWithFlags", 0)
    r.call("EventRecord", event, r.captured())
    return r.call("StreamWaitEvent", r.captured(), event, 0)


@case("IllegalState: cudaStreamUpdateCaptureDependencies")
def dependencies_of_no_capture(r: Runtime) -> int:
    stream = r.made("StreamCreateWithFlags", 1)
    return r.call("StreamUpdateCaptureDependencies", stream, None, None, ctypes.c_size_t(0), 0)


@case("CapturedEvent: cudaEventQuery")
def a_question_to_a_captured_event(r: Runtime) -> int:
    event = r.made("EventCreateWithFlags", 0)
    r.call("EventRecord", event, r.captured())
    return r.call("EventQuery", event)


@case("CapturedEvent: cudaEventSynchronize")
def a_wait_of_the_host_for_a_captured_event(r: Runtime) -> int:
    event = r.made("EventCreateWithFlags", 0)
    r.call("EventRecord", event, r.captured())
    return r.call("EventSynchronize", event)


def forbidden(name: str, *arguments: object, of_stream: bool = False) -> None:
    """A call that makes a capture invalid."""

    def run(r: Runtime) -> int:
        stream = r.captured()
        return r.call(name, *([stream] if of_stream else []), *arguments)

    run.__name__ = f"{name}_in_a_capture"
    case(f"StreamCaptureUnsupported: cuda{name}")(run)


forbidden("StreamSynchronize", of_stream=True)
forbidden("StreamQuery", of_stream=True)
forbidden("DeviceSynchronize")
forbidden("Malloc", ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(64))
forbidden("Free", None)
forbidden("HostAlloc", ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(64), 0)
forbidden("Memcpy", HOST, HOST, ctypes.c_size_t(16), 0)
forbidden("Memset", HOST, 0, ctypes.c_size_t(16))


@case("cudaSuccess")
def an_allocation_in_another_thread_of_a_thread_local_capture(r: Runtime) -> int:
    r.captured(THREAD_LOCAL)
    return r.in_thread(lambda: r.call("Malloc", ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(64)))


@case("StreamCaptureUnsupported: cudaMalloc")
def an_allocation_in_another_thread_of_a_global_capture(r: Runtime) -> int:
    r.captured(GLOBAL)
    return r.in_thread(lambda: r.call("Malloc", ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(64)))


@case("cudaSuccess")
def an_allocation_in_a_relaxed_capture(r: Runtime) -> int:
    r.captured(RELAXED)
    return r.call("Malloc", ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(64))


@case("StreamCaptureUnsupported: a copy to pageable memory")
def a_copy_to_pageable_memory_in_a_capture(r: Runtime) -> int:
    block = r.made("Malloc", ctypes.c_size_t(64))
    return r.call("MemcpyAsync", HOST, block, ctypes.c_size_t(64), 2, r.captured())


@case("StreamCaptureUnsupported: a copy from pageable memory")
def a_copy_from_pageable_memory_in_a_capture(r: Runtime) -> int:
    block = r.made("Malloc", ctypes.c_size_t(64))
    return r.call("MemcpyAsync", block, HOST, ctypes.c_size_t(64), 1, r.captured())
