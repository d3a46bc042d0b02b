"""Code shared by the processes that import the user's code."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from pathlib import Path

from dtrain.export.request import ExportRequest
from dtrain.job import code, entrypoint
from dtrain.job.job import Job
from dtrain.record import code_snapshot
from dtrain.record.folder import RunDir


def prepared(request: ExportRequest) -> Job:
    """Have this process find the user's code as a worker does, and no accelerator; the run's job."""
    job = RunDir(Path(request.run)).job()
    os.environ.update(job.env)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if Path(request.code).is_dir():
        os.chdir(request.code)
        entrypoint.enter(job, request.code)
    snapshot = code_snapshot.opened(Path(request.snapshot), request.code) if request.snapshot else None
    if snapshot:
        code.install(snapshot)
    return dataclasses.replace(job, folder=request.code)


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of modules, by their own names, whatever distribution brings them."""
    found = {}
    for package in ("dtrain", *packages):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            distributions = importlib.metadata.packages_distributions().get(package, [])
            if distributions:
                found[package] = importlib.metadata.version(distributions[0])
    return found
