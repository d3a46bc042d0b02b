"""Tensors in files are read one by one, and take no memory afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dtrain.strategies.torch.state import tensor_files
from dtrain.strategies.torch.state.tensor_files import Piece, StoredTensor, TensorFiles
from dtrain.strategies.torch.state.weights import TorchWeights

NUMBER, ELEMENTS = 6, 4 << 20
SLACK_BYTES = 200
"""Of the file that says how much was read."""


def bytes_read() -> int:
    """How much this process has read from files so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def resident_file_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssFile"))


def test_a_file_takes_the_memory_of_one_tensor_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    given = {f"w{number}": torch.full((ELEMENTS,), float(number)) for number in range(NUMBER)}
    TorchWeights.write(path, given, None, {})
    found = TorchWeights.read_file(path, lambda: None)
    before, most = resident_file_bytes(), 0
    for name, value in given.items():
        assert torch.equal(found[name], value)
        most = max(most, resident_file_bytes() - before)
        found.leave(name)
    assert most < 2 * 4 * ELEMENTS
    copy = tmp_path / "copy.safetensors"
    TorchWeights.write(copy, found, None, {})
    assert copy.read_bytes() == path.read_bytes()
    assert resident_file_bytes() - before < 4 * ELEMENTS


def test_a_tensor_in_pieces_is_put_together(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.int64).view(4, 6)
    path = tmp_path / "pieces"
    path.write_bytes(b"\0" * 3 + whole[:1].numpy().tobytes() + whole[1:].numpy().tobytes())
    pieces = (Piece(path, 3, 48, (0, 0), (1, 6)), Piece(path, 51, 144, (1, 0), (3, 6)))
    found = TensorFiles({"module.w": StoredTensor(torch.int64, (4, 6), pieces)}, {"module.extra": "text"}).without(
        "module."
    )
    assert torch.equal(found["w"], whole)
    assert tensor_files.shapes(found) == {"w": (4, 6), "extra": ()}
    assert dict(found)["extra"] == "text"


def test_of_a_tensor_in_pieces_any_part_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "CHUNK_BYTES", 100)
    whole = torch.arange(210, dtype=torch.int64).view(7, 6, 5)
    path = tmp_path / "pieces"
    path.write_bytes(b"\0" * 3 + whole[:2].numpy().tobytes() + whole[2:].numpy().tobytes() + b"\1")
    pieces = (Piece(path, 3, 480, (0, 0, 0), (2, 6, 5)), Piece(path, 483, 1200, (2, 0, 0), (5, 6, 5)))
    stored = {
        "w": StoredTensor(torch.int64, (7, 6, 5), pieces),
        "one": StoredTensor(torch.uint8, (), (Piece(path, 1683, 1, (), ()),)),
    }
    found = TensorFiles(stored)
    for begin, shape in (
        ((0, 0, 0), (7, 6, 5)),
        ((1, 0, 0), (3, 6, 5)),
        ((3, 2, 1), (2, 3, 4)),
        ((7, 0, 0), (0, 6, 5)),
    ):
        wanted = whole[tuple(slice(first, first + size) for first, size in zip(begin, shape, strict=True))]
        for into in (
            torch.zeros(shape, dtype=torch.int64),
            torch.zeros(shape),
            torch.zeros(shape[::-1]).permute(2, 1, 0),
        ):
            found.read_part("w", into, begin)
            assert torch.equal(into, wanted.to(into.dtype))
    one = torch.zeros((), dtype=torch.uint8)
    found.read_part("one", one, ())
    assert one == 1
    before = bytes_read()
    found.read_part("w", torch.zeros((2, 6, 5), dtype=torch.int64), (3, 0, 0))
    assert bytes_read() - before < 480 + SLACK_BYTES


def test_files_that_were_changed_or_are_not_there_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    TorchWeights.write(path, {"w": torch.ones(3)}, None, {})
    found = tensor_files.of_file(path).in_files(["w", "other"])
    before = found.states()
    assert found.states() == before
    path.write_bytes(path.read_bytes() + b"x")
    assert found.states() != before
    path.unlink()
    with pytest.raises(OSError, match="No such file"):
        found.states()


def test_tensors_of_several_types_are_saved_by_torch_without_the_rest_of_their_file(tmp_path: Path) -> None:
    weights = {"large": torch.zeros(1 << 20), "count": torch.tensor(3), "mean": torch.ones(4)}
    save_file(weights, tmp_path / "model.safetensors")
    read = tensor_files.of_file(tmp_path / "model.safetensors")
    torch.save({name: read[name] for name in ("count", "mean")}, tmp_path / "part.pt")
    found = torch.load(tmp_path / "part.pt")
    assert found["count"] == 3
    assert torch.equal(found["mean"], torch.ones(4))
    assert (tmp_path / "part.pt").stat().st_size < 10_000
