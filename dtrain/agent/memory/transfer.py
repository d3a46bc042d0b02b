"""Agents give each other their parts of in-memory checkpoints over TCP.

After the handshake, a request is one line of JSON: an attempt, and for each rank the step that the client has or, with `exact`, wants.
For each part that is newer, or has this step, the server answers with a line of JSON (rank and record) and the bytes of the small files,
the tensors in blocks, and one byte: 1 if the buffer was not written to meanwhile. An empty line ends the answer. A seal follows each of
these; that of a block is the seal of the BLAKE3 digest of all blocks so far.
"""

from __future__ import annotations

import hmac
import json
import mmap
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from dtrain.agent.memory.copies import MemoryCopies, MemoryCopy, copied
from dtrain.agent.memory.handshake import PROOF_BYTES, Seals, greet, introduce
from dtrain.api.memory_protocol import MemoryCheckpoint, MemoryPeer
from dtrain.checkpoint.memory_record import decoded
from dtrain.common.files import digest, is_file_name
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.memory import granted_memory
from dtrain.common.serde import to_dict

BLOCK = 1 << 24
LINE_BYTES = 1 << 22
ANSWER_SECONDS = 30.0
"""An agent that sends no byte for this long is taken for dead."""
END = b"\n"
MOST_STRANGERS = 16
"""Connections that have not shown the key yet; beyond them, the oldest is closed."""
ACCEPT_SECONDS = 0.1
"""Pause after a connection that could not be accepted."""
ASK_SECONDS = 0.2
"""Pause between two requests for something newer."""
MOST_PAUSE_SECONDS = 5.0
"""Between two requests to an agent that does not answer."""
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
        self._closed = False
        self._strangers: deque[socket.socket] = deque()
        """Connections that have not shown the key yet, the oldest first."""
        self._socket = socket.create_server((address, 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, name="dtrain-memory-server", daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._socket.close()

    def _serve(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # also for want of descriptors: others close theirs
                time.sleep(ACCEPT_SECONDS)
                continue
            self._strangers.append(connection)
            if len(self._strangers) > MOST_STRANGERS:
                with suppress(OSError, IndexError):
                    self._strangers.popleft().shutdown(socket.SHUT_RDWR)
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError), connection:
            try:
                seals = greet(connection, self._key)
            finally:
                with suppress(ValueError):  # it made room for a newer one
                    self._strangers.remove(connection)
            connection.settimeout(ANSWER_SECONDS)
            with connection.makefile("rwb") as stream:
                request = json.loads(stream.readline(LINE_BYTES))
                for rank, step in request["ranks"].items():
                    found = self._copies.steps(int(request["attempt"]), int(rank))
                    wanted = step if request["exact"] else max(found, default=-1)
                    if wanted in found and (request["exact"] or wanted > step):
                        _send(stream, seals, int(rank), found[wanted])
                stream.write(END + seals.next(END))
                stream.flush()


def _send(stream: Any, seals: Seals, rank: int, copy: MemoryCopy) -> None:
    found = copy.read()
    if found is None:
        return
    record, small = found
    head = b"".join([json.dumps({"rank": rank, "record": to_dict(record)}).encode(), b"\n", *small.values()])
    stream.write(head + seals.next(head))
    with mmap.mmap(copy.buffer, record.size, access=mmap.ACCESS_READ) as memory, memoryview(memory) as view:
        whole = digest()
        for begin in range(0, record.size, BLOCK):
            with view[begin : begin + BLOCK] as block:
                whole.update(block)
                stream.write(block)
                stream.write(seals.next(whole.digest()))
    unchanged = bytes([copy.step == record.step])
    stream.write(unchanged + seals.next(unchanged))


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
        seals = introduce(connection, key)
        connection.settimeout(ANSWER_SECONDS)
        with connection.makefile("rwb") as stream:
            asked = {str(rank): step for rank, step in ranks.items()}
            stream.write(json.dumps({"attempt": attempt, "ranks": asked, "exact": exact}).encode() + b"\n")
            stream.flush()
            while (line := stream.readline(LINE_BYTES)) != END:
                if not line.endswith(b"\n"):
                    raise ConnectionError(f"the agent at {peer.address} ended the connection")
                part = _received(stream, seals, line)
                if part and part.rank in ranks:
                    parts.append(part)
            _check(stream, seals, END)
    return parts


def _received(stream: Any, seals: Seals, line: bytes) -> Fetched | None:
    """A part, of which nothing is kept before its seal was right."""
    try:
        head = json.loads(line)
        record, rank = decoded(head["record"]), int(head["rank"])
        sizes = [record.size, *record.small.values()]
        if not all(map(is_file_name, filter(None, [record.file, *record.small]))) or min(sizes) < 0:
            raise ValueError("a name or a size that no record has")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConnectionError(f"the other agent sent something else than a record: {error}") from None
    if sum(sizes) > granted_memory()[1]:
        raise OSError(f"no memory for a copy of {sum(sizes) / 1e6:,.0f} MB")
    small = {name: _exactly(stream, size) for name, size in record.small.items()}
    _check(stream, seals, b"".join([line, *small.values()]))
    buffer, whole = os.memfd_create("dtrain-copy", os.MFD_CLOEXEC), digest()
    try:
        os.posix_fallocate(buffer, 0, record.size)
        with mmap.mmap(buffer, record.size) as memory, memoryview(memory) as view:
            for begin in range(0, record.size, BLOCK):
                with view[begin : begin + BLOCK] as block:
                    _into(stream, block)
                    whole.update(block)
                    _check(stream, seals, whole.digest())
        unchanged = _exactly(stream, 1)
        _check(stream, seals, unchanged)
        if unchanged != b"\1":
            os.close(buffer)
            return None
    except BaseException:
        with suppress(OSError):
            os.close(buffer)
        raise
    return Fetched(rank, copied(record, small, buffer, whole.digest()), record.step)


def _check(stream: Any, seals: Seals, data: bytes) -> None:
    if not hmac.compare_digest(_exactly(stream, PROOF_BYTES), seals.next(data)):
        raise ConnectionError("what came of an in-memory checkpoint is not what was sent")


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
            except (ConnectionError, TimeoutError):
                # A node that is lost, or whose port somebody else has by now; whoever finds that out ends the attempt.
                pause = min(2 * pause, MOST_PAUSE_SECONDS)
                continue
            except OSError as error:
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
