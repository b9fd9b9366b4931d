"""Launches, attributes, devices and tensor maps that the emulated runtime refuses; see refusals.py."""

from __future__ import annotations

import ctypes

from refusals import CLUSTER_DIMENSION, KERNEL, NON_PORTABLE_CLUSTER, Config, Dim3, Runtime, case, cases


def clusters(r: Runtime, blocks: int) -> int:
    """A launch of two clusters of so many blocks."""
    return r.launch(grid=(2 * blocks, 1, 1), attribute=(CLUSTER_DIMENSION, blocks, 1, 1))


def large_clusters(r: Runtime, value: int = 1) -> int:
    return r.call("FuncSetAttribute", r.function, NON_PORTABLE_CLUSTER, value)


cases(
    "InvalidConfiguration: an empty grid or block",
    an_empty_grid=lambda r: r.launch(grid=(0, 1, 1)),
    an_empty_block=lambda r: r.launch(block=(32, 0, 1)),
)


@case("cudaSuccess")
def the_largest_grid_and_block(r: Runtime) -> int:
    # The executor of these cases does nothing, however many blocks there are.
    return r.launch(grid=(2**31 - 1, 65535, 65535), block=(16, 1, 64))


cases(
    "InvalidConfiguration: grid too large",
    a_grid_too_wide=lambda r: r.launch(grid=(2**31, 1, 1)),
    a_grid_too_high=lambda r: r.launch(grid=(1, 65536, 1)),
    a_grid_too_deep=lambda r: r.launch(grid=(1, 1, 65536)),
)
cases(
    "InvalidConfiguration: block too large",
    a_block_of_too_many_threads=lambda r: r.launch(block=(32, 33, 1)),
    a_block_too_deep=lambda r: r.launch(block=(1, 1, 65)),
)
cases(
    "cudaSuccess",
    a_cluster_of_eight=lambda r: clusters(r, 8),
    a_cluster_of_sixteen_with_its_attribute=lambda r: large_clusters(r) or clusters(r, 16),
    a_device_without_machine_code_but_ptx=lambda r: r.declare(KERNEL, code="100;compute_80") or r.launch(),
    shared_memory_with_its_attribute=lambda r: r.allowed(227 << 10) or r.launch(shared=227 << 10),
    the_most_parameters=lambda r: r.declare(KERNEL, parameters=32764) or r.launch(),
)
cases(
    "InvalidClusterSize: cluster",
    a_cluster_of_sixteen=lambda r: clusters(r, 16),
    a_cluster_of_seventeen_with_the_attribute=lambda r: large_clusters(r) or clusters(r, 17),
    a_grid_of_no_whole_clusters=lambda r: r.launch(grid=(15, 1, 1), attribute=(CLUSTER_DIMENSION, 2, 1, 1)),
)
cases(
    "InvalidClusterSize: along y or z",
    a_cluster_along_y=lambda r: r.launch(grid=(2, 2, 1), attribute=(CLUSTER_DIMENSION, 1, 2, 1)),
)
cases(
    "NotSupported: clusters need compute capability 9.0",
    devices="A100",
    a_cluster_on_an_a100=lambda r: (
        r.declare(KERNEL, code="80") or r.launch(grid=(2, 1, 1), attribute=(CLUSTER_DIMENSION, 2, 1, 1))
    ),
)
cases(
    "NotSupported: large clusters are allowed, and not taken back",
    large_clusters_forbidden_again=lambda r: large_clusters(r, 0),
)
cases("NotSupported: a launch attribute", an_attribute_that_is_not_written=lambda r: r.launch(attribute=(1, 0, 0, 0)))
cases(
    "NoKernelImageForDevice: a_kernel",
    a_device_without_machine_code=lambda r: r.declare(KERNEL, code="80;100") or r.launch(),
)
cases(
    "NoKernelImageForDevice: a_kernel",
    devices="T4",
    a_device_older_than_the_ptx=lambda r: r.declare(KERNEL, code="80;compute_80") or r.launch(),
)
cases(
    "NoKernelImageForDevice: a_kernel",
    devices="B200",
    hoppers_own_code_on_another=lambda r: r.declare(KERNEL, code="90a") or r.launch(),
)
cases(
    "NoKernelImageForDevice: cudaFuncGetAttributes",
    devices="T4",
    attributes_without_machine_code=lambda r: r.call(
        "FuncGetAttributes", ctypes.create_string_buffer(1024), r.function
    ),
)
cases(
    "LaunchOutOfResources: more threads than the kernel was compiled for",
    more_threads_than_launch_bounds=lambda r: r.declare(KERNEL, threads=128) or r.launch(block=(129, 1, 1)),
)
# A multiprocessor has 65,536. A warp is given 256 at a time: of 65 registers a thread 2,304, enough for 28 warps; of
# 168 5,376, enough for 12.
cases(
    "LaunchOutOfResources: more registers than a block can have",
    more_registers_than_a_block_has=lambda r: r.declare(KERNEL, code="90:65") or r.launch(block=(1024, 1, 1)),
    registers_of_whole_quarters=lambda r: r.declare(KERNEL, code="90a:168") or r.launch(block=(385, 1, 1)),
)
cases(
    "cudaSuccess",
    as_many_registers_as_a_block_has=lambda r: r.declare(KERNEL, code="90:64") or r.launch(block=(1024, 1, 1)),
    registers_of_another_device=lambda r: r.declare(KERNEL, code="80:255;90:64") or r.launch(block=(1024, 1, 1)),
    registers_of_what_a_driver_compiles=lambda r: r.declare(KERNEL, code="100:255;compute_80") or r.launch(),
)
cases(
    "InvalidValue: the occupancy of empty blocks",
    occupancy_of_no_threads=lambda r: r.call("OccupancyMaxActiveBlocksPerMultiprocessor", None, r.function, 0, 0),
)


@case("cudaSuccess")
def registers_limit_occupancy(r: Runtime) -> int:
    # 4,096 a warp: 16 warps on a multiprocessor, and 8 of them are a block.
    r.declare(KERNEL, code="90:128")
    blocks = ctypes.c_int()
    error = r.call("OccupancyMaxActiveBlocksPerMultiprocessor", ctypes.byref(blocks), r.function, 256, 0)
    return error or blocks.value != 2


@case("cudaSuccess")
def registers_limit_the_threads_of_a_block(r: Runtime) -> int:
    # 2,560 a warp: 25 warps, and 24 of them in quarters.
    r.declare(KERNEL, code="90:80")
    attributes = (ctypes.c_int * 64)()
    error = r.call("FuncGetAttributes", attributes, r.function)
    return error or (attributes[6], attributes[7]) != (768, 80)


cases(
    "InvalidValue: more dynamic shared memory than the attribute allows",
    shared_memory_without_its_attribute=lambda r: r.launch(shared=(48 << 10) + 1),
    static_shared_memory_counts=lambda r: r.declare(KERNEL, static=1 << 10) or r.launch(shared=48 << 10),
)


@case("InvalidValue: more dynamic shared memory than the attribute allows")
def the_attribute_is_of_one_device(r: Runtime) -> int:
    r.allowed(227 << 10)
    r.call("SetDevice", 1)
    return r.launch(shared=227 << 10)


cases(
    "InvalidValue: more shared memory than a block can have",
    an_attribute_beyond_the_device=lambda r: r.allowed((227 << 10) + 1),
)
cases(
    "InvalidValue: more shared memory than a block can have",
    devices="RTX4090",
    an_attribute_beyond_a_smaller_device=lambda r: r.allowed(100 << 10),
)


@case("InvalidValue: more shared memory than a block can have")
def static_shared_memory_beyond_the_device(r: Runtime) -> int:
    r.allowed(200 << 10)
    r.declare(KERNEL, static=28 << 10)
    return r.launch(shared=200 << 10)


cases(
    "InvalidValue: more bytes of parameters than driver or device allow",
    too_many_parameters=lambda r: r.declare(KERNEL, parameters=32768) or r.launch(),
)
cases(
    "InvalidValue: more bytes of parameters than driver or device allow",
    driver="12000",
    large_parameters_for_an_older_driver=lambda r: r.declare(KERNEL, parameters=4100) or r.launch(),
)
cases(
    "InvalidDeviceFunction: a function that is no kernel",
    a_function_that_is_no_kernel=lambda r: r.launch(function=ctypes.c_void_p(64)),
)
cases(
    "InvalidDeviceFunction: a kernel that cannot be executed",
    a_kernel_that_nobody_declared=lambda r: r.launch(function=r.register(b"another_kernel")),
)
cases(
    "InvalidDeviceFunction: cudaFuncSetAttribute",
    an_attribute_of_no_kernel=lambda r: r.call("FuncSetAttribute", ctypes.c_void_p(64), 8, 0),
)
cases(
    "NotSupported: cudaFuncSetAttribute",
    a_function_attribute_that_is_not_written=lambda r: r.call("FuncSetAttribute", r.function, 9, 0),
)
cases(
    "InvalidDeviceFunction: cudaOccupancyMaxActiveClusters",
    clusters_of_no_kernel=lambda r: r.call(
        "OccupancyMaxActiveClusters",
        ctypes.byref(ctypes.c_int()),
        ctypes.c_void_p(64),
        ctypes.byref(Config(Dim3(1, 1, 1), Dim3(32, 1, 1), 0, None)),
    ),
)
cases(
    "InvalidDeviceFunction: cudaFuncGetAttributes",
    attributes_of_no_kernel=lambda r: r.call(
        "FuncGetAttributes", ctypes.create_string_buffer(1024), ctypes.c_void_p(64)
    ),
)
cases(
    "InvalidResourceHandle: a stream of another device",
    a_stream_of_another_device=lambda r: r.launch(stream=r.on(1, "StreamCreateWithFlags", 1)),
)


@case("LaunchFailure: a_kernel: it could not be executed")
def a_fault_is_seen_when_somebody_waits(r: Runtime) -> int:
    r.outcome = 1
    return r.launch() or r.call("DeviceSynchronize")


@case("LaunchFailure: a_kernel: it could not be executed")
def a_device_does_not_recover_from_a_fault(r: Runtime) -> int:
    r.outcome = 1
    r.launch()
    r.call("DeviceSynchronize")
    r.outcome = 0
    r.call("GetLastError")
    return r.launch()


@case("InvalidConfiguration: an empty grid or block")
def the_last_error_is_kept_until_it_is_asked_for(r: Runtime) -> int:
    r.launch(grid=(0, 1, 1))
    kept = r.call("GetLastError")
    return 0 if r.call("GetLastError") else kept


cases("InvalidDevice: cudaSetDevice", a_third_device=lambda r: r.call("SetDevice", 2))
cases(
    "InvalidDevice: cudaGetDeviceProperties",
    properties_of_a_third_device=lambda r: r.call("GetDeviceProperties", ctypes.create_string_buffer(4096), 2),
)
cases(
    "InvalidDevice: cudaDeviceGetAttribute",
    an_attribute_of_a_third_device=lambda r: r.call("DeviceGetAttribute", ctypes.byref(ctypes.c_int()), 16, -1),
)
cases(
    "InvalidValue: cudaDeviceGetAttribute: an attribute that is not written",
    a_device_attribute_that_is_not_written=lambda r: r.call(
        "DeviceGetAttribute", ctypes.byref(ctypes.c_int()), 9999, 0
    ),
)
cases(
    "InvalidDevice: cudaDeviceGetPCIBusId",
    the_bus_of_a_third_device=lambda r: r.call("DeviceGetPCIBusId", ctypes.create_string_buffer(32), 32, 2),
)
