"""A checkpoint is whole or it does not exist."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.checkpoint import MANIFEST, CheckpointStore, Committed, Part, damage, hashed
from dtrain.errors import CheckpointError


def staged(store: CheckpointStore, attempt: int, step: int) -> list[Part]:
    folder = store.staging(attempt, step)
    folder.mkdir(parents=True)
    parts = []
    for rank in range(2):
        (folder / f"rank{rank}").write_bytes(bytes([rank, step]) * 500)
        parts.append(Part({f"rank{rank}": hashed(folder / f"rank{rank}")}, f"weights{rank}"))
    return parts


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path)


def newest(store: CheckpointStore) -> list[Committed | tuple[Path, str]]:
    return list(store.newest_whole())


def test_what_is_staged_is_no_checkpoint_until_it_is_committed(store: CheckpointStore) -> None:
    parts = staged(store, 1, 10)
    assert newest(store) == []
    done = store.commit(1, 10, parts, {})
    assert newest(store) == [done]
    assert (done.step, done.bytes) == (10, 2000)
    assert not store.staging(1, 10).exists()


def test_a_part_that_was_cut_short_is_not_committed(store: CheckpointStore) -> None:
    parts = staged(store, 1, 10)
    (store.staging(1, 10) / "rank1").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="cut short"):
        store.commit(1, 10, parts, {})
    assert newest(store) == []


@settings(max_examples=60)
@given(name=st.sampled_from(["rank0", "rank1", MANIFEST]), position=st.integers(0, 499), flip=st.integers(1, 255))
def test_any_damaged_byte_is_found_and_the_one_before_is_used(
    name: str, position: int, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("store"))
    before = store.commit(1, 10, staged(store, 1, 10), {})
    broken = store.commit(1, 20, staged(store, 1, 20), {})
    data = bytearray((broken.path / name).read_bytes())
    before_damage = bytes(data)
    data[position % len(data)] ^= flip
    (broken.path / name).write_bytes(bytes(data))
    found = newest(store)
    if name == MANIFEST and isinstance(found[0], Committed):
        assert json.loads(bytes(data)) == json.loads(before_damage), "only a blank in the manifest says nothing"
        return
    assert isinstance(found[0], tuple)
    assert found[0][0].name.startswith("damaged-step-00000020")
    assert found[1] == before


def test_a_file_that_is_gone_is_damage(store: CheckpointStore) -> None:
    done = store.commit(1, 10, staged(store, 1, 10), {})
    (done.path / "rank0").unlink()
    assert "rank0" in damage(done.path)
    assert "manifest" in damage(store.folder)


def test_keep_bounds_the_disk_and_the_newest_stay(store: CheckpointStore) -> None:
    for step in range(10, 60, 10):
        store.commit(1, step, staged(store, 1, step), {})
        store.prune(2)
    assert [path.name for path in store.committed()] == ["step-00000050", "step-00000040"]
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-00000040", "step-00000050"]


def test_equal_weights_have_equal_digests(store: CheckpointStore) -> None:
    one = store.commit(1, 10, staged(store, 1, 10), {})
    two = store.commit(1, 20, staged(store, 1, 20), {})
    assert one.weights == two.weights
    assert json.loads((one.path / MANIFEST).read_text())["step"] == 10
