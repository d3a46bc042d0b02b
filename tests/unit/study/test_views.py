"""The table of a study fits a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.common.errors import UsageError
from dtrain.launch import recipe
from dtrain.study import control, trial_run, views
from dtrain.study.folder import StudyDir, find, require
from dtrain.study.journal import Trial
from dtrain.study.rungs import Ladder

pytest.importorskip("optuna")
KEYS = {f"params.a_long_name_{number}": "uniform(0, 1)" for number in range(9)}


@pytest.fixture
def study(tmp_path: Path) -> StudyDir:
    arguments = ", ".join(f"{key.partition('.')[2]}=0.1" for key in KEYS)
    (tmp_path / "task.py").write_text(
        f"class Task:\n    def __init__(self, {arguments}): ...\n    def model(self): ...\n    def optimizer(self, model): ...\n"
        "    def data(self, split): ...\n    def loss(self, model, batch): ...\n"
    )
    path = tmp_path / "r.yaml"
    over = "".join(f"    {key}: {value}\n" for key, value in KEYS.items())
    path.write_text(f"task: task.py:Task\ntrain: {{steps: 9}}\ntrack: []\ntune:\n  metric: accuracy\n  over:\n{over}")
    return control.make(*recipe.read(path), tmp_path / "runs", [])


def test_the_table_has_no_line_of_more_than_80_letters(study: StudyDir) -> None:
    trials = [
        Trial(number, "done", dict.fromkeys(KEYS, 0.123456789 + number), value=number / 7, step=9)
        for number in range(12)
    ]
    lines = views.table(study, trials).splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) == 13
    assert lines[0].split()[:2] == ["rank", "trial"] and lines[0].split()[-2:] == ["step", "state"]
    assert [line.split()[:2] for line in lines[1:3]] == [["1", "11"], ["2", "10"]]


def test_values_that_all_trials_share_have_no_column(study: StudyDir) -> None:
    first, second = list(KEYS)[:2]
    trials = [Trial(number, "done", {first: 1.0, second: float(number)}, value=0.1, step=9) for number in range(2)]
    assert "name_1" not in views.table(study, trials) or "a_long_name_1" in views.table(study, trials)
    assert first.partition(".")[2][:15] not in views.table(study, [trials[0]])


def test_a_study_is_found_by_what_its_id_begins_with(study: StudyDir) -> None:
    assert find(study.runs, study.id[:8]) == study
    assert find(study.runs, "nothing") is None
    with pytest.raises(UsageError, match="no study 'nothing'"):
        require(study.runs, "nothing")


def test_what_is_typed_for_a_key_is_read_as_in_a_recipe() -> None:
    typed = {"a.b=1,2": [1, 2], "a.b=[1, x]": [1, "x"], "a.b=log(1,2)": "log(1,2)", "a.b=fp32,bf16": ["fp32", "bf16"]}
    assert {text: control.over(text)[1] for text in typed} == typed
    with pytest.raises(UsageError, match="not of the form"):
        control.over("a.b")


def test_a_tracker_that_knows_groups_shows_the_trials_of_a_study_together(study: StudyDir) -> None:
    pytest.importorskip("wandb")
    text = study.recipe.read_text().replace("track: []", "track: [{name: wandb, project: p}, csv]")
    study.recipe.write_text(text)
    run = trial_run.make(study, 3, dict.fromkeys(KEYS, 0.5), Ladder((2, 4), keep=1 / 3))
    job = run.job()
    assert run.id == f"{study.id}-3" and job.tags == {"study": study.id} and job.train.until == 2
    assert job.params["a_long_name_0"] == 0.5 and job.train.evaluate_every == 2 and job.tune is None
    assert [one.options.get("group") for one in job.track or ()] == [study.id, None]
