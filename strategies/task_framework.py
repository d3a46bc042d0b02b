"""Finds the framework that a task is written for, from its imports, without importing it."""

from __future__ import annotations

from typing import Literal

from dtrain.job import entrypoint
from dtrain.job.job import Job


def of_task(job: Job) -> Literal["torch", "tensorflow"]:
    """TensorFlow if the task's file imports it (or Keras) and not PyTorch; PyTorch otherwise."""
    file = entrypoint.source(job.target, job.code_folders)
    imported = entrypoint.imports(file) if file else frozenset()
    return "tensorflow" if imported & {"tensorflow", "keras"} and "torch" not in imported else "torch"
