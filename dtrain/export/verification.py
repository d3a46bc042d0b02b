"""Compares what an exported model gives, in a fresh process of its runtime, with what the trained one gave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dtrain.api.exporter import Arrays, Exporter, ExportError, TensorSpec, Tolerance
from dtrain.common.lazy_dataclass import dataclass
from dtrain.export import runner, timing
from dtrain.export.function_subject import FunctionSubject
from dtrain.export.request import Speed, Verification
from dtrain.export.shown import Shown
from dtrain.export.subject import Subject


@dataclass(frozen=True)
class Ran:
    """The results of the runtime of an exported model."""

    outputs: list[Arrays]
    """Outputs of each batch."""
    versions: dict[str, str]
    speeds: dict[int, float]
    """Batch size → median milliseconds of a call."""
    problem: str = ""
    """Why it did not answer; '' if it did."""
    batch: int | None = field(default=None)
    """The number of the batch that it failed on; None if it was not loaded."""


def in_fresh_process(
    exporter: Exporter, request_file: Path, path: Path, shown: Sequence[Shown], sizes: Sequence[int]
) -> Ran:
    """Have the exported model at this path answer all batches, and measure batches of these sizes."""
    folder = request_file.parent
    arrays = {
        f"{number}.{place}": array
        for number, one in enumerate(shown)
        for place, (_, array) in enumerate(one.call.inputs)
    }
    np.savez(folder / "inputs.npz", **arrays)
    asked = {
        "runtime": exporter.runtime, "path": str(path), "request": str(request_file), "inputs": str(folder / "inputs.npz"),
        "outputs": str(folder / "outputs.npz"), "batches": len(shown), "arrays": len(shown[0].call.inputs), "speeds": list(sizes),
    }  # fmt: skip
    (folder / "ask.json").write_text(json.dumps(asked))
    (folder / "answer.json").unlink(missing_ok=True)
    command = [sys.executable, "-P", "-m", runner.__name__, str(folder / "ask.json"), str(folder / "answer.json")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, env=os.environ, check=False)
    try:
        answer = json.loads((folder / "answer.json").read_text())
    except FileNotFoundError:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        return Ran([], {}, {}, f"its runtime ended with {how} while it ran")
    if answer["problem"]:
        return Ran([], answer["versions"], {}, answer["problem"], answer["batch"])
    with np.load(folder / "outputs.npz") as file:
        outputs = [
            [file[f"{number}.{place}"] for place in range(count)] for number, count in enumerate(answer["counts"])
        ]
    return Ran(outputs, answer["versions"], {int(size): ms for size, ms in answer["speeds"].items()})


def require_repeatable(
    subject: Subject | FunctionSubject, shown: Shown, outputs: Sequence[TensorSpec], tolerance: Tolerance
) -> None:
    """Raise `ExportError` for a model that gives something else for the same batch: nothing could be equal to it."""
    again = subject.inference.run(shown.call, [array for _, array in shown.call.inputs])
    for wanted, got, spec in zip(shown.call.outputs, again, outputs, strict=True):
        if text := _difference(wanted, got, spec, tolerance)[2]:
            raise ExportError(
                f"the trained model itself does not give the same twice for one batch: {text}",
                "It draws random numbers, or keeps something, in evaluation mode: have it do so in training mode only.",
            )


def compared(
    subject: Subject | FunctionSubject,
    data: str,
    shown: Sequence[Shown],
    ran: Ran,
    outputs: Sequence[TensorSpec],
    tolerance: Tolerance,
) -> Verification:
    """Every value of every batch, and the task's metrics of both."""
    absolute = relative = 0.0
    problem = ran.problem
    if problem and ran.batch is not None:
        problem = f"on a batch of {shown[ran.batch].size}: {problem}"
    for one, given in zip(shown, ran.outputs, strict=False):
        for wanted, got, spec in zip(one.call.outputs, given, outputs, strict=False):
            found, proportion, text = _difference(wanted, got, spec, tolerance)
            absolute, relative = max(absolute, found), max(relative, proportion)
            problem = problem or (f"on a batch of {one.size}: {text}" if text else "")
        if len(given) != len(one.call.outputs):
            problem = problem or f"it has {len(given)} outputs, and the trained model {len(one.call.outputs)}"
    metrics = _metrics(subject, shown, ran) if ran.outputs else {}
    sizes = tuple(dict.fromkeys(one.size for one in shown))
    return Verification(data, sum(one.size for one in shown), sizes, absolute, relative, tolerance, problem, metrics)


def _difference(wanted: Any, got: Any, spec: TensorSpec, tolerance: Tolerance) -> tuple[float, float, str]:
    if wanted.shape != got.shape:
        return 0.0, 0.0, f"{spec.name} has the shape {got.shape} instead of {wanted.shape}"
    if not wanted.size:
        return 0.0, 0.0, ""
    there, here = wanted.astype(np.float64), got.astype(np.float64)
    odd = ~np.isfinite(there)
    if not np.array_equal(there[odd], here[odd], equal_nan=True) or not np.isfinite(here[~odd]).all():
        return float("inf"), float("inf"), f"{spec.name} is not finite at other places than the trained model's"
    apart = np.abs(there - here)[~odd]
    largest = float(np.abs(there[~odd]).max(initial=0.0))
    absolute = float(apart.max(initial=0.0))
    relative = absolute / largest if largest else 0.0
    exact = wanted.dtype.kind in "biu"
    allowed = 0.0 if exact else tolerance.absolute + tolerance.relative * largest
    text = f"{spec.name} differs by {absolute:.3g}, and {allowed:.3g} is allowed" if absolute > allowed else ""
    return absolute, relative, text


def _metrics(subject: Subject | FunctionSubject, shown: Sequence[Shown], ran: Ran) -> dict[str, tuple[float, float]]:
    """Weighted by the samples of the batches; empty if they cannot be told from the outputs alone."""
    sums: dict[str, list[float]] = {}
    total = sum(one.size for one in shown if one.use)
    for one, outputs in zip(shown, ran.outputs, strict=False):
        if one.use is None:
            continue
        pair = [subject.inference.metrics(one.use, one.call, given) for given in (one.call.outputs, outputs)]
        for side, values in enumerate(pair):
            if values is None:
                return {}
            for name, value in values.items():
                sums.setdefault(name, [0.0, 0.0])[side] += value * one.size / total
    return {name: (trained, exported) for name, (trained, exported) in sums.items()}


def speeds(subject: Subject | FunctionSubject, shown: Sequence[Shown], ran: Ran) -> tuple[Speed, ...]:
    """Measure the trained model in its framework beside the exported one in its runtime, one after the other on the
    same threads."""
    call = shown[0].call
    found = []
    for size, exported in ran.speeds.items():
        inputs = timing.first_samples([array for _, array in call.inputs], size, shown[0].size)
        found.append(Speed(size, timing.milliseconds(partial(subject.inference.run, call, inputs)), exported))
    return tuple(found)
