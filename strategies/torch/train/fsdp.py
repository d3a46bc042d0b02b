"""PyTorch fully_shard: parameters, gradients and optimizer state are split over the workers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from dtrain.api.strategy import RankInfo, WorkerContext
from dtrain.api.training_backend import TrainingBackend
from dtrain.common import allocator
from dtrain.job.job import Job, Resources
from dtrain.job.limits import COUNT, POSITIVE

from ..exact import tree_sums
from ..exact.tree_sums import ExactSums
from ..watch.measures import peak_device_memory
from . import backend, deferred, launcher
from .parallel import Parallel, Precision, checkpointed, compiled, modules_named
from .process_group import connected


@dataclass(frozen=True)
class FSDPOptions:
    """Of fully_shard."""

    wrap: tuple[str, ...] = ()
    """Classes of modules that are gathered one at a time (`[Block]`); by size when not given."""
    wrap_parameters: Annotated[int, POSITIVE] = 100_000
    """Without `wrap`: modules of at least this number of parameters are gathered one at a time."""
    precision: Precision = "fp32"
    """bf16, fp16: parameters and activations in it, gradients summed in fp32; in fp16 the loss of a task is scaled
    (`torch.amp.GradScaler`)."""
    reshard_after_forward: bool = True
    """Free gathered parameters after the forward pass (less memory) or keep them for the backward pass (less traffic)."""
    cpu_offload: bool = False
    """Keep what is not in use in the host's memory."""
    compile: bool = False
    """Through torch.compile."""
    activation_checkpointing: tuple[str, ...] = ()
    """Classes of modules whose activations are computed again instead of kept."""
    build: Literal["auto", "meta", "whole"] = "auto"
    """How the model is made. `meta`: without memory, then filled tensor by tensor, each cut to this worker's part; an error if its
    constructors need values. `whole`: in the memory of every worker, then cut. `auto`: `meta` where that is possible, and the log says where not."""
    eager_connect: bool | None = None
    """On GPUs, bind the process group to the device and connect NCCL before the first collective (`device_id`). When not given: for a task. Of
    a function not, since a gloo group of some ranks would then wait for all of them."""


@dataclass(frozen=True)
class HSDPOptions(FSDPOptions):
    """Of fully_shard over a two-dimensional mesh."""

    replicas: Annotated[int, COUNT] | None = None
    """Groups that hold a whole model each; one a node when not given."""


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
            parallel = Sharded(self.options, mesh, tree_sums.of_job(context))
            yield backend.TorchBackend(context.rank_info, device, parallel)

    def scales_loss(self) -> str:
        return launcher.scaling(self.options.precision)

    def unchecked(self, job: Job) -> str:
        if self.options.cpu_offload and job.resources.device == "gpu":
            return "with strategy.cpu_offload the gradient of all ranks is not on their devices, where its norm could be had"
        return ""

    def shape(self, rank_info: RankInfo) -> tuple[int, ...]:
        """Return the shape of the device mesh."""
        return (rank_info.world_size,)


class HSDP(FSDP):
    """Sharded inside a group of workers (a node), replicated across the groups."""

    Options = HSDPOptions
    options: HSDPOptions

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

    def __init__(self, options: FSDPOptions, mesh: Any, sums: ExactSums | None = None) -> None:
        super().__init__(exact=sums)  # without automatic casts: `wrap` chooses the types
        self.scales_loss = options.precision == "fp16"
        self.options = options
        self.mesh = mesh

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
        import torch
        from torch.distributed.fsdp import (
            CPUOffloadPolicy,
            FSDPModule,
            MixedPrecisionPolicy,
            OffloadPolicy,
            fully_shard,
        )

        # The reduction of a norm on the host would need a process group of the host's own.
        self.measures_gradient = not self.options.cpu_offload or device.type == "cpu"
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.options.precision)
        types = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
        settings = {
            "mesh": self.mesh,
            "reshard_after_forward": self.options.reshard_after_forward,
            "mp_policy": types,
            "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda")
            if self.options.cpu_offload
            else OffloadPolicy(),
        }
        model = checkpointed(model, self.options.activation_checkpointing)
        for module in self._parts(model):
            fully_shard(module, **settings)
        if self.scales_loss:  # a sum of losses leaves fp16's range soon
            settings["mp_policy"] = replace(types, output_dtype=torch.float32)
        fully_shard(model, **settings)
        if self.exact and self._shard_group().size() > 1:
            replicas = self.mesh.get_group("replicate") if self.mesh.ndim > 1 else None
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.set_custom_reduce_scatter(tree_sums.reduce_scatter(self.exact, replicas))
        self._time_waits(model)
        return compiled(model, when=self.options.compile)

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

    def _parts(self, model: Any) -> list[Any]:
        """The modules to be gathered one at a time, inner ones before those around them. Modules that share a parameter
        (an embedding and the layer tied to it) are left to the module around them: one gathers a parameter for all."""
        tied = _tied(model)
        if self.options.wrap:
            named = modules_named(model, self.options.wrap)
            return [module for module in reversed(named) if not _shares(module, tied)]
        taken: set[int] = set()
        chosen = []
        for module in reversed(list(model.modules())):
            own = [parameter for parameter in module.parameters() if id(parameter) not in taken]
            containers = ("ModuleList", "ModuleDict")
            large = sum(parameter.numel() for parameter in own) >= self.options.wrap_parameters
            if large and module is not model and type(module).__name__ not in containers and not _shares(module, tied):
                chosen.append(module)
                taken.update(id(parameter) for parameter in own)
        return chosen

    def gradient_sync(self, model: Any, *, last: bool) -> AbstractContextManager[Any]:
        """Every pass reduces its gradients to this worker's share, so that whole ones are never kept; only the
        replicas of HSDP wait for the last pass."""
        if self.mesh.ndim > 1:
            model.set_requires_all_reduce(last)
        return nullcontext()


def _tied(model: Any) -> dict[int, int]:
    """Parameter → how many modules hold it themselves, for those that more than one does."""
    holders = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    return {parameter: count for parameter, count in holders.items() if count > 1}


def _shares(module: Any, tied: dict[int, int]) -> bool:
    """Whether a module has a parameter that a module outside of it has too."""
    if not tied:
        return False
    inside = Counter(id(parameter) for part in module.modules() for parameter in part.parameters(recurse=False))
    return any(count != tied.get(parameter, count) for parameter, count in inside.items())
