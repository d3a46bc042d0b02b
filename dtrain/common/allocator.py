"""Settings of the C library's allocator for training on a host.

Tensors of each step are freed in the next one. glibc gives the end of its heap back to the kernel whenever 128 kB of it are free, and then
pays a page fault for every 4 kB of the next step: a tenth of a small model's step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt(3)`."""
KEPT_BYTES = 256 << 20
"""At the end of the heap, at most."""
LARGE_BYTES = 32 << 20
"""Blocks of more are the kernel's own mappings, and go back when they are freed; as glibc has it by itself after a while."""
TENSOR_BYTES = 1 << 20
"""A block of a tensor of a large model."""
LARGE_MODEL_BYTES = 256 << 20
"""Of parameters, from which on it matters more that memory is free than that it is there at once."""
OWN_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Variables of somebody who has chosen for themselves."""


def keep_freed_memory(environment: Mapping[str, str]) -> bool:
    """Have freed memory used again by this process; False if the user has settings of their own, or the C library is not glibc."""
    return _set(environment, LARGE_BYTES, KEPT_BYTES)


def return_freed_tensors(environment: Mapping[str, str]) -> bool:
    """Have freed tensors go back to the kernel at once; see `keep_freed_memory`. A sharded model gathers and frees its parameters block by
    block, and what is kept of blocks of many sizes comes to several times the largest."""
    return _set(environment, TENSOR_BYTES, TENSOR_BYTES)


def _set(environment: Mapping[str, str], mapped_bytes: int, kept_bytes: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith(OWN_SETTINGS) for name in environment):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, mapped_bytes) and mallopt(M_TRIM_THRESHOLD, kept_bytes))
