"""What agents say arrives whole, however short the lines are that carry it, and in whatever order several agents speak."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dtrain.api.protocol import Fragment, WorkerExited, WorkerReport, decode, encode, fragments
from dtrain.supervisor.beside.received_files import Reassembler

TEXTS = st.lists(st.text(max_size=3000), min_size=1, max_size=4)


@given(st.data(), TEXTS, TEXTS, st.integers(200, 1000))
def test_long_events_of_two_nodes_come_whole_out_of_a_mixture_of_short_lines(
    data: st.DataObject, one: list[str], other: list[str], most: int
) -> None:
    said = {"node1": one, "node2": other}
    lines = {
        node: [line for text in texts for line in fragments(encode(_said(text), node), node, most)]
        for node, texts in said.items()
    }
    assert all(len(line) <= most and line.endswith(b"\n") for node in lines for line in lines[node])
    joiner, heard = Reassembler(), dict[str, list[str]](node1=[], node2=[])
    while speaking := [node for node, left in lines.items() if left]:
        node, event = decode(lines[data.draw(st.sampled_from(speaking))].pop(0))
        whole = joiner.add(node, event) if isinstance(event, Fragment) else event
        if whole:
            assert isinstance(whole, WorkerReport)
            heard[node].append(whole.report["text"])
    assert heard == said


def test_an_event_that_was_cut_off_is_forgotten_when_the_next_one_begins() -> None:
    joiner = Reassembler()
    first, *_ = (decode(line)[1] for line in fragments(encode(_said("x" * 2000)), "", 500))
    assert joiner.add("node1", first) is None
    last = [joiner.add("node1", decode(line)[1]) for line in fragments(encode(_said("y" * 2000)), "", 500)][-1]
    assert last == _said("y" * 2000)


def test_a_short_event_is_one_line() -> None:
    line = encode(WorkerExited(1, 0, -9, None, out_of_memory=False), "node1")
    assert list(fragments(line, "node1", 1000)) == [line]


def _said(text: str) -> WorkerReport:
    return WorkerReport(1, 0, {"text": text})
