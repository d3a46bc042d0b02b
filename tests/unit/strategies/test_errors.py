"""Every strategy classifies the exceptions of its own framework, by type and by messages that are known."""

from __future__ import annotations

from functools import partial

import pytest

from dtrain.api.protocol import WorkerExited
from dtrain.api.reports import WorkerFailed
from dtrain.api.strategy import error_kind
from dtrain.job.failure_kinds import FailureKind, exception_kind
from dtrain.launch import registry
from dtrain.supervisor.failures.attribution import FailureAttribution

FRAMEWORKS = {
    "UnavailableError": "multi_worker_mirrored",
    "ResourceExhaustedError": "tpu",
    "HorovodInternalError": "horovod",
}
"""Exception → a strategy of its framework; PyTorch's else."""

DEVICE_TEXTS = (
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: uncorrectable NVLink error detected during the execution",
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
    "CUDA error: driver shutting down",
    "CUDA error: hardware stack error",
    "CUDA error: the launch timed out and was terminated",
    "CUDA error: unknown error",
    "CUDA unknown error - this may be due to an incorrectly set up environment",
    "CUDA error: initialization error",
    "CUDA error: system not yet initialized",
    "CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasSgemm( handle, opa, opb, m, n, k)`",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "cuFFT error: CUFFT_INTERNAL_ERROR",
    "Unable to determine the device handle for GPU 0000:3B:00.0: GPU is lost. Reboot the system to recover this GPU",
    "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.",
    "HIP error: hipErrorECCNotCorrectable",
    "HW Exception by GPU node-2 (Agent handle: 0x55) reason: GPU Hang",
)


@pytest.mark.parametrize(
    ("names", "message", "kind"),
    [
        (["ValueError", "Exception"], "no", FailureKind.BUG),
        (
            ["RuntimeError"],
            "[../gloo/transport/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]:4242",
            FailureKind.CASCADE,
        ),
        (["RuntimeError"], "shape '[3]' is invalid", FailureKind.BUG),
        (["DistBackendError", "RuntimeError"], "NCCL error: remote process exited", FailureKind.CASCADE),
        (["HorovodInternalError", "RuntimeError"], "allreduce failed", FailureKind.CASCADE),
        (["UnavailableError", "OpError"], "failed to connect to all addresses", FailureKind.CASCADE),
        (["OutOfMemoryError", "RuntimeError"], "CUDA out of memory", FailureKind.OUT_OF_MEMORY),
        (["ResourceExhaustedError", "OpError"], "OOM when allocating", FailureKind.OUT_OF_MEMORY),
        (["MemoryError"], "", FailureKind.OUT_OF_MEMORY),
        (["RuntimeError"], "CUDA driver unavailable", FailureKind.BUG),
        (["DistBackendError", "RuntimeError"], "NCCL error: ncclInvalidUsage: Duplicate GPU detected", FailureKind.BUG),
        (["RuntimeError"], "my_gloo_helper got 3 arguments", FailureKind.BUG),
        (["RuntimeError"], "Timed out waiting 1800000ms for recv operation to complete", FailureKind.CASCADE),
        (["ConnectionResetError", "ConnectionError", "OSError"], "file server", FailureKind.TRANSIENT),
        (["FileNotFoundError", "OSError"], "no such file", FailureKind.BUG),
        (["ModuleNotFoundError", "ImportError"], "No module named 'x'", FailureKind.BUG),
        (["AcceleratorError", "RuntimeError"], "CUDA error: device-side assert triggered", FailureKind.BUG),
        (["RuntimeError"], "CUDA error: invalid device ordinal", FailureKind.BUG),
        (["ValueError"], "the header says Xid and uncorrectable ECC error", FailureKind.BUG),
        (["RuntimeError"], "CUDA error: an illegal memory access was encountered", FailureKind.TRANSIENT),
        (["RuntimeError"], "CUDA error: unspecified launch failure", FailureKind.TRANSIENT),
        (["InternalError", "OpError"], "CUDA_ERROR_ILLEGAL_ADDRESS", FailureKind.TRANSIENT),
        (
            ["DistBackendError", "RuntimeError"],
            "NCCL error: unhandled system error (run with NCCL_DEBUG=INFO)",
            FailureKind.CASCADE,
        ),
        *((["RuntimeError"], text, FailureKind.DEVICE) for text in DEVICE_TEXTS),
        (["AcceleratorError", "RuntimeError"], DEVICE_TEXTS[0], FailureKind.DEVICE),
        (
            ["DistBackendError", "RuntimeError"],
            "ncclUnhandledCudaError: Call to CUDA function failed.",
            FailureKind.DEVICE,
        ),
        (["HorovodInternalError", "RuntimeError"], "ncclAllReduce failed: unhandled cuda error", FailureKind.DEVICE),
        (
            ["InternalError", "OpError"],
            "Failed to load in-memory CUBIN: CUDA_ERROR_ECC_UNCORRECTABLE",
            FailureKind.DEVICE,
        ),
        (["UnknownError", "OpError"], "CUDNN_STATUS_INTERNAL_ERROR in tensorflow/stream_executor", FailureKind.DEVICE),
    ],
)
def test_exceptions_are_classified_by_what_they_say(names: list[str], message: str, kind: FailureKind) -> None:
    for strategy in ("script", "horovod", FRAMEWORKS.get(names[0], "ddp")):
        assert error_kind(registry.strategy(strategy, {}), names, message) is kind


@pytest.mark.parametrize("name", ["DistBackendError", "UnavailableError", "HorovodInternalError"])
def test_the_core_knows_no_framework(name: str) -> None:
    assert exception_kind([name, "Exception"], "Connection reset by peer") is FailureKind.BUG


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("DistNetworkError: Connection reset by peer", FailureKind.CASCADE),
        ("OutOfMemoryError: CUDA ran out", FailureKind.OUT_OF_MEMORY),
        ("KeyError: 'x'", FailureKind.BUG),
    ],
)
def test_errors_that_an_agent_found_are_classified_by_the_supervisor(message: str, kind: FailureKind) -> None:
    classify = partial(error_kind, registry.strategy("script", {}))
    attribution = FailureAttribution({0: "node0"}, classify, script=True)
    attribution.report(0, WorkerFailed("", message))
    attribution.exited(WorkerExited(1, 0, 1, None, out_of_memory=False), 0)
    cause = attribution.cause()
    assert cause is not None
    assert (cause.kind, cause.message) == (kind, message)


def test_a_recipe_may_say_what_an_exception_of_its_own_is() -> None:
    classify = partial(error_kind, registry.strategy("script", {}))
    classes = {"DataError": "transient", "ConnectionError": "bug"}
    for name, reported, kind in (
        ("DataError", "bug", FailureKind.TRANSIENT),
        ("ConnectionError", "", FailureKind.BUG),
        ("OtherError", "bug", FailureKind.BUG),
    ):
        attribution = FailureAttribution({0: "node0"}, classify, script=False, classes=classes)
        attribution.report(0, WorkerFailed(reported, f"{name}: a sample cannot be read"))
        attribution.exited(WorkerExited(1, 0, 1, None, out_of_memory=False), 0)
        cause = attribution.cause()
        assert cause is not None
        assert cause.kind is kind
