"""`torch.distributed.checkpoint`'s reader and planner for the files of `snapshot`: the rows that are wanted are read, and no file
runs a program. Also reads what older versions pickled, as far as it names nothing but values. Importing this module imports no
framework.
"""

from __future__ import annotations

import io
import os
import pickle
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dtrain.api.training_backend import Fetch, nothing_to_fetch
from dtrain.common.files import is_safe_name

from ...unpickling import PICKLE, loads, refused
from .index import INDEX, VALUES, read_index, read_values
from .tensor_files import read_rows

METADATA = ".metadata"
"""Older versions wrote it instead of the index."""
ARCHIVE = b"PK\3\4"
PROGRAM = ("code/", "constants.pkl")
"""How the names begin in an archive of TorchScript, which is a program, also after the folder that all names are in."""


def reader(folder: Path, fetch: Fetch = nothing_to_fetch) -> Any:
    """A `FileSystemReader` of this checkpoint, which fetches the files that it is about to read; reading its metadata raises
    `CheckpointError` for what is not on the list."""
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import StorageMeta
    from torch.distributed.checkpoint.planner import LoadItemType

    class Reader(dcp.FileSystemReader):  # type: ignore[misc,unused-ignore]
        def read_metadata(self, *arguments: Any, **named: Any) -> Any:
            metadata = read_index(folder) if (folder / INDEX).exists() else _pickled_metadata(folder)
            if getattr(metadata, "storage_meta", None) is None:
                metadata.storage_meta = StorageMeta()
            metadata.storage_meta.load_id = self.load_id
            self._tensors = metadata.state_dict_metadata
            return metadata

        def read_data(self, plan: Any, planner: Any) -> Any:
            names = sorted({self.storage_data[item.storage_index].relative_path for item in plan.items})
            fetch(folder, names)
            with ExitStack() as stack:
                files = {name: _opened(folder, name, stack) for name in names}
                for item in plan.items:
                    place = self.storage_data[item.storage_index]
                    self._read(item, files[place.relative_path], place, planner)
            done: Any = torch.futures.Future()
            done.set_result(None)
            return done

        def _read(self, item: Any, file: Any, place: Any, planner: Any) -> None:
            if item.type == LoadItemType.BYTE_IO and isinstance(file, dict):
                planner.load_value(item, file[item.storage_index.fqn])
                return
            if item.type == LoadItemType.BYTE_IO:
                planner.load_value(item, _unpickled(os.pread(file, place.length, place.offset), folder))
                return
            entry = self._tensors[item.storage_index.fqn]
            offset = item.storage_index.offset or torch.Size([0] * len(entry.size))
            shape = next(chunk.sizes for chunk in entry.chunks if tuple(chunk.offsets) == tuple(offset))
            wanted = planner.resolve_tensor(item).detach()
            read_rows(file, place.offset, entry.properties.dtype, shape, wanted, item.storage_offsets)
            planner.commit_tensor(item, wanted)

    return Reader(folder)


def _opened(folder: Path, name: str, stack: ExitStack) -> Any:
    """The values of the file that has them, or the number of another one, which is open until the stack ends."""
    return read_values(folder) if name == VALUES else stack.enter_context(open(folder / name, "rb")).fileno()


def planner(folder: Path) -> Any:
    """A `DefaultLoadPlanner` that takes the values which are no tensors as `reader` has read them."""
    from torch.distributed.checkpoint import DefaultLoadPlanner
    from torch.distributed.checkpoint._nested_dict import set_element  # type: ignore[attr-defined,unused-ignore]

    class Planner(DefaultLoadPlanner):  # type: ignore[misc,unused-ignore]
        def load_value(self, read_item: Any, value: Any) -> None:
            set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], value)

        def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
            raise refused(folder, "bytes that somebody else's reader has read")

    return Planner()


def _pickled_metadata(folder: Path) -> Any:
    metadata = loads((folder / METADATA).read_bytes(), folder)
    for stored in metadata.storage_data.values():
        if not is_safe_name(stored.relative_path):
            raise refused(folder, f"the file {stored.relative_path!r}")
    return metadata


def _unpickled(data: bytes, folder: Path) -> Any:
    """Return a value that an older version wrote with `torch.save`.

    `torch.load` runs an archive of TorchScript, and reads formats of before 1.6 with code of its own: both are refused. The names are
    those that its own parser of archives finds."""
    import torch

    if not data.startswith(ARCHIVE):
        raise refused(folder, "a value in another format")
    try:
        names = torch._C.PyTorchFileReader(io.BytesIO(data)).get_all_records()
    except RuntimeError as error:
        raise refused(folder, f"a value in another format ({str(error).partition(chr(10))[0]})") from None
    if any(name.startswith(PROGRAM) or f"/{start}" in name for name in names for start in PROGRAM):
        raise refused(folder, "a program (TorchScript)")
    try:
        return torch.load(io.BytesIO(data), weights_only=False, pickle_module=PICKLE)
    except pickle.UnpicklingError as error:
        raise refused(folder, error) from None
