"""What a local run imported (`--warm`) serves the next ones, and nothing that could make a difference is kept."""

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

from dtrain.common.environment import WARM
from dtrain.common.processes import children

TINY = str(PROGRAMS / "tiny.yaml")
OPTIONS = ("--workers", "2", "--set", "train.steps=20")
SLOW = (TINY, *OPTIONS, "--set", "params.pause=0.05", "--set", "checkpoint.every_steps=3")


class Home:
    """Where the sockets and runs of one test are."""

    def __init__(self, folder: Path, runs: Path) -> None:
        self.environment: dict[str, Any] = {"XDG_RUNTIME_DIR": str(folder), WARM: ""}
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

    def only_resident(self) -> int:
        """The process id of the one that there is."""
        (resident,) = self.residents()
        return int(resident["pid"])


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    folder = Path(tempfile.mkdtemp(prefix="warm-"))  # the name of a socket has 107 bytes at most
    home = Home(folder, tmp_path / "runs")
    yield home
    pids = {one["pid"] for one in home.residents()}
    dtrain("warm", "--end", **home.environment)
    tree = set().union(*(process_tree(pid) for pid in pids)) if pids else set()
    wait_for(lambda: not running(tree), "the end of the residents", 10)
    shutil.rmtree(folder)


def test_the_next_run_imports_nothing_and_has_the_same_result(home: Home) -> None:
    cold = home.run(TINY, *OPTIONS, warm="")
    assert home.residents() == []
    first = home.run(TINY, *OPTIONS)
    (resident,) = home.residents()
    second = home.run(TINY, *OPTIONS, warm="")
    assert first.weights() == second.weights() == cold.weights()
    assert first.losses() == second.losses() == cold.losses()
    (again,) = home.residents()
    assert (again["pid"], resident["runs"], again["runs"]) == (resident["pid"], 1, 2)
    assert "torch" in resident["preload"]
    assert 0 < resident["seconds_left"] <= 60
    shown = dtrain("warm", **home.environment).stdout
    assert f"{resident['pid']}  " in shown
    assert "  2 runs  imported: torch" in shown
    assert dtrain("warm", "--end", **home.environment).stdout == "ended: 1 warm process\n"
    wait_for(lambda: not running({resident["pid"]}), "its end", 10)
    assert "nothing is kept warm" in dtrain("warm", **home.environment).stdout


def test_it_survives_what_happens_to_a_run(home: Home) -> None:
    undisturbed = home.run(TINY, *OPTIONS)
    resident = home.only_resident()
    with start(*SLOW, runs=home.runs / "killed", **home.environment) as live:
        live.wait_event("checkpoint_saved", step=6)
        live.kill(1)
        live.wait_event("workers_started", attempt=2)
        os.kill(live.agent_pid(), signal.SIGKILL)
        live.process.communicate(timeout=60)
    assert live.weights() == undisturbed.weights()
    assert home.residents()[0]["runs"] == 3, "one for the agent that took the place of the killed one"
    with start(*SLOW, runs=home.runs / "left", **home.environment) as live:
        live.wait_event("checkpoint_saved", step=3)
        workers = {live.pid(rank) for rank in (0, 1)}
        live.process.send_signal(signal.SIGKILL)
        live.process.communicate()
        wait_for(lambda: not running(workers), "the end of the workers of a killed supervisor", 20)
    wait_for(lambda: not children(resident), "the end of every template", 20)
    assert [one["pid"] for one in home.residents()] == [resident]


def test_a_killed_template_is_replaced_by_the_resident(home: Home) -> None:
    undisturbed = home.run(TINY, *OPTIONS)
    resident = home.only_resident()
    with start(*SLOW, runs=home.runs / "killed", **home.environment) as live:
        live.wait_event("checkpoint_saved", step=6)
        (template,) = children(resident)
        (zygote,) = children(template)
        os.kill(template, signal.SIGKILL)
        os.kill(zygote, signal.SIGKILL)
        live.finish()
    assert live.weights() == undisturbed.weights()
    assert home.residents()[0]["runs"] == 3


def test_a_stopped_resident_holds_up_no_run(home: Home) -> None:
    first = home.run(TINY, *OPTIONS)
    resident = home.only_resident()
    os.kill(resident, signal.SIGSTOP)
    try:
        second = home.run(TINY, *OPTIONS, warm="")
    finally:
        os.kill(resident, signal.SIGCONT)
    assert second.weights() == first.weights()
    wait_for(lambda: [one["pid"] for one in home.residents()] == [resident], "the resident to answer again", 20)
    wait_for(lambda: not children(resident), "the end of the template that nobody waits for", 20)


def test_two_runs_at_once_share_one_import(home: Home) -> None:
    options = [TINY, *OPTIONS, "--set", "params.pause=0.05", "--warm", "60s", "--runs"]
    home.run(TINY, *OPTIONS)
    both = [
        subprocess.Popen(
            [*DTRAIN, "run", *options, str(home.runs / name)], env=os.environ | home.environment, stdout=-3
        )
        for name in ("a", "b")
    ]
    assert [process.wait(120) for process in both] == [0, 0]
    assert [one["runs"] for one in home.residents()] == [3]


def test_a_run_has_its_own_environment_umask_and_log(home: Home, tmp_path: Path) -> None:
    (tmp_path / "says.py").write_text(
        "import os\nprint(os.environ.get('DTRAIN_TEST_PLACE'))\nopen('made', 'w').close()\n"
    )
    recipe = tmp_path / "says.yaml"
    recipe.write_text("script: says.py\npreload: [decimal]\n")
    for place, umask in (("one", 0o022), ("other", 0o077)):
        before = os.umask(umask)
        try:
            live = home.run(str(recipe), DTRAIN_TEST_PLACE=place)
        finally:
            os.umask(before)
        assert live.output(0).splitlines()[-1] == place
        made = tmp_path / "made"
        assert made.stat().st_mode & 0o777 == 0o666 & ~umask
        made.unlink()
    assert [one["runs"] for one in home.residents()] == [2]


def test_a_module_that_cannot_be_imported_is_said_and_nothing_stays(home: Home, tmp_path: Path) -> None:
    (tmp_path / "broken_module.py").write_text("raise ValueError('no such luck')\n")
    (tmp_path / "says.py").write_text("print('never')\n")
    recipe = tmp_path / "says.yaml"
    recipe.write_text("script: says.py\npreload: [broken_module]\n")
    options = ["run", str(recipe), "--warm", "60s", "--runs", str(home.runs)]
    done = dtrain(*options, check=1, PYTHONPATH=str(tmp_path), **home.environment)
    assert "no such luck" in done.stdout
    assert home.residents() == []


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
    assert [one["runs"] for one in home.residents()] == [1, 1], "the first one has ended, since its module was changed"


def test_it_ends_when_its_time_is_over(home: Home) -> None:
    home.run(TINY, *OPTIONS, warm="4s")
    tree = {one["pid"] for one in home.residents()}
    assert running(tree)
    wait_for(lambda: not running(tree), "the resident's end", 30)
    assert list(Path(home.environment["XDG_RUNTIME_DIR"]).glob("*/warm/*")) == []


def test_a_wrong_time_and_a_folder_that_others_may_enter(home: Home) -> None:
    wrong = dtrain("run", TINY, "--warm", "soon", "--runs", str(home.runs), check=2, **home.environment).stderr
    assert "--warm soon: not a time" in wrong
    assert "10m" in wrong
    folder = Path(home.environment["XDG_RUNTIME_DIR"]) / f"dtrain-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    out = dtrain("run", TINY, *OPTIONS, "--warm", "60s", "--runs", str(home.runs), **home.environment)
    assert "nothing can stay warm" in out.stderr
    folder.chmod(0o700)
