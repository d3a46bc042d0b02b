"""One recipe trains on the local machine, on Ray and on SLURM, and survives what goes wrong there.

`run`, `submit`, `attach`, `resume`, `stop` and `status` do what the commands of these names do, and give a `Run`; `tune` begins a `Study`; `load`
and `load_weights` read the weights of a run. `Context` and `Task` are types for the code that dtrain trains. See docs/python.md.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtrain.api.weights import DeviceMap
    from dtrain.common.errors import DtrainError as DtrainError
    from dtrain.common.errors import UsageError as UsageError
    from dtrain.job.task_types import Task as Task
    from dtrain.job.task_types import TrainStep as TrainStep
    from dtrain.launch.python_recipe import Recipe as Recipe
    from dtrain.runs import Run as Run
    from dtrain.runs import RunFailed as RunFailed
    from dtrain.runs import attach as attach
    from dtrain.runs import resume as resume
    from dtrain.runs import run as run
    from dtrain.runs import status as status
    from dtrain.runs import stop as stop
    from dtrain.runs import submit as submit
    from dtrain.studies import Study as Study
    from dtrain.studies import StudyFailed as StudyFailed
    from dtrain.studies import tune as tune
    from dtrain.worker.context import Context as Context

_HOMES = {
    **dict.fromkeys(("run", "submit", "attach", "resume", "stop", "status", "Run", "RunFailed"), "dtrain.runs"),
    **dict.fromkeys(("Study", "StudyFailed", "tune"), "dtrain.studies"),
    **dict.fromkeys(("Task", "TrainStep"), "dtrain.job.task_types"),
    **dict.fromkeys(("DtrainError", "UsageError"), "dtrain.common.errors"),
    "Recipe": "dtrain.launch.python_recipe",
    "Context": "dtrain.worker.context",
}
"""Public name → its module, imported when it is first used: `import dtrain` costs nothing."""
__all__ = [
    "Context", "DtrainError", "Recipe", "Run", "RunFailed", "Study", "StudyFailed", "Task", "TrainStep", "UsageError", "attach", "load", "load_weights",
    "resume", "run", "status", "stop", "submit", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dtrain' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def load(
    run: str | os.PathLike[str], step: int | None = None, best: str | None = None, *,
    runs: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The weights of a run on the CPU: a state dict of PyTorch, or numpy arrays in the order of a Keras model's `weights`.

    `run` is an id, a prefix of one, `last`, a run folder or a URL; `runs` the folder of runs (`./runs` or DTRAIN_RUNS). The newest
    checkpoint, or the one of a `step`, or the `best` by a metric of the evaluations; its files are verified by their digests."""
    from dtrain.weights import source

    return source.load(run, step, best, runs=runs)


def load_weights(
    model: Any, run: str | os.PathLike[str], step: int | None = None, best: str | None = None, *, strict: bool = True,
    device_map: DeviceMap | None = None, runs: str | os.PathLike[str] | None = None,
) -> Any:  # fmt: skip
    """Put the weights of a run into a PyTorch module or a Keras model (a dict of modules if the run trained several), and give it back.

    Raises an error that lists every name and shape that does not fit; with `strict=False`, what fits is loaded. With `device_map` (a device,
    or name of a module → device) each tensor is read to its device, of a model that may be on the meta device. See `load`."""
    from dtrain.weights import source

    return source.load_weights(model, run, step, best, strict=strict, device_map=device_map, runs=runs)
