"""A run is trained once more from what its folder recorded, whatever became of its code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

from live import PROGRAMS, dtrain, finished

from dtrain.common import installation
from dtrain.record import code_snapshot
from dtrain.record.folder import RunDir, all_runs

SAYS = """
import sys
import tomli
print(sys.prefix, "tomli", tomli.__file__)
"""


def test_a_run_is_repeated_from_its_folder_alone(tmp_path: Path) -> None:
    project, runs = tmp_path / "project", tmp_path / "runs"
    project.mkdir()
    (project / ".git").mkdir()
    (project / ".git" / "HEAD").write_text("12abcd34" + 32 * "0")
    for name in ("tiny.py", "tiny.yaml"):
        shutil.copy(PROGRAMS / name, project)
    run = finished(str(project / "tiny.yaml"), "--env", "SECRET_WORD=abc", runs=runs).run
    (project / "tiny.py").write_text("this is no Python")
    (project / "tiny.yaml").unlink()

    done = dtrain("reproduce", run.id, "--quiet", "--runs", str(runs))
    assert "the weights are equal at step" in done.stdout
    again = next(one for one in all_runs(runs) if one.id != run.id)
    assert again.job().note == f"reproduces {run.id}"
    assert not done.stderr

    done = dtrain("reproduce", run.id, "--quiet", "--workers", "1", "--runs", str(runs), check=1)
    assert "the weights differ at step" in done.stdout
    assert "1 worker, not 2: without train.exact, other numbers of workers give other bits" in done.stderr

    report = json.loads(dtrain("report", run.id, "--json", "--runs", str(runs)).stdout)
    assert "--env 'SECRET_WORD=***'" in report["origin"]["command"]
    assert run.id in dtrain("ps", "--commit", "12ab", "--runs", str(runs)).stdout
    assert "no such runs" in dtrain("ps", "--commit", "99", "--runs", str(runs)).stdout

    run.code.unlink()
    assert "kept no copy of its code" in dtrain("reproduce", run.id, "--runs", str(runs), check=2).stderr


def test_an_environment_of_the_recorded_versions_is_made_again(tmp_path: Path) -> None:
    project, runs, first = tmp_path / "project", tmp_path / "runs", tmp_path / "first"
    project.mkdir()
    (project / "says.py").write_text(SAYS)
    (project / "says.yaml").write_text("script: says.py\nstrategy: script\n")
    wheel = installation.wheel_of(distribution("dtrain"), tmp_path)
    own = str(first / "bin" / "python")
    run_in(sys.executable, "-m", "venv", "--without-pip", str(first))
    run_in(sys.executable, "-m", "pip", "--python", own, "install", "-q", str(wheel), "tomli==2.0.1")
    run_in(own, "-P", "-m", "dtrain", "run", str(project / "says.yaml"), "--quiet", "--runs", str(runs))
    (run,) = all_runs(runs)
    shutil.rmtree(first)

    caches = str(tmp_path / "cache")
    done = dtrain("reproduce", run.id, "--venv", "--quiet", "--runs", str(runs), XDG_CACHE_HOME=caches)
    assert "they have no weights and no losses to compare" in done.stdout
    assert "not as" not in done.stderr, "the versions are those of the run"
    again = next(one for one in all_runs(runs) if one.id != run.id)
    (environment,) = (tmp_path / "cache" / "dtrain" / "environments").glob("*/")
    assert f"{environment} tomli {environment}" in (again.logs / "rank-00000.log").read_text()
    assert code_snapshot.origin_of(again.code).packages == code_snapshot.origin_of(run.code).packages

    done = dtrain("reproduce", run.id, "--venv", "--quiet", "--runs", str(runs), XDG_CACHE_HOME=caches)
    assert "installing" not in done.stderr, "it is made once"

    for version, words in (
        (
            "2.0.1 (/home/anna/tomli)",
            "installed from a folder with pip install -e and no part of its code: tomli (/home/anna/tomli)",
        ),
        ("2.0.1+mine", "it had tomli 2.0.1+mine, which pip finds nowhere: only its maker's index has"),
    ):
        recorded(run, tomli=version)
        refused = dtrain("reproduce", run.id, "--venv", "--runs", str(runs), check=2, XDG_CACHE_HOME=caches)
        assert words in refused.stderr
    assert len(all_runs(runs)) == 3


def run_in(*command: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd="/", env=inherited, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr


def recorded(run: RunDir, **versions: str) -> None:
    """Have a run's snapshot name these packages alone."""
    with ZipFile(run.code) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    index = json.loads(members["code.json"]) | {"packages": versions}
    with ZipFile(run.code, "w") as archive:
        for name, content in (members | {"code.json": json.dumps(index).encode()}).items():
            archive.writestr(name, content)
