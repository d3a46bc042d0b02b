"""What ps, status, logs, stop, plan and plugins print; everything comes from run folders and entry points."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dtrain.api.cluster import Submission
from dtrain.api.plan import LaunchPlan
from dtrain.api.strategy import RendezvousInfo
from dtrain.cli import render
from dtrain.cli.live_view import LineReader, workers
from dtrain.common.errors import ClusterError, UsageError
from dtrain.launch import registry
from dtrain.run import event_log
from dtrain.run.events import Event, Requeued, RunEnded
from dtrain.run.folder import RunDir
from dtrain.run.status import RunState, fold
from dtrain.storage import run_sync

LOOK_SECONDS = 0.2
ASK_SECONDS = 2.0
START_SECONDS = 5.0
STOP_SECONDS = 30.0
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
"""Words of clusters for a submission that does not run."""


def submission(run: RunDir) -> Submission | None:
    """What the cluster says of a submitted run, or None for one that was not submitted."""
    submitted = run.submitted()
    if submitted is None:
        return None
    cluster = registry.cluster(submitted.cluster, run.job().cluster.options)
    try:
        return cluster.state(run, submitted.reference)
    except ClusterError as error:
        return Submission("UNKNOWN", " ".join(str(error).split()), submitted.reference)


def state_of(run: RunDir) -> RunState:
    """The state in the diary, corrected by what is known of the supervisor: a diary that just stops has no end."""
    run_sync.refresh(run)
    history = event_log.read(run.events)
    state = fold(history)
    state.run = run.id
    job = run.job()
    if not state.target:
        state.target, state.strategy, state.cluster = job.target, job.strategy.name, job.cluster.name
        state.workers, state.phase = job.resources.workers, "created"
    if _is_unfinished(run, state, history) and not run.supervised():
        _ask_cluster(run, state, requeued=[type(event) for event in history[-2:]] == [Requeued, RunEnded])
    return state


def _is_unfinished(run: RunDir, state: RunState, history: list[Event]) -> bool:
    """Whether more is to come: there is no end yet, or the cluster was given the run (again) after it."""
    if state.exit_code is None or any(isinstance(event, Requeued) for event in history[-2:]):
        return True
    submitted = run.submitted()
    return submitted is not None and submitted.time > history[-1].time


def _ask_cluster(run: RunDir, state: RunState, *, requeued: bool) -> None:
    there = submission(run)
    if there and there.state and not there.over:
        begun = state.exit_code is None and state.began > 0
        word = "REQUEUED" if requeued else there.state
        words = ", ".join(filter(None, (there.state if requeued else "", there.reason)))
        if not (begun and there.state == "RUNNING"):
            state.phase = f"{word} ({words})" if words else word
        state.exit_code, state.stopping, state.reason = None, "", ""
        if not begun or requeued:
            state.pids = {}
    elif state.exit_code is None and (
        state.began or there or time.time() - run.job_file.stat().st_mtime > START_SECONDS
    ):
        state.phase = "lost"
        word = f"{there.state} {there.reason}".strip() if there else ""
        state.reason = (
            f"the cluster ended it without a word from its supervisor: {word}"
            if word
            else "its supervisor is gone without a word (killed, or its machine went down)"
        )


def refuse_while_it_goes_on(run: RunDir) -> None:
    """Raises `UsageError` where a supervisor works on the run, or its cluster is going to start one."""
    if not _goes_on(run):
        return
    state = state_of(run)
    if run.supervised() or state.phase != "created":
        raise UsageError(f"the run {run.id} is still going on: {state.outcome}", f"See it: dtrain status {run.id}")


def row(run: RunDir) -> dict[str, Any]:
    """One run in a list."""
    try:
        state = state_of(run)
    except UsageError as error:
        return {
            "run": run.id,
            "state": "unreadable",
            "step": 0,
            "total_steps": None,
            "restarts": 0,
            "reason": error.message,
        }
    return {
        "run": run.id, "state": state.outcome, "step": state.step, "total_steps": state.total_steps, "strategy": state.strategy,
        "cluster": state.cluster, "workers": state.workers, "restarts": state.restarts, "changed": state.changed, "reason": state.reason,
    }  # fmt: skip


COLUMNS = ("run", "state", "step", "strategy", "cluster", "workers", "restarts", "changed")


def table(rows: list[dict[str, Any]]) -> str:
    """A list of runs, one line each, however long its names are."""
    lines = [COLUMNS]
    for item in rows:
        step = f"{item['step']}/{item['total_steps']}" if item["total_steps"] else "-"
        age = f"{render.seconds(time.time() - item['changed'])} ago" if item.get("changed") else "-"
        cells = (str(item.get(key, "-")) for key in ("strategy", "cluster", "workers", "restarts"))
        lines.append((item["run"], item["state"], step, *cells, age))
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def status(state: RunState, run: RunDir) -> str:
    """A run in full."""
    if state.exit_code is not None:
        return render.summary(state, run)
    lines = [f"{run.id}: {state.outcome}" + (f" - {state.reason}" if state.reason else "")]
    lines.append(
        f"  runs       {state.target}, {state.strategy} on {state.workers} worker{'s' * (state.workers != 1)}, {state.cluster}"
    )
    if state.total_steps:
        lines.append(
            f"  step       {state.step} of {state.total_steps}"
            + (f", {render.numbers(state.metrics)}" if state.metrics else "")
        )
    if state.evaluation:
        lines.append(f"  held-out   {render.numbers(state.evaluation)}")
    if state.pids and state.phase != "lost":
        lines.append(f"  workers    {workers(state)}")
    if state.saved_step is not None:
        lines.append(f"  checkpoint step {state.saved_step}")
    lines += [f"  failure    {render.clock(event)} {render.failure(event)}" for event in state.failures[-5:]]
    lines += [f"  warning    {warning}" for warning in state.warnings]
    lines.append(f"  folder     {run.path}{f', {state.storage}' if state.storage else ''}")
    if state.phase == "lost":
        lines.append(f"  go on with: dtrain resume {run.id}")
    return "\n".join(lines)


def print_logs(run: RunDir, ranks: list[int], *, follow: bool) -> None:
    """Every worker's output, each line with its rank; new lines as they come, where they are followed."""
    files = {path: int(path.stem.split("-")[1]) for path in sorted(run.logs.glob("rank-*.log"))}
    missing = [rank for rank in ranks if rank not in files.values()]
    if missing and not follow:
        there = f"it has ranks 0 to {max(files.values())}" if files else "no worker has started yet"
        raise UsageError(f"the run {run.id} has no log of rank {missing[0]}: {there}")
    readers: dict[int, LineReader] = {}
    over, ask_at = not follow, 0.0
    while True:
        if follow and time.monotonic() >= ask_at:
            over = not _goes_on(run)
            ask_at = time.monotonic() + (0.0 if run.supervised() else ASK_SECONDS)
        for path in sorted(run.logs.glob("rank-*.log")):
            rank = int(path.stem.split("-")[1])
            if not ranks or rank in ranks:
                reader = readers.setdefault(rank, LineReader(path, skip=False))
                for text in reader.new(rest=over):
                    print(f"rank {rank} | {text}")
        if over:
            return
        time.sleep(LOOK_SECONDS)


def _goes_on(run: RunDir) -> bool:
    if run.supervised():
        return True
    state = state_of(run)
    return state.exit_code is None and state.phase != "lost"


def stop(run: RunDir, *, now: bool, wait: bool) -> str:
    """Ask the supervisor to stop, and wait for it; a supervisor that does not answer is ended by its cluster."""
    state = state_of(run)
    if state.exit_code is not None or state.phase == "lost":
        return f"{run.id} is not running: {state.outcome}"
    if _take_back(run):
        return f"{run.id} was taken back from the cluster before it started"
    how = "now" if now else "leave"
    run.stop_request.write_text(how)
    copy = run_sync.of(run, run.job())
    if copy and not run.locked():
        copy.ask_to_stop(how)
    if not wait:
        return f"{run.id} was asked to stop"
    patience = time.monotonic() + (0.0 if now else run.job().recovery.grace_seconds) + STOP_SECONDS
    while time.monotonic() < patience:
        time.sleep(LOOK_SECONDS)
        state = state_of(run)
        if state.exit_code is not None or state.phase == "lost":
            return render.summary(state, run)
        if _take_back(run):
            return f"{run.id} was taken back from the cluster, which had queued it again"
    if now and _cancel(run):
        return f"{run.id} did not answer: it was ended by its cluster"
    raise ClusterError(f"{run.id} does not answer", f"End it: dtrain stop --now {run.id}")


def _take_back(run: RunDir) -> bool:
    """Cancel a run that waits in its cluster's queue."""
    there = None if run.supervised() else submission(run)
    return bool(there and not there.over and there.state in WAITING) and _cancel(run)


def _cancel(run: RunDir) -> bool:
    submitted = run.submitted()
    if submitted is None:
        return False
    registry.cluster(submitted.cluster, run.job().cluster.options).cancel(run, submitted.reference)
    return True


def plan(launch: LaunchPlan, runs: Path) -> dict[str, Any]:
    """What would run, as data; ports and addresses are known only when an attempt begins."""
    run = RunDir(runs.absolute() / f"{launch.job.name}-<time>")
    places = [place for node in launch.ranks_by_node() for place in node]
    nodes = [f"node{number}" for number in range(launch.nodes)]
    addresses = tuple(
        "127.0.0.1" if launch.job.cluster.name == "local" else f"<{nodes[place.node_rank]}>" for place in places
    )
    peers = RendezvousInfo(addresses, tuple(0 for _ in places), run.id, 1)
    workers = [
        {
            "rank": place.rank, "node": nodes[place.node_rank], "local_rank": place.local_rank, "replicas": place.replicas,
            "environment": dict(registry.strategy_of(launch.job).environment(place, peers)) | launch.job.env,
        }
        for place in places
    ]  # fmt: skip
    job = launch.job
    numbers = None if job.kind == "script" else {"global_batch": job.train.global_batch, "shards": job.train.shards}
    return {
        "name": job.name, "kind": job.kind, "target": job.target, "folder": job.folder, "strategy": job.strategy.name, "reason": job.strategy.reason,
        "cluster": job.cluster.name, "nodes": launch.nodes, "workers": launch.workers, "processes": launch.processes,
        "preload": list(launch.preload), "numbers": numbers, "ranks": workers, "commands": registry.cluster_of(launch.job).render(launch, run),
    }  # fmt: skip


def plan_text(shown: dict[str, Any]) -> str:
    """The plan for reading."""
    lines = [f"{shown['name']}: {shown['kind']} {shown['target']} in {shown['folder']}"]
    lines.append(
        f"  {shown['strategy']} on {shown['workers']} workers in {shown['processes']} processes on {shown['nodes']} nodes, {shown['cluster']}"
    )
    lines.append(f"  imported once a node, before workers are forked: {', '.join(shown['preload']) or 'nothing'}")
    if shown["reason"]:
        lines.append(f"  {shown['strategy']} was chosen since: {shown['reason']}")
    if shown["numbers"]:
        batch, shards = shown["numbers"]["global_batch"], shown["numbers"]["shards"]
        each = shards // shown["workers"]
        lines.append(
            f"  global batch {batch} in {shards} shards of {batch // shards}; each worker takes {each} and accumulates"
        )
    for worker in shown["ranks"]:
        lines.append(f"  rank {worker['rank']} on {worker['node']} (ports are chosen when an attempt begins: 0 here)")
        lines += [f"    {name}={value}" for name, value in worker["environment"].items()]
    return "\n".join([*lines, "  would run:", *(f"    {line}" for line in shown["commands"].splitlines())])


def plugins() -> list[dict[str, Any]]:
    """Installed plugins, with what is missing for them."""
    return list(_plugin_rows("strategy")) + list(_plugin_rows("cluster"))


def _plugin_rows(kind: registry.Kind) -> Iterator[dict[str, Any]]:
    for name, point in registry.installed(kind).items():
        item: dict[str, Any] = {
            "kind": kind,
            "name": name,
            "from": point.dist.name if point.dist else "",
            "ready": True,
            "note": "",
        }
        try:
            plugin = registry.plugin_class(kind, name)
        except UsageError as error:
            item |= {"ready": False, "note": error.message}
        else:
            item["note"] = (plugin.__doc__ or "").strip().splitlines()[0] if plugin.__doc__ else ""
            framework = getattr(plugin, "framework", None)
            if framework and importlib.util.find_spec(framework) is None:
                item |= {"ready": False, "note": f"needs {framework}: pip install 'dtrain[{framework}]'"}
        yield item


def plugins_text(rows: list[dict[str, Any]]) -> str:
    """Plugins for reading."""
    width = max((len(item["name"]) for item in rows), default=0)
    return "\n".join(
        f"{item['kind']:8}  {item['name']:{width}}  {'ready  ' if item['ready'] else 'MISSING'}  {item['note']}  [{item['from']}]"
        for item in rows
    )
