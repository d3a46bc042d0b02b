"""A run is trained once more from what its folder recorded, whatever became of its code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from live import PROGRAMS, dtrain, finished

from dtrain.record.folder import all_runs


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
