"""Snapshots of a PyTorch training: each rank copies what it will write into kept shared memory, laid out as a safetensors
file, which a process of its own writes; `index` says what is in which file. Nothing is pickled.

Importing this module imports no framework.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dtrain.api.in_memory import SnapshotPart
from dtrain.api.strategy import RankInfo
from dtrain.api.training_backend import NonFiniteWeights, SnapshotFiles
from dtrain.checkpoint.file_writer import FileWriter, WeightsRange
from dtrain.checkpoint.kept_buffer import KeptBuffer, KeptBuffers
from dtrain.checkpoint.tensor_file import DTYPES, SUFFIX, TensorEntry, TensorFile, laid_out
from dtrain.common import plain_values
from dtrain.common.errors import UserError
from dtrain.common.files import hashed

from .index import INDEX, VALUES, index_of, values_of

BYTES_TYPE = "U8"
"""For types that a file of tensors does not know."""
WEIGHTS = ("model.", "models.")
STEPPED = ("optimizer.", "optimizers.")
"""The state that only `optimizer.step` changes, beside the parameters."""


def file_of(rank: int) -> str:
    """Name of the file that a rank writes its tensors to."""
    return f"__{rank}_0{SUFFIX}"


@dataclass(frozen=True)
class Plan:
    """Who writes what, as long as the state keeps its names, types and shapes."""

    signature: tuple[Any, ...]
    tensors: dict[str, Any]
    """This rank's write items by their names in its file."""
    values: tuple[Any, ...]
    """Write items of the values that are no tensors; of rank 0 alone."""
    file: TensorFile
    index: bytes
    """Index file of the whole checkpoint; of rank 0 alone."""


class Snapshots:
    """Takes snapshots of one training. On a GPU what only `optimizer.step` changes is copied on a side stream, which `wait`
    waits for."""

    def __init__(self, rank_info: RankInfo, group: Any, device: Any) -> None:
        import torch

        self._rank_info = rank_info
        self._group = group
        self._writer = FileWriter()
        self._plan: Plan | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._buffers = KeptBuffers(partial(TensorBuffer, pinned=self._stream is not None))
        self._copied: Any = None
        self._unpinned = ""
        self._told = False

    def remark(self) -> str:
        """Return why copies from the GPU are slower than they could be, once; '' if they are not."""
        if self._told or not self._unpinned:
            return ""
        self._told = True
        return f"the memory for snapshots cannot be pinned ({self._unpinned}): the training stands still for longer at each; see ulimit -l"

    def take(self, state: dict[str, Any], parameters: set[str]) -> TorchSnapshot:
        """Collective. Copy this rank's part of a state; `parameters` are the names in it that must be finite."""
        import torch
        from torch.distributed.checkpoint import DefaultSavePlanner

        self._writer.start()
        planner = DefaultSavePlanner()
        planner.set_up_planner(state, is_coordinator=self._rank_info.rank == 0)
        plan = self._planned(planner)
        buffer = self._buffers.taken(plan.file)
        self._unpinned = self._unpinned or buffer.unpinned
        overlapped: list[tuple[Any, Any]] = []
        with torch.no_grad():
            for entry, room in zip(plan.file.entries, buffer.rooms, strict=True):
                item = plan.tensors[entry.name]
                tensor = planner.resolve_data(item)
                if room.dtype != tensor.dtype:
                    tensor = tensor.contiguous().reshape(-1).view(torch.uint8)
                stepped = item.index.fqn in parameters or item.index.fqn.startswith(STEPPED)
                if self._stream is not None and stepped and tensor.is_cuda:
                    overlapped.append((room, tensor))
                else:
                    room.copy_(tensor, non_blocking=True)
        values = {item.index.fqn: _encoded(item.index.fqn, planner.lookup_object(item.index)) for item in plan.values}
        self._copied = self._copy_beside(overlapped)
        return TorchSnapshot(self._rank_info.rank, plan, buffer, values, parameters, self._writer, self._copied)

    def wait(self) -> None:
        """Have the device wait for the copies under way before it changes what they read; the caller does not wait."""
        if self._copied is not None:
            import torch

            torch.cuda.current_stream().wait_event(self._copied)
            self._copied = None

    def _copy_beside(self, pairs: Sequence[tuple[Any, Any]]) -> Any:
        """Copy on the side stream, after all that was asked of the device so far: the event at the end of it."""
        if self._stream is None:
            return None
        import torch

        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), torch.no_grad():
            for room, tensor in pairs:
                tensor.record_stream(self._stream)
                room.copy_(tensor, non_blocking=True)
        return self._stream.record_event()

    def _planned(self, planner: Any) -> Plan:
        """Collective. The plan of before if the state has the same layout on every rank, otherwise a new one."""
        import torch
        import torch.distributed as dist

        signature = tuple(_signature(name, value) for name, value in planner.state_dict.items())
        changed = torch.tensor([float(self._plan is None or self._plan.signature != signature)])
        dist.all_reduce(changed, group=self._group)
        if changed.item() or self._plan is None:
            self._plan = self._new_plan(planner, signature)
        return self._plan

    def _new_plan(self, planner: Any, signature: tuple[Any, ...]) -> Plan:
        import torch.distributed as dist

        rank, world_size = self._rank_info.rank, self._rank_info.world_size
        local = planner.create_local_plan()
        if rank:
            # Values that are no tensors are the same everywhere: rank 0 writes them.
            local = dataclasses.replace(local, items=[item for item in local.items if item.tensor_data is not None])
        gathered = [None] * world_size if rank == 0 else None
        dist.gather_object(local, gathered, group=self._group)
        index, planned, mine = b"", [None] * world_size, [None]
        if rank == 0:
            planned, metadata = planner.create_global_plan(gathered)
            index = index_of(metadata, _places(planned))
        dist.scatter_object_list(mine, planned, group=self._group)
        final: Any = mine[0]
        tensors = {_entry(item).name: item for item in final.items if item.tensor_data is not None}
        values = tuple(item for item in final.items if item.tensor_data is None)
        return Plan(signature, tensors, values, laid_out(map(_entry, tensors.values())), index)


@dataclass(frozen=True)
class TorchSnapshot:
    """This rank's part of a state, in memory of its own."""

    rank: int
    plan: Plan
    buffer: TensorBuffer
    values: dict[str, Any]
    """The values that are no tensors, as JSON."""
    parameters: set[str]
    """Names of what must be finite."""
    writer: FileWriter
    copied: Any
    """The event at the end of the copies from a GPU; None without one."""

    def write(self, folder: Path) -> SnapshotFiles:
        try:
            self._wait()
            path = folder / file_of(self.rank)
            written = self.writer.write(self.buffer, path, self._weights())
        finally:
            self.buffer.free.set()
        if written.not_finite:
            raise NonFiniteWeights(written.not_finite)
        files = {path.name: (written.size, written.digest)}
        for name, content in self._small_files().items():
            (folder / name).write_bytes(content)
            files[name] = hashed(folder / name)
        return SnapshotFiles(files, written.weights)

    def memory_part(self) -> SnapshotPart:
        self._wait()
        return SnapshotPart(self.buffer, file_of(self.rank), self._weights(), self._small_files())

    def _wait(self) -> None:
        """Until the copies from a GPU are here."""
        if self.copied is not None:
            self.copied.synchronize()

    def _weights(self) -> list[WeightsRange]:
        """The model's tensors in this rank's file."""
        found = []
        for entry in self.plan.file.entries:
            index = self.plan.tensors[entry.name].index
            if index.fqn.startswith(WEIGHTS):
                finite = entry.dtype if index.fqn in self.parameters else ""
                name = f"{index.fqn.partition('.')[2]}|{entry.dtype}|{entry.shape}|{tuple(index.offset or ())}"
                found.append(WeightsRange(name, entry.begin, entry.length, finite))
        return found

    def _small_files(self) -> dict[str, bytes]:
        """Return the index and the values that are no tensors; rank 0's."""
        return {} if self.rank else {VALUES: values_of(self.values), INDEX: self.plan.index}


class TensorBuffer(KeptBuffer):
    """Kept memory with a tensor of torch's for every entry of its file."""

    def __init__(self, file: TensorFile, *, pinned: bool) -> None:
        import torch

        super().__init__(file)
        self._bytes = torch.frombuffer(self.memory, dtype=torch.uint8)
        self.unpinned = ""
        """Why the memory could not be pinned, which copies from the device to it wait for."""
        self._pinned = pinned
        if pinned:
            # Copies from the device are asynchronous only to memory that cannot be moved.
            runtime = torch.cuda.cudart()
            if int(code := runtime.cudaHostRegister(self._bytes.data_ptr(), file.size, 0)):
                self.unpinned, self._pinned = f"cudaHostRegister: {runtime.cudaGetErrorString(code)}", False
                _forget_cuda_error()
        types = {short: getattr(torch, name) for name, short in DTYPES.items() if hasattr(torch, name)}
        self.rooms = [
            self._bytes[entry.begin : entry.begin + entry.length].view(types[entry.dtype]).view(entry.shape)
            for entry in file.entries
        ]
        """Rooms in the order of the entries."""

    def close(self) -> None:
        if self._pinned:
            import torch

            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self._bytes.data_ptr()))
        super().close()


def _forget_cuda_error() -> None:
    """Clear the error that CUDA keeps for this thread: the next kernel would be taken for its cause."""
    import ctypes

    import torch

    with suppress(OSError, AttributeError):  # a build that has CUDA's runtime inside
        ctypes.CDLL(torch._C.__file__).cudaGetLastError()


def _encoded(name: str, value: Any) -> Any:
    try:
        return plain_values.encoded(value)
    except plain_values.Unknown as error:
        raise UserError(
            f"{name} of the state is an object of {error}, which checkpoints do not hold: {plain_values.WHAT_TO_DO}"
        ) from None


def _signature(name: str, value: Any) -> tuple[Any, ...]:
    """Return the facts that a plan follows from."""
    if not hasattr(value, "dtype"):
        return (name,)
    placed = (value.placements, tuple(value.to_local().shape)) if hasattr(value, "to_local") else ()
    return name, value.dtype, tuple(value.shape), placed


def _entry(item: Any) -> TensorEntry:
    """A write item's tensor, as a file names it: whole ones by their names, parts with their offsets."""
    data = item.tensor_data
    shape, name = tuple(data.chunk.sizes), str(data.properties.dtype).removeprefix("torch.")
    whole = shape == tuple(data.size)
    called = item.index.fqn if whole else f"{item.index.fqn}@{','.join(map(str, data.chunk.offsets))}"
    if name in DTYPES:
        return TensorEntry(called, DTYPES[name], shape)
    return TensorEntry(called, BYTES_TYPE, (data.chunk.sizes.numel() * data.properties.dtype.itemsize,))


def _places(plans: Sequence[Any]) -> dict[Any, Any]:
    """Index of a tensor or a part of one → its place in the files."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    found = {}
    for rank, plan in enumerate(plans):
        tensors = {_entry(item).name: item for item in plan.items if item.tensor_data is not None}
        for entry in laid_out(map(_entry, tensors.values())).entries:
            found[tensors[entry.name].index] = _StorageInfo(file_of(rank), entry.begin, entry.length)
    return found
