"""The audit finds every sample that was trained twice, left out or changed."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.data.sampler import Sampler
from dtrain.job.job import Train
from dtrain.record import sample_ledger
from dtrain.record.sample_ledger import RECORD, Entry, Ledger, LedgerFile, LeftOut
from dtrain.report.audit import Audit, compare

SAMPLER = Sampler(100, Train(steps=9, global_batch=8, shards=4))


def rank_entries(rank: int, workers: int, first: int, last: int) -> list[Entry]:
    count = 8 // workers
    begins = [(step, step * 8 + rank * count) for step in range(first, last)]
    return [
        Entry(step, begin, count, sample_ledger.checksum(SAMPLER.indices(begin, count)), float(step))
        for step, begin in begins
    ]


def packed(entry: Entry) -> bytes:
    """A record as a ledger has it."""
    count = entry.count | entry.left_out << sample_ledger.COUNT_BITS
    return RECORD.pack(entry.step, entry.begin, count, entry.checksum, entry.time)


def attempt(workers: int, first: int, last: int) -> list[list[Entry]]:
    return [rank_entries(rank, workers, first, last) for rank in range(workers)]


def written(history: dict[int, list[list[Entry]]]) -> Callable[[dict[int, int], int], Audit]:
    """An audit of these entries, from ledgers on disk."""

    def audit(starts: dict[int, int], steps: int) -> Audit:
        with tempfile.TemporaryDirectory() as folder:
            ledgers = {}
            for number, ranks in history.items():
                paths = [Path(folder) / f"{number}-{rank}" for rank in range(len(ranks))]
                for path, entries in zip(paths, ranks, strict=True):
                    path.write_bytes(b"".join(packed(entry) for entry in entries))
                ledgers[number] = [LedgerFile(path) for path in paths]
            return compare(ledgers, starts, steps, SAMPLER)

    return audit


@given(st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(0, 6)), min_size=1, max_size=5))
def test_any_row_of_attempts_that_resume_from_a_checkpoint_is_clean(rows: list[tuple[int, int]]) -> None:
    history, starts, saved = {}, {}, 0
    for number, (workers, steps) in enumerate(rows, start=1):
        starts[number] = saved
        history[number] = attempt(workers, saved, saved + steps)
        saved += steps // 2
    starts[99], history[99] = saved, attempt(2, saved, 40)
    audit = written(history)(starts, 40)
    assert audit.clean, audit.problems


def test_a_skipped_a_doubled_and_an_altered_sample_are_found() -> None:
    whole = attempt(2, 0, 9)
    assert written({1: whole})({1: 0}, 9).clean
    shortened = [whole[0], whole[1][:8]]
    assert written({1: shortened})({1: 0}, 9).skipped == 4
    assert written({1: [*whole, whole[0]]})({1: 0}, 9).twice == 36
    wrong = [[dataclasses.replace(whole[0][0], checksum=1), *whole[0][1:]], whole[1]]
    assert written({1: wrong})({1: 0}, 9).altered == 1


def test_a_step_that_all_ranks_left_out_is_counted_with_its_reason_and_one_that_some_did_is_wrong() -> None:
    whole = attempt(2, 0, 9)
    out = [[dataclasses.replace(e, left_out=LeftOut.SPIKE) if e.step == 4 else e for e in rank] for rank in whole]
    found = written({1: out})({1: 0}, 9)
    assert (found.clean, found.left_out, found.skipped) == (True, 8, 0)
    assert found.reasons == ("step 4 was left out: its loss or gradient jumped",)
    found = written({1: [out[0], whole[1]]})({1: 0}, 9)
    assert (found.clean, found.left_out, found.skipped) == (False, 0, 4)


def test_a_ledger_keeps_why_a_step_was_left_out(tmp_path: Path) -> None:
    writer = Ledger(tmp_path / "ledger")
    writer.add(0, 0, SAMPLER.indices(0, 8))
    writer.add(1, 8, SAMPLER.indices(8, 8), LeftOut.ROLLED_BACK)
    found = [(entry.count, entry.left_out) for entry in LedgerFile(tmp_path / "ledger").read(0, 2)]
    assert found == [(8, LeftOut.NO), (8, LeftOut.ROLLED_BACK)]


def test_steps_that_a_failure_undid_are_counted_apart() -> None:
    history = {1: attempt(2, 0, 7), 2: attempt(2, 5, 9)}
    audit = written(history)({1: 0, 2: 5}, 9)
    assert (audit.clean, audit.repeated_steps) == (True, 2)


def test_a_record_cut_short_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    assert sample_ledger.last_step(path) is None
    writer = Ledger(path)
    for step in range(3):
        writer.add(step, step * 8, SAMPLER.indices(step * 8, 8))
    with open(path, "ab") as file:
        file.write(b"abc")
    assert [entry.step for entry in LedgerFile(path).read(0, 9)] == [0, 1, 2]
    assert sample_ledger.last_step(path) == 3


def test_an_audit_reads_the_ledgers_in_blocks_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attempt(2, 0, 9)
    monkeypatch.setattr("dtrain.report.audit.ENTRIES_AT_ONCE", 4)
    assert written({1: whole})({1: 0}, 9).clean
    assert written({1: [whole[0], whole[1][:5]]})({1: 0}, 9).skipped == 16
