"""PyTorch DistributedDataParallel: a whole model on every worker, gradients averaged while they are computed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from dtrain.api.rank_memory import RankMemory
from dtrain.api.strategy import WorkerContext
from dtrain.api.training_backend import TrainingBackend
from dtrain.job.job import Job, Resources
from dtrain.job.limits import COUNT, MEGABYTES, Limit

from ..exact import tree_sums
from ..exact.tree_sums import ExactSums
from ..watch.measures import peak_device_memory
from . import backend, launcher
from .memory_estimate import estimated
from .parallel import Parallel, Precision, checkpointed, compiled
from .process_group import connected

POWER_SGD_START = Limit(least=2, most=10**9)
"""torch's hook sends the first two steps whole in any case."""


@dataclass(frozen=True)
class DDPOptions:
    """Of DDP."""

    bucket_mb: Annotated[float, MEGABYTES] = 25.0
    """Megabytes of gradients that are averaged in one go."""
    static_graph: bool = False
    """The same parameters take part in every step, in the same order."""
    find_unused_parameters: bool = False
    """Some parameters may take no part in a step (branches, mixtures of experts): look for them, at some cost."""
    compression: Literal["none", "bf16", "fp16"] = "none"
    """Type that gradients are sent in; halves the traffic and loses digits. The same as `comm_hook: bf16_compress` or `fp16_compress`."""
    comm_hook: Literal["none", "bf16_compress", "fp16_compress", "powerSGD"] = "none"
    """How gradients are sent, by torch's name of the hook. `powerSGD` sends products of thin matrices and adds what they lack to the next
    step's; that remainder is in no checkpoint, so that a resumed run ends with other weights than an undisturbed one."""
    power_sgd_rank: Annotated[int, COUNT] = 1
    """Columns of powerSGD's matrices: more are closer to the gradient, and more traffic."""
    power_sgd_start: Annotated[int, POWER_SGD_START] = 1000
    """Steps, also after a restart, that send whole gradients before powerSGD begins."""
    sync_batch_norm: bool = False
    """On GPUs, batch norm takes its statistics over the batches of all workers."""
    precision: Precision = "fp32"
    """bf16, fp16: automatic mixed precision; in fp16 the loss of a task is scaled (`torch.amp.GradScaler`)."""
    compile: bool = False
    """Through torch.compile."""
    activation_checkpointing: tuple[str, ...] = ()
    """Classes of modules whose activations are computed again instead of kept."""
    activation_checkpointing_every: Annotated[int, COUNT] = 1
    """Only every n-th of these modules, from the first one on: less is computed again, and more is kept."""
    activation_checkpointing_keep: tuple[str, ...] = ()
    """Operations of these modules whose results are kept: `matmul`, `attention`, or torch's names (`[mm, convolution]`)."""
    eager_connect: bool | None = None
    """On GPUs, bind the process group to the device and connect NCCL before the first collective (`device_id`). When not given: for a task. Of
    a function not, since a gloo group of some ranks would then wait for all of them."""

    def hook(self) -> str:
        """Return torch's name of the hook that sends gradients; 'none' for all digits."""
        return self.comm_hook if self.compression == "none" else f"{self.compression}_compress"


UNUSED = "Expected to have finished reduction in the prior iteration"
"""In torch's message if a parameter got no gradient."""
NO_PART = (
    "some parameters of the model have no part in the loss: set strategy: {name: ddp, find_unused_parameters: true} in the recipe, or "
    "take them out of the model (requires_grad_(False))"
)


class DDP(launcher.OneADevice):
    """One process a device, gloo on CPUs and NCCL on GPUs."""

    Options = DDPOptions
    peak_device_memory = staticmethod(peak_device_memory)

    def __init__(self, options: DDPOptions) -> None:
        self.options = options

    def scales_loss(self) -> str:
        return launcher.scaling(self.options.precision)

    def rank_memory(self, task: Any, job: Job) -> RankMemory:
        return estimated(task, job, 1)

    def inexact(self, job: Job) -> list[str]:
        found = []
        if self.options.hook() != "none":
            option = "comm_hook" if self.options.compression == "none" else "compression"
            found.append(
                f"gradients that are sent in fewer bits are rounded anew by each worker: leave strategy.{option} out"
            )
        if self.options.sync_batch_norm:
            found.append("statistics over all workers depend on their number: leave strategy.sync_batch_norm out")
        return found

    def problems(self, resources: Resources) -> list[str]:
        """Yield options that contradict each other or do not fit the device."""
        found = super().problems(resources)
        if "none" not in (self.options.compression, self.options.comm_hook):
            found.append(
                "strategy.compression and strategy.comm_hook both choose how gradients are sent: leave out one of them"
            )
        if self.options.sync_batch_norm and resources.device != "gpu":
            found.append(
                "strategy.sync_batch_norm is for GPUs, as torch's SyncBatchNorm: leave it out, or set resources.device to gpu"
            )
        return found

    def explain(self, error: BaseException) -> str:
        if isinstance(error, RuntimeError) and UNUSED in str(error):
            return NO_PART
        return super().explain(error)

    @contextmanager
    def join(self, context: WorkerContext) -> Iterator[TrainingBackend]:
        """Connect over a store whose port was reserved for this attempt."""
        with connected(context, eager=self.options.eager_connect) as device:
            yield backend.TorchBackend(
                context.rank_info,
                device,
                Replicated(self.options, context.rank_info.world_size, tree_sums.of_job(context)),
            )


class Replicated(Parallel):
    """A DistributedDataParallel model; alone, the model stays as it is."""

    def __init__(self, options: DDPOptions, world_size: int, sums: ExactSums | None = None) -> None:
        super().__init__(precision=options.precision, exact=sums)
        self.options = options
        self.alone = world_size == 1
        self._records_graph = options.static_graph
        """Whether DDP has yet to see a whole step, which it cannot record in a pass that averages nothing."""

    def wrap(self, model: Any, device: Any) -> Any:
        import torch
        from torch.nn.parallel import DistributedDataParallel

        from .redirecting import redirecting

        if self.options.sync_batch_norm:
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model = checkpointed(model, self.options)
        if self.exact:  # DDP would have it compiled in parts, which depend on its buckets
            model = compiled(model, when=self.options.compile)
        if self.alone or not any(parameter.requires_grad for parameter in model.parameters()):
            return compiled(model, when=self.options.compile and not self.exact)
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        parallel = redirecting()(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            bucket_cap_mb=self.options.bucket_mb,
            static_graph=self.options.static_graph,
            find_unused_parameters=self.options.find_unused_parameters,
            gradient_as_bucket_view=True,
            **{buffers: False},  # the backend shares them once a step
        )
        if not (self.exact or self.options.static_graph or self.options.find_unused_parameters):
            _settle_buckets(parallel)
        if self.exact:
            parallel.register_comm_hook(self.exact, lambda sums, bucket: sums.hook(bucket))
            return parallel
        _register(parallel, self.options)
        return compiled(parallel, when=self.options.compile)

    def plain(self, model: Any) -> Any:
        return model.module if _is_parallel(model) else model

    def gradient_sync(self, model: Any, *, last: bool) -> AbstractContextManager[Any]:
        averages = last or self._records_graph
        self._records_graph &= not last
        return nullcontext() if averages or not _is_parallel(model) else model.no_sync()


def _register(parallel: Any, options: DDPOptions) -> None:
    """Have gradients sent as the options say."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    if options.hook() == "powerSGD":
        state = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=options.power_sgd_rank, start_powerSGD_iter=options.power_sgd_start
        )
        parallel.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif options.hook() != "none":
        parallel.register_comm_hook(None, getattr(default_hooks, f"{options.hook()}_hook"))


def _settle_buckets(parallel: Any) -> None:
    """Collective. Do one pass of zero gradients, in the reverse order of the parameters, without the user's code. DDP lays out its buckets
    anew after the first pass, in the order in which the gradients came, and with them the order of summation: from here on a resumed run
    sums in the same order as an undisturbed one."""
    import torch

    parameters = [parameter for parameter in parallel.module.parameters() if parameter.requires_grad]
    if any(getattr(module, "sparse", False) for module in parallel.module.modules()):
        return  # DDP expects sparse gradients of these

    class Nothing(torch.nn.Module):  # type: ignore[misc]
        def forward(self) -> Any:
            real = (torch.view_as_real(one) if one.is_complex() else one for one in parameters)
            return sum(one.sum().float() * 0 for one in real)

    module = parallel._modules["module"]
    parallel._modules["module"] = Nothing()
    try:
        parallel().backward()
    finally:
        parallel._modules["module"] = module
    for parameter in parameters:
        parameter.grad = None


def _is_parallel(model: Any) -> bool:
    """Whether a model was wrapped: alone, or without anything to train, it was not."""
    from torch.nn.parallel import DistributedDataParallel

    return isinstance(model, DistributedDataParallel)
