"""PyTorch fully_shard: parameters, gradients and optimizer state are split over the workers."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from dtrain.api.rank_memory import RankMemory
from dtrain.api.strategy import RankInfo, WorkerContext
from dtrain.api.training_backend import TrainingBackend
from dtrain.common import allocator
from dtrain.common.errors import DtrainError
from dtrain.job.job import Job, Resources
from dtrain.job.limits import COUNT, POSITIVE

from ..exact import tree_sums
from ..exact.tree_sums import ExactSums
from ..watch.measures import peak_device_memory
from . import backend, blocks, deferred, host_reduction, launcher
from .memory_estimate import estimated
from .parallel import Parallel, Precision, checkpointed, compiled
from .process_group import connected


@dataclass(frozen=True)
class MixedPrecision:
    """Types by role, as in torch's `MixedPrecisionPolicy`."""

    param: Precision | None = None
    """Of gathered parameters and what is computed with them; their own when not given."""
    reduce: Precision | None = None
    """Of gradients while they are summed; when not given fp32, or fp64 for parameters that are in it."""
    output: Precision | None = None
    """Of what the model returns."""


@dataclass(frozen=True)
class FSDPOptions:
    """Of fully_shard."""

    wrap: tuple[str, ...] = ()
    """Classes of modules that are gathered one at a time (`[Block]`), or a function that takes the model and returns a list of them
    (`[blocks.py:chosen]`); by size when not given."""
    wrap_parameters: Annotated[int, POSITIVE] = 100_000
    """Without `wrap`: modules of at least this number of parameters are gathered one at a time."""
    precision: Precision = "fp32"
    """bf16, fp16: parameters and activations in it, gradients summed in fp32; in fp16 the loss of a task is scaled
    (`torch.amp.GradScaler`)."""
    mixed_precision: MixedPrecision | None = None
    """Types by role, instead of `precision`."""
    reshard_after_forward: bool | int = True
    """Free gathered parameters after the forward pass (less memory) or keep them for the backward pass (less traffic). A number: keep them
    split over so many workers, which must divide those that share a model."""
    prefetch: Annotated[int, COUNT] = 1
    """How many of the modules of `wrap` are gathered ahead of the one that computes."""
    ignored: tuple[str, ...] = ()
    """Names of frozen parameters that every worker keeps whole (`[embedding.*]`)."""
    cpu_offload: bool = False
    """Keep what is not in use in the host's memory."""
    compile: bool | Literal["block"] = False
    """Through torch.compile; `block`: each of the modules of `wrap` by itself, which compiles equal ones once."""
    activation_checkpointing: tuple[str, ...] = ()
    """Classes of modules whose activations are computed again instead of kept."""
    activation_checkpointing_every: Annotated[int, COUNT] = 1
    """Only every n-th of these modules, from the first one on: less is computed again, and more is kept."""
    activation_checkpointing_keep: tuple[str, ...] = ()
    """Operations of these modules whose results are kept: `matmul`, `attention`, or torch's names (`[mm, convolution]`)."""
    build: Literal["auto", "meta", "whole"] = "auto"
    """How the model is made. `meta`: without memory, then filled tensor by tensor, each cut to this worker's part; an error if its
    constructors need values. `whole`: in the memory of every worker, then cut. `auto`: `meta` where that is possible, and the log says where not."""
    eager_connect: bool | None = None
    """On GPUs, bind the process group to the device and connect NCCL before the first collective (`device_id`). When not given: for a task. Of
    a function not, since a gloo group of some ranks would then wait for all of them."""

    def types(self) -> MixedPrecision:
        """The types by role; a sum of losses leaves fp16's range soon."""
        if self.mixed_precision:
            return self.mixed_precision
        return MixedPrecision(
            None if self.precision == "fp32" else self.precision, output="fp32" if self.precision == "fp16" else None
        )


@dataclass(frozen=True)
class HSDPOptions(FSDPOptions):
    """Of fully_shard over a two-dimensional mesh."""

    replicas: Annotated[int, COUNT] | None = None
    """Groups that hold a whole model each; one a node when not given."""


OF_DEVICES = ("CUDA", "NCCL", "cuBLAS", "HIP")
"""In errors of devices and their connections."""
WAITING = ("unshard", "wait_for_unshard", "post_backward", "finalize_backward")
"""Methods of torch's `FSDPParamGroup` that wait for other ranks: on a CPU at once, on a GPU by having the stream wait."""


class FSDP(launcher.OneADevice):
    """One process a device, each holding its share of the model."""

    Options: ClassVar[type] = FSDPOptions
    peak_device_memory = staticmethod(peak_device_memory)

    def __init__(self, options: FSDPOptions) -> None:
        self.options = options

    @contextmanager
    def join(self, context: WorkerContext) -> Iterator[TrainingBackend]:
        """Connect, and lay the workers out in a mesh."""
        from torch.distributed.device_mesh import init_device_mesh

        with connected(context, eager=self.options.eager_connect) as device:
            shape = self.shape(context.rank_info)
            mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
            parallel = Sharded(self.options, mesh, tree_sums.of_job(context), Path(context.job.folder))
            yield backend.TorchBackend(context.rank_info, device, parallel)

    def scales_loss(self) -> str:
        return launcher.scaling(self.options.types().param or "")

    def problems(self, resources: Resources) -> list[str]:
        """Yield options that contradict each other or do not fit the workers."""
        found, options = super().problems(resources), self.options
        if options.mixed_precision and options.precision != "fp32":
            found.append("strategy.precision and strategy.mixed_precision both choose types: leave out one of them")
        parts = options.reshard_after_forward
        if not isinstance(parts, bool) and (parts < 1 or self.sharing(resources) % parts):
            found.append(
                f"strategy.reshard_after_forward: {parts} does not divide the {self.sharing(resources)} workers that share a model"
            )
        return found

    def sharing(self, resources: Resources) -> int:
        """Return the number of workers that a model is split over."""
        return resources.workers

    def rank_memory(self, task: Any, job: Job) -> RankMemory:
        options = self.options

        def largest(model: Any) -> int:
            parts = blocks.chosen(model, options.wrap, options.wrap_parameters, Path(job.folder))
            size = _dtype(options.types().param)
            return blocks.largest_numel(model, parts) * (size.itemsize if size else 4)

        # A block computes, others are gathered ahead, and the gradients of one are whole, in the layout of the model and in that of the sum.
        return estimated(task, job, self.sharing(job.resources), largest, 3 + options.prefetch)

    def unchecked(self, job: Job) -> str:
        if self.options.cpu_offload and job.resources.device == "gpu":
            return "with strategy.cpu_offload the gradient of all ranks is not on their devices, where its norm could be had"
        return ""

    def explain(self, error: BaseException) -> str:
        """An optimizer, stepped by whom ever, does something that cannot be done with sharded tensors."""
        from torch import OutOfMemoryError

        frames = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
        optimizer = next((one for one in frames if hasattr(one, "param_groups") and hasattr(one, "step")), None)
        other = isinstance(error, OutOfMemoryError | DtrainError) or any(part in str(error) for part in OF_DEVICES)
        if optimizer is None or other:
            return super().explain(error)
        name = type(optimizer).__name__
        return f"{name} cannot step weights that are sharded: take strategy: ddp, or another optimizer"

    def shape(self, rank_info: RankInfo) -> tuple[int, ...]:
        """Return the shape of the device mesh."""
        return (rank_info.world_size,)


class HSDP(FSDP):
    """Sharded inside a group of workers (a node), replicated across the groups."""

    Options = HSDPOptions
    options: HSDPOptions

    def sharing(self, resources: Resources) -> int:
        return max(1, resources.workers // (self.options.replicas or resources.nodes))

    def problems(self, resources: Resources) -> list[str]:
        """Yield groups of unequal size."""
        found = super().problems(resources)
        groups = self.options.replicas or resources.nodes
        if resources.workers % groups == 0:
            return found
        return [
            *found,
            f"{resources.workers} workers cannot be split into {groups} equal groups: change strategy.replicas or the workers",
        ]

    def inexact(self, job: Job) -> list[str]:
        groups = self.options.replicas or job.resources.nodes
        if 1 < groups == job.resources.workers:
            return ["groups of one worker each split nothing: choose ddp, or fewer strategy.replicas"]
        return [f"{groups} groups are no power of two"] if groups & (groups - 1) else []

    def shape(self, rank_info: RankInfo) -> tuple[int, ...]:
        """Groups by workers of a group."""
        groups = self.options.replicas or rank_info.nodes
        return (groups, rank_info.world_size // groups)


class Sharded(Parallel):
    """A model whose parameters are spread over a mesh."""

    shards = True
    waits_inside = True  # for the parameters of the other ranks
    takes_closures = False  # LBFGS lays all gradients out as one vector, which those spread over a mesh cannot be

    def __init__(self, options: FSDPOptions, mesh: Any, sums: ExactSums | None = None, folder: Path = Path()) -> None:
        super().__init__(exact=sums)  # without automatic casts: `wrap` chooses the types
        self.scales_loss = options.types().param == "fp16"
        self.options = options
        self.mesh = mesh
        self._folder = folder
        """Of the user's code."""

    def built(self, make: Callable[[], dict[str, Any]], device: Any) -> dict[str, Any]:
        """Collective. No worker holds a whole model, if its constructors can do without values."""
        found = None if self.options.build == "whole" else deferred.attempted(make, needed=self.options.build == "meta")
        if found is None:
            return super().built(make, device)
        if found.size >= allocator.LARGE_MODEL_BYTES:
            allocator.return_freed_tensors(os.environ)
        wrapped = {name: self.wrap(model, device) for name, model in found.models.items()}
        found.materialise("cpu" if self.options.cpu_offload else device)
        return wrapped

    def wrap(self, model: Any, device: Any) -> Any:
        """Inner modules first, then the rest as one."""
        from torch.distributed.fsdp import (
            CPUOffloadPolicy,
            MixedPrecisionPolicy,
            OffloadPolicy,
            fully_shard,
        )

        # The reduction of a norm on the host would need a process group of the host's own.
        self.measures_gradient = not self.options.cpu_offload or device.type == "cpu"
        types = self.options.types()
        wide = types.param is None and any(str(one.dtype) == "torch.float64" for one in model.parameters())
        reduced = types.reduce or (None if wide else "fp32")
        policy = MixedPrecisionPolicy(param_dtype=_dtype(types.param), reduce_dtype=_dtype(reduced))
        model = checkpointed(model, self.options)
        parts = blocks.chosen(model, self.options.wrap, self.options.wrap_parameters, self._folder)
        settings = {
            "mesh": self.mesh,
            "reshard_after_forward": self._reshard(),
            "mp_policy": policy,
            "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda")
            if self.options.cpu_offload
            else OffloadPolicy(),
            "ignored_params": blocks.ignored(model, self.options.ignored),
        }
        for module in parts:
            compiled(module, when=self.options.compile == "block")
            fully_shard(module, **settings)
        fully_shard(model, **settings | {"mp_policy": replace(policy, output_dtype=_dtype(types.output))})
        _prefetch(parts[::-1], self.options.prefetch)
        self._reduce_by(model, device)
        self._time_waits(model)
        return compiled(model, when=self.options.compile is True)

    def _reduce_by(self, model: Any, device: Any) -> None:
        """Choose how gradients are summed, if not by torch's own reduce-scatter."""
        from torch.distributed.fsdp import FSDPModule

        if self._shard_group().size() == 1 or not (self.exact or device.type == "cpu"):
            return
        replicas = self.mesh.get_group("replicate") if self.mesh.ndim > 1 else None
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_reduce_scatter(
                    tree_sums.reduce_scatter(self.exact, replicas) if self.exact else host_reduction.reduce_scatter()
                )

    def _reshard(self) -> bool | int:
        """A run that goes on with other workers than it began with may have a number that does not divide them."""
        parts = self.options.reshard_after_forward
        return parts if isinstance(parts, bool) or self._shard_group().size() % parts == 0 else True

    def _time_waits(self, model: Any) -> None:
        """Have the clock of the steps know when this worker waits for other ranks inside of a pass."""
        from torch.distributed.fsdp import FSDPModule

        if self.phases is None:
            return
        for module in model.modules():
            if isinstance(module, FSDPModule):
                state = module._get_fsdp_state()
                for group in getattr(state, "_fsdp_param_groups", None) or filter(None, [state._fsdp_param_group]):
                    self.phases.wait_in(group, WAITING)

    def _shard_group(self) -> Any:
        return self.mesh.get_group("shard")

    def reduced(self, model: Any) -> bool:
        return bool(self._shard_group().size() > 1)

    def clip(self, parameters: Iterable[Any], most: float) -> Any:
        return tree_sums.clip(parameters, most, self._shard_group()) if self.exact else super().clip(parameters, most)

    def gradient_sync(self, model: Any, *, last: bool) -> AbstractContextManager[Any]:
        """Every pass reduces its gradients to this worker's share, so that whole ones are never kept; only the
        replicas of HSDP wait for the last pass."""
        if self.mesh.ndim > 1:
            model.set_requires_all_reduce(last)
        return nullcontext()


def _dtype(name: Precision | None) -> Any:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.get(name or "")


def _prefetch(modules: Sequence[Any], depth: int) -> None:
    """Have each module gather so many after it, and in the backward pass before it, while it computes; torch gathers one by itself."""
    if depth == 1:
        return
    for number, module in enumerate(modules):
        module.set_modules_to_forward_prefetch(modules[number + 1 : number + 1 + depth])
        module.set_modules_to_backward_prefetch(modules[max(0, number - depth) : number][::-1])
