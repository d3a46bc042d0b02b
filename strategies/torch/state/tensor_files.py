"""Tensors that lie in files, read one by one when they are asked for, or by the rows that are wanted.

Importing this module imports no framework.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from dtrain.checkpoint.tensor_file import DTYPES, TensorEntry, entries_of, laid_out
from dtrain.common.errors import UserError

CHUNK_BYTES = 16 << 20
"""Read from a file at a time."""


class Piece(NamedTuple):
    """A part of a tensor in a file."""

    file: Path
    begin: int
    length: int
    """In bytes."""
    offset: Sequence[int]
    """Where the part begins in the tensor."""
    shape: Sequence[int]


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies."""

    dtype: Any
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


class TensorFiles(Mapping[str, Any]):
    """Name → tensor. One in a single piece is a view of its file, which takes memory where it was read; of several, a copy."""

    def __init__(self, stored: Mapping[str, StoredTensor], values: Mapping[str, Any] | None = None) -> None:
        self._stored = dict(stored)
        self._values = dict(values or {})
        """What is no tensor."""
        self._files: dict[Path, MappedFile] = {}

    def __iter__(self) -> Iterator[str]:
        return iter((*self._stored, *self._values))

    def __contains__(self, name: object) -> bool:
        return name in self._stored or name in self._values

    def __len__(self) -> int:
        return len(self._stored) + len(self._values)

    def __getitem__(self, name: str) -> Any:
        import torch

        if name in self._values:
            return self._values[name]
        stored = self._stored[name]
        if len(stored.pieces) == 1:
            return self._part(stored.pieces[0], stored.dtype)
        whole = torch.empty(stored.shape, dtype=stored.dtype)
        self.read_part(name, whole, (0,) * whole.ndim)
        return whole

    def read_part(self, name: str, into: Any, offset: Sequence[int]) -> None:
        """Fill a tensor with the part of a stored one that begins at `offset` and has its shape; only the rows of that part are read."""
        stored = self._stored[name]
        ends = [begin + size for begin, size in zip(offset, into.shape, strict=True)]
        for piece in stored.pieces:
            room, starts = into, []
            for dimension, (begin, size) in enumerate(zip(piece.offset, piece.shape, strict=True)):
                first, end = max(begin, offset[dimension]), min(begin + size, ends[dimension])
                room = room.narrow(dimension, first - offset[dimension], end - first) if first < end else room[:0]
                starts.append(first - begin)
                if not room.numel():
                    break
            if room.numel():
                with open(piece.file, "rb", buffering=0) as file:
                    read_rows(file.fileno(), piece.begin, stored.dtype, piece.shape, room, starts)

    def in_files(self, names: Collection[str]) -> TensorFiles:
        """Those of these names that lie in files."""
        return TensorFiles({name: one for name, one in self._stored.items() if name in names})

    def states(self) -> dict[Path, tuple[int, int]]:
        """Size and time of the last change (ns) of each file; raises `OSError` for one that is not there."""
        files = {piece.file for one in self._stored.values() for piece in one.pieces}
        return {file: (found.st_size, found.st_mtime_ns) for file in files for found in (file.stat(),)}

    def empty(self) -> dict[str, Any]:
        """Name → tensor of its type and shape, without content where that lies in a file."""
        import torch

        found = {name: torch.empty(one.shape, dtype=one.dtype, device="meta") for name, one in self._stored.items()}
        return found | self._values

    def leave(self, name: str) -> None:
        """Give back the memory of a tensor that was read and is not used any more."""
        for piece in self._stored[name].pieces if name in self._stored else ():
            if piece.file in self._files:
                self._files[piece.file].leave(piece.begin, piece.length)

    def without(self, prefix: str) -> TensorFiles:
        """The same tensors under names that do not begin so."""
        parts = (
            {name.removeprefix(prefix): one for name, one in part.items()} for part in (self._stored, self._values)
        )
        return TensorFiles(*parts)

    def joined(self, other: TensorFiles) -> TensorFiles:
        """These and others."""
        return TensorFiles(self._stored | other._stored, self._values | other._values)

    def _part(self, piece: Piece, dtype: Any) -> Any:
        if piece.file not in self._files:
            self._files[piece.file] = MappedFile(piece.file)
        content = self._files[piece.file].part(piece.begin, piece.length)
        if piece.begin % dtype.itemsize:
            content = content.clone()  # files are laid out for types of 8 bytes at most
        return content.view(dtype).view(tuple(piece.shape))


def read_rows(file: int, begin: int, dtype: Any, shape: Sequence[int], into: Any, starts: Sequence[int]) -> None:
    """Fill a tensor with the part that begins at `starts` of one of this shape, whose bytes begin at `begin` of an open file."""
    import torch

    if not into.numel():
        return
    if not shape:
        shape, into, starts = (1,), into.view(1), (0,)
    row = dtype.itemsize * math.prod(shape[1:])
    most = max(1, CHUNK_BYTES // row)
    as_stored = into.dtype == dtype and into.device.type == "cpu" and into.is_contiguous()
    direct = as_stored and tuple(into.shape[1:]) == tuple(shape[1:])
    for first in range(0, into.shape[0], most):
        room = into.narrow(0, first, min(most, into.shape[0] - first))
        chunk = room if direct else torch.empty((room.shape[0], *shape[1:]), dtype=dtype)
        _read(file, chunk.view(-1).view(torch.uint8).numpy().data, begin + (starts[0] + first) * row)
        if not direct:
            for dimension in range(1, len(shape)):
                chunk = chunk.narrow(dimension, starts[dimension], room.shape[dimension])
            room.copy_(chunk)


def _read(file: int, into: memoryview, begin: int) -> None:
    """Fill this memory from a place in an open file."""
    done = 0
    while done < len(into):
        count = os.preadv(file, [into[done:]], begin + done)
        if not count:
            raise OSError(errno.EIO, "a file of tensors was cut short")
        done += count


def of_file(path: Path) -> TensorFiles:
    """The tensors of a safetensors file; raises `ValueError` if it is none."""
    import torch

    types = {short: getattr(torch, name) for name, short in DTYPES.items() if hasattr(torch, name)}
    return TensorFiles({
        entry.name: StoredTensor(
            types[entry.dtype], tuple(entry.shape),
            (Piece(path, entry.begin, entry.length, (0,) * len(entry.shape), entry.shape),),
        )
        for entry in entries_of(path)
    })  # fmt: skip


def of_checkpoint(folder: Path, metadata: Any, names: Mapping[str, str], values: Mapping[str, Any]) -> TensorFiles:
    """Tensors of a checkpoint by other names (name in the checkpoint → name), beside values that are no tensors."""
    pieces: dict[str, list[Piece]] = {name: [] for name in names}
    for index, place in metadata.storage_data.items():
        if index.fqn in pieces:
            entry = metadata.state_dict_metadata[index.fqn]
            offset = tuple(index.offset or (0,) * len(entry.size))
            shape = next(tuple(chunk.sizes) for chunk in entry.chunks if tuple(chunk.offsets) == offset)
            pieces[index.fqn].append(Piece(folder / place.relative_path, place.offset, place.length, offset, shape))
    stored = {}
    for name, found in pieces.items():
        entry = metadata.state_dict_metadata[name]
        stored[names[name]] = StoredTensor(entry.properties.dtype, tuple(entry.size), tuple(found))
    return TensorFiles(stored, values)


def shapes(weights: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name → shape of weights, without reading those that lie in files; () for what is no tensor."""
    found = weights.empty() if isinstance(weights, TensorFiles) else weights
    return {name: tuple(value.shape) if hasattr(value, "shape") else () for name, value in found.items()}


class MappedFile:
    """A file in memory, which takes that only where it was read and not left again."""

    def __init__(self, path: Path) -> None:
        self._map: mmap.mmap | None = None
        if path.stat().st_size:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def part(self, begin: int, length: int) -> Any:
        """Bytes of the file, not copied, as a tensor with a storage of its own, so that `torch.save` writes no others."""
        import torch

        if not length or self._map is None:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self._map, dtype=torch.uint8, count=length, offset=begin)

    def leave(self, begin: int, length: int) -> None:
        """Give back the memory of whole pages in this part; changes made there are lost."""
        begin, end = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, (begin + length) // mmap.PAGESIZE * mmap.PAGESIZE
        if self._map is not None and end > begin:
            self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def write(
    path: Path, weights: Mapping[str, Any], tensors: Mapping[str, Any], metadata: Mapping[str, str],
    sources: Mapping[str, str] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Write a safetensors file of weights one by one; `tensors` have their types and shapes, `sources` the names that they have in `weights`
    if those are others."""
    import torch

    entries = []
    for name, tensor in tensors.items():
        kind = DTYPES.get(str(tensor.dtype).removeprefix("torch."))
        if kind is None:
            raise UserError(
                f"{name} has the type {tensor.dtype}, which a safetensors file does not know", "Write a .pt file."
            )
        entries.append(TensorEntry(name, kind, tuple(tensor.shape)))
    layout = laid_out(entries, {"format": "pt", **metadata})
    with open(path, "wb") as file:
        file.write(layout.header)
        for entry in layout.entries:
            source = sources.get(entry.name, entry.name)
            content = weights[source].detach().cpu().to(tensors[entry.name].dtype).contiguous()
            file.write(content.reshape(-1).view(torch.uint8).numpy().data)
            if isinstance(weights, TensorFiles):
                weights.leave(source)
