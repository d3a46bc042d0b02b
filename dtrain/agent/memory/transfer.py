"""Agents give each other their parts of in-memory checkpoints over TCP.

A request is one line of JSON: the run's key, an attempt, and for each rank the step that the client has or, with `exact`, wants. For each
part that is newer, or has this step, the server answers with a line of JSON (rank and record), the bytes of the small files, the tensors
in blocks, each followed by the BLAKE3 digest of all blocks so far, and one byte: 1 if the buffer was not written to meanwhile. An empty
line ends the answer.
"""

from __future__ import annotations

import hmac
import json
import mmap
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dtrain.agent.memory.copies import MemoryCopies, MemoryCopy, copied
from dtrain.api.memory_protocol import MemoryCheckpoint, MemoryPeer
from dtrain.checkpoint.memory_record import MemoryRecord
from dtrain.common.files import digest
from dtrain.common.memory import granted_memory
from dtrain.common.serde import from_dict, to_dict

BLOCK = 1 << 24
DIGEST_BYTES = 32
LINE_BYTES = 1 << 22
ANSWER_SECONDS = 30.0
"""An agent that sends no byte for this long is taken for dead."""
ASK_SECONDS = 0.2
"""Pause between two requests for something newer."""
QUIET_SHARE = 3.0
"""A partner's copy is followed by a pause of this many times the time that it took, so that it leaves most of the network to the
training."""
PARTNER_COPIES = 2
"""Copies kept of each rank, since the copies of a node's ranks do not arrive at once."""


class MemoryServer:
    """Gives this node's own parts to whoever knows the key."""

    def __init__(self, address: str, key: str, copies: MemoryCopies) -> None:
        self._key = key
        self._copies = copies
        self._socket = socket.create_server((address, 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, name="dtrain-memory-server", daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(ANSWER_SECONDS)
        with (
            suppress(OSError, ValueError, KeyError, TypeError, AttributeError),
            connection,
            connection.makefile("rwb") as stream,
        ):
            request = json.loads(stream.readline(LINE_BYTES))
            if not hmac.compare_digest(str(request["key"]), self._key):
                return
            for rank, step in request["ranks"].items():
                found = self._copies.steps(int(request["attempt"]), int(rank))
                wanted = step if request["exact"] else max(found, default=-1)
                if wanted in found and (request["exact"] or wanted > step):
                    _send(stream, int(rank), found[wanted])
            stream.write(b"\n")
            stream.flush()


def _send(stream: Any, rank: int, copy: MemoryCopy) -> None:
    found = copy.read()
    if found is None:
        return
    record, small = found
    stream.write(json.dumps({"rank": rank, "record": to_dict(record)}).encode() + b"\n")
    for content in small.values():
        stream.write(content)
    with mmap.mmap(copy.buffer, record.size, access=mmap.ACCESS_READ) as memory, memoryview(memory) as view:
        whole = digest()
        for begin in range(0, record.size, BLOCK):
            with view[begin : begin + BLOCK] as block:
                whole.update(block)
                stream.write(block)
                stream.write(whole.digest())
    stream.write(bytes([copy.step == record.step]))


@dataclass(frozen=True)
class Fetched:
    """A part that came from another node, whole and as it was there."""

    rank: int
    copy: MemoryCopy
    step: int


def fetch(peer: MemoryPeer, key: str, attempt: int, ranks: Mapping[int, int], *, exact: bool) -> list[Fetched]:
    """The parts of these ranks at these steps or, without `exact`, newer ones. Raises `OSError` if they do not come as they are there."""
    parts = []
    with socket.create_connection((peer.address, peer.port), ANSWER_SECONDS) as connection:
        connection.settimeout(ANSWER_SECONDS)
        with connection.makefile("rwb") as stream:
            request = {
                "key": key,
                "attempt": attempt,
                "ranks": {str(rank): step for rank, step in ranks.items()},
                "exact": exact,
            }
            stream.write(json.dumps(request).encode() + b"\n")
            stream.flush()
            while (line := stream.readline(LINE_BYTES)).strip():
                if part := _received(stream, json.loads(line)):
                    parts.append(part)
            if not line:
                raise ConnectionError(f"the agent at {peer.address} ended the connection")
    return parts


def _received(stream: Any, head: Any) -> Fetched | None:
    record = from_dict(MemoryRecord, head["record"])
    small = {name: _exactly(stream, size) for name, size in record.small.items()}
    if record.size > granted_memory()[1]:
        raise OSError(f"no memory for a copy of {record.size / 1e6:,.0f} MB")
    buffer, whole = os.memfd_create("dtrain-copy", os.MFD_CLOEXEC), digest()
    try:
        os.posix_fallocate(buffer, 0, record.size)
        with mmap.mmap(buffer, record.size) as memory, memoryview(memory) as view:
            for begin in range(0, record.size, BLOCK):
                with view[begin : begin + BLOCK] as block:
                    _into(stream, block)
                    whole.update(block)
                    if whole.digest() != _exactly(stream, DIGEST_BYTES):
                        raise OSError("what came of an in-memory checkpoint is not what was sent")
        if _exactly(stream, 1) != b"\1":
            os.close(buffer)
            return None
    except BaseException:
        with suppress(OSError):
            os.close(buffer)
        raise
    return Fetched(int(head["rank"]), copied(record, small, buffer, whole.digest()), record.step)


def _exactly(stream: Any, size: int) -> bytes:
    data: bytes = stream.read(size)
    if len(data) < size:
        raise ConnectionError("the other agent ended the connection")
    return data


def _into(stream: Any, block: memoryview) -> None:
    done = 0
    while done < len(block):
        count = stream.readinto(block[done:])
        if not count:
            raise ConnectionError("the other agent ended the connection")
        done += count


class PartnerCopies:
    """Keeps copies of another node's parts up to date, in a thread, for one attempt."""

    def __init__(
        self, peer: MemoryPeer, key: str, attempt: int, copies: MemoryCopies, warn: Callable[[str], None]
    ) -> None:
        self._peer = peer
        self._key = key
        self._attempt = attempt
        self._copies = copies
        self._warn = warn
        self._over = threading.Event()
        threading.Thread(target=self._work, name="dtrain-memory-partner", daemon=True).start()

    def stop(self) -> None:
        """Start no other copy."""
        self._over.set()

    def _work(self) -> None:
        have: dict[int, int] = dict.fromkeys(self._peer.ranks, -1)
        pause = ASK_SECONDS
        while not self._over.wait(pause):
            began = time.monotonic()
            try:
                parts = fetch(self._peer, self._key, self._attempt, have, exact=False)
            except ConnectionError:
                continue  # a node that is lost; whoever finds that out ends the attempt
            except (OSError, ValueError) as error:
                self._warn(f"no copies of the in-memory checkpoints of {self._peer.address} are kept: {error}")
                return
            for part in parts:
                self._copies.add(self._attempt, part.rank, part.copy, PARTNER_COPIES)
                have[part.rank] = part.step
            pause = max(ASK_SECONDS, QUIET_SHARE * (time.monotonic() - began))


def all_parts(copies: MemoryCopies, memory: MemoryCheckpoint, key: str) -> dict[int, MemoryCopy]:
    """Every rank's part, rank → copy, from this node or from those that have it. Raises `OSError`."""
    found: dict[int, MemoryCopy] = {}
    for peer in memory.peers:
        own = {rank: copies.steps(memory.attempt, rank).get(memory.step) for rank in peer.ranks}
        found |= {rank: copy for rank, copy in own.items() if copy}
        missing = {rank: memory.step for rank, copy in own.items() if not copy}
        if not missing:
            continue
        fetched = fetch(peer, key, memory.attempt, missing, exact=True)
        if len(fetched) < len(missing):
            raise OSError(f"it is not at {peer.address} any more")
        for part in fetched:
            copies.add(memory.attempt, part.rank, part.copy, PARTNER_COPIES)
            found[part.rank] = part.copy
    return found
