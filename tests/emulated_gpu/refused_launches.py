"""Launches, attributes, devices and tensor maps that the emulated runtime refuses; see refusals.py."""

from __future__ import annotations

import ctypes

from refusals import CLUSTER_DIMENSION, KERNEL, Runtime, case

CONFIGURATION, VALUE = "InvalidConfiguration", "InvalidValue"


@case(CONFIGURATION, "an empty grid or block")
def an_empty_grid(r: Runtime) -> int:
    return r.launch(grid=(0, 1, 1))


@case(CONFIGURATION, "an empty grid or block")
def an_empty_block(r: Runtime) -> int:
    return r.launch(block=(32, 0, 1))


@case("cudaSuccess", "")
def the_largest_grid_and_block(r: Runtime) -> int:
    # The executor of these cases does nothing, however many blocks there are.
    return r.launch(grid=(2**31 - 1, 65535, 65535), block=(16, 1, 64))


@case(CONFIGURATION, "grid too large")
def a_grid_too_wide(r: Runtime) -> int:
    return r.launch(grid=(2**31, 1, 1))


@case(CONFIGURATION, "grid too large")
def a_grid_too_high(r: Runtime) -> int:
    return r.launch(grid=(1, 65536, 1))


@case(CONFIGURATION, "grid too large")
def a_grid_too_deep(r: Runtime) -> int:
    return r.launch(grid=(1, 1, 65536))


@case(CONFIGURATION, "block too large")
def a_block_of_too_many_threads(r: Runtime) -> int:
    return r.launch(block=(32, 33, 1))


@case(CONFIGURATION, "block too large")
def a_block_too_deep(r: Runtime) -> int:
    return r.launch(block=(1, 1, 65))


@case("cudaSuccess", "")
def a_cluster_of_eight(r: Runtime) -> int:
    return r.launch(grid=(16, 1, 1), attribute=(CLUSTER_DIMENSION, 8, 1, 1))


@case("InvalidClusterSize", "cluster")
def a_cluster_of_sixteen(r: Runtime) -> int:
    return r.launch(grid=(16, 1, 1), attribute=(CLUSTER_DIMENSION, 16, 1, 1))


@case("InvalidClusterSize", "cluster")
def a_grid_of_no_whole_clusters(r: Runtime) -> int:
    return r.launch(grid=(15, 1, 1), attribute=(CLUSTER_DIMENSION, 2, 1, 1))


@case("InvalidClusterSize", "along y or z")
def a_cluster_along_y(r: Runtime) -> int:
    return r.launch(grid=(2, 2, 1), attribute=(CLUSTER_DIMENSION, 1, 2, 1))


@case("NotSupported", "clusters need compute capability 9.0", devices="A100")
def a_cluster_on_an_a100(r: Runtime) -> int:
    r.declare(KERNEL, code="80")
    return r.launch(grid=(2, 1, 1), attribute=(CLUSTER_DIMENSION, 2, 1, 1))


@case("NotSupported", "a launch attribute")
def an_attribute_that_is_not_written(r: Runtime) -> int:
    return r.launch(attribute=(1, 0, 0, 0))


@case("NoKernelImageForDevice", "a_kernel")
def a_device_without_machine_code(r: Runtime) -> int:
    r.declare(KERNEL, code="80;100")
    return r.launch()


@case("cudaSuccess", "")
def a_device_without_machine_code_but_ptx(r: Runtime) -> int:
    r.declare(KERNEL, code="100;compute_80")
    return r.launch()


@case("NoKernelImageForDevice", "a_kernel", devices="T4")
def a_device_older_than_the_ptx(r: Runtime) -> int:
    r.declare(KERNEL, code="80;compute_80")
    return r.launch()


@case("NoKernelImageForDevice", "a_kernel", devices="B200")
def hoppers_own_code_on_another(r: Runtime) -> int:
    r.declare(KERNEL, code="90a")
    return r.launch()


@case("NoKernelImageForDevice", "cudaFuncGetAttributes", devices="T4")
def attributes_without_machine_code(r: Runtime) -> int:
    return r.call("FuncGetAttributes", ctypes.create_string_buffer(1024), r.function)


@case("LaunchOutOfResources", "more threads than the kernel was compiled for")
def more_threads_than_launch_bounds(r: Runtime) -> int:
    r.declare(KERNEL, threads=128)
    return r.launch(block=(129, 1, 1))


@case(VALUE, "more dynamic shared memory than the attribute allows")
def shared_memory_without_its_attribute(r: Runtime) -> int:
    return r.launch(shared=(48 << 10) + 1)


@case(VALUE, "more dynamic shared memory than the attribute allows")
def static_shared_memory_counts(r: Runtime) -> int:
    r.declare(KERNEL, static=1 << 10)
    return r.launch(shared=48 << 10)


@case("cudaSuccess", "")
def shared_memory_with_its_attribute(r: Runtime) -> int:
    return r.allowed(227 << 10) or r.launch(shared=227 << 10)


@case(VALUE, "more dynamic shared memory than the attribute allows")
def the_attribute_is_of_one_device(r: Runtime) -> int:
    r.allowed(227 << 10)
    r.call("SetDevice", 1)
    return r.launch(shared=227 << 10)


@case(VALUE, "more shared memory than a block can have")
def an_attribute_beyond_the_device(r: Runtime) -> int:
    return r.allowed((227 << 10) + 1)


@case(VALUE, "more shared memory than a block can have", devices="RTX4090")
def an_attribute_beyond_a_smaller_device(r: Runtime) -> int:
    return r.allowed(100 << 10)


@case(VALUE, "more shared memory than a block can have")
def static_shared_memory_beyond_the_device(r: Runtime) -> int:
    r.allowed(200 << 10)
    r.declare(KERNEL, static=28 << 10)
    return r.launch(shared=200 << 10)


@case("cudaSuccess", "")
def the_most_parameters(r: Runtime) -> int:
    r.declare(KERNEL, parameters=32764)
    return r.launch()


@case(VALUE, "more bytes of parameters than driver or device allow")
def too_many_parameters(r: Runtime) -> int:
    r.declare(KERNEL, parameters=32768)
    return r.launch()


@case(VALUE, "more bytes of parameters than driver or device allow", driver="12000")
def large_parameters_for_an_older_driver(r: Runtime) -> int:
    r.declare(KERNEL, parameters=4100)
    return r.launch()


@case("InvalidDeviceFunction", "a function that is no kernel")
def a_function_that_is_no_kernel(r: Runtime) -> int:
    return r.launch(function=ctypes.c_void_p(64))


@case("InvalidDeviceFunction", "a kernel that cannot be executed")
def a_kernel_that_nobody_declared(r: Runtime) -> int:
    return r.launch(function=r.register(b"another_kernel"))


@case("InvalidDeviceFunction", "cudaFuncSetAttribute")
def an_attribute_of_no_kernel(r: Runtime) -> int:
    return r.call("FuncSetAttribute", ctypes.c_void_p(64), 8, 0)


@case("NotSupported", "cudaFuncSetAttribute")
def a_function_attribute_that_is_not_written(r: Runtime) -> int:
    return r.call("FuncSetAttribute", r.function, 9, 0)


@case("InvalidDeviceFunction", "cudaFuncGetAttributes")
def attributes_of_no_kernel(r: Runtime) -> int:
    return r.call("FuncGetAttributes", ctypes.create_string_buffer(1024), ctypes.c_void_p(64))


@case("InvalidResourceHandle", "a stream of another device")
def a_stream_of_another_device(r: Runtime) -> int:
    return r.launch(stream=r.on(1, "StreamCreateWithFlags", 1))


@case("LaunchFailure", "a_kernel: it could not be executed")
def a_fault_is_seen_when_somebody_waits(r: Runtime) -> int:
    r.outcome = 1
    return r.launch() or r.call("DeviceSynchronize")


@case("LaunchFailure", "a_kernel: it could not be executed")
def a_device_does_not_recover_from_a_fault(r: Runtime) -> int:
    r.outcome = 1
    r.launch()
    r.call("DeviceSynchronize")
    r.outcome = 0
    r.call("GetLastError")
    return r.launch()


@case("InvalidConfiguration", "an empty grid or block")
def the_last_error_is_kept_until_it_is_asked_for(r: Runtime) -> int:
    r.launch(grid=(0, 1, 1))
    kept = r.call("GetLastError")
    return 0 if r.call("GetLastError") else kept


@case("InvalidDevice", "cudaSetDevice")
def a_third_device(r: Runtime) -> int:
    return r.call("SetDevice", 2)


@case("InvalidDevice", "cudaGetDeviceProperties")
def properties_of_a_third_device(r: Runtime) -> int:
    return r.call("GetDeviceProperties", ctypes.create_string_buffer(4096), 2)


@case("InvalidDevice", "cudaDeviceGetAttribute")
def an_attribute_of_a_third_device(r: Runtime) -> int:
    return r.call("DeviceGetAttribute", ctypes.byref(ctypes.c_int()), 16, -1)


@case(VALUE, "cudaDeviceGetAttribute: an attribute that is not written")
def a_device_attribute_that_is_not_written(r: Runtime) -> int:
    return r.call("DeviceGetAttribute", ctypes.byref(ctypes.c_int()), 9999, 0)


@case("InvalidDevice", "cudaDeviceGetPCIBusId")
def the_bus_of_a_third_device(r: Runtime) -> int:
    return r.call("DeviceGetPCIBusId", ctypes.create_string_buffer(32), 32, 2)
