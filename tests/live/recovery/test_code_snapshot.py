"""A run trains from the code that it began with, whatever is edited meanwhile."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest
from live import PROGRAMS, Live, dtrain, finished, start, stopped, wait_for

from dtrain.record.event_log import read
from dtrain.record.events import CheckpointSaved, RunStarted

TASK = """
import json
from pathlib import Path

import torch
from mylab.losses import scaled
from rates import RATE
from tiny import Tiny

HERE = Path(__file__).parent


class Mine(Tiny):
    def optimizer(self, model):
        assert json.loads((HERE / "settings.json").read_text()) == json.loads(Path("settings.json").read_text())
        return torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)

    def loss(self, model, batch):
        return scaled(super().loss(model, batch))
"""
EDITS = {
    "mine.py": "this is no Python",
    "rates.py": "RATE = 9.0",
    "../lab/mylab/losses.py": "def scaled(loss):\n    return 0 * loss",
}
SLOW = ("--set", "params.pause=0.03")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Live:
    folder = tmp_path_factory.mktemp("undisturbed")
    return finished(str(made_project(folder)), runs=folder / "runs")


def made_project(folder: Path) -> Path:
    """A project whose recipe's folder holds the task and a module beside it, and that uses a package in another folder."""
    project, package = folder / "project", folder / "lab" / "mylab"
    project.mkdir()
    package.mkdir(parents=True)
    (project / "mine.py").write_text(TASK)
    (project / "rates.py").write_text("RATE = 0.01\n")
    (project / "settings.json").write_text("{}")
    (package / "__init__.py").touch()
    (package / "losses.py").write_text("def scaled(loss):\n    return 2 * loss\n")
    shutil.copy(PROGRAMS / "tiny.py", project)
    recipe = (PROGRAMS / "tiny.yaml").read_text().replace("tiny.py:Tiny", "mine.py:Mine")
    (project / "recipe.yaml").write_text(f"{recipe}env:\n  PYTHONPATH: {folder / 'lab'}\n")
    return project / "recipe.yaml"


def edit(recipe: Path) -> None:
    for name, text in EDITS.items():
        (recipe.parent / name).write_text(text)


def test_an_edit_does_not_reach_a_run_by_a_restart(tmp_path: Path, undisturbed: Live) -> None:
    recipe = made_project(tmp_path)
    with start(str(recipe), *SLOW, runs=tmp_path / "runs") as live:
        live.wait_step(15)
        edit(recipe)
        live.kill(1)
        live.finish()
    assert live.weights() == undisturbed.weights()
    assert live.losses() == undisturbed.losses()


def test_a_resume_keeps_the_code_and_names_what_was_edited(tmp_path: Path, undisturbed: Live) -> None:
    recipe = made_project(tmp_path)
    live = stopped(str(recipe), *SLOW, runs=tmp_path / "runs", step=15)
    edit(recipe)
    said = dtrain("resume", str(live.run.path)).stdout
    assert "3 files changed since this run began; the run goes on with the code that it began with." in said
    for name in ("mine.py", "rates.py", "losses.py"):
        assert any(line.startswith("  edited ") and line.endswith(name) for line in said.splitlines()), said
    assert f"dtrain resume {live.run.id} --code new" in said
    assert live.weights() == undisturbed.weights()


def test_the_code_is_kept_with_the_run_on_remote_storage(tmp_path: Path, undisturbed: Live) -> None:
    recipe = made_project(tmp_path)
    bucket = f"file://{tmp_path / 'bucket'}"
    live = stopped(str(recipe), *SLOW, "--set", f"storage.url={bucket}", runs=tmp_path / "runs", step=15)
    edit(recipe)
    shutil.rmtree(live.run.path)
    dtrain("resume", f"{bucket}/{live.run.id}", "--runs", str(tmp_path / "elsewhere"))
    happened = read(tmp_path / "elsewhere" / live.run.id / "events.jsonl")
    saved = [event.weights for event in happened if isinstance(event, CheckpointSaved)]
    assert saved[-1] == undisturbed.weights()


def test_new_code_is_taken_when_it_is_asked_for(tmp_path: Path, undisturbed: Live) -> None:
    recipe = made_project(tmp_path)
    live = stopped(str(recipe), *SLOW, "--set", "checkpoint.keep=9", runs=tmp_path / "runs", step=22)
    (recipe.parent / "rates.py").write_text("RATE = 0.02\n")
    said = dtrain("resume", str(live.run.path), "--code", "new").stdout
    assert f"the code of {live.run.id} is taken as it is now; a file changed since the run began" in said
    assert live.weights() != undisturbed.weights()
    before, after = [event.code for event in read(live.run.events) if isinstance(event, RunStarted)]
    assert before != after
    assert live.run.former_code(before).exists()
    for command in ("status", "report"):
        assert "on it trains with other code than before" in dtrain(command, str(live.run.path)).stdout
    (recipe.parent / "mine.py").write_text("this is no Python")
    assert "equal to the last bit" in dtrain("verify", str(live.run.path), "--step", "20").stdout


def test_a_traceback_shows_the_line_that_ran(tmp_path: Path) -> None:
    recipe = made_project(tmp_path)
    with start(str(recipe), *SLOW, "--set", "params.fail_at=40", runs=tmp_path / "runs") as live:
        live.wait_step(5)
        time.sleep(0.1)
        text = (recipe.parent / "tiny.py").read_text()
        (recipe.parent / "tiny.py").write_text("# another first line\n" + text.replace("nonsense", "another"))
        live.kill(1, number=signal.SIGKILL)
        shown = live.finish(1)
    assert 'raise ValueError("the loss of this batch is nonsense")' in shown


def test_a_script_and_the_modules_beside_it_stay_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import sys, time, pathlib\nfrom beside import VALUE\nprint('value', VALUE, flush=True)\n"
        "pathlib.Path('began').touch()\n"
        "while not pathlib.Path('go').exists():\n    time.sleep(0.05)\n"
    )
    (tmp_path / "beside.py").write_text("VALUE = 1\n")
    (tmp_path / "recipe.yaml").write_text(
        "name: script\nscript: train.py\nstrategy: script\nrecovery: {backoff_seconds: 0}\n"
    )
    with start(str(tmp_path / "recipe.yaml"), runs=tmp_path / "runs") as live:
        live.wait_event("workers_started")
        wait_for((tmp_path / "began").exists, "the script to begin")
        (tmp_path / "beside.py").write_text("VALUE = 2\n")
        (tmp_path / "train.py").write_text("raise SystemExit('edited')\n")
        live.kill(0)
        live.wait_event("workers_started", attempt=2)
        (tmp_path / "go").touch()
        live.finish()
    assert live.output(0).count("value 1") == 2


CHILD = """
import multiprocessing
import time
from pathlib import Path

import beside

OWN = 1


def look(queue):
    queue.put((OWN, beside.VALUE))


def train(context=None):
    Path("began").touch()
    while not Path("go").exists():
        time.sleep(0.05)
    for method in ("spawn", "forkserver"):
        children = multiprocessing.get_context(method)
        queue = children.SimpleQueue()
        child = children.Process(target=look, args=(queue,))
        child.start()
        child.join()
        print(method, "has", "nothing" if queue.empty() else queue.get(), flush=True)


if __name__ == "__main__":
    train()
"""


@pytest.mark.parametrize(
    "form",
    [
        "script: code.py",
        "script: my.code.py",
        "script: {module: mine}",
        "function: code.py:train",
        "function: my.code.py:train",
    ],
)
def test_processes_that_the_code_starts_anew_have_its_snapshot(tmp_path: Path, form: str) -> None:
    file = tmp_path / ("mine.py" if "module" in form else form.split()[1].removesuffix(":train"))
    file.write_text(CHILD)
    (tmp_path / "beside.py").write_text("VALUE = 1\n")
    strategy = "ddp\ntrain: {steps: 1, global_batch: 1}" if "function" in form else "script"
    (tmp_path / "recipe.yaml").write_text(f"name: children\n{form}\nstrategy: {strategy}\n")
    with start(str(tmp_path / "recipe.yaml"), runs=tmp_path / "runs") as live:
        wait_for((tmp_path / "began").exists, "the program to begin")
        (tmp_path / "beside.py").write_text("VALUE = 2\n")
        file.write_text(CHILD.replace("OWN = 1", "OWN = 2"))
        (tmp_path / "go").touch()
        live.finish()
    for method in ("spawn", "forkserver"):
        assert f"{method} has (1, 1)" in live.output(0)


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("horovod", marks=pytest.mark.horovod),
        pytest.param("mirrored", marks=pytest.mark.tensorflow),
        pytest.param("multi_worker_mirrored", marks=pytest.mark.tensorflow),
    ],
)
def test_an_edit_reaches_no_run_of_another_framework(tmp_path: Path, strategy: str) -> None:
    program = "tiny_mlp_tf.py:Mlp" if "mirrored" in strategy else "tiny.py:Tiny"
    file, _, name = program.partition(":")
    shutil.copy(PROGRAMS / file, tmp_path)
    (tmp_path / "beside.py").write_text("VALUE = 1\n")
    (tmp_path / "mine.py").write_text(
        f"import beside\nfrom {Path(file).stem} import {name}\n\n\nclass Mine({name}):\n    def data(self, split):\n"
        "        print('value', beside.VALUE, flush=True)\n        return super().data(split)\n"
    )
    (tmp_path / "recipe.yaml").write_text((PROGRAMS / "tiny.yaml").read_text().replace("tiny.py:Tiny", "mine.py:Mine"))
    with start(str(tmp_path / "recipe.yaml"), "--strategy", strategy, *SLOW, runs=tmp_path / "runs") as live:
        live.wait_step(12)
        (tmp_path / "beside.py").write_text("VALUE = 2\n")
        (tmp_path / "mine.py").write_text("this is no Python")
        live.kill(0)
        live.finish()
    assert len(live.events("attempt_started")) == 2
    assert "value 1" in live.output(0)
    assert "value 2" not in live.output(0)
