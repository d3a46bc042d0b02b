"""The tree in which gradients are summed is the same however many workers share it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from dtrain.checkpoint.difference import first_difference
from dtrain.checkpoint.tensor_file import TensorEntry, laid_out
from dtrain.strategies.torch.exact import tree_sums
from dtrain.strategies.torch.exact.exchange import tree_sum
from dtrain.strategies.torch.exact.tree_sums import ExactSums, PartialSums


def gradients(shards: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1000, generator=generator) * 10.0 ** random.Random(n).randint(-4, 4) for n in range(shards)]


def summed(parts: list[torch.Tensor], workers: int) -> torch.Tensor:
    """As that many workers sum them up."""
    each = len(parts) // workers
    sums = []
    for worker in range(workers):
        own = PartialSums()
        mine = parts[worker * each : (worker + 1) * each]
        for part in mine[:-1]:
            own.push({0: part.clone()})
        sums.append(own.last({0: mine[-1].clone()})[0])
    return tree_sum(torch.stack(sums))


@pytest.mark.parametrize("shards", [1, 2, 8, 32])
def test_every_number_of_workers_sums_in_the_same_order(shards: int) -> None:
    parts = gradients(shards)
    whole = summed(parts, 1)
    sizes = [count for count in (1, 2, 4, 8, 16, 32) if count <= shards]
    assert all(torch.equal(summed(parts, workers), whole) for workers in sizes)
    if shards == 32:
        one_by_one = torch.stack(parts).cumsum(0)[-1]
        assert not torch.equal(one_by_one, whole), "an order of another kind gives other bits"


def test_the_last_shard_may_lack_gradients_that_others_have() -> None:
    own = PartialSums()
    own.push({0: torch.ones(2), 1: torch.ones(2)})
    views = {0: torch.ones(2)}
    own.add_to(views)
    assert views[0].tolist() == [2, 2]
    assert sorted(own.last({0: torch.ones(2)})) == [0, 1]


def test_no_more_buffers_are_kept_than_the_logarithm_of_the_shards() -> None:
    own = PartialSums()
    for _ in range(31):
        own.push({0: torch.ones(1)})
        assert len(own._stack) <= 5
    assert own.last({0: torch.ones(1)})[0].item() == 32


def test_clipping_is_that_of_torch_and_its_bits_do_not_depend_on_rows() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((7, 5, 3), (11,), ())]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    copies = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    for copy, parameter in zip(copies, parameters, strict=True):
        assert parameter.grad is not None
        copy.grad = parameter.grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(copies, 0.5)
    assert tree_sums.clip(parameters, 0.5).item() == pytest.approx(norm.item(), rel=1e-6)
    for copy, parameter in zip(copies, parameters, strict=True):
        assert torch.allclose(copy.grad, parameter.grad, rtol=1e-5)
    matrix = torch.randn(64, 33)
    rows = tree_sums._all_rows(matrix)
    assert torch.equal(rows, torch.cat([tree_sums._all_rows(part) for part in matrix.split([1, 30, 33])]))


def test_one_flipped_bit_changes_a_checksum_and_pieces_do_not() -> None:
    gradient = torch.randn(1001)
    flipped = gradient.clone()
    flipped.view(torch.int32)[500] ^= 1
    assert tree_sums.bits(gradient) != tree_sums.bits(flipped)
    assert tree_sums.bits(gradient) == sum(tree_sums.bits(piece) for piece in gradient.split(77)) % 2**32
    assert tree_sums.bits(gradient.double()) != tree_sums.bits(
        torch.where(gradient == gradient[0], -gradient, gradient).double()
    )
    sums = ExactSums(4, 0, 1)
    sums.begin_pass(first=True, last=False)
    sums.see([gradient, flipped])
    sums.begin_pass(first=False, last=True)
    sums.see([gradient])
    assert sums.checksums() == [(tree_sums.bits(gradient) + tree_sums.bits(flipped)) % 2**32, tree_sums.bits(gradient)]


def saved(folder: Path, **tensors: np.ndarray) -> Path:
    """A checkpoint with one file; `__` in a name stands for `@` and an offset."""
    folder.mkdir()
    entries = [
        TensorEntry(name.replace("__", "@").replace("_c_", ","), "F32", value.shape) for name, value in tensors.items()
    ]
    layout = laid_out(entries)
    by_name = {entry.name: value for entry, value in zip(entries, tensors.values(), strict=True)}
    data = bytearray(layout.size)
    data[: len(layout.header)] = layout.header
    for entry in layout.entries:
        data[entry.begin : entry.begin + entry.length] = by_name[entry.name].astype("<f4").tobytes()
    (folder / "part.safetensors").write_bytes(data)
    return folder


def test_checkpoints_are_compared_whatever_files_and_pieces_they_are_in(tmp_path: Path) -> None:
    whole = np.arange(12, dtype=np.float32).reshape(4, 3)
    one = saved(tmp_path / "one", weight=whole, bias=np.zeros(2, np.float32))
    other = saved(tmp_path / "two", weight__0_c_0=whole[:3], weight__3_c_0=whole[3:], bias=np.zeros(2, np.float32))
    assert first_difference(one, other) is None
    changed = whole.copy()
    changed[2, 1] = -8
    third = saved(tmp_path / "three", weight=changed, bias=np.zeros(2, np.float32))
    found = first_difference(other, third)
    assert found is not None
    assert (found.name, found.text) == ("weight", "differs in 1 of 12 values, the first at [2, 1]")
    minus = saved(tmp_path / "four", weight=whole, bias=np.array([0.0, -0.0], np.float32))
    found = first_difference(one, minus)
    assert found is not None and found.name == "bias", "bits, not values"
    missing = first_difference(one, saved(tmp_path / "five", weight=whole))
    assert missing is not None and missing.text == "is only in one"
