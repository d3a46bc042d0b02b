"""Scripts as they are: the environment that the script's own launcher would set, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dtrain import usercode
from dtrain.job import Job
from dtrain.strategy import Peers, Place

from . import _environments

PRELOADS = {
    "torch": ("torch", "torch.distributed", "torch._dynamo"),
    "tensorflow": ("tensorflow",),
    "keras": ("tensorflow",),
}


@dataclass(frozen=True)
class ScriptOptions:
    """Of a script."""

    launcher: Literal["all", "torchrun", "tensorflow"] = "all"
    """Whose environment to set: torchrun's RANK, WORLD_SIZE, MASTER_ADDR …, TensorFlow's TF_CONFIG, or all of them."""


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
        imported = usercode.imports(path)
        return tuple(
            dict.fromkeys(module for name, modules in PRELOADS.items() if name in imported for module in modules)
        )

    def processes(self, workers_per_node: int) -> int:
        """One a worker."""
        return workers_per_node

    def environment(self, place: Place, peers: Peers) -> dict[str, str]:
        """As the chosen launcher sets it."""
        result: dict[str, str] = {}
        if self.options.launcher in ("all", "torchrun"):
            result |= _environments.torchrun(place, peers)
        if self.options.launcher in ("all", "tensorflow"):
            result |= _environments.tf_config(place, peers)
        return result
