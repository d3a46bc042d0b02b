"""Reading the pickles in checkpoints of older versions: a file can name only the classes listed here, since a pickle can run any
program. Importing this module imports no framework.
"""

from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dtrain.common.errors import CheckpointError

CLASSES = {
    "builtins": {"set", "frozenset", "complex", "bytearray", "slice", "range"},
    "collections": {"OrderedDict", "defaultdict", "deque", "Counter"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "numpy": {"dtype", "ndarray"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "numpy.core.numeric": {"_frombuffer"},
    "tensorflow.python.framework.ops": {"convert_to_tensor"},
    "pathlib": {"PosixPath", "PurePosixPath", "Path"},
    "torch": {"Size", "device"},
    "torch._utils": {"_rebuild_tensor_v2"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.serialization": {"_get_layout"},
}  # fmt: skip
"""Module → its classes and functions that a checkpoint may name; besides them, PyTorch's types of numbers and storages."""


class Unpickler(pickle.Unpickler):
    """Builds only what is listed; raises `pickle.UnpicklingError` otherwise."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class that is on the list; raises `pickle.UnpicklingError` for any other."""
        module = (
            "builtins" if module == "__builtin__" else module
        )  # its name in pickle's older protocols, which torch.save uses
        if (module, name) == ("_codecs", "encode"):
            return _bytes_of
        if name in CLASSES.get(module, ()) or (module == "torch" and _is_number_type(name)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def _bytes_of(text: str, encoding: str) -> bytes:
    """Bytes as pickle's older protocols have them, in the only encoding that they use."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"_codecs.encode({encoding!r})")
    return text.encode("latin1")


def _is_number_type(name: str) -> bool:
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return False
    return isinstance(getattr(torch, name, None), torch.dtype) or (name.endswith("Storage") and name.isidentifier())


def loads(data: bytes, folder: Path) -> Any:
    """Load a file of a checkpoint; raises `CheckpointError` for a class that is not on the list."""
    try:
        return Unpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError as error:
        raise refused(folder, error) from None


PICKLE = SimpleNamespace(
    __name__=__name__, Unpickler=Unpickler, load=lambda file, **named: Unpickler(file, **named).load()
)
"""A module for `torch.load(pickle_module=…)`."""


def refused(folder: Path, what: object) -> CheckpointError:
    """The error for a file that names what dtrain does not write."""
    return CheckpointError(
        f"the checkpoint {folder.name} names {what}, which dtrain does not write: it is not loaded",
        "Someone else has changed it; go on from another one, or begin a new run.",
    )
