"""A run as reports and comparisons read it: its state, timeline and curves, in one pass over its event log."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from dtrain.api.cluster import Usage
from dtrain.api.protocol import IMAGE
from dtrain.common.errors import DtrainError
from dtrain.common.lazy_dataclass import dataclass
from dtrain.launch import registry
from dtrain.record import code_snapshot, event_log, goodput
from dtrain.record.events import CheckpointSaved, NodeChecked, StragglerFound, StragglerOver
from dtrain.record.folder import RunDir
from dtrain.record.goodput import Timeline
from dtrain.record.metric_curves import MetricCurves
from dtrain.record.origin import Origin
from dtrain.record.status import RunState


@dataclass()
class Straggler:
    """A rank that the others waited for."""

    found: StragglerFound
    cost_seconds: float | None = None
    """Seconds that all ranks waited for it; None: they still do."""


@dataclass(frozen=True)
class RunRecord:
    """One run, up to its newest event."""

    run: RunDir
    state: RunState
    timeline: Timeline
    curves: MetricCurves
    digests: dict[int, str]
    """Step → digest of the weights that were saved at it."""
    stragglers: tuple[Straggler, ...] = ()
    """In the order in which they were found."""
    image: str = ""
    """Names the container that its workers were in, with its digest if that is known."""

    @property
    def is_script(self) -> bool:
        """Whether its steps are not known."""
        return self.state.kind == "script"

    @cached_property
    def origin(self) -> Origin:
        """The commit and the packages of the code that it trains with."""
        found = code_snapshot.origin_of(self.run.code)
        return replace(found, container=self.image) if self.image else found

    @cached_property
    def usage(self) -> Usage | None:
        """Ask the accounting of its cluster; None if it was not submitted, or if the cluster cannot be asked from here."""
        submitted = self.run.submitted()
        try:
            return registry.cluster_of(self.run.job()).usage(self.run, submitted.reference) if submitted else None
        except DtrainError:
            return None

    @property
    def is_changed(self) -> bool:
        """Whether its code was not that of the commit."""
        return self.run.changes.exists() and self.run.changes.stat().st_size > 0

    @cached_property
    def account(self) -> dict[str, float]:
        """Seconds by kind; see `goodput.account_of`."""
        return goodput.account_of(self.timeline, script=self.is_script)

    @property
    def samples_per_second(self) -> float | None:
        """Mean over all steps that stand, in their time: with data wait and checkpoint stall, without evaluations."""
        if self.state.samples_per_second is None:  # a loop with data of its own does not tell
            return None
        account = self.account
        seconds = account["training"] + account["data_wait"] + account["checkpoint_stall"]
        samples = self.state.step * self.state.global_batch
        return samples / seconds if seconds and samples else None


def read(run: RunDir) -> RunRecord:
    """Everything that its event log and ledgers say so far."""
    state, curves, builder, digests = RunState(), MetricCurves(), goodput.builder(run), dict[int, str]()
    stragglers, image = list[Straggler](), ""
    for event in event_log.Reader(run.events).new():
        state.add(event)
        curves.add(event)
        builder.add(event)
        if isinstance(event, CheckpointSaved):
            digests[event.step] = event.weights
        elif isinstance(event, StragglerFound):
            stragglers.append(Straggler(event))
        elif isinstance(event, StragglerOver):
            _end(stragglers, event)
        elif isinstance(event, NodeChecked):
            image = event.versions.get(IMAGE, image)
    state.run = state.run or run.id
    return RunRecord(run, state, builder.timeline(), curves, digests, tuple(stragglers), image)


def _end(stragglers: list[Straggler], event: StragglerOver) -> None:
    for one in stragglers:
        if (one.found.attempt, one.found.rank) == (event.attempt, event.rank) and one.cost_seconds is None:
            one.cost_seconds = event.cost_seconds
