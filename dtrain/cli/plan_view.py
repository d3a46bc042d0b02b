"""`dtrain plan`: what would run where, as data and for reading."""

from __future__ import annotations

import math
from pathlib import Path

from dtrain.api.plan import LaunchPlan
from dtrain.api.strategy import RankInfo, RendezvousInfo
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.secrets import redacted
from dtrain.inspect import rank_memory
from dtrain.inspect.rank_memory import MemoryPlan
from dtrain.job.job import shards_on
from dtrain.launch import initial_weights, planner, registry
from dtrain.record.folder import RunDir
from dtrain.show.render import counted, size


@dataclass(frozen=True)
class RankView:
    """One worker process in a plan."""

    rank: int
    node: str
    local_rank: int
    replicas: int
    environment: dict[str, str]


@dataclass(frozen=True)
class BatchView:
    """How a global batch is divided."""

    global_batch: int
    shards: int


@dataclass(frozen=True)
class PlanView:
    """A plan as data; ports and addresses are known only when an attempt begins."""

    name: str
    kind: str
    target: str
    folder: str
    """Where the workers run."""
    code_folders: tuple[str, ...]
    """Where the user's modules are looked for."""
    strategy: str
    reason: str
    filled: tuple[str, ...]
    """Keys that a profile or a file of defaults gave, with the place of each."""
    cluster: str
    nodes: int
    workers: int
    processes: int
    preload: tuple[str, ...]
    threads: int | None
    """Threads of a worker; None: the node's CPUs divided by its workers."""
    binding: str
    """Which CPUs a worker is bound to; '': to none."""
    exact_buffers: int | None
    """Most copies of the gradients that the sums of `train.exact` need; None without it."""
    memory: str
    """How often in-memory checkpoints are made."""
    numbers: BatchView | None
    """None for a script, which has its own loop."""
    ranks: tuple[RankView, ...]
    commands: str
    site_settings: tuple[str, ...]
    """What the environment adds to the commands, and what of it the recipe rules out."""
    init_from: str
    """The weights that it begins with; '': new ones."""
    out_of_reach: tuple[str, ...]
    """Reasons why this machine cannot start it."""
    rank_memory: MemoryPlan | None
    """What a rank of a task needs; None if nobody asked."""


def plan_view(launch: LaunchPlan, runs: Path, *, memory: bool = False) -> PlanView:
    """Convert a plan to data; with `memory`, and for a recipe that says what a device has, with what a rank needs."""
    job, cluster = launch.job, registry.cluster_of(launch.job)
    run = RunDir(runs.absolute() / f"{job.name}-<time>")
    return PlanView(
        name=job.name, kind=job.kind, target=job.target, folder=job.folder, code_folders=job.code_folders, strategy=job.strategy.name, reason=job.strategy.reason,
        filled=job.filled, cluster=job.cluster.name, nodes=launch.nodes, workers=launch.workers, processes=launch.processes, preload=launch.preload,
        binding=_binding(launch), exact_buffers=_exact_buffers(launch), memory=_memory(launch), threads=job.resources.cpus_per_worker,
        numbers=None if job.kind == "script" else BatchView(job.train.global_batch, shards_on(job.train, launch.workers)),
        ranks=_rank_views(launch, run.id, same_machine=cluster.same_machine), commands=cluster.render(launch, run), init_from=initial_weights.told(job),
        site_settings=tuple(cluster.site_settings(launch, run)), out_of_reach=tuple(planner.out_of_reach(launch)),
        rank_memory=rank_memory.of_job(job) if job.task and (memory or job.resources.device_memory) else None,
    )  # fmt: skip


def _binding(launch: LaunchPlan) -> str:
    if not launch.job.resources.numa:
        return ""
    what = "the CPUs next to its GPU" if launch.job.resources.device == "gpu" else "whole cores of its own"
    return f"each worker is bound to {what} (resources.numa); its log says to which"


def _exact_buffers(launch: LaunchPlan) -> int | None:
    """Partial sums of a worker's own shards, as the digits of a binary counter, and what is received from the others."""
    if not launch.job.train.exact:
        return None
    passes = shards_on(launch.job.train, launch.workers) // launch.workers
    return passes.bit_length() - 1 + (launch.workers > 1)


def _memory(launch: LaunchPlan) -> str:
    """How often in-memory checkpoints are made, and what they survive."""
    job, every = launch.job, launch.job.checkpoint.memory_every_steps
    if job.kind == "script":
        return "none: a script keeps its own"
    if every == 0:
        return "none (checkpoint.memory_every_steps: 0)"
    often = "as often as they cost at most 1 % of the time" if every == "auto" else f"every {counted(every, 'step')}"
    lost = "a node too, since another one keeps a copy" if launch.nodes > 1 else "not the loss of the node"
    return f"{often}; they survive the workers, {lost}"


def _rank_views(launch: LaunchPlan, run_id: str, *, same_machine: bool) -> tuple[RankView, ...]:
    ranks = [rank for node in launch.ranks_by_node() for rank in node]
    addresses = tuple("127.0.0.1" if same_machine else f"<{_node(rank)}>" for rank in ranks)
    rendezvous = RendezvousInfo(addresses, tuple(0 for _ in ranks), run_id, 1)
    strategy = registry.strategy_of(launch.job)
    on_gpu = strategy.gpu_environment() if launch.job.resources.device == "gpu" else {}
    return tuple(
        RankView(
            rank.rank,
            _node(rank),
            rank.local_rank,
            rank.replicas,
            dict(strategy.environment(rank, rendezvous)) | on_gpu | redacted(launch.job.env),
        )
        for rank in ranks
    )


def _node(rank: RankInfo) -> str:
    return f"node{rank.node_rank}"


def plan_text(shown: PlanView) -> str:
    """Format a plan for reading."""
    workers, processes = counted(shown.workers, "worker"), counted(shown.processes, "process")
    lines = [
        f"{shown.name}: {shown.kind} {shown.target} in {shown.folder}",
        f"  the workers run there and find modules in {' and '.join(shown.code_folders)}, then among the installed packages",
        f"  {shown.strategy} on {workers} in {processes} on {counted(shown.nodes, 'node')}, {shown.cluster}",
        f"  imported once a node, before workers are forked: {', '.join(shown.preload) or 'nothing'}",
    ]
    threads = shown.threads or "the node's CPUs divided by its workers (resources.cpus_per_worker)"
    lines.append(
        f"  threads of a worker: {threads}; they sleep while they wait for each other (OMP_WAIT_POLICY=passive)"
    )
    if shown.binding:
        lines.append(f"  {shown.binding}")
    if shown.reason:
        lines.append(f"  {shown.strategy} was chosen since: {shown.reason}")
    if shown.filled:
        lines += ["  left out by the recipe, and taken from:", *(f"    {where}" for where in shown.filled)]
    if shown.init_from:
        lines.append(f"  begins with the weights of {shown.init_from}")
    if shown.numbers:
        batch, shards = shown.numbers.global_batch, shown.numbers.shards
        passes = counted(shards // shown.workers, "pass")
        each = math.ceil(batch / shown.workers)
        lines.append(
            f"  global batch {batch}: each worker computes {each} samples in {passes} of {math.ceil(batch / shards)}"
        )
    if shown.exact_buffers is not None:
        lines.append(
            f"  the same bits at every size: up to {counted(shown.exact_buffers, 'gradient buffer')} more on each worker; "
            f"{counted(shown.threads, 'thread') if shown.threads else 'as many threads'} everywhere"
        )
    lines.append(f"  in-memory checkpoints: {shown.memory}")
    if shown.rank_memory:
        lines += [f"  {line}" for line in _memory_lines(shown.rank_memory)]
    for rank in shown.ranks:
        lines.append(f"  rank {rank.rank} on {rank.node} (ports are chosen when an attempt begins: 0 here)")
        lines += [f"    {name}={value}" for name, value in rank.environment.items()]
    lines += ["  would run:", *(f"    {line}" for line in shown.commands.splitlines())]
    lines += [f"  {sentence}" for sentence in shown.site_settings]
    return "\n".join([*lines, *(f"  not from this machine: {text}" for text in shown.out_of_reach)])


def _memory_lines(found: MemoryPlan) -> list[str]:
    """Format what a rank needs, and a warning if its device has less."""
    needed = found.needed
    if needed is None:
        return [f"memory of a rank: not known ({found.unknown})"]
    optimizer = "not known" if needed.optimizer is None else size(needed.optimizer)
    parts = [f"parameters {size(needed.parameters)}", f"gradients {size(needed.gradients)}", f"optimizer {optimizer}"]
    if needed.block:
        parts.append(f"{needed.blocks} gathered blocks of {size(needed.block)}")
    lines = [f"memory of a rank: {', '.join(parts)}: {size(needed.total)}; activations come on top"]
    if not found.fits:
        what = "choose a strategy that splits the model over the workers"
        if needed.block:
            what = (
                f"take {found.enough_workers} workers"
                if found.enough_workers
                else "choose smaller blocks (strategy.wrap)"
            )
        lines.append(
            f"warning: a device has {size(found.device_bytes or 0)} (resources.device_memory), which is less: {what}"
        )
    return lines
