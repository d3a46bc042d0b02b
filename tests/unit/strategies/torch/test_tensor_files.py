"""Tensors in files are read one by one, and take no memory afterwards."""

from __future__ import annotations

from pathlib import Path

import torch

from dtrain.strategies.torch.state import tensor_files
from dtrain.strategies.torch.state.tensor_files import Piece, StoredTensor, TensorFiles
from dtrain.strategies.torch.state.weights import TorchWeights

NUMBER, ELEMENTS = 6, 4 << 20


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
