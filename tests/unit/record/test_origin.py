"""Where code comes from is recorded with it, shown and compared."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch
from processes import wait_until

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


def test_another_working_tree_and_the_address_without_its_password(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        options = ["-c", "user.name=me", "-c", "user.email=me@here"]
        return subprocess.run(
            ["git", *options, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q", "-b", "main", "repository")
    git("-C", "repository", "remote", "add", "origin", "https://me:secret@host/team/code.git")
    git("-C", "repository", "commit", "-q", "--allow-empty", "-m", "first")
    git("-C", "repository", "worktree", "add", "-q", "-b", "other", "../tree")
    commit = git("-C", "repository", "rev-parse", "HEAD").strip()
    expected = {"commit": commit, "remote": "https://host/team/code.git"}
    assert origin.commit_of(tmp_path / "repository") == expected | {"branch": "main"}
    assert origin.commit_of(tmp_path / "tree") == expected | {"branch": "other"}

    tree, changes = tmp_path / "tree", tmp_path / "code.diff"
    (tree / "runs").mkdir()
    (tree / "runs" / "x").touch()

    def kept(expected: str) -> None:
        origin.keep_changes(tree, changes, tree / "runs")
        wait_until(
            lambda: expected in changes.read_text() and bool(expected) == bool(changes.read_text()), 10, expected
        )

    kept("")
    (tree / "new.txt").write_text("x")
    kept("# not in git: new.txt\n")
    git("-C", "tree", "add", "new.txt")
    kept("+x")


def test_a_command_is_kept_without_values_of_the_environment() -> None:
    typed = [
        "/usr/bin/dtrain",
        "run",
        "a b.yaml",
        "--env",
        "KEY=1",
        "--env=OTHER=a=b",
        "--set",
        "env.X=2",
        "--set",
        "train.steps=3",
    ]
    assert origin.typed(typed) == (
        "dtrain run 'a b.yaml' --env 'KEY=***' '--env=OTHER=***' --set 'env.X=***' --set train.steps=3"
    )
    assert (
        origin.typed(["dtrain", "run", "--set", "init_from=s3://me:pw@host/x"])
        == "dtrain run --set init_from=s3://host/x"
    )


def test_packages_are_those_that_python_finds() -> None:
    found = origin.packages(sys.path)
    assert found["torch"] == torch.__version__
    assert found["dtrain"].split()[0] == metadata.version("dtrain")


def test_a_package_that_is_from_no_registry_is_recorded_with_its_folder_or_address(tmp_path: Path) -> None:
    for name, facts in (
        ("my_lib", {"url": "file:///home/me/lib", "dir_info": {"editable": True}}),
        ("other", {"url": "https://me:secret@x/y.whl", "archive_info": {}}),
        ("third", {"url": "https://me:secret@x/z.git", "vcs_info": {"vcs": "git", "commit_id": "12ab"}}),
        ("copied", {"url": "file:///home/me/copied", "dir_info": {}}),
    ):
        folder = tmp_path / f"{name}-0.1.dist-info"
        folder.mkdir()
        (folder / "direct_url.json").write_text(json.dumps(facts))
    (tmp_path / "plain-2.0.dist-info").mkdir()
    found = origin.packages([str(tmp_path / "nothing.zip"), str(tmp_path)])
    assert found == {
        "copied": "0.1", "my-lib": "0.1 (/home/me/lib)", "other": "0.1 (https://x/y.whl)", "plain": "2.0",
        "third": "0.1 (git+https://x/z.git@12ab)",
    }  # fmt: skip


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
