"""Names from outside stay inside their folder, and private folders are private."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dtrain.common.files import Appender, is_safe_name, private_folder, write_whole
from dtrain.common.secrets import redacted


@pytest.mark.parametrize("name", ["rank0", ".metadata", "__0_0.safetensors", "a/b.bin"])
def test_names_of_files_in_a_folder_are_safe(name: str) -> None:
    assert is_safe_name(name)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a//b", "", ".", "..", "a/./b", "a\nb", "a\0b"])
def test_names_that_leave_a_folder_are_not(name: str) -> None:
    assert not is_safe_name(name)


def test_a_private_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    assert private_folder(tmp_path / "own").stat().st_mode & 0o777 == 0o700
    private_folder(tmp_path / "own")


def test_a_folder_that_somebody_else_prepared_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    for name in ("open", "link"):
        with pytest.raises(PermissionError):
            private_folder(tmp_path / name)
    if os.geteuid() == 0:
        (tmp_path / "others").mkdir(mode=0o700)
        os.chown(tmp_path / "others", 12345, 12345)
        with pytest.raises(PermissionError):
            private_folder(tmp_path / "others")


def test_a_private_file_is_private_from_its_first_byte(tmp_path: Path) -> None:
    write_whole(tmp_path / "job.json", "{}", 0o600)
    assert (tmp_path / "job.json").stat().st_mode & 0o777 == 0o600


def test_secrets_are_hidden_by_their_names() -> None:
    assert redacted({"AWS_SECRET_ACCESS_KEY": "x", "HF_TOKEN": "y", "PATH": "/bin", "EMPTY_TOKEN": ""}) == {
        "AWS_SECRET_ACCESS_KEY": "***", "HF_TOKEN": "***", "PATH": "/bin", "EMPTY_TOKEN": "",
    }  # fmt: skip


def test_an_error_of_fsync_is_not_forgotten_by_the_next_append_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports it once and may have dropped the data."""
    appender = Appender(tmp_path / "log")

    def broken(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", broken)
        appender.append(b"one\n")
        appender.flush()
    appender.append(b"two\n")
    appender.flush()
    assert appender.problem == "Input/output error"
    appender.close()
