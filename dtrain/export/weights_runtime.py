"""Runs a form that holds weights alone: the task's own model, built anew, with the weights in the file."""

from __future__ import annotations

import json
from pathlib import Path

from dtrain.api.exporter import Run
from dtrain.api.weights import Framework
from dtrain.common.serde import from_dict
from dtrain.export.process import prepared, versions
from dtrain.export.request import ExportRequest
from dtrain.export.subject import built, chosen, subject
from dtrain.launch import registry


def load(request_file: Path, path: Path) -> tuple[Run, dict[str, str]]:
    """Return a function from the inputs of a call to the model's outputs, and the framework's version."""
    request = from_dict(ExportRequest, json.loads(request_file.read_text()))
    job = prepared(request)
    framework: type[Framework] = registry.plugin_class("framework", request.framework)
    task, model = built(job, framework, request)
    one = chosen(model, request.model)
    framework.load_into(one, framework.read_file(path, lambda: one), strict=True, source=str(path))
    loaded = subject(task, framework, model, request.model)
    call = loaded.first_call()
    return lambda inputs: loaded.inference.run(call, inputs), versions(framework.framework)
