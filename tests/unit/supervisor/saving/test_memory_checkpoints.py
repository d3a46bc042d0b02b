"""The vote for an in-memory checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.api.memory_protocol import HeldPart, MemoryHeld
from dtrain.api.strategy import RankInfo
from dtrain.checkpoint.local import LocalCheckpointStore
from dtrain.job.job import Checkpoint, Job, PluginChoice, Resources, Train
from dtrain.launch import planner
from dtrain.record.event_log import EventLog
from dtrain.supervisor.saving.memory_checkpoints import MOST_USES, MemoryCheckpoints

NODES = ("node0", "node1", "node2", "node3")


def votes_of(folder: Path, every: int = 5) -> MemoryCheckpoints:
    job = Job(
        "a-run", task="t.py:T", folder=str(folder), strategy=PluginChoice("ddp"), resources=Resources(4, 4),
        train=Train(steps=10, global_batch=4), checkpoint=Checkpoint(memory_every_steps=every),
    )  # fmt: skip
    store = LocalCheckpointStore(folder)
    return MemoryCheckpoints(planner.make(job), store, EventLog(folder / "e"), "a-run")


@pytest.fixture
def votes(tmp_path: Path) -> MemoryCheckpoints:
    votes = votes_of(tmp_path)
    votes.begin(1, 4, None)
    for number, node in enumerate(NODES):
        votes.listens(node, "10.0.0.1", 1000 + number)
    return votes


def tell(votes: MemoryCheckpoints, node: int, *parts: tuple[int, int], attempt: int = 1) -> None:
    """What a node has: (rank, step)."""
    votes.handle(f"node{node}", MemoryHeld(attempt, tuple(HeldPart(attempt, *part) for part in parts)))


def test_the_newest_that_all_ranks_have_is_taken(votes: MemoryCheckpoints) -> None:
    for rank in range(4):
        tell(votes, rank, (rank, 10), (rank, 15), *([(rank, 20)] if rank else []))
    found = votes.newest(after=0)
    assert found
    assert found.step == 15
    assert [(peer.port, peer.ranks) for peer in found.peers] == [(1000 + rank, (rank,)) for rank in range(4)]


def test_one_that_is_not_newer_than_the_disk_is_not(votes: MemoryCheckpoints) -> None:
    for rank in range(4):
        tell(votes, rank, (rank, 10))
    assert votes.newest(after=10) is None
    assert votes.newest(after=9)


def test_a_lost_nodes_part_is_at_its_partner_or_nowhere(votes: MemoryCheckpoints) -> None:
    for rank in range(4):
        tell(votes, rank, (rank, 10), ((rank + 2) % 4, 10))
    votes.lose("node1")
    assert votes.newest(after=0)
    votes.lose("node3")
    assert votes.newest(after=0) is None


def test_a_rank_without_a_part_of_the_state_does_not_hold_it_up(votes: MemoryCheckpoints) -> None:
    tell(votes, 0, (0, 10))
    for rank in range(1, 4):
        tell(votes, rank, (rank, -1))
    found = votes.newest(after=0)
    assert found
    assert [peer.ranks for peer in found.peers] == [(0,)]


def test_ranks_without_a_part_alone_make_no_checkpoint(votes: MemoryCheckpoints) -> None:
    for rank in range(4):
        tell(votes, rank, (rank, -1))
    assert votes.newest(after=0) is None


def test_one_that_attempts_went_on_from_in_vain_is_given_up(votes: MemoryCheckpoints) -> None:
    for attempt in range(2, 2 + MOST_USES):
        for rank in range(4):
            tell(votes, rank, (rank, 10))
        found = votes.newest(after=0)
        assert found
        votes.begin(attempt, 4, found)
    assert votes.newest(after=0) is None


def test_what_the_agents_dropped_is_not_voted_for(votes: MemoryCheckpoints) -> None:
    for rank in range(4):
        tell(votes, rank, (rank, 10))
    votes.begin(2, 4, None)
    assert votes.newest(after=0) is None


def test_partners_are_half_way_round_and_on_other_nodes(votes: MemoryCheckpoints) -> None:
    ranks = {node: [RankInfo(number, 4, 0, 1, number, 4, 1)] for number, node in enumerate(NODES)}
    partners = [votes.partner(node, ranks) for node in NODES]
    assert [partner.ranks for partner in partners if partner] == [(2,), (3,), (0,), (1,)]
    assert votes.partner("node0", {"node0": ranks["node0"]}) is None


def test_without_them_no_port_is_opened(tmp_path: Path, votes: MemoryCheckpoints) -> None:
    assert votes.key(2)
    assert not votes.key(1)
    assert not votes_of(tmp_path, every=0).key(2)
