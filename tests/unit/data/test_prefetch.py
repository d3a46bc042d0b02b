"""Data workers: the same batches whatever their number, faults that are survived or said, and nothing left behind."""

from __future__ import annotations

import collections
import dataclasses
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live import wait_for

from dtrain.common.errors import UserError, notes_of
from dtrain.common.processes import alive
from dtrain.data.batches import Batches
from dtrain.data.prefetch import DataWait, Prefetcher, PrefetchSettings

Pair = collections.namedtuple("Pair", "image label")


@dataclasses.dataclass
class Sample:
    """A batch of the user's own kind."""

    values: Any
    name: str


def settings(workers: int | None, **more: Any) -> PrefetchSettings:
    given = {"ahead": 2, "memory": 10**9, "cpus": 2, "silent_seconds": 60.0} | more
    return PrefetchSettings(workers=workers, **given)


def prefetched(fetch: Callable[[int], Any], numbers: range, workers: int | None, **more: Any) -> Iterator[Any]:
    with closing(Prefetcher(fetch, numbers, settings(workers, **more), DataWait())) as prefetcher:
        for number in numbers:
            yield prefetcher.get(number)


class Augmented:
    """Samples that draw from all global generators."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[float, ...]:
        return index, random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.mark.parametrize("workers", [1, 3, None])
def test_batches_do_not_depend_on_the_number_of_data_workers(workers: int | None) -> None:
    data = Batches(Augmented(), seed=7, name="data")

    def fetch(number: int) -> Any:
        time.sleep(0.002)
        return data.fetch(np.arange(number * 4 % 40, number * 4 % 40 + 4), number * 4)

    expected = list(prefetched(fetch, range(3, 30), 0))
    found = list(prefetched(fetch, range(3, 30), workers))
    assert all(
        np.array_equal(a, b)
        for one, other in zip(expected, found, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_batches_of_any_structure_arrive_as_they_are() -> None:
    value = {
        "pair": Pair(torch.arange(6).reshape(2, 3), np.zeros((0, 3), np.float32)),
        "own": Sample(torch.ones(2, dtype=torch.bfloat16), "é"),
        "view": torch.arange(10)[::2],
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "texts": ["a", "b"],
        "bool": torch.tensor([True, False]),
        "number": 3,
    }
    (found,) = prefetched(lambda _number: value, range(1), 1)
    assert torch.equal(found["pair"].image, value["pair"].image)
    assert found["pair"].label.shape == (0, 3)
    assert found["own"].name == "é"
    assert found["own"].values.dtype is torch.bfloat16
    assert found["own"].values.tolist() == [1.0, 1.0]
    assert found["view"].tolist() == [0, 2, 4, 6, 8]
    assert np.array_equal(found["fortran"], value["fortran"])
    assert found["texts"] == ["a", "b"]
    assert found["bool"].tolist() == [True, False]
    found["pair"].image.add_(1)  # it is the training's own
    assert found["number"] == 3


def test_batches_stay_valid_after_the_next_ones() -> None:
    found = list(prefetched(lambda number: np.full(100_000, number), range(8), 2))
    assert [int(batch.sum()) for batch in found] == [100_000 * number for number in range(8)]


class Broken(Augmented):
    def __getitem__(self, index: int) -> tuple[float, ...]:
        if index == 13:
            raise ValueError("not a picture")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_raises_is_named(workers: int) -> None:
    data = Batches(Broken(), seed=7, name="task.py: Task.data('train')")
    batches = prefetched(lambda number: data.fetch(np.arange(number * 4, number * 4 + 4)), range(10), workers)
    assert [next(batches)[0][0] for _ in range(3)] == [0, 4, 8]
    with pytest.raises(ValueError, match="not a picture") as caught:
        next(batches)
    assert notes_of(caught.value) == ["sample 13 of task.py: Task.data('train')"]
    assert any(entry.name == "__getitem__" for entry in caught.traceback)


def test_what_fails_in_a_data_worker_alone_is_fetched_by_the_training(capfd: pytest.CaptureFixture[str]) -> None:
    own = os.getpid()

    def fetch(number: int) -> int:
        if os.getpid() != own and number >= 2:
            raise RuntimeError("only in the process that trains")
        return number

    assert list(prefetched(fetch, range(6), 2)) == list(range(6))
    out, err = capfd.readouterr()
    assert out.count("which fetches the data from now on") == 1
    assert "only in the process that trains" in err


def test_a_killed_data_worker_is_replaced_and_asked_again(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def fetch(number: int) -> int:
        if number == 4 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    assert list(prefetched(fetch, range(10), 2)) == list(range(10))
    assert "a data worker was killed by SIGKILL at the batch of step 4" in capfd.readouterr().err


def test_data_workers_that_die_at_the_same_batch_end_it() -> None:
    own = os.getpid()

    def fetch(number: int) -> int:
        if number == 4 and os.getpid() != own:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    batches = prefetched(fetch, range(10), 2)
    with pytest.raises(UserError, match=r"killed by SIGKILL .* batch of step 4"):
        list(batches)


def test_a_data_worker_that_hangs_writes_its_stack(capfd: pytest.CaptureFixture[str]) -> None:
    import faulthandler

    faulthandler.register(signal.SIGQUIT, file=sys.stderr.fileno(), all_threads=True)

    def sleeps_long(number: int) -> int:
        time.sleep(3.0 if number == 1 else 0.0)
        return number

    assert list(prefetched(sleeps_long, range(3), 1, silent_seconds=0.5)) == [0, 1, 2]
    err = capfd.readouterr().err
    assert "has been fetching the batch of step 1" in err
    assert "in sleeps_long" in err


def test_memory_bounds_how_far_data_workers_are_ahead(tmp_path: Path) -> None:
    def fetch(number: int) -> Any:
        (tmp_path / str(number)).touch()
        return np.zeros(1_000_000, np.uint8)

    with closing(Prefetcher(fetch, range(100), settings(2, ahead=10, memory=3_500_000), DataWait())) as prefetcher:
        prefetcher.get(0)
        prefetcher.get(1)
        time.sleep(0.5)
        asked_first = len(list(tmp_path.iterdir()))
        for number in range(2, 30):
            prefetcher.get(number)
        time.sleep(0.5)
        assert len(list(tmp_path.iterdir())) <= max(asked_first, 30 + 3)


@pytest.mark.quiet
def test_auto_starts_data_workers_only_if_the_training_waits() -> None:
    wait = DataWait()
    with closing(Prefetcher(lambda number: number, range(100), settings(None), wait)) as quick:
        for number in range(40):
            assert quick.get(number) == number
            time.sleep(0.001)
        assert wait.workers == 0

    def slow(number: int) -> int:
        time.sleep(0.02)
        return number

    with closing(Prefetcher(slow, range(100), settings(None), wait)) as waiting:
        began = time.perf_counter()
        assert [waiting.get(number) for number in range(60)] == list(range(60))
        assert wait.workers > 1
        assert time.perf_counter() - began < 60 * 0.02
    assert wait.workers == 0


def test_auto_does_without_data_workers_if_samples_depend_on_more_than_their_number(
    capfd: pytest.CaptureFixture[str],
) -> None:
    counted = iter(range(10_000))

    def fetch(number: int) -> int:
        time.sleep(0.01)
        return next(counted)

    assert list(prefetched(fetch, range(20), None)) == list(range(20)), "as if there had been no data worker"
    assert capfd.readouterr().out.count("data workers are not used") == 1


def test_nothing_is_left_behind() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    prefetcher = Prefetcher(lambda number: np.zeros(10), range(100), settings(3), DataWait())
    prefetcher.get(0)
    pids = [worker.pid for worker in prefetcher._workers]
    assert all(alive(pid) for pid in pids)
    prefetcher.close()
    assert not any(alive(pid) for pid in pids)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_data_workers_end_with_the_process_that_trains() -> None:
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        prefetcher = Prefetcher(lambda number: time.sleep(60), range(100), settings(2), DataWait())
        prefetcher._ask()
        os.write(writing, " ".join(str(worker.pid) for worker in prefetcher._workers).encode())
        time.sleep(60)
        os._exit(0)
    pids = [int(word) for word in os.read(reading, 100).split()]
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    wait_for(lambda: not any(alive(pid) for pid in pids), "the end of the data workers")
    assert not any(alive(pid) for pid in pids)
