"""What a supervisor that was held up still writes of a run's log changes nothing that counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.record.folder import RunDir
from dtrain.storage.object_store import ObjectStore
from dtrain.storage.run_copy import PART_BYTES, Part, RunCopy, parts_that_count


@pytest.fixture
def remote(tmp_path: Path) -> ObjectStore:
    return ObjectStore(f"file://{tmp_path}/there", {})


def machine(tmp_path: Path, name: str) -> RunDir:
    run = RunDir(tmp_path / name)
    run.create_folders()
    run.job_file.write_text("{}")
    return run


def log(run: RunDir, text: str) -> None:
    with run.events.open("a") as file:
        file.write(text)


def read_by(run: RunDir, remote: ObjectStore) -> str:
    RunCopy(run, remote).pull()
    return run.events.read_text()


def test_a_log_is_what_each_supervisor_wrote_until_the_next_one_began(tmp_path: Path, remote: ObjectStore) -> None:
    one, two, reader = (machine(tmp_path, name) for name in ("one", "two", "reader"))
    first, second = RunCopy(one, remote, claim=1), RunCopy(two, remote, claim=2)
    log(one, "a" * PART_BYTES + "begin of one\n")
    first.push()
    second.pull()
    log(one, "one, held up\n" * 5)
    first.push()
    assert read_by(reader, remote).endswith("one, held up\n"), "nobody else has written yet"
    log(two, "two\n")
    second.push()
    log(one, "end of one\n")
    first.push()
    whole = "a" * PART_BYTES + "begin of one\n" + "two\n"
    assert read_by(reader, remote) == whole, "a folder that had more of the first one is cut back"
    assert read_by(machine(tmp_path, "new"), remote) == whole
    log(two, "two again\n")
    second.push()
    assert read_by(reader, remote) == whole + "two again\n"


def test_the_folder_of_the_one_that_was_held_up_follows_its_successor(tmp_path: Path, remote: ObjectStore) -> None:
    one, two = machine(tmp_path, "one"), machine(tmp_path, "two")
    first, second = RunCopy(one, remote, claim=1), RunCopy(two, remote, claim=2)
    log(one, "one\n")
    first.push()
    second.pull()
    log(two, "two, who wrote more than the other one\n")
    second.push()
    log(one, "never pushed\n")
    third = RunCopy(one, remote, claim=3)
    third.pull()
    log(one, "three\n")
    third.push()
    assert read_by(two, remote) == "one\ntwo, who wrote more than the other one\nthree\n"


def test_what_a_dead_supervisor_could_not_push_is_pushed_by_the_next_one_in_its_folder(
    tmp_path: Path, remote: ObjectStore
) -> None:
    one = machine(tmp_path, "one")
    first = RunCopy(one, remote, claim=1)
    first.pull()
    log(one, "one\n")
    first.push()
    log(one, "its last words\n")
    again = RunCopy(one, remote, claim=2)
    again.pull()
    again.push()
    assert read_by(machine(tmp_path, "reader"), remote) == "one\nits last words\n"


def test_objects_of_older_versions_are_read_and_continued(tmp_path: Path, remote: ObjectStore) -> None:
    remote.write("events.jsonl/000000000000", b"x" * PART_BYTES)
    remote.write(f"events.jsonl/{PART_BYTES:012d}", b"old\n")
    run = machine(tmp_path, "one")
    copy = RunCopy(run, remote, claim=4)
    copy.pull()
    log(run, "new\n")
    copy.push()
    assert read_by(machine(tmp_path, "reader"), remote) == "x" * PART_BYTES + "old\nnew\n"


@settings(deadline=None)
@given(
    takes=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=5),
    late=st.lists(st.integers(0, 9), max_size=5),
)
def test_bytes_count_for_the_last_supervisor_that_began_before_them(
    takes: list[tuple[int, int]], late: list[int]
) -> None:
    """Each supervisor begins at the end of what counted then, writes some bytes in parts, and some more when it is long lost."""
    written: dict[int, list[str]] = {}
    begins: dict[int, int] = {}
    expected = ""
    for claim, (seen, more) in enumerate(takes, 1):
        begins[claim] = len(expected)
        text = str(claim) * (seen + more)
        expected += text
        if text:
            written[claim] = [text]
    for claim, extra in enumerate(late, 1):
        if claim in written and claim < max(written):
            written[claim].append("?" * extra)
    parts, content = [], {}
    for claim, texts in written.items():
        at = begins[claim]
        for number, text in enumerate(filter(None, texts)):
            name = f"{claim}-{number}"
            content[name] = text
            parts.append(Part(name, at, at + len(text), claim))
            at += len(text)
    counting = parts_that_count(parts)
    assert "".join(content[part.name][: part.end - part.begin] for part in counting) == expected
