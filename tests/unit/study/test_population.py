"""Who takes over whose state in a population, and with which values."""

from __future__ import annotations

import dataclasses

import pytest

from dtrain.job.tune import Tune
from dtrain.launch.tuning import domain
from dtrain.study.population import Member, TakeOver, take_overs

SPACE = {
    "params.lr": domain("log(1e-3, 1)"),
    "params.depth": domain("int(2, 10, step=2)"),
    "params.kind": domain(["a", "b", "c"]),
}
TUNE = Tune(over=dict.fromkeys(SPACE, ""), sampler_seed=3)


def member(number: int, cost: float, lr: float = 0.1, depth: int = 4, kind: str = "b") -> Member:
    return Member(number, cost, {"params.lr": lr, "params.depth": depth, "params.kind": kind})


def taken(members: list[Member], tune: Tune = TUNE, step: int = 10) -> dict[int, TakeOver]:
    return take_overs(members, step, SPACE, tune, 3 / 4)


def test_the_worst_quarter_goes_on_from_the_best_with_values_beside_theirs() -> None:
    found = taken([member(number, float(number)) for number in range(8)])
    assert set(found) == {6, 7} and {one.trial for one in found.values()} <= {0, 1}
    for one in found.values():
        assert one.values["params.lr"] in (pytest.approx(0.08), pytest.approx(0.12))
        assert one.values["params.depth"] in (2, 6) and one.values["params.kind"] in ("a", "c")


def test_what_is_taken_over_follows_from_the_seed_alone() -> None:
    members = [member(number, float(number)) for number in range(40)]
    assert taken(members) == taken(members[::-1])
    assert taken(members) != taken(members, dataclasses.replace(TUNE, sampler_seed=4))
    assert [one.values for one in taken(members).values()] != [one.values for one in taken(members, step=20).values()]


def test_values_stay_in_their_space() -> None:
    ends = [
        member(number, float(number), lr, depth, kind)
        for number, (lr, depth, kind) in enumerate([(1e-3, 2, "a"), (1.0, 10, "c")] * 30)
    ]
    for one in taken(ends).values():
        assert 1e-3 <= one.values["params.lr"] <= 1 and one.values["params.depth"] in (2, 4, 6, 8, 10)
        assert one.values["params.kind"] == "b"


def test_keys_that_are_not_named_stay_those_of_the_better_trial() -> None:
    tune = dataclasses.replace(TUNE, perturb=("params.lr",))
    (found,) = taken([member(0, 0.0, depth=8, kind="c"), member(1, 1.0)], tune).values()
    assert found.values["params.depth"] == 8 and found.values["params.kind"] == "c"
    assert found.values["params.lr"] != 0.1


def test_nobody_takes_over_what_is_no_better_and_one_alone_nothing() -> None:
    assert not taken([member(number, 1.0) for number in range(8)])
    assert not taken([member(0, 1.0)]) and not taken([])
