"""The layout of a safetensors file: a header in JSON, then the raw bytes of the tensors (github.com/huggingface/safetensors).

It follows from names, types and shapes alone, so a file can be laid out once and filled many times, and read by mapping it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from dtrain.common.lazy_dataclass import dataclass

SUFFIX = ".safetensors"
ALIGNMENT = 64
"""Alignment of the first tensor's bytes in the file. The others are aligned to the size of their type."""
ITEM_BYTES: Mapping[str, int] = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E5M2": 1, "F8_E4M3": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Name of a type in the header → bytes of a value."""

DTYPES: Mapping[str, str] = {
    "float64": "F64", "int64": "I64", "uint64": "U64", "complex64": "C64", "float32": "F32", "int32": "I32",
    "uint32": "U32", "float16": "F16", "bfloat16": "BF16", "int16": "I16", "uint16": "U16", "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""As torch and numpy call a type → as the header does."""


@dataclass(frozen=True)
class TensorEntry:
    """A tensor's place in a file."""

    name: str
    dtype: str
    """A key of `ITEM_BYTES`."""
    shape: tuple[int, ...]
    begin: int = 0
    """Offset of its bytes in the file."""

    @property
    def length(self) -> int:
        """Length in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class TensorFile:
    """A file of tensors before their bytes are there."""

    header: bytes
    entries: tuple[TensorEntry, ...]
    """Entries in the order of the file."""

    @property
    def size(self) -> int:
        """Size of the whole file in bytes."""
        last = self.entries[-1] if self.entries else None
        return last.begin + last.length if last else len(self.header)


def laid_out(tensors: Iterable[TensorEntry], metadata: Mapping[str, str] | None = None) -> TensorFile:
    """The file of these tensors, those of large values first, which aligns all of them without holes."""
    ordered = sorted(tensors, key=lambda tensor: (-ITEM_BYTES[tensor.dtype], tensor.name))
    ends = list(itertools.accumulate((tensor.length for tensor in ordered), initial=0))
    described: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    described |= {
        tensor.name: {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        for tensor, offsets in zip(ordered, itertools.pairwise(ends), strict=True)
    }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    placed = [
        dataclasses.replace(tensor, begin=len(header) + begin) for tensor, begin in zip(ordered, ends, strict=False)
    ]
    return TensorFile(header, tuple(placed))


def entries_of(path: Path) -> list[TensorEntry]:
    """Read the header of a file of tensors; raises `ValueError` if it is none."""
    with open(path, "rb") as file:
        length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
        if length > size:
            raise ValueError(f"{path} is no file of tensors, or was cut short")
        described = json.loads(file.read(length))
    try:
        found = [
            TensorEntry(name, one["dtype"], tuple(one["shape"]), 8 + length + one["data_offsets"][0])
            for name, one in described.items()
            if name != "__metadata__"
        ]
        whole = all(entry.begin + entry.length <= size for entry in found)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no file of tensors: {type(error).__name__} {error}") from None
    if not whole:
        raise ValueError(f"{path} was cut short")
    return found
