"""What every installed strategy promises, found through the entry points and tried with real processes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS, Live, finished, start, started, stopped

from dtrain.api import testing
from dtrain.api.strategy import TrainingStrategy
from dtrain.job.job import Job, PluginChoice, Resources
from dtrain.launch import registry
from dtrain.launch.planner import make

STRATEGIES = list(registry.installed("strategy"))
TOLERANCE = {"torch": 1e-5, "tensorflow": 1e-4}
OPTIONS: dict[str, tuple[str, ...]] = {"tpu": ("--set", "strategy.rehearse=true")}
"""What a strategy needs to be told to run on this machine."""
FRAMEWORKS = {"horovod": "torch", "horovod/tensorflow": "tensorflow"}
"""Which task a strategy of no framework of its own is given."""


def framework(name: str) -> str:
    return FRAMEWORKS.get(name) or str(registry.plugin_class("strategy", name).framework)


def trains(name: str) -> bool:
    return (
        issubclass(registry.plugin_class("strategy", name), TrainingStrategy)
        and importlib.util.find_spec(framework(name)) is not None
    )


def marked(name: str) -> Any:
    """The strategy as a parameter, with the markers of what its runs need."""
    needed = {"live", name.partition("/")[0], framework(name)} & {"live", "horovod", "tensorflow"}
    return pytest.param(name, marks=[getattr(pytest.mark, one) for one in sorted(needed)])


TRAINERS = [marked(name) for name in [*filter(trains, STRATEGIES), "horovod/tensorflow"]]


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_launchers_side_is_pure(name: str) -> None:
    job = Job(name="x", script="true", strategy=PluginChoice(name), folder="/")
    testing.check_strategy(registry.strategy(name, {}), job)


@pytest.mark.parametrize("name", STRATEGIES)
def test_places_cover_the_workers(name: str) -> None:
    nodes = 1 if name == "mirrored" else 2
    plan = make(
        Job(
            name="x",
            script="true",
            strategy=PluginChoice(name),
            resources=Resources(workers=4, nodes=nodes),
            folder="/",
        )
    )
    places = [rank_info for node in plan.ranks_by_node() for rank_info in node]
    assert [rank_info.rank for rank_info in places] == list(range(plan.processes))
    assert sum(rank_info.replicas for rank_info in places) == 4


def recipe(name: str, workers: int = 1) -> tuple[str, ...]:
    groups = ("--set", "strategy.replicas=2") if name == "hsdp" and workers == 4 else ()
    return (
        str(PROGRAMS / f"contract_{framework(name)}.yaml"),
        "--strategy",
        name.partition("/")[0],
        *OPTIONS.get(name, ()),
        *groups,
    )


@cache
def reference(kind: str) -> list[float]:
    """Losses of the same training by hand, in one process without any launcher."""
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / f"reference_{kind}.py"), "20", "32", "5", "0.5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    losses: list[float] = json.loads(done.stdout.splitlines()[-1])
    return losses


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Live]:
    """Undisturbed runs on two workers, made when first asked for."""

    class Runs(dict[str, Live]):
        def __missing__(self, name: str) -> Live:
            self[name] = finished(*recipe(name), "--workers", "2", runs=tmp_path_factory.mktemp("two"))
            return self[name]

    return Runs()


def assert_losses(live: Live, name: str) -> None:
    losses = live.losses()
    assert sorted(losses) == list(range(1, 21))
    for step, expected in enumerate(reference(framework(name)), start=1):
        assert losses[step] == pytest.approx(expected, rel=TOLERANCE[framework(name)]), f"step {step}"


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("name", TRAINERS)
def test_losses_equal_those_of_a_single_process_by_hand(
    name: str, workers: int, tmp_path: Path, two: dict[str, Live]
) -> None:
    live = two[name] if workers == 2 else finished(*recipe(name, workers), "--workers", str(workers), runs=tmp_path)
    assert_losses(live, name)
    live.assert_clean_audit(steps=20)
    assert live.events("evaluation")[-1]["values"]["loss"] == pytest.approx(
        two[name].events("evaluation")[-1]["values"]["loss"], rel=1e-3
    )


def optimizer_numbers(live: Live, what: str) -> dict[int, float]:
    return {event["step"]: event["optimizer"][what] for event in live.events("metrics")}


@pytest.mark.parametrize("name", TRAINERS)
def test_rates_and_gradient_norms_are_those_of_the_other_strategies(name: str, two: dict[str, Live]) -> None:
    other = two[{"torch": "ddp", "tensorflow": "mirrored"}[framework(name)]]
    rates, norms = (optimizer_numbers(two[name], what) for what in ("learning_rate", "gradient_norm"))
    assert sorted(rates) == list(range(1, 21))
    assert rates == pytest.approx(optimizer_numbers(other, "learning_rate"))
    assert norms == pytest.approx(optimizer_numbers(other, "gradient_norm"), rel=1e-3)
    assert all(norm > 0 for norm in norms.values())


@pytest.mark.parametrize("name", TRAINERS)
def test_a_killed_worker_leaves_no_trace(name: str, tmp_path: Path, two: dict[str, Live]) -> None:
    with start(*recipe(name), "--workers", "2", "--set", "params.pause=0.02", runs=tmp_path) as live:
        ranks = make(live.run.job()).processes
        live.wait_step(8, rank=ranks - 1)
        live.kill(ranks - 1)
        live.finish()
    assert len(live.events("attempt_started")) == 2
    assert live.weights() == two[name].weights()
    live.assert_clean_audit(steps=20)


@pytest.mark.parametrize(("before", "after"), [("2", "4"), ("4", "1")])
@pytest.mark.parametrize("name", TRAINERS)
def test_a_checkpoint_loads_at_another_size(name: str, before: str, after: str, tmp_path: Path) -> None:
    live = stopped(*recipe(name), "--workers", before, "--set", "params.pause=0.02", runs=tmp_path, step=8)
    resume = ["resume", "last", "--workers", after, "--set", "params.pause=0"]
    with started(resume, tmp_path) as again:
        again._run = live.run
        again.finish()
    assert live.events("attempt_started")[-1]["step"] >= 8
    assert_losses(live, name)
    live.assert_clean_audit(steps=20)
