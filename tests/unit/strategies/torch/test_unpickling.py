"""A checkpoint runs no program: what it may name is listed, and what would not be read back is refused when it is saved."""

from __future__ import annotations

import collections
import datetime
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from one_worker import trained, written

from dtrain.api.strategy import RankInfo
from dtrain.common.errors import CheckpointError, UserError
from dtrain.strategies import unpickling
from dtrain.strategies.torch.state import safe_reader
from dtrain.strategies.torch.state.snapshot import Snapshots


class Hostile:
    """Runs a program when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def group() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def saved(folder: Path, state: dict[str, Any], group: Any) -> Path:
    folder.mkdir()
    Snapshots(RankInfo(0, 1, 0, 1, 0, 1, 1), group, torch.device("cpu")).take(state, set()).write(folder)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path, group: Any) -> Path:
    state = {"model": {"w": torch.arange(6.0)}, "numbers": {"lr": 0.1, "betas": (0.9, 0.99), "kind": "adam"}}
    return saved(tmp_path / "step", state, group)


def read(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = {"model": {"w": torch.zeros(6)}, "numbers": {"lr": None, "betas": None, "kind": None}}
    dcp.load(state, storage_reader=safe_reader.reader(folder), planner=safe_reader.planner(folder))
    return state


def test_what_was_written_is_read(checkpoint: Path) -> None:
    state = read(checkpoint)
    assert state["model"]["w"].tolist() == [0, 1, 2, 3, 4, 5]
    assert state["numbers"] == {"lr": 0.1, "betas": (0.9, 0.99), "kind": "adam"}


def test_metadata_that_names_a_program_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=r"the checkpoint step names posix\.system, which dtrain does not write"):
        safe_reader.reader(checkpoint).read_metadata()
    assert not (tmp_path / "ran").exists()


def test_a_value_that_names_a_program_is_refused(tmp_path: Path, group: Any) -> None:
    state = {"model": {"w": torch.arange(6.0)}, "numbers": {"lr": Hostile(tmp_path / "ran"), "betas": (), "kind": ""}}
    folder = saved(tmp_path / "hostile", state, group)
    with pytest.raises((CheckpointError, dcp.api.CheckpointException), match=r"posix\.system"):
        read(folder)
    assert not (tmp_path / "ran").exists()


def test_files_outside_of_the_checkpoint_are_not_read(checkpoint: Path) -> None:
    metadata = safe_reader.reader(checkpoint).read_metadata()
    for stored in metadata.storage_data.values():
        stored.relative_path = "../secret"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"names the file '\.\./secret'"):
        safe_reader.reader(checkpoint).read_metadata()


def test_what_states_are_made_of_is_read_back() -> None:
    state: dict[str, Any] = {
        "plain": [1, 2.0, True, None, "text", b"bytes", {1, 2}, frozenset({3}), 1j, (1, (2,))],
        "collections": (collections.OrderedDict(a=1), collections.deque([1, 2], 5), collections.Counter("aab")),
        "numpy": (np.float32(1.5), np.arange(3), np.dtype("int64"), np.random.default_rng(0).bit_generator.state),
        "torch": (torch.float32, torch.bfloat16, torch.zeros(1, 2).shape, torch.device("cpu")),
        "time": datetime.timedelta(seconds=3),
    }
    unpickling.require_loadable(state, "x")
    found = unpickling.Unpickler(io.BytesIO(pickle.dumps(state))).load()
    assert str(found) == str(state)


class Own:
    """Of the user's."""


@pytest.mark.parametrize("value", [Own, Own(), Hostile(Path("x")), print, lambda: 0])
def test_what_would_not_be_read_back_is_not_saved(value: Any) -> None:
    with pytest.raises(UserError, match="the state_dict of 'ema'"):
        unpickling.require_loadable({"value": value}, "'ema'")


def test_a_registered_object_is_refused_at_its_first_checkpoint(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
        import pathlib, torch
        class Odd:
            pass
        class Thing:
            def state_dict(self):
                return {"odd": Odd()}
            def load_state_dict(self, state):
                pass
        def train(context):
            context.prepare(lambda: torch.nn.Linear(1, 1), lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
            context.register("thing", Thing())
            for step in range(context.total_steps):
                context.report(loss=1.0)
        """,
    )
    with pytest.raises(UserError, match=r"the state_dict of 'thing' holds an object of .*\.Odd"):
        trained(tmp_path, file, target="train")
