"""Commands that are typed on another machine, over a real sshd in front of a home of its own."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import DTRAIN, PATIENCE_SECONDS, PROGRAMS, dtrain
from processes import wait_until
from ssh_lab import NAME, SshLab, install_ssh

from dtrain.record.event_log import read
from dtrain.record.events import CheckpointSaved
from dtrain.record.folder import RunDir, all_runs

HOST = ("--host", NAME)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshLab]:
    if problem := install_ssh():
        pytest.skip(problem)
    running = SshLab(tmp_path_factory.mktemp("lab"))
    running.put_dtrain_there()
    yield running
    running.stop()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    for name in ("tiny.py", "tiny.yaml"):
        shutil.copy(PROGRAMS / name, folder)
    (folder / "data" / "words.txt").write_text("words")
    (folder / ".dtrain.yaml").write_text("profiles:\n  there: {host: login, note: from a profile}\n")
    return folder


def runs_there(lab: SshLab) -> list[RunDir]:
    return all_runs(lab.home / ".dtrain" / "runs")


def test_a_run_trains_there_and_is_looked_at_from_here(lab: SshLab, project: Path, tmp_path: Path) -> None:
    done = dtrain("run", "tiny.yaml", "--profile", "there", "--verbose", cwd=project, **lab.client)
    run = runs_there(lab)[-1]
    assert f"{run.id}: done" in done.stdout
    assert f"dtrain attach {run.id} --host login" in done.stdout
    assert run.job().note == "from a profile"
    assert Path(run.job().folder).is_relative_to(lab.home), "it has nothing of this machine"
    assert (Path(run.job().folder) / "data" / "words.txt").read_text() == "words"

    assert json.loads(dtrain("status", run.id, "--json", *HOST, **lab.client).stdout)["run"] == run.id
    page, weights = tmp_path / "new" / "page.html", tmp_path / "weights.safetensors"
    dtrain("report", run.id, "--html", str(page), *HOST, **lab.client)
    sent = lab.home / ".dtrain" / "projects"
    before = sorted(sent.iterdir())
    dtrain("report", run.id, "--html", str(page), *HOST, cwd=tmp_path, **lab.client)
    assert sorted(sent.iterdir()) == before, "a page that is there already is no file of a project"
    dtrain("weights", run.id, f"--to={weights}", *HOST, **lab.client)
    assert run.id in page.read_text()
    assert weights.stat().st_size > 100

    runs = tmp_path / "runs"
    brought = Path(dtrain("pull", "last", "--runs", str(runs), *HOST, **lab.client).stdout.strip())
    assert brought == runs / run.id
    assert "60 of 60" in dtrain("status", run.id, "--runs", str(runs)).stdout
    assert not list((brought / "checkpoints").iterdir())
    refused = dtrain("resume", run.id, "--set", "train.steps=90", "--runs", str(runs), check=2)
    assert f"Go on with it there: dtrain resume {run.id} --host login" in refused.stderr
    dtrain("resume", run.id, "--set", "train.steps=90", *HOST, **lab.client)
    dtrain("rm", run.id, "--yes", "--runs", str(runs))
    assert run.job().train.steps == 90
    assert not brought.exists()


def test_what_changed_goes_over_and_what_is_gone_goes(lab: SshLab, project: Path) -> None:
    (project / "old.py").touch()
    (project / ".dtrainignore").write_text("data\n")
    plan = json.loads(dtrain("plan", str(project / "tiny.yaml"), "--json", *HOST, **lab.client).stdout)
    there = Path(plan["folder"])
    assert sorted(one.name for one in there.iterdir()) == [
        ".dtrain.yaml",
        ".dtrainignore",
        "old.py",
        "tiny.py",
        "tiny.yaml",
    ]
    (there / "output.txt").write_text("made there")
    (project / "old.py").unlink()
    (project / "tiny.yaml").write_text((project / "tiny.yaml").read_text().replace("steps: 60", "steps: 6"))
    dtrain("plan", "tiny.yaml", *HOST, cwd=project, **lab.client)
    assert not (there / "old.py").exists()
    assert "steps: 6\n" in (there / "tiny.yaml").read_text()
    assert (there / "output.txt").exists(), "what was made there is nobody's to remove"


def test_a_lost_connection_costs_nothing(lab: SshLab, project: Path) -> None:
    before = len(runs_there(lab))
    words = ["run", "tiny.yaml", "--set", "params.pause=0.05", *HOST]
    watching = subprocess.Popen(
        [*DTRAIN, *words],
        cwd=project,
        env=os.environ | lab.client,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: len(runs_there(lab)) > before, 60, "no run")
    run = runs_there(lab)[-1]
    wait_until(lambda: any(isinstance(event, CheckpointSaved) for event in read(run.events)), 60, "no checkpoint")
    lab.cut()
    _, errors = watching.communicate(timeout=PATIENCE_SECONDS)
    assert f"the connection to login is lost; {run.id} goes on" in errors
    assert "Traceback" not in errors
    assert watching.returncode == 3
    done = dtrain("attach", run.id, *HOST, **lab.client)
    assert f"{run.id}: done" in done.stdout
    assert len(runs_there(lab)) == before + 1


def test_in_a_terminal_the_keys_go_there(lab: SshLab, project: Path) -> None:
    before = len(runs_there(lab))
    here, there = pty.openpty()
    words = [*DTRAIN, "run", "tiny.yaml", "--set", "params.pause=0.2", *HOST]
    process = subprocess.Popen(words, cwd=project, env=os.environ | lab.client, stdin=there, stdout=there, stderr=there)
    os.close(there)
    wait_until(lambda: len(runs_there(lab)) > before, 60, "no run")
    run = runs_there(lab)[-1]
    wait_until(lambda: any(isinstance(event, CheckpointSaved) for event in read(run.events)), 60, "no checkpoint")
    shown, ending = b"", time.monotonic() + 60
    os.write(here, b"\x03")
    while b"[s]top it" not in shown and time.monotonic() < ending:
        shown += os.read(here, 4096)
    os.write(here, b"s\r")
    while process.poll() is None:
        try:
            shown += os.read(here, 4096)
        except OSError:  # the other side is closed
            break
    assert process.wait(60) == 4, shown.decode(errors="replace")
    os.close(here)
    assert "resume" in dtrain("status", run.id, *HOST, **lab.client).stdout


def test_what_cannot_be_is_said(lab: SshLab, project: Path) -> None:
    assert "ssh cannot reach nowhere.invalid" in dtrain("ps", "--host", "nowhere.invalid", check=3, **lab.client).stderr
    assert "--host names no machine" in dtrain("ps", "--host", check=2, **lab.client).stderr
    assert "names no run" not in dtrain("tensorboard", *HOST, check=2, **lab.client).stderr
    assert "pull brings a run from another machine" in dtrain("pull", "x", check=2, **lab.client).stderr
    wrong = dtrain("submit", "tiny.yaml", "--set", "trian.steps=3", *HOST, cwd=project, check=2, **lab.client)
    assert "--set trian.steps=3: trian: unknown key 'trian'. Did you mean 'train'?" in wrong.stderr
    script = lab.home / ".dtrain" / "venv" / "bin" / "dtrain"
    script.rename(script.with_name("away"))
    try:
        for words in (("plan", "tiny.yaml"), ("ps",)):
            missing = dtrain(*words, *HOST, cwd=project, check=2, **lab.client)
            assert "there is no dtrain on login" in missing.stderr
            assert "--bootstrap" in missing.stderr
    finally:
        script.with_name("away").rename(script)


def test_bootstrap_puts_this_dtrain_there(tmp_path: Path, project: Path) -> None:
    if problem := install_ssh():
        pytest.skip(problem)
    lab = SshLab(tmp_path / "lab")
    try:
        done = dtrain(
            "plan", "tiny.yaml", "--set", "strategy=script", *HOST, "--bootstrap", cwd=project, check=None, **lab.client
        )
        own = lab.home / ".dtrain" / "venv" / "bin" / "dtrain"
        assert own.exists(), done.stderr
        assert (
            subprocess.run([own, "--version"], capture_output=True, text=True, check=True).stdout
            == dtrain("--version").stdout
        )
        assert "putting dtrain on login" in done.stderr
    finally:
        lab.stop()
