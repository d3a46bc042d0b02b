"""Clusters as the supervisor sees them: they give nodes, each with an agent at the end of a channel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from enum import Enum
from typing import ClassVar, Protocol

from dtrain.api.plan import LaunchPlan
from dtrain.api.protocol import AgentEvent, Command
from dtrain.common.lazy_dataclass import dataclass
from dtrain.record.folder import RunDir


@dataclass(frozen=True)
class NodeLost:
    """The channel of a node closed, or the cluster said that the node is gone."""

    reason: str


@dataclass(frozen=True)
class PreemptionNotice:
    """Preemption notice: the cluster will take all nodes away soon."""

    reason: str


@dataclass(frozen=True)
class NodeDraining:
    """The cluster will take this node away soon."""

    reason: str


ClusterEvent = NodeLost | PreemptionNotice | NodeDraining


class Inbox(Protocol):
    """Where a cluster puts what it hears of nodes, in the order of arrival; a `queue.SimpleQueue` is one."""

    def put(self, item: tuple[str, AgentEvent | ClusterEvent]) -> None:
        """(node, what an agent said or what happened to the node); '' stands for the whole allocation."""


class Channel(Protocol):
    """The way to one agent."""

    def send(self, command: Command) -> None:
        """Does not wait and does not fail: a broken channel shows up as `NodeLost` in the inbox."""


class Allocation(ABC):
    """Nodes that the run holds; their agents' events arrive in the inbox that `allocate` was given."""

    channels: Mapping[str, Channel]
    """Node → channel, of the agents that were started and are not known to be lost. The run begins without the machines of
    `LaunchPlan.avoided`, if there are others and `machine` names them."""

    @abstractmethod
    def replace(self, node: str) -> bool:
        """Idempotent, does not wait. Start another agent in place of a lost one, on the same node or a new one; its
        `AgentReady` arrives in the inbox. False: the cluster has nothing to give."""

    def machine(self, node: str) -> str:
        """Does not wait. The cluster's own name of the machine that a node is on, the same in later runs, of nodes that were lost,
        too; '' if there is nothing to choose from."""
        return ""

    def avoid(self, machines: Collection[str]) -> None:  # noqa: B027  an ability
        """Idempotent, does not wait. From now on `replace` gives none of these machines."""

    def has_others(self, machines: Collection[str]) -> bool:
        """May ask the cluster. Whether `replace` could give a machine that is none of these."""
        return False

    def waits_for(self) -> str:
        """Idempotent, does not wait; called again and again until the nodes are ready. What has to be free before they can start, and who
        has it, in words, if that may take as long as another run does; '' if there is nothing."""
        return ""

    def shortage(self) -> str:
        """Describe what is requested, what is free and what there is in total; '' if that is not known."""
        return ""


class SubmissionState(Enum):
    """States of a submitted run; each cluster has a table from its own words to these."""

    PENDING = "pending"
    """The run waits in a queue and can be taken back."""
    RUNNING = "running"
    ENDED = "ended"
    """Nothing will go on by itself."""
    GONE = "gone"
    """The cluster knows nothing of it, or no more."""
    UNKNOWN = "unknown"
    """The cluster does not answer."""


@dataclass(frozen=True)
class Submission:
    """A detached run as its cluster knows it."""

    state: SubmissionState
    word: str = ""
    """The cluster's own word for it (`PENDING`, `COMPLETED` …), for people."""
    reason: str = ""
    reference: str = ""

    @property
    def exists(self) -> bool:
        """Whether the cluster knows the submission, as far as can be told."""
        return self.state is not SubmissionState.GONE

    @property
    def over(self) -> bool:
        """Whether the cluster has ended it for good."""
        return self.state in (SubmissionState.ENDED, SubmissionState.GONE)


@dataclass(frozen=True)
class Usage:
    """What a cluster's own accounting says of a submission; None for what it does not measure."""

    ended: str
    """State and exit reason, in the cluster's words."""
    queued_seconds: float | None = None
    memory_bytes: int | None = None
    """The most that a node's processes of the run had at once."""
    energy_joules: float | None = None


class Cluster(ABC):
    """A place where runs run."""

    Options: ClassVar[type]
    """Frozen dataclass of this cluster's own options, checked by the recipe loader."""

    same_machine: ClassVar[bool]
    """Whether all its nodes are this machine: the frameworks of this environment are theirs, and addresses are loopback."""

    requeues: ClassVar[bool] = False
    """Whether it takes nodes away from runs and gives them new ones later; it then has `requeue`."""

    packs: ClassVar[bool] = False
    """Whether an allocation can be shared by runs that each have a node, or a part of one; it then has `places`."""

    @abstractmethod
    def supervises_locally(self) -> bool:
        """Whether `dtrain run` may supervise from its own process; otherwise it submits and follows."""

    @abstractmethod
    def problems(self, plan: LaunchPlan) -> list[str]:
        """Return what this cluster can tell will not work (more GPUs than it has …), each with what to do instead."""

    @abstractmethod
    def render(self, plan: LaunchPlan, run: RunDir) -> str:
        """Pure. What would be run, to the letter."""

    def site_settings(self, plan: LaunchPlan, run: RunDir) -> list[str]:
        """Return, each in one sentence, what this process's environment adds to `render`, and what of it the recipe rules out."""
        return []

    @abstractmethod
    def allocate(self, plan: LaunchPlan, run: RunDir, inbox: Inbox) -> AbstractContextManager[Allocation]:
        """Start one agent a node; does not wait for them. Leaving the context ends every process it started."""

    @abstractmethod
    def submit(self, plan: LaunchPlan, run: RunDir) -> str:
        """Start the supervisor inside the cluster, detached; returns the cluster's reference."""

    @abstractmethod
    def state(self, run: RunDir, reference: str) -> Submission:
        """Ask the cluster for the state of a submission."""

    def usage(self, run: RunDir, reference: str) -> Usage | None:
        """Ask the cluster's accounting about a submission; None if it keeps none. `dtrain report` shows it."""
        return None

    @abstractmethod
    def cancel(self, run: RunDir, reference: str) -> None:
        """Idempotent. End a submission the hard way, where its supervisor does not answer."""

    def requeue(self, run: RunDir, without: tuple[str, ...]) -> str:
        """Called by the supervisor inside the cluster when a run must leave: have it started again, without these
        nodes; returns what was done, in words. Raises `ClusterError` if the cluster refuses."""
        raise NotImplementedError(f"{type(self).__name__} does not requeue")

    def places(self) -> dict[str, list[str]]:
        """May ask the cluster. The nodes of the allocation that this process is in and that answer, each with the words before a command
        that start it there."""
        raise NotImplementedError(f"{type(self).__name__} does not pack")

    def out_of_reach(self, plan: LaunchPlan) -> list[str]:
        """May ask the cluster. What keeps this machine from starting the run there now though it can plan it, each with what to do
        instead."""
        return []

    @staticmethod
    def time_left() -> str:
        """How long the allocation that this process is in lasts, in words; '' if it is in none. `dtrain doctor` asks on a node."""
        return ""
