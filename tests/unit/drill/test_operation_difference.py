"""Logs of operations of two runs, and what is said of the first that differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from live import PROGRAMS

from dtrain.api.operations import Entry, Operation
from dtrain.common.serde import to_dict
from dtrain.drill import operation_difference
from dtrain.drill.operation_difference import first_difference, text
from dtrain.launch import recipe
from dtrain.record.folder import RunDir


def entry(name: str, made: str = "m", given: str = "g", *, step: int = 22, line: int = 0, numbers: Sequence[str] = ()) -> Entry:  # fmt: skip
    place = f"my_task.py:{line}" if line else ""
    return Entry(step, 2, place, Operation(name, "forward pass", 0, given, tuple(numbers), made))


def told(mine: Sequence[Entry], theirs: Sequence[Entry]) -> str:
    found = first_difference(mine, theirs)
    return text(found, 1) if found else ""


LOG = [entry("aten.addmm.default", line=30), entry("aten.add.Tensor", line=31), entry("aten.sum.default", line=32)]


def test_the_same_tensors_are_no_difference() -> None:
    assert told(LOG, LOG) == ""
    assert told([], LOG) == ""


def test_the_first_operation_of_those_that_differ_is_told_with_its_line() -> None:
    other = [LOG[0], entry("aten.add.Tensor", "x", line=31), entry("aten.sum.default", "y", "x", line=32)]
    assert told(other, LOG) == (
        "step 23, rank 1, aten.add.Tensor at my_task.py:31 (forward pass of shard 2), called with the same tensors and numbers"
    )


def test_a_number_that_differs_is_shown() -> None:
    one, other = (entry("aten.mul.Tensor", made, numbers=("2", made)) for made in ("1.001", "1.0"))
    assert told([one], [other]).endswith(
        "aten.mul.Tensor (forward pass of shard 2), called with 1.001, undisturbed with 1.0, and the same tensors"
    )


def test_tensors_that_differ_before_the_first_operation_are_told() -> None:
    assert told([entry("aten.addmm.default", "x", "y", line=30), *LOG[1:]], LOG).endswith(
        "and the tensors that it got differ already: it is the first of its step, so the batch, the weights or what comes from outside of the framework do"
    )
    assert told([LOG[0], entry("aten.add.Tensor", "x", "y", line=31)], LOG).endswith(
        "they come from other ranks or from outside of the framework"
    )


def test_what_one_run_alone_does_is_no_difference_but_named_as_the_cause_of_one() -> None:
    noise = entry("aten.rand.default", line=29)
    assert told([noise, *LOG], LOG) == told(LOG, [noise, *LOG]) == ""
    prepared = entry("aten.copy_.default", line=31)
    after = [LOG[0], noise, prepared, entry("aten.add.Tensor", "x", "y", line=31)]
    assert told(after, LOG).endswith(
        "differ already: only this run did aten.rand.default at my_task.py:29 (forward pass of shard 2) before it"
    )


@pytest.mark.tensorflow
def test_for_functions_and_other_frameworks_it_is_said_that_nothing_is_compared() -> None:
    tensorflow = recipe.load(PROGRAMS / "contract_tensorflow.yaml", [])
    assert operation_difference.not_compared(tensorflow) == (
        f"the operations of the strategy '{tensorflow.strategy.name}' are not compared, only those of tasks under PyTorch's own strategies"
    )
    task = recipe.load(PROGRAMS / "tiny.yaml", [])
    assert operation_difference.not_compared(task) == ""
    assert "of a function are not" in operation_difference.not_compared(
        replace(task, task=None, function="tiny.py:train")
    )


def test_the_last_attempt_that_did_a_step_counts_and_the_earliest_rank(tmp_path: Path) -> None:
    def made(name: str, attempts: Sequence[Sequence[Sequence[Entry]]]) -> RunDir:
        run = RunDir(tmp_path / name)
        run.create_folders()
        for attempt, ranks in enumerate(attempts, start=1):
            for rank, entries in enumerate(ranks):
                lines = [json.dumps(to_dict(one)) for one in entries]
                run.operations(attempt, rank).write_text("\n".join([*lines, '{"step": 2']))
        return run

    spoiled = [replace(LOG[0], operation=replace(LOG[0].operation, made="x")), *LOG[1:]]
    late = [*LOG[:2], entry("aten.sum.default", "z", line=32)]
    other = [entry("aten.addmm.default", "x", step=24)]
    steps = range(20, 25)
    undisturbed = made("undisturbed", [[LOG, LOG]])
    assert operation_difference.found(made("twice", [[spoiled, LOG], [LOG, LOG]]), undisturbed, steps) == (
        "run once more, no operation of steps 23 to 23 differs"
    )
    found = operation_difference.found(made("late", [[late, spoiled], [other, other]]), undisturbed, steps)
    assert found.startswith(
        "the first operation that differs (both run once more): step 23, rank 1, aten.addmm.default at my_task.py:30"
    )
    assert operation_difference.found(made("none", []), undisturbed, steps) == ""
