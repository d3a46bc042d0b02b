"""Where code comes from is recorded with it, shown and compared."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import torch

from dtrain.job.job import Job
from dtrain.record import code_snapshot, origin
from dtrain.record.origin import Origin
from dtrain.report.comparison import origins


def test_branch_and_commit_are_read_without_git(tmp_path: Path) -> None:
    (tmp_path / ".git" / "refs" / "heads").mkdir(parents=True)
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    packed = tmp_path / ".git" / "packed-refs"
    packed.write_text("# pack-refs with: peeled\n12ab refs/heads/main\n34cd refs/tags/v1\n")
    assert origin.commit_of(tmp_path / "sub") == {"branch": "main", "commit": "12ab"}
    (tmp_path / ".git" / "refs" / "heads" / "main").write_text("56ef\n")
    assert origin.commit_of(tmp_path) == {"branch": "main", "commit": "56ef"}
    (tmp_path / ".git" / "HEAD").write_text("78ab\n")
    assert origin.commit_of(tmp_path) == {"commit": "78ab"}


def test_packages_are_those_that_python_finds() -> None:
    found = origin.packages(sys.path)
    assert found["torch"] == torch.__version__
    assert found["dtrain"].split()[0] == metadata.version("dtrain")


def test_a_package_that_is_installed_from_a_folder_is_recorded_with_it(tmp_path: Path) -> None:
    for name, facts in (
        ("my_lib", {"url": "file:///home/me/lib", "dir_info": {"editable": True}}),
        ("other", {"url": "https://x/y.whl"}),
    ):
        folder = tmp_path / f"{name}-0.1.dist-info"
        folder.mkdir()
        (folder / "direct_url.json").write_text(json.dumps(facts))
    (tmp_path / "plain-2.0.dist-info").mkdir()
    found = origin.packages([str(tmp_path / "nothing.zip"), str(tmp_path)])
    assert found == {"my-lib": "0.1 (/home/me/lib)", "other": "0.1", "plain": "2.0"}


def test_a_snapshot_holds_it_and_one_of_an_earlier_version_holds_less(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "task.py").write_text("class Task: pass\n")
    path = tmp_path / "code.zip"
    code_snapshot.take(path, Job("a-run", task="task.py:Task", folder=str(project)), project / "runs")
    found = code_snapshot.origin_of(path)
    assert found.packages == origin.packages(sys.path)
    assert found.python == sys.version.split()[0]
    assert Origin.of_index({"git": {"commit": "12ab", "branch": "main"}}) == Origin("12ab", "main", "", {})
    assert code_snapshot.origin_of(tmp_path / "none.zip") == Origin()
    path.write_bytes(b"damaged")
    assert code_snapshot.origin_of(path) == Origin()


def test_runs_are_compared_by_commit_and_packages_that_differ() -> None:
    one = Origin("1234567890ab", "main", "3.11.7", {"torch": "2.13.0", "numpy": "2.0", "rich": "14"})
    other = Origin("1234567890ab", "main", "3.11.7", {"torch": "2.12.0", "numpy": "2.0"})
    assert origins([one, other]) == {"package rich": ["14", "-"], "package torch": ["2.13.0", "2.12.0"]}
    older = Origin("99", "main")
    assert origins([one, older]) == {"commit": ["1234567890", "99"]}, (
        "of an earlier version, the packages are not known"
    )
    assert origins([one, Origin()]) == {}
    assert str(one) == "commit 1234567890 (branch main)"
    assert str(Origin()) == ""
