"""SLURM's own commands: what they are asked and what their answers mean."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dtrain.api.cluster import SubmissionState
from dtrain.common.errors import ClusterError

PATIENCE_SECONDS = 60.0
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
)
"""States that a job does not leave by itself."""
WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED"})
"""States of a job that waits for its nodes."""
UNKNOWN_JOB = "Invalid job id specified"


@dataclass(frozen=True)
class JobState:
    """A job as SLURM knows it."""

    state: str
    reason: str = ""
    restarts: int | None = None
    """How often it was queued again; None if only `squeue` answers, which does not say."""


def submission_state(word: str) -> SubmissionState:
    """Pure. What a state of SLURM's means for a submission."""
    if word in ENDED:
        return SubmissionState.ENDED
    return SubmissionState.PENDING if word in WAITING else SubmissionState.RUNNING


@dataclass(frozen=True)
class NodeFacts:
    """A node of a partition."""

    name: str
    gpus: int
    cpus: int


def call(*command: str, seconds: float = PATIENCE_SECONDS, environment: Mapping[str, str] | None = None) -> str:
    """Return a command's output; raises `ClusterError` with SLURM's own words if it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=environment,
        )
    except OSError as error:
        raise ClusterError(f"cannot run {command[0]}: {error.strerror}", "Is SLURM installed on this node?") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{command[0]} did not answer in {seconds:g} s", "Does SLURM's controller run?") from error
    if done.returncode:
        words = " ".join((done.stderr.strip() or done.stdout.strip()).split())
        raise ClusterError(f"{command[0]} says: {words or f'exit code {done.returncode}'}")
    return done.stdout


def job_state(job: str) -> JobState | None:
    """The job's state now, from `squeue` or, if that has forgotten it, from `sacct`; None: nobody knows it."""
    try:
        lines = call("squeue", "--noheader", "--states=all", "--jobs", job, "--format=%T|%r").splitlines()
    except ClusterError as error:
        if UNKNOWN_JOB not in error.message:
            raise
        lines = []
    if not lines:
        return _recorded(job)
    state, _, reason = lines[0].strip().partition("|")
    return JobState(state, "" if reason == "None" else reason)


def _recorded(job: str) -> JobState | None:
    """Ask the accounting; not every cluster keeps one."""
    try:
        lines = call("sacct", "-X", "--noheader", "--parsable2", "--jobs", job, "--format=State").splitlines()
    except ClusterError:
        return None
    # `CANCELLED by 1000`
    return JobState(lines[0].split()[0]) if lines and lines[0].split() else None


def own_job(job: str) -> JobState | None:
    """The state of the job that this process runs in, with its restarts."""
    try:
        text = call("scontrol", "--oneliner", "show", "job", job)
    except ClusterError:
        return job_state(job)
    found = dict(re.findall(r"(JobState|Reason|Restarts)=(\S*)", text))
    if "JobState" not in found:
        return job_state(job)
    reason = found.get("Reason", "")
    return JobState(found["JobState"], "" if reason == "None" else reason, int(found.get("Restarts", 0)))


def expand(names: str) -> list[str]:
    """The nodes of a list in SLURM's notation, `node[1-3,07],other`; `scontrol` could do it, but is not everywhere."""
    parts = re.findall(r"(?:\[[^\]]*\]|[^,\[])+", names.strip())
    return [name for part in parts for name in _expand_one(part)]


def _expand_one(part: str) -> list[str]:
    head, bracket, rest = part.partition("[")
    if not bracket:
        return [part]
    inside, _, tail = rest.partition("]")
    numbers = []
    for item in inside.split(","):
        first, _, last = item.partition("-")
        numbers += [str(n).zfill(len(first)) for n in range(int(first), int(last or first) + 1)]
    return [f"{head}{number}{end}" for number in numbers for end in _expand_one(tail)]


def nodes_of(job: str) -> list[str]:
    """The nodes that a job has now, which a lost one is no longer among."""
    return expand(call("squeue", "--noheader", "--jobs", job, "--format=%N"))


def addresses(nodes: Sequence[str]) -> Mapping[str, str]:
    """Node → the address at which SLURM itself reaches it."""
    text = call("sinfo", "--noheader", "--Node", "--nodes", ",".join(nodes), "--format=%N|%o")
    return dict(line.strip().split("|", 1) for line in text.splitlines() if "|" in line)


def usable(node: str) -> bool:
    """Whether SLURM takes a node for alive; a `*` marks one that does not answer."""
    try:
        state = call("sinfo", "--noheader", "--nodes", node, "--format=%T", seconds=5.0).split()
    except ClusterError:
        return True
    return bool(state) and not state[0].endswith("*") and not re.match("down|fail|unknown|error", state[0], re.I)


def partitions() -> dict[str, list[NodeFacts]]:
    """Partition → its nodes, and '' → those of the default one."""
    found: dict[str, list[NodeFacts]] = {}
    for line in call("sinfo", "--noheader", "--Node", "--format=%P|%N|%c|%G").splitlines():
        name, node, cpus, gres = line.strip().split("|", 3)
        facts = NodeFacts(node, gpus_in(gres), int(re.match(r"\d+", cpus)[0] if re.match(r"\d+", cpus) else 0))  # type: ignore[index]
        found.setdefault(name.rstrip("*"), []).append(facts)
        if name.endswith("*"):
            found.setdefault("", []).append(facts)
    return found


def gpus_in(gres: str) -> int:
    """GPUs in a GRES list: `gpu:2`, `gpu:a100:4(S:0-1),shard:8`."""
    plain = re.sub(r"\([^)]*\)", "", gres)
    return sum(int(part.split(":")[-1]) for part in plain.split(",") if re.fullmatch(r"gpu(:[^:]+)?:\d+", part))
