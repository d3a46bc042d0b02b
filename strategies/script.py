"""Scripts as they are: the environment that the script's own launcher would set, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dtrain.api.strategy import RankInfo, RendezvousInfo, Strategy, WorkerContext
from dtrain.job import entrypoint
from dtrain.job.failure_kinds import FailureKind
from dtrain.job.job import Device, Job

from . import environments, errors, flight_recorder, waiting
from .horovod import launcher

PRELOADS = {
    "torch": ("torch", "torch.distributed", "dtrain.strategies.torch.orderly_end"),
    "tensorflow": ("tensorflow",),
    "keras": ("tensorflow",),
}
"""Import in the script → modules that the zygote imports for it."""
TORCH_PRELOADS = {
    "optim": "torch._dynamo",
    "DistributedDataParallel": "torch.nn.parallel",
    "fully_shard": "torch.distributed.fsdp",
}
"""A name that stands in the script → the slow import that comes with its first use."""
BUILT_ON = {
    "accelerate": "torch",
    "deepspeed": "torch",
    "fairscale": "torch",
    "lightning": "torch",
    "pytorch_lightning": "torch",
    "timm": "torch",
    "torchtitan": "torch",
    "torchvision": "torch",
    "transformers": "torch",
    "keras": "tensorflow",
}
"""Import in the script → the framework below it. Only the framework is preloaded: some of these look at the rank
while they are imported."""
LAUNCHERS = {"horovod": "horovod", "torch": "torchrun", "tensorflow": "tensorflow"}
"""Import in the script, the most telling first → the launcher it was written for."""
KERAS_3 = (
    "Keras 3's model.fit does not work under MultiWorkerMirroredStrategy, whatever starts it: pip install tf-keras and set "
    "TF_USE_LEGACY_KERAS=1 (env: in the recipe), or write the loop by hand, or as a task"
)
MOST_TF_CONFIG = 100_000
"""Characters of TF_CONFIG that a script of an unknown kind is given: the kernel passes no longer variable to a program."""

MOST_TF_WORKERS = 4096
"""A script of an unknown kind on more workers gets no TF_CONFIG, which would be too long; then no worker is told of all others."""


@dataclass(frozen=True)
class ScriptOptions:
    """Of a script."""

    launcher: Literal["auto", "all", "torchrun", "tensorflow", "horovod"] = "auto"
    """Whose environment to set: torchrun's RANK, WORLD_SIZE, MASTER_ADDR …, TensorFlow's TF_CONFIG, horovodrun's
    HOROVOD_* with its rendezvous, or all of them; `auto` looks at what the script imports."""


class Script(Strategy):
    """Hosts any program; one process a worker."""

    Options = ScriptOptions
    framework = None
    waits_in = staticmethod(waiting.waits_in)
    explain_hang = staticmethod(flight_recorder.explain)

    def __init__(self, options: ScriptOptions) -> None:
        self.options = options

    def resolve(self, job: Job) -> tuple[str, dict[str, Any], str]:
        """The launcher is fixed for the life of the run."""
        if self.options.launcher != "auto" or job.kind != "script":
            return "script", asdict(self.options), job.strategy.reason
        frameworks = _frameworks(job)
        chosen = next((name for framework, name in LAUNCHERS.items() if framework in frameworks), "all")
        if {"torch", "tensorflow"} <= frameworks and chosen != "horovod":
            chosen = "all"
        reason = (
            f"its imports name {' and '.join(sorted(frameworks))}" if frameworks else "what it imports is not known"
        )
        return "script", asdict(self.options) | {"launcher": chosen}, f"a script for {_words(chosen)}: {reason}"

    def preload(self, job: Job) -> tuple[str, ...]:
        """The frameworks that the script's own import statements name."""
        path = entrypoint.script_file(job)
        frameworks = _frameworks(job)
        modules = [module for name, modules in PRELOADS.items() if name in frameworks for module in modules]
        if path and "torch" in frameworks:
            named = entrypoint.names(path)
            modules += [module for name, module in TORCH_PRELOADS.items() if name in named]
        return tuple(dict.fromkeys(modules))

    def processes(self, workers_per_node: int, device: Device = "cpu") -> int:
        """Return one process a worker."""
        return workers_per_node

    def needs_all_addresses(self, processes: int) -> bool:
        """Whether TF_CONFIG, which names all workers, is set."""
        return self.options.launcher == "tensorflow" or (self._sets("tensorflow") and processes <= MOST_TF_WORKERS)

    def environment(self, rank_info: RankInfo, rendezvous: RendezvousInfo) -> dict[str, str]:
        """Return the variables that the chosen launcher sets."""
        told: dict[str, str] = {}
        if self._sets("torchrun"):
            told |= environments.torchrun(rank_info, rendezvous)
        if self._sets("tensorflow"):
            told |= self._tf_config(rank_info, rendezvous)
        if self._sets("horovod"):
            told |= launcher.environment(rank_info, rendezvous)
        return told

    def gpu_environment(self) -> dict[str, str]:
        """Return what has PyTorch record its collectives, if the script may use it."""
        return flight_recorder.environment() if self._sets("torchrun") else {}

    def classify(self, type_names: Sequence[str], message: str) -> FailureKind | None:
        """A script may use any framework."""
        return errors.of_horovod(type_names, message)

    def explain(self, error: BaseException) -> str:
        text = str(error)
        if isinstance(error, ValueError) and "PerReplica" in text and "unsupported type" in text:
            return KERAS_3
        return ""

    def serve(self, context: WorkerContext) -> AbstractContextManager[None]:
        """Horovod's rendezvous, if the script wants it."""
        wanted = self.options.launcher == "horovod" or (
            self._sets("horovod") and "horovod" in _frameworks(context.job) and launcher.installed()
        )
        return launcher.rendezvous_server(context) if wanted else nullcontext()

    def _tf_config(self, rank_info: RankInfo, rendezvous: RendezvousInfo) -> dict[str, str]:
        if len(rendezvous.addresses) < rank_info.world_size:
            return {}
        config = environments.tf_config(rank_info, rendezvous)
        fits = self.options.launcher == "tensorflow" or len(config["TF_CONFIG"]) < MOST_TF_CONFIG
        return config if fits else {}

    def _sets(self, name: str) -> bool:
        return self.options.launcher in ("all", "auto", name)


def _frameworks(job: Job) -> set[str]:
    """Return the frameworks that the script's files import, directly or below a library built on one."""
    path = entrypoint.script_file(job)
    imported = entrypoint.imports_below(path, job.folder) if path else frozenset()
    if "keras" in imported and job.env.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        imported -= {"keras"}
    return {BUILT_ON.get(name, name) for name in imported} & {*LAUNCHERS, *BUILT_ON.values()}


def _words(chosen: str) -> str:
    return (
        "any launcher" if chosen == "all" else {"tensorflow": "TF_CONFIG", "horovod": "horovodrun"}.get(chosen, chosen)
    )
