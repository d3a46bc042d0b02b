"""The snapshot of a run's code: what is in it, and what Python imports from it."""

from __future__ import annotations

import ast
import importlib
import linecache
import os
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtrain.common.errors import StorageError
from dtrain.job import code, entrypoint
from dtrain.job.job import Job
from dtrain.record import code_snapshot


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a package, an imported package in another folder, and much that is no code."""
    folder = tmp_path / "project"
    files = {
        "task.py": "import snapped_package.part, snapped_outside\nclass Task:\n    value = 1\n", "data.csv": "1,2",
        "snapped_package/__init__.py": "", "snapped_package/part.py": "VALUE = 1\n", "snapped_space/inner.py": "VALUE = 1\n",
        "env/pyvenv.cfg": "", "env/lib/other.py": "", ".hidden/secret.py": "", "runs/a-run/code.py": "",
        "../elsewhere/snapped_outside/__init__.py": "from .inside import VALUE\n",
        "../elsewhere/snapped_outside/inside.py": "VALUE = 1\n",
    }  # fmt: skip
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder.resolve()


@pytest.fixture
def job(project: Path) -> Job:
    return Job("a-run", task="task.py:Task", folder=str(project), env={"PYTHONPATH": str(project.parent / "elsewhere")})


@pytest.fixture
def snapshot(project: Path, job: Job) -> code.Snapshot:
    return taken(project, job)


@pytest.fixture
def imports(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test imports, and how it is imported, ends with the test."""
    known = set(sys.modules)
    for name in ("path_hooks", "meta_path", "path"):
        monkeypatch.setattr(sys, name, list(getattr(sys, name)))
    sys.path[:0] = [str(project), str(project.parent / "elsewhere")]
    with code.using(None):
        yield
    for name in set(sys.modules) - known:
        del sys.modules[name]
    sys.path_importer_cache.clear()
    linecache.clearcache()


def taken(project: Path, job: Job) -> code.Snapshot:
    code_snapshot.take(project.parent / "code.zip", job, project / "runs")
    found = code_snapshot.opened(project.parent / "code.zip", job.folder)
    assert found
    return found


def test_it_holds_the_code_of_the_project_and_what_that_imports_from_other_folders(
    project: Path, snapshot: code.Snapshot
) -> None:
    names = {os.path.relpath(path, project) for path in snapshot.files}
    assert names == {
        "task.py", "snapped_package/__init__.py", "snapped_package/part.py", "snapped_space/inner.py",
        "../elsewhere/snapped_outside/__init__.py", "../elsewhere/snapped_outside/inside.py",
    }  # fmt: skip
    assert (project.parent / "code.zip").stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("imports")
def test_imports_give_the_code_of_the_snapshot_under_the_paths_of_the_files(
    project: Path, snapshot: code.Snapshot
) -> None:
    for path in snapshot.files:
        Path(path).write_text("raise RuntimeError('edited')")
    code.install(snapshot)
    part = importlib.import_module("snapped_package.part")
    assert (part.VALUE, part.__file__) == (1, str(project / "snapped_package" / "part.py"))
    assert importlib.import_module("snapped_space.inner").VALUE == 1
    assert importlib.import_module("snapped_outside").VALUE == 1
    assert entrypoint.load("task.py:Task", project).value == 1
    assert linecache.getline(str(project / "snapped_package" / "part.py"), 1) == "VALUE = 1\n"
    assert not list(project.rglob("*.pyc"))


@pytest.mark.usefixtures("imports")
def test_files_that_are_gone_are_found_and_new_ones_are_not(project: Path, snapshot: code.Snapshot) -> None:
    (project / "snapped_package" / "part.py").unlink()
    (project / "snapped_package" / "later.py").write_text("")
    code.install(snapshot)
    package = importlib.import_module("snapped_package")
    assert [module.name for module in pkgutil.iter_modules(package.__path__, "snapped_package.")] == [
        "snapped_package.part"
    ]
    assert importlib.import_module("snapped_package.part").VALUE == 1
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("snapped_package.later")


@pytest.mark.usefixtures("imports")
def test_what_was_imported_before_in_an_edited_form_is_imported_again(project: Path, snapshot: code.Snapshot) -> None:
    (project / "snapped_package" / "part.py").write_text("VALUE = 22\n")
    assert importlib.import_module("snapped_package.part").VALUE == 22
    code.install(snapshot)
    assert importlib.import_module("snapped_package.part").VALUE == 1


@pytest.mark.usefixtures("imports")
def test_compiled_code_is_kept_while_the_file_is_the_same(
    project: Path, snapshot: code.Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    code.install(snapshot)
    importlib.import_module("snapped_package.part")
    assert [path.name.partition(".")[0] for path in project.rglob("part*.pyc")] == ["part"]


def test_a_target_is_checked_in_the_code_that_will_run(project: Path, snapshot: code.Snapshot) -> None:
    (project / "task.py").write_text("this is no Python")
    with code.using(snapshot):
        assert entrypoint.problem("task.py:Task", [str(project)], ast.ClassDef) == ""
    assert "invalid syntax" in entrypoint.problem("task.py:Task", [str(project)], ast.ClassDef)


def test_a_folder_that_moved_keeps_its_code(project: Path, snapshot: code.Snapshot) -> None:
    moved = code_snapshot.opened(project.parent / "code.zip", "/somewhere/else")
    assert moved
    assert moved.source("/somewhere/else/task.py") == snapshot.source(project / "task.py")


def test_differences_are_named(project: Path, job: Job, snapshot: code.Snapshot) -> None:
    assert list(code_snapshot.edited(snapshot, job, project / "runs")) == []
    (project / "task.py").write_text("class Task: pass")
    (project / "snapped_package" / "part.py").unlink()
    (project / "another.py").touch()
    (project.parent / "elsewhere" / "snapped_outside" / "inside.py").write_text("VALUE = 2\n")
    found = {
        (how, os.path.relpath(path, project)) for how, path in code_snapshot.edited(snapshot, job, project / "runs")
    }
    assert found == {
        ("edited", "task.py"), ("gone", "snapped_package/part.py"), ("new", "another.py"),
        ("edited", "../elsewhere/snapped_outside/inside.py"),
    }  # fmt: skip


def test_the_digest_is_that_of_the_text(project: Path, job: Job, snapshot: code.Snapshot) -> None:
    os.utime(project / "task.py", (1, 1))
    assert taken(project, job).digest == snapshot.digest
    (project / "task.py").write_text("class Task: pass")
    assert taken(project, job).digest not in (snapshot.digest, "")


def test_a_flipped_bit_is_refused_before_anything_is_imported(project: Path, snapshot: code.Snapshot) -> None:
    archive = project.parent / "code.zip"
    data = bytearray(archive.read_bytes())
    data[data.index(snapshot.files[str(project / "task.py")].source)] ^= 1
    archive.write_bytes(data)
    with pytest.raises(StorageError, match=r"code\.zip, cannot be read"):
        code_snapshot.opened(archive, str(project))


def test_a_module_that_the_recipe_names_is_in_it_and_so_is_what_lies_beside_its_package(project: Path) -> None:
    above = project.parent / "elsewhere"
    (above / "snapped_beside.py").touch()
    environment = {"PYTHONPATH": str(above)}
    by_name = Job("a-run", task="snapped_outside.inside:T", folder=str(project / "runs"), env=environment)
    assert taken(project, by_name).modules == {"snapped_outside": str(above / "snapped_outside" / "__init__.py")}
    by_file = Job("a-run", task="../../elsewhere/snapped_outside/inside.py:T", folder=str(project / "runs"))
    assert taken(project, by_file).source(above / "snapped_beside.py") == b""


def test_the_imports_of_a_task_are_those_that_the_run_began_with(project: Path) -> None:
    job = Job("a-run", task="task.py:Task", folder=str(project))
    code_snapshot.take(project.parent / "code.zip", job, project / "runs")
    (project / "task.py").write_text("import tensorflow")
    with code_snapshot.used(project.parent / "code.zip", job.folder):
        assert "tensorflow" not in entrypoint.imports(project / "task.py")
    assert "tensorflow" in entrypoint.imports(project / "task.py")


@pytest.mark.parametrize("kept", [0, 10, 0.5])
def test_a_damaged_snapshot_is_refused_in_a_sentence(project: Path, snapshot: code.Snapshot, kept: float) -> None:
    archive = project.parent / "code.zip"
    data = archive.read_bytes()
    archive.write_bytes(data[: int(kept * len(data)) if kept < 1 else int(kept)])
    with pytest.raises(StorageError, match=r"code\.zip, cannot be read"):
        code_snapshot.opened(archive, str(project))


def test_a_link_to_a_package_is_followed_if_it_is_imported(project: Path, job: Job) -> None:
    (project / "snapped_package" / "again").symlink_to(project)
    (project.parent / "shared").mkdir()
    (project.parent / "shared" / "__init__.py").touch()
    (project / "snapped_linked").symlink_to(project.parent / "shared")
    assert len(taken(project, job).files) == 6
    (project / "task.py").write_text("import snapped_linked")
    assert taken(project, job).modules == {"snapped_linked": str(project.parent / "shared" / "__init__.py")}


def test_a_limit_leaves_the_files_further_away_to_the_disk(
    project: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_snapshot, "MOST_ENTRIES", 7)
    snapshot = taken(project, job)
    assert snapshot.source(project / "task.py")
    assert snapshot.source(project / "snapped_package" / "part.py"), "it is imported"
    assert str(project / "snapped_space") not in snapshot.folders
    assert snapshot.source(project / "snapped_space" / "inner.py") is None


def test_runs_may_lie_in_the_folder_of_the_recipe(project: Path, job: Job) -> None:
    (project / "runs" / "a-run").rename(project / "a-run")
    (project / "a-run" / "events.jsonl").touch()
    code_snapshot.take(project.parent / "code.zip", job, project)
    found = code_snapshot.opened(project.parent / "code.zip", job.folder)
    assert found
    assert len(found.files) == 6


def test_what_may_not_be_looked_at_is_passed_over(project: Path) -> None:
    code_snapshot.take(
        project.parent / "code.zip", Job("a-run", task=f"{project}/task.py:Task", folder="/proc"), project / "runs"
    )
    found = code_snapshot.opened(project.parent / "code.zip", "/proc")
    assert found
    assert found.source(project / "task.py")
