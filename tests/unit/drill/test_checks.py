"""What a drill plans, checks and shows, without runs."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS, RECIPES

from dtrain.common.errors import UsageError
from dtrain.drill import cases as drill_plan
from dtrain.drill import checks, injection, views
from dtrain.drill.cases import Case, Span
from dtrain.drill.checks import History
from dtrain.drill.fault import TYPES, Fault, Schedule
from dtrain.drill.result import DrillResult, Row, as_json
from dtrain.drill.shrink import shrunk
from dtrain.job.job import Job, Storage
from dtrain.launch import planner, recipe
from dtrain.record import events
from dtrain.record.event_log import EventLog
from dtrain.record.folder import RunDir, create


def span(path: Path = PROGRAMS / "tiny.yaml", *options: str) -> Span:
    job = drill_plan.short(recipe.load(path, [recipe.override(one) for one in options]), 40, keep_all=False)
    return Span(planner.make(job), 40, 4.0)


def cases(place: Span, *only: str, seed: int = 0) -> list[Case]:
    return drill_plan.cases(drill_plan.wanted(only), place, seed)


def test_every_fault_is_drilled_at_a_place_that_the_seed_gives() -> None:
    place = span()
    found = cases(place)
    assert {fault.name for case in found for fault in case.schedule} == set(TYPES)
    assert not [case.name for case in found if case.not_applicable]
    assert [case.text for case in found] == [case.text for case in cases(place)]
    assert [case.text for case in found] != [case.text for case in cases(place, seed=1)]
    assert all(
        0 < fault.step < 40 and fault.rank < 2
        for fault in (case.schedule[0] for case in found if case.schedule)
        if fault.phase == "step"
    )
    (chosen,) = cases(place, "kill@7:1+hang")
    assert chosen.schedule[0] == Fault("kill", 1, "step", 7)
    assert chosen.schedule[1].step > 7
    assert cases(place, chosen.text)[0].schedule == chosen.schedule


def test_what_a_job_has_not_is_not_drilled_and_says_why(tmp_path: Path) -> None:
    script = cases(span(RECIPES / "script.yaml"))
    able = [case.schedule[0] for case in script if not case.not_applicable]
    assert [fault.name for fault in able] == ["kill", "segv", "stop", "agent", "zygote", "node"]
    assert all(0 < (fault.seconds or 0) < 4 for fault in able)
    alone = {case.name: case.not_applicable for case in cases(span(PROGRAMS / "tiny.yaml", "resources.workers=1"))}
    assert alone["kill@collective"] == "the job has one process: no rank waits for another"
    assert not alone["kill"]
    assert alone["network-cut"] == alone["network-delay"] == "the job has one process: nothing goes over the network"
    function = {case.name: case.not_applicable for case in cases(span(RECIPES / "digits_function.yaml", "preload=[]"))}
    assert [name for name, why in function.items() if why] == ["spin"]
    place = span()
    remote = replace(place.launch, job=replace(place.launch.job, storage=Storage(url=f"file://{tmp_path}")))
    assert "remote storage" in cases(replace(place, launch=remote), "corrupt-checkpoint")[0].not_applicable


def test_a_place_that_is_not_there_is_refused() -> None:
    for text, said in (("kill@3:2", "there is no rank 2"), ("kill@40", "there is no step 40")):
        with pytest.raises(UsageError, match=said):
            cases(span(), text)


def test_random_schedules_repeat_and_are_as_dense_as_asked() -> None:
    place = Span(span().launch, 1000, 100.0)
    often, seldom = (drill_plan.random_schedule(place, mean, 0.1, 7, 0) for mean in (2.0, 20.0))
    assert (
        often == drill_plan.random_schedule(place, 2.0, 0.1, 7, 0) != drill_plan.random_schedule(place, 2.0, 0.1, 7, 1)
    )
    assert 30 < len(often) < 80
    assert 1 <= len(seldom) < 15
    assert all(a.step < b.step for a, b in itertools.pairwise(often))
    assert len(drill_plan.random_schedule(place, 1e9, 0.1, 7, 0)) == 1


def test_a_failing_schedule_shrinks_to_the_faults_that_it_needs() -> None:
    schedule = tuple(Fault("kill", 0, "step", step) for step in range(1, 7))
    tried = list[Schedule]()

    def breaks(faults: Schedule) -> bool:
        tried.append(faults)
        return {2, 5} <= {fault.step for fault in faults}

    assert [fault.step for fault in shrunk(schedule, breaks, lambda: False)] == [2, 5]
    assert shrunk(schedule, breaks, lambda: True) == schedule


def history(path: Path, schedule: Schedule, *happened: events.Event, code: int = 0, **more: Any) -> History:
    """A run with these events, whose faults all struck."""
    job: Job = drill_plan.short(recipe.load(PROGRAMS / "tiny.yaml", []), 40, keep_all=False)
    run: RunDir = create(path, job)
    lines = [json.dumps({"attempt": number + 1, "time": 0.0}) for number, _ in enumerate(schedule)]
    injection.log_of(run).write_text("\n".join(lines))
    log = EventLog(run.events)
    for event in happened:
        log.add(event)
    log.close()
    return History(run, schedule, (code,), 1.0, **more)


def attempt(number: int, step: int) -> events.Event:
    return events.AttemptStarted(attempt=number, step=step, checkpoint=None, nodes=("node0",), workers=2)


def saved(step: int) -> events.Event:
    return events.CheckpointSaved(step=step, folder=f"step-{step}", bytes=1, weights="00")


def failed(kind: str, *, retry: bool = True) -> tuple[events.Event, events.Event]:
    return events.FailureOccurred(kind=kind, message="it"), events.DecisionMade(retry=retry, reason="why")


KILL = (Fault("kill", 1, "step", 23),)


def test_a_kill_must_be_seen_as_one_charged_once_and_survived(tmp_path: Path) -> None:
    def broken(*happened: events.Event, schedule: Schedule = KILL, **more: Any) -> str:
        found = checks.broken(history(tmp_path, schedule, *happened, **more))
        return "\n".join(one for one in found if "is not on disk" not in one)

    good = (attempt(1, 0), saved(20), *failed("killed"), attempt(2, 20))
    assert not broken(*good)
    assert "its class is 'bug' and not 'killed'" in broken(attempt(1, 0), saved(20), *failed("bug"), attempt(2, 20))
    assert broken(attempt(1, 0), saved(20)) == "the failure was not noticed"
    assert "exit code 3 and not with 0" in broken(*good, code=3)
    assert "a failure that was not injected: hang" in broken(*good, *failed("hang"))
    assert "although step 20 was committed" in broken(attempt(1, 0), saved(20), *failed("killed"), attempt(2, 10))
    assert "the commit of step 10 came after that of step 20" in broken(*good, saved(10))
    assert "attempt 2 was started twice" in broken(*good, attempt(2, 20))
    assert broken(*good, leftovers=("processes: sleep (1)",)) == "left behind: processes: sleep (1)"
    assert "had not ended" in broken(*good, overdue="it had not ended after 90 s")
    bug = (Fault("raise", 1, "step", 23),)
    assert not broken(attempt(1, 0), *failed("bug", retry=False), schedule=bug, code=1)
    assert "charged 1 restarts and not 0" in broken(attempt(1, 0), *failed("bug"), attempt(2, 0), schedule=bug, code=1)


def test_an_undisturbed_run_with_any_alarm_breaks_a_promise(tmp_path: Path) -> None:
    quiet, alarmed = (
        history(tmp_path, (), attempt(1, 0)),
        history(tmp_path, (), attempt(1, 0), events.HangDetected(rank=1)),
    )
    assert not any("false alarm" in one for one in checks.alarms(quiet))
    assert any("a false alarm: hang" in one for one in checks.alarms(alarmed))


def result(*rows: Row, **more: Any) -> DrillResult:
    return DrillResult(
        "a b.yaml", "a job", 3, 40, Row(Case("undisturbed"), exit_code=0, end="step 40"), rows, "/runs/drill", **more
    )


def test_what_broke_is_shown_with_the_command_that_repeats_it() -> None:
    kept = Row(
        Case("kill", KILL),
        "/runs/1",
        classes=("killed",),
        detected_seconds=0.04,
        next_step_seconds=0.4,
        steps_lost=5,
        seconds_lost=0.6,
        restarts_charged=1,
        exit_code=0,
        end="bit-equal",
    )
    broke = replace(kept, end="not bit-equal", broken=("the weights differ <b>",))
    absent = Row(
        Case("nan", (Fault("nan", 0, "step", 3),)), problem="its batches hold no floating-point numbers", struck=False
    )
    shown = views.text(result(kept, broke, absent), ["--strategy", "fsdp"], width=300, colored=False)
    assert (
        "kill   step 23, rank 1  40 ms           killed       400 ms           5           600 ms     1                 bit-equal      kept"
        in shown
    )
    assert "  again: dtrain drill 'a b.yaml' --steps 40 --only kill@23:1 --strategy fsdp" in shown
    assert "nan: not drilled: its batches hold no floating-point numbers" in shown
    narrow = views.text(result(kept), [], width=70, colored=False).split("\n\n")
    assert [part.split()[0] for part in narrow[:3]] == ["fault"] * 3
    assert max(len(line) for part in narrow[:3] for line in part.splitlines()) <= 70
    assert shown.endswith("1 run of 2 broke a promise; the runs are in /runs/drill")
    page = views.html(result(kept, broke, absent), [])
    assert "the weights differ &lt;b&gt;" in page
    assert as_json(result(kept))["kept"] is True
    assert as_json(result(broke))["kept"] is False
    assert "every promise was kept under 1 fault" in views.text(result(kept), [], width=300, colored=False)
