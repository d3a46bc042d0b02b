"""Names of checkpoints: a step and the attempt that saved it. No two attempts of a run have the same number, so no name is used twice."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import field
from pathlib import Path

from dtrain.common.lazy_dataclass import dataclass

PATTERN = re.compile(r"step-(\d+)(?:-attempt-(\d+))?")
"""Names without an attempt are those of older versions."""


@dataclass(frozen=True, order=True)
class CheckpointName:
    """The name of a checkpoint's folder; a later step is greater and, of one step, a later attempt."""

    step: int
    attempt: int
    text: str = field(compare=False)


def name_of(attempt: int, step: int) -> str:
    """The name of the checkpoint that an attempt saves at a step."""
    return f"step-{step:08d}-attempt-{attempt:04d}"


def parsed_name(text: str) -> CheckpointName | None:
    """The step and the attempt in the name of a folder; None if it is no checkpoint's."""
    found = PATTERN.fullmatch(text)
    return CheckpointName(int(found[1]), int(found[2] or 0), text) if found else None


def newest_first(texts: Iterable[str]) -> list[CheckpointName]:
    """The names of checkpoints among these names."""
    return sorted(filter(None, map(parsed_name, texts)), reverse=True)


def folder_of(checkpoints: Path, step: int) -> Path:
    """The folder of the latest committed checkpoint of a step in a folder of them; raises `FileNotFoundError`."""
    names = newest_by_step(newest_first(path.name for path in checkpoints.glob("step-*")))
    if step not in names:
        raise FileNotFoundError(f"no checkpoint of step {step} in {checkpoints}")
    return checkpoints / names[step].text


def newest_by_step(names: Iterable[CheckpointName]) -> dict[int, CheckpointName]:
    """Step → the checkpoint of its latest attempt, the last step first."""
    found: dict[int, CheckpointName] = {}
    for name in sorted(names, reverse=True):
        found.setdefault(name.step, name)
    return found
