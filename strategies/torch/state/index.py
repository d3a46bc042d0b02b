"""The two JSON files beside the tensors of a checkpoint: which part of which tensor is where, and the values that are no tensors.

Importing this module imports no framework.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtrain.common import plain_values
from dtrain.common.errors import CheckpointError
from dtrain.common.files import is_safe_name

from ...unpickling import refused

INDEX = "index.json"
VALUES = "values.json"
FORMAT = 1


def index_of(metadata: Any, places: Mapping[Any, Any]) -> bytes:
    """Return the index of a checkpoint from the plan of `torch.distributed.checkpoint` and the places of the parts."""
    tensors: dict[str, Any] = {}
    for name, entry in metadata.state_dict_metadata.items():
        if hasattr(entry, "size"):
            dtype = str(entry.properties.dtype).removeprefix("torch.")
            tensors[name] = {"dtype": dtype, "shape": list(entry.size), "parts": []}
    shapes = {
        (name, tuple(chunk.offsets)): list(chunk.sizes)
        for name, entry in metadata.state_dict_metadata.items() if hasattr(entry, "size")
        for chunk in entry.chunks
    }  # fmt: skip
    for place, stored in places.items():
        offset = tuple(place.offset) if place.offset else (0,) * len(tensors[place.fqn]["shape"])
        part = [list(offset), shapes[place.fqn, offset], stored.relative_path, stored.offset, stored.length]
        tensors[place.fqn]["parts"].append(part)
    paths = {name: list(path) for name, path in metadata.planner_data.items()}
    return json.dumps({"format": FORMAT, "tensors": tensors, "paths": paths}, separators=(",", ":")).encode()


def values_of(values: Mapping[str, Any]) -> bytes:
    """Return the file of these values, name → value as `plain_values.encoded` makes it."""
    return json.dumps({"format": FORMAT, "values": values}, separators=(",", ":"), allow_nan=False).encode()


def read_index(folder: Path) -> Any:
    """Return the index as metadata of `torch.distributed.checkpoint`; raises `CheckpointError` if it is damaged."""
    import torch
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        BytesStorageMetadata,
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    body = _read(folder, INDEX)
    try:
        entries: dict[str, Any] = {
            name: BytesStorageMetadata() for name in body["paths"] if name not in body["tensors"]
        }
        places: dict[Any, Any] = {MetadataIndex(name): _StorageInfo(VALUES, 0, 0) for name in entries}
        for name, tensor in body["tensors"].items():
            dtype = getattr(torch, tensor["dtype"])
            if not isinstance(dtype, torch.dtype):
                raise TypeError(f"{tensor['dtype']} is no type of tensors")
            chunks = []
            for offset, shape, file, begin, length in tensor["parts"]:
                if not is_safe_name(file):
                    raise refused(folder, f"the file {file!r}")
                chunks.append(ChunkStorageMetadata(torch.Size(offset), torch.Size(shape)))
                places[MetadataIndex(name, offset)] = _StorageInfo(file, begin, length)
            entries[name] = TensorStorageMetadata(TensorProperties(dtype), torch.Size(tensor["shape"]), chunks)
        paths = {name: tuple(path) for name, path in body["paths"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(folder, INDEX, error) from None
    return Metadata(entries, planner_data=paths, storage_data=places)


def read_values(folder: Path) -> dict[str, Any]:
    """Return the values that are no tensors by their names; raises `CheckpointError` if the file is damaged."""
    body = _read(folder, VALUES)
    try:
        return {name: plain_values.decoded(value) for name, value in body["values"].items()}
    except plain_values.Unknown as error:
        raise refused(folder, error) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(folder, VALUES, error) from None


def _read(folder: Path, name: str) -> Any:
    try:
        body = json.loads((folder / name).read_bytes())
        number = body["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(folder, name, error) from None
    if number != FORMAT:
        raise CheckpointError(
            f"{name} of the checkpoint {folder.name} has the format {number}, and this dtrain reads {FORMAT}",
            "A newer version of dtrain wrote it: update.",
        )
    return body


def _damaged(folder: Path, name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{name} of the checkpoint {folder.name} cannot be read: {type(error).__name__}: {error}", "Take another one."
    )
