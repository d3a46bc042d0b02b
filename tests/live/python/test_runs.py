"""Runs from Python, as a script and a notebook use them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent, indent

import pytest
from live import PROGRAMS, start

import dtrain

SCRIPT = (
    indent((PROGRAMS / "blobs.py").read_text(), "    ")
    + """

    import dtrain

    recipe = dtrain.Recipe(task=Blobs, strategy="ddp", train={"steps": 40, "global_batch": 32, "evaluate_every": 20, "log_every": 10})
    run = dtrain.run(recipe, workers=2, settings={"checkpoint.every_steps": 20}, runs=RUNS)
    print(run.state, run.checkpoints(), sorted(run.metrics()), run.report()["step"], run.events()[0]["event"])
    print(sorted(dtrain.load(run.id, runs=RUNS)))
    more = dtrain.resume(run, settings={"train.steps": 60}, show=False, runs=RUNS)
    print(more.id == run.id, more.checkpoints()[-1], len(run.metrics()["loss"]), run._repr_html_().count("<td>"))
"""
)


def program(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    """Run this source as a file of its own."""
    file = folder / "blobs.py"
    file.write_text(f"RUNS = {str(folder / 'runs')!r}\n" + dedent(source))
    return subprocess.run(
        [sys.executable, str(file)], cwd="/", capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize("guard", ["", "if __name__ == '__main__':"])
def test_a_script_with_or_without_a_main_guard_trains_a_class_of_its_own(guard: str, tmp_path: Path) -> None:
    source = SCRIPT.replace("    recipe =", f"    {guard}\n     recipe =")
    for line in ("run =", "print(run", "print(sorted", "more =", "print(more"):
        source = source.replace(f"    {line}", f"     {line}")
    done = program(tmp_path, source if guard else SCRIPT)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = done.stdout.splitlines()
    assert "done [20, 40] ['held-out loss', 'loss'] 40 run_started" in shown
    assert "['bias', 'weight']" in shown
    assert shown[-1] == "True 60 6 5"


def test_a_run_that_fails_raises_with_its_reason(tmp_path: Path) -> None:
    recipe = {"script": {"module": "this"}, "name": "poem"}
    with pytest.raises(dtrain.UsageError, match="recipe"):
        dtrain.run(recipe | {"trian": {}}, runs=tmp_path)
    (tmp_path / "bad.py").write_text("raise ValueError('no such luck')\n")
    with pytest.raises(dtrain.RunFailed, match="no such luck") as raised:
        dtrain.run({"script": str(tmp_path / "bad.py")}, runs=tmp_path / "runs", show=False)
    assert raised.value.exit_code == 1
    assert raised.value.run.state == "failed"
    assert "no such luck" in raised.value.run.logs()


def test_a_class_of_a_notebook_is_refused_in_one_sentence(tmp_path: Path) -> None:
    there: dict[str, type] = {}
    exec("class Cell:\n    pass\n", there)
    with pytest.raises(dtrain.UsageError, match=r"task: Cell is defined in no file, so that workers cannot import it"):
        dtrain.run(dtrain.Recipe(task=there["Cell"], strategy="ddp"), runs=tmp_path)


def test_a_run_is_submitted_followed_and_stopped(tmp_path: Path) -> None:
    run = dtrain.submit(PROGRAMS / "tiny.yaml", runs=tmp_path, settings={"params.pause": 0.05, "train.steps": 2000})
    with pytest.raises(TimeoutError, match="goes on"):
        run.wait(0.5)
    same = dtrain.attach("last", runs=tmp_path)
    assert same.id == run.id
    while not run.metrics():
        pass
    assert dtrain.status(run)["outcome"] == "running"
    dtrain.stop(run)
    with pytest.raises(dtrain.RunFailed, match="stopped by dtrain stop") as raised:
        run.wait()
    assert raised.value.exit_code == 4
    assert run.checkpoints()


def test_an_unknown_argument_and_an_unknown_run_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(dtrain.UsageError, match="unknown argument 'wrokers'"):
        dtrain.run(PROGRAMS / "tiny.yaml", runs=tmp_path, wrokers=2)
    with pytest.raises(dtrain.UsageError, match="there are no runs"):
        dtrain.attach("last", runs=tmp_path)


@pytest.mark.parametrize("name", ["code.py", "types.py", "queue.py", "my.task.py"])
def test_a_task_whose_file_has_the_name_of_another_module_is_the_users(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text((PROGRAMS / "tiny.py").read_text())
    (tmp_path / "recipe.yaml").write_text((PROGRAMS / "tiny.yaml").read_text().replace("tiny.py", name))
    with start(str(tmp_path / "recipe.yaml"), "--set", "train.steps=5", runs=tmp_path / "runs") as live:
        live.finish()


def test_a_task_in_a_package_imports_its_neighbours(tmp_path: Path) -> None:
    package = tmp_path / "lab" / "models"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    source = (PROGRAMS / "tiny.py").read_text()
    (package / "other.py").write_text("NUMBER = 7\n")
    (package / "task.py").write_text(
        source.replace(
            "import torch\n",
            "import torch\n\nfrom .other import NUMBER\nfrom ..models.other import NUMBER as SAME\n\nassert NUMBER == SAME == 7\n",
            1,
        )
    )
    (tmp_path / "recipe.yaml").write_text((PROGRAMS / "tiny.yaml").read_text().replace("tiny.py", "lab/models/task.py"))
    with start(str(tmp_path / "recipe.yaml"), "--set", "train.steps=5", runs=tmp_path / "runs") as live:
        live.finish()


def test_the_public_names_are_these() -> None:
    assert dtrain.__all__ == [
        "Context", "DtrainError", "Recipe", "Run", "RunFailed", "Study", "StudyFailed", "Task", "TrainStep", "UsageError", "attach",
        "load", "load_weights", "resume", "run", "status", "stop", "submit", "tune",
    ]  # fmt: skip
    assert all(getattr(dtrain, name) for name in dtrain.__all__)
    packages = {path.parent.name for path in Path(dtrain.__file__).parent.glob("*/__init__.py")}
    assert not packages & set(dtrain.__all__), "a function and a package of one name overwrite each other"
