"""The weights that a run begins with, as a worker reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dtrain.api.weights import Framework, Weights
from dtrain.common.errors import UserError
from dtrain.job.job import InitFrom, Job
from dtrain.launch import initial_weights
from dtrain.weights import source


def of_job(job: Job) -> InitFrom | None:
    """Return the weights that the job begins with."""
    begins = job.init_from
    assert not isinstance(begins, str), "the plan resolved it"
    return begins


def read(begins: InitFrom, root: Path, framework: type[Framework], model: Callable[[], Any]) -> Weights:
    """The weights of a resolved `init_from`; `root` is a folder for what is fetched. Raises `UserError` for those of another
    framework and for a file that is not on this node."""
    if "://" in begins.source or initial_weights.is_of_run(Path(begins.source)):
        found = source.saved(root, begins.source, begins.step)
        if found.framework is not framework:
            raise UserError(
                f"init_from: {begins.source} holds weights of {found.framework.framework}, and this run trains with "
                f"{framework.framework}",
                "Between frameworks there is dtrain export RUN --to onnx; to train on, take a run of the same framework.",
            )
        return found.read()
    path = Path(begins.source)
    if not path.exists():
        raise UserError(
            f"init_from: there is no {path} on this node", "Put it on a file system that all nodes see, or name a URL."
        )
    return framework.read_file(path, model)
