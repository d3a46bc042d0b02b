"""A real Ray cluster of several nodes on this machine, each with an address of its own on the loopback."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from processes import free_ports, in_session, kill_until_gone, started_with, wait_until

START_ATTEMPTS = 3
START_SECONDS = 90
OBJECT_STORE_BYTES = 100_000_000
# A dead node is noticed after about 3 s instead of 15.
QUICK_HEALTH_CHECK = {
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
}


NO_TOKENS = {"RAY_AUTH_MODE": "disabled"}
"""An embedded cluster (`ray.init()`) leaves a token in the user's home, which heads then want and other nodes do not give."""


HIDING = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$1" && shift && exec "$@"', "sh")
"""In front of a folder and a command: runs the command where that folder is empty. Only root may."""


def hiding_refused() -> str | None:
    """Why no folder can be hidden from a process here, or None where one can."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*HIDING, folder, "true"], capture_output=True, text=True, check=False)
    return f"no mount namespaces: {done.stderr.strip()}" if done.returncode else None


class RayError(RuntimeError):
    """A command of Ray's failed, or the cluster did not come up."""


def ray_missing() -> str | None:
    """Why no Ray cluster can be started here, or None where one can; does not import Ray."""
    if importlib.util.find_spec("ray") is None:
        return "Ray is not installed (pip install 'ray[default]')"
    if not ray_program().is_file():
        return f"{ray_program()} is missing"
    return None


def ray_program() -> Path:
    """The `ray` command of the running environment."""
    return Path(sys.executable).with_name("ray")


@dataclass(frozen=True)
class RayLab:
    """A running cluster: node 0 is the head with the Jobs API, each node one `ray start` with all that it started."""

    folder: Path
    gcs_port: int
    dashboard_port: int
    hidden: Path | None = None
    """A folder of this machine that its nodes see empty, as machines do that share no file system with it."""
    _nodes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    def start(cls, nodes: int = 3, *, cpus: int = 4, gpus: int = 2, hidden: Path | None = None) -> RayLab:
        """Start a head and further nodes with pretended CPUs and GPUs and wait until all are alive; takes about 10 s."""
        for attempt in range(1, START_ATTEMPTS + 1):
            # Not pytest's folder: what Ray adds to the path of a socket leaves it no more than 40 letters.
            gcs_port, dashboard_port = free_ports(2)
            lab = cls(Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp")), gcs_port, dashboard_port, hidden)
            try:
                lab._start_node(0, cpus, gpus, {})
                lab._wait_for_nodes({0})
                for number in range(1, nodes):
                    lab._start_node(number, cpus, gpus, {})
                lab._wait_for_nodes(set(range(nodes)))
                return lab
            except (TimeoutError, RayError) as error:
                logs = lab.logs()
                lab.stop()
                if attempt == START_ATTEMPTS:
                    raise RayError(f"no cluster, {START_ATTEMPTS} times: {error}\n{logs}") from error
            except BaseException:
                lab.stop()
                raise
        raise AssertionError("unreachable")

    def __enter__(self) -> RayLab:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """What `ray.init(address=…)` takes."""
        return f"{self.node_address(0)}:{self.gcs_port}"

    @property
    def jobs_address(self) -> str:
        """What `JobSubmissionClient(…)` takes."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a child's environment needs besides its own to find this cluster, and to be found by `pids`."""
        return NO_TOKENS | {"RAY_ADDRESS": self.address, "RAY_LAB": str(self.folder)}

    @property
    def nodes(self) -> tuple[int, ...]:
        """The numbers of the nodes that were started and not killed; 0 is the head."""
        return tuple(sorted(self._nodes))

    @staticmethod
    def node_address(index: int) -> str:
        """The address of a node, on the loopback; a number is never given twice in one cluster."""
        return f"127.0.1.{index + 1}"

    def node_states(self) -> dict[str, str]:
        """ALIVE or DEAD for each address that the cluster has known."""
        return {node["node_ip"]: node["state"] for node in self._listed()}

    def node_id(self, index: int) -> str:
        """Ray's own name of a node, in hexadecimal."""
        return next(str(node["node_id"]) for node in self._listed() if node["node_ip"] == self.node_address(index))

    def logs(self) -> str:
        """The last output of each node's `ray start`."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))

    def add_node(self, *, cpus: int = 4, gpus: int = 2, resources: Mapping[str, float] | None = None) -> int:
        """Start another node and wait until it is alive; gives its number."""
        number = 1 + max(int(path.stem) for path in self.folder.glob("*.log"))
        self._start_node(number, cpus, gpus, resources or {})
        self._wait_for_nodes({number})
        return number

    def kill_node(self, index: int) -> None:
        """Kill a node's raylet, its workers and what they started with SIGKILL, as a power cut does."""
        kill_until_gone(lambda: self.node_pids(index))
        self._nodes.pop(index).wait()

    def drain_node(self, index: int, seconds: int = 60) -> None:
        """Give the notice that a node will be preempted so many seconds from now; it is not killed then by itself."""
        options = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "preempted by the test"]
        deadline = ["--deadline-remaining-seconds", str(seconds)]
        self.run("drain-node", "--address", self.address, "--node-id", self.node_id(index), *options, *deadline)

    def run(self, *arguments: str, seconds: float = 60) -> str:
        """Run a command of Ray's against this cluster and give its output; RayError if it fails."""
        done = subprocess.run(
            [str(ray_program()), *arguments],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode:
            raise RayError(f"ray {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}")
        return done.stdout

    def call(self, path: str, body: object | None = None, seconds: float = 10) -> Any:
        """GET from the dashboard and Jobs API, or POST where there is a body; gives the decoded answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.jobs_address}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=seconds) as answer:
            return json.load(answer)

    def node_pids(self, index: int) -> set[int]:
        """Every process of a node: what `ray start` started, workers, and what those started."""
        # Ray's workers overwrite their environment by their title, so they are found by their session; what they
        # start may lead a session of its own, and is found by its environment.
        return in_session(self._nodes[index].pid) | set(started_with(f"RAY_LAB_NODE={self.folder}:{index}"))

    def pids(self) -> set[int]:
        """Every process of this cluster, and whatever was started with its environment."""
        found = set(started_with(f"RAY_LAB={self.folder}"))
        return found.union(*(self.node_pids(index) for index in self._nodes))

    def stop(self) -> None:
        """Kill every process of the cluster and remove its folder; may be called again."""
        kill_until_gone(self.pids)
        for index in list(self._nodes):
            self._nodes.pop(index).wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_node(self, index: int, cpus: int, gpus: int, resources: Mapping[str, float]) -> None:
        """Start the processes of one node; does not wait."""
        agent_port, client_port = free_ports(2)
        head = ["--head", f"--port={self.gcs_port}", f"--dashboard-port={self.dashboard_port}"]
        head += ["--dashboard-host=127.0.0.1", f"--ray-client-server-port={client_port}"]
        folder = self.folder / str(index)
        command = [
            *(str(ray_program()), "start", "--block", "--disable-usage-stats"),
            *(head if index == 0 else [f"--address={self.address}"]),
            *(f"--node-ip-address={self.node_address(index)}", f"--dashboard-agent-listen-port={agent_port}"),
            *(f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--resources={json.dumps(dict(resources))}"),
            *(f"--object-store-memory={OBJECT_STORE_BYTES}", f"--temp-dir={folder}"),
        ]
        if self.hidden:
            command = [*HIDING, str(self.hidden), *command]
        mark = {"RAY_LAB": str(self.folder), "RAY_LAB_NODE": f"{self.folder}:{index}", "TMPDIR": str(self.folder)}
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        inherited["PATH"] = f"{ray_program().parent}{os.pathsep}{inherited['PATH']}"
        with (self.folder / f"{index}.log").open("wb") as log:
            self._nodes[index] = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**inherited, **QUICK_HEALTH_CHECK, **NO_TOKENS, **mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_for_nodes(self, indices: Set[int]) -> None:
        """Wait until these nodes are alive in the eyes of the head."""

        def alive() -> bool:
            ended = [index for index in indices if self._nodes[index].poll() is not None]
            if ended:
                raise RayError(f"nodes {ended} ended while starting")
            with contextlib.suppress(OSError, ValueError, KeyError):
                states = self.node_states()
                return all(states.get(self.node_address(index)) == "ALIVE" for index in indices)
            return False

        wait_until(alive, START_SECONDS, f"not all of the nodes {sorted(indices)} are alive")

    def _listed(self) -> list[dict[str, Any]]:
        """What the dashboard says of every node, dead ones too."""
        nodes: list[dict[str, Any]] = self.call("/api/v0/nodes")["data"]["result"]["result"]
        return nodes
