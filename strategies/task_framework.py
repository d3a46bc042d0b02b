"""Finds the framework that a task is written for, from its imports, without importing it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dtrain.job import entrypoint
from dtrain.job.job import Job


def of_task(job: Job) -> Literal["torch", "tensorflow"]:
    """TensorFlow if the task's file imports it (or Keras) and not PyTorch; PyTorch otherwise."""
    module, _ = entrypoint.split(job.target)
    imported = entrypoint.imports(Path(job.folder) / module) if module.endswith(".py") else frozenset()
    return "tensorflow" if imported & {"tensorflow", "keras"} and "torch" not in imported else "torch"
