"""Agents that stay after a local run (`--warm`) serve the next one, and nothing that could make a difference is kept."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import DTRAIN, PROGRAMS, Live, dtrain, process_tree, running, start, wait_for

TINY = str(PROGRAMS / "tiny.yaml")
OPTIONS = ("--workers", "2", "--set", "train.steps=20")


class Home:
    """Where the sockets and runs of one test are."""

    def __init__(self, folder: Path, runs: Path) -> None:
        self.environment: dict[str, Any] = {"XDG_RUNTIME_DIR": str(folder)}
        self.runs = runs

    def run(self, recipe: str = TINY, *options: str, warm: str = "60s", **environment: str) -> Live:
        """A run from its start to its end."""
        known = set(self.runs.glob("*"))
        kept = ("--warm", warm) if warm else ()
        dtrain("run", recipe, *options, *kept, "--runs", str(self.runs), **self.environment | environment)
        live = Live(subprocess.Popen(["/bin/true"], text=True), self.runs, known)
        live.process.wait()
        return live

    def residents(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(dtrain("warm", "--json", **self.environment).stdout)
        return found


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    folder = Path(tempfile.mkdtemp(prefix="warm-"))  # the name of a socket has 107 bytes at most
    home = Home(folder, tmp_path / "runs")
    yield home
    pids = {one["pid"] for one in home.residents()}
    dtrain("warm", "--end", **home.environment)
    tree = set().union(*(process_tree(pid) for pid in pids)) if pids else set()
    wait_for(lambda: not running(tree), "the end of the agents", 10)
    shutil.rmtree(folder)


def test_the_next_run_has_the_same_agent_and_the_same_result(home: Home) -> None:
    cold = home.run(TINY, *OPTIONS, warm="")
    assert home.residents() == []
    first, second = home.run(TINY, *OPTIONS), home.run(TINY, *OPTIONS)
    assert first.agent_pid() == second.agent_pid() != cold.agent_pid()
    assert first.weights() == second.weights() == cold.weights()
    assert first.losses() == second.losses() == cold.losses()
    resident = home.residents()[0]
    assert resident["pid"] == first.agent_pid()
    assert "torch" in resident["preload"]
    assert 0 < resident["seconds_left"] <= 60
    shown = dtrain("warm", **home.environment).stdout
    assert f"{first.agent_pid()}  " in shown
    assert dtrain("warm", "--end", **home.environment).stdout == "ended: 1 warm agent\n"
    wait_for(lambda: not running({first.agent_pid()}), "its end", 10)
    assert "no agent is kept warm" in dtrain("warm", **home.environment).stdout


def test_a_warm_agent_is_used_without_the_option_and_survives_failures(home: Home) -> None:
    undisturbed = home.run(TINY, *OPTIONS)
    (agent,) = (one["pid"] for one in home.residents())
    options = (TINY, *OPTIONS, "--set", "params.pause=0.05", "--set", "checkpoint.every_steps=3")
    with start(*options, runs=home.runs / "killed", **home.environment) as live:
        live.wait_event("checkpoint_saved", step=6)
        live.kill(1)
        live.process.communicate(timeout=60)
    assert live.agent_pid() == agent
    assert live.weights() == undisturbed.weights()
    with start(*options, runs=home.runs / "left", **home.environment) as live:
        live.wait_event("checkpoint_saved", step=3)
        workers = {live.pid(rank) for rank in (0, 1)}
        live.process.send_signal(signal.SIGKILL)
        live.process.communicate()
        wait_for(lambda: not running(workers), "the end of the workers of a killed supervisor", 20)
    wait_for(lambda: [one["pid"] for one in home.residents()] == [agent], "the agent to be idle again", 20)
    assert home.run(TINY, *OPTIONS).agent_pid() == agent


def test_two_runs_at_once_have_an_agent_each(home: Home) -> None:
    options = [TINY, *OPTIONS, "--set", "params.pause=0.05", "--warm", "60s", "--runs"]
    both = [
        subprocess.Popen(
            [*DTRAIN, "run", *options, str(home.runs / name)], env=os.environ | home.environment, stdout=-3
        )
        for name in ("a", "b")
    ]
    assert [process.wait(120) for process in both] == [0, 0]
    wait_for(lambda: len({one["pid"] for one in home.residents()}) == 2, "two idle agents", 20)


def test_what_is_imported_anew_or_for_another_environment_is_not_kept(home: Home, tmp_path: Path) -> None:
    package = tmp_path / "packages"
    package.mkdir()
    module = package / "kept_module.py"
    module.write_text("VALUE = 'before'\n")
    (tmp_path / "says.py").write_text("import os, kept_module\nprint(kept_module.VALUE, os.environ.get('FLAVOUR'))\n")
    recipe = tmp_path / "says.yaml"
    recipe.write_text("script: says.py\npreload: [kept_module]\n")
    first = home.run(str(recipe), PYTHONPATH=str(package))
    assert "before None" in first.output(0)
    module.write_text("VALUE = 'after'\n")
    os.utime(module, (1e9, 1e9))  # an older file in its place, as `cp -p` or a package cache puts it there
    second = home.run(str(recipe), PYTHONPATH=str(package))
    assert "after None" in second.output(0)
    third = home.run(str(recipe), PYTHONPATH=str(package), FLAVOUR="sweet")
    assert "after sweet" in third.output(0)
    assert third.agent_pid() != second.agent_pid()


def test_it_ends_when_its_time_is_over(home: Home) -> None:
    live = home.run(TINY, *OPTIONS, warm="2s")
    tree = process_tree(live.agent_pid())
    assert running(tree)
    wait_for(lambda: not running(tree), "the end of the agent and its zygote", 30)
    assert list(Path(home.environment["XDG_RUNTIME_DIR"]).glob("*/warm/*")) == []


def test_a_wrong_time_and_a_folder_that_others_may_enter(home: Home) -> None:
    wrong = dtrain("run", TINY, "--warm", "soon", "--runs", str(home.runs), check=2, **home.environment).stderr
    assert "--warm soon: not a time" in wrong
    assert "10m" in wrong
    folder = Path(home.environment["XDG_RUNTIME_DIR"]) / f"dtrain-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    out = dtrain("run", TINY, *OPTIONS, "--warm", "60s", "--runs", str(home.runs), **home.environment)
    assert "no agent can stay warm" in out.stderr
    folder.chmod(0o700)
