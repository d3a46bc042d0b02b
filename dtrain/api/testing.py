"""Contract tests for plugins: call these functions from a test of your own strategy, cluster, tracker or exporter.

Each raises `AssertionError` if the plugin does not do what the supervisor relies on. Those of clusters start real agents.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import queue
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from dtrain.api.cluster import Allocation, Cluster, ClusterEvent, NodeLost
from dtrain.api.exporter import Call, Exporter, TrainedModel, specs_of
from dtrain.api.plan import LaunchPlan
from dtrain.api.protocol import AgentEvent, AgentReady, PortsReserved, ReservePorts
from dtrain.api.strategy import RankInfo, RendezvousInfo, Strategy
from dtrain.api.tracker import Ending, Entry, TrackedRun, Tracker
from dtrain.api.weights import Framework
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.processes import alive
from dtrain.job.job import Job, PluginChoice, Resources
from dtrain.record import folder
from dtrain.record.folder import RunDir

PATIENCE_SECONDS = 60.0
T = TypeVar("T")


def plan_for(cluster: str, options: dict[str, Any] | None = None, nodes: int = 2) -> LaunchPlan:
    """A plan with one worker on each of some nodes, for a script that does nothing."""
    job = Job(
        "contract",
        script="true",
        folder="/",
        cluster=PluginChoice(cluster, options or {}),
        resources=Resources(nodes, nodes),
    )
    return LaunchPlan(job, nodes, workers_per_node=1, processes_per_node=1, preload=())


def check_rendering(cluster: Cluster, plan: LaunchPlan, path: Path) -> None:
    """`render` is pure, does not need the run folder, and shows the commands that are run."""
    assert dataclasses.is_dataclass(cluster.Options)
    run = RunDir(path / "not there")
    text = cluster.render(plan, run)
    assert text == cluster.render(plan, run)
    assert "dtrain agent" in text or "supervise" in text
    assert not run.path.exists()


def check_agents(cluster: Cluster, plan: LaunchPlan, path: Path) -> None:
    """Every node has an agent that answers, and no agent is left after the allocation."""
    with _allocated(cluster, plan, path) as lab:
        assert set(lab.ready) == set(lab.allocation.channels)
        assert all(ready.sees_run for ready in lab.ready.values())
        for node, channel in lab.allocation.channels.items():
            channel.send(ReservePorts(7, 3))
            answered, reserved = lab.next(PortsReserved)
            assert answered == node
            assert len(set(reserved.ports)) == 3
    _wait_for_the_end_of(lab)


def check_lost_agent(cluster: Cluster, plan: LaunchPlan, path: Path, *, replaced: bool = True) -> None:
    """A killed agent is reported as a lost node; `replaced`: the cluster starts another one under a new name."""
    with _allocated(cluster, plan, path) as lab:
        victim = next(iter(lab.ready))
        os.kill(lab.ready[victim].pid, signal.SIGKILL)
        node, lost = lab.next(NodeLost)
        assert node == victim
        assert lost.reason
        assert lab.allocation.replace(victim) is replaced
        if replaced:
            name, ready = lab.next(AgentReady)
            assert name not in lab.ready
            assert name in lab.allocation.channels
            lab.ready[name] = ready
    _wait_for_the_end_of(lab)


def check_strategy(strategy: Strategy, job: Job) -> None:
    """The launcher's side is pure, places whole numbers of processes, and tells every rank which it is."""
    assert dataclasses.is_dataclass(strategy.Options)
    names = {field.name for field in dataclasses.fields(strategy.Options)}
    assert "name" not in names, "the recipe has the strategy's own name there"
    assert strategy.preload(job) == strategy.preload(job)
    for per_node in (1, 2, 8):
        assert per_node % strategy.processes(per_node) == 0
    ranks = [RankInfo(rank, 4, rank % 2, 2, rank // 2, 2, 1) for rank in range(4)]
    rendezvous = RendezvousInfo(("10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.2"), (1000, 1001, 1000, 1001), "run", 3)
    environments = [strategy.environment(rank, rendezvous) for rank in ranks]
    assert environments == [strategy.environment(rank, rendezvous) for rank in ranks]
    assert all(isinstance(text, str) for environment in environments for pair in environment.items() for text in pair)
    if strategy.processes(2) == 2:
        assert len({tuple(sorted(environment.items())) for environment in environments}) == 4


def check_tracker(make: Callable[[], Tracker], folder: Path, name: str = "contract") -> None:
    """A tracker goes on where an earlier one of the same run stopped, whether that was closed or killed; `make` gives a new one."""
    assert dataclasses.is_dataclass(make().Options)
    assert "name" not in {field.name for field in dataclasses.fields(make().Options)}, (
        "the recipe has its own name there"
    )
    folder.mkdir(parents=True, exist_ok=True)
    run = TrackedRun("contract-run", name, folder, {"train": {"steps": 10}, "params": {}})
    entries = [Entry(0, 0, 1.0, kind="start", text="start")]
    entries += [Entry(step, step, 1.0 + step, {"train/loss": 1 / step, "node/a b/cpu": 0.5}) for step in range(1, 8)]
    entries[5] = Entry(5, 5, 6.0, {"run/failures": 1.0}, "failure", 'failure: rank 0, "quoted", and\na second line')
    killed = make()
    assert killed.open(run) in (None, 0), "it holds nothing yet"
    killed.log(entries[:3])
    with warnings.catch_warnings():  # files that it left open
        warnings.simplefilter("ignore", ResourceWarning)
        del killed
        gc.collect()
    held = _reopened(make, run, 3, entries[3:6], Ending(4, "stopped", requeued=True))
    held = _reopened(make, run, 6, entries[6:], None, held)
    _reopened(make, run, len(entries), [], Ending(0, "finished"), held)


RUN_EXPORTED = """
import importlib, sys
import numpy as np
run = importlib.import_module(sys.argv[1]).load(sys.argv[2])
found = {}
with np.load(sys.argv[3]) as file:
    for batch in range(int(sys.argv[4])):
        arrays = run([file[name] for name in sorted(file.files) if name.startswith(f"{batch}.")])
        found |= {f"{batch}.{place:03d}": array for place, array in enumerate(arrays)}
np.savez(sys.argv[5], **found)
print([name for name in sys.modules if name.startswith("dtrain.") and not name.startswith("dtrain.exporters")])
"""


def check_exporter(
    exporter: Exporter,
    framework: type[Framework],
    model: Any,
    weights: Mapping[str, Any],
    batches: Sequence[Any],
    folder: Path,
) -> None:
    """An exporter writes a model of this framework, with these weights, where it is told to, and its runtime, which imports nothing of
    dtrain, gives in a fresh process what the model gives on each of these batches of inputs; they differ in size."""
    assert dataclasses.is_dataclass(exporter.Options)
    assert framework.framework in exporter.frameworks
    assert exporter.tolerance.absolute >= 0 and exporter.tolerance.relative >= 0
    inference = framework.inference(model)
    calls = [inference.called(batch) for batch in batches]
    inputs, outputs = specs_of(calls, inference.outputs_of(calls[0]))
    trained = TrainedModel(
        framework.framework, model, inference.function(calls[0], inputs, outputs), inputs, outputs,
        [array for _, array in calls[0].inputs], lambda path: framework.write(path, dict(weights), None, {}), {"dtrain.run": "contract"}, [],
    )  # fmt: skip
    path = folder / f"model{exporter.ending.rstrip('/')}"
    exporter.export(trained, path)
    assert path.is_dir() if exporter.ending.endswith("/") else path.is_file(), "it is not where it was told to write"
    assert all(one.name.startswith(path.name) for one in folder.iterdir()), "it left something else there"
    if not exporter.runtime:
        read = framework.read_file(path, lambda: model)
        assert {name: tuple(value.shape) for name, value in read.items()} == framework.shapes(model)
        return
    for wanted, got in zip(calls, _run_exported(exporter.runtime, path, calls, folder), strict=True):
        for one, other in zip(wanted.outputs, got, strict=True):
            largest = float(abs(one).max())
            allowed = exporter.tolerance.absolute + exporter.tolerance.relative * largest
            assert one.shape == other.shape and float(abs(one - other).max()) <= allowed, "it gives something else"


def _run_exported(runtime: str, path: Path, calls: Sequence[Call], folder: Path) -> list[list[Any]]:
    import subprocess
    import sys

    import numpy as np

    given = {
        f"{number}.{place:03d}": one for number, call in enumerate(calls) for place, (_, one) in enumerate(call.inputs)
    }
    np.savez(folder / "in.npz", **given)
    arguments = [runtime, str(path), str(folder / "in.npz"), str(len(calls)), str(folder / "out.npz")]
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUN_EXPORTED, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]", f"the runtime imports {done.stdout.splitlines()[-1]}"
    with np.load(folder / "out.npz") as file:
        return [
            [file[name] for name in sorted(file.files) if name.startswith(f"{number}.")] for number in range(len(calls))
        ]


def _reopened(
    make: Callable[[], Tracker], run: TrackedRun, logged: int, more: list[Entry], ending: Ending | None, before: int = 0
) -> int:
    tracker = make()
    held = tracker.open(run)
    assert held is None or before <= held <= logged, f"it says {held} entries, and {logged} were logged"
    if more:
        tracker.log(more)
    tracker.close(ending)
    return held or 0


@dataclass
class _Lab:
    """An allocation whose agents are ready."""

    allocation: Allocation
    inbox: queue.SimpleQueue[tuple[str, AgentEvent | ClusterEvent]]
    ready: dict[str, AgentReady]

    def next(self, kind: type[T]) -> tuple[str, T]:
        """The next event of this kind; others are dropped."""
        while True:
            node, item = self.inbox.get(timeout=PATIENCE_SECONDS)
            if isinstance(item, kind):
                return node, item


@contextmanager
def _allocated(cluster: Cluster, plan: LaunchPlan, path: Path) -> Iterator[_Lab]:
    run = folder.create(path, plan.job)
    inbox: queue.SimpleQueue[tuple[str, AgentEvent | ClusterEvent]] = queue.SimpleQueue()
    with cluster.allocate(plan, run, inbox) as allocation:
        lab = _Lab(allocation, inbox, {})
        while len(lab.ready) < plan.nodes:
            node, ready = lab.next(AgentReady)
            lab.ready[node] = ready
        yield lab


def _wait_for_the_end_of(lab: _Lab) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while left := [ready.pid for ready in lab.ready.values() if alive(ready.pid)]:
        assert time.monotonic() < deadline, f"agents are left: {left}"
        time.sleep(0.05)
