"""The process that exports one model: `python -m dtrain.export.main REQUEST RESULT`, two files of JSON.

It imports the user's code and the framework, so that the command line need not, and ends with the command.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from dtrain.api.exporter import Exporter, ExportError, TrainedModel, specs_of
from dtrain.api.weights import FOLDER, Framework
from dtrain.common.errors import DtrainError, Exit, UserError
from dtrain.common.files import flush_file, write_json
from dtrain.common.processes import die_with_parent
from dtrain.common.serde import from_dict, to_dict
from dtrain.export import verification
from dtrain.export.process import prepared, versions
from dtrain.export.request import ExportRequest, ExportResult
from dtrain.export.shown import Shown
from dtrain.export.subject import built, chosen, own_weights, subject
from dtrain.job.job import Job
from dtrain.job.task_answers import gave
from dtrain.launch import registry

ROOM_BYTES = 1 << 16
TOKENIZER = "tokenizer"
"""A method that a task may have."""


def main() -> None:
    """Do what the request says, and write how it went."""
    die_with_parent(os.getppid())
    request_file, result_file = map(Path, sys.argv[1:])
    request = from_dict(ExportRequest, json.loads(request_file.read_text()))
    try:
        job = prepared(request)
        framework: type[Framework] = registry.plugin_class("framework", request.framework)
        result = (
            _exported(request, request_file, job, framework) if request.exporter else _written(request, job, framework)
        )
    except DtrainError as error:
        traceback.print_exc()
        result = ExportResult(error.message, error.hint, int(error.exit_code))
    except OSError as error:
        traceback.print_exc()
        where = f": {error.filename}" if error.filename else ""
        result = ExportResult(f"the file system says: {error.strerror or error}{where}", "", int(Exit.GAVE_UP))
    except Exception as error:  # noqa: BLE001  of the user's code
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        result = ExportResult(text, _place(error, request.code), int(Exit.USER_CODE))
    if result.error and ("No space left" in result.error or _is_full(Path(request.path).parent)):
        result = ExportResult(
            f"no space left on the disk of {Path(request.path).parent.parent}",
            "Free some, or name another place.",
            int(Exit.GAVE_UP),
        )
    write_json(result_file, to_dict(result))


def _is_full(folder: Path) -> bool:
    """Whether nothing can be written to a disk any more; libraries have many words for it."""
    try:
        (folder / ".room").write_bytes(bytes(ROOM_BYTES))
    except OSError as error:
        return error.errno == errno.ENOSPC
    (folder / ".room").unlink()
    return False


def _place(error: Exception, folder: str) -> str:
    """The last line of the user's code that an error came from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(folder)]
    return f"It was raised in {frames[-1].filename}, line {frames[-1].lineno}." if frames else ""


def _written(request: ExportRequest, job: Job, framework: type[Framework]) -> ExportResult:
    """Write the weights alone."""
    path, weights = Path(request.path), framework.read(Path(request.checkpoint))
    task, model = None, None
    if framework.needs_model(request.ending):
        task, model = built(job, framework, request, empty=True)
    notes = framework.write(path, weights, model, request.metadata, request.source)
    if request.ending == FOLDER and hasattr(task, TOKENIZER):
        _write_tokenizer(task, path)
    for one in path.rglob("*") if path.is_dir() else (path,):
        flush_file(one)
    return ExportResult(notes=tuple(notes))


def _write_tokenizer(task: Any, path: Path) -> None:
    """Write the files of the task's tokenizer or processor into a folder of Hugging Face."""
    tokenizer = task.tokenizer()
    if not hasattr(tokenizer, "save_pretrained"):
        raise UserError(
            f"{task.name}.{TOKENIZER} gave {gave(tokenizer)}; expected a tokenizer or a processor with save_pretrained"
        )
    tokenizer.save_pretrained(path)


def _exported(request: ExportRequest, request_file: Path, job: Job, framework: type[Framework]) -> ExportResult:
    exporter: Exporter = registry.exporter(request.exporter, request.options)
    task, model = built(job, framework, request)
    weights = framework.read(Path(request.checkpoint))
    framework.load_into(model, weights, strict=True, source=request.source)
    exported = subject(task, framework, model, request.model)
    data, shown = exported.shown()
    inputs, outputs = specs_of([one.call for one in shown], exported.inference.outputs_of(shown[0].call))
    if not inputs:
        raise ExportError(f"{task.name} calls its model without any tensor", "Give it a method example_input().")
    verification.require_repeatable(exported, shown[0], outputs, exporter.tolerance)
    call, own = shown[0].call, own_weights(weights, model, request.model)
    trained = TrainedModel(
        framework.framework, chosen(model, request.model), exported.inference.function(call, inputs, outputs), inputs, outputs,
        [array for _, array in call.inputs], lambda path: framework.write(path, own, None, request.metadata),
        request.metadata, [call.note] if call.note else [],
    )  # fmt: skip
    exporter.export(trained, Path(request.path))
    sizes = _speed_sizes(shown) if request.latency else ()
    ran = verification.in_fresh_process(exporter, request_file, Path(request.path), shown, sizes)
    found = verification.compared(exported, data, shown, ran, outputs, exporter.tolerance)
    return ExportResult(
        inputs=inputs, outputs=outputs, verification=found, versions=versions(framework.framework, *exporter.packages) | ran.versions,
        speeds=verification.speeds(exported, shown, ran), notes=tuple(trained.notes),
    )  # fmt: skip


def _speed_sizes(shown: list[Shown]) -> tuple[int, ...]:
    """Return the sizes whose speed is measured: one sample, and a batch."""
    return tuple(dict.fromkeys((1, shown[0].size)))


if __name__ == "__main__":
    main()
