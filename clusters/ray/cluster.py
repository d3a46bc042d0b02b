"""Ray: one actor a node, in a placement group, holds the agent; submitted runs are Ray jobs."""

from __future__ import annotations

import importlib.util
import os
import shlex
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dtrain.api.cluster import Allocation, Cluster, Inbox, NodeDraining, NodeLost, Submission, SubmissionState
from dtrain.api.plan import LaunchPlan, supervisor_command
from dtrain.api.protocol import Quit, decode
from dtrain.common import environment as variables
from dtrain.common import installation
from dtrain.common.errors import ClusterError, Exit, UsageError
from dtrain.record.folder import RunDir

from . import shipping
from .agent_host import AgentHost
from .channel import RayChannel
from .connection import connected
from .machines import Machines

LOOK_SECONDS = 1.0
QUIT_SECONDS = 10.0
STATES = {
    "PENDING": SubmissionState.PENDING,
    "RUNNING": SubmissionState.RUNNING,
    "STOPPED": SubmissionState.ENDED,
    "SUCCEEDED": SubmissionState.ENDED,
    "FAILED": SubmissionState.ENDED,
}
"""Status of a Ray job → what it means for a submission."""
STOPPED_IS_NO_FAILURE = f"( code=$?; [ $code = {int(Exit.RESUMABLE)} ] || exit $code )"
"""In the shell of a Ray job, after the supervisor: a run that was stopped with its state saved is no FAILED job."""


@dataclass(frozen=True)
class RayOptions:
    """Of a Ray cluster."""

    address: str | None = None
    """Of the cluster (`host:port`, `auto`); RAY_ADDRESS when not given, and without either one on this machine."""
    jobs_address: str | None = None
    """Of the Jobs API (`http://host:8265`), for submitted runs; RAY_API_SERVER_ADDRESS when not given."""
    placement: Literal["auto", "STRICT_SPREAD", "SPREAD", "PACK", "STRICT_PACK"] = "auto"
    """Of the nodes of a run: auto spreads them over machines if the cluster has as many."""
    resources: dict[str, float] = field(default_factory=dict)
    """Custom resources of each node."""
    runtime_env: dict[str, Any] = field(default_factory=dict)
    """Ray's runtime environment for everything of the run (`pip`, `py_modules`, `env_vars` …); with storage.url the recipe's
    folder is its working_dir."""


class Ray(Cluster):
    """Attached to a running cluster, or an embedded one on this machine."""

    Options = RayOptions
    same_machine = False

    def __init__(self, options: RayOptions) -> None:
        self.options = options

    def supervises_locally(self) -> bool:
        """The supervisor can be anywhere that reaches the cluster."""
        return True

    def problems(self, plan: LaunchPlan) -> list[str]:
        """None: what Ray cannot give, it may have later."""
        return []

    def out_of_reach(self, plan: LaunchPlan) -> list[str]:
        """Ray is installed."""
        missing = self.missing_here()
        return [missing] if missing else []

    @staticmethod
    def missing_here() -> str:
        """Why this machine cannot use Ray, or ''."""
        return "" if importlib.util.find_spec("ray") else f"Ray is not installed: {installation.command('ray')}"

    def bundle(self, plan: LaunchPlan) -> dict[str, float]:
        """Return the resources of one node of the run."""
        each = plan.job.resources.cpus_per_worker or 1
        wanted: dict[str, float] = {"CPU": float(plan.workers_per_node * each)}
        if plan.job.resources.device == "gpu":
            wanted["GPU"] = float(plan.workers_per_node)
        return wanted | self.options.resources

    def runtime_env(self, plan: LaunchPlan, run: RunDir) -> dict[str, Any]:
        """Return the runtime environment of every node; with the recipe's folder if nodes share none, without the
        runs in it."""
        job, given = plan.job, {name: value for name, value in self.options.runtime_env.items() if name != "env_vars"}
        if not job.storage.url:
            return given
        runs, folder = run.path.parent, Path(job.folder)
        inside = [f"/{runs.relative_to(folder)}"] if runs != folder and runs.is_relative_to(folder) else []
        excluded = [*given.get("excludes", []), *inside]
        return {"working_dir": job.folder} | given | {"excludes": excluded}

    def env_vars(self) -> dict[str, str]:
        """The runtime environment's variables, which dtrain sets itself: Ray would show them to everyone."""
        return {name: str(value) for name, value in self.options.runtime_env.get("env_vars", {}).items()}

    def render(self, plan: LaunchPlan, run: RunDir) -> str:
        """The runtime environment, the placement group, and the agent of each of its bundles."""
        lines = [f"placement group: {plan.nodes} x {self.bundle(plan)}, {self.options.placement}"]
        if environment := self.runtime_env(plan, run):
            lines.insert(0, f"runtime environment: {environment}")
        return "\n".join([*lines, *(shlex.join(plan.agent_command(run, f"node{n}")) for n in range(plan.nodes))])

    @contextmanager
    def allocate(self, plan: LaunchPlan, run: RunDir, inbox: Inbox) -> Iterator[RayAllocation]:
        with connected(self.options.address, self.runtime_env(plan, run)):
            allocation = RayAllocation(self, plan, run, inbox)
            try:
                allocation.begin()
                yield allocation
            finally:
                allocation.end()

    def submit(self, plan: LaunchPlan, run: RunDir) -> str:
        """A Ray job that runs the supervisor in the cluster, which may see nothing of this machine's files."""
        command, environment = supervisor_command(run), dict(self.runtime_env(plan, run))
        if plan.job.storage.url:
            command[0] = "python"
        with shipping.module(plan.job if plan.job.storage.url else None, self.env_vars()) as shipped:
            if plan.job.storage.url or self.env_vars():
                environment["py_modules"] = [*environment.get("py_modules", []), str(shipped)]
                environment["env_vars"] = {variables.SHIPPED: shipped.name}
            try:
                # The same run may be submitted again after a stop, and Ray never takes an id twice.
                return str(
                    self._jobs().submit_job(
                        entrypoint=f"{shlex.join(command)} || {STOPPED_IS_NO_FAILURE}",
                        submission_id=f"{run.id}-{os.urandom(2).hex()}",
                        runtime_env=environment or None,
                        metadata=plan.job.tags | {"dtrain_run": run.id},
                    )
                )
            except (RuntimeError, ValueError) as error:
                raise ClusterError(
                    f"Ray did not take the job: {error}", "Check the address of the Jobs API."
                ) from error

    def state(self, run: RunDir, reference: str) -> Submission:
        """Ask the Jobs API for the state; '' if the cluster cannot be reached or does not know the job."""
        with suppress(RuntimeError, ConnectionError, ClusterError):
            info = self._jobs().get_job_info(reference)
            word = str(info.status.value)
            return Submission(STATES.get(word, SubmissionState.UNKNOWN), word, info.message or "", reference)
        return Submission(SubmissionState.GONE, reason="the cluster does not answer", reference=reference)

    def cancel(self, run: RunDir, reference: str) -> None:
        """Stop the job, and its supervisor with it."""
        with suppress(RuntimeError):
            self._jobs().stop_job(reference)

    def _jobs(self) -> Any:
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError:
            raise UsageError("Ray's Jobs API is not installed", installation.command("ray")) from None
        address = self.options.jobs_address or os.environ.get("RAY_API_SERVER_ADDRESS")
        if not address:
            raise UsageError(
                "submitting to Ray needs the address of its Jobs API",
                "Set cluster.jobs_address in the recipe or RAY_API_SERVER_ADDRESS (http://host:8265).",
            )
        try:
            return JobSubmissionClient(address)
        except (ConnectionError, RuntimeError) as error:
            raise ClusterError(f"no Ray cluster answers at {address}: {error}", "Is it up? See `ray status`.") from None


class RayAllocation(Allocation):
    """A placement group with an agent in each of its bundles."""

    def __init__(self, cluster: Ray, plan: LaunchPlan, run: RunDir, inbox: Inbox) -> None:
        self._cluster = cluster
        self._plan = plan
        self._run = run
        self._inbox = inbox
        self._bundle = cluster.bundle(plan)
        self._groups: list[Any] = []
        self._over = threading.Event()
        self._incarnations = 0
        self._threads: list[threading.Thread] = []
        self._warned: set[str] = set()
        self._avoided: frozenset[str] = frozenset(plan.avoided)
        self._machines = Machines(self._bundle)
        self._placed: dict[str, str] = {}
        """Node of the run → id of Ray's node."""
        self.channels: dict[str, RayChannel] = {}

    def begin(self) -> None:
        """Ask for the placement group; agents are started as its bundles get their nodes."""
        import ray

        placement = self._cluster.options.placement
        if placement == "auto":
            machines = sum(bool(node["Alive"]) for node in ray.nodes())
            placement = "STRICT_SPREAD" if machines >= self._plan.nodes > 1 else "PACK"
        group = self._group(self._plan.nodes, placement)
        for number in range(self._plan.nodes):
            self._start(number, group, number)
        self._spawn(self._look_for_drains, "ray-drains")

    def replace(self, node: str) -> bool:
        """Ray moves the bundle of a dead node to another one as soon as there is room. Where there is none now, the
        agent may still come later, when nodes do."""
        if node not in self.channels:
            return False
        channel = self.channels.pop(node)
        self._kill(channel.actor)
        state = self._holder(channel)
        if avoided := self.machine(node) in self._avoided:
            state = "drains"
        room = state == "stays" or self._machines.room(self._avoided)
        if state == "drains":
            # Its bundle stays on it until it is gone: ask for another one elsewhere.
            if avoided and not room:
                return False
            self._start(channel.number, self._group(1), 0, expected=room)
        else:
            self._start(channel.number, channel.group, channel.bundle, expected=room)
        return room

    def machine(self, node: str) -> str:
        return self._machines.known_name(self._placed.get(node, ""))

    def avoid(self, machines: Collection[str]) -> None:
        self._avoided = frozenset(machines)

    def has_others(self, machines: Collection[str]) -> bool:
        return self._machines.room(machines)

    def shortage(self) -> str:
        """Describe what is requested, free and there in all."""
        import ray

        free, total = ray.available_resources(), ray.cluster_resources()
        parts = [
            f"{name}: {amount * self._plan.nodes:g} asked, {free.get(name, 0):g} free, {total.get(name, 0):g} in all"
            for name, amount in self._bundle.items()
        ]
        return f"{self._plan.nodes} nodes of {self._bundle}; {'; '.join(parts)}"

    def end(self) -> None:
        """End every agent, and give the bundles back."""
        import ray

        self._over.set()
        for channel in self.channels.values():
            channel.send(Quit())
        deadline = time.monotonic() + QUIT_SECONDS
        for thread in self._threads:
            if (
                thread.name.removeprefix("ray-") in self.channels
                and self.channels[thread.name.removeprefix("ray-")].node_id
            ):
                thread.join(max(0.0, deadline - time.monotonic()))
        for channel in self.channels.values():
            self._kill(channel.actor)
        for group in self._groups:
            ray.util.remove_placement_group(group)

    def _holder(self, channel: RayChannel) -> Literal["stays", "drains", "dead"]:
        """How the node of a channel's bundle is."""
        import ray
        from ray._private.state import state

        placed = ray.util.placement_group_table(channel.group)["bundles_to_node_id"].get(channel.bundle)
        if placed not in {node["NodeID"] for node in ray.nodes() if node["Alive"]}:
            return "dead"
        return "drains" if placed in state.get_draining_nodes() else "stays"

    def _group(self, bundles: int, placement: str = "PACK") -> Any:
        """Create one more placement group, on nodes that are not avoided if they could hold it."""
        import ray

        selector = self._machines.selector(self._avoided, bundles, placement)
        chosen = {"bundle_label_selector": [selector] * bundles} if selector else {}
        group = ray.util.placement_group([self._bundle] * bundles, strategy=placement, **chosen)
        self._groups.append(group)
        return group

    def _start(self, number: int, group: Any, bundle: int, *, expected: bool = True) -> None:
        """Create the actor of a bundle, which waits for its resources; it counts as coming only if it is expected."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._incarnations += 1
        node = f"node{number}.{self._incarnations}"
        amounts = dict(self._bundle)
        options = {
            "num_cpus": amounts.pop("CPU", 0),
            "num_gpus": amounts.pop("GPU", 0),
            "resources": amounts,
            "max_concurrency": 4,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
        }
        environment = self._cluster.env_vars() | {variables.CPUS: str(max(1, int(self._bundle["CPU"])))}
        passed = (variables.WARM, variables.HOOKS, variables.OPERATIONS)
        environment |= {name: os.environ[name] for name in passed if name in os.environ}
        command = self._plan.agent_command(self._run, node)
        actor = ray.remote(AgentHost).options(**options).remote(command, environment)
        channel = RayChannel(actor, number, group, bundle)
        if expected:
            self.channels[node] = channel
        self._spawn(lambda: self._listen(node, channel), f"ray-{node}")

    def _spawn(self, target: Any, name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _listen(self, node: str, channel: RayChannel) -> None:
        """Wait for the actor to have its place, and pass on what its agent says."""
        import ray

        try:
            channel.node_id = self._placed[node] = ray.get(channel.actor.node.remote())
            self._machines.look()
            self.channels[node] = channel
            for line in channel.actor.events.options(num_returns="streaming").remote():
                with suppress(ValueError):
                    self._inbox.put((node, decode(ray.get(line))[1]))
            self._gone(node, "its agent ended")
        except ray.exceptions.RayError as error:
            self._gone(node, error)

    def _gone(self, node: str, why: object) -> None:
        if not self._over.is_set():
            # The last line of an error that came from an actor is the error itself.
            words = str(why).strip().splitlines() or [type(why).__name__]
            self._inbox.put((node, NodeLost(words[-1])))

    def _kill(self, actor: Any) -> None:
        import ray

        with suppress(ray.exceptions.RayError):
            ray.kill(actor)

    def _look_for_drains(self) -> None:
        """Ray says some time before that a node will be taken away."""
        from ray._private.state import state

        while not self._over.wait(LOOK_SECONDS):
            with suppress(Exception):
                draining = set(state.get_draining_nodes())
                for node, channel in list(self.channels.items()):
                    if channel.node_id in draining and node not in self._warned:
                        self._warned.add(node)
                        self._inbox.put((node, NodeDraining("Ray drains its node")))
