"""How much memory a rank will need, told before anything is started: a process of its own builds the model without memory for its weights.

`python -m dtrain.inspect.rank_memory JOB RESULT`, two files of JSON; only that process imports the user's code and the framework.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from dtrain.api.rank_memory import RankMemory
from dtrain.api.strategy import RendezvousInfo
from dtrain.common.errors import DtrainError
from dtrain.common.files import write_json
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.processes import die_with_parent
from dtrain.common.serde import from_dict, to_dict
from dtrain.common.sizes import memory_bytes
from dtrain.job import entrypoint
from dtrain.job.job import Job
from dtrain.launch import planner, registry


@dataclass(frozen=True)
class MemoryPlan:
    """What a rank needs, beside what its device has."""

    needed: RankMemory | None
    device_bytes: int | None
    """`resources.device_memory`."""
    unknown: str = ""
    """Why it is not known what is needed."""
    enough_workers: int | None = None
    """Workers whose devices would hold a sharded model, if those of the recipe do not."""

    @property
    def fits(self) -> bool:
        """Whether a device can hold it, as far as that is known."""
        return not (self.needed and self.device_bytes) or self.needed.total <= self.device_bytes


def of_job(job: Job) -> MemoryPlan:
    """What the ranks of a task need."""
    device = memory_bytes(job.resources.device_memory or "")
    needed, unknown = _asked(job)
    enough = None
    if needed and device and needed.block and device > (gathered := needed.block * needed.blocks):
        enough = -(-needed.split * job.resources.workers // (device - gathered))
    return MemoryPlan(needed, device, unknown, enough)


def _asked(job: Job) -> tuple[RankMemory | None, str]:
    """The answer of the process of its own, and why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered, log = (Path(folder) / name for name in ("job.json", "result.json", "log"))
        write_json(asked, to_dict(job))
        with log.open("wb") as output:
            done = subprocess.run(
                [sys.executable, "-P", "-m", __name__, str(asked), str(answered)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
        if not answered.is_file():
            said = log.read_text(errors="replace").strip().splitlines()
            return (
                None,
                f"the process that builds the model ended with {done.returncode}: {said[-1] if said else 'no word'}",
            )
        found = json.loads(answered.read_text())
    return (from_dict(RankMemory, found["memory"]) if found["memory"] else None), found["unknown"]


def main() -> None:
    """Answer one question."""
    from dtrain.worker import task as tasks  # imports numpy

    die_with_parent(os.getppid())
    job_file, result_file = map(Path, sys.argv[1:])
    job = from_dict(Job, json.loads(job_file.read_text()))
    strategy = registry.strategy_of(job)
    first = planner.make(job).ranks_by_node()[0][0]
    alone = RendezvousInfo(("127.0.0.1",) * first.world_size, (0,) * first.world_size, job.name, 1)
    os.environ.update(strategy.environment(first, alone) | job.env)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    entrypoint.enter(job, job.folder)
    memory, unknown = None, ""
    try:
        memory = strategy.rank_memory(tasks.of_job(job), job)
        unknown = "" if memory else f"the strategy {job.strategy.name} does not tell"
    except DtrainError as error:
        unknown = error.message
    except Exception as error:  # noqa: BLE001  of the user's code
        unknown = f"{type(error).__name__}: {error}".partition("\n")[0]
    write_json(result_file, {"memory": dataclasses.asdict(memory) if memory else None, "unknown": unknown})


if __name__ == "__main__":
    main()
