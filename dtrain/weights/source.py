"""Where weights come from: a checkpoint of a run, chosen by its step or by a metric and verified, or a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dtrain.api.weights import DeviceMap, Framework, Weights
from dtrain.checkpoint import choice
from dtrain.checkpoint.factory import store_of
from dtrain.checkpoint.store import Manifest
from dtrain.common import installation
from dtrain.common.errors import FrameworkMissing, UsageError
from dtrain.common.lazy_dataclass import dataclass
from dtrain.job.job import Job
from dtrain.launch import registry
from dtrain.record.folder import RunDir, default_root


@dataclass(frozen=True)
class SavedWeights:
    """A verified checkpoint of a run, in a folder on this machine."""

    run: RunDir
    job: Job
    folder: Path
    manifest: Manifest
    framework: type[Framework]

    @property
    def name(self) -> str:
        """Name for messages: `digits-20261122-084904-24a7, step 300`."""
        return f"{self.run.id}, step {self.manifest.step}"

    @property
    def metadata(self) -> dict[str, str]:
        """The origin of the weights, for the files that are made of them."""
        return {
            "dtrain.run": self.run.id,
            "dtrain.step": str(self.manifest.step),
            "dtrain.weights_digest": self.manifest.weights,
        }

    def read(self) -> Weights:
        """Read the weights, or have them read when they are asked for."""
        return self.framework.read(self.folder)


def saved(runs: Path, name: str, step: int | None = None, best: str | None = None) -> SavedWeights:
    """The checkpoint of a run that was meant: of a step, or the best by a metric of its evaluations, or the newest. `name` may also
    be the path of a checkpoint's folder. Raises `UsageError` for what is not there, `CheckpointError` for a damaged one."""
    run, job, chosen = choice.of_name(runs, name, step, best)
    folder, manifest = store_of(run, job).verified(chosen)
    return SavedWeights(run, job, folder, manifest, _framework_of(folder, manifest))


def _framework_of(folder: Path, manifest: Manifest) -> type[Framework]:
    """Return the framework whose weights a checkpoint holds; raises `FrameworkMissing` if that is not installed
    here."""
    import importlib.util

    for found in registry.frameworks():
        if found.wrote(manifest.files):
            if importlib.util.find_spec(found.framework) is None:
                raise FrameworkMissing(
                    f"the weights in {folder.name} are {found.framework}'s, which is not installed here",
                    installation.command(found.framework),
                )
            return found
    raise UsageError(f"no installed framework knows the files of {folder}", "See 'dtrain plugins'.")


def load(
    run: str | os.PathLike[str], step: int | None = None, best: str | None = None, *,
    runs: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Read the weights of a run; see `dtrain.load`."""
    return dict(saved(default_root(runs), os.fspath(run), step, best).read())


def load_weights(
    model: Any, run: str | os.PathLike[str], step: int | None = None, best: str | None = None, *, strict: bool = True,
    device_map: DeviceMap | None = None, runs: str | os.PathLike[str] | None = None,
) -> Any:  # fmt: skip
    """Put the weights of a run into a model; see `dtrain.load_weights`."""
    source = saved(default_root(runs), os.fspath(run), step, best)
    source.framework.shapes(model)
    left = source.framework.load_into(model, source.read(), strict=strict, source=source.name, device_map=device_map)
    if left:
        print(f"{source.name}: {left.told()}")
    return model
