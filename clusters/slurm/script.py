"""The options of SLURM runs and the batch script they become: pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields

from dtrain.api.plan import LaunchPlan, supervisor_command
from dtrain.common.errors import UsageError
from dtrain.record.folder import RunDir, find

from . import containers
from .containers import Container

TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?")
NAME = "slurm"
NO_LIMIT = ("UNLIMITED", "INFINITE")
EARLY_SECONDS = 60
"""How much too early SLURM's warning may come, by its manual."""


@dataclass(frozen=True)
class SlurmOptions:
    """What SLURM is asked for besides nodes and workers."""

    partition: str | None = None
    """SLURM's default one when not given."""
    account: str | None = None
    """Who pays."""
    qos: str | None = None
    """Quality of service."""
    time: str | None = None
    """Limit in SLURM's own form, quoted: '90' (minutes), '1:30:00', '2-12'."""
    gres: str | None = None
    """Generic resources of a node, `gpu:a100:4`, instead of a number of GPUs."""
    gpus_per_node: int | None = None
    """The GPU workers of a node when not given."""
    cpus: int | None = None
    """CPUs of a node; `cpus_per_worker` (or one) for each of its workers when not given."""
    memory: str | None = None
    """Of a node, `64G`."""
    constraint: str | None = None
    """Features that nodes must have."""
    exclude: str | None = None
    """Nodes not to take."""
    reservation: str | None = None
    """A reservation to run in."""
    after: str | None = None
    """Id of a run on this cluster that must have ended well before this one begins."""
    licenses: str | None = None
    """Licenses of the cluster to hold, `matlab:2`."""
    nice: int | None = None
    """Makes it wait behind other jobs of yours, the more the greater."""
    switches: str | None = None
    """Most leaf switches between its nodes, and how long to wait for that: `1@2:00:00`."""
    exclusive: bool = False
    """Shares its nodes with no other job."""
    mail_user: str | None = None
    """Address that SLURM writes to."""
    mail_type: str | None = None
    """Says when it does: `END,FAIL`."""
    comment: str | None = None
    """Kept with the job in SLURM's accounting; the tags and the note of the run when not given."""
    spare_nodes: int = 0
    """Nodes to hold in reserve; one takes the place of a lost one at once."""
    warn_seconds: int = 120
    """So long before the time limit the run saves, leaves and is queued again."""
    container: str | Container = ""
    """Container of the agents and workers: `{image: …, runtime: apptainer}`; or the words in front of an agent's command, such as
    `apptainer exec --nv image.sif`, also srun's own options."""
    setup: tuple[str, ...] = ()
    """Lines of shell before anything is started: `module load cuda`."""
    extra: tuple[str, ...] = ()
    """Further options of sbatch, as `--option` or `--option=value`."""


def render(options: SlurmOptions, plan: LaunchPlan, run: RunDir) -> str:
    """Render the batch script."""
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH {_word(f'--{name}={value}')}" for name, value in _requests(options, plan, run) if value]
    if _goes_on_with_fewer(options, plan):
        # Without this, SLURM ends and requeues the job when any node dies, which is better if the others cannot go on.
        lines.append("#SBATCH --no-kill")
    if options.exclusive:
        lines.append("#SBATCH --exclusive")
    lines += ["#SBATCH --requeue", *(f"#SBATCH {_word(option)}" for option in options.extra)]
    if not isinstance(options.container, str):
        inside = shlex.join(containers.words(options.container, plan, run)).replace("\n", " ")
        lines.append(f"# agents behind: {inside}")
    # Until the supervisor has handlers, a warning must not end the job; ignored signals stay ignored over exec.
    lines += ["trap '' USR1 TERM", *options.setup, f"exec {shlex.join(supervisor_command(run))}"]
    return "\n".join(lines) + "\n"


def _word(option: str) -> str:
    """Quoted for sbatch, which reads its lines like a shell, but takes a backslash for an escape everywhere."""
    return shlex.quote(option).replace("\\", "\\\\")


def _requests(options: SlurmOptions, plan: LaunchPlan, run: RunDir) -> Iterator[tuple[str, str | int | None]]:
    yield "job-name", run.id
    yield "nodes", plan.nodes + options.spare_nodes
    yield "ntasks-per-node", 1
    yield "cpus-per-task", cpus(options, plan)
    yield "gpus-per-node", gpus(options, plan)
    yield "gres", options.gres
    yield "mem", options.memory
    for name in (
        "partition",
        "account",
        "qos",
        "time",
        "constraint",
        "exclude",
        "reservation",
        "licenses",
        "nice",
        "switches",
    ):
        yield name, getattr(options, name)
    yield "mail-user", options.mail_user
    yield "mail-type", options.mail_type
    yield "comment", options.comment or _labels(plan)
    yield "dependency", _dependency(options, run)
    yield "signal", f"B:USR1@{options.warn_seconds}"
    yield "export", "ALL"
    yield "chdir", "/"
    yield "open-mode", "append"
    yield "output", str(run.logs / "supervisor.log").replace("%", "%%")


def _labels(plan: LaunchPlan) -> str:
    """Write the tags and the note of a run on one line."""
    words = [*(f"{name}={value}" for name, value in plan.job.tags.items()), *plan.job.note.split()]
    return " ".join(words)


def _dependency(options: SlurmOptions, run: RunDir) -> str:
    """Return SLURM's words for waiting until another run has ended well; raises `UsageError` if SLURM does not know that run."""
    if not options.after:
        return ""
    other = find(run.path.parent, options.after)
    submitted = other.submitted()
    if submitted is None or submitted.cluster != NAME:
        raise UsageError(
            f"cluster.after: {other.id} was not submitted to SLURM, which cannot wait for it",
            f"Wait for it here: dtrain wait {other.id}",
        )
    return f"afterok:{submitted.reference}"


def cpus(options: SlurmOptions, plan: LaunchPlan) -> int:
    """CPUs asked for on each node."""
    return options.cpus or plan.workers_per_node * (plan.job.resources.cpus_per_worker or 1)


def gpus(options: SlurmOptions, plan: LaunchPlan) -> int:
    """GPUs asked for on each node, by number."""
    if options.gres:
        return 0
    return options.gpus_per_node or (plan.workers_per_node if plan.job.resources.device == "gpu" else 0)


def _goes_on_with_fewer(options: SlurmOptions, plan: LaunchPlan) -> bool:
    least = plan.job.resources.min_workers or plan.job.resources.workers
    return options.spare_nodes > 0 or least < plan.workers


def mistakes(options: SlurmOptions) -> Iterator[str]:
    """Yield what is wrong with the options by themselves."""
    for name, value in _texts(options):
        if any(ord(letter) < 32 for letter in value):
            yield f"{name} holds a line break or another control character: give one line"
    for option in options.extra:
        if not re.match(r"--[A-Za-z]", option):
            yield f"extra: {option!r} is no option of sbatch: begin it with --"
    try:
        shlex.split(options.container if isinstance(options.container, str) else "")
    except ValueError as error:
        yield f"container cannot be read as words ({error}): {options.container!r}"
    for name in ("spare_nodes", "warn_seconds", "gpus_per_node", "cpus"):
        if (getattr(options, name) or 0) < 0:
            yield f"{name} is below 0"
    yield from _wrong_time(options)


def _wrong_time(options: SlurmOptions) -> Iterator[str]:
    if options.time is None or options.time.upper() in NO_LIMIT:
        return
    limit = limit_seconds(options.time)
    if limit is None:
        yield f"time: {options.time!r} is not of the form minutes, hours:minutes:seconds or days-hours:minutes:seconds"
    elif limit <= options.warn_seconds + EARLY_SECONDS:
        yield (
            f"a time limit of {limit} s leaves nothing to train in: SLURM warns warn_seconds ({options.warn_seconds})"
            f" before it, and up to {EARLY_SECONDS} s earlier"
        )


def limit_seconds(text: str) -> int | None:
    """Seconds of a time limit in one of SLURM's six forms, or None if it is none of them."""
    match = TIME.fullmatch(text)
    if not match:
        return None
    a, b, c = (int(match[name]) if match[name] else None for name in "abc")
    if match["days"] is not None:
        return int(match["days"]) * 86400 + (a or 0) * 3600 + (b or 0) * 60 + (c or 0)
    if c is not None:
        return (a or 0) * 3600 + (b or 0) * 60 + c
    return (a or 0) * 60 + (b or 0)


def _texts(options: SlurmOptions | Container) -> Iterator[tuple[str, str]]:
    for field in fields(options):
        value = getattr(options, field.name)
        if isinstance(value, Container):
            yield from ((f"{field.name}.{name}", text) for name, text in _texts(value))
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                yield field.name, text
