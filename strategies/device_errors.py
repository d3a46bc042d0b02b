"""Texts of hardware and driver errors, so that a broken GPU is not taken for an error of the user's code.

Sources: the error codes of the CUDA runtime and driver API reference (`cudaError_t`, `CUresult`), NVML's `nvmlErrorString`,
NCCL's `ncclResult_t` and its "unhandled …" texts, `cublasStatus_t`, `cudnnStatus_t`, and HIP's error names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dtrain.job.failure_kinds import FailureKind

TYPES = {
    "RuntimeError", "AcceleratorError", "DistBackendError", "InternalError", "UnknownError", "FailedPreconditionError", "AbortedError",
    "HorovodInternalError", "XlaRuntimeError", "DeferredCudaCallError", "NVMLError", "NVMLError_GpuIsLost",
}  # fmt: skip
"""Exceptions that the frameworks raise for them."""
OF_THE_PROGRAM = re.compile(
    r"device-side assert|CUDA_ERROR_ASSERT|invalid device ordinal|CUDA_ERROR_INVALID_DEVICE", re.IGNORECASE
)
OF_THE_DEVICE = re.compile(
    r"uncorrectable ECC|ECC_UNCORRECTABLE|ECC_NOT_CORRECTABLE|ECCNotCorrectable"
    r"|NVLINK_UNCORRECTABLE|uncorrectable NVLink|NVLink error"
    r"|\bXid\b|GPU is lost|GPU has fallen off the bus|HW Exception by GPU"
    r"|busy or unavailable|DEVICE_UNAVAILABLE|DEVICES_UNAVAILABLE"
    r"|driver shutting down|CUDA_ERROR_DEINITIALIZED|SYSTEM_NOT_READY|system not yet initialized"
    r"|hardware stack error|HARDWARE_STACK_ERROR|launch timed out|LAUNCH_TIMEOUT"
    r"|CUDA error: unknown error|CUDA unknown error|CUDA_ERROR_UNKNOWN|CUDA error: initialization error|CUDA_ERROR_NOT_INITIALIZED"
    r"|ncclUnhandledCudaError|unhandled cuda error|ncclInternalError"
    r"|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_(INTERNAL_ERROR|EXECUTION_FAILED|ARCH_MISMATCH|NOT_INITIALIZED)|CUFFT_INTERNAL_ERROR",
    re.IGNORECASE,
)
PERHAPS = re.compile(
    r"illegal memory access|ILLEGAL_ADDRESS|illegal instruction|ILLEGAL_INSTRUCTION|misaligned address|MISALIGNED_ADDRESS"
    r"|unspecified launch failure|CUDA_ERROR_LAUNCH_FAILED|Memory access fault by GPU",
    re.IGNORECASE,
)
"""A kernel's own error in most cases, and a device's in some: a second try tells."""


def of_device(type_names: Sequence[str], message: str) -> FailureKind | None:
    """The class of an exception that a device or its driver caused; None for any other."""
    if not TYPES.intersection(type_names) or OF_THE_PROGRAM.search(message):
        return None
    if OF_THE_DEVICE.search(message):
        return FailureKind.DEVICE
    return FailureKind.TRANSIENT if PERHAPS.search(message) else None
