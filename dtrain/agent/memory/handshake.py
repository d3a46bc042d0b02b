"""Two agents of a run prove to each other that they know its key, which neither of them sends.

The server sends a random number, the client another one with a proof for both, the server its own proof. A key of the connection
follows from all of them; with it each side seals what it sends, so that nobody between them can change, repeat or leave out a part.
"""

from __future__ import annotations

import hmac
import os
import socket
import time

NONCE_BYTES = 32
PROOF_BYTES = 32
HANDSHAKE_SECONDS = 5.0
"""For the whole of it, however the bytes come."""


class Seals:
    """Of one direction of a connection: each depends on how many there were before."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._count = 0

    def next(self, data: bytes) -> bytes:
        """Return the seal of these bytes in their place."""
        self._count += 1
        return _mac(self._key, self._count.to_bytes(8, "little"), data)


def greet(connection: socket.socket, key: str) -> Seals:
    """Be the server's side; raises `OSError` if the client does not know the key, or takes too long."""
    deadline, own = time.monotonic() + HANDSHAKE_SECONDS, os.urandom(NONCE_BYTES)
    connection.sendall(own)
    theirs = _received(connection, NONCE_BYTES, deadline)
    if not hmac.compare_digest(
        _received(connection, PROOF_BYTES, deadline), _mac(key.encode(), b"client", own, theirs)
    ):
        raise ConnectionError("the other side does not know the key of this run")
    connection.sendall(_mac(key.encode(), b"server", own, theirs))
    return Seals(_mac(key.encode(), b"answers", own, theirs))


def introduce(connection: socket.socket, key: str) -> Seals:
    """Be the client's side; raises `OSError` if the server does not know the key, or takes too long."""
    deadline, own = time.monotonic() + HANDSHAKE_SECONDS, os.urandom(NONCE_BYTES)
    theirs = _received(connection, NONCE_BYTES, deadline)
    connection.sendall(own + _mac(key.encode(), b"client", theirs, own))
    if not hmac.compare_digest(
        _received(connection, PROOF_BYTES, deadline), _mac(key.encode(), b"server", theirs, own)
    ):
        raise ConnectionError("the other side does not know the key of this run")
    return Seals(_mac(key.encode(), b"answers", theirs, own))


def _mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"".join(parts), "sha256")


def _received(connection: socket.socket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        connection.settimeout(max(1e-3, deadline - time.monotonic()))
        part = connection.recv(size - len(data))
        if not part or time.monotonic() > deadline:
            raise ConnectionError("the other side does not introduce itself")
        data += part
    return data
