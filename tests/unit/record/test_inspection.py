"""Stacks of many ranks are folded: equal ones are shown once."""

from __future__ import annotations

from pathlib import Path

from dtrain.record.inspection import (
    Inspection,
    InspectionRequest,
    SharedStacks,
    answers,
    by_thread,
    parsed_request,
    request_text,
    shared,
    stacks_in,
)
from dtrain.show.render import ranks

DUMP = """step 3
Thread 0x00007f53a8 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 320 in wait
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Current thread 0x00007f53b9 [python] (most recent call first):
  File "/home/me/task.py", line 31 in load_image
  File "/home/me/task.py", line 12 in <module>
loss 0.5
"""


def test_stacks_are_told_from_other_output_and_lose_their_addresses() -> None:
    text, other = stacks_in(DUMP)
    assert "0x" not in text
    assert text.splitlines()[0] == "thread:"
    assert text.count('File "') == 4
    assert "loss" not in text
    assert other
    only = DUMP.removeprefix("step 3\n").removesuffix("loss 0.5\n")
    assert stacks_in(only) == (text, False)


def test_threads_are_folded_over_ranks_and_main_threads_come_first() -> None:
    text = stacks_in(DUMP)[0]
    other = text.replace("line 31 in load_image", "line 77 in step")
    found = by_thread(shared([([0], text), ([2], text), ([1], text), ([7], other)]))
    assert [(thread.ranks, thread.main) for thread in found] == [((0, 1, 2), True), ((7,), True), ((0, 1, 2, 7), False)]
    assert found[0].frames[0] == 'File "/home/me/task.py", line 31 in load_image'


def test_what_is_no_stack_is_shown_as_it_is() -> None:
    (thread,) = by_thread([SharedStacks((4,), "is stopped by a signal")])
    assert thread.frames == ("is stopped by a signal",)


def test_a_request_of_another_version_is_no_request() -> None:
    request = InspectionRequest("a", (1, 2))
    assert parsed_request(request_text(request)) == request
    assert parsed_request("") is None
    assert parsed_request('{"id": "a", "color": 1}') is None


def test_an_answer_that_is_half_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "stacks.log"
    path.write_text('{"request": "a", "time": 1.0, "attempt": 1}\n{"request": "b", "ti')
    assert answers(path, 0) == [Inspection("a", 1.0, 1)]
    assert answers(tmp_path / "none", 0) == []


def test_ranks_are_named_shortly() -> None:
    assert ranks([3]) == "rank 3"
    assert ranks([0, 1]) == "ranks 0, 1"
    assert ranks([0, 1, 2, 5, 7, 8, 9]) == "ranks 0 to 2, 5, 7 to 9"
