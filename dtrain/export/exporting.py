"""Has a process of its own export a model or write its weights, aside, and puts what it made in place by a rename."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dtrain.api.exporter import Exported, ExportError, Layout
from dtrain.api.weights import FOLDER
from dtrain.common.environment import SAME_ORDER
from dtrain.common.errors import DtrainError, Exit, UsageError
from dtrain.common.files import flush_folder, write_json
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.processes import kill_group
from dtrain.common.serde import JsonObject, from_dict, to_dict
from dtrain.export import main
from dtrain.export.request import ExportRequest, ExportResult, Verification
from dtrain.launch import registry
from dtrain.weights.source import SavedWeights

SIDECAR = "export.json"
"""Name, or end of the name, of the file that says where an export came from and how it was verified."""


class Failed(DtrainError):
    """The process that exports could not."""

    def __init__(self, result: ExportResult) -> None:
        super().__init__(result.error, result.hint)
        self.exit_code = Exit(result.exit_code)


@dataclass(frozen=True)
class Made:
    """The files that an export wrote, and how."""

    path: Path
    bytes: int
    result: ExportResult
    serve: tuple[str, ...] = ()
    """How to serve it, of a layout."""


def write_weights(saved: SavedWeights, path: Path, code: Path | None) -> Made:
    """The weights of a run in the form that the path's ending says. Raises `UsageError` for what is there already."""
    ending = _ending(saved, path)
    _refuse_taken(path)
    with _aside(path) as (folder, work):
        target = folder / path.name
        request = _request(saved, target, code)
        result = _asked(dataclasses.replace(request, ending=ending), work)
        size = _size(target)
        _move(target, path)
    return Made(path, size, result)


def export(
    saved: SavedWeights, name: str, path: Path, *, options: JsonObject, model: str = "", latency: bool = False,
    code: Path | None = None, layout: str = "", version: int = 1,
) -> Made:  # fmt: skip
    """A run's model in a form, verified, at this path. Raises `ExportError` if it differs: then nothing is there."""
    _refuse_taken(path / str(version) if layout and _is_repository(path) else path)
    with _aside(path) as (folder, work):
        ending = registry.plugin_class("exporter", name).ending
        target = folder / (path.name if not layout else f"model{ending if ending != FOLDER else ''}")
        request = dataclasses.replace(
            _request(saved, target, code), exporter=name, options=options, model=model, latency=latency
        )
        result = _asked(request, work)
        assert result.verification is not None, "it was exported"
        if result.verification.problem:
            raise _refused(result.verification, name)
        record = _record(saved, name, options, result)
        if layout:
            runtime = registry.plugin_class("exporter", name).runtime
            exported = Exported(path.name, target, name, runtime, result.inputs, result.outputs)
            return _laid_out(exported, layout, version, path, folder / "layout", record, result)
        size = sum(_size(one) for one in folder.glob(f"{path.name}*"))
        return _placed(target, path, record, result, size)


def _ending(saved: SavedWeights, path: Path) -> str:
    """The one that names a form of weights of this framework."""
    written = saved.framework.written
    found = next((ending for ending in written if ending != FOLDER and path.name.endswith(ending)), None)
    if found is None and FOLDER in written and not path.suffix:
        return FOLDER
    if found is None:
        known = ", ".join(f"{ending} ({text})" for ending, text in written.items())
        raise UsageError(
            f"--to {path}: weights of {saved.framework.framework} cannot be written in a form that its name would say",
            f"End it with one of: {known}.",
        )
    return found


def _request(saved: SavedWeights, target: Path, code: Path | None) -> ExportRequest:
    names = [
        name for name in registry.installed("framework") if registry.plugin_class("framework", name) is saved.framework
    ]
    folder = str(code.absolute()) if code else saved.job.folder
    snapshot = "" if code else str(saved.run.code)
    return ExportRequest(
        str(saved.run.path), str(saved.folder), saved.name, names[0], str(target), folder, snapshot, metadata=saved.metadata
    )  # fmt: skip


def _refuse_taken(path: Path) -> None:
    """Raise `UsageError` for what is there: nothing is overwritten."""
    if os.path.lexists(path):
        raise UsageError(f"{path} is there already, and is not overwritten", "Name another place, or remove it first.")


@contextmanager
def _aside(path: Path) -> Iterator[tuple[Path, Path]]:
    """A folder beside a path, for what will be moved to it, and one on the disk of temporary files; neither stays."""
    path = path.absolute()
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".aside", dir=path.parent))
    except OSError as error:
        raise UsageError(f"nothing can be written in {path.parent}: {error.strerror}", "Name another place.") from None
    try:
        with tempfile.TemporaryDirectory(prefix="dtrain-export-") as work:
            yield folder, Path(work)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _asked(request: ExportRequest, work: Path) -> ExportResult:
    """Have a process of its own answer a request; raises `Failed` with what it says."""
    asked, answered, log = work / "request.json", work / "result.json", work / "output.log"
    write_json(asked, to_dict(request))
    environment = SAME_ORDER | os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", main.__name__, str(asked), str(answered)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait()
        finally:
            if process.poll() is None:
                kill_group(process.pid)
                process.wait()
    try:
        result = from_dict(ExportResult, json.loads(answered.read_text()))
    except FileNotFoundError:
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        raise ExportError(
            f"the process that exports ended with {how}",
            f"Its output is in {_kept(log)}; a lack of memory gives signal 9.",
        ) from None
    if result.error:
        raise Failed(
            result if result.hint else dataclasses.replace(result, hint=f"All of its output is in {_kept(log)}.")
        )
    return result


def _kept(log: Path) -> Path:
    """A copy of the output that stays."""
    with tempfile.NamedTemporaryFile("wb", prefix="dtrain-export-", suffix=".log", delete=False) as file:
        file.write(log.read_bytes())
    return Path(file.name)


def _refused(found: Verification, name: str) -> ExportError:
    if found.absolute:
        return ExportError(
            f"the model as {name} is not equal to the trained one: {found.problem}. Nothing was written",
            f"The largest difference is {found.absolute:.3g} over {found.samples} {found.data}. Take another form, or look in the model's "
            "code for what depends on the batch.",
        )
    return ExportError(
        f"the model as {name} does not run: {found.problem}. Nothing was written",
        "Take another form"
        + (
            ", or look in the model's code for what depends on the size of the batch."
            if "on a batch" in found.problem
            else "."
        ),
    )


def _record(saved: SavedWeights, name: str, options: JsonObject, result: ExportResult) -> JsonObject:
    """Return the record that is written beside an export."""
    return {
        "format": name, "run": saved.run.id, "name": saved.job.name, "step": saved.manifest.step,
        "weights_digest": saved.manifest.weights, "strategy": saved.job.strategy.name, "exported": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "options": options,
    } | {key: value for key, value in to_dict(result).items() if key not in ("error", "hint", "exit_code")}  # fmt: skip


def _size(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


def _move(target: Path, path: Path) -> None:
    """Move the result into place by one rename, unless something was made there meanwhile."""
    if os.path.lexists(path):
        raise UsageError(f"{path} was made meanwhile, and is not overwritten", "Name another place.")
    os.rename(target, path)
    flush_folder(path.absolute().parent)


def _placed(target: Path, path: Path, record: JsonObject, result: ExportResult, size: int) -> Made:
    """A folder with what is to be known of it inside; a file after what lies beside it."""
    if target.is_dir():
        write_json(target / SIDECAR, record)
        _move(target, path)
        return Made(path, size, result)
    beside = target.with_name(f"{path.name}.{SIDECAR}")
    write_json(beside, record)
    for one in sorted(target.parent.glob(f"{path.name}*"), key=lambda one: one == target):
        if one != target and os.path.lexists(path.with_name(one.name)):
            path.with_name(one.name).unlink()  # of an export that is no longer there
        _move(one, path.with_name(one.name))
    return Made(path, size, result)


def _laid_out(
    exported: Exported, layout: str, version: int, path: Path, whole: Path, record: JsonObject, result: ExportResult
) -> Made:
    """The folder that a server wants, or a further version in one that is there."""
    plugin: Layout = registry.plugin_class("layout", layout)
    whole.mkdir()
    lines = plugin.write(exported, whole, version)
    own = whole / str(version)
    size = _size(own)
    write_json(own / SIDECAR, record | {"layout": layout})
    if _is_repository(path):
        _refuse_another(path, record | {"layout": layout})
        _move(own, path / str(version))
    else:
        _move(whole, path)
    return Made(path, size, result, tuple(lines))


def _is_repository(path: Path) -> bool:
    """Whether this is a folder with versions of a model."""
    return path.is_dir() and any(one.is_file() for one in path.glob(f"*/{SIDECAR}"))


def _refuse_another(path: Path, record: JsonObject) -> None:
    """Raise `UsageError` for a version that the configuration in a folder does not fit."""
    then = json.loads(next(path.glob(f"*/{SIDECAR}")).read_text())
    for key in ("layout", "format", "inputs", "outputs"):
        if json.dumps(then[key]) != json.dumps(record[key]):
            raise UsageError(
                f"the versions in {path} have other {key} than this model: no version was added", "Name another folder."
            )
