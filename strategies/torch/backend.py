"""What the PyTorch strategies share: connecting, one training step, evaluation, and state that moves between them.

Importing this module imports no framework; every function that needs torch imports it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from dtrain.api.strategy import RankInfo, RendezvousInfo, SnapshotFiles, WorkerContext
from dtrain.spec.job import Device, Job, Train

from .. import environments
from .parallel import Parallel

PRELOAD = (
    "torch", "torch.distributed", "torch._dynamo", "torch.nn.parallel", "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp", "dtrain.worker.loop",
)  # fmt: skip
CONNECT_SECONDS = 300


@contextmanager
def connected(joining: WorkerContext) -> Iterator[Any]:
    """Collective. The default process group over the reserved port; yields this worker's device."""
    import torch
    import torch.distributed as dist

    place, peers, rendezvous = joining.place, joining.peers, joining.rendezvous
    on_gpu = joining.job.resources.device == "gpu"
    device = torch.device("cuda", place.local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if rendezvous is not None:
        rendezvous.listen(1024)
    store = dist.TCPStore(
        peers.addresses[0],
        peers.ports[0],
        place.world_size,
        is_master=rendezvous is not None,
        timeout=timedelta(seconds=CONNECT_SECONDS),
        wait_for_workers=False,
        # The store closes what it is given when it ends: let it have a copy.
        master_listen_fd=rendezvous.dup().detach() if rendezvous is not None else None,
    )
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=place.rank, world_size=place.world_size)
    yield device
    # Only where all went well: after an error the peers may be gone, and this process is about to end anyway.
    dist.destroy_process_group()


class OneADevice:
    """What the launcher's side of DDP and FSDP has in common: one process a device, told its place as torchrun tells it."""

    framework = "torch"

    def preload(self, job: Job) -> tuple[str, ...]:
        """torch and what a first step would import."""
        return PRELOAD

    def processes(self, workers_per_node: int, device: Device = "cpu") -> int:
        """One a device."""
        return workers_per_node

    def environment(self, place: RankInfo, peers: RendezvousInfo) -> dict[str, str]:
        """As torchrun sets it."""
        return environments.torchrun(place, peers)


class TorchBackend:
    """Training with a process group; `parallel` is what the strategy adds."""

    def __init__(self, place: RankInfo, device: Any, parallel: Parallel) -> None:
        import torch.distributed as dist

        self._place = place
        self._device = device
        self._parallel = parallel
        # Checkpoints are written beside the training: their collectives must not mix with the training's.
        self._saving = dist.new_group(backend="gloo")
        self._warm = not parallel.rearranges

    def build(self, task: Any, train: Train) -> tuple[Any, Any]:
        """See `TrainingBackend.build`."""
        import torch

        torch.manual_seed(train.seed)
        self._task = task
        self._clip_norm = train.clip_norm
        self._model = self._parallel.wrap(task.model().to(self._device), self._device)
        passes = (train.shards or 1) // self._place.world_size
        self._optimizer = self._parallel.optimizer(task.optimizer(self._model), self._model, passes)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        return self._model, self._optimizer

    def feed(self, batch: Any, seed: int) -> Any:
        """See `TrainingBackend.feed`."""
        self.seed(seed)
        return self._moved(batch)

    def seed(self, seed: int) -> None:
        """Seed the generators that layers draw from."""
        import torch

        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def step(self, batches: Sequence[Any], seeds: Sequence[int], rate: float) -> Any:
        """See `TrainingBackend.step`. The gradients of all shards but the last stay on this worker."""
        if not self._warm:
            self._warm_up(batches[0], seeds[0])
        if not self._model.training:
            self._model.train()
        total = None
        for number, (batch, seed) in enumerate(zip(batches, seeds, strict=True), start=1):
            self.seed(seed)
            with self._parallel.gradient_sync(self._model, last=number == len(batches)):
                with self._parallel.autocast(self._device):
                    loss = self._task.loss(self._model, self._moved(batch)) / len(batches)
                loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        for group, base in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = base * rate
        self._parallel.apply(self._optimizer, self._model, self._clip_norm)
        self._optimizer.zero_grad()
        broadcast_buffers(self._model.buffers())
        return total

    def _warm_up(self, batch: Any, seed: int) -> None:
        """One pass whose gradients are thrown away. DDP rearranges its buckets after the first one, and with them the
        order of summation: from here on a resumed run sums in the same order as an undisturbed one."""
        import torch

        self._warm = True
        buffers = [(buffer, buffer.detach().clone()) for buffer in self._model.buffers()]
        self._model.train()
        self.seed(seed)
        with self._parallel.gradient_sync(self._model, last=True), self._parallel.autocast(self._device):
            loss = self._task.loss(self._model, self._moved(batch))
        loss.backward()
        self._optimizer.zero_grad()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)

    def evaluate(self, batches: Iterable[tuple[Any, int]]) -> dict[str, float]:
        """See `TrainingBackend.evaluate`."""
        import torch

        self._model.eval()
        sums: dict[str, Any] = {}
        weight = 0
        with torch.no_grad(), self._parallel.autocast(self._device):
            for batch, count in batches:
                for name, value in self._measured(self._moved(batch)).items():
                    sums[name] = sums.get(name, 0.0) + torch.as_tensor(value, dtype=torch.float64) * count
                weight += count
        return self.mean({name: float(total) / max(1, weight) for name, total in sums.items()}, weight)

    def _measured(self, batch: Any) -> Mapping[str, Any]:
        if hasattr(self._task, "metrics"):
            values: Mapping[str, Any] = self._task.metrics(self._model, batch)
            return values
        return {"loss": self._task.loss(self._model, batch)}

    def mean(self, values: Mapping[str, float], weight: float = 1.0) -> dict[str, float]:
        """See `TrainingBackend.mean`."""
        import torch
        import torch.distributed as dist

        numbers = [value * weight for value in values.values()]
        summed = torch.tensor([*numbers, weight], dtype=torch.float64, device=self._device)
        dist.all_reduce(summed)
        *totals, weights = summed.tolist()
        return {name: total / weights if weights else 0.0 for name, total in zip(values, totals, strict=True)}

    def snapshot(self) -> TorchSnapshot:
        """See `TrainingBackend.snapshot`."""
        from torch.distributed.checkpoint.state_dict import get_state_dict

        broadcast_buffers(self._model.buffers())
        model, optimizer = get_state_dict(self._model, self._optimizer)
        return TorchSnapshot(copied({"model": model, "optimizer": optimizer}), self._place, self._saving)

    def load(self, folder: Path) -> None:
        """See `TrainingBackend.load`."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

        model, optimizer = get_state_dict(self._model, self._optimizer)
        state = {"model": model, "optimizer": optimizer}
        dcp.load(state, checkpoint_id=str(folder), process_group=self._saving)
        set_state_dict(
            self._model, self._optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )

    def _moved(self, batch: Any) -> Any:
        """The batch as tensors on this worker's device, in the structure it has."""
        import torch

        if isinstance(batch, Mapping):
            return {name: self._moved(part) for name, part in batch.items()}
        if isinstance(batch, tuple | list):
            return tuple(self._moved(part) for part in batch)
        return torch.as_tensor(batch, device=self._device)


class TorchSnapshot:
    """A copy of the state, written by `torch.distributed.checkpoint`."""

    def __init__(self, state: dict[str, Any], place: RankInfo, group: Any) -> None:
        self._state = state
        self._place = place
        self._group = group

    def write(self, folder: Path) -> SnapshotFiles:
        """See `Snapshot.write`; collective on a group of its own."""
        import torch.distributed.checkpoint as dcp

        writer = dcp.FileSystemWriter(folder, single_file_per_rank=True, sync_files=False)
        try:
            dcp.save(self._state, storage_writer=writer, process_group=self._group)
        except dcp.api.CheckpointException as error:
            # It holds every rank's exception and traceback; what the disk said is enough.
            failures = [failure for failure, _ in error.failures.values()]
            raise next((failure for failure in failures if isinstance(failure, OSError)), failures[0]) from None
        names = [path.name for path in folder.glob(f"__{self._place.rank}_*.distcp")]
        if self._place.rank == 0:
            names.append(".metadata")
        return SnapshotFiles(tuple(sorted(names)), self._digest())

    def _digest(self) -> str:
        """Of the tensors this rank holds alone; where all ranks hold the same, rank 0's is enough."""
        import torch
        from torch.distributed.tensor import DTensor

        tensors = {name: value for name, value in self._state["model"].items() if isinstance(value, torch.Tensor)}
        sharded = any(isinstance(value, DTensor) for value in tensors.values())
        if not sharded and self._place.rank:
            return ""
        digest = hashlib.sha256()
        for name in sorted(tensors):
            local = tensors[name].to_local() if isinstance(tensors[name], DTensor) else tensors[name]
            digest.update(f"{name}|{local.dtype}|{tuple(local.shape)}|".encode())
            digest.update(local.contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def broadcast_buffers(buffers: Iterable[Any]) -> None:
    """Collective. Rank 0's buffers (batch norm's running statistics) for all, so that a checkpoint of them is the same
    whoever writes it, and a resumed run goes on from what every rank had."""
    import torch
    import torch.distributed as dist

    by_dtype: dict[Any, list[Any]] = {}
    for buffer in buffers:
        by_dtype.setdefault(buffer.dtype, []).append(buffer)
    for same in by_dtype.values():
        flat = torch.cat([buffer.detach().reshape(-1) for buffer in same])
        dist.broadcast(flat, src=0)
        for buffer, part in zip(same, flat.split([buffer.numel() for buffer in same]), strict=True):
            buffer.detach().copy_(part.view_as(buffer))


def copied(value: Any) -> Any:
    """A deep copy of nested state with every tensor on the CPU."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: copied(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(copied(part) for part in value)
    return value
