"""The record beside a kept buffer in shared memory: which snapshot is in the buffer, and whether it is complete.

The agent of the node has the same memory open, so it can read the record when the worker is dead. Layout of the file, in bytes: 8 for the
step plus 1 (0: the buffer is being written), 32 for the BLAKE3 digest of the buffer (zeros: not known), 8 for the length of the JSON, the
JSON of `MemoryRecord`, then the small files one after the other. Numbers are little-endian.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import field

from dtrain.common.files import Descriptor
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import JsonObject, checked, from_dict, to_dict

WORD = 8
"""Bytes of a number."""
DIGEST_BYTES = 32
UNKNOWN = bytes(DIGEST_BYTES)
BODY = WORD + DIGEST_BYTES
"""Where the length of the JSON is."""

FORMAT = 2
"""Format number of a record; one of another is none."""


@dataclass(frozen=True)
class MemoryRecord:
    """One rank's part of an in-memory checkpoint."""

    step: int
    """Steps that are done in it."""
    rank: int
    file: str
    """Name in a checkpoint folder of what is in the buffer; '' if this rank has no tensors."""
    size: int = 0
    """Size of that file in bytes."""
    weights: Sequence[tuple[str, int, int, str]] = ()
    """The model's tensors in it; see `file_writer.WeightsRange`."""
    small: Mapping[str, int] = field(default_factory=dict)
    """Name → bytes of the files that follow the record."""
    format: int = FORMAT


class RecordFile:
    """The memory file of one record; a snapshot is valid from `complete` to the next `begin`."""

    def __init__(self) -> None:
        self._file = Descriptor(os.memfd_create("dtrain-record", os.MFD_CLOEXEC))

    @property
    def fd(self) -> int:
        """The descriptor; raises `OSError` if user code has closed it."""
        return self._file.number

    def begin(self) -> None:
        """The buffer is about to be written to."""
        os.pwrite(self.fd, bytes(WORD), 0)

    def complete(self, record: MemoryRecord, small: Mapping[str, bytes]) -> None:
        """The buffer holds the whole snapshot."""
        body = json.dumps(to_dict(record)).encode()
        os.pwrite(self.fd, b"".join([UNKNOWN, len(body).to_bytes(WORD, "little"), body, *small.values()]), WORD)
        os.pwrite(self.fd, (record.step + 1).to_bytes(WORD, "little"), 0)

    def seal(self, digest: bytes) -> None:
        """The digest of the buffer, so that nobody takes what was written to it by mistake."""
        os.pwrite(self.fd, digest, WORD)

    def close(self) -> None:
        """Give the memory back, if nobody else has it open."""
        self._file.close()


def step_in(fd: int) -> int | None:
    """Step of the complete snapshot in the buffer; None if there is none. A buffer that is written again gets a later step."""
    word = int.from_bytes(os.pread(fd, WORD, 0), "little")
    return word - 1 if word else None


def sealed(fd: int) -> bytes | None:
    """The digest of the buffer, if it is known."""
    digest = os.pread(fd, DIGEST_BYTES, WORD)
    return None if digest in (b"", UNKNOWN) else digest


def decoded(body: JsonObject) -> MemoryRecord:
    """The record of such an object; raises `ValueError` if it is none, or of another format."""
    try:
        record = checked(from_dict(MemoryRecord, body))
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"no record of an in-memory checkpoint: {error}") from None
    if record.format != FORMAT:
        raise ValueError(f"a record of the format {record.format}, and this dtrain reads {FORMAT}")
    return record


def read(fd: int) -> tuple[MemoryRecord, dict[str, bytes]] | None:
    """The record of a complete snapshot and its small files; None if there is none that this version of dtrain wrote."""
    before = step_in(fd)
    if before is None:
        return None
    data = os.pread(fd, os.fstat(fd).st_size, BODY)
    if step_in(fd) != before:
        return None
    length = int.from_bytes(data[:WORD], "little")
    try:
        record = decoded(json.loads(data[WORD : WORD + length]))
    except ValueError:
        return None
    small, end = {}, WORD + length
    for name, size in record.small.items():
        small[name] = data[end : end + size]
        end += size
    return record, small
