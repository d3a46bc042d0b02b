"""The checks of `dtrain doctor`: `dtrain.inspect.node_checks` runs as a process on this machine, or as the script of a small run on the
nodes of a cluster.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dtrain.common.errors import DtrainError, UsageError
from dtrain.common.lazy_dataclass import dataclass
from dtrain.control import overrides
from dtrain.inspect.node_checks import MARK
from dtrain.launch import planner, profiles, recipe, registry, yaml_source

SIGNS = {"ok": "ok       ", "warning": "warning  ", "problem": "PROBLEM  "}
MAY_DIFFER = (
    "cpus",
    "memory",
    "gpus",
    "shared memory",
    "open files",
    "gpu health",
    "locked memory",
    "cpu limit",
    "processes",
    "address",
    "time left",
    "disk",
    "folder",
    "clock",
    "network",
)
"""Findings that may differ between nodes; all others are versions."""
NODE_SECONDS = 120
PROGRAM = "dtrain.inspect.node_checks"


@dataclass(frozen=True)
class Line:
    """A finding of one node or of several, as `agent.node_checks.Finding`."""

    nodes: tuple[str, ...]
    check: str
    state: str
    text: str
    todo: str


def examined(path: Path | None, cluster: str | None, nodes: int | None, runs: Path) -> Iterator[Line]:
    """The findings of this machine, or of the nodes of a recipe or a cluster."""
    job = _job(path, cluster, nodes)
    if _name(job) != registry.default("cluster") and (problem := _out_of_reach(job)):
        yield Line((), "cluster", "problem", problem, "")
        return
    runs = runs.absolute()
    made = not runs.exists()
    runs.mkdir(parents=True, exist_ok=True)
    try:
        reports = (
            _here(runs)
            if _name(job) == registry.default("cluster") and job["resources"]["nodes"] == 1
            else _on_nodes(job, runs)
        )
    except UsageError as error:
        yield Line((), "run", "problem", error.message, error.hint)
        return
    finally:
        if made:
            shutil.rmtree(runs, ignore_errors=True)
    yield from merged(reports)


def _job(path: Path | None, cluster: str | None, nodes: int | None) -> dict[str, Any]:
    """The recipe of the run that looks at the nodes."""
    if path is None:
        count, silent = nodes or 1, yaml_source.Document("dtrain doctor", {"cluster": cluster} if cluster else {})
        profiles.fill(silent, Path.cwd())
        chosen = silent.data.get("cluster", registry.default("cluster"))
        return {"cluster": chosen, "resources": {"nodes": count, "workers": count}}
    job = recipe.load(path, overrides.of_options(cluster=cluster, nodes=nodes), here=False)
    resources = {"nodes": job.resources.nodes, "workers": job.resources.workers, "device": job.resources.device}
    chosen = {"name": job.cluster.name} | job.cluster.options if job.cluster.options else job.cluster.name
    storage = {"url": job.storage.url, "options": job.storage.options} if job.storage.url else {}
    return {"cluster": chosen, "resources": resources, "storage": storage, "env": dict(job.env)}


def _name(job: dict[str, Any]) -> str:
    chosen = job["cluster"]
    return str(chosen["name"] if isinstance(chosen, dict) else chosen)


def _out_of_reach(job: dict[str, Any]) -> str:
    """The reason why this machine cannot start a run on that cluster; '' if it can."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return "; ".join(planner.out_of_reach(planner.make(recipe.load(_written(job, Path(folder)), here=False))))
        except DtrainError as error:
            return error.message


def _written(job: dict[str, Any], folder: Path) -> Path:
    body = job | {
        "name": "doctor", "script": {"module": PROGRAM}, "args": [str(folder), _name(job)], "track": [],
        "recovery": {"restarts": 0, "provision_seconds": NODE_SECONDS},
    }  # fmt: skip
    path = folder / "doctor.yaml"
    path.write_text(json.dumps(body))  # JSON is YAML
    return path


def _here(runs: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-P", "-m", PROGRAM, str(runs), registry.default("cluster")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=NODE_SECONDS)
    return _reports(done.stdout) or _nothing(done.stderr)


def _on_nodes(job: dict[str, Any], runs: Path) -> list[dict[str, Any]]:
    """The reports of the nodes. They are made by a run in a temporary folder, which is removed unless the run fails."""
    folder = Path(tempfile.mkdtemp(prefix="doctor-", dir=runs))
    recipe = _written(job, folder)
    command = [sys.executable, "-P", "-m", "dtrain", "run", str(recipe), "--runs", str(folder)]
    with_no_terminal = os.environ | {"TERM": "dumb"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=with_no_terminal)
    logs = [path.read_text(errors="replace") for path in sorted(folder.glob("*/logs/rank-*.log"))]
    reports = [report for log in logs for report in _reports(log)]
    if done.returncode or len(reports) < job["resources"]["nodes"]:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-6:])
        raise UsageError(f"the nodes could not be looked at: {last}", f"The run that tried is in {folder}.")
    shutil.rmtree(folder, ignore_errors=True)
    return reports


def _reports(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix(MARK)) for line in text.splitlines() if line.startswith(MARK)]


def _nothing(stderr: str) -> list[dict[str, Any]]:
    raise UsageError(f"this machine could not be looked at: {stderr.strip().splitlines()[-1:]}", "")


def merged(reports: Sequence[dict[str, Any]]) -> Iterator[Line]:
    """Equal findings of several nodes in one line, in the order of the checks; versions that differ are a problem."""
    order: dict[str, None] = {}
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for report in sorted(reports, key=lambda report: int(report["rank"])):
        for finding in report["findings"]:
            order.setdefault(finding["check"])
            key = (finding["check"], finding["state"], finding["text"], finding["todo"])
            found.setdefault(key, []).append(report["node"])
    for check in order:
        forms = [(key, nodes) for key, nodes in found.items() if key[0] == check]
        for (_, state, text, todo), nodes in forms:
            if check not in MAY_DIFFER and state == "ok" and len(forms) > 1:
                yield Line(
                    tuple(nodes), check, "problem", f"{text}, not as on other nodes", "Install the same everywhere."
                )
            else:
                yield Line(tuple(nodes), check, state, text, todo)


def told(line: Line) -> str:
    """A line as a person reads it."""
    names = list(dict.fromkeys(line.nodes))
    nodes = f" ({', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''})" if names else ""
    todo = f"\n           {line.todo}" if line.todo else ""
    return f"{SIGNS[line.state]}{line.check:14} {line.text}{nodes}{todo}"
