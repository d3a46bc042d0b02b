"""`dtrain plan`: what would run where, as data and for reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dtrain.api.plan import LaunchPlan
from dtrain.api.strategy import RendezvousInfo
from dtrain.cli.render import counted
from dtrain.common.secrets import redacted
from dtrain.launch import registry
from dtrain.run.folder import RunDir


def plan_data(launch: LaunchPlan, runs: Path) -> dict[str, Any]:
    """What would run, as data; ports and addresses are known only when an attempt begins."""
    cluster = registry.cluster_of(launch.job)
    run = RunDir(runs.absolute() / f"{launch.job.name}-<time>")
    ranks = [rank for node in launch.ranks_by_node() for rank in node]
    nodes = [f"node{number}" for number in range(launch.nodes)]
    addresses = tuple("127.0.0.1" if cluster.same_machine else f"<{nodes[rank.node_rank]}>" for rank in ranks)
    peers = RendezvousInfo(addresses, tuple(0 for _ in ranks), run.id, 1)
    workers = [
        {
            "rank": rank.rank, "node": nodes[rank.node_rank], "local_rank": rank.local_rank, "replicas": rank.replicas,
            "environment": dict(registry.strategy_of(launch.job).environment(rank, peers)) | redacted(launch.job.env),
        }
        for rank in ranks
    ]  # fmt: skip
    job = launch.job
    numbers = None if job.kind == "script" else {"global_batch": job.train.global_batch, "shards": job.train.shards}
    return {
        "name": job.name, "kind": job.kind, "target": job.target, "folder": job.folder, "strategy": job.strategy.name, "reason": job.strategy.reason,
        "cluster": job.cluster.name, "nodes": launch.nodes, "workers": launch.workers, "processes": launch.processes,
        "preload": list(launch.preload), "threads": job.resources.cpus_per_worker, "numbers": numbers, "ranks": workers, "commands": cluster.render(launch, run),
    }  # fmt: skip


def plan_text(shown: dict[str, Any]) -> str:
    """The plan for reading."""
    lines = [f"{shown['name']}: {shown['kind']} {shown['target']} in {shown['folder']}"]
    lines.append(
        f"  {shown['strategy']} on {counted(shown['workers'], 'worker')} in {counted(shown['processes'], 'process')} on {counted(shown['nodes'], 'node')}, {shown['cluster']}"
    )
    lines.append(f"  imported once a node, before workers are forked: {', '.join(shown['preload']) or 'nothing'}")
    threads = shown["threads"] or "the node's CPUs divided by its workers (resources.cpus_per_worker)"
    lines.append(
        f"  threads of a worker: {threads}; they sleep while they wait for each other (OMP_WAIT_POLICY=passive)"
    )
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
