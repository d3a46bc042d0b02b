"""Agents behind one `srun`: its stdin reaches all of them, its stdout brings what they say, its stderr who ended."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dtrain.api.cluster import Inbox, NodeLost, PreemptionNotice
from dtrain.api.protocol import AgentReady, Command, Quit, decode, encode
from dtrain.common.errors import ClusterError
from dtrain.common.message import OtherVersion

from .commands import expand

QUIT_SECONDS = 5.0
KILL_SECONDS = 5.0
LINE_BYTES = 1000
"""SLURM cuts what a task prints into messages of 1024 bytes (MAX_MSG_LEN) and mixes those of several tasks: only a line that
fits into one arrives as it was."""
ENDED = re.compile(r"error: (?P<nodes>\S+): tasks? [-\d, ]+: (?P<reason>.+)")
LOST = re.compile(r"(?P<reason>Node failure|failed) on (?:node )?(?P<nodes>[^\s:]+)")
CANCELLED = re.compile(r"STEP \S+ ON \S+ CANCELLED AT \S+(?P<reason>[^*]*)")
"""Message about the whole step; the node in it is only the one that reports."""
MISLEADING = ("SLURM_LABELIO", "SLURM_STDINMODE", "SLURM_STDOUTMODE", "SLURM_STDERRMODE", "SLURM_HOSTFILE")
"""Settings of srun in a user's environment that would break the lines of JSON or move the agents."""
START_AGENT = """\
suffix=$1 stale=$2 addresses=$3 DTRAIN_LINE_BYTES=$4; shift 4
export DTRAIN_LINE_BYTES
if [ -n "$stale" ] && grep -q dtrain "/proc/$stale/cmdline" 2>/dev/null; then kill -9 "$stale"; fi
for pair in $addresses; do
  case $pair in "$SLURMD_NODENAME="*) DTRAIN_ADDRESS=${pair#*=}; export DTRAIN_ADDRESS ;; esac
done
[ -z "$SLURM_CPUS_ON_NODE" ] || export DTRAIN_CPUS="$SLURM_CPUS_ON_NODE"
exec "$@" "--node=$SLURMD_NODENAME$suffix"
"""
"""Run by sh on each node, since all tasks of one srun get the same words: who an agent is, only its node knows."""


@dataclass(frozen=True)
class AgentLaunch:
    """The work of one `srun`."""

    nodes: tuple[str, ...]
    agent: tuple[str, ...]
    """The agent's command, to which the node's name is added."""
    container: tuple[str, ...]
    addresses: Mapping[str, str]
    suffix: str = ""
    """Tells the name of a replaced agent from the one before on the same node."""
    stale: int | None = None
    """Process id on the node of the agent that it replaces, which may be stopped rather than dead."""

    def command(self) -> list[str]:
        """Return the command line of `srun`."""
        count = str(len(self.nodes))
        known = " ".join(f"{node}={self.addresses[node]}" for node in self.nodes if node in self.addresses)
        return [
            "srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", f"--nodelist={','.join(self.nodes)}",
            "--no-kill", "--kill-on-bad-exit=0", "--wait=0", "--overlap", "--cpu-bind=none", "--mpi=none", "--chdir=/", "--export=ALL",
            "--job-name=dtrain-agents", *self.container, "sh", "-c", START_AGENT, "dtrain-agent",
            self.suffix, str(self.stale or ""), known, str(LINE_BYTES), *self.agent,
        ]  # fmt: skip


def environment_of_step(job: Mapping[str, str]) -> dict[str, str]:
    """Pure. The environment for `srun` in a job with this one. From 22.05 on, srun takes the processors of a task from a variable of
    its own alone, and a step without it has one processor a node (srun(1), `--cpus-per-task`)."""
    kept = {name: value for name, value in job.items() if name not in MISLEADING}
    wanted = {"SRUN_CPUS_PER_TASK": job["SLURM_CPUS_PER_TASK"]} if "SLURM_CPUS_PER_TASK" in job else {}
    return wanted | kept


def words_on(node: str, job: Mapping[str, str]) -> list[str]:
    """Pure. What stands before a command that is to run on one node, in a job with this environment, beside others there."""
    cpus = [f"--cpus-per-task={job['SLURM_CPUS_PER_TASK']}"] if "SLURM_CPUS_PER_TASK" in job else []
    return [
        "env", *(f"--unset={name}" for name in MISLEADING), "srun", "--nodes=1", "--ntasks=1", f"--nodelist={node}", *cpus, "--overlap",
        "--cpu-bind=none", "--mpi=none", "--chdir=/", "--export=ALL", "--unbuffered", "--job-name=dtrain-trial",
    ]  # fmt: skip


class SrunStep:
    """One running `srun` and its agents."""

    def __init__(self, start: AgentLaunch, inbox: Inbox) -> None:
        environment = environment_of_step(os.environ)
        try:
            self._process = subprocess.Popen(
                start.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=environment, start_new_session=True, cwd="/",
            )  # fmt: skip
        except OSError as error:
            raise ClusterError(f"cannot run srun: {error.strerror}", "Is SLURM installed on this node?") from error
        self.pids: dict[str, int] = {}
        """Agent → its process id on its node."""
        self._names = {node: f"{node}{start.suffix}" for node in start.nodes}
        self._inbox = inbox
        self._lost: set[str] = set()
        self._words = ""
        self._sending: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._watcher = threading.Thread(target=self._watch, name="srun-errors", daemon=True)
        self._watcher.start()
        threading.Thread(target=self._write, name="srun-commands", daemon=True).start()
        self._reader = threading.Thread(target=self._listen, name="srun-events", daemon=True)
        self._reader.start()

    def send(self, command: Command, to: str = "") -> None:
        """Send to the agent of one node, or to all; see `Channel.send`."""
        self._sending.put(encode(command, to))

    def end(self) -> None:
        """Ask the agents to quit, which ends their workers; make sure that they do."""
        self.send(Quit())
        self._sending.put(b"")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(QUIT_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the step, whatever its agents do: srun has SLURM kill them on a SIGTERM."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(KILL_SECONDS)
            self._process.kill()
            self._process.wait()
        self._sending.put(b"")
        self._reader.join(KILL_SECONDS)

    def _write(self) -> None:
        """A thread of its own, since srun may not take more lines for a while."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            while line := self._sending.get():
                self._process.stdin.write(line)
                self._process.stdin.flush()
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                try:
                    node, event = decode(line)
                except OtherVersion as error:
                    self._words = f"its agent is of another version of dtrain: {error}"
                    break
                except ValueError:
                    print(f"on srun's output: {line.decode(errors='replace').rstrip()}", file=sys.stderr, flush=True)
                    continue
                if isinstance(event, AgentReady):
                    self.pids[node] = event.pid
                self._inbox.put((node, event))
        if self._words.startswith("its agent is of another version"):
            self._process.kill()
        code = self._process.wait()
        self._watcher.join(KILL_SECONDS)
        for name in self._names.values():
            self._lose(name, self._words or f"srun ended with code {code}")

    def _watch(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                text = line.decode(errors="replace").rstrip()
                print(text, file=sys.stderr, flush=True)
                self._words = text.removeprefix("srun: ").removeprefix("error: ") or self._words
                if match := CANCELLED.search(text):
                    self._inbox.put(("", PreemptionNotice(f"SLURM ends the step{match['reason'].rstrip().lower()}")))
                for node, reason in ended_agents(text):
                    if node in self._names:
                        self._lose(self._names[node], reason)

    def _lose(self, name: str, reason: str) -> None:
        if name not in self._lost:
            self._lost.add(name)
            self._inbox.put((name, NodeLost(reason)))


def ended_agents(line: str) -> Iterator[tuple[str, str]]:
    """Pure. The nodes whose agent is gone according to a line of srun's stderr, and why."""
    for pattern in (ENDED, LOST):
        if match := pattern.search(line):
            reason = match["reason"]
            words = f"its agent ended: {reason.lower()}" if pattern is ENDED else f"SLURM says: {reason.lower()}"
            for node in expand(match["nodes"]):
                yield node, words
            return
