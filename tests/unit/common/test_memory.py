"""What the control groups leave of the machine's memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.common import memory

GB = 10**9


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "FILE_SYSTEM", tmp_path / "fs")
    monkeypatch.setattr(memory, "machine_memory", lambda: (100 * GB, 90 * GB))
    return tmp_path


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(f"{text}\n")


def test_without_limits_it_is_the_machines(groups: Path) -> None:
    (groups / "cgroup").write_text("0::/\n")
    group(groups / "fs", stat="anon 1")
    assert memory.granted_memory() == (100 * GB, 90 * GB)
    assert memory.limiting_group() == ""


def test_the_least_limit_of_the_group_and_those_above_it_counts(groups: Path) -> None:
    (groups / "cgroup").write_text("0::/job/step\n")
    group(groups / "fs/job", max=f"{10 * GB}", current=f"{6 * GB}", stat=f"inactive_file {GB}\nanon 1")
    group(groups / "fs/job/step", max="max", current=f"{6 * GB}", stat="inactive_file 0")
    assert memory.granted_memory() == (10 * GB, 5 * GB)
    assert memory.limiting_group() == str(groups / "fs/job")


def test_version_1_is_known_too(groups: Path) -> None:
    (groups / "cgroup").write_text("9:name=systemd:/\n4:memory:/job\n0::/\n")
    group(
        groups / "fs/memory/job", limit_in_bytes=f"{8 * GB}", usage_in_bytes=f"{9 * GB}", stat="total_inactive_file 0"
    )
    assert memory.granted_memory() == (8 * GB, 0)
    assert memory.limiting_group() == str(groups / "fs/memory/job")


def test_this_machine_grants_something() -> None:
    total, available = memory.granted_memory()
    assert 0 < available <= total
