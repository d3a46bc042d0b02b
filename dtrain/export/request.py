"""The request to the process that exports, and its answer: values that travel as JSON."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from dtrain.api.exporter import TensorSpec, Tolerance
from dtrain.common.lazy_dataclass import dataclass


@dataclass(frozen=True)
class ExportRequest:
    """One model, or its weights, in one form."""

    run: str
    """Path of the run folder."""
    checkpoint: str
    """Path of the checkpoint's folder, whose files were verified."""
    source: str
    """Description for messages: `digits-20261122-084904-24a7, step 300`."""
    framework: str
    """Name of the plugin."""
    path: str
    """Path to write."""
    code: str
    """Folder of the user's code."""
    snapshot: str = ""
    """Path of the run's snapshot of that code; '': the code is taken as it is in the folder."""
    exporter: str = ""
    """Name of the plugin; '': weights alone, in a form that follows from the path."""
    ending: str = ""
    """File ending of weights alone."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the exporter."""
    model: str = ""
    """Name of the model, if the task has several."""
    latency: bool = False
    """Whether to measure it."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Metadata for the files."""


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
    """Description of the input data."""
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
    """The outcome of an export."""

    error: str = ""
    """The reason why the model cannot have this form; '' if there is none."""
    hint: str = ""
    exit_code: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    verification: Verification | None = None
    speeds: tuple[Speed, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the packages that took part."""
    notes: tuple[str, ...] = ()
