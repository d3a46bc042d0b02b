"""`dtrain compare`: runs beside each other: differences of their recipes, numbers, and where their losses part. Pure, but for the checkpoints
that it reads to the last bit."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from dtrain.checkpoint import difference
from dtrain.checkpoint.difference import TensorDifference
from dtrain.checkpoint.names import folder_of
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.secrets import PRIVATE_KEYS, SECRET
from dtrain.common.serde import JsonObject, to_dict
from dtrain.job.job import Job
from dtrain.record.folder import RunDir
from dtrain.record.metric_curves import HELD_OUT, lower_is_better
from dtrain.record.origin import Origin
from dtrain.report.run_record import RunRecord
from dtrain.show.render import seconds

SAME_ANYWAY = ("name", "folder", "filled")
"""Keys of a job that tell runs apart and say nothing of what they do."""
PRIVATE = tuple(f"{key}." for key in PRIVATE_KEYS)
"""Keys whose differences are shown without their values."""
MOST_KEYS = 4
"""Keys of the recipe that have columns of their own in a table."""
MOST_COLUMNS = 6
"""Metrics that have columns of their own in a table."""
STAMP_WORDS = 3
"""Of a run's id: its date, its time and what makes it unique."""


@dataclass(frozen=True)
class Verdict:
    """How two runs compare, in a sentence."""

    text: str
    equal: bool | None = None
    """Whether their weights are equal; None if there are none to compare."""


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other; the first one is what the others are compared with."""

    records: Sequence[RunRecord]
    differences: dict[str, list[str]]
    """Key of the recipe → its value in each run, of the keys that are not the same in all."""

    @property
    def names(self) -> list[str]:
        """Of the runs, without what all of them begin with."""
        return short_names([record.run.id for record in self.records])

    @property
    def metrics(self) -> list[str]:
        """Return all metrics that any of the runs has, those on held-out data first."""
        names = dict.fromkeys(name for record in self.records for name in record.curves.metrics)
        return sorted(names, key=lambda name: not name.startswith(HELD_OUT))

    def verdicts(self) -> list[str]:
        """For each run but the first: whether its weights are those of the first, or where their losses part."""
        names = self.names
        return [
            f"{name} and {names[0]}: {verdict(self.records[0], record, tensors=len(names) == 2).text}"
            for name, record in zip(names[1:], self.records[1:], strict=True)
        ]


def compare(records: Sequence[RunRecord]) -> Comparison:
    """Put runs beside each other."""
    differing, codes = differences([record.run.job() for record in records]), [record.state.code for record in records]
    if all(codes) and len(set(codes)) > 1:
        differing["code"] = codes
    differing |= origins([record.origin for record in records])
    return Comparison(records, differing)


def origins(found: Sequence[Origin]) -> dict[str, list[str]]:
    """Commit, Python and versions of packages that are known of all runs and not the same in all."""
    rows = [
        {"commit": one.commit[:10], "python": one.python, "container": one.container}
        | {f"package {name}": version for name, version in (one.packages or {}).items()}
        for one in found
    ]
    known = all(one.packages for one in found)
    names = (
        sorted(set().union(*rows))
        if known
        else [name for name in ("commit", "python") if all(row[name] for row in rows)]
    )
    values = {name: [row.get(name) or "-" for row in rows] for name in names}
    return {name: row for name, row in values.items() if len(set(row)) > 1}


def short_names(ids: Sequence[str]) -> list[str]:
    """Ids without the words that all of them begin with, and without date and time if the rest tells them apart."""
    if len(ids) < 2:
        return list(ids)
    words = [run_id.split("-") for run_id in ids]
    shared = 0
    while all(len(one) > shared + 1 for one in words) and len({one[shared] for one in words}) == 1:
        shared += 1
    undated = ["-".join(one[shared:-STAMP_WORDS]) for one in words]
    return undated if all(undated) and len(set(undated)) == len(ids) else ["-".join(one[shared:]) for one in words]


def flat(value: object, path: str = "") -> dict[str, str]:
    """Keys of nested data, with dots, and their values as text."""
    if isinstance(value, dict):
        return {key: text for name, part in value.items() for key, text in flat(part, f"{path}{name}.").items()}
    text = value if isinstance(value, str) else json.dumps(value)
    return {path.rstrip("."): text}


def differences(jobs: Sequence[Job]) -> dict[str, list[str]]:
    """Key → value in each job ('-' where it has none), of the keys whose values are not all the same."""
    rows = [flat(to_dict(job)) for job in jobs]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    found = {key: [row.get(key, "-") for row in rows] for key in keys if key not in SAME_ANYWAY}
    return {
        _as_typed(key): _hidden(key, values) for key, values in found.items() if len(set(values)) > 1
    }  # fmt: skip


def _as_typed(key: str) -> str:
    """As a recipe has it: the options of a plugin stand beside its name."""
    for section in ("strategy", "cluster"):
        if key == f"{section}.name":
            return section
        key = key.replace(f"{section}.options.", f"{section}.")
    return key


def _hidden(key: str, values: list[str]) -> list[str]:
    if not key.startswith(PRIVATE) and not SECRET.search(key):
        return values
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values), start=1)}
    return [f"value {numbers[value]}" for value in values]


def verdict(first: RunRecord, other: RunRecord, *, tensors: bool = True) -> Verdict:
    """Compare the weights at the last step that both runs have saved, or find the step from which on their losses differ. `tensors`: name
    the first that differs."""
    both = sorted(first.digests.keys() & other.digests.keys())
    if not both and not (first.curves.metrics and other.curves.metrics):
        return Verdict("they have no weights and no losses to compare")
    parts = first.curves.parts_from(other.curves)
    where = f"the losses part at step {parts}" if parts is not None else "the losses that both have are equal"
    if not both:
        return Verdict(f"{where}; there is no step that both have saved")
    equal = [step for step in both if first.digests[step] == other.digests[step]]
    if equal and equal[-1] == both[-1]:
        return Verdict(f"the weights are equal at step {both[-1]}", equal=True)
    since = f" (equal until step {equal[-1]})" if equal else ""
    different = f"the weights differ at step {both[-1]}{since}"
    if not tensors:
        return Verdict(f"{different}; {where}", equal=False)
    try:
        found = _first_difference(first.run, other.run, both[-1])
    except (OSError, ValueError):  # one of them is not here any more
        return Verdict(f"{different}; {where}", equal=False)
    if found is None:
        return Verdict(f"weights and optimizer are equal to the last bit at step {both[-1]}; {where}", equal=True)
    return Verdict(f"{different}: {found.name} {found.text}; {where}", equal=False)


def _first_difference(one: RunDir, other: RunDir, step: int) -> TensorDifference | None:
    """Of two checkpoints whose digests differ, perhaps only because other ranks hold other parts; raises `OSError` or `ValueError` if
    one of them cannot be read."""
    return difference.first_difference(*(folder_of(run.checkpoints, step) for run in (one, other)))


def differing_columns(comparison: Comparison) -> list[str]:
    """Keys of the recipe that have columns of their own: all that differ if they are few, as in a sweep."""
    return list(comparison.differences) if len(comparison.differences) <= MOST_KEYS else []


def columns(comparison: Comparison) -> list[str]:
    """Return the heads of the table."""
    shown = comparison.metrics[:MOST_COLUMNS]
    metrics = [head for name in shown for head in (name, f"best {name}")]
    return [
        "run",
        *differing_columns(comparison),
        *metrics,
        "state",
        "step",
        "time",
        "failures cost",
        "time that trained (goodput)",
        "weights",
    ]


def rows(comparison: Comparison) -> list[list[str]]:
    """A row for each run."""
    return [_row(comparison, index) for index in range(len(comparison.records))]


def _row(comparison: Comparison, index: int) -> list[str]:
    record = comparison.records[index]
    state, account = record.state, record.account
    cost = sum(one.seconds for one in record.timeline.failures)
    failures = f"{len(record.timeline.failures)}, {seconds(cost)}" if record.timeline.failures else "-"
    cells = [comparison.names[index], *(comparison.differences[key][index] for key in differing_columns(comparison))]
    for name in comparison.metrics[:MOST_COLUMNS]:
        last, best = last_and_best(record, name)
        cells += ["-" if last is None else f"{last:.5g}", "-" if best is None else f"{best:.5g}"]
    return [
        *cells, state.outcome, f"{state.step}/{state.total_steps}" if state.total_steps else "-", seconds(account["total"]),
        failures, f"{account['goodput']:.1%}" if "goodput" in account else "-", state.weights[:8] or "-",
    ]  # fmt: skip


def best_run(comparison: Comparison) -> int | None:
    """Return the index of the run whose first metric was the best, which is one on held-out data if there is one; accuracy counts before
    loss. None: no run has a number."""
    wanted = (f"{HELD_OUT}accuracy", f"{HELD_OUT}loss", *comparison.metrics)
    name = next((one for one in wanted if one in comparison.metrics), "")
    sign = 1.0 if lower_is_better(name) else -1.0
    values = [(sign * best, index) for index, record in enumerate(comparison.records)
              if (best := last_and_best(record, name)[1]) is not None]  # fmt: skip
    return min(values)[1] if values else None


def last_and_best(record: RunRecord, name: str) -> tuple[float | None, float | None]:
    """Return the last and the best value of a metric; None if the run does not have it."""
    curve = record.curves.metrics.get(name)
    best = curve.best("min" if lower_is_better(name) else "max") if curve else None
    return (curve.last if curve else None), (best[1] if best else None)


def main_metric(comparison: Comparison) -> str | None:
    """Return the metric that is drawn by default: the loss, or the first there is."""
    names = comparison.metrics
    return next((name for name in ("loss", f"{HELD_OUT}loss") if name in names), names[0] if names else None)


def as_json(comparison: Comparison) -> JsonObject:
    """The comparison for a program."""
    return {
        "runs": [_run_as_json(comparison, record) for record in comparison.records],
        "differences": {
            key: dict(zip((record.run.id for record in comparison.records), values, strict=True))
            for key, values in comparison.differences.items()
        },
        "verdicts": {
            record.run.id: verdict(comparison.records[0], record).text for record in comparison.records[1:]
        },
    }  # fmt: skip


def _run_as_json(comparison: Comparison, record: RunRecord) -> JsonObject:
    metrics = {name: last_and_best(record, name) for name in comparison.metrics}
    return {
        "run": record.run.id, "outcome": record.state.outcome, "step": record.state.step, "account": record.account,
        "failures": len(record.timeline.failures), "weights": record.state.weights,
        "failures_cost_seconds": round(sum(one.seconds for one in record.timeline.failures), 3),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.state.first_began)),
        "metrics": {name: {"last": last, "best": best} for name, (last, best) in metrics.items()},
    }  # fmt: skip
