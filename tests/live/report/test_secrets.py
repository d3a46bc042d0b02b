"""A secret of a recipe is in two private files of its run, and in nothing that is shown, drawn or passed on."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import PROGRAMS, Live, dtrain, finished

CANARY = "canary-5e1f70"
PRIVATE = {"job.json", "recipe.yaml"}
RECIPE = f"""
name: secret
task: {PROGRAMS}/tiny.py:Tiny
strategy: ddp
resources: {{workers: 1}}
train: {{steps: 3, global_batch: 4}}
env:
  WANDB_API_KEY: {CANARY}-env
  # OLD_KEY: {CANARY}-comment
  HARMLESS: '{CANARY}-harmless'
notify: {{command: "cat > /dev/null; : {CANARY}-notify"}}
storage:
  url: file://FOLDER/there
  options: {{token: {CANARY}-options}}
track: [csv, tensorboard]
"""


@pytest.fixture(scope="module", autouse=True)
def any_umask() -> Iterator[None]:
    """What is private must not be so because of whoever happens to have a careful umask."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    folder = tmp_path_factory.mktemp("secret")
    (folder / "recipe.yaml").write_text(RECIPE.replace("FOLDER", str(folder)))
    return finished(str(folder / "recipe.yaml"), runs=folder / "runs")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_nothing_that_is_made_to_be_passed_on_holds_it(live: Live, tmp_path: Path) -> None:
    run, recipe = str(live.run.path), str(live.runs.parent / "recipe.yaml")
    other = str(shutil.copytree(live.run.path, live.runs / "another"))
    pages = {"report": tmp_path / "report.html", "compare": tmp_path / "compare.html"}
    said = [
        dtrain(*command).stdout
        for command in (
            ["status", run], ["status", run, "--json"], ["report", run], ["report", run, "--json"], ["logs", run],
            ["report", run, "--html", str(pages["report"])], ["compare", run, other, "--html", str(pages["compare"])],
            ["compare", run, other], ["ps", "--runs", str(live.runs)], ["ps", "--runs", str(live.runs), "--json"],
            ["audit", run], ["weights", run, "--to", str(tmp_path / "w.safetensors")],
        )
    ]  # fmt: skip
    assert "WANDB_API_KEY" in pages["report"].read_text(), "the page shows the recipe, without its secrets"
    for text in said:
        assert CANARY not in text
    planned = dtrain("plan", recipe).stdout
    assert f"HARMLESS={CANARY}" in planned, "its owner sees what the workers get, but for what sounds like a secret"
    assert planned.count(CANARY) == 1
    for folder in (live.run.path, tmp_path):
        for path in folder.rglob("*"):
            if path.is_file() and path.name not in PRIVATE:
                assert CANARY.encode() not in path.read_bytes(), path
    assert {
        path.name for path in live.run.path.iterdir() if path.is_file() and CANARY.encode() in path.read_bytes()
    } == PRIVATE


def test_what_holds_it_is_its_owners_alone_here_there_and_where_it_is_fetched(live: Live, tmp_path: Path) -> None:
    there = live.runs.parent / "there" / live.run.id
    dtrain("status", f"file://{there}", "--runs", str(tmp_path / "fetched"))
    fetched = tmp_path / "fetched" / live.run.id
    assert [mode(folder) for folder in (live.run.path, there, fetched)] == [0o700] * 3
    for path in (live.run.job_file, live.run.recipe_copy, fetched / "job.json"):
        assert mode(path) == 0o600


@pytest.mark.parametrize("end", ["..", ".", "../..", "no-such-run"])
def test_a_url_that_names_no_run_leaves_nothing_behind(end: str, live: Live, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    there = live.runs.parent / "there"
    assert dtrain("status", f"file://{there}/{end}", "--runs", str(tmp_path / "a" / "b"), check=3).stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]
