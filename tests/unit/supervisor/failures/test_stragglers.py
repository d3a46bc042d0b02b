"""Who the others wait for, from what every rank reports of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dtrain.api.reports import RankTimes
from dtrain.record import event_log
from dtrain.record.event_log import EventLog
from dtrain.record.events import Event, StragglerFound, StragglerOver
from dtrain.show import render
from dtrain.supervisor.failures.stragglers import REPORTS, Stragglers

RANKS = 4


class Ranks:
    """An attempt whose ranks report in turn."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.log = EventLog(path)
        self.stragglers = Stragglers(1, self.log, {rank: f"node{rank // 2}" for rank in range(RANKS)})

    def report(
        self, rounds: int, *, work: dict[int, float] | None = None, data: dict[int, float] | None = None,
        save: dict[int, float] | None = None,
    ) -> None:  # fmt: skip
        for _ in range(rounds):
            for rank in range(RANKS):
                phases = {
                    "data": (data or {}).get(rank, 0.001), "forward": 0.008, "backward": (work or {}).get(rank, 0.02),
                    "reduce": 0.06 if rank else 0.0, "save": (save or {}).get(rank, 0.0),
                }  # fmt: skip
                self.stragglers.heard(rank, RankTimes(100, 50, 0.06, phases))

    def events(self) -> list[Event]:
        self.log.flush()
        return list(event_log.Reader(self._path).new())


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    made = Ranks(tmp_path / "events.jsonl")
    yield made
    made.log.close()


def test_a_rank_that_computes_longer_for_some_time_is_named_once_and_its_cost_is_known(ranks: Ranks) -> None:
    ranks.report(REPORTS - 1, work={3: 0.05})
    assert not ranks.events()
    ranks.report(5, work={3: 0.05})
    (found,) = ranks.events()
    assert isinstance(found, StragglerFound)
    assert (found.rank, found.node, found.phase, found.seconds, found.usual_seconds) == (
        3,
        "node1",
        "backward",
        0.05,
        0.02,
    )
    ranks.report(REPORTS)
    over = ranks.events()[-1]
    assert isinstance(over, StragglerOver)
    assert over.cost_seconds == pytest.approx((REPORTS + 4) * 50 * 0.03, rel=0.2)


def test_a_rank_that_waits_for_its_data_is_told_from_one_that_computes(ranks: Ranks) -> None:
    ranks.report(REPORTS + 1, data={1: 0.04})
    (found,) = ranks.events()
    assert isinstance(found, StragglerFound)
    assert (found.rank, found.phase, found.usual_seconds) == (1, "data", 0.001)


def test_a_rank_that_saves_for_long_is_named_but_its_node_is_not_to_blame(ranks: Ranks) -> None:
    ranks.report(REPORTS + 1, save={0: 0.05})
    (found,) = ranks.events()
    assert isinstance(found, StragglerFound)
    assert (found.rank, found.phase, found.seconds) == (0, "save", 0.05)
    assert render.slowness(found) == "stands still for checkpoints 50 ms a step, the usual rank 0 ms"
    assert not ranks.stragglers.take()
    ranks.report(REPORTS + 1, save={0: 0.05}, work={2: 0.05})
    assert ranks.stragglers.take() == [(2, "node1")]


def test_one_slow_report_and_little_differences_are_none(ranks: Ranks) -> None:
    for _ in range(5):
        ranks.report(1, work={2: 0.2})
        ranks.report(1)
    ranks.report(10, work={2: 0.0238})
    assert not ranks.events()


def test_nobody_is_compared_before_all_have_reported(ranks: Ranks) -> None:
    for _ in range(10):
        ranks.stragglers.heard(0, RankTimes(1, 1, 1.0, {"work": 0.9}))
    assert not ranks.events()


def test_at_the_end_of_an_attempt_what_it_cost_is_said(ranks: Ranks) -> None:
    ranks.report(REPORTS + 1, work={0: 0.06})
    ranks.stragglers.end()
    assert [type(event) for event in ranks.events()] == [StragglerFound, StragglerOver]
