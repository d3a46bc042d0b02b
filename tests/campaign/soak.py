"""A run of many short steps with many restarts: descriptors, threads, memory, logs and /dev/shm of its supervisor and agent must not grow with
it, and a flood of connections that takes every descriptor of an agent ends nothing.

`python tests/campaign/soak.py --steps 1000000 --restarts 2000` (hours); without options, a small form (minutes)."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from live import PROGRAMS, Live, start

from dtrain.record.event_log import read
from dtrain.record.events import FailureOccurred, RunEnded
from dtrain.record.sample_ledger import last_step

LOOK_SECONDS = 0.05
WARM_SHARE = 0.25
"""Of the restarts, after which caches are full."""
MOST_GROWTH = {"descriptors": 3, "threads": 3, "megabytes": 24.0, "shared": 4.0}
"""From the first quarter to the end, of the supervisor and of the agent."""


@dataclass(frozen=True)
class Sample:
    """What a process holds at a moment."""

    descriptors: int
    threads: int
    megabytes: float
    shared: float
    """Megabytes in /dev/shm, of the whole machine."""


def sample(pid: int) -> Sample | None:
    """None if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        found = os.statvfs("/dev/shm")
        used = (found.f_blocks - found.f_bfree) * found.f_frsize / 1e6
        open_files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return Sample(open_files, int(fields["Threads"]), int(fields["VmRSS"].split()[0]) / 1e3, used)
    except (OSError, KeyError, ValueError):
        return None


class Attempts:
    """The attempts of a run as its event log grows, read once."""

    def __init__(self, live: Live) -> None:
        self._log, self._pids = open(live.run.events, "rb"), dict[int, int]()

    def newest(self) -> tuple[int, int]:
        """The newest attempt that has workers, and the process of its rank 0."""
        for line in iter(self._log.readline, b""):
            if not line.endswith(b"\n"):
                self._log.seek(-len(line), os.SEEK_CUR)
                break
            if b'"workers_started"' in line and "0" in (event := json.loads(line))["pids"]:
                self._pids[int(event["attempt"])] = int(event["pids"]["0"])
        return max(self._pids.items(), default=(0, 0))


def disturbed(live: Live, steps: int, restarts: int) -> dict[str, list[Sample]]:
    """Kill rank 0 again and again, as evenly over the steps as they come, each time in a new attempt that has done a step; what supervisor and
    agent held in between."""
    samples: dict[str, list[Sample]] = {"supervisor": [], "agent": []}
    seen, number, killed, agent = Attempts(live), 0, 0, live.agent_pid()
    while live.process.poll() is None and number < restarts:
        time.sleep(LOOK_SECONDS)
        attempt, pid = seen.newest()
        if attempt <= killed or not pid or (last_step(live.run.ledger(attempt, 0)) or 0) <= number * steps // restarts:
            continue
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        number, killed = number + 1, attempt
        for name, process in (("supervisor", live.process.pid), ("agent", agent)):
            if found := sample(process):
                samples[name].append(found)
        if number % 100 == 0:
            print(f"killed {number} times, {samples['supervisor'][-1:]}, {samples['agent'][-1:]}", flush=True)
    return samples


def growth(samples: list[Sample]) -> dict[str, float]:
    """By how much the mean of the last quarter is above that of the second."""
    quarter = max(1, int(len(samples) * WARM_SHARE))
    early, late = samples[quarter : 2 * quarter] or samples[:1], samples[-quarter:]
    mean = {
        name: [sum(getattr(one, name) for one in part) / len(part) for part in (early, late)] for name in MOST_GROWTH
    }
    return {name: after - before for name, (before, after) in mean.items()}


def flood(live: Live) -> None:
    """Take every connection that the agents' servers of in-memory checkpoints give, and say nothing."""
    ports = listening_ports({int(event["pid"]) for event in live.events("node_ready")})
    held = []
    for port in ports:
        for _ in range(2000):
            with suppress(OSError):
                held.append(socket.create_connection(("127.0.0.1", port), 0.2))
    print(f"flood: {len(held)} silent connections to {len(ports)} ports", flush=True)
    time.sleep(2.0)
    for connection in held:
        connection.close()


def listening_ports(pids: set[int]) -> set[int]:
    """Where these processes listen on TCP."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                sockets.add(str(link.readlink()).removeprefix("socket:[").rstrip("]"))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return {int(row[1].partition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in sockets}


def soak(steps: int, restarts: int) -> int:
    """The number of things that are wrong."""
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        settings = {
            "train.steps": steps, "train.log_every": 10, "checkpoint.every_steps": max(50, steps // 2000),
            "params.pause": 0.001 if steps < 10_000 else 0,
            "recovery.restarts": restarts + 10, "recovery.backoff_seconds": 0, "recovery.avoid_hours": 0, "train.shards": 2,
            "params.norm": "false", "resources.workers": 2, "resources.nodes": 2,
        }  # fmt: skip
        sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        with start(str(PROGRAMS / "tiny.yaml"), *sets, runs=Path(folder)) as live:
            for stream in (live.process.stdout, live.process.stderr):
                assert stream is not None
                threading.Thread(target=partial(shutil.copyfileobj, stream, open(os.devnull, "w")), daemon=True).start()
            live.wait_event("workers_started")
            samples = disturbed(live, steps, restarts)
            if live.process.poll() is None:
                flood(live)
            code = live.process.wait(24 * 3600)
        history = read(live.run.events)
        ends = [event.exit_code for event in history if isinstance(event, RunEnded)]
        failures = sum(isinstance(event, FailureOccurred) for event in history)
        print(
            f"{steps} steps, {failures} failures, exit code {code}, {live.run.events.stat().st_size / 1e6:.1f} MB of events",
            flush=True,
        )
        wrong += (code, ends) != (0, [0])
        live.assert_clean_audit(steps)
        for name, found in samples.items():
            grown = growth(found) if found else {}
            print(f"{name}: " + ", ".join(f"{what} {value:+.1f}" for what, value in grown.items()), flush=True)
            wrong += sum(value > MOST_GROWTH[what] for what, value in grown.items())
    return wrong


def main() -> int:
    """Print what was found; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--restarts", type=int, default=20)
    chosen = parser.parse_args()
    return int(soak(chosen.steps, chosen.restarts) > 0)


if __name__ == "__main__":
    sys.exit(main())
