"""Whether two checkpoints hold the same tensors to the last bit, however they are spread over files. No framework is needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dtrain.checkpoint.tensor_file import ITEM_BYTES, SUFFIX, TensorEntry, entries_of
from dtrain.common.lazy_dataclass import dataclass

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class TensorDifference:
    """The first tensor that differs."""

    name: str
    text: str
    """How."""


@dataclass(frozen=True)
class _Piece:
    """A part of a tensor in a file; a whole tensor begins at zeros."""

    file: Path
    entry: TensorEntry
    offset: tuple[int, ...]


def first_difference(one: Path, other: Path) -> TensorDifference | None:
    """The first tensor, by name, in which the checkpoints in these folders differ; None if there is none. Raises `OSError`, and
    `ValueError` for a file that is damaged."""
    mine, theirs = _tensors(one), _tensors(other)
    for name in sorted(mine.keys() | theirs.keys()):
        if name not in mine or name not in theirs:
            return TensorDifference(name, f"is only in {(one if name in mine else other).name}")
        if text := _difference(mine[name], theirs[name]):
            return TensorDifference(name, text)
    return None


def _tensors(folder: Path) -> Mapping[str, Sequence[_Piece]]:
    found: dict[str, list[_Piece]] = defaultdict(list)
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        for entry in entries_of(path):
            name, _, at = entry.name.partition("@")
            offset = tuple(map(int, at.split(","))) if at else (0,) * len(entry.shape)
            found[name].append(_Piece(path, entry, offset))
    return found


def _difference(mine: Sequence[_Piece], theirs: Sequence[_Piece]) -> str:
    import numpy as np

    shapes = _shape(mine), _shape(theirs)
    if shapes[0] != shapes[1]:
        return f"has the shape {list(shapes[0])} and {list(shapes[1])}"
    if mine[0].entry.dtype != theirs[0].entry.dtype:
        return f"is {mine[0].entry.dtype} and {theirs[0].entry.dtype}"
    first, second = _whole(mine, shapes[0]), _whole(theirs, shapes[0])
    unequal = (first != second).any(axis=-1)
    count = int(unequal.sum())
    if not count:
        return ""
    place = tuple(int(part[0]) for part in np.nonzero(unequal)) if unequal.ndim else ()
    return f"differs in {count:,} of {unequal.size:,} values" + (f", the first at {list(place)}" if place else "")


def _shape(pieces: Sequence[_Piece]) -> tuple[int, ...]:
    ends = [[begin + length for begin, length in zip(one.offset, one.entry.shape, strict=True)] for one in pieces]
    return tuple(map(max, zip(*ends, strict=True)))


def _whole(pieces: Sequence[_Piece], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The bytes of a tensor, with one dimension more: the bytes of a value."""
    import numpy as np

    size = ITEM_BYTES[pieces[0].entry.dtype]
    whole = np.zeros((*shape, size), np.uint8)
    for piece, data in _read(pieces):
        place = tuple(
            slice(begin, begin + length) for begin, length in zip(piece.offset, piece.entry.shape, strict=True)
        )
        whole[place] = data.reshape(*piece.entry.shape, size)
    return whole


def _read(pieces: Sequence[_Piece]) -> Iterator[tuple[_Piece, npt.NDArray[np.uint8]]]:
    import numpy as np

    for piece in pieces:
        data = np.fromfile(piece.file, np.uint8, piece.entry.length, offset=piece.entry.begin)
        if len(data) != piece.entry.length:
            raise ValueError(f"{piece.file} was cut short")
        yield piece, data
