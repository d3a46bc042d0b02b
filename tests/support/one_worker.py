"""One worker in this process: a real strategy, a real run folder, a real pipe; nobody is at its other end but the test."""

from __future__ import annotations

import itertools
import socket
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtrain.agent.worker_pipe import WorkerPipe
from dtrain.api.protocol import TAG
from dtrain.api.reports import Report
from dtrain.api.strategy import RankInfo, RendezvousInfo, TrainingStrategy, WorkerContext
from dtrain.common.message import tagged
from dtrain.job.job import Checkpoint, Job, PluginChoice, Train
from dtrain.launch import registry
from dtrain.record.folder import RunDir
from dtrain.worker import loop
from dtrain.worker.control_channel import ControlChannel
from dtrain.worker.debugger import Debugger

_number = itertools.count()


@dataclass
class Heard:
    """What a worker said."""

    words: list[Report] = field(default_factory=list)

    def of(self, word: str) -> list[dict[str, Any]]:
        """All of one kind."""
        return [body for body in (tagged(one, TAG) for one in self.words) if body[TAG] == word]

    def losses(self) -> list[float]:
        """In the order of steps."""
        return [body["values"]["loss"] for body in self.of("metrics")]


def written(folder: Path, source: str) -> str:
    """A user's file with this source, and its name."""
    name = f"user_{next(_number)}.py"
    (folder / name).write_text(textwrap.dedent(source))
    return name


def trained(
    folder: Path, file: str, *, target: str = "Task", strategy: str = "ddp", params: Any = None, **train: Any
) -> Heard:
    """Train a task (or a function, if its name is in lower case) to its end, on one worker."""
    is_task = target[0].isupper()
    numbers = {"steps": 3, "global_batch": 4, "shards": 2, "log_every": 1} | train
    run = RunDir(folder / f"run-{next(_number)}")
    for path in (run.path, run.logs, run.ledgers, run.checkpoints):
        path.mkdir(parents=True, exist_ok=True)
    job = Job(
        name="test", strategy=PluginChoice(strategy), params=params or {}, train=Train(**numbers),
        checkpoint=Checkpoint(every_steps=2), folder=str(folder),
        task=f"{file}:{target}" if is_task else None, function=None if is_task else f"{file}:{target}",
    )  # fmt: skip
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    rendezvous = RendezvousInfo(("127.0.0.1",), (listener.getsockname()[1],), "test", 1)
    context = WorkerContext(RankInfo(0, 1, 0, 1, 0, 1, 1), rendezvous, job, listener)
    ours, theirs = socket.socketpair()
    pipe = WorkerPipe(ours)
    heard = Heard()
    plugin = registry.strategy(strategy, {})
    assert isinstance(plugin, TrainingStrategy)
    with plugin.join(context) as backend:
        try:
            channel = ControlChannel(theirs)
            loop.run(run, context, backend, channel, Debugger(channel, job), None, 0)
        finally:
            import torch.distributed as dist

            for end in (theirs, listener):
                end.close()
            heard.words += [report for _, report in pipe.reports()]
            pipe.close()
            sys.modules.pop(Path(file).stem, None)
            if sys.exc_info()[0]:
                dist.destroy_process_group()
    return heard
