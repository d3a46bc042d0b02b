"""What the command line asks of the process that exports, and what that answers: values that travel as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dtrain.api.exporter import TensorSpec, Tolerance


@dataclass(frozen=True)
class ExportRequest:
    """One model, or its weights, in one form."""

    run: str
    """Path of the run folder."""
    checkpoint: str
    """Path of the checkpoint's folder, whose files were verified."""
    source: str
    """For messages: `digits-20261122-084904-24a7, step 300`."""
    framework: str
    """Name of the plugin."""
    path: str
    """What is to be written."""
    code: str
    """Folder of the user's code."""
    exporter: str = ""
    """Name of the plugin; '': weights alone, in a form that follows from the path."""
    ending: str = ""
    """Of weights alone."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the exporter."""
    model: str = ""
    """Which of a task's several models."""
    latency: bool = False
    """Whether to measure it."""
    metadata: dict[str, str] = field(default_factory=dict)
    """For the files."""


@dataclass(frozen=True)
class Speed:
    """How fast a model answers."""

    batch: int
    """Samples."""
    trained_ms: float
    """Median of a call of the framework's own model."""
    exported_ms: float
    """Median of a call of the exported one, in its runtime."""


@dataclass(frozen=True)
class Verification:
    """How the outputs of the exported model differ from the trained one's."""

    data: str
    """What was put in, in words."""
    samples: int
    batch_sizes: tuple[int, ...]
    absolute: float
    """Largest absolute difference of two values."""
    relative: float
    """Largest difference in proportion to the largest value of its output."""
    tolerance: Tolerance
    problem: str
    """Why they are not equal; '' if they are."""
    metrics: dict[str, tuple[float, float]]
    """Name → trained, exported; empty if the task's metrics do more with the model than one call."""


@dataclass(frozen=True)
class ExportResult:
    """How it went."""

    error: str = ""
    """What keeps the model from this form; '' if nothing did."""
    hint: str = ""
    exit_code: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    verification: Verification | None = None
    speeds: tuple[Speed, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    """Of the packages that took part."""
    notes: tuple[str, ...] = ()
