"""Logs, ledgers and profiles of nodes without the run folder, kept in the real one; and long events that came in fragments."""

from __future__ import annotations

import base64
import os
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from dtrain.api.protocol import AgentEvent, FileAppended, Fragment, decode
from dtrain.common.files import PRIVATE_FOLDER, is_safe_name
from dtrain.common.lazy_dataclass import dataclass
from dtrain.record import log_retention
from dtrain.record.folder import RunDir
from dtrain.record.log_times import LogTimes

MOST_WAITING_BYTES = 1 << 26
"""Of logs that wait for room on a full disk; what comes beyond is left out. Ledgers, which are small, all wait."""


@dataclass
class _Piece:
    """Bytes that are still to be written to a file."""

    path: Path
    offset: int
    data: bytes


class ReceivedFiles:
    """Puts fragments together and writes what nodes without the run folder send of their files. A full disk keeps pieces waiting, in order
    and whole; what no agent of ours sends is ignored."""

    def __init__(self, run: RunDir, keep_log_bytes: int) -> None:
        self._run = run
        self._keep_log_bytes = keep_log_bytes
        """Bound of each log; 0: everything is kept."""
        self._reassembler = Reassembler()
        self._times: dict[str, LogTimes] = {}
        self._waiting: deque[_Piece] = deque()

    def take(self, node: str, item: Fragment | FileAppended) -> AgentEvent | None:
        """The event that is complete with this item and is no part of a file; None if there is none."""
        try:
            whole = self._reassembler.add(node, item) if isinstance(item, Fragment) else item
            if not isinstance(whole, FileAppended):
                return whole
            self._add(whole)
        except ValueError:  # no Base64, or no message
            return None
        self.write()
        return None

    def write(self) -> None:
        """Write what waits, as far as there is room."""
        with suppress(OSError):
            while self._waiting:
                self._write(self._waiting[0])
                self._waiting.popleft()

    def _add(self, appended: FileAppended) -> None:
        path = self._run.path / appended.name
        profile = is_safe_name(appended.name) and path.is_relative_to(self._run.profiles)
        if not profile and path.parent not in (self._run.logs, self._run.ledgers):
            return
        full = sum(len(piece.data) for piece in self._waiting) > MOST_WAITING_BYTES
        if not (full and path.parent == self._run.logs):
            self._waiting.append(_Piece(path, appended.offset, base64.b64decode(appended.data, validate=True)))

    def _write(self, piece: _Piece) -> None:
        """Write a piece, and forget what of it is written. The offset in a ledger or a profile is known, so that what is sent twice
        counts once; a rank's log may come from one node after another. Raises `OSError`."""
        piece.path.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        log = piece.path.parent == self._run.logs
        descriptor = os.open(piece.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_APPEND if log else 0), 0o666)
        try:
            if log:
                self._note_time(piece.path, os.fstat(descriptor).st_size)
            while piece.data:
                count = os.write(descriptor, piece.data) if log else os.pwrite(descriptor, piece.data, piece.offset)
                piece.data, piece.offset = piece.data[count:], piece.offset + count
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if log and self._keep_log_bytes and size > self._keep_log_bytes:
            with suppress(OSError):  # the node says so of its own file
                log_retention.shorten(piece.path, self._keep_log_bytes)

    def _note_time(self, path: Path, size: int) -> None:
        with suppress(OSError):  # a full disk
            self._times.setdefault(path.name, LogTimes(path)).note(size, time.time())


class Reassembler:
    """Puts the fragments of several nodes together."""

    def __init__(self) -> None:
        self._begun: dict[str, list[str]] = {}

    def add(self, node: str, fragment: Fragment) -> AgentEvent | None:
        """The event that is complete with this fragment, or None."""
        if fragment.first:
            self._begun[node] = []
        self._begun.setdefault(node, []).append(fragment.text)
        if not fragment.last:
            return None
        event: AgentEvent = decode("".join(self._begun.pop(node)))[1]
        return event
