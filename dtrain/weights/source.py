"""Where weights come from: a checkpoint of a run, chosen by its step or by a metric and verified, or a file."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.api.weights import Framework, Weights
from dtrain.checkpoint.factory import store_of
from dtrain.checkpoint.store import Manifest, numbers_of
from dtrain.common import environment
from dtrain.common.errors import FrameworkMissing, UsageError, nearest
from dtrain.launch import registry
from dtrain.run import event_log
from dtrain.run.events import Evaluation
from dtrain.run.folder import RunDir
from dtrain.run.metric_curves import lower_is_better
from dtrain.spec.job import Job
from dtrain.storage import run_sync

RUNS = Path("runs")
STEP_FOLDER = re.compile(r"step-(\d+)(-attempt-\d+)?")


@dataclass(frozen=True)
class SavedWeights:
    """A verified checkpoint of a run, in a folder on this machine."""

    run: RunDir
    job: Job
    folder: Path
    manifest: Manifest
    framework: Framework

    @property
    def name(self) -> str:
        """For messages: `digits-20261122-084904-24a7, step 300`."""
        return f"{self.run.id}, step {self.manifest.step}"

    @property
    def metadata(self) -> dict[str, str]:
        """What tells where weights came from, for the files that are made of them."""
        return {
            "dtrain.run": self.run.id,
            "dtrain.step": str(self.manifest.step),
            "dtrain.weights_digest": self.manifest.weights,
        }

    def read(self) -> Weights:
        """The weights, whole."""
        return self.framework.read(self.folder)


def runs_folder(runs: str | os.PathLike[str] | None = None) -> Path:
    """Where run folders are if nobody says so."""
    return Path(runs or os.environ.get(environment.RUNS) or RUNS)


def saved(runs: Path, name: str, step: int | None = None, best: str | None = None) -> SavedWeights:
    """The checkpoint of a run that was meant: of a step, or the best by a metric of its evaluations, or the newest. `name` may also
    be the path of a checkpoint's folder. Raises `UsageError` for what is not there, `CheckpointError` for a damaged one."""
    if step is not None and best is not None:
        raise UsageError("a checkpoint is chosen by its step or by a metric, not by both", "Leave out one of them.")
    of_folder = STEP_FOLDER.fullmatch(Path(name).name) if "://" not in name and step is None and best is None else None
    if of_folder and (Path(name).absolute().parent.parent / "job.json").is_file():
        name, step = str(Path(name).absolute().parent.parent), int(of_folder[1])
    run = run_sync.find(runs, name)
    job = run.job()
    if job.kind == "script":
        raise UsageError(
            f"{run.id} ran a script, which keeps its own checkpoints: dtrain knows no weights of it",
            "Read the files that the script wrote.",
        )
    store = store_of(run, job)
    chosen, manifest = store.verified(best_step(run, job, store.steps(), best) if best else step)
    return SavedWeights(run, job, chosen, manifest, _framework_of(chosen, manifest))


def best_step(run: RunDir, job: Job, steps: Sequence[int], metric: str) -> int:
    """The step of the committed checkpoint whose evaluation was the best by a metric; of equally good ones the earlier."""
    values: dict[int, float] = {}
    known: dict[str, None] = {}
    for event in event_log.read(run.events):
        if isinstance(event, Evaluation):
            known |= dict.fromkeys(event.values)
            values[event.step] = event.values.get(metric, math.nan)
    if metric not in known:
        hint = nearest(metric, list(known)) if known else "It has no evaluations: set train.evaluate_every."
        raise UsageError(f"the evaluations of {run.id} have no metric '{metric}'", hint)
    there = [step for step in steps if math.isfinite(values.get(step, math.nan))]
    if not there:
        raise UsageError(
            f"no checkpoint of {run.id} is of a step that was evaluated: there are those of the steps {numbers_of(steps)}",
            f"checkpoint: {{keep_best: {{metric: {metric}, mode: max}}}} in the recipe saves at evaluations; or choose a step.",
        )
    kept = job.checkpoint.keep_best
    lowest = kept.mode == "min" if kept and kept.metric == metric else lower_is_better(metric)
    return min(there, key=lambda step: (values[step] if lowest else -values[step], step))


def _framework_of(folder: Path, manifest: Manifest) -> Framework:
    """Whose weights a checkpoint holds; raises `FrameworkMissing` if that is not installed here."""
    import importlib.util

    for found in registry.frameworks():
        if found.wrote(manifest.files):
            if importlib.util.find_spec(found.framework) is None:
                raise FrameworkMissing(
                    f"the weights in {folder.name} are {found.framework}'s, which is not installed here",
                    f"pip install 'dtrain[{found.framework}]'",
                )
            return found
    raise UsageError(f"no installed framework knows the files of {folder}", "See 'dtrain plugins'.")


def load(
    run: str | os.PathLike[str], step: int | None = None, best: str | None = None, *,
    runs: str | os.PathLike[str] | None = None,
) -> Weights:  # fmt: skip
    """See `dtrain.load`."""
    return saved(runs_folder(runs), os.fspath(run), step, best).read()


def load_weights(
    model: Any, run: str | os.PathLike[str], step: int | None = None, best: str | None = None, *, strict: bool = True,
    runs: str | os.PathLike[str] | None = None,
) -> Any:  # fmt: skip
    """See `dtrain.load_weights`."""
    source = saved(runs_folder(runs), os.fspath(run), step, best)
    source.framework.shapes(model)
    left = source.framework.load_into(model, source.read(), strict=strict, source=source.name)
    if left:
        print(f"{source.name}: {left.told()}")
    return model
