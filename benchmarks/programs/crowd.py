"""The agents of many nodes in one process, as srun would carry them: they answer, beat once a second, and lose a worker.

With a run folder, their workers keep ledgers and write a checkpoint."""

import json
import os
import select
import struct
import sys
import time
from pathlib import Path

from dtrain.common.files import digest

nodes, ranks, fail_after = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
run = Path(sys.argv[4]) if len(sys.argv) > 4 else None
CHECKPOINT_STEP = 3
DIGEST = digest(b"part").hexdigest()
names = [f"node{number}" for number in range(nodes)]
ranks_of, attempt, step = {}, 0, 0
asked_at = started_at = failed_at = None
buffer = b""


def say(to, kind, **fields):
    os.write(1, (json.dumps({"to": to, "type": kind, **fields}, separators=(",", ":")) + "\n").encode())


def obey(node, command):
    global attempt, asked_at, started_at
    if command["type"] == "reserve_ports":
        asked_at = asked_at or time.monotonic()
        attempt = command["attempt"]
        say(node, "ports_reserved", attempt=attempt, ports=[20000 + n for n in range(command["workers"])])
    elif command["type"] == "start_workers":
        ranks_of[node] = [info["rank"] for info in command["ranks"]]
        say(
            node,
            "workers_started",
            attempt=attempt,
            node=node,
            pids={str(rank): 1000 + rank for rank in ranks_of[node]},
        )
        if len(ranks_of) == nodes and not started_at:
            started_at = time.monotonic()
            print(f"started {started_at - asked_at:.6f}", file=sys.stderr, flush=True)
    elif command["type"] == "stop_workers":
        if failed_at and len(ranks_of) == nodes:
            print(f"decided {time.monotonic() - failed_at:.6f}", file=sys.stderr, flush=True)
        for rank in ranks_of.pop(node, []):
            say(node, "worker_exited", attempt=attempt, rank=rank, code=-9, step=step, out_of_memory=False)


def save():
    """Write every worker's shard of a checkpoint, and its ledger so far."""
    folder = run / "checkpoints" / f".staging-{attempt:04d}-{CHECKPOINT_STEP:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    for own in ranks_of.values():
        for rank in own:
            (folder / f"rank{rank}").write_bytes(b"part")
            records = b"".join(struct.pack("<qqIId", n, n, 1, 0, time.time()) for n in range(CHECKPOINT_STEP))
            (run / "ledger" / f"attempt-{attempt:04d}-rank-{rank:05d}.bin").write_bytes(records)
    print(f"saved {time.time():.6f}", file=sys.stderr, flush=True)
    for node, own in ranks_of.items():
        for rank in own:
            report = {
                "type": "shard_written",
                "step": CHECKPOINT_STEP,
                "files": {f"rank{rank}": [4, DIGEST]},
                "weights": DIGEST,
            }
            say(node, "worker_report", attempt=attempt, rank=rank, report=report)


for name in names:
    say(name, "agent_ready", host=name, address="10.0.0.1", cpus=8, gpus=8, pid=1, sees_run=True)
beat_at = time.monotonic() + 1
while True:
    ready, _, _ = select.select([0], [], [], max(0, beat_at - time.monotonic()))
    if ready:
        data = os.read(0, 1 << 20)
        if not data:
            sys.exit()
        buffer += data
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            command = json.loads(line)
            if command["type"] == "quit":
                sys.exit()
            for node in [command["to"]] if command.get("to") else list(names):
                obey(node, command)
    if time.monotonic() >= beat_at:
        beat_at += 1
        step += 1
        sign = {"step": step, "idle_seconds": 0.1, "stopped_seconds": 0.0}
        for node, own in ranks_of.items():
            say(node, "heartbeat", attempt=attempt, signs={str(rank): sign for rank in own})
        if run and started_at and step >= CHECKPOINT_STEP:
            save()
            run = None
        if started_at and failed_at is None and time.monotonic() - started_at > fail_after:
            failed_at = time.monotonic()
            victim = ranks_of[names[-1]].pop()
            say(names[-1], "worker_exited", attempt=attempt, rank=victim, code=-9, step=step, out_of_memory=False)
