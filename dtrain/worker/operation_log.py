"""The operations of some steps of a worker, written down for `dtrain drill --explain`; in every other run nothing is."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import FrameType

from dtrain.api.operations import Entry, Operation
from dtrain.api.training_backend import TrainingBackend
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import to_dict
from dtrain.record.folder import RunDir
from dtrain.worker.users_code import UsersCode


@dataclass(frozen=True)
class _Asked:
    """The steps that this process logs, and the place."""

    steps: range
    file: Path
    folder: str
    code: UsersCode


_asked: _Asked | None = None


def begin(steps: str, run: RunDir, rank: int, attempt: int) -> None:
    """Write down these steps (`from:to`, the latter not included); '' asks for none."""
    global _asked
    _asked = None
    if steps:
        job, (first, end) = run.job(), map(int, steps.split(":"))
        _asked = _Asked(range(first, end), run.operations(attempt, rank), job.folder, UsersCode(job))


def around(step: int, backend: TrainingBackend, first_shard: int) -> AbstractContextManager[None]:
    """Around a step of the training backend, whose first pass is this shard."""
    if _asked is None or step not in _asked.steps or not backend.logs_operations:
        return nullcontext()
    return _written(_asked, step, backend, first_shard)


@contextmanager
def _written(asked: _Asked, step: int, backend: TrainingBackend, first_shard: int) -> Iterator[None]:
    users = cache(asked.code.__contains__)

    def place() -> str:
        frame: FrameType | None = sys._getframe(2)
        while frame and not users(frame.f_code.co_filename):
            frame = frame.f_back
        return f"{frame.f_code.co_filename.removeprefix(asked.folder).lstrip('/')}:{frame.f_lineno}" if frame else ""

    with open(asked.file, "a") as file:

        def tell(one: Operation) -> None:
            shard = None if one.number is None else first_shard + one.number
            file.write(json.dumps(to_dict(Entry(step, shard, place(), one))) + "\n")

        with backend.operations_told(tell):
            yield
