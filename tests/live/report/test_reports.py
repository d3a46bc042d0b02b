"""Looking back at real runs: their account, pages, comparisons, and removing them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from live import DTRAIN, PROGRAMS, Live, dtrain, finished, killed, start

from dtrain.record.folder import all_runs

RECIPE = str(PROGRAMS / "tiny.yaml")
EVALUATED = ("--set", "train.evaluate_every=20")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def disturbed(runs: Path) -> Live:
    return killed(RECIPE, *EVALUATED, "--set", "params.pause=0.02", "--name", "disturbed", runs=runs, step=25, rank=1)


@pytest.fixture(scope="module")
def undisturbed(runs: Path) -> Live:
    return finished(RECIPE, *EVALUATED, "--name", "undisturbed", runs=runs)


@pytest.fixture(scope="module")
def other(runs: Path) -> Live:
    return finished(
        RECIPE, *EVALUATED, "--set", "train.seed=9", "--set", "env.TOKEN=hunter2", "--name", "other", runs=runs
    )


def test_the_account_of_a_run_that_was_killed_adds_up_and_names_the_cost(disturbed: Live) -> None:
    report = json.loads(dtrain("report", "disturbed", "--json", "--runs", str(disturbed.runs)).stdout)
    account = report["account"]
    parts = sum(
        value for name, value in account.items() if name not in ("total", "goodput", "effective_share", "queued")
    )
    assert account["total"] == pytest.approx(parts, abs=0.02)
    assert account["evaluation"] > 0
    assert account["wasted_steps"] > 0
    (failure,) = report["failures"]
    assert (failure["kind"], failure["rank"], failure["attempt"]) == ("killed", 1, 1)
    assert failure["steps_undone"] > 0
    assert failure["cost_seconds"] == pytest.approx(
        account["wasted_steps"] + account["detection"] + account["restart"], abs=0.2
    )
    logged = disturbed.events("run_ended")[0]["report"]
    same = ("init", "training", "evaluation", "checkpoint_stall", "wasted_steps", "detection", "restart", "data_wait")
    assert {kind: logged[kind] for kind in same} == {kind: account[kind] for kind in same}


def test_a_report_is_text_in_a_pipe_and_says_what_it_cost(disturbed: Live) -> None:
    text = dtrain("report", "disturbed", "--runs", str(disturbed.runs)).stdout
    assert "1 failure, which cost" in text
    assert re.search(r"wasted steps .*restart .*steps undone", text)
    assert re.search(r"held-out loss +\d", text)


def test_a_page_is_one_file_that_asks_for_nothing_else(disturbed: Live, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    dtrain("report", "disturbed", "--html", str(page), "--runs", str(disturbed.runs))
    text = page.read_text()
    assert "killed by SIGKILL" in text
    assert "--kind-wasted_steps" in text
    assert text.count("<svg") >= 4
    assert not re.search(r"(src|href)=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    assert page.stat().st_mode & 0o077 == 0
    failed = dtrain(
        "report", "disturbed", "--html", str(tmp_path / "no" / "x.html"), "--runs", str(disturbed.runs), check=2
    )
    assert "cannot write" in failed.stderr


def test_equal_weights_and_the_step_where_losses_part_are_told(disturbed: Live, undisturbed: Live, other: Live) -> None:
    text = dtrain("compare", "undisturbed", "disturbed", "other", "--runs", str(disturbed.runs)).stdout
    assert re.search(r"disturbed and undisturbed: the weights are equal at step 60", text)
    assert "other and undisturbed: the weights differ at step 60; the losses part at step 1" in text
    pair = dtrain("compare", "undisturbed", "other", "--runs", str(disturbed.runs)).stdout
    assert re.search(r"the weights differ at step 60: \S+ differs in .*; the losses part at step 1", pair)
    assert "train.seed" in text
    assert "hunter2" not in text
    assert "loss by step" in text


def test_a_comparison_is_a_page_a_picture_and_json(undisturbed: Live, other: Live, tmp_path: Path) -> None:
    runs = ("--runs", str(undisturbed.runs))
    pair = ("compare", undisturbed.run.id, other.run.id)
    dtrain(*pair, "--html", str(tmp_path / "c.html"), "--png", str(tmp_path / "c.png"), *runs)
    assert "hunter2" not in (tmp_path / "c.html").read_text()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(dtrain(*pair, "--json", *runs).stdout)
    assert set(found["differences"]["train.seed"].values()) == {"3", "9"}
    assert "losses part at step 1" in found["verdicts"][other.run.id]
    assert "no run has the metric 'lass'" in dtrain(*pair, "--metric", "lass", *runs, check=2).stderr
    assert "Name two runs" in dtrain("compare", "other", *runs, check=2).stderr
    assert f"Did you mean '{other.run.id}'?" in dtrain("report", "othr", *runs, check=2).stderr


def test_without_what_draws_pictures_it_is_said_what_to_install(undisturbed: Live, other: Live, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')\n")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from dtrain.cli import app; sys.exit(app.main())"
    done = subprocess.run(
        [DTRAIN[0], "-P", "-c", program, "compare", "undisturbed", "other", "--png", str(tmp_path / "x.png"), "--runs", str(other.runs)],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 2
    assert "Install it: pip install" in done.stderr


def test_ps_sorts_and_filters(undisturbed: Live, other: Live, disturbed: Live) -> None:
    runs = ("--runs", str(undisturbed.runs))
    rows = json.loads(dtrain("ps", "--json", "--sort", "loss", "--state", "done", *runs).stdout)
    losses = [row["metrics"]["held-out loss"] for row in rows]
    assert losses == sorted(losses)
    assert len(losses) == 3
    assert [row["run"] for row in json.loads(dtrain("ps", "--json", "--name", "oth*", *runs).stdout)] == [other.run.id]
    assert "held-out loss" in dtrain("ps", "--sort", "loss", *runs).stdout.splitlines()[0]
    assert "no such runs" in dtrain("ps", "--state", "failed", *runs).stdout
    assert "Did you mean 'loss'?" in dtrain("ps", "--sort", "los", *runs, check=2).stderr


def test_clean_keeps_the_best_and_asks_first(tmp_path: Path) -> None:
    runs = ("--runs", str(tmp_path))
    dtrain("submit", RECIPE, "--sweep", "train.seed=1,2,3", "--at-most", "3", "--set", "train.steps=10", *runs)
    by_loss = [row["run"] for row in json.loads(dtrain("ps", "--json", "--sort", "loss", *runs).stdout)]
    asked = dtrain("clean", "--keep-best", "1", *runs, check=2)
    assert "--yes" in asked.stderr
    assert len(all_runs(tmp_path)) == 3
    dtrain("clean", "--keep-best", "2", "--checkpoints", "--yes", *runs)
    emptied = {run.id for run in all_runs(tmp_path) if not list(run.checkpoints.iterdir())}
    assert emptied == {by_loss[2]}
    dtrain("clean", "--keep-best", "1", "--yes", *runs)
    assert [run.id for run in all_runs(tmp_path)] == by_loss[:1]
    assert "nothing to remove" in dtrain("clean", "--keep-best", "1", "--yes", *runs).stdout


def test_a_run_that_goes_on_is_never_removed(tmp_path: Path) -> None:
    with start(RECIPE, "--set", "params.pause=0.05", runs=tmp_path) as live:
        live.wait_step(2)
        refused = dtrain("rm", "last", "--yes", "--runs", str(tmp_path), check=2)
        assert "goes on: nothing was removed" in refused.stderr
        assert "nothing to remove" in dtrain("clean", "--keep-best", "0", "--yes", "--runs", str(tmp_path)).stdout
        live.wait_step(4)
        live.process.send_signal(2)
        live.finish(code=4)
    dtrain("rm", live.run.id, "--yes", "--runs", str(tmp_path))
    assert not live.run.path.exists()


def test_logs_of_an_attempt_and_lines_with_a_pattern_are_shown_with_node_and_rank(tmp_path: Path) -> None:
    options = ("--nodes", "2", "--set", "params.pause=0.02", "--set", "train.steps=30")
    live = killed(RECIPE, *options, runs=tmp_path, step=5, rank=1)
    runs = ("--runs", str(tmp_path))
    second = dtrain("logs", "last", "--attempt", "2", *runs).stdout
    assert sorted(line.partition(" | ")[0] for line in second.splitlines() if "--- dtrain" in line) == [
        "node0 rank 0",
        "node1 rank 1",
    ]
    assert "attempt 1," not in second
    found = dtrain("logs", "last", "--grep", "attempt [12], rank 1", *runs).stdout.splitlines()
    assert [line.startswith("node1 rank 1 | --- dtrain") for line in found] == [True, True]
    assert "has no attempt 3: it has 2" in dtrain("logs", "last", "--attempt", "3", *runs, check=2).stderr
    assert "--grep (" in dtrain("logs", "last", "--grep", "(", *runs, check=2).stderr
    assert live.events("run_ended")


def test_recipes_that_differ_in_many_keys_are_shown_key_by_key(undisturbed: Live, tmp_path: Path) -> None:
    more = ("train.seed=4", "train.log_every=2", "train.shards=2", "train.global_batch=16", "checkpoint.every_steps=20")
    sets = [word for setting in more for word in ("--set", setting)]
    other = finished(RECIPE, *sets, "--set", "train.steps=20", runs=tmp_path)
    text = dtrain("compare", str(undisturbed.run.path), str(other.run.path)).stdout
    assert re.search(r"^train.global_batch +32 +16$", text, re.MULTILINE)
    assert "train.seed" not in next(line for line in text.splitlines() if line.startswith("run "))


def test_a_script_and_a_run_that_goes_on_have_reports(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(1)\n")
    (tmp_path / "recipe.yaml").write_text("name: s\nscript: program.py\nresources: {workers: 2}\n")
    finished(str(tmp_path / "recipe.yaml"), runs=tmp_path)
    account = json.loads(dtrain("report", "last", "--json", "--runs", str(tmp_path)).stdout)["account"]
    assert account["script"] >= 0.9
    assert "goodput" not in account
    dtrain("report", "last", "--html", str(tmp_path / "script.html"), "--runs", str(tmp_path))
    with start(RECIPE, "--set", "params.pause=0.05", "--set", "train.steps=1000", runs=tmp_path) as live:
        live.wait_step(5)
        assert "up to the newest step, goodput" in dtrain("report", live.run.id, "--runs", str(tmp_path)).stdout
        live.process.send_signal(2)
        live.finish(code=4)
