"""The journal of a study: what it says is all that the next trial depends on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dtrain.common.errors import UsageError
from dtrain.launch.tuning import domain
from dtrain.study import journal
from dtrain.study.journal import Journal, Trial

pytest.importorskip("optuna")
SPACE = {
    "params.lr": domain("log(1e-4, 1)"),
    "params.layers": domain([[4], [2, 8]]),
    "params.depth": domain("int(1, 9)"),
}


def trained(path: Path, sampler: str, *, reopened: bool, trials: int = 14) -> list[Trial]:
    """Trials of a made-up training; the journal is opened anew before each if `reopened`."""
    book = Journal(path, "s", "min", write=True)
    for number in range(trials):
        book = Journal(path, "s", "min", write=True) if reopened else book
        values = book.propose(SPACE, sampler, seed=5).values
        cost = abs(math.log(values["params.lr"]) + 3) + values["params.depth"] / values["params.layers"][0]
        book.report(number, 10, cost + 1, 1.0)
        if number % 3:
            book.end(number, "done", cost, step=30, seconds=2.0)
    return book.trials()


@pytest.mark.parametrize("sampler", ["tpe", "random", "sobol", "cma", "NSGAIISampler"])
def test_what_comes_next_follows_from_the_journal_alone(sampler: str, tmp_path: Path) -> None:
    one, other = (trained(tmp_path / f"{again}", sampler, reopened=again) for again in (False, True))
    assert [(trial.values, trial.value) for trial in one] == [(trial.values, trial.value) for trial in other]
    assert len({str(trial.values) for trial in one}) > 10


def test_half_a_line_at_the_end_is_forgotten(tmp_path: Path) -> None:
    before = trained(tmp_path / "j", "random", reopened=False, trials=3)
    with (tmp_path / "j").open("a") as file:
        file.write('{"op_code": 4, "worker')
    after = Journal(tmp_path / "j", "s", "min", write=True)
    assert after.trials() == before
    after.end(0, "failed", failure="bug: x")
    assert Journal(tmp_path / "j", "s", "min").trials()[0].failure == "bug: x"


def test_optuna_itself_opens_the_journal(tmp_path: Path) -> None:
    import optuna

    trained(tmp_path / "j", "tpe", reopened=False)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "j"))
    study = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(backend))
    assert len(study.trials) == 14 and study.best_value > 0


def test_the_best_is_first_and_what_failed_last() -> None:
    values = {0: ("stopped early", 9.0), 1: ("done", 1.0), 2: ("failed", 10.0), 3: ("done", 2.0), 4: ("running", None)}
    trials = [Trial(number, state, {}, value=value) for number, (state, value) in values.items()]
    assert [trial.number for trial in journal.rank(trials, "max")] == [3, 1, 0, 2, 4]


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(UsageError, match="Did you mean 'tpe'"):
        journal.check_sampler("tpee")


def test_importance_names_the_key_that_matters(tmp_path: Path) -> None:
    trained(tmp_path / "j", "random", reopened=False, trials=30)
    found = Journal(tmp_path / "j", "s", "min").importances()
    assert set(found) == set(SPACE) and sum(found.values()) == pytest.approx(1)
