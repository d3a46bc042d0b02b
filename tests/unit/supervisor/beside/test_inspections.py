"""The supervisor passes on who wants to look into the workers, and puts together what the nodes answer."""

from __future__ import annotations

from pathlib import Path

from scripted import ScriptedCluster, Supervised, script_job

from dtrain.api.protocol import Inspect, Inspected
from dtrain.common.errors import Exit
from dtrain.record import events, inspection
from dtrain.record.inspection import Inspection, InspectionRequest, SharedStacks


def asked(supervised: Supervised, request: InspectionRequest) -> list[Inspect]:
    """What the agents were told, when the first of them was."""
    supervised.inbox.put(("", request))
    agents = supervised.cluster.agents.values()
    supervised.wait(lambda: any(isinstance(one, Inspect) for agent in agents for one in agent.told), "the question")
    return [one for agent in agents for one in agent.told if isinstance(one, Inspect)]


def answer(supervised: Supervised) -> Inspection:
    path = supervised.run.inspections
    found: Inspection = supervised.wait(lambda: inspection.answers(path, 0), "the answer")[-1]
    return found


def started(path: Path) -> Supervised:
    supervised = Supervised(path, ScriptedCluster(), script_job(path))
    supervised.wait_event(events.WorkersStarted, 2)
    return supervised


def end(supervised: Supervised) -> None:
    for agent in supervised.cluster.agents.values():
        for rank in list(agent.ranks):
            agent.exit(rank, 0)
    assert supervised.finish() is Exit.DONE


def test_equal_stacks_of_two_nodes_are_one_with_the_ranks_of_both(tmp_path: Path) -> None:
    supervised = started(tmp_path)
    asked(supervised, InspectionRequest("a"))
    for rank, agent in enumerate(supervised.cluster.agents.values()):
        agent.say(Inspected(1, "a", (SharedStacks((rank,), "thread:\n  here"),)))
    found = answer(supervised)
    assert found.stacks == (SharedStacks((0, 1), "thread:\n  here"),)
    assert not found.silent
    end(supervised)


def test_only_the_node_of_the_rank_is_asked_and_a_silent_one_is_named(tmp_path: Path) -> None:
    supervised = started(tmp_path)
    assert [one.ranks for one in asked(supervised, InspectionRequest("b", (1,)))] == [(1,)]
    found = answer(supervised)
    assert (found.silent, found.stacks) == (("node1",), ())
    end(supervised)


def test_a_rank_that_is_not_there_is_answered_at_once(tmp_path: Path) -> None:
    supervised = started(tmp_path)
    supervised.inbox.put(("", InspectionRequest("c", (7,))))
    assert answer(supervised).problem == "no such rank runs now"
    end(supervised)
