"""SLURM: the supervisor runs in the batch script on the job's first node, one agent on each of its nodes behind `srun`."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dtrain.api.cluster import Allocation, Cluster, Inbox, Submission, SubmissionState, Usage
from dtrain.api.plan import LaunchPlan
from dtrain.api.protocol import Command
from dtrain.common.errors import ClusterError, UsageError
from dtrain.record.folder import RunDir

from . import accounting, containers, script, warm
from .commands import (
    UNKNOWN_JOB,
    NodeFacts,
    addresses,
    call,
    expand,
    job_state,
    nodes_of,
    own_job,
    partitions,
    submission_state,
    usable,
)
from .script import SlurmOptions
from .site_settings import environment_of_sbatch, refusals, sentences
from .step import AgentLaunch, SrunStep, words_on

JOB = "SLURM_JOB_ID"
ELEMENT = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
EXCLUDE_SECONDS = 5.0


def _this_job() -> str:
    """Return the job that this process runs in. The last element of a job array has the array's own number, which means all its elements."""
    if all(name in os.environ for name in ELEMENT):
        return "_".join(os.environ[name] for name in ELEMENT)
    return os.environ.get(JOB, "0")


@dataclass(frozen=True)
class Member:
    """The channel to one agent of a step."""

    step: SrunStep
    name: str
    node: str

    def send(self, command: Command) -> None:
        self.step.send(command, self.name)


class SlurmAllocation(Allocation):
    """The agents of one run in the job that this process runs in."""

    def __init__(self, agent: list[str], container: list[str], nodes: list[str], inbox: Inbox) -> None:
        self._inbox = inbox
        self._replaced = 0
        self._avoided: frozenset[str] = frozenset()
        self._start = AgentLaunch(tuple(nodes), tuple(agent), tuple(container), addresses(nodes))
        step = SrunStep(self._start, inbox)
        self._steps = [step]
        self.channels: dict[str, Member] = {node: Member(step, node, node) for node in nodes}

    def replace(self, node: str) -> bool:
        """Another agent on the same node, if SLURM takes that for alive."""
        if node not in self.channels:
            return True
        lost = self.channels.pop(node)
        if lost.node in self._avoided or not usable(lost.node):
            return False
        self._replaced += 1
        suffix = f".{self._replaced}"
        stale = lost.step.pids.get(node)
        step = SrunStep(replace(self._start, nodes=(lost.node,), suffix=suffix, stale=stale), self._inbox)
        self._steps.append(step)
        self.channels[f"{lost.node}{suffix}"] = Member(step, f"{lost.node}{suffix}", lost.node)
        return True

    def machine(self, node: str) -> str:
        return _node_of(node)

    def avoid(self, machines: Collection[str]) -> None:
        self._avoided = frozenset(machines)

    def end(self) -> None:
        """Stop every agent."""
        threads = [threading.Thread(target=step.end) for step in self._steps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Slurm(Cluster):
    """Batch jobs of SLURM, or an allocation that `dtrain run` is started in."""

    Options = SlurmOptions
    same_machine = False
    requeues = True
    packs = True

    def __init__(self, options: SlurmOptions) -> None:
        self.options = options

    def supervises_locally(self) -> bool:
        """Inside an allocation, which is used as it is."""
        try:
            return JOB in os.environ and bool(nodes_of(_this_job()))
        except ClusterError:
            return False

    def problems(self, plan: LaunchPlan) -> list[str]:
        """Yield mistakes in the options."""
        return [*script.mistakes(self.options), *containers.mistakes(self.options.container, plan)]

    def out_of_reach(self, plan: LaunchPlan) -> list[str]:
        """No SLURM here, and what no node or partition could ever give."""
        if missing := self.missing_here():
            return [missing]
        try:
            known = partitions()
        except ClusterError as error:
            return [f"SLURM cannot be asked: {error.message}"]
        return list(self._impossible(plan, known))

    @staticmethod
    def missing_here() -> str:
        """Why this machine cannot submit to SLURM, or ''."""
        if shutil.which("sbatch"):
            return ""
        return "sbatch was not found: run dtrain where SLURM's commands are (a login node), or take another --cluster"

    @staticmethod
    def time_left() -> str:
        job = _this_job() if JOB in os.environ else ""
        return f"{call('squeue', '--noheader', '--format=%L', f'--jobs={job}').strip()} in job {job}" if job else ""

    def _impossible(self, plan: LaunchPlan, known: Mapping[str, list[NodeFacts]]) -> Iterator[str]:
        """Yield what would stay pending for ever."""
        names = (self.options.partition or "").split(",")
        if unknown := [name for name in names if name not in known]:
            if self.options.partition:
                others = ", ".join(sorted(filter(None, known)))
                yield f"there is no partition '{unknown[0]}': it has {others}"
            return
        nodes = list({node.name: node for name in names for node in known[name]}.values())
        where = f"partition {self.options.partition}" if self.options.partition else "the default partition"
        wanted = plan.nodes + self.options.spare_nodes
        if wanted > len(nodes):
            yield f"{wanted} nodes are asked for and {where} has {len(nodes)}: take fewer nodes or spare_nodes"
        for what, asked, given in (
            ("GPUs", script.gpus(self.options, plan), [node.gpus for node in nodes]),
            ("CPUs", script.cpus(self.options, plan), [node.cpus for node in nodes]),
        ):
            enough = sum(count >= asked for count in given)
            if asked > max(given):
                yield f"{asked} {what} a node are asked for and no node of {where} has more than {max(given)}: take more nodes"
            elif enough < wanted <= len(nodes):
                yield f"{asked} {what} a node are asked for on {wanted} nodes, and {enough} nodes of {where} have as many"

    def render(self, plan: LaunchPlan, run: RunDir) -> str:
        """Render the batch script."""
        return script.render(self.options, plan, run)

    def site_settings(self, plan: LaunchPlan, run: RunDir) -> list[str]:
        """Return which settings of sbatch in the environment hold."""
        return sentences(self.render(plan, run), os.environ)

    @contextmanager
    def allocate(self, plan: LaunchPlan, run: RunDir, inbox: Inbox) -> Iterator[SlurmAllocation]:
        """One srun in the job that this process runs in."""
        nodes = nodes_of(_this_job())
        if len(nodes) < plan.nodes and not plan.fits(len(nodes)):
            raise ClusterError(
                f"the run wants {plan.nodes} nodes and the allocation has {len(nodes)}",
                "Allocate more, or give --nodes.",
            )
        nodes = sorted(nodes, key=lambda node: node in plan.avoided)  # a stable order
        chosen = nodes[: plan.nodes + self.options.spare_nodes]
        chosen_container = self.options.container
        container = containers.words(chosen_container, plan, run, containers.identity_of(chosen_container, plan))
        command = plan.agent_command(run, "")
        if not isinstance(chosen_container, str):
            command[0] = chosen_container.python
        agent = warm.agent(command, plan.job.env, chosen, container)
        allocation = SlurmAllocation(agent, container, chosen, inbox)
        try:
            yield allocation
        finally:
            allocation.end()

    def submit(self, plan: LaunchPlan, run: RunDir) -> str:
        """Hand in the batch script, which stays in the run folder; returns the job's number."""
        if "\\" in str(run.path):
            raise UsageError(f"SLURM takes no backslash in a path: {run.path}", "Choose another folder with --runs.")
        path = _script(run)
        text = self.render(plan, run)
        path.write_text(text)
        for sentence in refusals(text, os.environ):
            print(f"dtrain: {sentence}", file=sys.stderr)
        containers.identity_of(self.options.container, plan)  # a large file is read now rather than when the nodes wait
        exclude = self._excluding(plan.avoided, plan.nodes)
        return _sbatch(path, *([f"--exclude={exclude}"] if exclude else []))

    def places(self) -> dict[str, list[str]]:
        """A step of its own on each node of the job that SLURM takes for alive."""
        if not isinstance(self.options.container, str):
            raise UsageError(
                "trials that share one allocation (tune.packing) run outside of a container",
                "Leave tune.packing out: each trial is then a job of its own, in the container.",
            )
        container = shlex.split(self.options.container)
        return {node: [*words_on(node, os.environ), *container] for node in nodes_of(_this_job()) if usable(node)}

    def state(self, run: RunDir, reference: str) -> Submission:
        """SLURM's word for the job, with its reason."""
        found = job_state(reference)
        if not found:
            return Submission(SubmissionState.GONE, reference=reference)
        return Submission(submission_state(found.state), found.state, found.reason, reference)

    def usage(self, run: RunDir, reference: str) -> Usage | None:
        """Ask slurmdbd, by sacct."""
        return accounting.usage(reference)

    def cancel(self, run: RunDir, reference: str) -> None:
        """Cancel the job."""
        try:
            call("scancel", reference)
        except ClusterError as error:
            if UNKNOWN_JOB not in error.message:
                raise

    def requeue(self, run: RunDir, without: tuple[str, ...]) -> str:
        """Requeued under the same number, or handed in anew if SLURM refuses that."""
        job, submitted = os.environ.get(JOB, ""), run.submitted()
        if not submitted or submitted.reference != job:
            raise ClusterError("its job was not submitted by dtrain")
        now = own_job(job)
        if now and (now.state == "PENDING" or (now.restarts or 0) > int(os.environ.get("SLURM_RESTART_COUNT", 0))):
            return f"SLURM has queued job {job} again by itself"
        if now and now.state != "RUNNING" and now.reason != "TimeLimit":
            # A requeue would be granted even now, against the will of whoever cancelled it.
            raise ClusterError(f"job {job} was cancelled")
        exclude = self._excluding([_node_of(name) for name in without], run.job().resources.nodes) if without else ""
        words = f" without {exclude}" if exclude else ""
        if now and now.state == "RUNNING":
            with suppress(ClusterError):
                call("scontrol", "requeue", job)
                if exclude and _excluded(job, exclude):
                    return f"job {job} is queued again{words}"
                return f"job {job} is queued again"
        options = [f"--dependency=afterany:{job}", *([f"--exclude={exclude}"] if exclude else [])]
        reference = _sbatch(_script(run), *options)
        run.write_submitted(replace(submitted, reference=reference))
        return f"submitted again as job {reference}{words}"

    def _excluding(self, nodes: Sequence[str], wanted: int) -> str:
        """Return these nodes and those of the options, in SLURM's form; '' if there are none of them, or so few
        others that the job would wait for ever."""
        if not nodes:
            return ""
        never = set(expand(self.options.exclude or "")) | set(nodes)
        try:
            there = partitions()
        except ClusterError:
            return ""
        names = (self.options.partition or "").split(",")
        others = {node.name for name in names for node in there.get(name, [])} - never
        if len(others) < wanted + self.options.spare_nodes:
            return ""
        return ",".join(filter(None, (self.options.exclude, *dict.fromkeys(nodes))))


def _excluded(job: str, nodes: str) -> bool:
    """Keep a job that was just requeued off these nodes: SLURM takes that only when the job has left its old ones, which
    it does while this process is being ended."""
    deadline = time.monotonic() + EXCLUDE_SECONDS
    while time.monotonic() < deadline:
        with suppress(ClusterError):
            call("scontrol", "update", f"jobid={job}", f"excnodelist={nodes}")
            if re.search(r"ExcNodeList=(?!\(null\))", call("scontrol", "-o", "show", "job", job)):
                return True
        time.sleep(0.05)
    return False


def _node_of(name: str) -> str:
    """SLURM's name of the node of an agent; suffixes tell the agents of one node from each other."""
    return re.sub(r"\.\d+$", "", name)


def _script(run: RunDir) -> Path:
    return run.path / "job.sh"


def _sbatch(path: Path, *options: str) -> str:
    # `12;cluster` if there are several clusters
    environment = environment_of_sbatch(path.read_text(), os.environ)
    return call("sbatch", "--parsable", *options, str(path), environment=environment).strip().partition(";")[0]
