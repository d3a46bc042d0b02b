"""The sample order is a permutation, a pure function of its numbers, and the same for every number of workers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.data.batches import Batches, stacked
from dtrain.data.sampler import Sampler, own_shards, permuted, step_seed
from dtrain.job.job import Train, shards_on

SIZES = st.integers(1, 3000)
SEEDS = st.integers(0, 2**70)


@given(SIZES, SEEDS)
def test_every_epoch_holds_every_sample_once(size: int, seed: int) -> None:
    assert sorted(permuted(np.arange(size), size, seed).tolist()) == list(range(size))


@given(SIZES, SEEDS, st.data())
def test_a_part_of_the_order_can_be_computed_alone(size: int, seed: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), max_size=20)), dtype=np.int64)
    whole = permuted(np.arange(size), size, seed)
    assert permuted(positions, size, seed).tolist() == whole[positions].tolist()


def test_the_order_is_fixed_for_ever() -> None:
    """A change of these numbers would change what resumed runs train on."""
    assert permuted(np.arange(10), 10, 1234).tolist() == FIXED_ORDER
    assert step_seed(1, 2, 3) == FIXED_SEED


def test_the_order_looks_random() -> None:
    order = permuted(np.arange(100_000), 100_000, 5)
    assert abs(np.corrcoef(np.arange(100_000), order)[0, 1]) < 0.01
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.01
    assert np.mean(order == permuted(np.arange(100_000), 100_000, 6)) < 0.001


@settings(max_examples=60)
@given(SIZES, st.integers(1, 4), st.sampled_from([1, 2, 4, 8]), st.integers(0, 5), st.booleans())
def test_all_workers_together_train_each_global_batch_once(
    size: int, each: int, workers: int, step: int, shuffle: object
) -> None:
    sampler = Sampler(size, Train(steps=10, global_batch=8 * each, shards=8, shuffle=bool(shuffle)))
    whole = sampler.indices(sampler.begin(step, 0), 8 * each).tolist()
    parts = []
    for rank in range(workers):
        shards = own_shards(8, rank, workers)
        parts += sampler.indices(sampler.begin(step, shards.start), len(shards) * each).tolist()
    assert parts == whole


@settings(max_examples=60)
@given(st.integers(1, 200), st.integers(1, 50), SEEDS)
def test_consecutive_steps_pass_over_the_data_without_a_gap(size: int, batch: int, seed: int) -> None:
    sampler = Sampler(size, Train(epochs=3, global_batch=batch, shards=1, seed=seed))
    seen = np.concatenate([sampler.indices(sampler.begin(step, 0), batch) for step in range(sampler.total_steps)])
    assert len(seen) >= 3 * size
    for epoch in range(3):
        assert sorted(seen[epoch * size : (epoch + 1) * size].tolist()) == list(range(size))


def test_a_block_boundary_changes_nothing() -> None:
    sampler = Sampler(200_000, Train(steps=1, global_batch=1, shards=1))
    across = sampler.indices(65_530, 12).tolist()
    assert across == [int(sampler.indices(position, 1)[0]) for position in range(65_530, 65_542)]


class Samples:
    """A map-style data set."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"x": np.full(3, index), "y": (index, float(index))}


@pytest.mark.parametrize(
    "data", [np.arange(5), (np.arange(5), np.zeros(5)), {"x": np.arange(5)}, Samples(), list(range(5))]
)
def test_every_form_of_data_has_a_length_and_batches(data: object) -> None:
    batches = Batches(data, seed=1, name="data")
    assert batches.size == 5
    batches.fetch(np.array([4, 0]))


def test_samples_are_stacked_in_their_own_structure() -> None:
    batch = Batches(Samples(), seed=1, name="data").fetch(np.array([4, 0]))
    assert batch["x"].tolist() == [[4, 4, 4], [0, 0, 0]]
    assert batch["y"][1].tolist() == [4.0, 0.0]
    assert stacked([1, 2]).tolist() == [1, 2]


FIXED_ORDER = [8, 5, 7, 1, 2, 3, 6, 9, 0, 4]
FIXED_SEED = 5279625614373554524


@given(st.integers(1, 500), st.integers(1, 20), st.integers(1, 50) | st.none())
def test_parts_of_the_batch_are_as_even_as_can_be(batch: int, workers: int, micro_batch: int | None) -> None:
    train = Train(steps=1, global_batch=max(batch, workers), micro_batch=micro_batch)
    shards = shards_on(train, workers)
    sampler = Sampler(10_000, dataclasses.replace(train, shards=shards))
    sizes = [sampler.sizes(own_shards(shards, rank, workers)) for rank in range(workers)]
    everything = [size for own in sizes for size in own]
    assert sum(everything) == train.global_batch
    assert max(everything) - min(everything) <= 1
    assert max(everything) <= (micro_batch or train.global_batch)
    assert len({len(own) for own in sizes}) == 1
    assert micro_batch or len(sizes[0]) == 1
    begins = [sampler.begin(3, rank * len(sizes[0])) for rank in range(workers)]
    assert begins == [3 * train.global_batch + sum(map(sum, sizes[:rank])) for rank in range(workers)]


def test_explicit_shards_do_not_depend_on_the_workers() -> None:
    assert {shards_on(Train(steps=1, global_batch=64, shards=16), workers) for workers in (1, 2, 4, 8)} == {16}
