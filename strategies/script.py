"""Scripts as they are: the environment that the script's own launcher would set, and nothing else."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dtrain.api.strategy import RankInfo, RendezvousInfo, WorkerContext
from dtrain.spec import entrypoint
from dtrain.spec.job import Device, Job

from . import environments
from .horovod import launcher

PRELOADS = {
    "torch": ("torch", "torch.distributed"),
    "tensorflow": ("tensorflow",),
    "keras": ("tensorflow",),
}
"""What the script imports → what the zygote imports for it."""
TORCH_PRELOADS = {
    "optim": "torch._dynamo",
    "DistributedDataParallel": "torch.nn.parallel",
    "fully_shard": "torch.distributed.fsdp",
}
"""A name that stands in the script → the slow import that comes with its first use."""


@dataclass(frozen=True)
class ScriptOptions:
    """Of a script."""

    launcher: Literal["all", "torchrun", "tensorflow", "horovod"] = "all"
    """Whose environment to set: torchrun's RANK, WORLD_SIZE, MASTER_ADDR …, TensorFlow's TF_CONFIG, horovodrun's
    HOROVOD_* with its rendezvous, or all of them."""


class Script:
    """Hosts any program; one process a worker."""

    Options = ScriptOptions
    framework = None

    def __init__(self, options: ScriptOptions) -> None:
        self.options = options

    def preload(self, job: Job) -> tuple[str, ...]:
        """The frameworks that the script's own import statements name."""
        path = Path(job.folder) / str(job.script)
        if path.suffix != ".py":
            return ()
        imported = entrypoint.imports(path)
        modules = [module for name, modules in PRELOADS.items() if name in imported for module in modules]
        if "torch" in imported:
            named = entrypoint.names(path)
            modules += [module for name, module in TORCH_PRELOADS.items() if name in named]
        return tuple(dict.fromkeys(modules))

    def processes(self, workers_per_node: int, device: Device = "cpu") -> int:
        """One a worker."""
        return workers_per_node

    def environment(self, place: RankInfo, peers: RendezvousInfo) -> dict[str, str]:
        """As the chosen launcher sets it."""
        launchers = {
            "torchrun": environments.torchrun,
            "tensorflow": environments.tf_config,
            "horovod": launcher.environment,
        }
        chosen = launchers if self.options.launcher == "all" else (self.options.launcher,)
        return {name: value for launcher in chosen for name, value in launchers[launcher](place, peers).items()}

    def serve(self, joining: WorkerContext) -> AbstractContextManager[None]:
        """Horovod's rendezvous, where the script wants it."""
        path = Path(joining.job.folder) / str(joining.job.script)
        uses_it = path.suffix == ".py" and "horovod" in entrypoint.imports(path)
        if self.options.launcher == "horovod" or (self.options.launcher == "all" and uses_it):
            return launcher.rendezvous(joining)
        return nullcontext()
