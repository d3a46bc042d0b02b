"""`torch.distributed.checkpoint`'s reader and planner, which unpickle only what checkpoints hold; its own unpickle whatever a
file says. Importing this module imports no framework.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from dtrain.common.files import is_safe_name

from ..unpickling import PICKLE, loads, refused


def reader(folder: Path) -> Any:
    """A `FileSystemReader` of this checkpoint; reading its metadata raises `CheckpointError` for what is not on the list."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import StorageMeta

    class Reader(dcp.FileSystemReader):  # type: ignore[misc,unused-ignore]
        def read_metadata(self, *arguments: Any, **named: Any) -> Any:
            metadata = loads((folder / ".metadata").read_bytes(), folder)
            for stored in metadata.storage_data.values():
                if not is_safe_name(stored.relative_path):
                    raise refused(folder, f"the file {stored.relative_path!r}")
            if getattr(metadata, "storage_meta", None) is None:
                metadata.storage_meta = StorageMeta()
            metadata.storage_meta.load_id = self.load_id
            return metadata

    return Reader(folder)


def planner(folder: Path) -> Any:
    """A `DefaultLoadPlanner` that reads the values which are no tensors."""
    import torch
    from torch.distributed.checkpoint import DefaultLoadPlanner
    from torch.distributed.checkpoint._nested_dict import set_element  # type: ignore[attr-defined,unused-ignore]

    class Planner(DefaultLoadPlanner):  # type: ignore[misc,unused-ignore]
        def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
            try:
                found = torch.load(value, weights_only=False, pickle_module=PICKLE)
            except pickle.UnpicklingError as error:
                raise refused(folder, error) from None
            set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], found)

    return Planner()
