"""`dtrain rm` removes a run wherever it is, and only when nobody supervises it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dtrain.common.errors import UsageError
from dtrain.control.remove import Removal, remove
from dtrain.job.job import Job, PluginChoice, Storage
from dtrain.record.folder import RunDir, create
from dtrain.record.lock import Lease
from dtrain.storage import run_lease
from dtrain.storage.object_store import of_run


def made(tmp_path: Path, url: str | None = None) -> RunDir:
    job = Job("a-run", script="x.py", folder=str(tmp_path), strategy=PluginChoice("script"), storage=Storage(url=url))
    return create(tmp_path / "runs", job)


def test_a_run_whose_folder_is_a_link_goes_with_the_link(tmp_path: Path) -> None:
    run = made(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(run.path)
    remove(Removal(RunDir(link), "done", 0, ""))
    assert not run.path.exists()
    assert not link.is_symlink()


def test_its_copy_goes_too_but_not_while_somebody_elsewhere_has_claimed_it(tmp_path: Path) -> None:
    run = made(tmp_path, f"file://{tmp_path}/there")
    there = of_run(run.job().storage, run.id)
    there.write("events.jsonl/000000000000", b"{}\n")
    claim = run_lease.take(there, Lease(Path("claims"), 1, "elsewhere"))
    assert claim
    with pytest.raises(UsageError, match="supervised on another machine"):
        remove(Removal(run, "running", 0, there.url))
    assert run.job_file.exists()
    assert there.read("events.jsonl/000000000000")
    for path in (tmp_path / "there" / run.id / "supervisors").iterdir():
        os.utime(path, (time.time() - 3600,) * 2)
    remove(Removal(run, "lost", 0, there.url))
    assert there.sizes() == {}
    assert not run.path.exists()
