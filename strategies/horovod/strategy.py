"""Horovod, for PyTorch and TensorFlow tasks: gradients are averaged by Horovod over gloo, state moves as everywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from dtrain.api.strategy import RankInfo, RendezvousInfo, TrainingStrategy, WorkerContext
from dtrain.api.training_backend import TrainingBackend
from dtrain.common.errors import UserError
from dtrain.job.failure_kinds import FailureKind
from dtrain.job.job import Device, Job
from dtrain.job.limits import MEGABYTES_OR_NONE, SECONDS

from .. import environments, errors, task_framework, waiting
from ..tensorflow import backend as tensorflow_backend
from ..tensorflow.numbers import peak_device_memory as tensorflow_memory
from ..torch.train import backend as torch_backend
from ..torch.train.parallel import Parallel
from ..torch.train.process_group import connected
from ..torch.train.step_check import StepCheck
from ..torch.watch.measures import StepMeasures, peak_device_memory
from . import launcher


@dataclass(frozen=True)
class HorovodOptions:
    """Of Horovod."""

    framework: Literal["auto", "torch", "tensorflow"] = "auto"
    """Of the task; `auto` looks at what its file imports."""
    compression: Literal["none", "fp16"] = "none"
    """Type that gradients are sent in."""
    op: Literal["average", "adasum"] = "average"
    """How gradients are combined; adasum only if Horovod was built with it."""
    fusion_mb: Annotated[float, MEGABYTES_OR_NONE] | None = None
    """Megabytes of gradients that are averaged in one go. What is ready in time decides what goes together, and with it the
    order of a sum over three or more workers: 128 for two when not given, 0 for more, so that runs repeat bit by bit."""
    cycle_ms: Annotated[float, SECONDS] = 1.0
    """Milliseconds between two looks for gradients that are ready."""


class Horovod(TrainingStrategy):
    """One process a device, over gloo; no MPI and no horovodrun."""

    Options = HorovodOptions
    framework = "horovod"
    waits_in = staticmethod(waiting.waits_in)

    def __init__(self, options: HorovodOptions) -> None:
        self.options = options

    @staticmethod
    def missing_here() -> str:
        """How to build Horovod, if it is not installed."""
        return "" if launcher.installed() else launcher.MISSING

    def preload(self, job: Job) -> tuple[str, ...]:
        """The task's framework; Horovod itself starts threads only in `init`."""
        if self._framework(job) == "tensorflow":
            return (*tensorflow_backend.PRELOAD, "horovod.tensorflow")
        return (*torch_backend.PRELOAD, "horovod.torch")

    def processes(self, workers_per_node: int, device: Device = "cpu") -> int:
        """Return one process a device."""
        return workers_per_node

    def environment(self, rank_info: RankInfo, rendezvous: RendezvousInfo) -> dict[str, str]:
        """Return horovodrun's variables, and torchrun's for the process group that carries checkpoints."""
        return environments.torchrun(rank_info, rendezvous) | launcher.environment(rank_info, rendezvous) | {
            "HOROVOD_FUSION_THRESHOLD": str(int(self._fusion_mb(rank_info) * 2**20)),
            "HOROVOD_CYCLE_TIME": str(self.options.cycle_ms),
        }  # fmt: skip

    def _fusion_mb(self, rank_info: RankInfo) -> float:
        if self.options.fusion_mb is not None:
            return self.options.fusion_mb
        return 128.0 if rank_info.world_size <= 2 else 0.0

    def peak_device_memory(self) -> int:
        if "torch" in sys.modules:
            return peak_device_memory()
        return tensorflow_memory()

    def classify(self, type_names: Sequence[str], message: str) -> FailureKind | None:
        return errors.of_horovod(type_names, message)

    def splits_unevenly(self, job: Job) -> bool:
        """Whether parts of the batch may differ in size: with PyTorch."""
        return self._framework(job) == "torch"

    def unchecked(self, job: Job) -> str:
        if self._framework(job) == "torch":
            return ""
        return "TensorFlow makes the optimizer step in the same call as the gradient, and cannot look at it before"

    def serve(self, context: WorkerContext) -> AbstractContextManager[None]:
        """Serve the rendezvous."""
        return launcher.rendezvous_server(context)

    @contextmanager
    def join(self, context: WorkerContext) -> Iterator[TrainingBackend]:
        """Connect to the rendezvous of rank 0."""
        launcher.require()
        if self._framework(context.job) == "tensorflow":
            from . import tensorflow

            with tensorflow.joined(context, self.options.compression, self.options.op) as training:
                yield training
            return
        import horovod.torch as hvd

        with connected(context) as device:
            hvd.init()
            launcher.say_without_nccl(hvd, context.job)
            yield torch_backend.TorchBackend(context.rank_info, device, Averaged(self.options))
            hvd.shutdown()

    def _framework(self, job: Job) -> str:
        return task_framework.of_task(job) if self.options.framework == "auto" else self.options.framework


class Averaged(Parallel):
    """A model whose gradients Horovod averages while they are computed."""

    takes_closures = False
    averages_all = False

    def __init__(self, options: HorovodOptions) -> None:
        super().__init__()
        self.options = options

    def wrap(self, model: Any, device: Any) -> Any:
        """Rank 0's weights for all."""
        import horovod.torch as hvd

        # What a module gives as its extra state is no tensor.
        tensors = {name: value for name, value in model.state_dict().items() if hasattr(value, "dtype")}
        hvd.broadcast_parameters(tensors, root_rank=0)
        return model

    def optimizer(self, optimizer: Any, named_parameters: list[tuple[str, Any]], passes: int) -> Any:
        """Horovod waits for the last of the passes before it averages."""
        import horovod.torch as hvd

        # No `broadcast_optimizer_state`: it takes a step to fill an empty state, which decays the weights.
        distributed = hvd.DistributedOptimizer(
            _copied_by_constructor(optimizer),
            named_parameters=named_parameters,
            compression=hvd.Compression.fp16 if self.options.compression == "fp16" else hvd.Compression.none,
            backward_passes_per_step=passes,
            op=hvd.Adasum if self.options.op == "adasum" else hvd.Average,
        )
        plain = distributed.zero_grad

        def zero_grad(set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002  torch's own callers pass it
            # Another model's loss left gradients here (a generator's, in its discriminator): Horovod would refuse.
            if distributed._handles:
                distributed.synchronize()
            plain()

        wait, averaged = distributed.synchronize, False
        unused = _Unused([one for _, one in named_parameters if one in distributed._requires_update])

        def synchronize() -> None:
            nonlocal averaged
            if averaged and not distributed._handles:
                return
            with unused.forgotten():
                wait()
            averaged, distributed._synchronized = True, False  # or `step` warns that this was done twice
            if self.phases:
                self.phases.reduced()

        def begin() -> None:
            nonlocal averaged
            averaged = False

        if passes == 1 and self.options.op == "average":
            _at_the_end_of_each_pass(distributed._requires_update, begin, synchronize)

        def add_param_group(group: Any) -> None:
            raise UserError(
                "a group was added to an optimizer that trains: Horovod averages the gradients of the parameters that it was made with; "
                "make it with all groups (a rate of 0 for later ones), or take strategy: ddp"
            )

        distributed.add_param_group = add_param_group
        distributed.zero_grad = zero_grad
        distributed.synchronize = synchronize
        return distributed

    def apply(
        self,
        optimizers: Sequence[Any],
        parameters: Iterable[Any],
        clip_norm: float | None,
        measures: StepMeasures,
        check: StepCheck,
        name: str = "",
        factor: Any = None,
    ) -> bool:
        """The gradients must be there before they are clipped."""
        with ExitStack() as stack:
            for optimizer in optimizers:
                optimizer.synchronize()
                stack.enter_context(optimizer.skip_synchronize())
            return super().apply(optimizers, parameters, clip_norm, measures, check, name, factor)


class _Unused:
    """Parameters that take no part in a loss on any rank: Horovod gives them a gradient of zero, by which weight decay and momentum would
    change them, and DDP and a loop by hand give them none."""

    def __init__(self, parameters: Sequence[Any]) -> None:
        self._parameters = parameters
        self._are_some: bool | None = None
        """Whether there are some, as all ranks agree in the first pass; if there are none, nobody asks again."""

    @contextmanager
    def forgotten(self) -> Iterator[None]:
        """Collective, around the averaging of the gradients: leave those without a gradient on all ranks without one."""
        import horovod.torch as hvd
        import torch

        if not self._parameters or self._are_some is False:
            yield
            return
        used = torch.tensor([one.grad is not None for one in self._parameters], dtype=torch.float32)
        yield
        counts = hvd.allreduce(used, op=hvd.Sum, name="dtrain.used").tolist()
        self._are_some = not all(counts)
        for parameter, count in zip(self._parameters, counts, strict=True):
            if not count:
                parameter.grad = None


def _at_the_end_of_each_pass(
    parameters: Iterable[Any], begin: Callable[[], None], synchronize: Callable[[], None]
) -> None:
    """Average gradients before `backward` returns, as DDP does: whoever clips or adds them up in a loop of their own sees the same ones on
    every rank, and two passes before a step are right."""
    import torch

    under_way = False

    def end() -> None:
        nonlocal under_way
        under_way = False
        synchronize()

    def on_gradient(_: Any) -> None:
        nonlocal under_way
        begin()
        if not under_way:
            under_way = True
            torch.autograd.Variable._execution_engine.queue_callback(end)

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(on_gradient)


def _copied_by_constructor(optimizer: Any) -> Any:
    """The optimizer, of a class whose constructor makes a copy of it: Horovod calls the constructor with the groups alone, and an optimizer
    may want more, or have been changed since."""
    made, kind = dict(optimizer.__dict__), type(optimizer)
    made.pop("step", None)  # a scheduler's, around the method that Horovod overrides

    def constructor(self: Any, _groups: Any) -> None:
        self.__dict__.update(made)

    optimizer.__class__ = type(kind.__name__, (kind,), {"__init__": constructor})
    return optimizer
