"""A checkpoint is whole or it does not exist, in a folder and on remote storage."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.checkpoint import local
from dtrain.checkpoint.local import LocalCheckpointStore
from dtrain.checkpoint.names import name_of
from dtrain.checkpoint.remote import RemoteCheckpointStore
from dtrain.checkpoint.store import (
    MANIFEST,
    CheckpointInfo,
    CheckpointOrigin,
    CheckpointShard,
    CheckpointStore,
    Quarantined,
    _digest,
    manifest_of,
)
from dtrain.common.errors import CheckpointError
from dtrain.common.files import hashed
from dtrain.record.lock import Lease, LeaseTaken, claim_file
from dtrain.storage.object_store import ObjectStore

ORIGIN = CheckpointOrigin("ddp", 2, "a-run")
Make = Callable[..., tuple[CheckpointStore, Path]]
"""From a folder, and a supervisor's lease, to a store and the folder in which its committed checkpoints are."""


def in_a_folder(folder: Path, lease: Lease | None = None) -> tuple[CheckpointStore, Path]:
    return LocalCheckpointStore(folder, lease), folder


def on_remote_storage(folder: Path, lease: Lease | None = None) -> tuple[CheckpointStore, Path]:
    """Another folder, through fsspec."""
    remote = ObjectStore(f"file://{folder}/there", {})
    return RemoteCheckpointStore(folder / "cache", remote, lease), folder / "there/checkpoints"


@pytest.fixture(params=[in_a_folder, on_remote_storage])
def make(request: pytest.FixtureRequest) -> Make:
    kind: Make = request.param
    return kind


def staged(store: CheckpointStore, attempt: int, step: int) -> list[CheckpointShard]:
    folder = store.staging(attempt, step)
    folder.mkdir(parents=True)
    parts = []
    for rank in range(2):
        (folder / f"rank{rank}").write_bytes(bytes([rank, step % 256]) * 500)
        files = {f"rank{rank}": hashed(folder / f"rank{rank}")}
        store.publish(attempt, step, files)
        parts.append(CheckpointShard(files, f"{rank + 1:064x}"))
    return parts


def test_what_is_staged_is_no_checkpoint_until_it_is_committed(make: Make, tmp_path: Path) -> None:
    store, there = make(tmp_path)
    parts = staged(store, 1, 10)
    assert list(store.latest_valid()) == []
    done = store.commit(1, 10, parts, ORIGIN)
    assert list(store.latest_valid()) == [done]
    assert (done.step, done.bytes) == (10, 2000)
    assert (there / done.name / MANIFEST).exists()


def test_a_part_that_was_cut_short_is_not_committed(tmp_path: Path) -> None:
    store, _ = in_a_folder(tmp_path)
    parts = staged(store, 1, 10)
    (store.staging(1, 10) / "rank1").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="cut short"):
        store.commit(1, 10, parts, ORIGIN)
    assert list(store.latest_valid()) == []


def test_a_part_that_did_not_arrive_is_not_committed(tmp_path: Path) -> None:
    store, there = on_remote_storage(tmp_path)
    parts = staged(store, 1, 10)
    (there / store.staging(1, 10).name / "rank1").unlink()
    with pytest.raises(CheckpointError, match="misses rank1"):
        store.commit(1, 10, parts, ORIGIN)
    assert list(store.latest_valid()) == []


@pytest.mark.parametrize("kind", [in_a_folder, on_remote_storage])
@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(["rank0", "rank1", MANIFEST]), position=st.integers(0, 499), flip=st.integers(1, 255))
def test_any_damaged_byte_is_found_and_the_one_before_is_used(
    name: str, position: int, flip: int, kind: Make, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store, there = kind(tmp_path_factory.mktemp("store"))
    before = store.commit(1, 10, staged(store, 1, 10), ORIGIN)
    broken = store.commit(1, 20, staged(store, 1, 20), ORIGIN)
    data = bytearray((there / broken.name / name).read_bytes())
    before_damage = bytes(data)
    data[position % len(data)] ^= flip
    (there / broken.name / name).write_bytes(bytes(data))
    found = list(store.latest_valid())
    if name == MANIFEST and isinstance(found[0], CheckpointInfo):
        assert json.loads(bytes(data)) == json.loads(before_damage), "only a blank in the manifest says nothing"
        return
    assert isinstance(found[0], Quarantined)
    assert "step-00000020" in found[0].folder
    assert found[1] == before
    assert list(store.latest_valid()) == [before]
    store.clear_staging()
    assert (there / found[0].folder / "rank0").exists(), "what was set aside is kept"


def test_a_file_that_is_gone_is_damage(make: Make, tmp_path: Path) -> None:
    store, there = make(tmp_path)
    done = store.commit(1, 10, staged(store, 1, 10), ORIGIN)
    (there / done.name / "rank0").unlink()
    (found,) = store.latest_valid()
    assert isinstance(found, Quarantined)
    assert "rank0" in found.problem


def test_keep_bounds_the_disk_and_the_newest_stay(make: Make, tmp_path: Path) -> None:
    store, there = make(tmp_path)
    for step in range(10, 60, 10):
        store.commit(1, step, staged(store, 1, step), ORIGIN)
        store.prune(lambda steps: steps[:2])
    assert store.steps() == [50, 40]
    # A file system that knows folders keeps empty ones; object stores do not.
    assert sorted(path.name[:13] for path in there.iterdir() if any(path.iterdir())) == [
        "step-00000040",
        "step-00000050",
    ]


def test_what_this_store_committed_is_read_again_only_if_somebody_wrote_to_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, there = make(tmp_path)
    before = store.commit(1, 10, staged(store, 1, 10), ORIGIN)
    done = store.commit(1, 20, staged(store, 1, 20), ORIGIN)
    read = []
    for module, name in ((local, "hashed"), (ObjectStore, "hashed")):
        whole = getattr(module, name)

        def counted(*arguments: Any, whole: Any = whole) -> Any:
            read.append(Path(str(arguments[-1])).name)
            return whole(*arguments)

        monkeypatch.setattr(module, name, counted)
    assert list(store.latest_valid()) == [done]
    assert read == []
    data = (there / done.name / "rank1").read_bytes()
    (there / done.name / "rank1").write_bytes(data[:-1] + b"x")
    damaged, found = store.latest_valid()
    assert isinstance(damaged, Quarantined)
    assert found == before
    assert "rank1" in read
    assert "rank0" not in read[: read.index("rank1")], "of the newest, only the file that somebody wrote to"


def test_what_is_damaged_in_the_moment_of_its_commit_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that goes bad just then."""
    store = LocalCheckpointStore(tmp_path)
    before = store.commit(1, 10, staged(store, 1, 10), ORIGIN)
    rename = os.rename

    def rename_and_damage(source: Path, target: Path) -> None:
        rename(source, target)
        time.sleep(0.05)  # the clock of a file system is coarse
        with open(target / "rank1", "r+b") as file:
            file.write(b"x")

    with monkeypatch.context() as disk:
        disk.setattr(os, "rename", rename_and_damage)
        store.commit(1, 20, staged(store, 1, 20), ORIGIN)
    damaged, found = store.latest_valid()
    assert isinstance(damaged, Quarantined)
    assert found == before


def test_weights_do_not_depend_on_which_rank_writes_what() -> None:
    files = {"x": (1, "0")}
    one = manifest_of(1, 10, [CheckpointShard(files, f"{5:064x}"), CheckpointShard(files, "")], ORIGIN)
    two = manifest_of(1, 10, [CheckpointShard(files, f"{2:064x}"), CheckpointShard(files, f"{3:064x}")], ORIGIN)
    other = manifest_of(1, 10, [CheckpointShard(files, f"{2:064x}"), CheckpointShard(files, f"{4:064x}")], ORIGIN)
    assert one.weights == two.weights != other.weights


def test_equal_weights_have_equal_digests(make: Make, tmp_path: Path) -> None:
    store, there = make(tmp_path)
    one = store.commit(1, 10, staged(store, 1, 10), ORIGIN)
    two = store.commit(1, 20, staged(store, 1, 20), ORIGIN)
    assert one.weights == two.weights
    assert json.loads((there / one.name / MANIFEST).read_text())["step"] == 10


def test_what_a_stale_worker_leaves_is_dropped_and_never_believed(make: Make, tmp_path: Path) -> None:
    store, _ = make(tmp_path)
    done = store.commit(2, 10, staged(store, 2, 10), ORIGIN)
    staged(store, 1, 20)
    assert list(store.latest_valid()) == [done]
    store.clear_staging()
    assert list(store.latest_valid()) == [done]
    assert store.steps() == [10]


def test_another_node_fetches_what_it_lacks_and_mends_what_it_has(tmp_path: Path) -> None:
    store, there = on_remote_storage(tmp_path)
    done = store.commit(1, 10, staged(store, 1, 10), ORIGIN)
    elsewhere = RemoteCheckpointStore(tmp_path / "elsewhere", ObjectStore(f"file://{there.parent}", {}))
    folder = elsewhere.local_folder(done.name, attempt=2)
    (folder / "rank0").write_bytes(b"damaged on this node")
    for attempt in (3, 4):
        folder = elsewhere.local_folder(done.name, attempt)
        assert [(folder / f"rank{rank}").read_bytes() for rank in range(2)] == [
            bytes([rank, 10]) * 500 for rank in range(2)
        ]


def test_only_what_is_read_is_fetched(tmp_path: Path) -> None:
    store, there = on_remote_storage(tmp_path)
    folder = store.staging(1, 10)
    folder.mkdir(parents=True)
    files = {}
    for name in ("__0_0.safetensors", "__1_0.safetensors", "index.json"):
        (folder / name).write_bytes(name.encode() * 100)
        files[name] = hashed(folder / name)
    store.publish(1, 10, files)
    done = store.commit(1, 10, [CheckpointShard(files, "")], ORIGIN)
    elsewhere = RemoteCheckpointStore(tmp_path / "elsewhere", ObjectStore(f"file://{there.parent}", {}))
    found = elsewhere.local_folder(done.name, 2, whole=False)
    assert {path.name for path in found.iterdir()} & files.keys() == {"index.json"}
    elsewhere.fetch(found, 2, ["__1_0.safetensors"])
    assert {path.name for path in found.iterdir()} & files.keys() == {"index.json", "__1_0.safetensors"}
    (there / done.name / "__0_0.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"in the checkpoint .*, __0_0.safetensors was damaged on its way"):
        elsewhere.fetch(found, 2, ["__0_0.safetensors"])


def test_a_manifest_that_names_a_file_outside_is_not_believed(make: Make, tmp_path: Path) -> None:
    store, there = make(tmp_path)
    manifest = manifest_of(1, 10, [CheckpointShard({"../../outside": (1, "0")}, "")], ORIGIN)
    name = name_of(1, 10)
    (there / name).mkdir(parents=True)
    (there / name / MANIFEST).write_text(manifest.text)
    (found,) = store.latest_valid()
    assert isinstance(found, Quarantined)
    assert "outside the checkpoint" in found.problem


def test_quarantined_checkpoints_are_kept_for_a_look_and_no_longer(make: Make, tmp_path: Path) -> None:
    store, there = make(tmp_path)
    for step in range(10, 60, 10):
        done = store.commit(1, step, staged(store, 1, step), ORIGIN)
        (there / done.name / "rank0").unlink()
        assert isinstance(next(iter(store.latest_valid())), Quarantined)
    store.prune(lambda steps: steps[:3])
    left = [path for path in there.iterdir() if any(path.iterdir())]
    assert len(left) == 2, left


def name_is_free(path: Path) -> bool:
    """A file system that knows folders keeps empty ones, and a given-up checkpoint its mark."""
    return not path.exists() or not (path / "rank0").exists()


class HeldUp:
    """A supervisor that stands still just after it has seen that the run is still its own."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self.meanwhile: Callable[[], object] | None = meanwhile

    def check(self) -> None:
        if self.meanwhile:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()

    def push_history(self) -> None:
        """Of nothing."""


def held_up(folder: Path, meanwhile: Callable[[], object]) -> Lease:
    claims = folder / "supervisors"
    claims.mkdir(exist_ok=True)
    claim_file(claims, 1).write_text("me\n")
    return Lease(claims, 1, "me", there=HeldUp(meanwhile))


def test_no_two_attempts_get_the_same_number_whoever_asks(make: Make, tmp_path: Path) -> None:
    one, two = make(tmp_path)[0], make(tmp_path)[0]
    assert [store.new_attempt(0) for store in (one, two, two, one)] == [1, 2, 3, 4]
    assert two.new_attempt(after=7) == 8
    assert one.new_attempt(after=4) == 9


def test_a_commit_that_was_held_up_until_the_next_supervisor_came_does_nothing(make: Make, tmp_path: Path) -> None:
    """It passed its last check; then the other one took over, dropped what was staged and committed the same step."""
    next_store, there = make(tmp_path)
    committed: list[CheckpointInfo] = []

    def take_over() -> None:
        next_store.clear_staging()
        committed.append(next_store.commit(2, 100, staged(next_store, 2, 100), ORIGIN))

    store, _ = make(tmp_path, held_up(tmp_path, take_over))
    with pytest.raises((CheckpointError, LeaseTaken)):
        store.commit(1, 100, staged(store, 1, 100), ORIGIN)
    assert list(make(tmp_path)[0].latest_valid()) == committed
    assert next_store.steps() == [100]
    assert name_is_free(there / name_of(1, 100))


def test_deleting_that_was_held_up_spares_what_the_next_supervisor_made(make: Make, tmp_path: Path) -> None:
    next_store, _ = make(tmp_path)
    old, _ = make(tmp_path)
    for step in (10, 20):
        old.commit(1, step, staged(old, 1, step), ORIGIN)
    held: list[CheckpointShard] = []

    def take_over() -> None:
        for step in (20, 30):
            next_store.commit(2, step, staged(next_store, 2, step), ORIGIN)
        held.extend(staged(next_store, 2, 40))

    store, _ = make(tmp_path, held_up(tmp_path, take_over))
    store.prune(lambda steps: steps[:1])
    assert next_store.steps() == [30, 20]
    store, _ = make(tmp_path, held_up(tmp_path, lambda: held.extend(staged(next_store, 2, 50))))
    store.clear_staging()
    assert next_store.commit(2, 50, held[-2:], ORIGIN).step == 50


def test_the_newest_checkpoint_is_that_of_the_greatest_step_whatever_its_name_looks_like(
    make: Make, tmp_path: Path
) -> None:
    store, there = make(tmp_path)
    steps = (99_999_000, 100_000_000, 101_000_000)
    for attempt, step in zip((9999, 10_000, 10_000), steps, strict=True):
        parts = staged(store, attempt, step)
        newest = store.commit(attempt, step, parts, ORIGIN)
        store.prune(lambda steps: steps[:2])
    assert store.steps() == [101_000_000, 100_000_000]
    assert list(store.latest_valid()) == [newest]
    (there / "step-old").mkdir()
    (there / "step-old" / MANIFEST).write_text("{}" * 100)
    assert store.steps() == [101_000_000, 100_000_000], "a folder of somebody else's"


def test_of_two_attempts_that_saved_a_step_the_later_one_counts(make: Make, tmp_path: Path) -> None:
    store, there = make(tmp_path)
    for attempt in (9999, 10_000):
        newest = store.commit(attempt, 10, staged(store, attempt, 10), ORIGIN)
    assert list(store.latest_valid()) == [newest]
    assert store.steps() == [10]
    store.prune(lambda steps: steps)
    assert name_is_free(there / name_of(9999, 10))
    assert (there / newest.name / MANIFEST).exists()


def with_manifest(there: Path, name: str, text: str) -> None:
    (there / name).mkdir(parents=True, exist_ok=True)
    (there / name / "rank0").write_bytes(b"x")
    (there / name / MANIFEST).write_text(text)


def test_a_checkpoint_of_a_newer_version_is_refused_and_not_set_aside(make: Make, tmp_path: Path) -> None:
    store, there = make(tmp_path)
    store.commit(1, 10, staged(store, 1, 10), ORIGIN)
    body = {"format": 99, "step": 20, "files": {}}
    text = json.dumps(body | {"digest": _digest(body)})
    with_manifest(there, name_of(2, 20), text)
    with pytest.raises(CheckpointError, match="format 99, and this dtrain reads up to"):
        list(store.latest_valid())
    assert (there / name_of(2, 20) / MANIFEST).read_text() == text


@pytest.mark.parametrize(
    "text",
    ['{"step": Infinity, "bytes": 1e999, "weights": "", "files": {}, "digest": ""}', "[" * 100_000, '{"files": {"x": [Infinity, 1]}}',
     '{"format": "two"}', '{"files": 3}', "null" + " " * 8, '"a text"  ', "{}" * 8],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_whatever_a_manifest_says_it_is_damaged_and_the_one_before_is_used(
    text: str, make: Make, tmp_path: Path
) -> None:
    store, there = make(tmp_path)
    before = store.commit(1, 10, staged(store, 1, 10), ORIGIN)
    with_manifest(there, name_of(2, 20), text)
    damaged, found = store.latest_valid()
    assert isinstance(damaged, Quarantined)
    assert found == before


def test_folders_with_other_names_are_no_checkpoints(make: Make, tmp_path: Path) -> None:
    store, committed = make(tmp_path)
    store.commit(1, 10, staged(store, 1, 10), ORIGIN)
    for name in ("step-old", "step-", "step-00000020.bak", "step-00000030-attempt-x"):
        shutil.copytree(committed / name_of(1, 10), committed / name)
    assert store.steps() == [10]
    assert store.verified()[1].step == 10
    store.prune(lambda steps: steps[:1])
    (found,) = store.latest_valid()
    assert isinstance(found, CheckpointInfo)
    assert found.step == 10
