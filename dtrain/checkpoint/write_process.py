"""The process that writes a worker's snapshots: `python -m dtrain.checkpoint.write_process DESCRIPTOR PARENT`.

It maps the worker's shared memory and, in one go, writes it to a file, hashes it, and looks for values that are not finite,
so that none of this holds the training or its interpreter. It answers one request at a time over a Unix socket, and ends
when the worker closes it or ends: processes that the user's code forked may have the other end, too.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dtrain.common.files import digest

BLOCK = 1 << 20
"""Bytes that are written, or looked at, in one go; they stay in a core's cache meanwhile."""
NICENESS = 5
START_WRITING = 2
"""SYNC_FILE_RANGE_WRITE of sync_file_range(2): begin to write back, and do not wait."""
MODULUS = 1 << 256
NOT_FINITE = {
    "F64": ("<u8", 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7FFF_FFFF, 0x7F80_0000),
    "F16": ("<u2", 0x7FFF, 0x7C00),
    "BF16": ("<u2", 0x7FFF, 0x7F80),
    "F8_E5M2": ("<u1", 0x7F, 0x7C),
    "F8_E4M3": ("<u1", 0x7F, 0x7F),
}
"""Type → the integers of its size, the mask that takes the sign away, and the smallest pattern of infinity or NaN."""
LENGTH_BYTES = 8
Range = tuple[str, int, int, str]
"""A tensor of the model or a part of one: its name, begin, length, and its type if all its values must be finite ('' if they
need not be)."""


def main() -> None:
    """Serve the worker at the other end of the inherited socket."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the worker decides how long it is needed
    os.nice(NICENESS)
    channel, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    while _asked(channel, parent) and (received := receive(channel)):
        request, (descriptor,) = received
        try:
            answer = _written(descriptor, **request)
        except OSError as error:
            answer = {"errno": error.errno, "error": error.strerror or str(error)}
        except Exception as error:  # noqa: BLE001  the worker says it in its words
            answer = {"errno": None, "error": f"{type(error).__name__}: {error}"}
        finally:
            os.close(descriptor)
        send(channel, answer)


def _asked(channel: socket.socket, parent: int) -> bool:
    """Wait for a request; False: the parent has ended."""
    try:
        watched = os.pidfd_open(parent)
    except ProcessLookupError:
        return False
    try:
        return watched not in select.select([channel.fileno(), watched], [], [])[0]
    finally:
        os.close(watched)


def send(channel: socket.socket, message: Any, descriptors: tuple[int, ...] = ()) -> None:
    """A message in JSON behind its length, with file descriptors."""
    body = json.dumps(message).encode()
    socket.send_fds(channel, [len(body).to_bytes(LENGTH_BYTES, "little")], descriptors)
    channel.sendall(body)


def receive(channel: socket.socket) -> tuple[Any, list[int]] | None:
    """The next message and its file descriptors; None if the other end is gone."""
    length, descriptors, _, _ = socket.recv_fds(channel, LENGTH_BYTES, 1, socket.MSG_CMSG_CLOEXEC | socket.MSG_WAITALL)
    if len(length) < LENGTH_BYTES:
        return None
    body, missing = bytearray(), int.from_bytes(length, "little")
    while missing:
        part = channel.recv(missing)
        if not part:
            return None
        body += part
        missing -= len(part)
    return json.loads(body), list(descriptors)


def _written(descriptor: int, path: str, weights: list[Range]) -> dict[str, Any]:
    view = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(_write, view, path)
        answer = _looked_at(view, weights)
    written.result()
    return answer


def _looked_at(view: memoryview, weights: list[Range]) -> dict[str, Any]:
    """Hash the bytes and check their values in one pass."""
    whole, total, problem, end = digest(), 0, "", 0
    for name, begin, length, dtype in sorted(weights, key=lambda one: one[1]):
        for block in _blocks(view[end:begin]):
            whole.update(block)
        end, bad, own = begin + length, 0, digest(name.encode())
        for block in _blocks(view[begin:end]):
            whole.update(block)
            own.update(block)
            bad += _not_finite(block, dtype) if dtype in NOT_FINITE else 0
        total += int(own.hexdigest(), 16)
        if bad and not problem:
            count = length // int(NOT_FINITE[dtype][0][-1])
            problem = f"{name.partition('|')[0]} has {bad} of {count} values that are nan or inf"
    for block in _blocks(view[end:]):
        whole.update(block)
    return {"digest": whole.hexdigest(), "weights": f"{total % MODULUS:064x}", "not_finite": problem}


def _blocks(view: memoryview) -> Iterator[memoryview]:
    return (view[begin : begin + BLOCK] for begin in range(0, len(view), BLOCK))


def _write(view: memoryview, path: str) -> None:
    """Write and flush to the disk, not only to the kernel."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        begin = 0
        while begin < len(view):
            count = os.write(fd, view[begin : begin + BLOCK])
            # The disk works while the rest is copied to the kernel; a file system that cannot is none the worse.
            libc.sync_file_range(fd, ctypes.c_int64(begin), ctypes.c_int64(count), START_WRITING)
            begin += count
        os.fsync(fd)
    finally:
        os.close(fd)


def _not_finite(block: memoryview, dtype: str) -> int:
    """How many values are NaN or infinite, by their bits."""
    import numpy as np

    kind, mask, least = NOT_FINITE[dtype]
    bits = np.frombuffer(block, kind) & np.dtype(kind).type(mask)
    return int(np.count_nonzero(bits >= least)) if bits.max() >= least else 0


if __name__ == "__main__":
    main()
