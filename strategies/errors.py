"""Classifies the frameworks' exceptions, by their types and by messages that are known. Importing this module
imports no framework: exceptions are known by the names of their types and bases, nearest first."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dtrain.job.failure_kinds import FailureKind
from dtrain.strategies.device_errors import of_device

NO_MEMORY = re.compile(r"out of memory|can(no|')t allocate memory|not enough memory|std::bad_alloc", re.IGNORECASE)
"""Messages for a lack of memory, of CUDA, torch's allocator for the CPU, the kernel and C++."""
LOST_PEER = re.compile(
    r"connection (was )?(reset|closed|refused|aborted)|reset by peer|closed by peer|broken pipe|socket (closed|timeout)|connectfull"
    r"|remote process exited|ncclremoteerror|ncclsystemerror|unhandled system error|pair closure|timed out waiting \d+ms for"
    r"|heartbeat (timeout|request)|coordination (service|agent)|peer .*(left|failed|disconnected)",
    re.IGNORECASE,
)
"""Messages for the end of the connection to another worker: of gloo, NCCL, TensorFlow's gRPC and its coordination service."""
TORCH_PEERS = {"DistBackendError", "DistNetworkError", "DistStoreError", "RuntimeError"}
"""Types of PyTorch whose message says whether a peer was lost."""
TENSORFLOW_PEERS = {
    "UnknownError", "DeadlineExceededError", "AbortedError", "CancelledError", "InternalError", "RuntimeError",
}  # fmt: skip
"""The same of TensorFlow."""


def of_torch(type_names: Sequence[str], message: str) -> FailureKind | None:
    """The class of an exception of PyTorch; None if it is none of its own."""
    if "OutOfMemoryError" in type_names or NO_MEMORY.search(message):
        return FailureKind.OUT_OF_MEMORY
    return _lost_peer(type_names, message, TORCH_PEERS) or of_device(type_names, message)


def of_tensorflow(type_names: Sequence[str], message: str) -> FailureKind | None:
    """The class of an exception of TensorFlow; None if it is none of its own."""
    if "ResourceExhaustedError" in type_names or NO_MEMORY.search(message):
        return FailureKind.OUT_OF_MEMORY
    if type_names[:1] == ["UnavailableError"]:
        return FailureKind.CASCADE
    return _lost_peer(type_names, message, TENSORFLOW_PEERS) or of_device(type_names, message)


def of_horovod(type_names: Sequence[str], message: str) -> FailureKind | None:
    """The class of an exception of Horovod or of one of the frameworks below it; None if it is none of theirs."""
    if type_names[:1] == ["HorovodInternalError"]:
        return of_device(type_names, message) or FailureKind.CASCADE
    return of_torch(type_names, message) or of_tensorflow(type_names, message)


def _lost_peer(type_names: Sequence[str], message: str, types: set[str]) -> FailureKind | None:
    return FailureKind.CASCADE if type_names and type_names[0] in types and LOST_PEER.search(message) else None
