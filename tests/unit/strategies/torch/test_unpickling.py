"""A checkpoint runs no program: what it may name is listed, and what would not be read back is refused when it is saved."""

from __future__ import annotations

import collections
import datetime
import io
import json
import os
import pickle
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from one_worker import trained, written
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex

from dtrain.api.strategy import RankInfo
from dtrain.common.errors import CheckpointError, UserError
from dtrain.strategies import unpickling
from dtrain.strategies.torch.state import safe_reader
from dtrain.strategies.torch.state.index import INDEX, VALUES, read_values
from dtrain.strategies.torch.state.safe_reader import METADATA
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


def older(folder: Path, **bytes_of_values: bytes) -> Path:
    """The same checkpoint as versions of before 0.2 pickled it, with these bytes for some of its values."""
    metadata = safe_reader.reader(folder).read_metadata()
    values, content = read_values(folder), b""
    for name, value in values.items():
        stream = io.BytesIO()
        torch.save(value, stream)
        data = bytes_of_values.get(name.rpartition(".")[2]) or stream.getvalue()
        metadata.storage_data[MetadataIndex(name)] = _StorageInfo("__0_0.objects", len(content), len(data))
        content += data
    (folder / "__0_0.objects").write_bytes(content)
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    for name in (INDEX, VALUES):
        (folder / name).unlink()
    return folder


def test_what_older_versions_wrote_is_read(checkpoint: Path) -> None:
    assert read(older(checkpoint))["numbers"] == {"lr": 0.1, "betas": (0.9, 0.99), "kind": "adam"}


def test_metadata_that_names_a_program_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (older(checkpoint) / METADATA).write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=r"the checkpoint step names posix\.system, which dtrain does not write"):
        safe_reader.reader(checkpoint).read_metadata()
    assert not (tmp_path / "ran").exists()


def hostile_pickle(marker: Path) -> bytes:
    stream = io.BytesIO()
    torch.save(Hostile(marker), stream)
    return stream.getvalue()


SCRIPT = """
import torch

class Writes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.x = torch.zeros(8, dtype=torch.uint8)

    @torch.jit.export
    def __getstate__(self):
        return self.x, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.training = state[1]
        self.x = torch.from_file({path!r}, True, 8, dtype=torch.uint8).fill_(88)

    def forward(self):
        return self.x
"""


def hostile_script(victim: Path) -> bytes:
    """An archive of TorchScript that writes to a file when it is loaded."""
    module = victim.with_name("writes.py")
    module.write_text(SCRIPT.format(path=str(victim)))
    stream = io.BytesIO()
    writes: Any = runpy.run_path(str(module), run_name="writes")["Writes"]
    torch.jit.save(torch.jit.script(writes()), stream)
    torch.jit.load(io.BytesIO(stream.getvalue()))
    assert victim.read_bytes() == b"X" * 8, "this test could not fail otherwise"
    return stream.getvalue()


def legacy_format(marker: Path) -> bytes:
    stream = io.BytesIO()
    torch.save(Hostile(marker), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    ("made", "words"),
    [(hostile_pickle, r"posix\.system"), (hostile_script, "a program"), (legacy_format, "in another format"), (lambda _: b"PK\3\4 and no archive", "in another format")],
)  # fmt: skip
def test_a_value_that_is_a_program_is_refused(
    made: Callable[[Path], bytes], words: str, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "ran").write_bytes(b"harmless")
    data = made(tmp_path / "ran")
    older(checkpoint, lr=data)
    (tmp_path / "ran").write_bytes(b"harmless")
    with pytest.raises((CheckpointError, dcp.api.CheckpointException), match=words):
        read(checkpoint)
    assert (tmp_path / "ran").read_bytes() == b"harmless"


def test_a_value_that_names_an_unknown_type_is_refused(checkpoint: Path) -> None:
    body = json.loads((checkpoint / VALUES).read_text())
    body["values"]["numbers.lr"] = {"os.system": "touch ran"}
    (checkpoint / VALUES).write_text(json.dumps(body))
    with pytest.raises((CheckpointError, dcp.api.CheckpointException), match=r"names os\.system"):
        read(checkpoint)


@pytest.mark.parametrize("name", [INDEX, VALUES])
@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "tensors": 3, "paths": {}}', "[" * 100_000]
)
def test_a_file_that_cannot_be_read_is_named(name: str, text: str, checkpoint: Path) -> None:
    (checkpoint / name).write_text(text)
    with pytest.raises(
        (CheckpointError, dcp.api.CheckpointException), match=f"{name} of the checkpoint step cannot be read"
    ):
        read(checkpoint)


def test_a_file_of_a_newer_version_is_refused_in_one_sentence(checkpoint: Path) -> None:
    (checkpoint / INDEX).write_text('{"format": 2}')
    with pytest.raises((CheckpointError, dcp.api.CheckpointException), match=r"format 2, and this dtrain reads 1"):
        read(checkpoint)


@pytest.mark.parametrize("pickled", [False, True])
def test_files_outside_of_the_checkpoint_are_not_read(checkpoint: Path, *, pickled: bool) -> None:
    if pickled:
        metadata = safe_reader.reader(older(checkpoint)).read_metadata()
        for stored in metadata.storage_data.values():
            stored.relative_path = "../secret"
        (checkpoint / METADATA).write_bytes(pickle.dumps(metadata))
    else:
        text = (checkpoint / INDEX).read_text()
        (checkpoint / INDEX).write_text(text.replace("__0_0.safetensors", "../secret"))
    with pytest.raises(CheckpointError, match=r"names the file '\.\./secret'"):
        safe_reader.reader(checkpoint).read_metadata()


def test_what_older_versions_could_pickle_is_still_on_the_list() -> None:
    state: dict[str, Any] = {
        "plain": [1, 2.0, True, None, "text", b"bytes", {1, 2}, frozenset({3}), 1j, (1, (2,))],
        "collections": (collections.OrderedDict(a=1), collections.deque([1, 2], 5), collections.Counter("aab")),
        "numpy": (np.float32(1.5), np.arange(3), np.dtype("int64"), np.random.default_rng(0).bit_generator.state),
        "torch": (torch.float32, torch.bfloat16, torch.zeros(1, 2).shape, torch.device("cpu")),
        "time": datetime.timedelta(seconds=3),
    }
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        assert str(unpickling.loads(pickle.dumps(state, protocol), Path("step"))) == str(state)


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
