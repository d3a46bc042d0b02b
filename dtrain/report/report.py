"""`dtrain report`: what a run spent its time on, what its failures cost, and how its metrics went, as text and as JSON. Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict

from dtrain.api.cluster import Usage
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import JsonObject
from dtrain.control.state import named
from dtrain.record.goodput import SHARES, FailureCost
from dtrain.record.metric_curves import Curve, lower_is_better
from dtrain.report.run_record import RunRecord
from dtrain.show import render
from dtrain.show.render import counted, seconds

BAR_WIDTH = 30
LEAST_SECONDS = 0.01
"""Less is not shown."""
MOST_FAILURES = 20
"""Different ones that are shown."""


@dataclass(frozen=True)
class FailureGroup:
    """Failures that differ in rank, step or other numbers only."""

    costs: Sequence[FailureCost]

    @property
    def first(self) -> FailureCost:
        """Time of the earliest failure."""
        return self.costs[0]

    @property
    def seconds(self) -> float:
        """Cost of all failures in seconds."""
        return sum(cost.seconds for cost in self.costs)

    @property
    def parts(self) -> str:
        """Costs by kind."""
        kinds = ("wasted_steps", "detection", "restart")
        sums = {kind: sum(getattr(cost, kind) for cost in self.costs) for kind in kinds}
        return ", ".join(f"{kind.replace('_', ' ')} {seconds(value)}" for kind, value in sums.items() if value >= 0.01)

    @property
    def steps(self) -> int:
        """Steps undone by all failures."""
        return sum(cost.steps for cost in self.costs)

    @property
    def where(self) -> str:
        """Attempts and, if it was more than one, how often."""
        attempts = [cost.failure.attempt for cost in self.costs]
        if len(attempts) == 1:
            return f"attempt {attempts[0]}"
        return f"{len(attempts)} times, attempts {attempts[0]} to {attempts[-1]}"


def failure_groups(costs: Sequence[FailureCost]) -> list[FailureGroup]:
    """Equal failures together, in the order of the first of each."""
    groups: dict[tuple[str, str], list[FailureCost]] = {}
    for cost in costs:
        alike = re.sub(r"\d+", "#", cost.failure.message)
        groups.setdefault((cost.failure.kind, alike), []).append(cost)
    return [FailureGroup(members) for members in groups.values()]


def times(record: RunRecord) -> list[tuple[str, float, float]]:
    """(kind in words, seconds, share of the total) of what took time, the longest first; the queue is no part of the total."""
    account = record.account
    total = account["total"]
    rows = [
        (name.replace("_", " "), value, value / total if total and name != "queued" else 0.0)
        for name, value in account.items() if name not in SHARES and value >= LEAST_SECONDS
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row[1])


def headline(record: RunRecord) -> str:
    """Format what ran where, and how it ended."""
    state = record.state
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(state.first_began)) if state.first_began else "not yet"
    code = f", {record.origin}{', changed since' if record.is_changed else ''}" if record.origin.commit else ""
    tags, note = named(record.run)
    labels = (f", tagged {render.tags(tags)}" if tags else "") + (f", noted: {note}" if note else "")
    where = f"{state.target}, {state.strategy} on {counted(state.workers, 'worker')}, {state.cluster}"
    return f"{where}, started {began}{code}{labels}"


def text(record: RunRecord) -> str:
    """The report for a terminal or a pipe."""
    state, account = record.state, record.account
    lines = [
        f"{record.run.id}: {state.outcome}" + (f" - {state.reason}" if state.reason else ""),
        f"  {headline(record)}",
    ]
    if state.total_steps:
        speed = f", {record.samples_per_second:,.0f} samples/s" if record.samples_per_second else ""
        lines.append(f"  step {state.step} of {state.total_steps}{speed}")
    so_far = "" if state.exit_code is not None else " up to the newest step"
    if record.usage:
        lines.append(f"  {state.cluster}: {', '.join(f'{name} {value}' for name, value in usage_rows(record.usage))}")
    lines += ["", f"  time: {seconds(account['total'])}{so_far}{_shares(account)}"]
    for kind, value, share in times(record):
        bar = "█" * round(share * BAR_WIDTH)
        shown = f"{share:7.1%}" if kind != "queued" else "  apart"
        lines.append(f"    {kind:22} {seconds(value):>12} {shown}  {bar}".rstrip())
    lines += _failures(record)
    rows = straggler_rows(record)
    if rows:
        lines += ["", "  ranks that the others waited for"]
        lines += [f"    {at}  {rank}: {what}, cost {cost}" for at, rank, what, cost in rows]
    if record.curves.metrics:
        lines += ["", f"  {'metrics':30} {'last':>12} {'best':>12}"]
        lines += [f"    {name:28} {last:>12} {best:>12}  {where}" for name, last, best, where in metric_rows(record)]
    lines += [f"  warning: {warning}" for warning in state.warnings]
    return "\n".join(line.rstrip() for line in lines)


def usage_rows(usage: Usage) -> list[tuple[str, str]]:
    """(what in words, value) of what the cluster's accounting says."""
    rows = [("ended", usage.ended)]
    if usage.queued_seconds is not None:
        rows.append(("waited", seconds(usage.queued_seconds)))
    if usage.memory_bytes is not None:
        rows.append(("most memory of a node", render.size(usage.memory_bytes)))
    if usage.energy_joules is not None:
        rows.append(("energy", f"{usage.energy_joules / 3.6e6:.3g} kWh"))
    return rows


def _shares(account: dict[str, float]) -> str:
    if "goodput" not in account:
        return ""
    return f", goodput {account['goodput']:.1%}, effective share {account['effective_share']:.1%}"


def _failures(record: RunRecord) -> list[str]:
    costs = record.timeline.failures
    if not costs:
        return []
    cost = seconds(sum(one.seconds for one in costs))
    lines = ["", f"  {counted(len(costs), 'failure')}, which cost {cost}"]
    groups = failure_groups(costs)
    for group in groups[:MOST_FAILURES]:
        failure = group.first.failure
        lines.append(f"    {render.clock(failure)}  {group.where}: {render.failure(failure)}")
        undone = f"; {counted(group.steps, 'step')} undone" if group.steps else ""
        lines.append(f"              cost {seconds(group.seconds)}: {group.parts or 'next to nothing'}{undone}")
    if len(groups) > MOST_FAILURES:
        lines.append(f"    and {len(groups) - MOST_FAILURES} other causes: {record.run.events}")
    return lines


def straggler_rows(record: RunRecord) -> list[tuple[str, str, str, str]]:
    """(time, rank and node, what takes it so long, what it cost all ranks) of each straggler."""
    rows = []
    for one in record.stragglers[:MOST_FAILURES]:
        found = one.found
        rank = f"rank {found.rank}" + (f" ({found.node})" if found.node else "")
        cost = "goes on" if one.cost_seconds is None else seconds(one.cost_seconds)
        rows.append((render.clock(found), rank, render.slowness(found), cost))
    return rows


def metric_rows(record: RunRecord) -> list[tuple[str, str, str, str]]:
    """(name, last value, best value, step of the best) of each metric."""
    return [
        (name, f"{curve.last:.5g}", *_best(name, curve)) for name, curve in record.curves.metrics.items()
        if curve.last is not None
    ]  # fmt: skip


def _best(name: str, curve: Curve) -> tuple[str, str]:
    best = curve.best("min" if lower_is_better(name) else "max")
    return (f"{best[1]:.5g}", f"at step {best[0]:.0f}") if best else ("-", "")


def as_json(record: RunRecord) -> JsonObject:
    """The report for a program."""
    state = record.state
    metrics = {}
    for name, curve in record.curves.metrics.items():
        best = curve.best("min" if lower_is_better(name) else "max")
        metrics[name] = {"last": curve.last, "best": best and best[1], "best_step": best and int(best[0])}
    tags, note = named(record.run)
    return {
        "run": record.run.id, "tags": tags, "note": note, "outcome": state.outcome, "reason": state.reason, "step": state.step,
        "origin": asdict(record.origin), "changed_since_commit": record.is_changed,
        "accounting": asdict(record.usage) if record.usage else None,
        "total_steps": state.total_steps, "samples_per_second": record.samples_per_second,
        "account": record.account, "metrics": metrics,
        "failures": [
            {
                "attempt": cost.failure.attempt, "time": cost.failure.time, "kind": cost.failure.kind, "rank": cost.failure.rank,
                "node": cost.failure.node, "step": cost.failure.step, "message": cost.failure.message, "steps_undone": cost.steps,
                "wasted_steps": round(cost.wasted_steps, 3), "detection": round(cost.detection, 3),
                "restart": round(cost.restart, 3), "cost_seconds": round(cost.seconds, 3),
            }
            for cost in record.timeline.failures
        ],
        "stragglers": [
            {
                "attempt": one.found.attempt, "time": one.found.time, "rank": one.found.rank, "node": one.found.node,
                "phase": one.found.phase, "seconds": one.found.seconds, "usual_seconds": one.found.usual_seconds,
                "cost_seconds": one.cost_seconds,
            }
            for one in record.stragglers
        ],
        "spans": [
            {"kind": span.kind.value, "begin": span.begin, "end": span.end, "attempt": span.attempt}
            for span in record.timeline.spans
        ],
    }  # fmt: skip
